"""Checkers for the exercises of chapter 12, CIFAR-10."""

import math
from fractions import Fraction

import numpy as np

from dqt_book.exercises.judging import judge
from dqt_core import results, statistics


def count_hits(function):
    """function(text, n): how many of the first n bits of a base64 text are 1."""
    rng = np.random.default_rng(10)
    cases = []
    for n in (1, 7, 8, 100, 1001):
        hits = rng.random(n + 5) < 0.8
        cases.append((f"count_hits(text, {n})", (results.packed(hits), n), int(hits[:n].sum()), 16))
    return judge(function, cases, f"{len(cases)} texts")


def images_needed(function):
    """function(p, points): fewest images so that two standard deviations are at most that many points."""
    cases = []
    for p in (0.5, 0.77, 0.93, 0.995):
        for points in (0.13, 0.7, 3.1):
            share = Fraction(points) / 100
            fewest = math.ceil(4 * Fraction(p) * (1 - Fraction(p)) / share**2)
            cases.append((f"images_needed({p}, {points})", (p, points), fewest, 24))
    return judge(function, cases, f"{len(cases)} accuracies and precisions")


def dividing_images(function):
    """function(first, second): images that the first alone, and the second alone, gets right."""
    rng = np.random.default_rng(11)
    cases = []
    for n, a, b in ((1, 0.9, 0.1), (50, 0.5, 0.5), (1000, 0.9, 0.88), (1000, 0.6, 0.95)):
        first, second = rng.random(n) < a, rng.random(n) < b
        test = statistics.paired(first, second)
        expected = np.array([test["only_first"], test["only_second"]])
        cases.append((f"dividing_images({n} images)", (first, second), expected, 12))
    return judge(function, cases, f"{len(cases)} pairs of networks")


def tail_count(function):
    """function(a, n): outcomes of n fair coins at least as uneven as a heads, on either side."""
    cases = []
    for a, n in ((0, 1), (1, 2), (3, 7), (5, 10), (4, 10), (9, 10), (20, 50), (31, 60)):
        uneven = (k for k in range(n + 1) if abs(2 * k - n) >= abs(2 * a - n))
        cases.append((f"tail_count({a}, {n})", (a, n), sum(math.comb(n, k) for k in uneven), 62))
    return judge(function, cases, f"{len(cases)} counts")
