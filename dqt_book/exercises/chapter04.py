"""Checkers for the exercises of chapter 4, one rounding."""

import math
from fractions import Fraction

import numpy as np

from dqt_book.exercises.judging import judge, judge_each
from dqt_core import integer


def ties_down(function):
    """function(totals, r): totals / 2**r to the nearest integer, ties down."""
    cases = []
    for r in (1, 2, 5, 8):
        totals = np.arange(-(5 << r) // 2, (5 << r) // 2 + 1)
        # ties down are ties up, seen from the other side
        cases.append((f"ties_down(totals, {r})", (totals, r), -((-totals + (1 << (r - 1))) >> r), 16))
    return judge_each(function, cases, f"{sum(len(c[2]) for c in cases)} totals and shifts", "total")


def rational_multiplier(function):
    """function(numerator, denominator, r): floor(numerator / denominator * 2**r + 1/2)."""
    cases = []
    ratios = [
        (3, 10),
        (-3, 10),
        (1, 3),
        (1, 8),
        (-1, 8),
        (5, 8),
        (10**18 + 1, 10**19),
        (3 * 2**60 - 1, 2**62),
    ]
    for numerator, denominator in ratios:
        for r in (1, 2, 20, 31):
            expected = math.floor(Fraction(numerator, denominator) * 2**r + Fraction(1, 2))
            call = f"rational_multiplier({numerator}, {denominator}, {r})"
            cases.append((call, (numerator, denominator, r), expected, 32))
    return judge(function, cases, f"{len(cases)} ratios and shifts")


def requantize_array(function):
    """function(a, d, M, B, r, lo, hi): one term, for int32 arrays of shape (images, channels)."""
    rng = np.random.default_rng(12)
    d = np.array([[0], [4], [8], [12]])
    a = (rng.integers(-(2**21), 2**21, (4, 50)) >> d).astype(np.int32)
    multiplier = rng.integers(-(2**30), 2**31 - 1, 50).astype(np.int32)
    cases = []
    for r, lo, hi in ((44, -128, 127), (44, 0, 255), (43, 0, 6)):
        # half of the offsets make ties of accumulators that are 0
        offset = np.where(
            np.arange(50) % 2, rng.integers(-(2**r), 2**r, 50), (2 * rng.integers(-3, 3, 50) + 1) << (r - 1)
        )
        given = np.where(np.arange(50) % 2, a, a * (rng.random((4, 50)) < 0.5)).astype(np.int32)
        expected = integer.requantize([(given, d, multiplier)], offset, r, lo, hi)
        call = f"requantize_array(a, d, M, B, {r}, {lo}, {hi})"
        cases.append((call, (given, d, multiplier, offset, r, lo, hi), expected, 8))
    return judge(function, cases, f"{3 * a.size} codes", lambda i: f"image {i // 50}, channel {i % 50}")


def threshold(function):
    """function(y, M, B, r): smallest accumulator whose code is at least y; M > 0."""
    cases = []
    for multiplier, offset, r in (
        (1, 0, 1),
        (5, 0, 4),
        (5, -37, 4),
        (1_583_594_044, 0, 40),
        (12_345, 10**9, 31),
    ):
        for y in (-128, -1, 0, 1, 2, 255):
            expected = math.ceil((Fraction(2 * y - 1, 2) * 2**r - offset) / multiplier)
            call = f"threshold({y}, {multiplier}, {offset}, {r})"
            cases.append((call, (y, multiplier, offset, r), expected, 32))
    return judge(function, cases, f"{len(cases)} thresholds")


def first_twice(function):
    """function(M, r, s): smallest accumulator from 0 on whose code changes if s bits go first."""
    cases = []
    for multiplier, r, s in (
        (19, 6, 3),
        (1, 4, 2),
        (1_583_594_044, 40, 31),
        (1_319_413_953, 40, 32),
        (777, 20, 10),
    ):
        accumulator = 0
        while not _rounded_twice_differs(accumulator * multiplier, r, s):
            accumulator += 1
        cases.append((f"first_twice({multiplier}, {r}, {s})", (multiplier, r, s), accumulator, 20))
    return judge(function, cases, f"{len(cases)} multipliers")


def _rounded_twice_differs(total, r, s):
    once = (total + (1 << (r - 1))) >> r
    first = (total + (1 << (s - 1))) >> s
    return (first + (1 << (r - s - 1))) >> (r - s) != once
