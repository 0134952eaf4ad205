"""A matrix of nested codes times a vector, from bit planes: a width of b bits reads b planes and no more.

A product of bytes is sixty-four one-bit products. One AND of two lines of planes makes hundreds of them at
once, and counting bits adds them up. So the bytes that are read fall with the width of the weights, and the
operations with them: one of the two is what a machine waits for, and here nested storage pays.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import nested
from dqt_core._extras import needed

with needed("products from bit planes by compiled kernels", "fast"):
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

from dqt_core.backends._numba_cache import kept

LINE = 64  # bytes of a plane that are taken at a time
LONGEST = (2**31 - 1) // (128 * 255)  # codes in a row, so that no sum passes int32


def matvec(planes: NDArray[np.uint8], x: NDArray[np.uint8], width: int) -> NDArray[np.int32]:
    """Products of a matrix in bit planes, read at a width, with a vector of codes.

    Parameters
    ----------
    planes : uint8 array, (at least width, O, ceil(K / 8))
        `nested.to_planes` of int8 codes (O, K), C-contiguous; lower planes may be left out.
    x : uint8 array, (K,)
        Codes of 8 bits.
    width : int
        Bits of the weights, 1..8; `floor` views.

    Returns
    -------
    int32 array, (O,)
        Equal to ``integer.matmul(x, nested.from_planes(planes, width, length=K))``: in steps of the view.

    Raises
    ------
    TypeError, ValueError
        If the arrays are none of that kind, do not fit, or are too long for 32 bits.

    Notes
    -----
    A code of b bits is ``-2**(b-1) p[0] + 2**(b-2) p[1] + ... + p[b-1]`` with p its planes; x likewise, with
    eight planes and no sign. The sum over both goes by Horner's rule. To read weights at the middle of their
    bins, in master steps, add ``(2**d - 1) / 2`` times the sum of x to every row's ``2**d``-fold.

    Examples
    --------
    >>> codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    >>> matvec(nested.to_planes(codes), np.ones(128, np.uint8), 8).tolist() == codes.sum(1).tolist()
    True
    """
    width = nested.require_width(width)
    out = np.empty(_require(planes, x, width), np.int32)
    bits = nested.to_planes(x)
    length = -(-bits.shape[-1] // LINE) * LINE
    bits = _padded(bits, length)

    def multiply(some: NDArray[np.uint8], into: NDArray[np.int32]) -> None:
        _products(some.ctypes.data, *some.strides[:2], bits.ctypes.data, length // LINE, width, into)

    # what a line reads beyond its row meets zeros of x; after the last rows there need be no memory
    last = min(len(out), -(-length // planes.shape[2])) if planes.shape[2] < length else 0
    multiply(planes, out[: len(out) - last])
    if last:
        multiply(_padded(planes[:, -last:], length), out[-last:])
    return out


def _require(planes: NDArray[np.uint8], x: NDArray[np.uint8], width: int) -> int:
    """Refuse what is no matrix of planes and no vector of codes for it; the number of rows."""
    if planes.dtype != np.uint8 or planes.ndim != 3 or not planes.flags.c_contiguous:
        raise TypeError(
            f"planes are {planes.dtype} {planes.shape}, expected contiguous uint8 (planes, O, bytes): "
            "nested.to_planes of a matrix (O, K)"
        )
    if x.dtype != np.uint8 or x.ndim != 1:
        raise TypeError(f"x is {x.dtype} {x.shape}, expected a vector of unsigned codes, uint8 (K,)")
    if len(planes) < width:
        raise ValueError(f"{len(planes)} planes hold no view of {width} bits; give {width} planes or more")
    if planes.shape[2] != -(-len(x) // 8):
        raise ValueError(
            f"x has {len(x)} codes, but rows of {planes.shape[2]} bytes hold {8 * planes.shape[2] - 7} to "
            f"{8 * planes.shape[2]}"
        )
    if len(x) > LONGEST:
        raise ValueError(f"sums of {len(x):,} products may pass 32 bits; give at most {LONGEST:,} codes")
    return planes.shape[1]


def _padded(planes: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Planes whose rows have `length` bytes, those that were added being 0."""
    out = np.zeros((*planes.shape[:-1], length), np.uint8)
    out[..., : planes.shape[-1]] = planes
    return out


_VECTOR = ir.VectorType(ir.IntType(64), 8)  # of one line


@intrinsic
def _row(typingctx: Any, planes: Any, plane: Any, x: Any, lines: Any, width: Any) -> Any:
    """One row's sum of products: addresses of its first plane and of x's eight, bytes from plane to plane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        planes, plane, x, lines, width = arguments
        long, zero = ir.IntType(64), ir.Constant(_VECTOR, None)
        count, add_up = (
            cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(made, [_VECTOR]), f"llvm.{name}.v8i64"
            )
            for made, name in ((_VECTOR, "ctpop"), (long, "vector.reduce.add"))
        )

        def line_at(address: Any, line: Any) -> Any:
            place = builder.add(address, builder.mul(line, long(LINE)))
            return builder.load(builder.inttoptr(place, _VECTOR.as_pointer()), align=1)

        # a sum for each plane of x; LLVM keeps all of them in registers
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(nested.MASTER_WIDTH)]

        def change(turned: Callable[[Any], Any]) -> None:
            for place in sums:
                builder.store(turned(builder.load(place)), place)

        def add_plane(first: Any) -> None:
            with cgutils.for_range(builder, lines, intp=long) as along:
                weights = line_at(first, along.index)
                for number, place in enumerate(sums):
                    own = builder.add(builder.mul(lines, long(number)), along.index)
                    both = builder.call(count, [builder.and_(weights, line_at(x, own))])
                    builder.store(builder.add(builder.load(place), both), place)

        add_plane(planes)
        change(lambda value: builder.sub(zero, value))  # the sign's bit
        with cgutils.for_range(builder, width, start=long(1), intp=long) as step:
            change(lambda value: builder.add(value, value))
            add_plane(builder.add(planes, builder.mul(step.index, plane)))
        total = zero
        for place in sums:
            total = builder.add(builder.add(total, total), builder.load(place))
        return builder.call(add_up, [total])

    return types.int64(*(types.int64,) * 5), codegen


@kept()
def _products(
    planes: int, plane: int, row: int, x: int, lines: int, width: int, out: NDArray[np.int32]
) -> None:
    """Rows one after the other: addresses, and bytes from plane to plane and from row to row."""
    for i in range(out.size):
        out[i] = _row(planes + i * row, plane, x, lines, width)
