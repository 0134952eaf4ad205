"""Checkers for the exercises of chapter 10, the controller."""

import numpy as np

from dqt_book.exercises.judging import judge


def channel_sums(function):
    """function(codes): sums of codes (N, H, W, C) over height and width, (N, C)."""
    rng = np.random.default_rng(13)
    cases = []
    for dtype, size in ((np.uint8, 32), (np.int8, 8), (np.uint8, 1)):
        codes = rng.integers(0, 256, (3, size, size, 5)).astype(np.uint8).view(dtype)
        name = f"channel_sums({np.dtype(dtype)} codes, {size} x {size})"
        cases.append((name, (codes,), codes.sum((1, 2), dtype=np.int64), 20))
    return judge(function, cases, "3 kinds of codes", lambda i: f"image {i // 5}, channel {i % 5}")


def choose(function):
    """function(logits, layers): index of the chosen width, (N, layers), ties to the narrower."""
    rng = np.random.default_rng(14)
    cases = []
    for layers, choices in ((4, 5), (3, 3), (19, 5)):
        tied = rng.integers(-3, 4, (20, layers, choices))
        for name, logits in (("small", tied), ("large", 2**50 + tied)):
            call = f"choose({name} logits, {layers})"
            arguments = logits.reshape(20, -1), layers
            cases.append((call, arguments, (logits == logits.max(-1, keepdims=True)).argmax(-1), 3))
    return judge(function, cases, f"20 images, {len(cases)} networks", lambda i: f"entry {i}")


def image_bitops(function):
    """function(macs, widths, fixed_macs): BitOPs of each image, fixed layers at 8 bits."""
    rng = np.random.default_rng(15)
    cases = []
    for layers in (2, 19):
        macs = rng.integers(10**6, 10**9, layers)
        widths = rng.choice([2, 3, 4, 6, 8], (6, layers))
        expected = (macs * widths**2).sum(1) + 64 * 12_345
        call = f"image_bitops(macs of {layers} layers, widths, 12345)"
        cases.append((call, (macs, widths, 12_345), expected, 48))
    return judge(function, cases, "6 images of 2 networks", lambda i: f"image {i}")


def not_dominated(function):
    """function(cost, correct): ascending indices of the settings that no other setting beats."""
    rng = np.random.default_rng(16)
    cases = [("not_dominated(two equal settings)", (np.array([3, 3]), np.array([5, 5])), np.arange(2), 5)]
    for count in (6, 30):
        cost, correct = rng.integers(1, 12, count), rng.integers(300, 309, count)
        no_worse = (cost[:, None] <= cost) & (correct[:, None] >= correct)
        better = (cost[:, None] < cost) | (correct[:, None] > correct)
        expected = np.flatnonzero(~(no_worse & better).any(0))
        cases.append((f"not_dominated({count} settings)", (cost, correct), expected, 5))
    return judge(function, cases, f"{len(cases)} sets of settings", lambda i: f"entry {i}")


def best_static(function):
    """function(loss, cost, budget): the choice of every layer with the least loss within the budget."""
    rng = np.random.default_rng(17)
    cases = []
    for layers, budget in ((3, 90), (4, 90), (4, 60), (5, 150)):
        loss = -np.sort(-rng.choice(1000, (layers, 3), replace=False), axis=1)
        cost = rng.integers(1, 4, (layers, 1)) * np.array([4, 16, 64]) // 4
        picks = np.stack(np.meshgrid(*[range(3)] * layers, indexing="ij"), -1).reshape(-1, layers)
        totals = [table[np.arange(layers), picks].sum(1) for table in (loss, cost)]
        expected = picks[np.where(totals[1] <= budget, totals[0], 10**6).argmin()]
        cases.append((f"best_static({layers} layers, budget {budget})", (loss, cost, budget), expected, 2))
    return judge(function, cases, f"{len(cases)} networks", lambda i: f"layer {i}")
