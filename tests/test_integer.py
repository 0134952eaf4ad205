"""Integer arithmetic against Python integers, which have no width; its bounds; and every refusal."""

import re

import numpy as np
import oracle_checks as oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracle_checks import INTEGER_CHECKS, code_dtype, random_codes

from dqt_core import integer, nested

thorough = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.integers(1, 4)
signs = st.booleans()


@pytest.mark.parametrize("check", INTEGER_CHECKS, ids=lambda check: check.__name__)
def test_rules(check):
    check(integer)


def codes(shape, signed):
    """Codes of a shape, extremes often."""
    lo, hi = oracle.code_range(8, signed)
    return arrays(
        code_dtype(signed), shape, elements=st.one_of(st.sampled_from([lo, hi]), st.integers(lo, hi))
    )


def up_to_bits(largest):
    """Integers of both signs whose size in bits is uniform, so that small ones come, and the extremes."""
    every_size = st.integers(0, largest).flatmap(lambda bits: st.integers(-(2**bits) + 1, 2**bits - 1))
    return st.one_of(st.sampled_from([-(2**largest) + 1, 2**largest - 1]), every_size)


def int64(shape, elements):
    return arrays(np.int64, shape, elements=elements)


@given(st.data(), signs, sizes, st.integers(0, 9), sizes)
@thorough
def test_matmul(data, signed, rows, terms, outputs):
    x, weight = data.draw(codes((rows, terms), signed)), data.draw(codes((outputs, terms), True))
    oracle.assert_matmul(integer, x, weight)


@given(st.data(), signs, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
@thorough
def test_conv2d(data, signed, groups, stride, padding):
    height, width, inputs, outputs = (data.draw(st.integers(1, 3)) for _ in range(4))
    image = tuple(max(1, size - 2 * padding + data.draw(st.integers(0, 3))) for size in (height, width))
    x = data.draw(codes((data.draw(st.integers(1, 2)), *image, inputs * groups), signed))
    weight = data.draw(codes((outputs * groups, height, width, inputs), True))
    oracle.assert_conv2d(integer, x, weight, stride, padding, groups)


@given(st.data(), signs, st.integers(0, 7), st.integers(0, 7), st.integers(1, 2))
@thorough
def test_conv2d_mid_bin(data, signed, weight_drop, input_drop, groups):
    inputs, outputs = data.draw(sizes), data.draw(sizes)
    x = nested.switch(data.draw(codes((1, 3, 3, inputs * groups), signed)), 8 - input_drop, rounding="floor")
    master = data.draw(codes((outputs * groups, 2, 2, inputs), True))
    weight = nested.switch(master, 8 - weight_drop, rounding="floor")
    oracle.assert_conv2d_mid_bin(integer, x, weight, weight_drop, input_drop, 1, 1, groups)
    values = 2 * nested.dequantize(weight, 1.0, 8 - weight_drop, "floor")
    expected = np.einsum("nhwi,ohwi->o", x[..., :inputs][:, :2, :2].astype(float) * 2**input_drop, values)
    got = integer.conv2d_mid_bin(x, weight, weight_drop, input_drop, groups=groups)[0, 0, 0]
    np.testing.assert_array_equal(got[:outputs], expected[:outputs])


@given(st.data(), signs, st.integers(1, 3), st.integers(1, 3))
@thorough
def test_pools(data, signed, kernel, stride):
    padding = data.draw(st.integers(0, kernel - 1))
    shape = (data.draw(sizes), *(kernel + data.draw(st.integers(0, 3)) for _ in range(2)), data.draw(sizes))
    x = data.draw(codes(shape, signed))
    oracle.assert_max_pool(integer, x, kernel, stride, padding)
    oracle.assert_sum_pool(integer, x)


full_clamps = st.sampled_from([(-128, 127), (0, 255), (0, 127)])
clamps = st.one_of(
    full_clamps,
    st.sampled_from([(0, 0), (255, 255), (-128, -128)]),
    st.tuples(st.integers(-128, 127), st.integers(-128, 127)).map(sorted),
    st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted),
)


@st.composite
def requantize_terms(draw, images, channels):
    accumulators = st.one_of(st.just(-(2**31)), up_to_bits(31)) if draw(signs) else up_to_bits(16)
    a = draw(arrays(np.int32, (images, 2, 1, channels), elements=accumulators))
    drop = draw(st.one_of(st.integers(0, 14), int64((images, 1, 1, 1), st.integers(0, 14))))
    # the last bit passes the limit
    room = 63 - int(abs(a.astype(int)).max()).bit_length() - int(np.max(drop))
    multipliers = up_to_bits(min(draw(st.integers(1, room)), 31))
    multiplier = draw(st.one_of(multipliers, arrays(np.int32, channels, elements=multipliers)))
    return a, drop, multiplier


