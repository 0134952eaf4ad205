"""Wrong answers to the exercises of chapter 7: each checker must reject its own."""

import numpy as np

from dqt_core import nested


def clamped(numbers, width):
    return np.clip(numbers, -(2 ** (width - 1)), 2 ** (width - 1) - 1)


def serial(x_planes, w_planes, sign=-1, x_sign=1, ones=lambda bits: int(np.bitwise_count(bits).sum())):
    worth = [np.array([2**i for i in range(len(planes))][::-1]) for planes in (x_planes, w_planes)]
    worth[0][0] *= x_sign
    worth[1][0] *= sign
    return sum(
        int(i * j) * ones(x & w)
        for i, x in zip(worth[0], x_planes, strict=True)
        for j, w in zip(worth[1], w_planes, strict=True)
    )


WRONG = {
    "network_bitops": {
        "all at the width": lambda macs, width: sum(macs) * width**2,
        "without first and last": lambda macs, width: sum(macs[1:-1]) * width**2,
        "the last at the width": lambda macs, width: 64 * macs[0] + sum(macs[1:]) * width**2,
        "one factor": lambda macs, width: 64 * (macs[0] + macs[-1]) + sum(macs[1:-1]) * width,
        "first and last at 8 by the width": lambda macs, width: (
            8 * width * (macs[0] + macs[-1]) + sum(macs[1:-1]) * width**2
        ),
    },
    "switched_elements": {
        "all": lambda layers, widths: sum(map(sum, layers)),
        "both or none": lambda layers, widths: sum(
            sum(layer) for layer, pair in zip(layers, widths, strict=True) if min(pair) < 8
        ),
        "weights alone": lambda layers, widths: sum(
            layer[0] for layer, pair in zip(layers, widths, strict=True) if pair[0] < 8
        ),
        "widths swapped": lambda layers, widths: sum(
            layer[0] * (a < 8) + layer[1] * (w < 8) for layer, (w, a) in zip(layers, widths, strict=True)
        ),
        "halves and below": lambda layers, widths: sum(
            layer[0] * (w <= 4) + layer[1] * (a <= 4) for layer, (w, a) in zip(layers, widths, strict=True)
        ),
    },
    "plane_bytes": {
        "no plane for epsilon": lambda count, width, rounding: width * -(-count // 8),
        "nine planes": lambda count, width, rounding: (width + (rounding == "half_up")) * -(-count // 8),
        "packed across planes": lambda count, width, rounding: (
            -(-count * min(width + (rounding == "half_up"), 8) // 8)
        ),
        "last byte lost": lambda count, width, rounding: (
            min(width + (rounding == "half_up"), 8) * (count // 8)
        ),
        "the master": lambda count, width, rounding: count,
    },
    "rescale": {
        "no half": lambda codes, M, r, width: clamped(codes.astype(int) * M >> r, width),
        "no clamp": lambda codes, M, r, width: (codes.astype(int) * M + 2 ** (r - 1)) >> r,
        "product in 32 bits": lambda codes, M, r, width: clamped(
            ((codes.astype(np.int32) * np.int32(M)).astype(int) + 2 ** (r - 1)) >> r, width
        ),
        "half to even": lambda codes, M, r, width: clamped(np.rint(codes * (M / 2**r)), width),
        "ignores the ratio": lambda codes, M, r, width: nested.switch(codes, width),
        "symmetric": lambda codes, M, r, width: np.maximum(
            clamped((codes.astype(int) * M + 2 ** (r - 1)) >> r, width), 1 - 2 ** (width - 1)
        ),
    },
    "bit_serial": {
        "no sign": lambda x, w: serial(x, w, sign=1),
        "sign on both": lambda x, w: serial(x, w, x_sign=-1),
        "lowest plane first": lambda x, w: serial(x[::-1], w[::-1]),
        "counts bytes": lambda x, w: serial(x, w, ones=np.count_nonzero),
        "no place value": lambda x, w: sum(int(np.bitwise_count(p & q).sum()) for p in x for q in w),
    },
}
