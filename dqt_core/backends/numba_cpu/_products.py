"""A product of up to 32 pixels and 32 channels, by the widest dot products that a processor has."""

from typing import Any

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba.core import cgutils

from dqt_core.backends._llvm import BYTE, INT, LONG, SHORT, VOID, call, every, instructions, pointer
from dqt_core.backends._processor import Amx, Plain, Vnni256, Vnni512
from dqt_core.backends.numba_cpu._layout import CHANNELS, LINE


@instructions
def configure(builder: Any, machine: Any, config: Any) -> None:
    """Make the tile registers of this thread ready, or give them back where `config` is 0."""
    if machine is Amx:
        with builder.if_else(builder.icmp_unsigned("==", config, LONG(0))) as (done, start):
            with done:
                call(builder, "llvm.x86.tilerelease", VOID)
            with start:
                call(builder, "llvm.x86.ldtilecfg", VOID, pointer(builder, config))


@instructions
def product(
    builder: Any, machine: Any, windows: Any, steps: Any, weights: Any, window: Any, pixels: Any, sums: Any
) -> None:
    """Sums of products of up to 32 pixels and 32 channels, int32 (32, 32).

    windows : address of int64, the addresses of every pixel's first piece; steps : bytes from these to those
    of the next piece, and from one window to the next, for tiles, which take the first address alone;
    weights : address of 32 channels, in the order of `Weights`; window : its pieces, and lines of a piece;
    pixels : whose sums are asked for
    """
    if machine is Amx:
        _tiles(builder, windows, steps[1], weights, window[1], sums)
    else:
        _dots(builder, machine, windows, steps[0], weights, *window, pixels, sums)