@given(st.data(), st.integers(1, 2), st.integers(1, 3), clamps)
@settings(thorough, max_examples=250)
def test_requantize(data, images, channels, clamp):
    terms = data.draw(st.lists(requantize_terms(images, channels), min_size=1, max_size=3))
    offsets = up_to_bits(data.draw(st.sampled_from([20, 40, 62])))
    offset = data.draw(st.one_of(offsets, int64(channels, offsets)))
    # an r of the sum's own size leaves results inside the clamp
    bits = oracle.sum_bound(terms, offset, 0).bit_length()
    of_the_sum = st.integers(bits - 9, bits - 4).map(lambda r: min(max(r, 1), 61))
    r = data.draw(st.one_of(of_the_sum, st.sampled_from([1, 2, 31, 60, 61])))
    oracle.assert_requantize(integer, terms, offset, r, *clamp)


@given(st.integers(1, 61), st.integers(-130, 260), st.sampled_from([-1, 0, 1]), full_clamps)
@thorough
def test_requantize_at_ties(r, code, beside, clamp):
    """Sums at, just below and just above the point halfway to the next code."""
    total = min((2 * code + 1) * 2 ** (r - 1) + beside, 2**61)
    oracle.assert_requantize(integer, [(np.zeros(1, np.int32), 0, 1)], max(total, -(2**61)), r, *clamp)


@given(st.data(), st.integers(1, 3))
@thorough
def test_scale(data, classes):
    a = data.draw(arrays(np.int32, (2, classes), elements=up_to_bits(31)))
    multiplier = data.draw(arrays(np.int32, classes, elements=up_to_bits(31)))
    oracle.assert_scale(integer, a, multiplier, data.draw(int64(classes, up_to_bits(62))))


def reals(smallest, largest):
    """Reals whose exponent is uniform."""
    return st.builds(np.ldexp, st.floats(-1, 1), st.integers(smallest, largest)).map(float)


@given(st.lists(reals(-70, 34), min_size=1, max_size=4), st.integers(1, 61))
@thorough
def test_fixed_point(ratios, r):
    oracle.assert_fixed_point(integer, np.array(ratios), r)


@given(st.lists(reals(-70, 31), min_size=1, max_size=4))
@thorough
def test_fixed_point_with_the_largest_shift(ratios):
    if not oracle.fits([(ratios, 2**31)], 0.0, 1):
        assert oracle.refuses(OverflowError, integer.fixed_point, ratios)
        return
    multipliers, r = integer.fixed_point(ratios)
    assert multipliers.tolist() == oracle.rounded(ratios, r)
    assert abs(multipliers.astype(int)).max() < 2**31
    assert r == 61 or not oracle.fits([(ratios, 2**31)], 0.0, r + 1)


@st.composite
def layers(draw):
    """Ratios and limits of one to three terms, and an offset, for the same channels."""
    channels = draw(st.integers(1, 3))
    rows = st.lists(reals(-60, 31), min_size=channels, max_size=channels)
    ratios = st.lists(rows, min_size=1, max_size=2)
    limits = st.one_of(st.sampled_from([1, 255, 2**31]), st.integers(1, 2**31))
    terms = draw(st.lists(st.tuples(ratios, limits), min_size=1, max_size=3))
    return terms, draw(st.lists(reals(-10, 62), min_size=channels, max_size=channels))


@given(layers())
@thorough
def test_largest_shift(layer):
    oracle.assert_largest_shift(integer, *layer)


@given(layers(), st.sampled_from([-1, 1]))
@thorough
def test_requantize_accepts_what_largest_shift_allows(layer, sign):
    terms, offset = layer
    if not oracle.fits(terms, offset, 1):
        return
    r = integer.largest_shift(terms, offset)
    worst = [(np.array([sign * limit]), 0, integer.fixed_point(ratios, r)[0]) for ratios, limit in terms]
    oracle.assert_requantize(integer, worst, np.array(oracle.rounded(offset, r)), r, -128, 127)
    assert not oracle.refuses(
        OverflowError, integer.requantize, worst, np.array(oracle.rounded(offset, r)), r
    )


