"""What the kernels of switch.cu and planes.cu must do on any engine; a check raises where one does not."""

import functools

import numpy as np

from dqt_core import nested
from dqt_core.kernels.structs import Struct

WIDTHS = range(1, 9)
ROUNDINGS = ("half_up", "floor")
DTYPES = (np.uint8, np.int8)


def launch(engine, kernel, blocks, threads, *args):
    """Run a kernel on NumPy arrays, wherever the engine has its own.

    Ints become int32, pairs of a name and fields a struct.
    """
    moved = {}

    def given(value):
        if isinstance(value, np.ndarray):
            return moved.setdefault(id(value), (value, engine.xp.asarray(value)))[1]
        if isinstance(value, tuple):
            name, fields = value
            return Struct(name, **{field: given(value) for field, value in fields.items()})
        return np.int32(value) if isinstance(value, int) else value

    kernel((blocks, 1, 1), (threads, 1, 1), tuple(map(given, args)))
    for mine, other in moved.values():
        if mine is not other:
            mine[...] = engine.xp.asnumpy(other)


def variant(dtype, rounding):
    return {"X_SIGNED": int(dtype == np.int8), "FLOOR": int(rounding == "floor")}


def equal(got, expected, *what):
    np.testing.assert_array_equal(got, expected, str(what))


# switch.cu


@functools.cache
def every_pair():
    """Words with every pair of codes in every two neighbouring bytes, the others all zeros or all ones."""
    pairs = np.arange(1 << 16, dtype=np.uint32)
    others = [np.uint32(0), np.uint32(0xFFFFFFFF)]
    words = [other & ~np.uint32(0xFFFF << shift) | pairs << shift for shift in (0, 8, 16) for other in others]
    return np.concatenate(words).view(np.uint8)


