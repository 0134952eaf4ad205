"""Checkers for the exercises of chapter 11, where it pays."""

import numpy as np

from dqt_book.exercises.judging import judge
from dqt_core.evaluation.cascade import margins


def usable_width(function):
    """function(received, weights): the widest width that runs with the planes that are there, or 0."""
    cases = []
    for weights in (1, 8, 9, 1000):
        plane = -(-weights // 8)
        for received in sorted({k * plane + more for k in range(10) for more in (0, plane - 1)}):
            able = [b for b in range(1, 9) if min(b + 1, 8) * plane <= received]
            call = f"usable_width({received}, {weights})"
            cases.append((call, (received, weights), np.array(max(able, default=0)), 4))
    return judge(function, cases, f"{len(cases)} amounts")


def cost_of_looks(function):
    """function(logits, threshold, narrow, wide): the price of each image, second looks counted."""
    rng = np.random.default_rng(41)
    cases = []
    for n in (1, 200):
        logits = rng.integers(-(2**40), 2**40, (n, 10))
        logits[0, 3] = logits[0, 7] = 2**41  # two largest
        for threshold in (0, 1, int(np.median(margins(logits))), 2**39):
            expected = 40 + 160 * (margins(logits) < threshold)
            cases.append(
                (f"cost_of_looks of {n} images, {threshold}", (logits, threshold, 40, 160), expected, 9)
            )
    return judge(function, cases, f"{len(cases)} sets of logits", lambda i: f"image {i}")


def most_looks(function):
    """function(n, narrow, middle, wide): second looks that cost no more than one look at `middle`."""
    cases = []
    for n in (16, 1000, 10_000):
        for narrow, middle, wide in ((4, 9, 16), (40, 91, 160), (4, 4, 16), (9, 4, 16), (1, 64, 4)):
            looks = [k for k in range(n + 1) if n * narrow + k * wide <= n * middle]
            call = f"most_looks({n}, {narrow}, {middle}, {wide})"
            cases.append((call, (n, narrow, middle, wide), np.array(max(looks, default=0)), 14))
    return judge(function, cases, f"{len(cases)} budgets")
