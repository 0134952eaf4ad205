"""The checkers of the book's exercises accept the book's own solutions and reject the kept wrong ones."""

import base64
import math
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dqt_core import integer, nested

BOOK = Path(__file__).resolve().parents[1] / "book"
sys.path.insert(0, str(BOOK))
import checks  # noqa: E402
from emulation import cpu  # noqa: E402

TEXT = "\n".join(path.read_text() for path in sorted(BOOK.glob("[0-9]*.md")))
UNSIGNED = np.arange(256).astype(np.uint8)
# The kernels that the exercises of chapter 7 ask to mend.
BROKEN = dict(re.findall(r'^(broken_\w+) = r"""(.*?)"""', TEXT, re.S | re.M))


def two_steps(codes, middle, last, rounding):
    stop = nested.switch(codes, middle, rounding=rounding)
    return nested.switch(stop << (8 - middle), last, rounding=rounding)


def solutions():
    """Yield (label, code) of every solution in the book."""
    pattern = r"\{solution-start\} (\S+)\n(.*?)\{solution-end\}"
    for label, body in re.findall(pattern, TEXT, re.S):
        yield label, "\n".join(re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", body, re.S))


def on_ties(x, drop, lowered):
    codes = np.floor(x + 0.5).astype(int)
    return codes - ((codes % 2**drop == 2 ** (drop - 1)) & lowered)


def moved(old, wide, own, gain, ratio):
    return np.stack([own[0] + (old[0] - wide[0]) * gain, old[1] * ratio])


def high(codes, width):
    return nested.code_range(width, codes.dtype == np.int8)[1]


def wide_half_up(codes, width, extra=0):
    half = 1 << (8 - width) >> 1
    return (codes.astype(int) + half + extra) >> (8 - width)


def plane_by_plane(read_plane, planes):
    return sum(read_plane(plane).astype(int) << (planes - 1 - plane) for plane in range(planes))


def multiply(x, y, bits_x, bits_y):
    return sum(((x >> i) & (y >> j) & 1) << (i + j) for i in range(bits_x) for j in range(bits_y))


def own_step(x, width, high_code, rounded):
    return rounded(x / (np.abs(x).max() / high_code)).astype(int)


def offset_product(x, w, product, axis=1, dtype=np.int64):
    return product(x, w.view(np.uint8) ^ 128) - 128 * x.sum(axis=axis, keepdims=True, dtype=dtype)


def float_sums(products, dtype=np.float32):
    return np.cumsum(products, dtype=dtype) != np.cumsum(products, dtype=np.int64)


def windows(x, size, stride, padding, fill=0):
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, edges, constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    found = found[:, ::stride, ::stride]
    return found, (*found.shape[:3], -1)


def cut_bits(numbers, kept, add):
    drop = np.maximum(np.frexp(numbers.astype(float))[1] - kept, 0)
    return ((numbers + (add * 2**drop).astype(np.int64)) >> drop) << drop


def late_agreement(classes):
    disagree = (classes != classes[-1])[::-1]
    return len(classes) - np.where(disagree.any(0), disagree.argmax(0), len(classes))


def folded(gain, bias, step_x, step_w, step_y, r, unit=None, half=0.5):
    rows = np.stack([gain * step_x * step_w / step_y, bias / (unit or step_y)])
    return np.floor(rows * 2.0**r + half).astype(np.int64)


def jump_edge(q, width):
    """Master codes from `q` to the next edge of its half_up view."""
    half = 1 << (8 - width) >> 1
    return (((q + half) >> (8 - width)) + 1 << (8 - width)) - half - q


def pull(w, step, width):
    q = np.floor(w / step + 0.5).clip(-128, 127).astype(np.int8)
    return nested.switch(q, width) * 2.0 ** (8 - width)


def inside(w, step):
    return (w / step > -128) & (w / step < 127)


def pareto(cost, correct, equal=False):
    beats = (cost[:, None] <= cost) & (correct[:, None] >= correct)
    if equal:
        return np.flatnonzero(~(beats & ~np.tri(len(cost), k=0, dtype=bool).T).any(0))
    strictly = (cost[:, None] < cost) | (correct[:, None] > correct)
    return np.flatnonzero(~(beats & strictly).any(0))


def unpacked(text, order="big"):
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder=order)


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


