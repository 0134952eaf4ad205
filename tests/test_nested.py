"""Nested codes over every code, width, sign and rounding, against Python integers; and every refusal."""

import itertools
import re
from fractions import Fraction

import numpy as np
import oracle_checks as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from oracle_checks import EVERY_VIEW, NESTED_CHECKS, code_dtype, every_code

from dqt_core import nested

SIGNS = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
DROPPING = range(1, 8)


@pytest.mark.parametrize("check", NESTED_CHECKS, ids=lambda check: check.__name__)
def test_rules(check):
    check(nested)


def differing(first, second, signed=False):
    return sum(first(code) != second(code) for code in every_code(signed).tolist())


@SIGNS
@pytest.mark.parametrize("width", range(1, 9))
def test_half_up_is_shift_plus_epsilon(width, signed):
    for code, switched in zip(
        every_code(signed).tolist(), nested.switch(every_code(signed), width), strict=True
    ):
        assert switched == oracle.shift_plus_epsilon(code, width, signed)


def along(path, signed, rounding):
    """The master codes switched from each width of the path to the next."""
    codes = every_code(signed)
    for width in path:
        switched = nested.switch(codes, width, rounding=rounding)
        codes = switched << (8 - width)
    return switched


@SIGNS
def test_floor_composes_along_every_path(signed):
    widths = range(8, 0, -1)
    paths = [path for length in range(1, 9) for path in itertools.combinations(widths, length)]
    assert len(paths) == 255
    for path in paths:
        direct = nested.switch(every_code(signed), path[-1], rounding="floor")
        np.testing.assert_array_equal(along(path, signed, "floor"), direct, f"path {path}")


def test_half_up_does_not_compose():
    direct = nested.switch(every_code(signed=False), 2)
    assert np.count_nonzero(along((4, 2), False, "half_up") != direct) == 24


@pytest.mark.parametrize(("width", "equal"), [(2, 160), (3, 144), (4, 136), (5, 132), (6, 130), (7, 129)])
def test_plain_shift_is_rarely_half_up(width, equal):
    codes = every_code(signed=False)
    assert np.count_nonzero(codes >> (8 - width) == nested.switch(codes, width)) == equal
    np.testing.assert_array_equal(nested.switch(codes, width, rounding="floor"), codes >> (8 - width))


@pytest.mark.parametrize(("width", "count"), [(2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 64)])
def test_half_to_even_is_not_half_up(width, count):
    switched = nested.switch(every_code(signed=False), width)
    even = [oracle.half_to_even(code, width, False) for code in range(256)]
    assert np.count_nonzero(switched != even) == count


@SIGNS
@pytest.mark.parametrize("drop", DROPPING)
def test_bias_of_floor(drop, signed):
    codes = every_code(signed)
    restored = nested.switch(codes, 8 - drop, rounding="floor").astype(int) << drop
    assert Fraction(int((codes - restored).sum()), 256) == Fraction(2**drop - 1, 2)


@pytest.mark.parametrize("drop", DROPPING)
def test_floor_weights_are_read_at_the_middle_of_their_bin(drop):
    weights = every_code(signed=True)
    switched = nested.switch(weights, 8 - drop, rounding="floor")
    error = weights - nested.dequantize(switched, 1.0, 8 - drop, "floor")
    assert error.sum() == 0
    assert (error.min(), error.max()) == (-(2**drop - 1) / 2, (2**drop - 1) / 2)


