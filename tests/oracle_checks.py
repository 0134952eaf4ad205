"""The rules of nested codes and integer arithmetic in Python integers, and checks of a module against them.

A check takes the module it judges as its argument.
"""

import itertools
import math
from fractions import Fraction

import numpy as np

WIDTHS = range(1, 9)
HALF = Fraction(1, 2)
SUM_LIMIT = 2**62


def round_half_up(value):
    return math.floor(value + HALF)


def clamp(value, lo, hi):
    return max(lo, min(value, hi))


def equal(got, expected, dtype):
    assert got.dtype == dtype, f"dtype {got.dtype}, expected {np.dtype(dtype)}"
    np.testing.assert_array_equal(got, np.array(expected))


def refuses(error, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error:
        return True
    return False


def code_range(width, signed):
    return (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)


def half_up(code, width, signed):
    return min(round_half_up(Fraction(code, 2 ** (8 - width))), code_range(width, signed)[1])


def floor(code, width, signed):
    return math.floor(Fraction(code, 2 ** (8 - width)))


def shift_plus_epsilon(code, width, signed):
    """DQT, Eq. 4: epsilon is the top dropped bit, 0 where it would overflow."""
    drop = 8 - width
    epsilon = (code >> (drop - 1)) & 1 if drop else 0
    return min((code >> drop) + epsilon, code_range(width, signed)[1])


def half_to_even(code, width, signed):
    return min(round(Fraction(code, 2 ** (8 - width))), code_range(width, signed)[1])


ROUNDINGS = {"half_up": half_up, "floor": floor}
EVERY_VIEW = list(itertools.product(WIDTHS, (False, True), ROUNDINGS))


def code_dtype(signed):
    return np.int8 if signed else np.uint8


def every_code(signed):
    lo, hi = code_range(8, signed)
    return np.arange(lo, hi + 1).astype(code_dtype(signed))


def expected_view(codes, width, signed, rounding):
    return [ROUNDINGS[rounding](code, width, signed) for code in codes.tolist()]


def check_code_range(nested):
    for width, signed in itertools.product(WIDTHS, (False, True)):
        assert nested.code_range(width, signed) == code_range(width, signed)


def check_switch(nested):
    for width, signed, rounding in EVERY_VIEW:
        master = every_code(signed)
        view = nested.switch(master, width, signed=signed, rounding=rounding)
        equal(view, expected_view(master, width, signed, rounding), code_dtype(signed))
        np.testing.assert_array_equal(master, every_code(signed), "the master was written to")


def check_dequantize(nested):
    for width, signed, rounding in EVERY_VIEW:
        lo, hi = code_range(width, signed)
        codes = np.arange(lo, hi + 1).astype(code_dtype(signed))
        bin_size = 2 ** (8 - width)
        middle = Fraction(bin_size - 1, 2) if signed and rounding == "floor" else 0
        values = [float((code * bin_size + middle) / 4) for code in range(lo, hi + 1)]
        equal(nested.dequantize(codes, 0.25, width, rounding), values, np.float64)


def check_quantize(nested):
    numbers = np.arange(-1200, 1200) / 8  # steps of a power of two make the quotients, and so the ties, exact
    for signed, step in itertools.product((False, True), (0.5, 1.0, 2.0)):
        codes, _ = nested.quantize(numbers, signed=signed, step=step)
        lo, hi = code_range(8, signed)
        rounded = [round_half_up(Fraction(x) / Fraction(step)) for x in numbers.tolist()]
        equal(codes, [clamp(code, lo, hi) for code in rounded], code_dtype(signed))


def check_quantize_steps(nested):
    x = np.array([[[1.0, -4.0]], [[0.0, 0.0]], [[-0.5, 0.25]]])
    for axis, shape, largest in (
        (0, (3, 1, 1), [4.0, 1.0, 0.5]),
        (-1, (1, 1, 2), [1.0, 4.0]),
        (None, (), [4.0]),
    ):
        for signed, hi in ((True, 127), (False, 255)):
            codes, step = nested.quantize(x, signed=signed, axis=axis)
            np.testing.assert_array_equal(step, np.reshape(largest, shape) / hi)
            assert codes.shape == x.shape
    assert nested.quantize(x, axis=0)[0].tolist() == [[[32, -127]], [[0, 0]], [[-127, 64]]]


def plane_bytes(codes, plane):
    """One plane of a row of codes, from the binary digits."""
    digits = "".join(format(code & 255, "08b")[plane] for code in codes)
    digits += "0" * (-len(digits) % 8)
    return [int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)]