@pytest.mark.parametrize(
    "product", [integer.matmul, lambda x, w: integer.conv2d(x[None, None], w[:, None, None])]
)
def test_the_largest_accumulator(product):
    """65,793 terms of -128 * 255 fit int32, one more does not; nor is there room for unsigned weights."""
    most, least = 65_793, -(2**31)
    assert -128 * 255 * (most + 1) < least <= -128 * 255 * most
    x, weight = np.full((1, most + 1), 255, np.uint8), np.full((1, most + 1), -128, np.int8)
    assert product(x[:, :-1], weight[:, :-1]).item() == -128 * 255 * most
    with pytest.raises(OverflowError, match=r"65794 .* at most 65793"):
        product(x, weight)
    assert 255 * 255 * most >= 2**31
    with pytest.raises(TypeError, match=r"int8 weights, got uint8"):
        product(x[:, :-1], x[:, :-1])


@pytest.mark.parametrize("width", range(1, 9))
def test_the_accumulator_bound_is_the_same_at_every_width(width):
    """Shifted back by d1 + d2 no product of two views passes 128 * 255."""
    for signed in (False, True):
        for x_width in range(1, 9):
            x = nested.switch(oracle.every_code(signed), x_width).astype(int) << (8 - x_width)
            weight = nested.switch(oracle.every_code(True), width).astype(int) << (8 - width)
            assert abs(x).max() * abs(weight).max() <= integer.LARGEST_PRODUCT


def test_largest_sum_pool():
    """8,421,504 pixels of 255 fit int32; a broadcast image needs no memory."""
    most = (2**31 - 1) // 255
    with pytest.raises(OverflowError, match=f"at most {most}"):
        integer.sum_pool(np.broadcast_to(np.uint8(255), (1, 1, most + 1, 1)))
    assert integer.sum_pool(np.broadcast_to(np.uint8(255), (1, 1, most, 1))).item() == 255 * most


def test_relu_is_a_clamp_at_zero():
    a = np.arange(-300, 300, dtype=np.int32)
    got = integer.requantize([(a, 0, 2)], 0, 1, lo=0, hi=255)
    np.testing.assert_array_equal(got, np.clip(a, 0, 255))


def test_no_images():
    x = np.zeros((0, 5, 5, 2), np.uint8)
    assert integer.conv2d(x, np.ones((3, 3, 3, 2), np.int8), 2, 1).shape == (0, 3, 3, 3)
    assert integer.max_pool(x, 2, 2).shape == (0, 2, 2, 2)
    assert integer.sum_pool(x).shape == (0, 1, 1, 2)
    drops = np.zeros((0, 1, 1, 1), int)
    assert integer.requantize([(np.zeros((0, 5, 5, 2), np.int32), drops, 1)], 0, 8).shape == (0, 5, 5, 2)
    assert integer.fixed_point([])[0].shape == (0,)


@pytest.mark.parametrize("order", ["<i4", ">i4"])
def test_byte_order_does_not_matter(order):
    a = np.array([70_000, -70_000], order)
    assert integer.requantize([(a, 0, np.array([3, 5], order))], np.array([2**11], order), 12).tolist() == [
        52,
        -85,
    ]
    assert integer.scale(a, np.array([3, 5], order), np.array([1], order)).tolist() == [210_001, -349_999]


@pytest.mark.parametrize(
    "reordered", [lambda x: x[:, ::-1, ::2], lambda x: x.transpose(0, 2, 1, 3), np.asfortranarray]
)
def test_memory_order_does_not_matter(reordered):
    x, weight = reordered(random_codes((2, 6, 6, 4), True)), random_codes((4, 3, 2, 4), True, seed=1)
    oracle.assert_conv2d(integer, x, weight[::-1, :, ::-1], 1, 1, 1)
    oracle.assert_matmul(integer, x, weight[:, 0, 0, ::-1])
    oracle.assert_max_pool(integer, x, 2, 2, 1)


@pytest.mark.parametrize("integer_type", [np.int8, np.uint8, np.int32, np.uint64])
def test_shifts_of_any_integer_type(integer_type):
    a = np.array([5, 7, -6], np.int32)
    expected = integer.requantize([(a, 12, 2**30)], 0, 38).tolist()
    got = integer.requantize([(a, integer_type(12), 2**30)], 0, integer_type(38))
    assert got.tolist() == expected == [80, 112, -96]
    drops = np.array([12, 12, 12], integer_type)
    assert integer.requantize([(a, drops, 2**30)], 0, 38).tolist() == expected
    assert integer.fixed_point([0.5], integer_type(20))[0].tolist() == [2**19]


X = np.zeros((1, 4, 4, 6), np.uint8)
W = np.zeros((4, 3, 3, 6), np.int8)
A = np.array([1, 2], np.int32)