@given(
    st.booleans().flatmap(
        lambda signed: arrays(code_dtype(signed), array_shapes(max_dims=4, min_side=0, max_side=17))
    ),
    st.integers(1, 8),
    st.sampled_from(["half_up", "floor"]),
)
@settings(deadline=None)
def test_planes_of_any_shape(codes, width, rounding):
    planes = nested.to_planes(codes)
    assert planes.shape == (8, *codes.shape[:-1], -(-codes.shape[-1] // 8))
    signed, length = codes.dtype == np.int8, codes.shape[-1]
    np.testing.assert_array_equal(nested.from_planes(planes, 8, signed, length=length), codes)
    view = nested.from_planes(planes, width, signed, rounding, length)
    np.testing.assert_array_equal(view, nested.switch(codes, width, rounding=rounding))
    assert view.dtype == codes.dtype


def test_planes_are_read_as_signed_codes_where_nothing_is_said():
    planes = nested.to_planes(every_code(True))
    np.testing.assert_array_equal(nested.from_planes(planes), every_code(True))
    assert nested.from_planes(planes).dtype == np.int8


@pytest.mark.parametrize(("width", "signed", "rounding"), EVERY_VIEW)
def test_only_the_needed_planes_are_read(width, signed, rounding):
    planes = nested.to_planes(every_code(signed))
    needed = min(width + 1, 8) if rounding == "half_up" else width
    expected = nested.switch(every_code(signed), width, rounding=rounding)
    spoilt = planes.copy()
    spoilt[needed:] ^= 255
    np.testing.assert_array_equal(nested.from_planes(spoilt, width, signed, rounding), expected)
    spoilt = planes.copy()
    spoilt[needed - 1] ^= 255
    assert (nested.from_planes(spoilt, width, signed, rounding) != expected).any()


@pytest.mark.parametrize(
    "reordered",
    [
        lambda x: x.T,
        lambda x: x[::-1, ::-2],
        lambda x: x[:, 3:9],
        np.asfortranarray,
        lambda x: x[:0],
        lambda x: x[:, :0],
    ],
)
@SIGNS
def test_memory_order_does_not_matter(signed, reordered):
    codes = reordered(every_code(signed).reshape(16, 16))
    compact = np.ascontiguousarray(codes)
    for width in (3, 8):
        np.testing.assert_array_equal(nested.switch(codes, width), nested.switch(compact, width))
    np.testing.assert_array_equal(nested.to_planes(codes), nested.to_planes(compact))


@pytest.mark.parametrize("integer_type", [int, np.int8, np.uint8, np.int32, np.uint64])
@SIGNS
def test_widths_of_any_integer_type(integer_type, signed):
    codes = every_code(signed)
    for width in map(integer_type, range(1, 9)):
        assert nested.code_range(width, signed) == oracle.code_range(int(width), signed)
        switched = nested.switch(codes, width)
        np.testing.assert_array_equal(switched, nested.switch(codes, int(width)))
        np.testing.assert_array_equal(
            nested.dequantize(switched, 1.0, width), nested.dequantize(switched, 1.0, int(width))
        )
        planes = nested.to_planes(codes)
        np.testing.assert_array_equal(nested.from_planes(planes, width, signed, "half_up"), switched)


def test_switch_to_the_master_width_is_a_copy():
    codes = every_code(signed=True)
    switched = nested.switch(codes, 8)
    assert not np.shares_memory(codes, switched)


def test_a_single_code():
    assert nested.switch(np.array(88, np.uint8), 4) == 6
    assert nested.dequantize(np.array(6, np.uint8), 0.5, 4) == 48


def test_quantize_saturates_any_finite_number():
    codes, _ = nested.quantize([1e308, -1e308, 0.0], step=1e-300)
    assert codes.tolist() == [127, -128, 0]


def test_quantize_of_nothing_and_of_zeros():
    assert nested.quantize(np.zeros((0, 3)))[0].shape == (0, 3)
    codes, step = nested.quantize(np.zeros((2, 3)), axis=1)
    assert not codes.any()
    assert step.shape == (1, 3)
    assert (step > 0).all()


def test_a_given_step_for_each_channel():
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    codes, step = nested.quantize(x, axis=0, step=[[1.0], [0.5]])
    assert codes.tolist() == [[1, 2], [6, 8]]
    assert step.shape == (2, 1)


U8 = np.zeros((2, 16), np.uint8)
I8 = np.zeros((2, 16), np.int8)
PLANES = np.zeros((8, 2, 2), np.uint8)

UNKNOWN_WIDTHS = [
    (0, "width 0 "),
    (9, "width 9 "),
    (True, "width True "),
    (4.0, "width 4.0 "),
    ("4", "width '4' "),
]
WIDTH_TAKERS = [
    lambda width: nested.code_range(width, True),
    lambda width: nested.switch(U8, width),
    lambda width: nested.dequantize(U8, 1.0, width),
    lambda width: nested.from_planes(PLANES, width),
    nested.require_width,
]

REFUSALS = [
    # call, error, what came, what was expected
    (lambda: nested.switch(U8.astype(np.int16), 4), TypeError, "int16", "int8 or uint8"),
    (lambda: nested.switch([1, 2], 4), TypeError, "list", "int8 or uint8"),
    (lambda: nested.switch(U8 > 0, 4), TypeError, "bool", "int8 or uint8"),
    (
        lambda: nested.switch(U8, 4, signed=True),
        TypeError,
        "signed=True was given with uint8",
        "int8 is signed",
    ),
    (
        lambda: nested.switch(I8, 4, signed=False),
        TypeError,
        "signed=False was given with int8",
        "uint8 is not",
    ),
    (lambda: nested.switch(U8, 4, rounding="nearest"), ValueError, "'nearest'", "'half_up' or 'floor'"),
    (lambda: nested.dequantize(U8.astype(float), 1.0), TypeError, "float64", "int8 or uint8"),
    (lambda: nested.dequantize(U8, 1.0, 4, "up"), ValueError, "'up'", "'half_up' or 'floor'"),
    (lambda: nested.dequantize(U8 + 16, 1.0, 4), ValueError, "16..16", "0..15 at width 4"),
    (lambda: nested.dequantize(I8 - 9, 1.0, 4), ValueError, "-9..-9", "-8..7 at width 4"),
    (lambda: nested.to_planes(U8.astype(np.int64)), TypeError, "int64", "int8 or uint8"),
    (lambda: nested.to_planes(np.array(3, np.uint8)), ValueError, "a single code", "reshape it to (1,)"),
    (lambda: nested.from_planes(PLANES.view(np.int8)), TypeError, "int8", "uint8 bit planes"),
    (lambda: nested.from_planes([[1]]), TypeError, "list", "uint8 bit planes"),
    (lambda: nested.from_planes(PLANES, rounding="even"), ValueError, "'even'", "'half_up' or 'floor'"),
    (lambda: nested.from_planes(PLANES[:3], 4), ValueError, "(3, 2, 2)", "floor at width 4 reads 4"),
    (
        lambda: nested.from_planes(PLANES[:4], 4, True, "half_up"),
        ValueError,
        "(4, 2, 2)",
        "half_up at width 4 reads 5",
    ),
    (lambda: nested.from_planes(PLANES[:, 0, 0]), ValueError, "(8,)", "(at least 8, ..., m)"),
    (lambda: nested.from_planes(PLANES, length=17), ValueError, "17", "0..16"),
    (lambda: nested.from_planes(PLANES, length=-1), ValueError, "-1", "0..16"),
    (lambda: nested.quantize([1.0, np.nan]), ValueError, "1 NaN or infinite", "finite"),
    (lambda: nested.quantize([np.inf, -np.inf]), ValueError, "2 NaN or infinite", "finite"),
    (lambda: nested.quantize([1.0], step=0.0), ValueError, "0.0..0.0", "finite and positive"),
    (lambda: nested.quantize([1.0, 1.0], step=[1.0, -2.0]), ValueError, "-2.0..1.0", "finite and positive"),
    (lambda: nested.quantize([1.0], step=np.nan), ValueError, "nan", "finite and positive"),
    (lambda: nested.quantize([1.0], step=np.inf), ValueError, "inf", "finite and positive"),
    (lambda: nested.quantize(np.ones((2, 3)), step=[1.0, 1.0]), ValueError, "(2,)", "(2, 3)"),
    (lambda: nested.quantize([1.0], step=[[1.0]]), ValueError, "(1, 1)", "(1,)"),
    (lambda: nested.quantize(np.ones((2, 2)), axis=0, step=[1.0, 2.0]), ValueError, "(2,)", "(2, 1)"),
    (lambda: nested.quantize(np.ones((2, 3)), axis=2), ValueError, "axis 2", "dimension 2"),
    (lambda: nested.quantize(1.0, axis=0), ValueError, "axis 0", "dimension 0"),
]


@pytest.mark.parametrize(("call", "error", "came", "expected"), REFUSALS)
def test_refusals_say_what_came_and_what_was_expected(call, error, came, expected):
    with pytest.raises(error, match=re.escape(came)) as refusal:
        call()
    assert expected in str(refusal.value)


@pytest.mark.parametrize(("width", "came"), UNKNOWN_WIDTHS)
@pytest.mark.parametrize("call", WIDTH_TAKERS)
def test_unknown_widths(call, width, came):
    with pytest.raises(ValueError, match=re.escape(came)) as refusal:
        call(width)
    assert "1..8" in str(refusal.value)
