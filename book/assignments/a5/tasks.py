"""The tasks of assignment A5: a controller at a budget, checked against `dqt_core`."""

import numpy as np
from grading import Case, checkers, close, judge, oracles, steps

allocate, integer = oracles("evaluation.allocate", "integer")
WIDTHS = (2, 4, 8)


def begin():
    """Close what the answers are compared with; `integer` stays open."""
    close(
        "A5 writes the choice of widths itself",
        "evaluation.allocate",
        "evaluation.cost",
        "training.controller",
        "program",
    )


def a5_1(image_bitops, rng):
    cases = []
    for layers in (2, 19):
        macs = rng.integers(10**9, 10**10, layers)  # each is more than 32 bits hold at some width
        widths = rng.choice(WIDTHS, (6, layers)).astype(np.uint8)
        widths[:3] = np.array(WIDTHS)[:, None]  # an image at each width alone
        fixed = int(rng.integers(10**5, 10**8))
        expected = (macs * widths.astype(np.int64) ** 2).sum(1) + 64 * fixed

        def explain(i, got, macs=macs, widths=widths, fixed=fixed):
            wide = widths[i].astype(int)
            rows = [
                (f"layer {k} at {b} bits", int(m * b * b), 48)
                for k, (m, b) in enumerate(zip(macs, wide, strict=True))
            ]
            total = int((macs * wide**2).sum())
            slips = {
                "if the fixed layers are left out": total,
                "if the fixed layers are counted once a MAC": total + fixed,
                "if only the weights have b bits": int((macs * wide * 8).sum()) + 64 * fixed,
                "if the widths are not squared": int((macs * wide).sum()) + 64 * fixed,
            }
            return steps(
                [*rows[:4], ("fixed layers, at 8 bits", 64 * fixed, 48), ("the sum", total + 64 * fixed, 48)],
                got,
                slips,
            )

        arguments = macs, widths, fixed
        call = f"image_bitops(macs of {layers} layers, widths, {fixed})"
        cases.append(Case(call, arguments, expected, 48, lambda i: f"image {i}", explain))
    return judge(image_bitops, cases, "6 images of 2 networks")


def a5_2(choose, rng):
    cases, images, channels, hidden, layers = [], 12, 8, 16, 4
    for _ in range(2):
        r = int(rng.integers(20, 26))
        sums = rng.integers(0, 255 * 256, (images, channels)).astype(np.int32)
        w1 = rng.integers(-128, 128, (hidden, channels)).astype(np.int8)
        b1 = rng.integers(-(10**7), 10**7, hidden)
        m1 = rng.integers(1, 4, hidden).astype(np.int32) << (r - 18)
        w2 = rng.integers(-128, 128, (layers * 3, hidden)).astype(np.int8)
        # two choices of every layer are equal, a tie; in the first layer all are, in the second the last wins
        w2[1::3] = w2[0::3]
        w2[2], w2[3:5], w2[5] = w2[0], -128, 127
        acc = sums.astype(np.int64) @ w1.T.astype(np.int64)
        h = integer.requantize([(acc, 0, m1)], b1, r, 0, 255)
        logits = integer.matmul(h, w2).reshape(images, layers, 3)
        expected = logits.argmax(-1)

        def explain(i, got, acc=acc, m1=m1, b1=b1, r=r, h=h, logits=logits):
            n, layer = divmod(i, layers)
            rows = [
                ("first sum of the first layer", int(acc[n, 0]), 32),
                ("its code after requantize", int(h[n, 0]), 8),
            ]
            rows += [(f"logit of choice {k}", int(value), 24) for k, value in enumerate(logits[n, layer])]
            last = 2 - int(logits[n, layer, ::-1].argmax())
            rows.append(("the largest, the first of equal ones", int(logits[n, layer].argmax()), 2))
            return steps(rows, got, {"if ties go to the wider choice": last})

        arguments = sums, w1, m1, b1, r, w2, layers
        call = f"choose(sums, w1, M, B, {r}, w2, {layers})"
        cases.append(
            Case(call, arguments, expected, 2, lambda i: f"image {i // layers}, layer {i % layers}", explain)
        )
    return judge(choose, cases, f"{2 * images * layers} choices, ties among them")


def _problem(rng, layers, room):
    """Losses that fall with the width, costs, and a budget between the least and the most."""
    loss = -np.sort(-rng.choice(10**6, (layers, 3), replace=False), axis=1)
    cost = rng.integers(1, 9, (layers, 1)) * np.array([4, 16, 64])
    least, most = cost.min(1).sum(), cost.max(1).sum()
    return loss, cost, int(least + room * (most - least))


def _total(loss, picks):
    return int(loss[np.arange(len(loss)), picks].sum())


def _allocation(function, cases, right):
    """Compare summed losses: two allocations may be equally good. A pick over the budget is refused."""

    def scored(loss, cost, budget):
        found = function(loss.copy(), cost.copy(), budget)
        if found is None or found is Ellipsis:
            return found
        picks = np.asarray(found)
        if (
            picks.shape != loss.shape[:-1]
            or picks.dtype.kind not in "iu"
            or picks.min() < 0
            or picks.max() > 2
        ):
            raise TypeError(
                f"expected choices 0..2 of shape {loss.shape[:-1]}, got {picks.dtype} {picks.shape}"
            )
        chosen = picks.ravel()
        spent = _total(np.broadcast_to(cost, loss.shape).reshape(-1, 3), chosen)
        if spent > budget:
            raise ValueError(f"it spends {spent} ({spent:b}), the budget is {budget} ({budget:b})")
        return _total(loss.reshape(-1, 3), chosen)

    return judge(scored, cases, right)


