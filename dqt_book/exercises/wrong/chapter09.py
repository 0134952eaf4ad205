"""Wrong answers to the exercises of chapter 9: each checker must reject its own."""

import numpy as np

from dqt_core import nested


def jump_edge(q, width):
    """Master codes from `q` to the next edge of its half_up view."""
    half = 1 << (8 - width) >> 1
    return (((q + half) >> (8 - width)) + 1 << (8 - width)) - half - q


def pull(w, step, width):
    q = np.floor(w / step + 0.5).clip(-128, 127).astype(np.int8)
    return nested.switch(q, width) * 2.0 ** (8 - width)


def inside(w, step):
    return (w / step > -128) & (w / step < 127)


WRONG = {
    "gradient_mask": {
        "all": lambda w, step, lo, hi: np.ones(len(w)),
        "magnitude alone": lambda w, step, lo, hi: np.abs(w / step) < hi,
        "rounded first": lambda w, step, lo, hi: (np.rint(w / step) >= lo) & (np.rint(w / step) <= hi + 1),
        "clamped first": lambda w, step, lo, hi: np.clip(w / step, lo, hi) <= hi,
        "forgets the step": lambda w, step, lo, hi: (lo < w) & (w < hi),
        "inside out": lambda w, step, lo, hi: (w / step < lo) | (w / step > hi),
    },
    "updates_until_jump": {
        "to the next master code": lambda q, rate, width: 1,
        "a whole bin": lambda q, rate, width: -(-(2 ** (8 - width)) // rate),
        "floor": lambda q, rate, width: -(((q >> (8 - width)) + 1 << (8 - width)) - q) // -rate,
        "rounds down": lambda q, rate, width: jump_edge(q, width) // rate,
        "no top code": lambda q, rate, width: -(-jump_edge(q, width) // rate),
    },
    "exact_terms": {
        "no lowest code": lambda b_w, b_a, bits: 2**bits // max((2 ** (b_w - 1) - 1) * (2**b_a - 1), 1),
        "unsigned weights": lambda b_w, b_a, bits: 2**bits // (2**b_w * 2**b_a),
        "signed activations": lambda b_w, b_a, bits: 2**bits // (2 ** (b_w - 1) * 2 ** (b_a - 1)),
        "a bit for the sign": lambda b_w, b_a, bits: 2 ** (bits - 1) // (2 ** (b_w - 1) * (2**b_a - 1)),
        "one product": lambda b_w, b_a, bits: 1,
    },
    "step_pull": {
        "clamp forgotten": lambda w, step, width: pull(w, step, width) - w / step,
        "clamped is flat": lambda w, step, width: inside(w, step) * (pull(w, step, width) - w / step),
        "the code alone": lambda w, step, width: pull(w, step, width),
        "in view steps": lambda w, step, width: (
            (pull(w, step, width) - inside(w, step) * w / step) / 2 ** (8 - width)
        ),
        "in real units": lambda w, step, width: pull(w, step, width) * step - inside(w, step) * w,
        "8 bits always": lambda w, step, width: pull(w, step, 8) - inside(w, step) * w / step,
    },
    "common_statistics": {
        "mean of variances": lambda means, variances: (means.mean(), variances.mean()),
        "means alone": lambda means, variances: (means.mean(), means.var()),
        "unbiased": lambda means, variances: (means.mean(), variances.mean() + means.var(ddof=1)),
        "of the last width": lambda means, variances: (means[-1], variances[-1]),
        "deviation": lambda means, variances: (means.mean(), (variances.mean() + means.var()) ** 0.5),
        "one number": lambda means, variances: means.mean(),
    },
}
