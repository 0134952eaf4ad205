"""A matrix of nested codes times a vector, from bit planes: a width of b bits reads b planes and no more.

Where a matrix meets one vector, each weight is read once and used once: a machine waits for its bytes, and
nested storage pays. A line of every plane becomes lines of codes, which meet the vector in dot products of
bytes. Two instructions make that cheap: a product of matrices of bits (GFNI), which turns a byte of each of
eight planes into eight codes, and VNNI's dot product. A processor without them counts bits instead: a product
of bytes is sixty-four one-bit products, and an AND of two lines makes hundreds of these at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import nested
from dqt_core._extras import needed

with needed("products from bit planes by compiled kernels", "fast"):
    from llvmlite import ir
    from numba.core import cgutils

from dqt_core.backends import _llvm, _processor
from dqt_core.backends._llvm import BYTE, INT, LONG, call, instructions, pointer
from dqt_core.backends._numba_cache import kept
from dqt_core.backends._processor import Amx, Machine, Plain, Vnni256, Vnni512, features, machine
from dqt_core.backends.numba_cpu import _buffers as buffers

LINES = {Amx: 64, Vnni512: 64, Vnni256: 32, Plain: 64}  # bytes of a plane that are taken at a time
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
    To read weights at the middle of their bins, in master steps, add ``(2**d - 1) / 2`` times the sum of x to
    every row's ``2**d``-fold.

    Examples
    --------
    >>> codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    >>> matvec(nested.to_planes(codes), np.ones(128, np.uint8), 8).tolist() == codes.sum(1).tolist()
    True
    """
    width = nested.require_width(width)
    out = np.empty(_require(planes, x, width), np.int32)
    ours = machine() if "gfni" in features() else Plain()
    kind, line = type(ours), LINES[type(ours)]
    lines = -(-planes.shape[2] // line)
    arranged = _arranged(np.pad(x, (0, 8 * line * lines - len(x))), line, has_bytes=kind is not Plain)

    def multiply(some: NDArray[np.uint8], into: NDArray[np.int32]) -> None:
        plane, row = some.strides[:2]
        starts = tuple(some.ctypes.data + number * plane for number in range(width))
        _products(ours, starts, row, arranged.ctypes.data, lines, into)

    # what a line reads beyond its row meets zeros of x; after the last rows there need be no memory
    length = line * lines
    last = min(len(out), -(-length // planes.shape[2])) if planes.shape[2] < length else 0
    multiply(planes, out[: len(out) - last])
    if last:
        rest = planes[:width, -last:]
        multiply(np.pad(rest, ((0, 0), (0, 0), (0, length - rest.shape[2]))), out[-last:])
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


def _arranged(x: NDArray[np.uint8], line: int, has_bytes: bool) -> NDArray[np.uint8]:
    """For each line of planes the eight that it meets: codes in the order of `_codes`, or the planes of x."""
    if has_bytes:
        # bytes are interleaved within lanes of 16, and the r-th result has those of 2r and 2r + 1
        return buffers.table(x.reshape(-1, line // 16, 8, 16).swapaxes(1, 2), alignment=line)
    return buffers.table(nested.to_planes(x).reshape(8, -1, line).swapaxes(0, 1), alignment=line)


@instructions
def _row(builder: Any, machine: Any, planes: Any, place: Any, x: Any, lines: Any) -> int:
    """One row's sum of products: addresses of the planes, where in them the row is, the address of x."""
    starts = [builder.add(start, place) for start in planes]
    total = (_by_bits if machine is Plain else _by_bytes)(builder, LINES[machine], starts, x, lines)
    return builder.sext(total, LONG)


def _by_bytes(builder: Any, line: int, starts: Sequence[Any], x: Any, lines: Any) -> Any:
    codes, sums = ir.VectorType(BYTE, line), ir.VectorType(INT, line // 4)
    totals = [cgutils.alloca_once_value(builder, sums(None)) for _ in range(8)]
    with cgutils.for_range(builder, lines, intp=LONG) as loop:
        offset = builder.mul(loop.index, LONG(line))
        read = [builder.load(pointer(builder, start, offset, of=codes), align=1) for start in starts]
        made = _codes(builder, read + [codes(None)] * (8 - len(read)))
        for number, (weights, total) in enumerate(zip(made, totals, strict=True)):
            there = pointer(builder, x, builder.mul(offset, LONG(8)), number * line, of=sums)
            values = builder.load(total), builder.load(there, align=line), builder.bitcast(weights, sums)
            dot = call(builder, f"llvm.x86.avx512.vpdpbusd.{8 * line}", sums, *values)
            builder.store(dot, total)
    # the planes that were not read were zeros below the others
    return builder.ashr(_sum(builder, [builder.load(total) for total in totals]), INT(8 - len(starts)))


def _codes(builder: Any, planes: Sequence[Any]) -> Sequence[Any]:
    """Eight lines of codes from a line of each plane: bytes are interleaved until eight lie together."""
    kind = planes[0].type
    parts = [[plane] for plane in planes]
    for size in (1, 2, 4):
        lanes = np.arange(2 * kind.count).reshape(2, -1, 2, 8 // size, size)  # of two registers, in halves
        halves = [lanes[:, :, half].transpose(1, 2, 0, 3).reshape(-1) for half in (0, 1)]
        orders = [ir.VectorType(INT, kind.count)(half.tolist()) for half in halves]
        parts = [
            [builder.shuffle_vector(*pair, order) for pair in zip(*two, strict=True) for order in orders]
            for two in zip(parts[::2], parts[1::2], strict=True)
        ]
    # A product of a matrix with the unit vectors gives its columns: a code has one bit of each byte.
    units = ir.VectorType(LONG, kind.count // 8)([0x0102040810204080] * (kind.count // 8))
    turn = f"llvm.x86.vgf2p8affineqb.{8 * kind.count}"
    return [call(builder, turn, kind, builder.bitcast(units, kind), part, BYTE(0)) for part in parts[0]]


def _by_bits(builder: Any, line: int, starts: Sequence[Any], x: Any, lines: Any) -> Any:
    """A code is ``-2**(b-1) p[0] + 2**(b-2) p[1] + ... + p[b-1]``, and x the same without a sign."""
    vector = ir.VectorType(LONG, line // 8)
    totals = [cgutils.alloca_once_value(builder, vector(None)) for _ in range(8)]  # one for each plane of x
    for number, start in enumerate(starts):
        for total in totals:
            value = builder.load(total)
            builder.store(builder.add(value, value), total)
        with cgutils.for_range(builder, lines, intp=LONG) as loop:
            offset = builder.mul(loop.index, LONG(line))
            weights = builder.load(pointer(builder, start, offset, of=vector), align=1)
            for plane, total in enumerate(totals):
                there = pointer(builder, x, builder.mul(offset, LONG(8)), plane * line, of=vector)
                both = builder.and_(weights, builder.load(there, align=line))
                count = call(builder, f"llvm.ctpop.v{vector.count}i64", vector, both)
                change = builder.add if number else builder.sub  # the first plane is the sign's
                builder.store(change(builder.load(total), count), total)
    sums = [builder.load(total) for total in totals]
    shifted = [builder.shl(value, vector([7 - plane] * vector.count)) for plane, value in enumerate(sums)]
    return builder.trunc(_sum(builder, shifted), INT)


def _sum(builder: Any, vectors: Sequence[Any]) -> Any:
    total = vectors[0]
    for vector in vectors[1:]:
        total = builder.add(total, vector)
    kind = total.type
    return call(builder, f"llvm.vector.reduce.add.v{kind.count}i{kind.element.width}", kind.element, total)


@kept(_processor, _llvm)
def _products(
    machine: Machine, planes: tuple[int, ...], row: int, x: int, lines: int, out: NDArray[np.int32]
) -> None:
    """Rows one after the other: addresses of the planes, and bytes from row to row."""
    for i in range(out.size):
        out[i] = _row(machine, planes, i * row, x, lines)
