"""Checkers for the exercises of chapter 5, a residual block."""

import numpy as np

from dqt_book.exercises.judging import judge
from dqt_core import data, integer, nested


def input_table(function):
    """function(table, step): signed 8-bit codes of a table of real numbers, ties up."""
    ties = np.stack([(np.arange(256) - 128) / 16] * 3)
    usual = data.normalization_table((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)).astype(np.float64)
    cases = []
    for table, step in ((usual, 0.017), (ties, 0.125), (8 * ties, 0.25)):
        expected = nested.quantize(table, step=step)[0]
        cases.append((f"input_table(table, {step})", (table, step), expected, 8))
    return judge(function, cases, f"{len(cases)} tables", lambda i: f"byte {i % 256} of colour {i // 256}")


def fold_layer(function):
    """function(gain, bias, step_x, step_w, step_y, r): M and B of every channel, as two rows."""
    rng = np.random.default_rng(6)
    cases = []
    for r in (16, 24):
        gain, bias = rng.normal(1, 0.5, 12), rng.normal(0, 1, 12)
        step_w, step_x, step_y = np.exp(rng.normal(-4, 0.5, 12)), 0.021, 0.037
        multiplier, _ = integer.fixed_point(gain * step_x * step_w / step_y, r)
        offset = np.floor(bias / step_y * 2**r + 0.5).astype(np.int64)
        arguments = (gain, bias, step_x, step_w, step_y, r)
        cases.append((f"fold_layer(..., r={r})", arguments, np.stack([multiplier, offset]), 32))
    return judge(function, cases, "12 channels at 2 shifts", lambda i: f"{'MB'[i // 12]} of channel {i % 12}")


def mean_pool(function):
    """function(codes, r): rounded means over height and width, by one integer multiplier."""
    rng = np.random.default_rng(7)
    cases = []
    for height, width, r in ((4, 4, 20), (1, 2, 20), (7, 7, 24), (3, 5, 16), (1, 1, 16)):
        codes = rng.integers(0, 256, (3, height, width, 40)).astype(np.uint8)
        codes[0] = 255
        multiplier, _ = integer.fixed_point(1 / (height * width), r)
        expected = integer.requantize([(integer.sum_pool(codes), 0, multiplier)], 0, r, 0, 255)
        name = f"mean_pool({height} x {width} codes, r={r})"
        cases.append((name, (codes, r), expected.reshape(3, 40), 8))
    return judge(function, cases, f"{len(cases)} sizes", lambda i: f"image {i // 40}, channel {i % 40}")


def residual(function):
    """function(acc, d, M, q, M_q, B, r): the end of a block, rounded once."""
    rng = np.random.default_rng(8)
    cases = []
    for d in (0, 4, 8, 12):
        acc = rng.integers(-(2**21) >> d, 2**21 >> d, (2, 3, 3, 4)).astype(np.int32)
        q = rng.integers(0, 256, acc.shape).astype(np.uint8)
        multiplier = rng.integers(-(2**20), 2**20, 4).astype(np.int32)
        offset = rng.integers(-(2**39), 2**39, 4)
        arguments = (acc, d, multiplier, q, 2**31 - 2**20, offset, 32)
        terms = [(acc, d, multiplier), (q, 0, arguments[4])]
        expected = integer.requantize(terms, offset, 32, 0, 255)
        cases.append((f"residual(acc, {d}, ...)", arguments, expected, 8))
    return judge(function, cases, "288 sums at 4 shifts", lambda i: f"pixel {i // 4}, channel {i % 4}")


def largest_r(function):
    """function(terms, offset): the largest shift that keeps every multiplier and every sum in range."""
    accumulator = np.array([3e-4, 1.7e-3, 9e-4]), 9 * 64 * 128 * 255
    settings = {
        "one term": ([accumulator], np.array([3.0, -4.0, 0.5])),
        "with a shortcut": ([accumulator, (np.full(3, 0.8), 255)], np.array([3.0, -4.0, 0.5])),
        "a large multiplier": ([(np.array([700.0, -900.0]), 255)], np.zeros(2)),
        "a large offset": ([(np.array([1e-6]), 255)], np.array([-3e5])),
        "tiny ratios": ([(np.array([1e-12, 1e-13]), 2**20)], np.zeros(2)),
        "channels apart": ([(np.array([1e-9, 1.0]), 2**31)], np.array([3e9, 0.0])),
    }
    cases = [
        (f"largest_r({name})", arguments, integer.largest_shift(*arguments), 6)
        for name, arguments in settings.items()
    ]
    return judge(function, cases, f"{len(cases)} layers")
