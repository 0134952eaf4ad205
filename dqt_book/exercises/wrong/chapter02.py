"""Wrong answers to the exercises of chapter 2: each checker must reject its own."""

import numpy as np

from dqt_book.exercises.judging import UNSIGNED
from dqt_core import nested


def two_steps(codes, middle, last, rounding):
    stop = nested.switch(codes, middle, rounding=rounding)
    return nested.switch(stop << (8 - middle), last, rounding=rounding)


def high(codes, width):
    return nested.code_range(width, codes.dtype == np.int8)[1]


def wide_half_up(codes, width, extra=0):
    half = 1 << (8 - width) >> 1
    return (codes.astype(int) + half + extra) >> (8 - width)


def plane_by_plane(read_plane, planes):
    return sum(read_plane(plane).astype(int) << (planes - 1 - plane) for plane in range(planes))


WRONG = {
    "drop_bits": {
        "half up": nested.switch,
        "towards zero": lambda codes, width: np.trunc(codes / 2 ** (8 - width)).astype(int),
        "drops the width": lambda codes, width: codes >> min(width, 7),
        "keeps the low bits": lambda codes, width: codes & ((1 << width) - 1),
        "logical shift": lambda codes, width: codes.view(np.uint8) >> (8 - width),
    },
    "half_up": {
        "no epsilon": lambda codes, width: codes >> (8 - width),
        "no clamp": wide_half_up,
        "clamp of the other sign": lambda codes, width: np.minimum(wide_half_up(codes, width), 2**width - 1),
        "half to even": lambda codes, width: np.minimum(
            np.rint(codes / 2 ** (8 - width)), high(codes, width)
        ).astype(int),
        "sum overflows a byte": lambda codes, width: (
            (codes + codes.dtype.type(1 << (8 - width) >> 1)) >> (8 - width)
        ),
        "ties go down": lambda codes, width: np.minimum(
            wide_half_up(codes, width, -(width < 8)), high(codes, width)
        ),
        "from a switched code": lambda codes, width: (
            two_steps(codes, max(width, 4), width, "half_up") if codes.dtype == np.uint8 else None
        ),
    },
    "half_even": {
        "half up": nested.switch,
        "floor": lambda codes, width: nested.switch(codes, width, rounding="floor"),
        "half to odd": lambda codes, width: np.minimum(
            wide_half_up(codes, width, -(codes.astype(int) >> (8 - width) & 1) * (width < 8)),
            high(codes, width),
        ),
        "no clamp": lambda codes, width: np.rint(codes / 2 ** (8 - width)).astype(int),
    },
    "epsilon_zero": {
        "only the last": lambda width, signed: np.array([127 if signed else 255]),
        "the whole bin": lambda width, signed: np.arange(256 - 2 ** (8 - width), 256) - 128 * signed,
        "sign ignored": lambda width, signed: np.arange(256 - 2 ** (7 - width), 256),
        "descending": lambda width, signed: np.arange(256 - 2 ** (7 - width), 256)[::-1] - 128 * signed,
        "one short": lambda width, signed: np.arange(257 - 2 ** (7 - width), 256) - 128 * signed,
    },
    "path_differs": {
        "floor": lambda middle, last: UNSIGNED[:0],
        "not shifted back": lambda middle, last: UNSIGNED[
            nested.switch(nested.switch(UNSIGNED, middle), last) != nested.switch(UNSIGNED, last)
        ],
        "always 4 to 2": lambda middle, last: UNSIGNED[
            two_steps(UNSIGNED, 4, 2, "half_up") != nested.switch(UNSIGNED, 2)
        ],
        "counts only": lambda middle, last: (2**last - 1) * 2 ** (7 - middle),
    },
    "read_half_up": {
        "floor": plane_by_plane,
        "reads all planes": lambda read_plane, width: nested.switch(
            plane_by_plane(read_plane, 8).astype(np.uint8), width
        ),
        "no clamp": lambda read_plane, width: (
            plane_by_plane(read_plane, width) + (read_plane(width) if width < 8 else 0)
        ),
        "lowest plane first": lambda read_plane, width: sum(read_plane(p) << p for p in range(width)),
    },
}
