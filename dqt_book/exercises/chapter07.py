"""Checkers for the exercises of chapter 7, switching by a shift."""

import numpy as np

from dqt_book.exercises.judging import SIGNED, bits, judge
from dqt_core import integer, nested


def network_bitops(function):
    """function(macs, width): BitOPs with the first and last layer at 8 bits."""
    cases = []
    for macs in ([1000, 20_000, 30_000, 50], [7, 11, 13], [118_013_952, 12_845_056, 2_048_000]):
        for width in (8, 4, 3, 2):
            expected = 64 * macs[0] + width * width * sum(macs[1:-1]) + 64 * macs[-1]
            cases.append((f"network_bitops({macs}, {width})", (macs, width), expected, 48))
    return judge(function, cases, f"{len(cases)} networks and widths")


def switched_elements(function):
    """function(layers, widths): weights and inputs that are read below 8 bits."""
    layers = [(36_864, 65_536), (576, 1000), (10_240, 1)]
    settings = [
        [(4, 4), (4, 4), (4, 4)],
        [(8, 8), (8, 8), (8, 8)],
        [(8, 4), (2, 8), (4, 2)],
        [(7, 8), (8, 1), (8, 8)],
    ]
    cases = []
    for widths in settings:
        expected = sum(
            count
            for layer, bits in zip(layers, widths, strict=True)
            for count, b in zip(layer, bits, strict=True)
            if b != 8
        )
        cases.append((f"switched_elements(layers, {widths})", (layers, widths), expected, 24))
    return judge(function, cases, f"{len(cases)} choices of widths")


def plane_bytes(function):
    """function(count, width, rounding): bytes of the planes that a view reads."""
    cases = []
    for count in (1, 8, 9, 1000, 36_864):
        packed = nested.to_planes(np.zeros(count, np.int8))
        for width in range(1, 9):
            for rounding, planes in (("floor", width), ("half_up", min(width + 1, 8))):
                call = f"plane_bytes({count}, {width}, {rounding!r})"
                cases.append((call, (count, width, rounding), packed[:planes].nbytes, 24))
    return judge(function, cases, f"{len(cases)} views")


def rescale(function):
    """function(codes, M, r, width): int8 codes times M / 2**r, rounded to signed codes of a width."""
    codes = np.sort(SIGNED)
    cases = []
    for width in range(2, 9):
        lo, hi = nested.code_range(width, signed=True)
        for ratio in (2.0 ** (width - 8), 1.1 * 2.0 ** (width - 8), 0.37):
            multiplier, r = integer.fixed_point(ratio, limit=128)
            expected = integer.requantize([(codes, 0, multiplier)], 0, r, lo, hi)
            arguments = (codes, int(multiplier), r, width)
            cases.append((f"rescale(codes, {int(multiplier)}, {r}, {width})", arguments, expected, width))
    return judge(
        function,
        cases,
        f"256 codes at {len(cases)} ratios",
        lambda i: f"master {codes[i]} ({bits(codes[i], 8)})",
    )


def bit_serial(function):
    """function(x_planes, w_planes): the sum of products of floor views, from their bit planes."""
    rng = np.random.default_rng(9)
    x, w = rng.integers(0, 256, 504).astype(np.uint8), rng.integers(-128, 128, 504).astype(np.int8)
    cases = []
    for b_a, b_w in ((1, 1), (8, 8), (4, 4), (2, 8), (8, 2), (3, 1)):
        views = (nested.switch(codes, b, rounding="floor").astype(int) for codes, b in ((x, b_a), (w, b_w)))
        expected = int(np.multiply(*views).sum())
        planes = nested.to_planes(x)[:b_a], nested.to_planes(w)[:b_w]
        cases.append((f"bit_serial({b_a} planes, {b_w} planes)", planes, expected, 32))
    return judge(function, cases, f"504 products at {len(cases)} pairs of widths")
