"""Checkers for the exercises of chapter 14, simulated or real."""

from fractions import Fraction

import numpy as np

from dqt_book.exercises.judging import judge, judge_each
from dqt_core import integer


def tool_bias(function):
    """function(B, M, drop): offsets rounded to whole accumulator units, M << drop, ties to even."""
    rng = np.random.default_rng(20)
    cases = []
    for drop in (0, 8, 12):
        multipliers = 2 * rng.integers(2**28, 2**30, 40)  # even: half a unit is an integer
        units = [int(m) << drop for m in multipliers]
        whole = rng.integers(-(2**14), 2**14, 40)
        beyond = [0, 1, -1, *rng.integers(-(2**27), 2**27, 17)] + [0] * 20
        half = [0] * 20 + [1] * 20  # ties, even and odd
        offsets = [
            int(w) * u + h * u // 2 + int(b) for w, u, h, b in zip(whole, units, half, beyond, strict=True)
        ]
        expected = [round(Fraction(b, u)) * u for b, u in zip(offsets, units, strict=True)]
        arguments = np.array(offsets), multipliers, drop
        cases.append((f"tool_bias(B, M, {drop})", arguments, np.array(expected), 64))
    return judge_each(function, cases, f"40 offsets, ties among them, at {len(cases)} widths", "B =")


def float32_multiplier(function):
    """function(M): positive integers below 2**31 rounded to 24 significant bits, ties to even."""
    rng = np.random.default_rng(21)
    edges = [
        1,
        2**24 - 1,
        2**24,
        2**24 + 1,
        2**24 + 3,
        2**25 + 2,
        2**25 + 6,
        2**31 - 1,
        2**31 - 65,
        2**31 - 64,
    ]
    sizes = rng.integers(1, 31, 100)
    given = np.concatenate([edges, rng.integers(2**sizes, 2 ** (sizes + 1))])
    expected = given.astype(np.float32).astype(np.int64)
    return judge_each(
        function, [("float32_multiplier(M)", (given,), expected, 32)], f"{len(given)} multipliers", "M ="
    )


def unsigned_shift(function):
    """function(t, r): t >> r of int64, of magnitude below 2**62."""
    rng = np.random.default_rng(22)
    edges = [0, 1, -1, 2**61, -(2**61), 2**62 - 1, 1 - 2**62, 2**53 + 1, -(2**53) - 1]
    given = np.concatenate([np.arange(-20, 20), edges, rng.integers(-(2**62) + 1, 2**62, 60)])
    cases = [(f"unsigned_shift(t, {r})", (given, r), given >> r, 64) for r in (1, 2, 8, 31, 40, 61)]
    return judge_each(function, cases, f"{len(given)} numbers at {len(cases)} shifts", "t =")


def spread(function):
    """function(wrong, kernel, stride, padding): output pixels whose window holds a wrong pixel."""
    rng = np.random.default_rng(23)
    cases = []
    for kernel, stride, padding in ((1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (3, 1, 0), (5, 2, 2)):
        wrong = rng.random((9, 12)) < 0.04
        ones = np.ones((1, kernel, kernel, 1), np.int8)
        sums = integer.conv2d(wrong.astype(np.uint8)[None, ..., None], ones, stride, padding)
        expected = sums[0, :, :, 0] > 0
        call = f"spread(wrong, kernel={kernel}, stride={stride}, padding={padding})"
        cases.append((call, (wrong, kernel, stride, padding), expected, 1))
    return judge(
        function, cases, f"{len(cases)} convolutions", lambda i: f"element {i} of the flattened output"
    )


def first_disagreement(function):
    """function(ours, theirs): for each image the first layer that differs, or the number of layers."""
    rng = np.random.default_rng(24)
    shapes = [(40, 6, 6, 3), (40, 3, 3, 5), (40, 10)]
    cases = []
    for rate in (0.002, 0.02, 0.0):
        ours = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
        moved = [rng.random(shape) < rate for shape in shapes]
        theirs = [np.where(m, codes ^ 128, codes) for m, codes in zip(moved, ours, strict=True)]
        hit = [[bool(m[i].any()) for m in moved] + [True] for i in range(40)]
        expected = np.array([layers.index(True) for layers in hit])
        cases.append(("first_disagreement(ours, theirs)", (ours, theirs), expected, 3))
    return judge(function, cases, f"40 images in {len(cases)} pairs of runs", lambda i: f"image {i}")