def check_to_planes(nested):
    for signed, length in itertools.product((False, True), (0, 1, 7, 8, 9, 256)):
        codes = every_code(signed)[-length:] if length else every_code(signed)[:0]
        expected = np.array([plane_bytes(codes.tolist(), plane) for plane in range(8)]).reshape(8, -1)
        equal(nested.to_planes(codes), expected, np.uint8)


def check_from_planes(nested):
    for width, signed, rounding in EVERY_VIEW:
        codes = every_code(signed)
        needed = min(width + 1, 8) if rounding == "half_up" else width
        stored = np.array([plane_bytes(codes.tolist(), plane) for plane in range(needed)], np.uint8)
        expected = expected_view(codes, width, signed, rounding)
        equal(nested.from_planes(stored, width, signed, rounding), expected, code_dtype(signed))
        # 250 is no multiple of 8: the fill of the last byte is not read
        short = nested.from_planes(stored, width, signed, rounding, length=250)
        equal(short, expected[:250], code_dtype(signed))
        assert refuses(ValueError, nested.from_planes, stored[:-1], width, signed, rounding)


NESTED_CHECKS = [
    check_code_range,
    check_switch,
    check_dequantize,
    check_quantize,
    check_quantize_steps,
    check_to_planes,
    check_from_planes,
]


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def assert_matmul(integer, x, weight):
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).tolist()
    expected = [[dot(row, column) for column in weight.tolist()] for row in rows]
    shape = (*x.shape[:-1], len(weight))
    equal(integer.matmul(x, weight), np.array(expected, np.int64).reshape(shape), np.int32)


