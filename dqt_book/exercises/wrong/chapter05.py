"""Wrong answers to the exercises of chapter 5: each checker must reject its own."""

import numpy as np

from dqt_core import integer


def folded(gain, bias, step_x, step_w, step_y, r, unit=None, half=0.5):
    rows = np.stack([gain * step_x * step_w / step_y, bias / (unit or step_y)])
    return np.floor(rows * 2.0**r + half).astype(np.int64)


WRONG = {
    "input_table": {
        "ties to even": lambda table, step: np.clip(np.rint(table / step), -128, 127).astype(np.int8),
        "clamped after the type": lambda table, step: np.clip(
            np.floor(table / step + 0.5).astype(np.int64).astype(np.int8), -128, 127
        ),
        "towards zero": lambda table, step: np.clip(np.trunc(table / step + 0.5), -128, 127),
        "unsigned": lambda table, step: np.clip(np.floor(table / step + 0.5), 0, 255),
        "symmetric": lambda table, step: np.clip(np.floor(table / step + 0.5), -127, 127),
    },
    "fold_layer": {
        "bias in real units": lambda *layer: folded(*layer, unit=1.0),
        "forgets the input's step": lambda gain, bias, x, w, y, r: folded(gain, bias, 1.0, w, y, r),
        "multiplies by the output's step": lambda gain, bias, x, w, y, r: folded(
            gain, bias, x, w, 1 / y, r, unit=y
        ),
        "cut, not rounded": lambda *layer: folded(*layer, half=0.0),
        "bias first": lambda *layer: folded(*layer)[::-1],
    },
    "mean_pool": {
        "divides": lambda codes, r: codes.astype(int).sum((1, 2)) // (codes.shape[1] * codes.shape[2]),
        "half to even": lambda codes, r: np.rint(codes.mean((1, 2))),
        "sums in a byte": lambda codes, r: codes.sum((1, 2), dtype=np.uint8),
        "multiplier cut": lambda codes, r: (
            codes.astype(int).sum((1, 2)) * (2**r // (codes.shape[1] * codes.shape[2])) >> r
        ),
        "no half": lambda codes, r: (
            codes.astype(int).sum((1, 2)) * round(2**r / (codes.shape[1] * codes.shape[2])) >> r
        ),
    },
    "residual": {
        "two roundings": lambda acc, d, M, q, M_q, B, r: np.clip(
            ((acc.astype(int) << d) * M + B + 2 ** (r - 1) >> r) + (q.astype(int) * M_q + 2 ** (r - 1) >> r),
            0,
            255,
        ),
        "no clamp": lambda acc, d, M, q, M_q, B, r: (
            ((acc.astype(int) << d) * M + q.astype(int) * M_q + B + 2 ** (r - 1)) >> r
        ),
        "no half": lambda acc, d, M, q, M_q, B, r: np.clip(
            ((acc.astype(int) << d) * M + q.astype(int) * M_q + B) >> r, 0, 255
        ),
        "no shift back": lambda acc, d, M, q, M_q, B, r: np.clip(
            (acc.astype(int) * M + q.astype(int) * M_q + B + 2 ** (r - 1)) >> r, 0, 255
        ),
        "shifts the shortcut too": lambda acc, d, M, q, M_q, B, r: np.clip(
            (((acc.astype(int) * M + q.astype(int) * M_q) << d) + B + 2 ** (r - 1)) >> r, 0, 255
        ),
        "products in 32 bits": lambda acc, d, M, q, M_q, B, r: np.clip(
            ((acc << d) * M + q.astype(int) * M_q + B + 2 ** (r - 1)) >> r, 0, 255
        ),
        "signed clamp": lambda acc, d, M, q, M_q, B, r: np.clip(
            ((acc.astype(int) << d) * M + q.astype(int) * M_q + B + 2 ** (r - 1)) >> r, -128, 127
        ),
    },
    "largest_r": {
        "multipliers alone": lambda terms, offset: integer.largest_shift(
            [(ratios, 1) for ratios, _ in terms], 0.0
        ),
        "forgets the offset": lambda terms, offset: integer.largest_shift(terms, 0.0),
        "one short": lambda terms, offset: integer.largest_shift(terms, offset) - 1,
        "the first term alone": lambda terms, offset: integer.largest_shift(terms[:1], offset),
        "largest of all channels": lambda terms, offset: integer.largest_shift(
            [(np.abs(ratios).max(), limit) for ratios, limit in terms], np.abs(offset).max()
        ),
    },
}
