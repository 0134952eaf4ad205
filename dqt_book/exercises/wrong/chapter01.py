"""Wrong answers to the exercises of chapter 1: each checker must reject its own."""

import numpy as np

from dqt_core import nested


def multiply(x, y, bits_x, bits_y):
    return sum(((x >> i) & (y >> j) & 1) << (i + j) for i in range(bits_x) for j in range(bits_y))


def own_step(x, width, high_code, rounded):
    return rounded(x / (np.abs(x).max() / high_code)).astype(int)


def late_agreement(classes):
    disagree = (classes != classes[-1])[::-1]
    return len(classes) - np.where(disagree.any(0), disagree.argmax(0), len(classes))


WRONG = {
    "bytes_at": {
        "rounds down": lambda count, width: count * width // 8,
        "counts bits": lambda count, width: count * width,
        "a byte a code": lambda count, width: count,
        "one too many": lambda count, width: count * width // 8 + 1,
        "float": lambda count, width: count * width / 8,
    },
    "layer_bitops": {
        "adds the widths": lambda s, k, i, o, b_w, b_a: s * s * k * k * i * o * (b_w + b_a),
        "forgets the kernel": lambda s, k, i, o, b_w, b_a: s * s * i * o * b_w * b_a,
        "kernel not squared": lambda s, k, i, o, b_w, b_a: s * s * k * i * o * b_w * b_a,
        "one width": lambda s, k, i, o, b_w, b_a: s * s * k * k * i * o * b_w**2,
        "forgets the pixels": lambda s, k, i, o, b_w, b_a: k * k * i * o * b_w * b_a,
    },
    "multiply_bits": {
        "drops the top bit": lambda x, y, width: multiply(x, y, width, width - 1),
        "ors instead of adding": lambda x, y, width: x | y,
        "forgets the place": lambda x, y, width: (x & y & 1) + 0 * width,
        "narrow result": lambda x, y, width: (x * y) & ((1 << width) - 1),
    },
    "quantize_at": {
        "ties to even and clamp": lambda x, width: own_step(x, width, 2 ** (width - 1), np.rint),
        "rounds down": lambda x, width: own_step(x, width, 2 ** (width - 1) - 1, np.floor),
        "towards zero": lambda x, width: own_step(x, width, 2 ** (width - 1) - 1, np.trunc),
        "unsigned range": lambda x, width: own_step(x, width, 2**width - 1, np.rint),
        "values, not codes": lambda x, width: x,
        "a view of the master": lambda x, width: nested.switch(nested.quantize(x)[0], width),
    },
    "lowest_sufficient": {
        "all higher must agree": late_agreement,
        "always the master": lambda classes: np.full(classes.shape[1], len(classes) - 1),
        "agrees with the first": lambda classes: (classes == classes[0]).argmax(0),
        "counts from one": lambda classes: (classes == classes[-1]).argmax(0) + 1,
        "rows for columns": lambda classes: (classes == classes[-1]).argmax(1),
    },
}
