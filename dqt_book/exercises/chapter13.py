"""Checkers for the exercises of chapter 13, ImageNet."""

import numpy as np

from dqt_book.exercises.judging import judge


def one_sided_kernel(function):
    """function(weight): 3x3 weights as 4x4 ones that, with padding 1 on all sides, pad below and right."""
    rng = np.random.default_rng(34)
    cases = []
    for outputs, inputs in ((1, 1), (4, 3)):
        weight = rng.integers(-128, 128, (outputs, 3, 3, inputs)).astype(np.int8)
        expected = np.zeros((outputs, 4, 4, inputs), np.int8)
        expected[:, 1:, 1:] = weight
        cases.append((f"one_sided_kernel({outputs} x 3 x 3 x {inputs})", (weight,), expected, 8))
    return judge(function, cases, f"{len(cases)} layers", lambda i: f"element {i}")
