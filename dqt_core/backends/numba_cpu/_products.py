"""A product of up to 32 pixels and 32 channels, by the widest dot products that a processor has."""

from typing import Any

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

from dqt_core.backends.numba_cpu._layout import CHANNELS, LINE, Amx, Plain, Vnni256, Vnni512
from dqt_core.backends.numba_cpu._llvm import BYTE, INT, LONG, SHORT, VOID, call, every, pointer


@intrinsic
def configure(typingctx: Any, machine: Any, config: Any) -> Any:
    """Make the tile registers of this thread ready, or give them back where `config` is 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0].instance_class is Amx:
            with builder.if_else(builder.icmp_unsigned("==", arguments[1], LONG(0))) as (done, start):
                with done:
                    call(builder, "llvm.x86.tilerelease", VOID)
                with start:
                    call(builder, "llvm.x86.ldtilecfg", VOID, pointer(builder, arguments[1]))
        return context.get_dummy_value()

    return types.none(machine, types.int64), codegen


@intrinsic
def product(
    typingctx: Any,
    machine: Any,
    windows: Any,
    span: Any,
    row: Any,
    weights: Any,
    pieces: Any,
    lines: Any,
    pixels: Any,
    sums: Any,
) -> Any:
    """Sums of products of up to 32 pixels and 32 channels, int32 (32, 32).

    windows : address of int64, the addresses of every pixel's first piece; span : bytes from these to those
    of the next piece; row : bytes from one window to the next, for tiles, which take the first address alone;
    weights : address of 32 channels, in the order of `Weights`; lines : of a piece; pixels : whose sums are
    asked for
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0].instance_class
        if kind is Amx:
            _, windows, _, row, weights, _, lines, _, sums = arguments
            _tiles(builder, windows, row, weights, lines, sums)
        else:
            _dots(builder, kind, *arguments[1:])
        return context.get_dummy_value()

    return types.none(machine, *[types.int64] * 8), codegen


def _tiles(builder: Any, windows: Any, row: Any, weights: Any, lines: Any, sums: Any) -> None:
    def tile(number: int) -> Any:
        return BYTE(number)

    line, sums_row = LONG(LINE), LONG(4 * CHANNELS)
    for number in range(4):
        call(builder, "llvm.x86.tilezero", VOID, tile(number))
    x = builder.load(pointer(builder, windows, of=LONG))
    lower = builder.mul(row, LONG(16))
    right = builder.mul(lines, LONG(16 * LINE))
    with cgutils.for_range(builder, lines, intp=LONG) as loop:
        offset = builder.mul(loop.index, line)
        block = builder.mul(loop.index, LONG(16 * LINE))
        upper_x, lower_x = pointer(builder, x, offset), pointer(builder, x, offset, lower)
        left_w, right_w = pointer(builder, weights, block), pointer(builder, weights, block, right)
        load, dot = "llvm.x86.tileloadd64", "llvm.x86.tdpbusd"
        call(builder, load, VOID, tile(4), upper_x, row)
        call(builder, load, VOID, tile(6), left_w, line)
        call(builder, dot, VOID, tile(0), tile(4), tile(6))
        call(builder, load, VOID, tile(7), right_w, line)
        call(builder, dot, VOID, tile(1), tile(4), tile(7))
        call(builder, load, VOID, tile(5), lower_x, row)
        call(builder, dot, VOID, tile(2), tile(5), tile(6))
        call(builder, dot, VOID, tile(3), tile(5), tile(7))
    for number in range(4):
        place = (number // 2) * 16 * 4 * CHANNELS + (number % 2) * LINE
        call(builder, "llvm.x86.tilestored64", VOID, tile(number), pointer(builder, sums, place), sums_row)


# Channels whose sums stay in registers, with those of a tile's pixels: 16 of 32 registers, or 8 of 16.
_SHAPES = {Vnni512: (32, 16), Vnni256: (16, 8), Plain: (16, 8)}


def _dots(builder: Any, kind: Any, *arguments: Any) -> None:
    windows, span, _, weights, pieces, lines, pixels, sums = arguments
    (columns, lanes), rows, line = _SHAPES[kind], kind().tile, kind().line
    vector = ir.VectorType(INT, lanes)
    dot = _pairs if kind is Plain else _quadruples
    length = builder.mul(lines, LONG(line * CHANNELS))
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
                    here = builder.add(block, builder.mul(offset, LONG(CHANNELS)))
                    if column == 0:  # of the next channels' weights, every tile asks for its share
                        turn = builder.and_(builder.add(loop.index, tile.index), builder.sub(tiles, LONG(1)))
                        with builder.if_then(builder.icmp_unsigned("==", turn, LONG(0))):
                            _ask_for(builder, builder.add(here, builder.mul(pieces, length)), line * CHANNELS)
                    for part in range(line // 4):
                        weight_lines = []
                        for start in range(column, column + columns, lanes):
                            place = [here, 4 * (part * CHANNELS + start)]
                            weight_lines.append(
                                builder.load(pointer(builder, *place, of=vector), align=4 * lanes)
                            )
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
    """LLVM makes one instruction of this where there is one."""
    lanes = total.type.count
    short, long = ir.VectorType(SHORT, 2 * lanes), ir.VectorType(INT, 2 * lanes)
    wide = [builder.sext(builder.bitcast(value, short), long) for value in (codes, weights)]
    products = builder.mul(*wide)
    indices = ir.VectorType(INT, lanes)
    even, odd = (
        builder.shuffle_vector(products, products, indices(list(range(start, 2 * lanes, 2))))
        for start in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))