FLOOR_SWITCH = r"""
extern "C" __global__ void floor_switch(const unsigned char* codes, unsigned char* out, int n, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = codes[i] >> (8 - width);
}
"""
ADDITION, BARRIER, ROUND = "parts[i] += parts[i + apart];", "__syncthreads();", "if (i < apart)"


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
    "wrap": {
        "saturates": lambda totals, width: totals.clip(-(2 ** (width - 1)), 2 ** (width - 1) - 1),
        "unsigned": lambda totals, width: totals % 2**width,
        "no wrap": lambda totals, width: totals,
        "sign and magnitude": lambda totals, width: np.sign(totals) * (abs(totals) % 2 ** (width - 1)),
        "always 16 bits": lambda totals, width: totals.astype(np.int16),
    },
    "longest_sum": {
        "unsigned register": lambda n, b_w, b_a: (2**n - 1) // (2 ** (b_w - 1) * (2**b_a - 1)),
        "both unsigned": lambda n, b_w, b_a: (2 ** (n - 1) - 1) // ((2**b_w - 1) * (2**b_a - 1)),
        "powers of two": lambda n, b_w, b_a: 2 ** (n - 1) // 2 ** (b_w - 1 + b_a),
        "master codes": lambda n, b_w, b_a: (2 ** (n - 1) - 1) // (128 * 255),
        "one more": lambda n, b_w, b_a: (2 ** (n - 1) - 1) // (2 ** (b_w - 1) * (2**b_a - 1)) + 1,
    },
    "im2col_strided": {
        "no stride": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 4, 5, 3).reshape(shape)
        )(*windows(x, size, 1, padding)),
        "channels first": lambda x, size, stride, padding: (lambda found, shape: found.reshape(shape))(
            *windows(x, size, stride, padding)
        ),
        "transposed kernel": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 5, 4, 3).reshape(shape)
        )(*windows(x, size, stride, padding)),
        "border of 128": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 4, 5, 3).reshape(shape)
        )(*windows(x, size, stride, padding, fill=128)),
        "no padding": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 4, 5, 3).reshape(shape)
        )(*windows(x, size, stride, 0)),
    },
    "unsigned_bytes_only": {
        "no correction": lambda x, w, product: product(x, w.view(np.uint8) ^ 128),
        "no offset": lambda x, w, product: product(x, w.view(np.uint8)),
        "sum of the weights": lambda x, w, product: (
            product(x, w.view(np.uint8) ^ 128) - 128 * w.sum(axis=1, dtype=np.int64)
        ),
        "sum in a byte": lambda x, w, product: offset_product(x, w, product, dtype=np.uint8),
        "sum of everything": lambda x, w, product: offset_product(x, w, product, axis=(0, 1)),
        "result in 16 bits": lambda x, w, product: offset_product(x, w, product).astype(np.int16),
    },
    "first_inexact": {
        "counts from zero": lambda products: int(float_sums(products).argmax()),
        "first beyond 2**24": lambda products: int((abs(np.cumsum(products)) > 2**24).argmax() + 1),
        "a float64": lambda products: int(
            float_sums(products, np.float64).argmax() + float_sums(products, np.float64).any()
        ),
        "how many are wrong": lambda products: int(float_sums(products).sum()),
        "only the last": lambda products: len(products) * int(float_sums(products)[-1]),
        "never 0": lambda products: int(float_sums(products).argmax() + 1),
    },
    "significant": {
        "cuts": lambda numbers, kept: cut_bits(numbers, kept, 0),
        "ties up": lambda numbers, kept: cut_bits(numbers, kept, 0.5),
        "last bits": lambda numbers, kept: numbers % 2**kept,
        "always float32": lambda numbers, kept: numbers.astype(np.float32).astype(np.int64),
        "clamps": lambda numbers, kept: np.minimum(numbers, 2**kept - 1),
    },
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
    "floor_kernel": {
        "half up": kernel(FLOOR_SWITCH, ("codes[i] >>", "(codes[i] + (1 << (8 - width) >> 1)) >>")),
        "shifts by the width": kernel(FLOOR_SWITCH, ("(8 - width)", "width")),
        "no end": kernel(FLOOR_SWITCH, ("if (i < n) ", "")),
        "one too many": kernel(FLOOR_SWITCH, ("i < n", "i <= n")),
        "one block": kernel(FLOOR_SWITCH, ("blockIdx.x * blockDim.x + ", "")),
        "another name": kernel(FLOOR_SWITCH, ("floor_switch", "floor")),
        "not C": kernel(FLOOR_SWITCH, ("int i =", "i =")),
        "signed codes": kernel(FLOOR_SWITCH, ("codes[i] >>", "(signed char)codes[i] >>")),
    },
    "tail_kernel": {
        "as it was": kernel(BROKEN["broken_tail"]),
        "too early": kernel(BROKEN["broken_tail"], ("first + 3 <= n", "first + 2 <= n")),
        "one behind the end": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), ("i < n", "i <= n")),
        "no rest": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), ("i < n", "i < n - 1")),
        "half the threads": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), ("4 * (", "8 * (")),
        "neighbours' bits": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), (" & 0x01010101", "")),
    },
    "barrier_kernel": {
        "as it was": kernel(BROKEN["broken_sum"]),
        "at the start of a round": kernel(BROKEN["broken_sum"], (ROUND, BARRIER + ROUND)),
        "not for all": kernel(BROKEN["broken_sum"], (ADDITION, f"{{ {ADDITION} {BARRIER} }}")),
        "after the rounds": kernel(BROKEN["broken_sum"], ("out[i] =", BARRIER + "out[i] =")),
        "moved": kernel(BROKEN["broken_sum"], (BARRIER, ""), (ADDITION, ADDITION + BARRIER)),
    },
    "gemv_bytes": {
        "rows not whole": lambda outputs, length, vectors, b: (
            b * outputs * length // 8 + vectors * (length + 4 * outputs)
        ),
        "planes alone": lambda outputs, length, vectors, b: b * outputs * -(-length // 8),
        "results of a byte": lambda outputs, length, vectors, b: (
            b * outputs * -(-length // 8) + vectors * (length + outputs)
        ),
        "planes for every vector": lambda outputs, length, vectors, b: (
            vectors * (b * outputs * -(-length // 8) + length + 4 * outputs)
        ),
        "all planes": lambda outputs, length, vectors, b: (
            8 * outputs * -(-length // 8) + vectors * (length + 4 * outputs)
        ),
    },
    "bank_passes": {
        "rows alone": lambda stride: np.bincount(np.arange(8) * stride // 4 % 32).max(),
        "same words queue": lambda stride: np.bincount(
            (np.arange(32) // 4 * stride // 4 + np.arange(32) % 4) % 32
        ).max(),
        "banks of bytes": lambda stride: np.bincount(
            np.unique(np.arange(32) // 4 * stride + np.arange(32) % 4) % 32
        ).max(),
        "banks in use": lambda stride: len(
            np.unique((np.arange(32) // 4 * stride // 4 + np.arange(32) % 4) % 32)
        ),
        "always one": lambda stride: 1,
    },
    "owner": {
        "lanes along columns": lambda row, term: np.stack(
            [row % 8 + term % 16 // 4 * 8, row // 8 + 2 * (term // 16), term % 4]
        ),
        "registers exchanged": lambda row, term: np.stack(
            [4 * (row % 8) + term % 16 // 4, 2 * (row // 8) + term // 16, term % 4]
        ),
        "eight terms a lane": lambda row, term: np.stack(
            [4 * (row % 8) + term // 8, row // 8 + 2 * (term % 8 // 4), term % 4]
        ),
        "bytes in reverse": lambda row, term: np.stack(
            [4 * (row % 8) + term % 16 // 4, row // 8 + 2 * (term // 16), 3 - term % 4]
        ),
        "no byte": lambda row, term: np.stack(
            [4 * (row % 8) + term % 16 // 4, row // 8 + 2 * (term // 16), 0 * term]
        ),
    },
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
    "channel_sums": {
        "overflows a byte": lambda codes: codes.sum((1, 2), dtype=codes.dtype),
        "overflows 16 bits": lambda codes: codes.sum((1, 2), dtype=np.int16),
        "means": lambda codes: codes.mean((1, 2)).round().astype(int),
        "over the channels": lambda codes: codes.sum((2, 3), dtype=int),
        "over the images": lambda codes: codes.sum((0, 1, 2), dtype=int),
    },
    "choose": {
        "ties to the wider": lambda logits, layers: (
            logits.reshape(len(logits), layers, -1).shape[-1]
            - 1
            - logits.reshape(len(logits), layers, -1)[..., ::-1].argmax(-1)
        ),
        "in float32": lambda logits, layers: (
            logits.astype(np.float32).reshape(len(logits), layers, -1).argmax(-1)
        ),
        "choices before layers": lambda logits, layers: logits.reshape(len(logits), -1, layers).argmax(1),
        "one width for all": lambda logits, layers: np.repeat(
            logits.reshape(len(logits), layers, -1).sum(1).argmax(-1)[:, None], layers, 1
        ),
        "the smallest": lambda logits, layers: logits.reshape(len(logits), layers, -1).argmin(-1),
    },
    "image_bitops": {
        "one width": lambda macs, widths, fixed: (macs * widths).sum(1) + 64 * fixed,
        "no fixed layers": lambda macs, widths, fixed: (macs * widths**2).sum(1),
        "fixed MACs": lambda macs, widths, fixed: (macs * widths**2).sum(1) + fixed,
        "mean over the images": lambda macs, widths, fixed: (macs * widths**2).sum(1).mean() + 64 * fixed,
        "int32": lambda macs, widths, fixed: (macs * widths**2).sum(1).astype(np.int32) + 64 * fixed,
        "mean width": lambda macs, widths, fixed: (macs.sum() * widths.mean(1) ** 2).astype(int) + 64 * fixed,
    },
    "not_dominated": {
        "all": lambda cost, correct: np.arange(len(cost)),
        "the best alone": lambda cost, correct: correct.argmax()[None],
        "dear is good": lambda cost, correct: pareto(-cost, correct),
        "one of equals": lambda cost, correct: np.unique(pareto(cost, correct, equal=True)),
        "by cost": lambda cost, correct: pareto(cost, correct)[np.argsort(cost[pareto(cost, correct)])][::-1],
    },
    "best_static": {
        "no budget": lambda loss, cost, budget: loss.argmin(1),
        "narrowest": lambda loss, cost, budget: cost.argmin(1),
        "an equal share for each": lambda loss, cost, budget: np.where(
            cost <= budget / len(cost), loss, 10**6
        ).argmin(1),
        "one width": lambda loss, cost, budget: np.full(
            len(loss), np.where(cost.sum(0) <= budget, loss.sum(0), 10**6).argmin()
        ),
        "cheapest loss": lambda loss, cost, budget: (loss * cost).argmin(1),
    },
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
    "count_hits": {
        "padding counted": lambda text, n: int(unpacked(text).sum()),
        "last bit first": lambda text, n: int(unpacked(text, "little")[:n].sum()),
        "bytes": lambda text, n: int((np.packbits(unpacked(text)) > 0)[:n].sum()),
        "wrong ones": lambda text, n: int((unpacked(text)[:n] == 0).sum()),
        "one too few": lambda text, n: int(unpacked(text)[: n - 1].sum()),
    },
    "images_needed": {
        "one deviation": lambda p, points: math.ceil(p * (1 - p) / (points / 100) ** 2),
        "not percent": lambda p, points: math.ceil(4 * p * (1 - p) / points**2),
        "rounded down": lambda p, points: math.floor(4 * p * (1 - p) / (points / 100) ** 2),
        "not squared": lambda p, points: math.ceil(4 * p * (1 - p) / (points / 100)),
        "variance of right alone": lambda p, points: math.ceil(4 * p / (points / 100) ** 2),
    },
    "dividing_images": {
        "swapped": lambda first, second: [int((~first & second).sum()), int((first & ~second).sum())],
        "all right": lambda first, second: [int(first.sum()), int(second.sum())],
        "sum": lambda first, second: [int((first ^ second).sum()), int((first ^ second).sum())],
        "both": lambda first, second: [int((first & second).sum()), int((~first & ~second).sum())],
        "or": lambda first, second: [int((first | ~second).sum()), int((second | ~first).sum())],
    },
    "tail_count": {
        "one side": lambda a, n: sum(math.comb(n, k) for k in range(min(a, n - a) + 1)),
        "even split twice": lambda a, n: 2 * sum(math.comb(n, k) for k in range(min(a, n - a) + 1)),
        "strictly": lambda a, n: 2 * sum(math.comb(n, k) for k in range(min(a, n - a))),
        "at most a": lambda a, n: 2 * sum(math.comb(n, k) for k in range(a + 1)),
        "this outcome": lambda a, n: math.comb(n, a),
    },
    "tie_count": {
        "negative codes": lambda codes, drop: int(
            (np.fmod(codes.astype(int), 2**drop) == 2 ** (drop - 1)).sum()
        ),
        "top dropped bit": lambda codes, drop: int((codes.astype(int) >> (drop - 1) & 1).sum()),
        "multiples": lambda codes, drop: int((codes.astype(int) % 2 ** (drop - 1) == 0).sum()),
        "one bit too many": lambda codes, drop: int((codes.astype(int) % 2 ** (drop + 1) == 2**drop).sum()),
        "not a tie": lambda codes, drop: int((codes.astype(int) % 2**drop != 2 ** (drop - 1)).sum()),
    },
    "single_rounding": {
        "nearest": lambda x, drop: np.floor(x + 0.5).astype(int),
        "every tie": lambda x, drop: on_ties(x, drop, x == x),
        "ties of x too": lambda x, drop: on_ties(x, drop, x <= np.floor(x + 0.5)),
        "above the tie": lambda x, drop: on_ties(x, drop, x > np.floor(x + 0.5)),
        "rounded down": lambda x, drop: np.floor(x).astype(int),
        "the view": lambda x, drop: np.floor(x / 2**drop + 0.5).astype(int),
    },
    "corrected_table": {
        "deviations": lambda old, wide, own: moved(old, wide, own, own[1] / wide[1], own[1] / wide[1]),
        "mean alone": lambda old, wide, own: np.stack([own[0] + old[0] - wide[0], old[1]]),
        "own table": lambda old, wide, own: own,
        "upside down": lambda old, wide, own: moved(
            old, wide, own, np.sqrt(wide[1] / own[1]), wide[1] / own[1]
        ),
        "other sign": lambda old, wide, own: moved(
            wide, old, own, np.sqrt(own[1] / wide[1]), own[1] / wide[1]
        ),
        "mean not scaled": lambda old, wide, own: moved(old, wide, own, 1.0, own[1] / wide[1]),
    },
    "one_sided_kernel": {
        "other side": lambda weight: np.pad(weight, ((0, 0), (0, 1), (0, 1), (0, 0))),
        "rows alone": lambda weight: np.pad(weight, ((0, 0), (1, 0), (0, 0), (0, 0))),
        "both sides": lambda weight: np.pad(weight, ((0, 0), (1, 1), (1, 1), (0, 0))),
        "mirrored": lambda weight: np.pad(weight[:, ::-1, ::-1], ((0, 0), (1, 0), (1, 0), (0, 0))),
        "repeated": lambda weight: np.pad(weight, ((0, 0), (1, 0), (1, 0), (0, 0)), "edge"),
    },
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
SOLUTIONS = list(solutions())
WRONG_ONES = [(name, kind) for name, kinds in WRONG.items() for kind in kinds]


@pytest.mark.parametrize(("label", "code"), SOLUTIONS, ids=[label for label, _ in SOLUTIONS])
def test_the_books_solution_is_accepted(label, code):
    names = {"np": np, "nested": nested, "integer": integer, "checks": checks, "cpu": cpu, **BROKEN}
    names |= {"two_steps": two_steps, "unsigned": UNSIGNED}
    exec(code, names)
    name = label.removeprefix("ex-").replace("-", "_")
    verdict = getattr(checks, name)(names[name])
    assert verdict
    assert verdict.message.startswith("Right")


def test_every_checker_has_an_exercise_and_wrong_solutions():
    labels = {label.removeprefix("ex-").replace("-", "_") for label, _ in SOLUTIONS}
    assert labels == set(WRONG)
    assert min(len(kinds) for kinds in WRONG.values()) >= 4


@pytest.mark.parametrize(("name", "kind"), WRONG_ONES)
def test_a_wrong_solution_is_rejected_with_a_reason(name, kind):
    verdict = getattr(checks, name)(WRONG[name][kind])
    assert not verdict
    assert name in verdict.message
    assert not verdict.message.startswith("Right")
    assert "raised" not in verdict.message


def test_a_verdict_names_the_first_wrong_code_with_its_bits():
    verdict = checks.half_up(WRONG["half_up"]["no epsilon"])
    assert repr(verdict) == (
        "half_up(unsigned, 7): first wrong at master 1 (00000001): expected 1 (0000001), got 0 (0000000)"
    )
    verdict = checks.half_up(wide_half_up)
    assert "master 255 (11111111): expected 127 (1111111), got 128 (10000000)" in verdict.message


@pytest.mark.parametrize(("empty", "said"), [(..., "Not solved yet"), (None, "Not solved yet")])
@pytest.mark.parametrize("name", WRONG)
def test_an_empty_solution_is_not_solved(name, empty, said):
    assert said in checks.__dict__[name](lambda *arguments: empty).message


def test_an_error_in_a_solution_is_reported():
    assert "raised ZeroDivisionError" in checks.bytes_at(lambda count, width: 1 / 0).message


def test_a_solution_that_changes_its_input_does_no_harm():
    def spoil(codes, width):
        codes[:] = 0
        return codes

    assert not checks.drop_bits(spoil)
    assert checks.drop_bits(lambda codes, width: codes >> (8 - width))


@pytest.mark.parametrize(
    ("code", "width", "shown"),
    [(6, 4, "0110"), (-1, 4, "1111"), (-8, 4, "1000"), (16, 4, "10000"), (0, 1, "0")],
)
def test_bits(code, width, shown):
    assert checks.bits(code, width) == shown
