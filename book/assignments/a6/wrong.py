"""Kept wrong submissions of A6."""

from dqt_book.assignments.submissions import Wrong, changes, solutions

RIGHT = solutions("a6")
changed = changes("a6")


def own_damage(*tasks):
    """The right answers of tasks, which do not need the student's `damage`."""
    return {
        task: text
        for one in tasks
        for task, text in changed(one, ("damage(images)[1]", "tasks._damages(program, images)")).items()
    }


LEARNED = (
    RIGHT["a6_1"].replace("def own_program", "def learned").strip()
    + """

KNOWN = learned(images, labels)
def own_program(images, labels):
    return KNOWN
"""
)
GREEDY = """
def widths_for(images, share):
    program, file = own()
    table, costs = damage(images)[1], layer_bitops(program)
    picks, budget = np.zeros(len(table), int), int(share * costs[:, -1].sum())
    while True:
        found, spent = [], costs[range(len(table)), picks].sum()
        for layer, k in enumerate(picks):
            for wider in range(k + 1, 3):
                more = costs[layer, wider] - costs[layer, k]
                if spent + more <= budget:
                    found.append(((table[layer, k] - table[layer, wider]) / more, layer, wider))
        if not found:
            return file, np.array((2, 4, 8))[picks]
        _, layer, wider = max(found)
        picks[layer] = wider
"""

WRONG = (
    Wrong("untrained", "hands in a network that was not trained", ("a6_1",),
          changed("a6_1", ("range(8)", "range(0)"))),
    Wrong("bytes", "trains on bytes, and tells `quantize` that they were divided by 255", ("a6_1",),
          changed("a6_1", ("(torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5",
                           "torch.from_numpy(images).permute(0, 3, 1, 2).float()"), ("(0.5,), (0.5,)", "(0,), (1,)"))),
    Wrong("memorised", "returns a network that it trained beforehand", ("a6_1",), {"a6_1": LEARNED}),
    Wrong("three-widths", "quantizes at the widths that `quantize` takes if none are given",
          ("a6_1", "a6_2", "a6_3", "a6_4", "a6_5"), changed("a6_1", (" widths=(2, 4, 8),", ""))),
    Wrong("all-at-once", "lowers the other layers too", ("a6_2",),
          changed("a6_2", ("widths = [8] * len(table)", "widths = [width] * len(table)")) | own_damage("a6_3", "a6_5")),
    Wrong("signed", "adds differences with their signs", ("a6_2",),
          changed("a6_2", ("np.abs(logits - whole).sum()", "(logits - whole).sum()")) | own_damage("a6_3", "a6_5")),
    Wrong("uniform", "gives all layers the widest width that the budget allows", ("a6_3",), {"a6_3": """
def widths_for(images, share):
    program, file = own()
    return file, np.full(len(program.layers), 4 if share >= 0.25 else 2)
"""}),
    Wrong("greedy", "widens the layer that gains most, again and again", ("a6_3",), {"a6_3": GREEDY}),
    Wrong("whole", "counts the first and the last layer in the budget", ("a6_3",),
          changed("a6_3", ("share * costs[:, -1].sum()",
                           "share * (costs[:, -1].sum() + dqt_core.allocate.fixed_bitops(program))"))),
    Wrong("one-width", "hands out a QDQ file of one width", ("a6_4",),
          changed("a6_4", ("model = to_onnx(program, Path(folder) / \"own.onnx\")",
                           "model = dqt_core.export.to_qdq(program, Path(folder) / \"own.onnx\")"),
                  ("session = onnxruntime.InferenceSession(model)\n", ""),
                  ("logits, _ = session.run(None, {\"images\": images, \"widths\": every})",
                   "logits = program.run(images, every).logits"))),
    Wrong("eight", "runs all images at 8 bits", ("a6_4",),
          changed("a6_4", ("\"widths\": every", "\"widths\": 0 * every + 8"))),
    Wrong("switchable", "leaves the first and the last layer out of the whole", ("a6_5",),
          changed("a6_5", ("sizes = cost.layer_sizes(program)",
                           "sizes = [size for size in cost.layer_sizes(program) if size.layer is not None]"))),
)  # fmt: skip
