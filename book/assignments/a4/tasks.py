"""The tasks of assignment A4: training for cutting, checked against `dqt_core.nested` and `integer`."""

import numpy as np
import torch
from grading import Case, among, bits, checkers, close, judge, judging, oracles, steps
from torch.nn import functional

from dqt_core import data

integer, nested = oracles("integer", "nested")
# How many unseen images of two splits have to be right at each width. At 1 bit, trained codes reach some 590,
# and ones trained at 8 bits alone some 90; of one split in fifty these get 200 right, so that one is too few.
SPLITS, TRAINED, HELD_OUT = 2, 900, 360
NEEDED = {8: 580, 4: 580, 2: 560, 1: 480}
WIDTHS = tuple(NEEDED)
torch.set_num_threads(1)


def begin():
    """Close the package's own training; its integers stay open."""
    close("A4 writes training through the shift itself", "training")


def digits(seed):
    """The embedded digits, with pixels, classes and the split in an order of this seed.

    Returns (images, labels) to train on and the same to test on; an image is 64 pixels and a constant 255.
    """
    rng, embedded = np.random.default_rng(seed), data.load("embedded")
    parts = [(embedded.train_images, embedded.train_labels), (embedded.test_images, embedded.test_labels)]
    pixels = np.concatenate([images[:, ::4, ::4, 0].reshape(-1, 64) for images, _ in parts])
    images = np.concatenate([pixels, np.full((len(pixels), 1), 255, np.uint8)], axis=1)
    labels = np.concatenate([labels for _, labels in parts])
    order, places, classes = rng.permutation(len(images)), rng.permutation(64), rng.permutation(10)
    images, labels = images[order][:, [*places, 64]], classes[labels[order]]
    test = slice(TRAINED, TRAINED + HELD_OUT)
    return images[:TRAINED], labels[:TRAINED], images[test], labels[test]


def float_start(images, labels):
    """Weights of a linear classifier (10, 65) that was trained in floats, with no thought of widths.

    One number is added to all of them, which raises all classes alike and changes no float's answer. It
    leaves the negative ones 42 % of the range: few codes are below -64, which is all that 1 bit tells.
    """
    w = torch.zeros(10, 65, requires_grad=True)
    adam = torch.optim.Adam([w], 0.05)
    x, y = torch.from_numpy(images / np.float32(255)), torch.from_numpy(labels)
    for _ in range(100):
        adam.zero_grad()
        functional.cross_entropy(x @ w.T, y).backward()
        adam.step()
    low, high = w.detach().aminmax()
    return w.detach() - low - 0.42 * (high - low)


def _weights(rng):
    """Weights in eighths of a step, a step, and what they are in eighths."""
    # ties, some of which are ties of a narrower view too; both ends of the range, and what lies beside them
    ends = 8 * np.array([[-128], [127]]) + [-100, -1, 0, 1, 100]
    telling = [*(8 * np.arange(-20, 20) + 4), *8 * np.arange(-112, 128, 16), *ends.ravel()]
    eighths = among(rng, telling, rng.integers(-1300, 1300, 61))
    step = 2.0 ** rng.integers(-9, -3)
    return (eighths / 8 * step).astype(np.float32), step, eighths


def _element(w, eighths):
    return lambda i: f"weight {i}, {eighths[i] / 8:g} steps"


def _views(function, rng):
    cases = []
    for b in rng.permutation(range(1, 9)).tolist():
        w, step, eighths = _weights(rng)
        master = nested.quantize(eighths / 8, step=1.0)[0]
        expected = nested.switch(master, b).astype(int) << (8 - b)

        def explain(i, got, master=master, b=b, eighths=eighths):
            q, d = int(master[i]), 8 - b
            view = int(nested.switch(master[i : i + 1], b)[0])
            slips = {
                "if epsilon is left out": q >> d << d,
                "if the view is not clamped": (q + ((1 << d) >> 1)) >> d << d,
                "if the view is taken of the real number, not of its code": min(
                    int(np.floor(eighths[i] / 8 / 2**d + 0.5)), 2 ** (b - 1) - 1
                )
                << d,
                "if the view is not brought back to the master's scale": view,
            }
            rows = [
                ("master code", q, 8),
                (f"its {b}-bit view", view, b),
                (f"<< {d}, in master steps", view << d, 8),
            ]
            return steps(rows, got, slips)

        call = f"{function.__name__}(w, {step}, {b}) / step"
        cases.append(Case(call, (w, step, b), expected, 8, _element(w, eighths), explain))

    def in_steps(w, step, b):
        values = function(torch.from_numpy(w), torch.full((len(w),), step), b)
        return _whole(values.detach().double().numpy() / step)

    return judge(in_steps, cases, f"126 weights at {len(cases)} widths")


def _whole(values):
    return values.astype(np.int64) if (values == np.floor(values)).all() else values


def a4_1(view, rng):
    return _views(view, rng)


def _gradients(function, w, step, b, upstream):
    leaf = torch.from_numpy(w).requires_grad_()
    steps_ = torch.full((len(w),), step, requires_grad=True)
    values = function(leaf, steps_, b)
    if not values.requires_grad:
        raise TypeError("its result has no gradient: everything was detached, or left torch")
    found = torch.autograd.grad(values, (leaf, steps_), torch.from_numpy(upstream), allow_unused=True)
    return [torch.zeros(len(w)) if gradient is None else gradient for gradient in found]


