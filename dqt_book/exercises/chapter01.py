"""Checkers for the exercises of chapter 1, why bits matter."""

import numpy as np

from dqt_book.exercises.judging import judge
from dqt_core import nested


def bytes_at(function):
    """function(count, width): whole bytes that hold `count` codes of `width` bits, packed without gaps."""
    cases = [
        (f"bytes_at({count}, {width})", (count, width), -(-count * width // 8), 32)
        for count in (1, 3, 8, 1000, 11_164_352)
        for width in range(1, 9)
    ]
    return judge(function, cases, f"{len(cases)} sizes")


def layer_bitops(function):
    """function(size, kernel, inputs, outputs, b_w, b_a): BitOPs of a convolution with size x size outputs."""
    layers = [(1, 1, 512, 10), (32, 3, 3, 64), (8, 1, 64, 256), (7, 3, 512, 512)]
    widths = [(8, 8), (4, 4), (2, 8), (1, 1)]
    cases = []
    for size, kernel, inputs, outputs in layers:
        for b_w, b_a in widths:
            macs = size**2 * kernel**2 * inputs * outputs
            arguments = (size, kernel, inputs, outputs, b_w, b_a)
            cases.append((f"layer_bitops{arguments}", arguments, macs * b_w * b_a, 48))
    return judge(function, cases, f"{len(cases)} layers and widths")


def multiply_bits(function):
    """function(x, y, width): product of two unsigned `width`-bit codes, one bit at a time."""
    cases = [
        (f"multiply_bits({x:#0{width + 2}b}, {y:#0{width + 2}b}, {width})", (x, y, width), x * y, 2 * width)
        for width in (1, 2, 4, 6)
        for x in range(1 << width)
        for y in range(1 << width)
    ]
    return judge(function, cases, f"{len(cases):,} products")


def quantize_at(function):
    """function(x, width): codes of a signed width whose own step sends the largest magnitude to hi_b."""
    x = np.random.default_rng(3).normal(size=200)
    cases = []
    for width in range(2, 9):
        step = np.abs(x).max() / nested.code_range(width, signed=True)[1]
        expected, _ = nested.quantize(x, step=step)
        cases.append((f"quantize_at(x, {width})", (x, width), expected, width))
    return judge(
        function, cases, f"{len(x)} numbers at {len(cases)} widths", lambda i: f"x[{i}] = {x[i]:.4f}"
    )


def lowest_sufficient(function):
    """function(classes): for each column, an image, the first row whose class is the last row's."""
    rng = np.random.default_rng(4)
    classes = np.where(rng.random((5, 60)) < 0.5, rng.integers(0, 10, (5, 60)), rng.integers(0, 10, 60))
    expected = np.array([min(np.flatnonzero(column == column[-1])) for column in classes.T])
    cases = [("lowest_sufficient(classes)", (classes,), expected, 3)]
    return judge(
        function, cases, f"{len(expected)} images", lambda i: f"image {i}, classes {classes[:, i].tolist()}"
    )
