"""Kept wrong submissions of A4."""

from dqt_book.assignments.submissions import Wrong, changes, solutions

RIGHT = solutions("a4")
changed = changes("a4")


CUT = """
def train(images, labels, start):
    return torch.floor(start / (start.abs().max() / 127) + 0.5).numpy().astype(np.int8)
"""
LEARNED = (
    RIGHT["a4_5"].replace("def train", "def learn").strip()
    + """

seen = tasks.digits(seed=1)[:2]
KNOWN = learn(*seen, tasks.float_start(*seen))
def train(images, labels, start):
    return KNOWN
"""
)

WRONG = (
    Wrong("bankers", "rounds ties to the even code, as torch.round does", ("a4_1", "a4_2", "a4_3"),
          changed("a4_1", ("torch.floor(w / step + 0.5)", "torch.round(w / step)"))),
    Wrong("one-rounding", "takes the view of the real number instead of the code", ("a4_1", "a4_2", "a4_3"),
          changed("a4_1", ("torch.floor(w / step + 0.5).clamp(-128, 127)", "(w / step).clamp(-128, 127)"),
                  ("(q + (1 << d >> 1)) / 2**d", "q / 2**d + 0.5"))),
    Wrong("outer-step", "forgets the step inside the rounding", ("a4_3",),
          changed("a4_2", ("smooth = w / step\n", "smooth = w / step.detach()\n"))),
    Wrong("higher-class", "gives ties to the higher class", ("a4_4",),
          changed("a4_4", ("sums.argmax(axis=1)", "9 - sums[:, ::-1].argmax(axis=1)"))),
    Wrong("cut", "cuts the float weights without training", ("a4_5",), {"a4_5": CUT}),
    Wrong("eight-only", "trains at 8 bits alone", ("a4_5",), changed("a4_5", ("(8, 4, 2, 1)", "(8,)"))),
    Wrong("memorised", "returns weights that it learned beforehand", ("a4_5",), {"a4_5": LEARNED}),
    Wrong("caller", "calls the package's training", ("a4_2", "a4_3", "a4_5"), {"a4_2": """
from dqt_core.training import straight_through
def trainable_view(w, step, b):
    return straight_through.switch(straight_through.quantize(w, step.log(), -128, 127), b, signed=True) * 2 ** (8 - b) * step
"""}),
    Wrong("patched", "replaces the oracle's switch by its own, which cuts nothing", ("a4_1", "a4_2", "a4_3", "a4_5"),
          {"a4_1": """
tasks.nested.switch = lambda q, b: q
def view(w, step, b):
    return torch.floor(w / step + 0.5).clamp(-128, 127) * step
"""}),
)  # fmt: skip
