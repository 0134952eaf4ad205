"""Checkers for the exercises of chapter 11, where it pays."""

import numpy as np

from dqt_book.exercises.judging import judge
from dqt_core.evaluation.cascade import margins


def affordable_width(function):
    """function(prices, charge, batches): the widest width that the charge affords for all batches left."""
    prices = {2: 40, 3: 90, 4: 160, 8: 640}
    cases = []
    for charge in (0, 39, 400, 799, 800, 1599, 1600, 6400, 9000):
        for batches in (1, 10):
            within = [width for width in prices if prices[width] * batches <= charge]
            expected = np.array(max(within) if within else 2)
            cases.append(
                (f"affordable_width(prices, {charge}, {batches})", (prices, charge, batches), expected, 4)
            )
    shuffled = {3: 90, 4: 160, 2: 40}
    cases.append(("affordable_width of unsorted prices", (shuffled, 900, 10), np.array(3), 4))
    return judge(function, cases, f"{len(cases)} charges")


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