def a5_3(best_static, rng):
    cases = []
    for layers, room in ((3, 0.4), (6, 0.2), (8, 0.5), (12, 0.35)):
        loss, cost, budget = _problem(rng, layers, room)
        picks = allocate.allocate(cost, loss, budget)
        # small networks are often solved by luck: the larger ones are such that greed is not enough
        while layers > 3 and _greedy(loss, cost, budget) == _total(loss, picks):
            loss, cost, budget = _problem(rng, layers, room)
            picks = allocate.allocate(cost, loss, budget)

        def explain(i, got, loss=loss, cost=cost, budget=budget, picks=picks):
            rows = [("budget", budget, 16), ("spent by the best choice", _total(cost, picks), 16)]
            rows += [(f"layer {k}: choice", int(pick), 2) for k, pick in enumerate(picks)]
            return steps(rows, got, {"if layers are widened greedily": _greedy(loss, cost, budget)})

        call = f"loss of best_static({layers} layers, budget {budget})"
        cases.append(Case(call, (loss, cost, budget), _total(loss, picks), 24, None, explain))
    return _allocation(best_static, cases, f"{len(cases)} networks of up to 12 layers")


def _greedy(loss, cost, budget):
    """The loss of widening, again and again, the layer that gains most for its cost."""
    picks = np.zeros(len(loss), int)
    while True:
        best = None
        for layer, k in enumerate(picks):
            for wider in range(k + 1, 3):
                more = cost[layer, wider] - cost[layer, k]
                gain = (loss[layer, k] - loss[layer, wider]) / more
                if _total(cost, picks) + more <= budget and (best is None or gain > best[0]):
                    best = gain, layer, wider
        if best is None:
            return _total(loss, picks)
        picks[best[1]] = best[2]


def a5_4(best_per_image, rng):
    cases = []
    for images, layers, room in ((2, 3, 0.3), (6, 4, 0.3), (9, 5, 0.4)):
        _, cost, _ = _problem(rng, layers, room)
        least, most = (images * total(1).sum() for total in (cost.min, cost.max))
        budget = int(least + room * (most - least))
        every = np.broadcast_to(cost, (images, layers, 3)).reshape(-1, 3)
        expected = static = None
        while expected == static:  # images for which the same widths are not enough
            loss = -np.sort(-rng.choice(10**6, (images, layers, 3), replace=False), axis=2)
            picks = allocate.allocate(every, loss.reshape(-1, 3), budget)
            expected = _total(loss.reshape(-1, 3), picks)
            static = _total(loss.sum(0), allocate.allocate(images * cost, loss.sum(0), budget))

        def explain(i, got, budget=budget, picks=picks, every=every, static=static, loss=loss):
            rows = [
                ("budget of all images", budget, 20),
                ("spent by the best choice", _total(every, picks), 20),
            ]
            rows.append(("loss of the best static choice", static, 28))
            slips = {"if all images get the same widths": static}
            return steps(
                [*rows, ("loss of the best choice", _total(loss.reshape(-1, 3), picks), 28)], got, slips
            )

        call = f"loss of best_per_image({images} images, {layers} layers, budget {budget})"
        cases.append(Case(call, (loss, cost, budget), expected, 28, None, explain))
    return _allocation(best_per_image, cases, f"{len(cases)} batches")


def a5_5(fit, rng):
    cases = []
    for images, channels in ((12, 1), (60, 3), (200, 5)):
        sums = rng.integers(0, 40, (images, channels)) * 7
        hard = sums[:, -1] + rng.integers(-60, 60, images) > 140
        right = np.stack([~hard | (rng.random(images) < 0.2), rng.random(images) < 0.95], 1)
        cost = np.array([int(rng.integers(3, 9)), int(rng.integers(20, 40))])
        budget = int(images * (cost[0] + 0.5 * (cost[1] - cost[0])))
        expected = np.array(_thresholds(sums, right, cost, budget))

        def explain(i, got, sums=sums, right=right, cost=cost, budget=budget, expected=expected):
            wide = sums[:, expected[0]] >= expected[1]
            spent = int(np.where(wide, cost[1], cost[0]).sum())
            rows = [
                ("channel", int(expected[0]), 4),
                ("threshold", int(expected[1]), 10),
                ("images at the wide width", int(wide.sum()), 8),
            ]
            rows += [("spent", spent, 14), ("budget", budget, 14)]
            rows.append(("right", int(np.where(wide, right[:, 1], right[:, 0]).sum()), 8))
            return steps(rows, got, {})

        call = f"fit({images} images, {channels} channels, budget {budget})"
        arguments = sums, right, cost, budget
        cases.append(
            Case(call, arguments, expected, 10, lambda i: ("the channel", "the threshold")[i], explain)
        )
    return judge(fit, cases, f"{len(cases)} controllers")


def _thresholds(sums, right, cost, budget):
    """The best (channel, threshold): most right, least spent, first channel, least threshold."""
    found = []
    for channel in range(sums.shape[1]):
        for threshold in [*np.unique(sums[:, channel]).tolist(), int(sums[:, channel].max()) + 1]:
            wide = sums[:, channel] >= threshold
            spent = int(np.where(wide, cost[1], cost[0]).sum())
            if spent <= budget:
                correct = int(np.where(wide, right[:, 1], right[:, 0]).sum())
                found.append((-correct, spent, channel, threshold))
    return min(found)[2:]


TASKS = {"a5_1": a5_1, "a5_2": a5_2, "a5_3": a5_3, "a5_4": a5_4, "a5_5": a5_5}
check, grade = checkers(TASKS)
