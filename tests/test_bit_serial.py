"""Products from bit planes equal those of the views, whatever the shape, and refuse what they cannot do."""

import ctypes
import mmap

import numpy as np
import pytest

from dqt_core import integer, nested

bit_serial = pytest.importorskip("dqt_core.backends.bit_serial", reason="needs Numba")


def random(rows, count, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (rows, count)).astype(np.int8)
    return codes, rng.integers(0, 256, count).astype(np.uint8)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize(
    ("rows", "count"), [(1, 1), (3, 5), (5, 512), (2, 511), (9, 513), (4, 4096), (1, 700)]
)
def test_products_are_those_of_the_views(rows, count, width):
    codes, x = random(rows, count)
    planes = nested.to_planes(codes)
    expected = integer.matmul(x[None], nested.switch(codes, width, rounding="floor"))[0]
    assert np.array_equal(bit_serial.matvec(planes, x, width), expected)
    assert np.array_equal(bit_serial.matvec(planes[:width], x, width), expected)


def test_the_largest_sums_fit():
    codes = np.full((1, bit_serial.LONGEST), -128, np.int8)
    x = np.full(bit_serial.LONGEST, 255, np.uint8)
    got = bit_serial.matvec(nested.to_planes(codes), x, 8)
    assert got[0] == -128 * 255 * bit_serial.LONGEST


@pytest.mark.parametrize("count", [8, 500, 512])
def test_no_byte_beyond_the_planes_is_read(count):
    """The planes end where a page ends that may be read, before one that may not."""
    codes, x = random(3, count)
    planes = nested.to_planes(codes)[:2]
    page = mmap.PAGESIZE
    size = -(-planes.size // page) * page
    memory = mmap.mmap(-1, size + page)
    libc = ctypes.CDLL(None)
    view = np.frombuffer(memory, np.uint8)
    address = view.ctypes.data
    assert libc.mprotect(ctypes.c_void_p(address + size), page, 0) == 0
    there = view[size - planes.size : size].reshape(planes.shape)
    there[:] = planes
    expected = integer.matmul(x[None], nested.from_planes(planes, 2, length=count))[0]
    assert np.array_equal(bit_serial.matvec(there, x, 2), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p, x: (p[:3], x, 4), ValueError, "3 planes hold no view of 4 bits"),
        (lambda p, x: (p, x[:-8], 4), ValueError, "x has 92 codes, but rows of 13 bytes hold 97 to 104"),
        (lambda p, x: (p.astype(np.int8), x, 4), TypeError, "planes are int8"),
        (lambda p, x: (p[:, ::2], x, 4), TypeError, "expected contiguous uint8"),
        (lambda p, x: (p[0], x, 4), TypeError, r"planes are uint8 \(4, 13\)"),
        (lambda p, x: (p, x.astype(np.int8), 4), TypeError, "x is int8"),
        (lambda p, x: (p, x[None], 4), TypeError, r"x is uint8 \(1, 100\)"),
        (lambda p, x: (p, x, 9), ValueError, "width 9 is outside 1..8"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    codes, x = random(4, 100)
    with pytest.raises(error, match=words):
        bit_serial.matvec(*change(nested.to_planes(codes), x))


def test_sums_that_may_pass_32_bits_are_refused():
    count = bit_serial.LONGEST + 1
    planes = np.zeros((1, 1, -(-count // 8)), np.uint8)
    with pytest.raises(ValueError, match="give at most 65,793 codes"):
        bit_serial.matvec(planes, np.zeros(count, np.uint8), 1)