def switched(engine, codes, width, rounding):
    kernel = engine.kernel("switch", "switch_codes", **variant(codes.dtype, rounding))
    out = np.zeros_like(codes)
    launch(engine, kernel, -(-codes.size // (16 * 128)), 128, codes, out, np.int64(codes.size), width)
    return out


def check_switch_of_every_code_beside_every_other(engine):
    for dtype in DTYPES:
        codes = every_pair().view(dtype)
        for rounding in ROUNDINGS:
            for width in WIDTHS:
                expected = nested.switch(codes, width, rounding=rounding)
                equal(switched(engine, codes, width, rounding), expected, dtype, rounding, width)


def check_switch_of_every_length_and_alignment(engine):
    codes = np.random.default_rng(0).integers(-128, 127, 2064, np.int8, endpoint=True)
    for length in (1, 15, 16, 17, 31, 33, 2047, 2048, 2049):
        for start in (0, 1, 8):
            part = codes[start : start + length]
            equal(switched(engine, part, 3, "half_up"), nested.switch(part, 3), length, start)


def through_floats(engine, codes, step, width, start=0):
    """The codes by two kernels and by the fused one, in arrays that begin `start` elements after a border."""
    n, lo_hi = np.int64(codes.size), nested.code_range(width, codes.dtype == np.int8)
    step, inverse = np.float32(step), np.float32(1 / (step * (1 << (8 - width))))
    kernel = functools.partial(engine.kernel, "switch", **variant(codes.dtype, "half_up"))
    room = codes.size + start
    values, separate, fused = (np.zeros(room, dtype)[start:] for dtype in (np.float32, *[codes.dtype] * 2))
    by_four, by_sixteen = -(-codes.size // (4 * 128)), -(-codes.size // (16 * 128))
    launch(engine, kernel("dequantize"), by_four, 128, codes, values, step, n)
    equal(values, codes.astype(np.float32) * step, "dequantize", step)
    launch(engine, kernel("requantize_float"), by_four, 128, values, separate, inverse, *lo_hi, n)
    kernel = kernel("dequantize_requantize")
    launch(engine, kernel, by_sixteen, 128, codes, fused, step, inverse, *lo_hi, n)
    return separate, fused


def check_floats_give_the_same_codes_where_products_are_exact(engine):
    for dtype in DTYPES:
        every_code = np.arange(256).astype(np.uint8).view(dtype)
        for start, length in ((0, 256), (0, 243), (1, 255)):
            codes = every_code[start : start + length]
            for width in WIDTHS:
                for got in through_floats(engine, codes, 2.0**-5, width, start):
                    equal(got, nested.switch(codes, width), dtype, width, start, length)


def check_floats_are_rounded_as_float32(engine):
    codes, step, width = np.arange(-128, 128).astype(np.int8), np.float32(0.0123), 5
    scaled = codes.astype(np.float32) * step * np.float32(1 / (step * 8))
    expected = np.clip(np.floor(scaled + np.float32(0.5)), -16, 15)
    for got in through_floats(engine, codes, step, width):
        equal(got, expected)


# planes.cu


def packed(engine, codes):
    rows, length = codes.shape
    kernel = engine.kernel("planes", "pack_planes", **variant(codes.dtype, "half_up"))
    planes = np.full((8, rows, -(-length // 8)), 0x5A, np.uint8)
    launch(engine, kernel, -(-planes[0].size // 64), 64, codes, planes, rows, length)
    return planes


def unpacked(engine, planes, length, width, dtype, rounding):
    kernel = engine.kernel("planes", "unpack_planes", **variant(dtype, rounding))
    codes = np.zeros((planes.shape[1], length), dtype)
    launch(engine, kernel, -(-planes[0].size // 64), 64, planes, codes, *codes.shape, width)
    return codes


def check_planes_and_back(engine):
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (3, 7), (5, 64), (2, 100), (32, 256)):
        for dtype in DTYPES:
            codes = rng.integers(0, 256, shape, np.uint8).view(dtype)
            planes = packed(engine, codes)
            equal(planes, nested.to_planes(codes), dtype, shape)
            for rounding in ROUNDINGS:
                for width in WIDTHS:
                    needed = planes[: min(8, width + (rounding == "half_up"))]  # there are no more to read
                    got = unpacked(engine, needed, shape[1], width, dtype, rounding)
                    equal(got, nested.switch(codes, width, rounding=rounding), shape, dtype, rounding, width)


def gemv(engine, planes, x, outputs, batch, width):
    kernel = engine.kernel("planes", "gemv_planes", X_SIGNED=int(x.dtype == np.int8), BATCH=batch)
    y = np.zeros((len(x), outputs), np.int32)
    sizes = outputs, x.shape[1], len(x), width
    launch(engine, kernel, -(-outputs // 8), 256, planes, x, y, *sizes)
    return y


def assert_product(engine, weight, x, batch, widths=WIDTHS):
    planes = nested.to_planes(weight)
    for width in widths:
        got = gemv(engine, planes[:width], x, len(weight), batch, width)
        codes = nested.switch(weight, width, rounding="floor").astype(np.int32)
        equal(got, x.astype(np.int32) @ codes.T, weight.shape, x.shape, x.dtype, batch, width)


def check_gemv_of_every_size(engine):
    rng = np.random.default_rng(2)
    sizes = ((1, 1), (3, 77), (9, 128), (8, 144), (2, 4096), (11, 4224), (5, 8200))
    for outputs, length in sizes:
        weight = rng.integers(-128, 127, (outputs, length), np.int8, endpoint=True)
        for dtype in DTYPES:
            x = rng.integers(0, 256, (1, length), np.uint8).view(dtype)
            assert_product(engine, weight, x, 1)


def check_gemv_of_every_batch(engine):
    rng = np.random.default_rng(3)
    weight = rng.integers(-128, 127, (10, 300), np.int8, endpoint=True)
    for batch in (1, 2, 4, 8):
        for vectors in {1, batch - 1, batch} - {0}:
            x = rng.integers(0, 256, (vectors, 300), np.uint8)
            assert_product(engine, weight, x, batch, (1, 4, 8))
            assert_product(engine, weight, x.view(np.int8), batch, (2, 8))


def check_gemv_of_the_largest_sums(engine):
    length = 65_793  # the longest that int32 is sure to hold
    weight = np.full((2, length), -128, np.int8)
    weight[1] = 127
    assert_product(engine, weight, np.full((1, length), 255, np.uint8), 1, (1, 8))
    assert_product(engine, weight, np.full((1, length), -128, np.int8), 1, (1, 8))


SWITCH_CHECKS = (
    check_switch_of_every_code_beside_every_other,
    check_switch_of_every_length_and_alignment,
    check_floats_give_the_same_codes_where_products_are_exact,
    check_floats_are_rounded_as_float32,
)
PLANES_CHECKS = (
    check_planes_and_back,
    check_gemv_of_every_size,
    check_gemv_of_every_batch,
    check_gemv_of_the_largest_sums,
)
