"""A product of 32 pixels and 32 channels, by the widest dot products that a processor has."""

from typing import Any

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

from dqt_core.backends.numba_cpu._layout import CHANNELS, LINE, PIXELS, Amx, Plain, Vnni256, Vnni512
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
    typingctx: Any, machine: Any, x: Any, x_row: Any, offsets: Any, weights: Any, lines: Any, sums: Any
) -> Any:
    """Sums of products of 32 pixels and 32 channels, int32 (32, 32).

    x : address of the first pixel's codes; x_row : bytes from one pixel to the next; offsets : address of
    `lines` int64, the bytes from a pixel to each line of its codes; weights : address of two blocks of 16
    channels, a line for every four bytes of a pixel.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0].instance_class
        if kind is Amx:
            _tiles(builder, *arguments[1:])
        else:
            _dots(builder, kind, *arguments[1:])
        return context.get_dummy_value()

    address = types.int64
    arguments = (machine, address, types.int64, address, address, types.int64, address)
    return types.none(*arguments), codegen


def _tiles(builder: Any, x: Any, x_row: Any, offsets: Any, weights: Any, lines: Any, sums: Any) -> None:
    def tile(number: int) -> Any:
        return BYTE(number)

    line, sums_row = LONG(LINE), LONG(4 * CHANNELS)
    for number in range(4):
        call(builder, "llvm.x86.tilezero", VOID, tile(number))
    lower = builder.mul(x_row, LONG(16))
    right = builder.mul(lines, LONG(16 * LINE))
    with cgutils.for_range(builder, lines, intp=LONG) as loop:
        offset = builder.load(pointer(builder, offsets, builder.mul(loop.index, LONG(8)), of=LONG))
        block = builder.mul(loop.index, LONG(16 * LINE))
        upper_x, lower_x = pointer(builder, x, offset), pointer(builder, x, offset, lower)
        left_w, right_w = pointer(builder, weights, block), pointer(builder, weights, block, right)
        load, dot = "llvm.x86.tileloadd64", "llvm.x86.tdpbusd"
        call(builder, load, VOID, tile(4), upper_x, x_row)
        call(builder, load, VOID, tile(6), left_w, line)
        call(builder, dot, VOID, tile(0), tile(4), tile(6))
        call(builder, load, VOID, tile(7), right_w, line)
        call(builder, dot, VOID, tile(1), tile(4), tile(7))
        call(builder, load, VOID, tile(5), lower_x, x_row)
        call(builder, dot, VOID, tile(2), tile(5), tile(6))
        call(builder, dot, VOID, tile(3), tile(5), tile(7))
    for number in range(4):
        place = (number // 2) * 16 * 4 * CHANNELS + (number % 2) * LINE
        call(builder, "llvm.x86.tilestored64", VOID, tile(number), pointer(builder, sums, place), sums_row)


# Pixels and channels whose sums stay in registers: 16 of 32, or 8 of 16.
_SHAPES = {Vnni512: (8, 32, 16), Vnni256: (4, 16, 8), Plain: (4, 16, 8)}


def _dots(
    builder: Any, kind: Any, x: Any, x_row: Any, offsets: Any, weights: Any, lines: Any, sums: Any
) -> None:
    rows, columns, lanes = _SHAPES[kind]
    vector = ir.VectorType(INT, lanes)
    dot = _pairs if kind is Plain else _quadruples
    right = builder.mul(lines, LONG(16 * LINE))
    totals = [cgutils.alloca_once(builder, vector) for _ in range(rows * columns // lanes)]
    for column in range(0, CHANNELS, columns):
        with cgutils.for_range(builder, LONG(PIXELS // rows), intp=LONG) as tile:
            first = builder.mul(tile.index, LONG(rows))
            first_x = builder.add(x, builder.mul(first, x_row))
            for total in totals:
                builder.store(vector([0] * lanes), total)
            with cgutils.for_range(builder, lines, intp=LONG) as loop:
                offset = builder.load(pointer(builder, offsets, builder.mul(loop.index, LONG(8)), of=LONG))
                block = builder.mul(loop.index, LONG(16 * LINE))
                for part in range(LINE // 4):
                    weight_lines = []
                    for start in range(0, columns, lanes):
                        half, within = divmod(column + start, 16)
                        begin = [weights, block, part * LINE + 4 * within, *([right] * half)]
                        weight_lines.append(
                            builder.load(pointer(builder, *begin, of=vector), align=4 * lanes)
                        )
                    for row in range(rows):
                        own = builder.add(first_x, builder.mul(x_row, LONG(row)))
                        codes = builder.load(pointer(builder, own, offset, 4 * part, of=INT), align=4)
                        codes = every(builder, codes, vector)
                        for i, line in enumerate(weight_lines):
                            total = totals[row * len(weight_lines) + i]
                            builder.store(dot(builder, builder.load(total), codes, line), total)
            out = builder.add(sums, builder.mul(first, LONG(4 * CHANNELS)))
            for i, total in enumerate(totals):
                row, start = divmod(i, columns // lanes)
                place = pointer(builder, out, row * 4 * CHANNELS + 4 * (column + start * lanes), of=vector)
                builder.store(builder.load(total), place, align=4 * lanes)


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
