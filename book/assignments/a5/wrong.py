"""Kept wrong submissions of A5."""

from dqt_book.assignments.submissions import Wrong, changes, solutions

RIGHT = solutions("a5")
changed = changes("a5")


GREEDY = """
def best_static(loss, cost, budget):
    picks = np.zeros(len(loss), int)
    while True:
        found, spent = [], cost[np.arange(len(loss)), picks].sum()
        for layer, k in enumerate(picks):
            for wider in range(k + 1, 3):
                more = cost[layer, wider] - cost[layer, k]
                if spent + more <= budget:
                    found.append(((loss[layer, k] - loss[layer, wider]) / more, layer, wider))
        if not found:
            return picks
        _, layer, wider = max(found)
        picks[layer] = wider
"""
OWN_DP = RIGHT["a5_3"].replace("def best_static", "def exact").strip()
PER_IMAGE = (
    OWN_DP
    + """

def best_per_image(loss, cost, budget):
    every = np.broadcast_to(cost, loss.shape).reshape(-1, 3)
    return exact(loss.reshape(-1, 3), every, budget).reshape(loss.shape[:2])
"""
)

WRONG = (
    Wrong("uint8", "squares the widths in uint8", ("a5_1",),
          changed("a5_1", ("widths.astype(np.int64)", "(widths * widths * widths)"), ("macs * wide * wide", "macs * wide"))),
    Wrong("wider", "gives ties to the wider choice", ("a5_2",),
          changed("a5_2", ("logits.reshape(len(sums), layers, 3).argmax(axis=2)",
                           "2 - logits.reshape(len(sums), layers, 3)[..., ::-1].argmax(axis=2)"))),
    Wrong("greedy", "widens the layer that gains most, again and again", ("a5_3",),
          {"a5_3": GREEDY, "a5_4": PER_IMAGE}),
    Wrong("spendthrift", "ignores the budget", ("a5_3", "a5_4"), {"a5_3": """
def best_static(loss, cost, budget):
    return loss.argmin(axis=1)
"""}),
    Wrong("one-for-all", "gives all images the same widths", ("a5_4",), {"a5_4": """
def best_per_image(loss, cost, budget):
    same = best_static(loss.sum(axis=0), len(loss) * cost, budget)
    return np.tile(same, (len(loss), 1))
"""}),
    Wrong("strictly-above", "is wide above the threshold alone, not at it", ("a5_5",),
          changed("a5_5", ("column >= threshold", "column > threshold"))),
    Wrong("caller", "calls dqt_core for the allocation", ("a5_3", "a5_4"), {"a5_3": """
from dqt_core.evaluation.allocate import allocate
def best_static(loss, cost, budget):
    return allocate(cost, loss, budget)
"""}),
    Wrong("patched", "replaces the oracle by its own answer", ("a5_2",), {"a5_2": """
from dqt_core import integer
integer.requantize = lambda *arguments: np.zeros((12, 16), np.uint8)
integer.matmul = lambda x, w: np.zeros((len(x), len(w)), np.int32)
tasks.integer.matmul, tasks.integer.requantize = integer.matmul, integer.requantize
def choose(sums, w1, M, B, r, w2, layers):
    return np.zeros((len(sums), layers), int)
"""}),
)  # fmt: skip
