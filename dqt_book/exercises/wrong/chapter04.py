"""Wrong answers to the exercises of chapter 4: each checker must reject its own."""

from fractions import Fraction

import numpy as np

WRONG = {
    "ties_down": {
        "ties up": lambda totals, r: (totals + (1 << (r - 1))) >> r,
        "floor": lambda totals, r: totals >> r,
        "to even": lambda totals, r: np.rint(totals / 2**r).astype(int),
        "towards zero": lambda totals, r: np.sign(totals) * ((abs(totals) + (1 << (r - 1)) - 1) >> r),
        "always 2": lambda totals, r: (totals + 1) >> 2,
    },
    "rational_multiplier": {
        "by a float": lambda p, q, r: int(np.floor(p / q * 2**r + 0.5)),
        "cut": lambda p, q, r: (p << r) // q,
        "towards zero": lambda p, q, r: int(abs(2 * (p << r)) + q) // (2 * q) * (1 if p > 0 else -1),
        "half of an odd denominator": lambda p, q, r: ((p << r) + q // 2) // q + (q % 2),
        "to even": lambda p, q, r: round(Fraction(p, q) * 2**r),
    },
    "requantize_array": {
        "stays in 32 bits": lambda a, d, M, B, r, lo, hi: (
            ((a << d.astype(np.int32)) * M + B + (1 << (r - 1))) >> r
        ).clip(lo, hi),
        "no half": lambda a, d, M, B, r, lo, hi: (((a.astype(int) << d) * M + B) >> r).clip(lo, hi),
        "no clamp": lambda a, d, M, B, r, lo, hi: ((a.astype(int) << d) * M + B + (1 << (r - 1))) >> r,
        "offset after the shift": lambda a, d, M, B, r, lo, hi: (
            (((a.astype(int) << d) * M + (1 << (r - 1))) >> r) + (B >> r)
        ).clip(lo, hi),
        "shift at the end": lambda a, d, M, B, r, lo, hi: (
            (a.astype(int) * M + B + (1 << (r - 1))) >> r << d
        ).clip(lo, hi),
        "in floats": lambda a, d, M, B, r, lo, hi: (
            np.rint(((a.astype(float) * 2.0**d) * M + B) / 2.0**r).clip(lo, hi).astype(int)
        ),
    },
    "threshold": {
        "rounds down": lambda y, M, B, r: ((y << r) - (1 << (r - 1)) - B) // M,
        "forgets the half": lambda y, M, B, r: -((B - (y << r)) // M),
        "forgets the offset": lambda y, M, B, r: -(((1 << (r - 1)) - (y << r)) // M),
        "one too many": lambda y, M, B, r: 1 - ((B + (1 << (r - 1)) - (y << r)) // M),
        "by a float": lambda y, M, B, r: int(np.rint((y * 2.0**r - B) / M)),
    },
    "first_twice": {
        "the tie itself": lambda M, r, s: int(((np.arange(2**20) * M) % (1 << r) == 1 << (r - 1)).argmax()),
        "whole zone of s bits": lambda M, r, s: int(
            ((np.arange(2**20) * M) % (1 << r) >= (1 << (r - 1)) - (1 << s)).argmax()
        ),
        "from the first tie on": lambda M, r, s: (1 << (r - 1)) // M,
        "in 32 bits": lambda M, r, s: int(
            ((np.arange(2**20) * M).astype(np.int32) % 2**s >= 1 << (s - 1)).argmax()
        ),
        "never": lambda M, r, s: 0,
    },
}