REFUSALS = [
    # call, error, what came, what was expected
    (
        lambda: integer.require_accumulator(65_794),
        OverflowError,
        "65794 products of up to 32640",
        "at most 65793",
    ),
    (lambda: integer.matmul(A, W[0, 0]), TypeError, "int32", "int8 or uint8"),
    (lambda: integer.matmul(X, W[:, 0, 0].astype(float)), TypeError, "float64", "int8 or uint8"),
    (lambda: integer.matmul([1], W), TypeError, "list", "int8 or uint8"),
    (lambda: integer.matmul(X, X[0, 0]), TypeError, "uint8", "int8 weights"),
    (
        lambda: integer.matmul(X, W[:, 0, 0, :5]),
        ValueError,
        "(1, 4, 4, 6) and (4, 5)",
        "(..., K) and weight (O, K)",
    ),
    (lambda: integer.matmul(X, W[0, 0, 0]), ValueError, "(6,)", "weight (O, K)"),
    (lambda: integer.matmul(X[0, 0, 0, 0], W[:, 0, 0]), ValueError, "() and (4, 6)", "x (..., K)"),
    (lambda: integer.conv2d(X.astype(np.int16), W), TypeError, "int16", "int8 or uint8"),
    (lambda: integer.conv2d(X, W.astype(np.int64)), TypeError, "int64", "int8 or uint8"),
    (lambda: integer.conv2d(X, W.view(np.uint8)), TypeError, "uint8", "int8 weights"),
    (lambda: integer.conv2d(X[0], W), ValueError, "(4, 4, 6)", "(N, H, W, I)"),
    (lambda: integer.conv2d(X, W[0]), ValueError, "(3, 3, 6)", "(O, h, w, I/groups)"),
    (lambda: integer.conv2d(X[..., :5], W), ValueError, "5 channels", "expects 6"),
    (lambda: integer.conv2d(X, W, groups=2), ValueError, "6 channels", "expects 12"),
    (
        lambda: integer.conv2d(X, W[:3, :, :, :3], groups=2),
        ValueError,
        "(3, 3, 3, 3)",
        "multiple of 2 outputs",
    ),
    (lambda: integer.conv2d(X, W, groups=0), ValueError, "groups=0", "positive"),
    (lambda: integer.conv2d(X, W[:, :0]), ValueError, "(4, 0, 3, 6)", "positive"),
    (lambda: integer.conv2d(X, W, stride=0), ValueError, "stride 0", "positive kernel and stride"),
    (lambda: integer.conv2d(X, W, stride=-1), ValueError, "stride -1", "positive kernel and stride"),
    (lambda: integer.conv2d(X, W, padding=-1), ValueError, "padding -1", "padding from 0"),
    (lambda: integer.conv2d(X[:, :2], W), ValueError, "kernel 3x3", "padded image 2x4"),
    (lambda: integer.conv2d_mid_bin(X, W, 8, 0), ValueError, "8 bits", "0..7"),
    (lambda: integer.conv2d_mid_bin(X, W, 0, -1), ValueError, "-1 bits", "0..7"),
    (lambda: integer.conv2d_mid_bin(X + 16, W, 0, 4), ValueError, "16..16", "0..15 at width 4"),
    (lambda: integer.conv2d_mid_bin(X, W - 9, 4, 0), ValueError, "-9..-9", "-8..7 at width 4"),
    (lambda: integer.conv2d_mid_bin(X, [1], 4, 0), TypeError, "list", "int8 or uint8"),
    (lambda: integer.conv2d_mid_bin(X, X, 4, 0), TypeError, "uint8", "int8 weights"),
    (lambda: integer.conv2d_mid_bin(X[0], W, 4, 0), ValueError, "(4, 4, 6)", "(N, H, W, I)"),
    (lambda: integer.sum_pool(X[0]), ValueError, "(4, 4, 6)", "(N, H, W, C)"),
    (lambda: integer.sum_pool(A), TypeError, "int32", "int8 or uint8"),
    (lambda: integer.max_pool(A, 2, 2), TypeError, "int32", "int8 or uint8"),
    (lambda: integer.lookup(X, A), TypeError, "int32", "int8 or uint8"),
    (lambda: integer.lookup(X, X[0, 0]), ValueError, "(4, 6)", "(1 or C, 256)"),
    (lambda: integer.product(X, A), TypeError, "int32", "int8 or uint8"),
    (lambda: integer.product(X, X[:, :1]), ValueError, "(1, 1, 4, 6)", "(N, 1, 1, C)"),
    (lambda: integer.max_pool(X[0], 2, 2), ValueError, "(4, 4, 6)", "(N, H, W, C)"),
    (lambda: integer.max_pool(X, 2, 0), ValueError, "stride 0", "positive kernel and stride"),
    (lambda: integer.max_pool(X, 2, 2, -1), ValueError, "padding -1", "padding from 0"),
    (lambda: integer.max_pool(X, 2, 2, 2), ValueError, "padding 2", "below the kernel 2"),
    (lambda: integer.max_pool(X, 5, 1), ValueError, "kernel 5x5", "padded image 4x4"),
    (lambda: integer.requantize([(A * 1.0, 0, 1)], 0, 1), TypeError, "float64", "expected integers"),
    (lambda: integer.requantize([(A, 0.0, 1)], 0, 1), TypeError, "float64", "expected integers"),
    (lambda: integer.requantize([(A, 0, 0.5)], 0, 1), TypeError, "float64", "expected integers"),
    (lambda: integer.requantize([(A, 0, 1)], 0.5, 1), TypeError, "float64", "expected integers"),
    (lambda: integer.requantize([(A, 0, 1)], 2**64, 1), TypeError, "object", "integers of at most 64 bits"),
    (lambda: integer.requantize([(A > 1, 0, 1)], 0, 1), TypeError, "bool", "expected integers"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 1.0), TypeError, "float", "integer"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 1, 0.0, 255.0), TypeError, "float", "integer"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 0), ValueError, "r is 0", "1..61"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 62), ValueError, "r is 62", "1..61"),
    (lambda: integer.requantize([(A, -1, 1)], 0, 1), ValueError, "d is -1", "0..61"),
    (lambda: integer.requantize([(A, np.array([0, 62]), 1)], 0, 1), ValueError, "d is 0..62", "0..61"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 1, -129, 127), ValueError, "-129..127", "int8 (-128..127)"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 1, 0, 256), ValueError, "0..256", "uint8 (0..255)"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 1, -1, 128), ValueError, "-1..128", "int8 (-128..127)"),
    (lambda: integer.requantize([(A, 0, 1)], 0, 1, 5, 4), ValueError, "5..4", "uint8 (0..255)"),
    (lambda: integer.requantize([(A, 0, 2**31)], 0, 1), OverflowError, "2147483648", "below 2**31"),
    (lambda: integer.requantize([(A, 0, 1)], 2**62, 1), OverflowError, str(2**62 + 3), "below 2**62"),
    (
        lambda: integer.requantize([(A, 0, A), (A[[0, 0, 0]], 0, 1)], 0, 1),
        ValueError,
        "(2,) (3,)",
        "broadcast",
    ),
    (lambda: integer.scale(A * 1.0, A, A), TypeError, "float64", "expected integers"),
    (lambda: integer.scale(A, A * 1.0, A), TypeError, "float64", "expected integers"),
    (lambda: integer.scale(A, A, A * 1.0), TypeError, "float64", "expected integers"),
    (lambda: integer.scale(A, A, np.array(2**62 - 1)), OverflowError, str(2**62 + 3), "below 2**62"),
    (lambda: integer.scale(A, np.array(-(2**31)), A), OverflowError, "2147483648", "below 2**31"),
    (lambda: integer.fixed_point([0.5], 62), ValueError, "r is 62", "1..61"),
    (lambda: integer.fixed_point([0.5], 0), ValueError, "r is 0", "1..61"),
    (lambda: integer.fixed_point([0.5, -3.0], 30), OverflowError, "ratio 3.0 times 2**30", "smaller r"),
    (lambda: integer.fixed_point([1e300], 61), OverflowError, "1e+300", "smaller r"),
    (lambda: integer.fixed_point([np.nan], 4), OverflowError, "nan", "smaller r"),
    (lambda: integer.fixed_point([np.inf]), OverflowError, "[inf]", "finite"),
    (lambda: integer.largest_shift([([2.0**30], 1)], [0.0]), OverflowError, "[1073741824.0]", "below 2**30"),
    (
        lambda: integer.largest_shift([([0.5], 1)], [-(2.0**61)]),
        OverflowError,
        "2.305843009213694e+18",
        "2**61",
    ),
    (lambda: integer.largest_shift([([np.nan], 1)], [0.0]), OverflowError, "[nan]", "finite"),
    (lambda: integer.largest_shift([([0.5], 1)], [np.inf]), OverflowError, "inf", "finite"),
]


@pytest.mark.parametrize(("call", "error", "came", "expected"), REFUSALS)
def test_refusals_say_what_came_and_what_was_expected(call, error, came, expected):
    with pytest.raises(error, match=re.escape(came)) as refusal:
        call()
    assert expected in str(refusal.value)
