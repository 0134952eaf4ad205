"""Checkers for the exercises of chapter 13, ImageNet."""

import numpy as np

from dqt_book.exercises.judging import judge
from dqt_core import statistics


def tell_apart(function):
    """function(first, second): 1, -1 or 0 as the paired interval lies above 0, below it, or holds it."""
    rng = np.random.default_rng(34)
    cases = []
    for images, both, only_first, only_second in (
        (1000, 780, 20, 5),
        (1000, 780, 5, 20),
        (1000, 780, 20, 12),
        (1000, 780, 12, 20),
        (1000, 700, 0, 0),
        (50000, 37000, 1500, 1380),
        (50000, 37000, 1500, 1440),
    ):
        order = rng.permutation(images)
        first, second = np.zeros((2, images), bool)
        first[order[: both + only_first]] = True
        second[order[:both]] = True
        second[order[both + only_first :][:only_second]] = True
        test = statistics.paired(first, second)
        expected = int(test["low"] > 0) - int(test["high"] < 0)
        call = (
            f"tell_apart({images} images, {only_first} right by the first alone, {only_second} by the second)"
        )
        cases.append((call, (first, second), expected, 2))
    return judge(function, cases, f"{len(cases)} pairs of networks")
