"""Checkers for the exercises of chapter 3, integer arithmetic."""

import numpy as np

from dqt_book.exercises.judging import judge, judge_each
from dqt_core import integer, nested


def wrap(function):
    """function(totals, width): what a signed register of `width` bits holds of each total."""
    totals = np.random.default_rng(6).integers(-(2**40), 2**40, 60)
    cases = []
    for width in (4, 8, 16, 32):
        edges = [
            sign * 2**power + near for power in (width - 1, width) for sign in (-1, 1) for near in (-1, 0, 1)
        ]
        given = np.concatenate([np.arange(-9, 10), edges, totals])
        half = 1 << (width - 1)
        expected = ((given & (2 * half - 1)) ^ half) - half
        cases.append((f"wrap(totals, {width})", (given, width), expected, width))
    return judge_each(function, cases, f"{len(cases[0][2])} totals in {len(cases)} registers", "total")


def longest_sum(function):
    """function(accumulator, b_w, b_a): products that surely fit a signed register of `accumulator` bits."""
    cases = []
    for accumulator in (16, 24, 32):
        for b_w in range(1, 9):
            for b_a in range(1, 9):
                products = [
                    w * a for w in nested.code_range(b_w, True) for a in nested.code_range(b_a, False)
                ]
                call = f"longest_sum({accumulator}, {b_w}, {b_a})"
                # the register's lowest value is one further from zero than its highest
                most = min((2 ** (accumulator - 1) - (p > 0)) // abs(p) for p in products if p)
                cases.append((call, (accumulator, b_w, b_a), most, accumulator))
    return judge(function, cases, f"{len(cases)} registers and widths")


def im2col_strided(function):
    """function(x, size, stride, padding): rows of codes, one for each output pixel of a convolution."""
    x = np.random.default_rng(7).integers(0, 256, (2, 6, 5, 3)).astype(np.uint8)
    cases = []
    for size, stride, padding in ((1, 1, 0), (3, 1, 1), (1, 2, 0), (3, 2, 1), (3, 2, 0), (5, 3, 2)):
        # a kernel of ones and zeros reads one entry of the row
        kernels = np.eye(size * size * 3, dtype=np.int8).reshape(-1, size, size, 3)
        expected = integer.conv2d(x, kernels, stride, padding)
        call = f"im2col_strided(x, {size}, stride={stride}, padding={padding})"
        cases.append((call, (x, size, stride, padding), expected, 8))
    return judge(function, cases, f"{len(cases)} kernels, strides and paddings", lambda i: f"entry {i}")


def unsigned_bytes_only(function):
    """function(x, w, product): x @ w.T for uint8 and int8, by a product of uint8 and uint8."""

    def product(x, w):
        if x.dtype != np.uint8 or w.dtype != np.uint8:
            raise TypeError(f"this machine multiplies uint8 by uint8, got {x.dtype} and {w.dtype}")
        return x.astype(np.int32) @ w.T.astype(np.int32)

    rng = np.random.default_rng(8)
    x = rng.integers(0, 256, (6, 300)).astype(np.uint8)
    w = rng.integers(-128, 128, (5, 300)).astype(np.int8)
    case = ("unsigned_bytes_only(x, w, product)", (x, w, product), integer.matmul(x, w), 24)
    return judge(function, [case], "30 accumulators", lambda i: f"row {i // 5}, output {i % 5}")


def first_inexact(function):
    """function(products): how many were added when float32 first differs from the exact sum; 0 if never."""
    rng = np.random.default_rng(9)
    given = {
        "largest odd": np.full(2000, 255 * 127),
        "even": np.full(1000, 255 * 64),
        "random": rng.integers(0, 32_386, 5000),
        "both signs": rng.integers(-32_640, 32_386, 3000),
        "right again": np.array([2**24, 1, 1, 2]),
        "wrong at once": np.array([2**24 + 1, 1]),
        "huge": np.array([2**31 - 1, 2**31 - 1, 5]),
        "short": np.arange(10),
    }
    cases = []
    for name, products in given.items():
        exact, counted, expected = 0, np.float32(0), 0
        for added, product in enumerate(products.tolist(), 1):
            exact, counted = exact + product, counted + np.float32(product)
            if int(counted) != exact:
                expected = added
                break
        cases.append((f'first_inexact(products), products "{name}"', (products,), expected, 16))
    return judge(function, cases, f"{len(cases)} lists of products")


def significant(function):
    """function(numbers, kept): integers of at most `kept` significant bits, ties to even."""
    rng = np.random.default_rng(10)
    numbers = np.concatenate([np.arange(600), rng.integers(0, 2**31, 200), 2 ** np.arange(31), [2**31 - 1]])
    float32 = numbers.astype(np.float32).astype(np.int64)
    upper = numbers.astype(np.float64).view(np.uint64)
    cases = [("significant(numbers, 24)", (numbers, 24), float32, 32)]
    for kept in (2, 4, 8):
        # a float64 holds each number exactly; its mantissa is rounded where `kept` bits end
        drop = 53 - kept
        up = (1 << (drop - 1)) - 1 + (upper >> drop & 1)
        rounded = ((upper + up) >> drop << drop).view(np.float64).astype(np.int64)
        cases.append(
            (f"significant(numbers, {kept})", (numbers, kept), np.where(numbers == 0, 0, rounded), 32)
        )
    return judge_each(function, cases, f"{len(numbers)} numbers at {len(cases)} precisions", "number")