def convolution(x, weight, stride, padding, groups):
    images, kernels, outputs = x.tolist(), weight.tolist(), len(weight)
    height, width = ((x.shape[axis] + 2 * padding - weight.shape[axis]) // stride + 1 for axis in (1, 2))
    sums = [
        convolved(
            image, kernels[o], row * stride - padding, column * stride - padding, o // (outputs // groups)
        )
        for image, row, column, o in itertools.product(images, range(height), range(width), range(outputs))
    ]
    return np.array(sums, np.int64).reshape(len(x), height, width, outputs)


def convolved(image, kernel, top, left, group):
    """One accumulator: the kernel laid on the image at a corner that may lie in the padding."""
    inputs = len(kernel[0][0])
    of_the_group = slice(group * inputs, (group + 1) * inputs)
    total = 0
    for i, j in itertools.product(range(len(kernel)), range(len(kernel[0]))):
        if 0 <= top + i < len(image) and 0 <= left + j < len(image[0]):
            total += dot(image[top + i][left + j][of_the_group], kernel[i][j])
    return total


def assert_conv2d(integer, x, weight, *window):
    got = integer.conv2d(x, weight, *window)
    equal(got, convolution(x, weight, *window), np.int32)


def assert_conv2d_mid_bin(integer, x, weight, weight_drop, input_drop, *window):
    """Every weight is the middle of its bin, counted in half master steps."""
    bins = weight.astype(np.int64) << weight_drop
    middles = bins + (bins + 2**weight_drop - 1)
    expected = convolution(x.astype(np.int64) << input_drop, middles, *window)
    equal(integer.conv2d_mid_bin(x, weight, weight_drop, input_drop, *window), expected, np.int32)


def assert_sum_pool(integer, x):
    sums = x.astype(object).sum(axis=(1, 2), keepdims=True)
    equal(integer.sum_pool(x), sums.astype(np.int64), np.int32)


def assert_max_pool(integer, x, kernel, stride, padding):
    got = integer.max_pool(x, kernel, stride, padding)
    images, height, width, channels = x.shape
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    expected = np.empty((images, rows, columns, channels), np.int64)
    for row, column in itertools.product(range(rows), range(columns)):
        top, left = row * stride - padding, column * stride - padding
        window = x[:, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
        expected[:, row, column] = window.max(axis=(1, 2))
    equal(got, expected, x.dtype)


def scaled_terms(terms, offset):
    """For every element of the result: its list of (a << d) * M, and its B."""
    every = np.broadcast_arrays(offset, *itertools.chain.from_iterable(terms))
    for b, *numbers in zip(*(values.ravel().tolist() for values in every), strict=True):
        yield [a * 2**d * m for a, d, m in zip(*[iter(numbers)] * 3, strict=True)], b


def sum_bound(terms, offset, r):
    """Largest sum of magnitudes; ``r=0`` for a sum without rounding."""
    half = 2 ** (r - 1) if r else 0
    return max(sum(map(abs, products)) + abs(b) + half for products, b in scaled_terms(terms, offset))


def assert_requantize(integer, terms, offset, r, lo, hi):
    if sum_bound(terms, offset, r) >= SUM_LIMIT:
        assert refuses(OverflowError, integer.requantize, terms, offset, r, lo, hi)
        return
    shape = np.broadcast_shapes(np.shape(offset), *(np.shape(values) for term in terms for values in term))
    expected = [
        clamp((2 * (sum(products) + b) + 2**r) // 2 ** (r + 1), lo, hi)  # ties up, in integers
        for products, b in scaled_terms(terms, offset)
    ]
    got = integer.requantize(terms, offset, r, lo, hi)
    equal(got, np.array(expected).reshape(shape), np.uint8 if lo >= 0 else np.int8)


def assert_scale(integer, a, multiplier, offset):
    if sum_bound([(a, 0, multiplier)], offset, 0) >= SUM_LIMIT:
        assert refuses(OverflowError, integer.scale, a, multiplier, offset)
        return
    expected = a.astype(object) * multiplier.astype(object) + offset.astype(object)
    equal(integer.scale(a, multiplier, offset), expected.astype(np.int64), np.int64)


def rounded(ratios, r):
    return [round_half_up(Fraction(ratio) * 2**r) for ratio in np.ravel(ratios).tolist()]


def assert_fixed_point(integer, ratios, r):
    expected = rounded(ratios, r)
    if max(map(abs, expected)) >= 2**31:
        assert refuses(OverflowError, integer.fixed_point, ratios, r)
        return
    multipliers, shift = integer.fixed_point(ratios, r)
    assert shift == r
    equal(multipliers, expected, np.int32)


def rounded_rows(table, r):
    return [np.array(rounded(row, r), object) for row in np.atleast_2d(table)]


def fits(terms, offset, r):
    """Whether r keeps every multiplier below 2**31, and every sum below 2**62 for any rows of the tables."""
    *multipliers, offsets = [rounded_rows(table, r) for table in (*(ratios for ratios, _ in terms), offset)]
    sums = [
        abs(b) + 2 ** (r - 1) + sum(abs(m) * limit for m, (_, limit) in zip(rows, terms, strict=True))
        for *rows, b in itertools.product(*multipliers, offsets)
    ]
    largest = max(abs(row).max() for rows in multipliers for row in rows)
    return largest < 2**31 and max(row.max() for row in sums) < SUM_LIMIT


def assert_largest_shift(integer, terms, offset):
    largest = next((r for r in range(61, 0, -1) if fits(terms, offset, r)), None)
    if largest is None:
        assert refuses(OverflowError, integer.largest_shift, terms, offset)
    else:
        assert integer.largest_shift(terms, offset) == largest
        assert largest == 61 or not fits(terms, offset, largest + 1)


def random_codes(shape, signed, seed=0):
    """Codes with both extremes among them."""
    lo, hi = code_range(8, signed)
    codes = np.random.default_rng(seed).integers(lo, hi + 1, shape)
    codes.flat[:2] = lo, hi
    return codes.astype(code_dtype(signed))


def check_matmul(integer):
    for signed in (False, True):
        assert_matmul(integer, random_codes((2, 3, 5), signed), random_codes((4, 5), True, seed=1))
        assert_matmul(integer, random_codes((7,), signed), random_codes((1, 7), True, seed=1))


CONVOLUTIONS = [
    # image, kernel, stride, padding, groups
    ((1, 5, 4, 3), (2, 3, 3, 3), 1, 1, 1),
    ((2, 6, 5, 6), (4, 3, 2, 3), 2, 1, 2),
    ((1, 7, 7, 4), (4, 3, 3, 1), 2, 0, 4),
    ((1, 4, 4, 3), (6, 3, 3, 1), 1, 2, 3),
    ((2, 3, 3, 5), (4, 1, 1, 5), 2, 0, 1),
]


def check_conv2d(integer):
    for signed, (image, kernel, *window) in itertools.product((False, True), CONVOLUTIONS):
        assert_conv2d(integer, random_codes(image, signed), random_codes(kernel, True, seed=1), *window)


def check_conv2d_mid_bin(integer):
    drops = [(0, 0), (1, 7), (4, 3), (7, 0), (7, 7)]
    for signed, (image, kernel, *window), (weight_drop, input_drop) in itertools.product(
        (False, True), CONVOLUTIONS, drops
    ):
        x = random_codes(image, signed) >> input_drop
        weight = random_codes(kernel, True, seed=1) >> weight_drop
        assert_conv2d_mid_bin(integer, x, weight, weight_drop, input_drop, *window)


def check_mid_bin_accumulator(integer):
    """At full width a weight is -256 half steps: 32,896 products of -256 * 255 fit int32, no more."""
    x, weight = np.full((1, 1, 1, 32_897), 255, np.uint8), np.full((1, 1, 1, 32_897), -128, np.int8)
    assert_conv2d_mid_bin(integer, x[..., 1:], weight[..., 1:], 0, 0, 1, 0, 1)
    assert refuses(OverflowError, integer.conv2d_mid_bin, x, weight, 0, 0)


def check_pools(integer):
    for signed in (False, True):
        x = random_codes((2, 5, 6, 3), signed)
        lowest = np.full_like(x, code_range(8, signed)[0])
        for codes, kernel, stride, padding in itertools.product((x, lowest), (1, 2, 3), (1, 2), (0, 1)):
            assert_sum_pool(integer, codes)
            if padding < kernel:
                assert_max_pool(integer, codes, kernel, stride, padding)
        assert_sum_pool(integer, np.full((1, 300, 300, 1), code_range(8, signed)[0], x.dtype))


def check_requantize(integer):
    near = np.arange(-600, 600, dtype=np.int32)  # ties of both signs, and both sides of every clamp edge
    for r, (lo, hi) in itertools.product((1, 2), ((-128, 127), (0, 255), (0, 100), (-3, 5), (7, 7))):
        assert_requantize(integer, [(near, 0, 1)], 0, r, lo, hi)
        assert_requantize(integer, [(near, 1, -3)], -5, r, lo, hi)


def check_requantize_terms(integer):
    """A residual addition: per-image d, per-channel M, and terms that only together stay inside the clamp."""
    shape = (3, 4, 4, 4)
    drops, skip_drops = (np.array(d).reshape(3, 1, 1, 1) for d in ((0, 5, 14), (6, 0, 4)))
    accumulator = np.random.default_rng(0).integers(-(2**17), 2**17, shape).astype(np.int32) >> drops
    skip = random_codes(shape, True) >> skip_drops
    gains = np.array([2**20, -(2**20) - 1, 12345, 2**19 + 1], np.int32)
    offset = np.array([0, 2**33 + 1, -(2**34), 7])
    terms = [(accumulator, drops, gains), (skip, skip_drops, 2**30)]
    assert sum_bound(terms, offset, 31) < SUM_LIMIT
    for r, lo in itertools.product((30, 31, 32), (-128, 0)):
        assert_requantize(integer, terms, offset, r, lo, 127)
    assert_requantize(integer, [(np.array([900]), 3, 1), (np.array([-890]), 3, 1)], 2, 1, -128, 127)


def check_requantize_extremes(integer):
    extremes = np.array([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], np.int32)
    for multiplier, r in itertools.product((2**31 - 1, -(2**31) + 1, 1), (1, 30, 31, 32, 55, 61)):
        assert_requantize(integer, [(extremes, 0, multiplier)], 0, r, -128, 127)
    for a, r in itertools.product((-1, 0, 1), (1, 2, 60, 61)):
        for b in (2**62 - 2 ** (r - 1) - 1, 2**62 - 2 ** (r - 1) - 2, 2 ** (r - 1) - 1, 2 ** (r - 1)):
            for sign in (1, -1):
                assert_requantize(integer, [(np.array([a]), 0, 1)], sign * b, r, -128, 127)


def check_scale(integer):
    a = np.array([[-(2**31), 3, 2**31 - 1], [1, -1, 0]])
    multiplier = np.array([2**31 - 1, -7, -(2**31) + 1], np.int32)
    assert_scale(integer, a.astype(np.int32), multiplier, np.array([1, -(2**61), 2**31]))
    for last in (2**62 - 2, 2**62 - 1, 2**62):
        for sign in (1, -1):
            assert_scale(integer, np.array([0], np.int32), np.array([1], np.int32), np.array([sign * last]))


def check_sum_limit(integer):
    """2**62 - 1 is accepted and 2**62 refused, whatever brings it there; multipliers likewise at 2**31."""
    for a, d, m in ((2**31 - 1, 0, 2**31 - 1), (-(2**31), 0, -1), (3, 14, 2**31 - 1), (-5, 13, 77)):
        room = 2**62 - abs(a * 2**d * m)
        for r, excess in itertools.product((1, 16), (-1, 0, 1)):
            b = room - 2 ** (r - 1) + excess
            arguments = [(np.array([a]), d, m)], -b, r
            assert refuses(OverflowError, integer.requantize, *arguments) == (excess >= 0)
    for m, refused in ((2**31 - 1, False), (2**31, True), (-(2**31), True)):
        assert refuses(OverflowError, integer.requantize, [(np.array([0]), 0, m)], 0, 1) == refused
    # the largest a and the largest M meet in no sum
    terms = [
        (np.array([2**31 - 1, 1]), 0, np.array([1, 2**31 - 1])),
        (np.array([0, 2**31 - 1]), 0, 2**31 - 1),
    ]
    assert not refuses(OverflowError, integer.requantize, terms, 2**30, 1)


def check_fixed_point(integer):
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999999999999994, -0.5000000000000001])
    for r in (1, 31, 61):
        assert_fixed_point(integer, np.ldexp(ties, -r), r)
        for edge in (2**31 - 1, 2**31 - 0.5, 2**31, -(2**31) - 0.5, -(2**31) + 0.5):
            assert_fixed_point(integer, np.array([math.ldexp(edge, -r)]), r)


def check_largest_shift(integer):
    top = 2.0**31 - 1
    for r in (1, 2, 30, 60, 61):
        for edge in (top, top + 0.25, top + 0.5, -top - 0.5, -top - 0.75, 2.0**31):
            assert_largest_shift(integer, [([math.ldexp(edge, -r), 0.0], 1)], [0.0])
    for shift, excess in itertools.product((1, 8, 31), (-1, 0, 1)):
        # at r = shift the sum is 2**62 + excess
        offset = math.ldexp(2**31 - 2 ** (shift - 1) + excess, -shift)
        assert_largest_shift(integer, [([math.ldexp(top, -shift)], 2**31)], [offset])
    assert_largest_shift(integer, [([0.5], 2**31 - 1), ([0.001, 0.3], 255)], [10.0, 0.0])
    assert_largest_shift(integer, [([2.0**-40], 2**31), ([2.0**-40, 0.0], 2**31)], [3.0, 2.0])
    assert_largest_shift(integer, [([0.0], 2**31)], [2.0**61])
    # the rows are not paired: the first of one table meets the second of the other
    assert_largest_shift(integer, [([[0.5], [0.0]], 2**31), ([[0.0], [0.5]], 2**31)], [[0.0], [0.5]])
    # rounded beyond 2**52, where adding 1/2 to a float64 rounds a second time
    assert_largest_shift(integer, [([0.0], 1)], [2.0 - 2.0**-51])


def check_accumulator(integer):
    for terms, product, refused in (
        (65_793, 128 * 255, False),
        (65_794, 128 * 255, True),
        (2**31 - 1, 1, False),
        (2**31, 1, True),
    ):
        assert refuses(OverflowError, integer.require_accumulator, terms, product) == refused
    assert not refuses(OverflowError, integer.require_accumulator, 65_793)
    assert refuses(OverflowError, integer.require_accumulator, 65_794)


INTEGER_CHECKS = [
    check_matmul,
    check_conv2d,
    check_conv2d_mid_bin,
    check_mid_bin_accumulator,
    check_pools,
    check_requantize,
    check_requantize_terms,
    check_requantize_extremes,
    check_scale,
    check_sum_limit,
    check_fixed_point,
    check_largest_shift,
    check_accumulator,
]
