"""Wrong answers to the exercises of chapter 14: each checker must reject its own."""

import numpy as np


def to_units(B, M, drop, rounded):
    unit = M << drop
    return rounded(B, unit) * unit


def windowed(wrong, kernel, stride, padding, combine=np.any):
    padded = np.pad(wrong, padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel))
    return combine(windows[::stride, ::stride], axis=(2, 3))


def layers_that_differ(ours, theirs):
    return np.array([(a != b).reshape(len(a), -1).any(1) for a, b in zip(ours, theirs, strict=True)])


def lengths(M):
    return [(m, int(m).bit_length()) for m in M]


def half_up_bits(m, d):
    return ((m + (1 << d >> 1)) >> d) << d


def kernel(text, *replacements):
    """A solution that returns a kernel's text with some words replaced."""
    for old, new in replacements:
        assert text.count(old) == 1, (old, text)
        text = text.replace(old, new)
    return lambda: text


WRONG = {
    "tool_bias": {
        "drops ignored": lambda B, M, drop: to_units(B, M, 0, lambda b, u: (2 * b + u) // (2 * u)),
        "ties up": lambda B, M, drop: to_units(B, M, drop, lambda b, u: (2 * b + u) // (2 * u)),
        "cut": lambda B, M, drop: to_units(B, M, drop, lambda b, u: b // u),
        "through float32": lambda B, M, drop: to_units(
            B, M, drop, lambda b, u: np.rint(b.astype(np.float32) / u.astype(np.float32)).astype(np.int64)
        ),
        "in units": lambda B, M, drop: np.rint(B / (M << drop)).astype(np.int64),
        "nothing": lambda B, M, drop: B,
    },
    "float32_multiplier": {
        "cut": lambda M: np.array([int(m) >> max(n - 24, 0) << max(n - 24, 0) for m, n in lengths(M)]),
        "ties up": lambda M: np.array([half_up_bits(int(m), max(n - 24, 0)) for m, n in lengths(M)]),
        "23 bits": lambda M: np.array([half_up_bits(int(m), max(n - 23, 0)) for m, n in lengths(M)]),
        "always 7 bits": lambda M: (M + 64) >> 7 << 7,
        "nothing": lambda M: M,
        "float64": lambda M: M.astype(float).astype(np.int64),
    },
    "unsigned_shift": {
        "bits of a negative": lambda t, r: (t.view(np.uint64) >> np.uint64(r)).view(np.int64),
        "towards zero": lambda t, r: np.sign(t) * (abs(t) >> r),
        "no complement back": lambda t, r: np.where(t < 0, ~t, t) >> r,
        "rounded": lambda t, r: (t + (1 << (r - 1))) >> r,
        "floats": lambda t, r: np.floor(t / 2.0**r).astype(np.int64),
    },
    "spread": {
        "no stride": lambda wrong, kernel, stride, padding: windowed(wrong, kernel, 1, padding),
        "no padding": lambda wrong, kernel, stride, padding: windowed(wrong, kernel, stride, 0),
        "all of the window": lambda *arguments: windowed(*arguments, combine=np.all),
        "only the middle": lambda wrong, kernel, stride, padding: wrong[::stride, ::stride],
        "counts": lambda *arguments: windowed(*arguments, combine=np.sum),
    },
    "first_disagreement": {
        "last": lambda a, b: 2 - layers_that_differ(a, b)[::-1].argmax(0),
        "never is 0": lambda a, b: layers_that_differ(a, b).argmax(0),
        "how many": lambda a, b: layers_that_differ(a, b).sum(0),
        "first equal": lambda a, b: np.vstack([~layers_that_differ(a, b), np.ones((1, 40), bool)]).argmax(0),
        "one for all": lambda a, b: np.full(40, layers_that_differ(a, b).any(1).argmax()),
    },
}
