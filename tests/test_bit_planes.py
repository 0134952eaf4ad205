"""Products from bit planes equal those of the views, whatever the shape, and refuse what they cannot do."""

import ctypes
import mmap

import numpy as np
import pytest

from dqt_core import integer, nested

bit_planes = pytest.importorskip("dqt_core.backends.bit_planes", reason="needs Numba")

from dqt_core.backends import _processor  # noqa: E402

OF_OTHERS = {"Amx": "Vnni512", "Vnni512": "Vnni256", "Vnni256": "Plain"}  # what a processor can do besides


def ways():
    name = type(_processor.machine()).__name__
    while name:
        yield name
        name = OF_OTHERS.get(name)


@pytest.fixture(params=ways())
def way(request, monkeypatch):
    """Each way that this processor can go: codes in wide or in narrow registers, or counted bits."""
    kind = getattr(_processor, request.param)
    monkeypatch.setattr(bit_planes, "machine", kind)


def random(rows, count, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (rows, count)).astype(np.int8)
    return codes, rng.integers(0, 256, count).astype(np.uint8)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize(
    ("rows", "count"), [(1, 1), (3, 5), (5, 512), (2, 511), (9, 513), (4, 4096), (1, 700)]
)
def test_products_are_those_of_the_views(rows, count, width, way):
    codes, x = random(rows, count)
    planes = nested.to_planes(codes)
    expected = integer.matmul(x[None], nested.switch(codes, width, rounding="floor"))[0]
    assert np.array_equal(bit_planes.matvec(planes, x, width), expected)
    assert np.array_equal(bit_planes.matvec(planes[:width], x, width), expected)


def test_the_largest_sums_fit(way):
    codes = np.full((1, bit_planes.LONGEST), -128, np.int8)
    x = np.full(bit_planes.LONGEST, 255, np.uint8)
    got = bit_planes.matvec(nested.to_planes(codes), x, 8)
    assert got[0] == -128 * 255 * bit_planes.LONGEST


@pytest.mark.parametrize("count", [8, 500, 512])
def test_no_byte_beyond_the_planes_is_read(count, way):
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
    assert np.array_equal(bit_planes.matvec(there, x, 2), expected)


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
        bit_planes.matvec(*change(nested.to_planes(codes), x))


def test_sums_that_may_pass_32_bits_are_refused():
    count = bit_planes.LONGEST + 1
    planes = np.zeros((1, 1, -(-count // 8)), np.uint8)
    with pytest.raises(ValueError, match="give at most 65,793 codes"):
        bit_planes.matvec(planes, np.zeros(count, np.uint8), 1)