def _tiles(builder: Any, windows: Any, row: Any, weights: Any, lines: Any, sums: Any) -> None:
    line, sums_row = LONG(LINE), LONG(4 * CHANNELS)
    for number in range(4):
        call(builder, "llvm.x86.tilezero", VOID, BYTE(number))
    x = builder.load(pointer(builder, windows, of=LONG))
    lower = builder.mul(row, LONG(16))
    right = builder.mul(lines, LONG(16 * LINE))
    with cgutils.for_range(builder, lines, intp=LONG) as loop:
        offset = builder.mul(loop.index, line)
        block = builder.mul(loop.index, LONG(16 * LINE))
        places = (x, offset), (x, offset, lower), (weights, block), (weights, block, right)
        for number, place in enumerate(places):  # tiles 4 and 5 of pixels, 6 and 7 of weights
            stride = row if number < 2 else line
            call(builder, "llvm.x86.tileloadd64", VOID, BYTE(4 + number), pointer(builder, *place), stride)
        for number in range(4):
            own = BYTE(number), BYTE(4 + number // 2), BYTE(6 + number % 2)
            call(builder, "llvm.x86.tdpbusd", VOID, *own)
    for number in range(4):
        there = pointer(builder, sums, (number // 2) * 16 * 4 * CHANNELS + (number % 2) * LINE)
        call(builder, "llvm.x86.tilestored64", VOID, BYTE(number), there, sums_row)


# Channels whose sums stay in registers, with those of a tile's pixels: 16 of 32 registers, or 8 of 16.
_SHAPES = {Vnni512: (32, 16), Vnni256: (16, 8), Plain: (16, 8)}


def _dots(builder: Any, kind: Any, windows: Any, span: Any, weights: Any, *counts: Any) -> None:
    pieces, lines, pixels, sums = counts
    (columns, lanes), rows, line = _SHAPES[kind], kind().tile, kind().line
    vector = ir.VectorType(INT, lanes)
    dot, size = _pairs if kind is Plain else _quadruples, kind().weight
    length = builder.mul(lines, LONG(size * line * CHANNELS))
    tiles = builder.udiv(builder.add(pixels, LONG(rows - 1)), LONG(rows))
    totals = [cgutils.alloca_once(builder, vector) for _ in range(rows * columns // lanes)]
    for column in range(0, CHANNELS, columns):
        with cgutils.for_range(builder, tiles, intp=LONG) as tile:
            for total in totals:
                builder.store(vector([0] * lanes), total)
            with cgutils.for_range(builder, pieces, intp=LONG) as piece:
                begin = [windows, builder.mul(piece.index, span), builder.mul(tile.index, LONG(8 * rows))]
                starts = [builder.load(pointer(builder, *begin, 8 * i, of=LONG)) for i in range(rows)]
                block = builder.add(weights, builder.mul(piece.index, length))
                with cgutils.for_range(builder, lines, intp=LONG) as loop:
                    offset = builder.mul(loop.index, LONG(line))
                    here = builder.add(block, builder.mul(offset, LONG(size * CHANNELS)))
                    if column == 0:  # of the next channels' weights, every tile asks for its share
                        turn = builder.and_(builder.add(loop.index, tile.index), builder.sub(tiles, LONG(1)))
                        with builder.if_then(builder.icmp_unsigned("==", turn, LONG(0))):
                            soon = builder.add(here, builder.mul(pieces, length))
                            _ask_for(builder, soon, size * line * CHANNELS)
                    for part in range(line // 4):
                        columns_of = range(column, column + columns, lanes)
                        places = [4 * size * (part * CHANNELS + start) for start in columns_of]
                        read = ir.VectorType(INT, size * lanes)
                        weight_lines = [
                            builder.load(pointer(builder, here, p, of=read), align=4 * lanes) for p in places
                        ]
                        for i, start in enumerate(starts):
                            codes = builder.load(pointer(builder, start, offset, 4 * part, of=INT), align=1)
                            codes = every(builder, codes, vector)
                            for j, weight_line in enumerate(weight_lines):
                                total = totals[i * len(weight_lines) + j]
                                builder.store(dot(builder, builder.load(total), codes, weight_line), total)
            out = builder.add(sums, builder.mul(tile.index, LONG(4 * CHANNELS * rows)))
            for i, total in enumerate(totals):
                pixel, start = divmod(i, columns // lanes)
                place = pointer(builder, out, pixel * 4 * CHANNELS + 4 * (column + start * lanes), of=vector)
                builder.store(builder.load(total), place, align=4 * lanes)


def _ask_for(builder: Any, address: Any, size: int) -> None:
    """Have bytes come to the cache: from memory a core of a Zen 5 gets 22 GB/s of weights, so 29 GB/s."""
    read, soon, data = INT(0), INT(3), INT(1)
    for start in range(0, size, LINE):
        call(builder, "llvm.prefetch.p0", VOID, pointer(builder, address, start), read, soon, data)


def _quadruples(builder: Any, total: Any, codes: Any, weights: Any) -> Any:
    bits = 32 * total.type.count
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, total, codes, weights)


def _pairs(builder: Any, total: Any, codes: Any, weights: Any) -> Any:
    """The same from products of pairs: of the first and the third bytes, then of the others."""
    lanes = total.type.count
    short, long = ir.VectorType(SHORT, 2 * lanes), ir.VectorType(INT, 2 * lanes)
    codes, indices = builder.bitcast(codes, short), ir.VectorType(INT, lanes)
    two = builder.and_(codes, short([255] * 2 * lanes)), builder.lshr(codes, short([8] * 2 * lanes))
    for pair, start in zip(two, (0, lanes), strict=True):
        own = builder.shuffle_vector(weights, weights, indices(list(range(start, start + lanes))))
        # LLVM makes one instruction of this where there is one
        products = builder.mul(*[builder.sext(value, long) for value in (pair, builder.bitcast(own, short))])
        for odd in (0, 1):
            places = indices(list(range(odd, 2 * lanes, 2)))
            total = builder.add(total, builder.shuffle_vector(products, products, places))
    return total