def a4_2(trainable_view, rng):
    verdict = _views(trainable_view, rng)
    if not verdict:
        return verdict
    cases = []
    for b in (8, 4, 2, 1):
        w, step, eighths = _weights(rng)
        upstream = rng.integers(1, 100, len(w)).astype(np.float32)
        inside = (eighths > -128 * 8) & (eighths < 127 * 8)

        def explain(i, got, upstream=upstream, inside=inside, eighths=eighths, step=step):
            rows = [
                ("w / step, rounded down", int(eighths[i]) // 8, 10),
                ("inside -128..127", int(inside[i]), 1),
            ]
            rows.append(("gradient that arrives", int(upstream[i]), 8))
            slips = {
                "if a clamped weight gets a gradient": int(upstream[i]),
                "if the slope of the staircase is taken": 0,
                "if it is divided by the step": int(upstream[i] / step),
                "if it is clamped by the code, which the end of the range has too": 0,
            }
            return steps(rows, got, slips)

        arguments = w, step, b, upstream
        expected = (upstream * inside).astype(int)
        cases.append(
            Case(f"gradient of w at {b} bits", arguments, expected, 8, _element(w, eighths), explain)
        )

    def of_weights(w, step, b, upstream):
        return _whole(_gradients(trainable_view, w, step, b, upstream)[0].double().numpy())

    return judge(of_weights, cases, "126 values at 8 widths and 126 gradients at 4")


def a4_3(trainable_view, rng):
    cases = []
    for b in rng.permutation(range(1, 9)).tolist():
        w, step, eighths = _weights(rng)
        master = nested.quantize(eighths / 8, step=1.0)[0]
        value = nested.switch(master, b).astype(int) << (8 - b)
        inside = (eighths > -128 * 8) & (eighths < 127 * 8)
        expected = 8 * value - eighths * inside

        def explain(i, got, value=value, inside=inside, eighths=eighths):
            rows = [
                ("value of the view, in eighths", int(8 * value[i]), 12),
                ("inside -128..127", int(inside[i]), 1),
            ]
            rows.append(("w / step, in eighths", int(eighths[i]), 12))
            slips = {
                "if the step inside the rounding is forgotten": int(8 * value[i]),
                "if the outer step is forgotten": -int(eighths[i] * inside[i]),
                "if clamped weights are treated as the others": int(8 * value[i] - eighths[i]),
                "if no gradient reaches the step": 0,
            }
            return steps([*rows, ("the difference", int(expected_of(i)), 12)], got, slips)

        def expected_of(i, expected=expected):
            return expected[i]

        arguments = w, step, b, np.ones(len(w), np.float32)
        call = f"8 * gradient of the step at {b} bits"
        cases.append(Case(call, arguments, expected, 12, _element(w, eighths), explain))

    def of_steps(w, step, b, upstream):
        return _whole(8 * _gradients(trainable_view, w, step, b, upstream)[1].double().numpy())

    return judge(of_steps, cases, f"126 gradients at {len(cases)} widths")


def a4_4(count_right, rng):
    images, labels, _, _ = digits(rng.integers(2**32))
    half, cases = len(images) // 2, []
    for b, tied in ((8, 5), (4, 1), (2, 1), (1, 5)):
        codes = rng.integers(-128, 128, (10, 65)).astype(np.int8)
        codes[-tied:] = codes[:tied]  # with five pairs of classes every image is a tie
        logits = integer.matmul(images, nested.switch(codes, b))
        # most labels are the lower class of the tie, so that no other rule comes to the same count
        labels = np.where(np.arange(len(images)) <= half, logits.argmax(1), labels)
        expected = int((logits.argmax(1) == labels).sum())

        def explain(i, got, logits=logits, labels=labels):
            last = int((9 - logits[:, ::-1].argmax(1) == labels).sum())
            rows = [(f"logit {k} of image 0", int(value), 24) for k, value in enumerate(logits[0])]
            return steps(rows, got, {"if ties go to the higher class": last})

        arguments = codes, images, labels, b
        cases.append(Case(f"count_right(codes, images, labels, {b})", arguments, expected, 10, None, explain))
    return judge(count_right, cases, f"{len(cases)} counts over {len(images)} images")


def a4_5(train, rng):
    found, last = dict.fromkeys(WIDTHS, 0), {}
    for _ in range(SPLITS):
        images, labels, unseen, answers = digits(rng.integers(2**32))
        codes = train(images.copy(), labels.copy(), float_start(images, labels))
        if codes is None or codes is Ellipsis:
            return judging.Verdict(False, f"Not solved yet: train returned {codes}.")
        if getattr(codes, "dtype", None) != np.int8 or codes.shape != (10, 65):
            got = f"{getattr(codes, 'dtype', type(codes).__name__)} {getattr(codes, 'shape', '')}"
            return judging.Verdict(False, f"train(...): expected int8 codes (10, 65), got {got}")
        for b in WIDTHS:
            last[b] = nested.switch(codes, b)
            found[b] += int((integer.matmul(unseen, last[b]).argmax(1) == answers).sum())
    counts = ", ".join(f"{right} at {b} bits" for b, right in found.items())
    said = f"right of {SPLITS * HELD_OUT} unseen images: {counts}"
    short = []
    for b in WIDTHS:
        if found[b] < NEEDED[b]:
            used = zip(*np.unique(last[b], return_counts=True), strict=True)
            often = ", ".join(f"{bits(code, b)} {count}" for code, count in [*used][:8])
            short.append(f"    at {b} bits the codes are used so often: {often}")
    if short:
        needed = ", ".join(f"{count} at {b}" for b, count in NEEDED.items())
        return judging.Verdict(False, "\n".join([f"train(...): {said}; needed: {needed}", *short]))
    return judging.Verdict(True, f"Right: {said}.")


TASKS = {"a4_1": a4_1, "a4_2": a4_2, "a4_3": a4_3, "a4_4": a4_4, "a4_5": a4_5}
check, grade = checkers(TASKS)
