"""The kernels of `numba_cpu`: compiled by Numba at first use and kept on disk, integers only.

One function, `run`, walks the steps of a plan; the work items of a step are shared out over threads. A
convolution is a product of matrices of 32 pixels by 32 channels, `_product`, made of the widest dot-product
instruction that the processor has, followed at once by the requantize while the sums are in the cache.

All of it is in one file because Numba's cache looks at the file of the function it compiles, and no further.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba import get_thread_id, njit, prange, types
    from numba.core import cgutils
    from numba.extending import intrinsic

from dqt_core.backends._numba_cache import kept

PIXELS = CHANNELS = 32  # of one product
LINE = 64  # bytes
PRODUCT = 4 * PIXELS * CHANNELS  # bytes of the sums of one product
CONFIG = LINE  # bytes of a thread's tile configuration, before its sums
LOOKUP, SWITCH, CONV, DEPTHWISE, REQUANTIZE, MAX_POOL, SUM_POOL, COPY, MULTIPLY = range(9)
NOTHING, UNSIGNED, SIGNED, SUMS = range(4)  # how a value is stored: uint8, int8, int32

STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kind", "items", "splits", "block", "order", "x", "x_kind", "out", "out_kind"),
            *("height", "width", "channels", "out_height", "out_width", "outputs"),
            *("kernel_height", "kernel_width", "stride", "padding", "groups"),
            *("steps", "panel", "direct", "table", "term", "terms", "r", "lo", "hi"),
            *("y", "y_kind", "y_pixels"),  # of a product: the other factor, and its pixels
        )
    ]
)
# A run of pixels whose images all use the same widths at a layer.
BLOCK = np.dtype(
    [
        (name, np.int64)
        for name in ("first", "pixels", "weights", "correction", "shift", "middle", "zero", "m", "b")
    ]
)
# Addresses of all that the steps of a plan read and write, and the bytes from a thread's to the next's.
# A kernel writes a value's own bytes and no others. It reads whole lines, so that up to 63 bytes beyond a
# value are read, and none before it; nothing that is kept depends on these bytes.
MEMORY = np.dtype(
    [
        (name, np.int64)
        for name in (
            "arena",  # every value, and a line that may be read beyond the last
            "offsets",  # int64: of the lines of a pixel, for every convolution
            "order",  # int64: images sorted by choice, for every convolution
            "drops",  # int64: dropped bits of every image, for every reader
            "rows",  # int64: row of its table of every image, for every term
            "tables",  # int8 (rows, 256): of every look-up, one or one for a channel
            "ones",  # int32
            "zeros",  # int32
            "config",  # shapes of the tiles
            *("sums", "sums_step"),  # int32, of a product or of one pixel's channels, up to 15 more of these
            *("totals", "totals_step"),  # int64, of one pixel's channels and up to 15 more
            *("middles", "middles_step"),  # int32, for every pixel of a block
            *("spare", "spare_step"),  # 16 channels of every pixel of a product; a line of codes
            *("panel", "panel_step"),  # the windows of a block, in whole products, and a line
        )
    ]
)
# An addend of a requantize, beside the sums that a fused convolution has at hand.
TERM = np.dtype([(name, np.int64) for name in ("x", "kind", "m", "b", "rows")])


class Amx(NamedTuple):
    """Tiles of 16 x 64 bytes."""

    unit: int = LINE  # products along a line


class Vnni512(NamedTuple):
    """Dot products of four bytes, 16 at a time."""

    unit: int = LINE


class Vnni256(NamedTuple):
    """Dot products of four bytes, 8 at a time."""

    unit: int = LINE


class Plain(NamedTuple):
    """Dot products of two 16-bit integers, on any processor."""

    unit: int = LINE // 2


_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_VOID = ir.VoidType()
_POINTER = _BYTE.as_pointer()


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _at(builder: Any, *parts: Any, of: Any = _BYTE) -> Any:
    """A pointer to the sum of addresses and constants."""
    total = parts[0]
    for part in parts[1:]:
        total = builder.add(total, _LONG(part) if isinstance(part, int) else part)
    return builder.inttoptr(total, of.as_pointer())


@intrinsic
def _configure(typingctx: Any, machine: Any, config: Any) -> Any:
    """Make the tile registers of this thread ready, or give them back where `config` is 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0].instance_class is Amx:
            with builder.if_else(builder.icmp_unsigned("==", arguments[1], _LONG(0))) as (done, start):
                with done:
                    _call(builder, "llvm.x86.tilerelease", _VOID)
                with start:
                    _call(builder, "llvm.x86.ldtilecfg", _VOID, _at(builder, arguments[1]))
        return context.get_dummy_value()

    return types.none(machine, types.int64), codegen


@intrinsic
def _product(
    typingctx: Any, machine: Any, x: Any, x_row: Any, offsets: Any, weights: Any, steps: Any, sums: Any
) -> Any:
    """Sums of products of 32 pixels and 32 channels, int32 (32, 32).

    x : address of the first pixel's codes; x_row : bytes from one pixel to the next; offsets : address of
    `steps` int64, the bytes from a pixel to each line of its codes; weights : address of two blocks of 16
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


def _tiles(builder: Any, x: Any, x_row: Any, offsets: Any, weights: Any, steps: Any, sums: Any) -> None:
    def tile(number: int) -> Any:
        return _BYTE(number)

    line, sums_row = _LONG(LINE), _LONG(4 * CHANNELS)
    for number in range(4):
        _call(builder, "llvm.x86.tilezero", _VOID, tile(number))
    lower = builder.mul(x_row, _LONG(16))
    right = builder.mul(steps, _LONG(16 * LINE))
    with cgutils.for_range(builder, steps, intp=_LONG) as loop:
        offset = builder.load(_at(builder, offsets, builder.mul(loop.index, _LONG(8)), of=_LONG))
        block = builder.mul(loop.index, _LONG(16 * LINE))
        upper_x, lower_x = _at(builder, x, offset), _at(builder, x, offset, lower)
        left_w, right_w = _at(builder, weights, block), _at(builder, weights, block, right)
        load, dot = "llvm.x86.tileloadd64", "llvm.x86.tdpbusd"
        _call(builder, load, _VOID, tile(4), upper_x, x_row)
        _call(builder, load, _VOID, tile(6), left_w, line)
        _call(builder, dot, _VOID, tile(0), tile(4), tile(6))
        _call(builder, load, _VOID, tile(7), right_w, line)
        _call(builder, dot, _VOID, tile(1), tile(4), tile(7))
        _call(builder, load, _VOID, tile(5), lower_x, x_row)
        _call(builder, dot, _VOID, tile(2), tile(5), tile(6))
        _call(builder, dot, _VOID, tile(3), tile(5), tile(7))
    for number in range(4):
        place = (number // 2) * 16 * 4 * CHANNELS + (number % 2) * LINE
        _call(builder, "llvm.x86.tilestored64", _VOID, tile(number), _at(builder, sums, place), sums_row)


# Pixels and channels whose sums stay in registers: 16 of 32, or 8 of 16.
_SHAPES = {Vnni512: (8, 32, 16), Vnni256: (4, 16, 8), Plain: (4, 16, 8)}


def _dots(
    builder: Any, kind: Any, x: Any, x_row: Any, offsets: Any, weights: Any, steps: Any, sums: Any
) -> None:
    rows, columns, lanes = _SHAPES[kind]
    vector = ir.VectorType(_INT, lanes)
    dot = _pairs if kind is Plain else _quadruples
    right = builder.mul(steps, _LONG(16 * LINE))
    totals = [cgutils.alloca_once(builder, vector) for _ in range(rows * columns // lanes)]
    for column in range(0, CHANNELS, columns):
        with cgutils.for_range(builder, _LONG(PIXELS // rows), intp=_LONG) as tile:
            first = builder.mul(tile.index, _LONG(rows))
            first_x = builder.add(x, builder.mul(first, x_row))
            for total in totals:
                builder.store(vector([0] * lanes), total)
            with cgutils.for_range(builder, steps, intp=_LONG) as loop:
                offset = builder.load(_at(builder, offsets, builder.mul(loop.index, _LONG(8)), of=_LONG))
                block = builder.mul(loop.index, _LONG(16 * LINE))
                for part in range(LINE // 4):
                    lines = []
                    for start in range(0, columns, lanes):
                        half, within = divmod(column + start, 16)
                        begin = [weights, block, part * LINE + 4 * within, *([right] * half)]
                        lines.append(builder.load(_at(builder, *begin, of=vector), align=4 * lanes))
                    for row in range(rows):
                        own = builder.add(first_x, builder.mul(x_row, _LONG(row)))
                        codes = builder.load(_at(builder, own, offset, 4 * part, of=_INT), align=4)
                        codes = _every(builder, codes, vector)
                        for i, line in enumerate(lines):
                            total = totals[row * len(lines) + i]
                            builder.store(dot(builder, builder.load(total), codes, line), total)
            out = builder.add(sums, builder.mul(first, _LONG(4 * CHANNELS)))
            for i, total in enumerate(totals):
                row, start = divmod(i, columns // lanes)
                place = _at(builder, out, row * 4 * CHANNELS + 4 * (column + start * lanes), of=vector)
                builder.store(builder.load(total), place, align=4 * lanes)


def _every(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of the low bits of one integer."""
    if value.type != vector.element:
        value = builder.trunc(value, vector.element)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _INT(0))
    return builder.shuffle_vector(one, one, ir.VectorType(_INT, vector.count)([0] * vector.count))


def _quadruples(builder: Any, total: Any, codes: Any, weights: Any) -> Any:
    bits = 32 * total.type.count
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, total, codes, weights)


def _pairs(builder: Any, total: Any, codes: Any, weights: Any) -> Any:
    """LLVM makes one instruction of this where there is one."""
    lanes = total.type.count
    short, long = ir.VectorType(_SHORT, 2 * lanes), ir.VectorType(_INT, 2 * lanes)
    wide = [builder.sext(builder.bitcast(value, short), long) for value in (codes, weights)]
    products = builder.mul(*wide)
    indices = ir.VectorType(_INT, lanes)
    even, odd = (
        builder.shuffle_vector(products, products, indices(list(range(start, 2 * lanes, 2))))
        for start in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))


_CODES, _WIDE_CODES = ir.VectorType(_BYTE, LINE), ir.VectorType(_SHORT, LINE // 2)


@intrinsic
def _copy_line(typingctx: Any, out: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, x = (_at(builder, argument, of=_CODES) for argument in arguments)
        builder.store(builder.load(x, align=1), out, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def _filler(vector: Any) -> Any:
    @intrinsic
    def fill(typingctx: Any, out: Any, code: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            line = _every(builder, arguments[1], vector)
            builder.store(line, _at(builder, arguments[0], of=vector), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), codegen

    return fill


_fill_line, _fill_wide_line = _filler(_CODES), _filler(_WIDE_CODES)


@intrinsic
def _widen_line(typingctx: Any, out: Any, x: Any) -> Any:
    """32 codes without a sign to 16-bit integers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes = builder.load(_at(builder, arguments[1], of=ir.VectorType(_BYTE, LINE // 2)), align=1)
        out = _at(builder, arguments[0], of=_WIDE_CODES)
        builder.store(builder.zext(codes, _WIDE_CODES), out, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def _switcher(past_the_cache: bool) -> Any:
    """A function for 64 codes at another width, Eq. 4.

    ``min((u >> d) + epsilon * bit_(d-1)(u), highest) - lift``, u = x ^ flip.

    past_the_cache : the line, which is a whole one of the cache, is written without being read first
    """

    @intrinsic
    def switch_line(
        typingctx: Any, out: Any, x: Any, flip: Any, drop: Any, epsilon: Any, highest: Any, lift: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def every(value: Any) -> Any:
                return _every(builder, value, _CODES)

            out, x, flip, drop, epsilon, highest, lift = arguments
            codes = builder.xor(builder.load(_at(builder, x, of=_CODES), align=1), every(flip))
            floor = builder.lshr(codes, every(drop))
            # at d = 0 the shift is by 7 and epsilon is 0
            last = builder.lshr(codes, every(builder.and_(builder.sub(drop, _LONG(1)), _LONG(7))))
            rounded = builder.add(floor, builder.and_(last, every(epsilon)))
            top = every(highest)
            result = builder.select(builder.icmp_unsigned("<", rounded, top), rounded, top)
            result = builder.sub(result, every(lift))
            line = _at(builder, out, of=_CODES)
            store = builder.store(result, line, align=LINE if past_the_cache else 1)
            if past_the_cache:
                store.set_metadata("nontemporal", builder.module.add_metadata([_INT(1)]))
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), codegen

    return switch_line


_switch_line, _switch_line_past_the_cache = _switcher(False), _switcher(True)


@intrinsic
def _fence(typingctx: Any) -> Any:
    """What was written past the cache is there for every thread."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


# How 16 channels go on from their sums.
_SIXTEEN = 16
_BYTES, _INTS, _LONGS = (ir.VectorType(kind, _SIXTEEN) for kind in (_BYTE, _INT, _LONG))


def _load(builder: Any, x: Any, kind: int) -> Any:
    """16 values as int32."""
    if kind == SUMS:
        return builder.load(_at(builder, x, of=_INTS), align=4)
    codes = builder.load(_at(builder, x, of=_BYTES), align=1)
    return builder.zext(codes, _INTS) if kind == UNSIGNED else builder.sext(codes, _INTS)


def _table(builder: Any, m: Any, b: Any) -> tuple[Any, Any]:
    """M as int64, and B."""
    multiplier = builder.sext(builder.load(_at(builder, m, of=_INTS), align=4), _LONGS)
    return multiplier, builder.load(_at(builder, b, of=_LONGS), align=8)


def _term(builder: Any, values: Any, m: Any, b: Any) -> Any:
    """``values * M + B`` of int32 values, in int64."""
    return builder.add(builder.mul(builder.sext(values, _LONGS), m), b)


def _round(builder: Any, total: Any, rounding: Any, out: Any) -> None:
    r, lo, hi = rounding
    total = builder.ashr(total, _every(builder, r, _LONGS))
    for bound, order in ((lo, ">"), (hi, "<")):
        bound = _every(builder, bound, _LONGS)
        total = builder.select(builder.icmp_signed(order, total, bound), total, bound)
    builder.store(builder.trunc(total, _BYTES), _at(builder, out, of=_BYTES), align=1)


def _finish(kind: int | None) -> Any:
    """A function for 16 channels of some pixels: their requantize, whose other term is of a kind.

    kind : NOTHING, UNSIGNED, SIGNED or SUMS; None: the sums are stored as they are, corrected
    own : (sums, correction, middles, M, B, out), addresses
    other : (x, M, B), addresses
    steps : bytes from a pixel to the next in (sums, middles, out, x)
    shifts : (of the sums, of x)
    rounding : (r, lo, hi)
    """

    @intrinsic
    def finish(
        typingctx: Any, pixels: Any, own: Any, other: Any, steps: Any, shifts: Any, rounding: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            unpacked = (cgutils.unpack_tuple(builder, argument) for argument in arguments[1:])
            own, other, steps, shifts, rounding = unpacked
            sums, correction, middles, m, b, out = own
            correction = _load(builder, correction, SUMS)
            left = _every(builder, shifts[0], _INTS)
            mine = _table(builder, m, b) if kind is not None else ()
            theirs = _table(builder, *other[1:]) if kind else ()
            with cgutils.for_range(builder, arguments[0], intp=_LONG) as loop:
                at = [builder.mul(loop.index, step) for step in steps]
                values = builder.sub(_load(builder, builder.add(sums, at[0]), SUMS), correction)
                middle = builder.load(_at(builder, middles, at[1], of=_INT), align=4)
                values = builder.add(builder.shl(values, left), _every(builder, middle, _INTS))
                place = builder.add(out, at[2])
                if kind is None:
                    builder.store(values, _at(builder, place, of=_INTS), align=4)
                else:
                    total = _term(builder, values, *mine)
                    if kind:
                        x = _load(builder, builder.add(other[0], at[3]), kind)
                        x = builder.shl(x, _every(builder, shifts[1], _INTS))
                        total = builder.add(total, _term(builder, x, *theirs))
                    _round(builder, total, rounding, place)
            return context.get_dummy_value()

        numbers = [types.UniTuple(types.int64, count) for count in (6, 3, 4, 2, 3)]
        return types.none(types.int64, *numbers), codegen

    return finish


_store, (_finish_alone, _finish_unsigned, _finish_signed, _finish_sums) = (
    _finish(None),
    map(_finish, range(4)),
)


def _add(kind: int) -> Any:
    """Add a term of 16 values to int64 totals."""

    @intrinsic
    def add(typingctx: Any, totals: Any, x: Any, drop: Any, m: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _at(builder, arguments[0], of=_LONGS)
            values = builder.shl(_load(builder, arguments[1], kind), _every(builder, arguments[2], _INTS))
            term = _term(builder, values, *_table(builder, *arguments[3:]))
            builder.store(builder.add(builder.load(place, align=8), term), place, align=8)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 5), codegen

    return add


_add_unsigned, _add_signed, _add_sums = (_add(kind) for kind in (UNSIGNED, SIGNED, SUMS))


@intrinsic
def _round_line(typingctx: Any, totals: Any, r: Any, lo: Any, hi: Any, out: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        totals, r, lo, hi, out = arguments
        _round(builder, builder.load(_at(builder, totals, of=_LONGS), align=8), (r, lo, hi), out)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), codegen


def _multiply(kind: int) -> Any:
    """Add 16 products of codes and int32 weights to int32 sums."""

    @intrinsic
    def multiply(typingctx: Any, sums: Any, x: Any, weights: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums, x, weights = arguments
            product = builder.mul(_load(builder, x, kind), _load(builder, weights, SUMS))
            total = builder.add(_load(builder, sums, SUMS), product)
            builder.store(total, _at(builder, sums, of=_INTS), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 3), codegen

    return multiply


_multiply_unsigned, _multiply_signed = _multiply(UNSIGNED), _multiply(SIGNED)


def _reader(kind: Any, extend: str) -> Any:
    """A function that reads one integer at an address as int64."""

    @intrinsic
    def read(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(_at(builder, arguments[0], of=kind), align=kind.width // 8)
            return value if kind is _LONG else getattr(builder, extend)(value, _LONG)

        return types.int64(types.int64), codegen

    return read


def _writer(kind: Any) -> Any:
    """A function that writes the low bits of an integer at an address."""

    @intrinsic
    def write(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.trunc(arguments[1], kind)
            builder.store(value, _at(builder, arguments[0], of=kind), align=kind.width // 8)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), codegen

    return write


_byte, _short, _int, _long = (
    _reader(kind, how) for kind, how in ((_BYTE, "zext"), (_SHORT, "zext"), (_INT, "sext"), (_LONG, ""))
)
_put_byte, _put_short, _put_int = (_writer(kind) for kind in (_BYTE, _SHORT, _INT))


@intrinsic
def _largest_line(typingctx: Any, out: Any, x: Any, flip: Any) -> Any:
    """The larger of 64 codes without a sign and 64 others ^ flip."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, x = (_at(builder, argument, of=_CODES) for argument in arguments[:2])
        codes = builder.xor(builder.load(x, align=1), _every(builder, arguments[2], _CODES))
        best = builder.load(out, align=1)
        best = builder.select(builder.icmp_unsigned(">", codes, best), codes, best)
        builder.store(best, out, align=1)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 3), codegen


def compiled(function: Callable[..., Any]) -> Any:
    """Numba's decorator for what `run` calls."""
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(nogil=True, error_model="numpy", **wrappers)(function)


@compiled
def copy_rest(out, x, count):
    """Fewer bytes than a line."""
    for i in range(count):
        _put_byte(out + i, _byte(x + i))


@compiled
def clear(out, count):
    """Zeros, four bytes at a time."""
    for i in range(0, count, 4):
        _put_int(out + i, 0)


@compiled
def look_up(memory, step, item):
    """Bytes of one row by their table, or by that of their channel."""
    size, rows = step.width * step.channels, step.terms
    x, out = memory.arena + step.x + item * size, memory.arena + step.out + item * size
    for row in range(rows):
        table = memory.tables + (step.table + row) * 256
        for i in range(row, size, rows):
            _put_byte(out + i, _byte(table + _byte(x + i)))


@compiled
def switch(memory, step, item, thread):
    """Part of an image's codes to the width that a layer reads, without a sign where a product reads them.

    A signed code q is read as q + 2**(b-1), which is the same switch of the unsigned code q + 128.
    """
    size = step.height * step.width * step.channels
    image, part = item // step.splits, item % step.splits
    lines = (size + LINE - 1) // LINE
    first, last = lines * part // step.splits * LINE, lines * (part + 1) // step.splits * LINE
    drop = _long(memory.drops + 8 * (step.order + image))
    flip = 128 if step.x_kind == SIGNED else 0
    lift = 128 >> drop if step.r else 0
    epsilon = 1 if step.table and drop else 0
    x, out = memory.arena + step.x + image * size, memory.arena + step.out + image * size
    spare = memory.spare + thread * memory.spare_step
    for line in range(first, last, LINE):
        whole = line + LINE <= size
        _switch_line(out + line if whole else spare, x + line, flip, drop, epsilon, 255 >> drop, lift)
        if not whole:
            copy_rest(out + line, spare, size - line)


@compiled
def conv(machine, memory, blocks, terms, step, item, thread):
    """A block of pixels against a part of the channels."""
    block = blocks[step.block + item // step.splits]
    part = item % step.splits
    outputs = step.outputs // step.groups
    parts = (outputs + CHANNELS - 1) // CHANNELS
    x, panel = memory.arena + step.x + block.first * step.channels, memory.panel + thread * memory.panel_step
    row, offsets = step.steps * LINE, memory.offsets + 8 * step.panel
    sums, middles = memory.sums + thread * memory.sums_step, memory.middles + thread * memory.middles_step
    size = step.out_height * step.out_width
    # So many pixels are read where they are. A last product of fewer than 32 would read on beyond them: up to
    # 31 times all their channels beyond the value.
    direct = block.pixels // PIXELS * PIXELS if step.direct else 0
    _configure(machine, memory.config)
    for group in range(step.groups):
        if machine.unit == LINE:
            gather(memory, step, block, group, direct, panel, row)
        else:
            gather_wide(memory, step, block, group, direct, panel, row)
        if block.middle:
            add_windows(machine, step, block, 0, direct, x, row, middles)
            add_windows(machine, step, block, direct, block.pixels, panel, row, middles)
        for channels in range(parts * part // step.splits, parts * (part + 1) // step.splits):
            first = channels * CHANNELS
            count = min(CHANNELS, outputs - first)
            weights = block.weights + (group * parts + channels) * step.steps * 32 * LINE
            slot, place = block.first // size, block.first % size
            for pixel in range(0, block.pixels, PIXELS):
                windows = x + pixel * row if pixel < direct else panel + (pixel - direct) * row
                _product(machine, windows, row, offsets, weights, step.steps, sums)
                last = min(block.pixels, pixel + PIXELS)
                done = pixel
                while done < last:  # the pixels of one image
                    image = _long(memory.order + 8 * (step.order + slot))
                    pixels = min(last - done, size - place)
                    own = sums + 4 * CHANNELS * (done - pixel)
                    where = (image * size + place) * step.outputs + group * outputs + first
                    channel = group * outputs + first
                    middle = middles + 4 * done if block.middle else memory.zeros
                    finish(
                        memory, terms, step, block, image, where, channel, count, pixels, own, middle, thread
                    )
                    done, place = done + pixels, place + pixels
                    if place == size:
                        slot, place = slot + 1, 0
    _configure(machine, 0)


@compiled
def gather(memory, step, block, group, skip, panel, row):
    """The codes of every pixel's window, one pixel after another, from the pixel `skip` of the block on.

    Whole lines are copied. What is beyond a part of a window is covered by its next part; what is beyond the
    window, by the next pixel, or it meets weights of 0.
    """
    inputs = step.channels // step.groups
    size = step.out_height * step.out_width
    slot, place = (block.first + skip) // size, (block.first + skip) % size
    top, left = place // step.out_width, place % step.out_width - 1
    top, left = top * step.stride - step.padding, left * step.stride - step.padding
    right, bottom = step.out_width * step.stride - step.padding, step.out_height * step.stride - step.padding
    for pixel in range(block.pixels - skip):
        left += step.stride
        if left == right:
            left, top = -step.padding, top + step.stride
            if top == bottom:
                top, slot = -step.padding, slot + 1
        image = _long(memory.order + 8 * (step.order + slot))
        inside = step.groups == 1 and left >= 0 and left + step.kernel_width <= step.width
        out = panel + pixel * row
        for y in range(top, top + step.kernel_height):
            x = ((image * step.height + y) * step.width + left) * step.channels + group * inputs
            x += memory.arena + step.x
            if inside and 0 <= y < step.height:
                for line in range(0, step.kernel_width * inputs, LINE):
                    _copy_line(out + line, x + line)
                out += step.kernel_width * inputs
                continue
            for column in range(left, left + step.kernel_width):
                if 0 <= y < step.height and 0 <= column < step.width:
                    for line in range(0, inputs, LINE):
                        _copy_line(out + line, x + line)
                else:
                    for line in range(0, inputs, LINE):
                        _fill_line(out + line, block.zero)
                out += inputs
                x += step.channels


@compiled
def gather_wide(memory, step, block, group, skip, panel, row):
    """`gather` to 16-bit integers."""
    inputs = step.channels // step.groups
    size = step.out_height * step.out_width
    for pixel in range(block.pixels - skip):
        place = block.first + skip + pixel
        image, place = _long(memory.order + 8 * (step.order + place // size)), place % size
        top = place // step.out_width * step.stride - step.padding
        left = place % step.out_width * step.stride - step.padding
        out = panel + pixel * row
        for y in range(top, top + step.kernel_height):
            for column in range(left, left + step.kernel_width):
                x = ((image * step.height + y) * step.width + column) * step.channels + group * inputs
                x += memory.arena + step.x
                inside = 0 <= y < step.height and 0 <= column < step.width
                for i in range(0, inputs, 32):
                    if inside:
                        _widen_line(out + 2 * i, x + i)
                    else:
                        _fill_wide_line(out + 2 * i, block.zero)
                out += 2 * inputs


@compiled
def add_windows(machine, step, block, first, last, x, row, out):
    """What floor's middle of a bin adds to every sum of a pixel: a multiple of the sum of its window.

    For pixels of a block, whose windows begin at `x`.
    """
    count = step.kernel_height * step.kernel_width * (step.channels // step.groups)
    for pixel in range(first, last):
        total, window = 0, x + (pixel - first) * row
        for i in range(count):
            total += _byte(window + i) if machine.unit == LINE else _short(window + 2 * i)
        _put_int(out + 4 * pixel, (total - block.zero * count) * block.middle)


@compiled
def finish(memory, terms, step, block, image, place, channel, count, pixels, sums, middles, thread):
    """The sums of pixels of an image: `count` channels from `channel` on, whose values are at `place`."""
    x, drop, other_m, other_b, kind, code = 0, 0, 0, 0, NOTHING, 0
    if step.terms:
        term = terms[step.term]
        kind, code = term.kind, 4 if term.kind == SUMS else 1
        row = _long(memory.rows + 8 * (term.rows + image)) * step.outputs + channel
        x, drop = memory.arena + term.x + place * code, _long(memory.drops + 8 * (term.rows + image))
        other_m, other_b = term.m + 4 * row, term.b + 8 * row
    size = 4 if step.out_kind == SUMS else 1
    spare = memory.spare + thread * memory.spare_step
    shifts, rounding = (block.shift, drop), (step.r, step.lo, step.hi)
    for i in range(0, count, 16):
        out = memory.arena + step.out + (place + i) * size
        # what is beyond the last channel is computed beside it, and left there
        whole = i + 16 <= count
        to, to_step = (out, step.outputs * size) if whole else (spare, 16 * size)
        at = channel + i
        own = (sums + 4 * i, block.correction + 4 * at, middles, block.m + 4 * at, block.b + 8 * at, to)
        other = (x + code * i, other_m + 4 * i, other_b + 8 * i)
        steps = (4 * CHANNELS, 4 if block.middle else 0, to_step, step.outputs * code)
        if step.out_kind == SUMS:
            _store(pixels, own, other, steps, shifts, rounding)
        elif kind == NOTHING:
            _finish_alone(pixels, own, other, steps, shifts, rounding)
        elif kind == UNSIGNED:
            _finish_unsigned(pixels, own, other, steps, shifts, rounding)
        elif kind == SIGNED:
            _finish_signed(pixels, own, other, steps, shifts, rounding)
        else:
            _finish_sums(pixels, own, other, steps, shifts, rounding)
        if not whole:
            for pixel in range(pixels):
                to = out + pixel * step.outputs * size
                copy_rest(to, spare + pixel * 16 * size, (count - i) * size)


@compiled
def depthwise(memory, blocks, terms, step, item, thread):
    """One row of pixels, every channel with its own kernel."""
    image, row = item // step.out_height, item % step.out_height
    block = blocks[step.block + image]
    sums = memory.sums + thread * memory.sums_step
    for column in range(step.out_width):
        clear(sums, 4 * (step.outputs + 15))
        weights = block.weights - 4 * step.outputs
        for y in range(
            row * step.stride - step.padding, row * step.stride - step.padding + step.kernel_height
        ):
            left = column * step.stride - step.padding
            for x in range(left, left + step.kernel_width):
                weights += 4 * step.outputs
                if not (0 <= y < step.height and 0 <= x < step.width):
                    continue
                codes = memory.arena + step.x + ((image * step.height + y) * step.width + x) * step.channels
                for i in range(0, step.outputs, 16):
                    if step.x_kind == SIGNED:
                        _multiply_signed(sums + 4 * i, codes + i, weights + 4 * i)
                    else:
                        _multiply_unsigned(sums + 4 * i, codes + i, weights + 4 * i)
        place = ((image * step.out_height + row) * step.out_width + column) * step.outputs
        finish(memory, terms, step, block, image, place, 0, step.outputs, 1, sums, memory.zeros, thread)


@compiled
def requantize(memory, terms, step, item, thread):
    """One row of pixels, any number of terms."""
    image, outputs = item // step.height, step.outputs
    totals = memory.totals + thread * memory.totals_step
    spare = memory.spare + thread * memory.spare_step
    for pixel in range(item * step.width, (item + 1) * step.width):
        clear(totals, 8 * (outputs + 15))
        for index in range(step.term, step.term + step.terms):
            term = terms[index]
            code = 4 if term.kind == SUMS else 1
            row = _long(memory.rows + 8 * (term.rows + image)) * outputs
            drop = _long(memory.drops + 8 * (term.rows + image))
            x = memory.arena + term.x + pixel * outputs * code
            for i in range(0, outputs, 16):
                at, m, b = totals + 8 * i, term.m + 4 * (row + i), term.b + 8 * (row + i)
                if term.kind == SUMS:
                    _add_sums(at, x + 4 * i, drop, m, b)
                elif term.kind == SIGNED:
                    _add_signed(at, x + i, drop, m, b)
                else:
                    _add_unsigned(at, x + i, drop, m, b)
        out = memory.arena + step.out + pixel * outputs
        for i in range(0, outputs, 16):
            whole = i + 16 <= outputs
            _round_line(totals + 8 * i, step.r, step.lo, step.hi, out + i if whole else spare)
            if not whole:
                copy_rest(out + i, spare, outputs - i)


@compiled
def max_pool(memory, step, item, thread):
    """One row of pixels."""
    image, row = item // step.out_height, item % step.out_height
    spare = memory.spare + thread * memory.spare_step
    flip = 128 if step.x_kind == SIGNED else 0
    top = row * step.stride - step.padding
    for column in range(step.out_width):
        out = memory.arena + step.out + (item * step.out_width + column) * step.channels
        left = column * step.stride - step.padding
        for first in range(0, step.channels, LINE):
            _fill_line(spare, 0)
            for y in range(max(top, 0), min(top + step.kernel_height, step.height)):
                for x in range(max(left, 0), min(left + step.kernel_width, step.width)):
                    codes = ((image * step.height + y) * step.width + x) * step.channels + first
                    _largest_line(spare, memory.arena + step.x + codes, flip)
            for i in range(min(LINE, step.channels - first)):
                _put_byte(out + first + i, _byte(spare + i) ^ flip)


@compiled
def sum_pool(memory, step, image, thread):
    """One image."""
    sums = memory.sums + thread * memory.sums_step
    size = step.height * step.width
    clear(sums, 4 * (step.channels + 15))
    for pixel in range(image * size, (image + 1) * size):
        x = memory.arena + step.x + pixel * step.channels
        for i in range(0, step.channels, 16):
            if step.x_kind == SIGNED:
                _multiply_signed(sums + 4 * i, x + i, memory.ones)
            else:
                _multiply_unsigned(sums + 4 * i, x + i, memory.ones)
    copy_rest(memory.arena + step.out + 4 * image * step.channels, sums, 4 * step.channels)


@compiled
def copy(memory, step, item):
    """One row of a value to its channels of a concatenation."""
    for pixel in range(item * step.width, (item + 1) * step.width):
        x, out = memory.arena + step.x + pixel * step.channels, memory.arena + step.out + pixel * step.outputs
        whole = step.channels // LINE * LINE
        for line in range(0, whole, LINE):
            _copy_line(out + line, x + line)
        copy_rest(out + whole, x + whole, step.channels - whole)


@compiled
def multiply(memory, step, item):
    """One row of pixels."""
    image, flip_x, flip_y = item // step.height, 128 * (step.x_kind == SIGNED), 128 * (step.y_kind == SIGNED)
    for pixel in range(item * step.width, (item + 1) * step.width):
        x, out = memory.arena + step.x + pixel * step.channels, step.out + 4 * pixel * step.channels
        y = memory.arena + step.y + (image if step.y_pixels == 1 else pixel) * step.channels
        for i in range(step.channels):
            a, b = (_byte(x + i) ^ flip_x) - flip_x, (_byte(y + i) ^ flip_y) - flip_y
            _put_int(memory.arena + out + 4 * i, a * b)


@compiled
def work(machine, memory, blocks, terms, step, item, thread):
    """One work item of a step."""
    if step.kind == CONV:
        conv(machine, memory, blocks, terms, step, item, thread)
    elif step.kind == SWITCH:
        switch(memory, step, item, thread)
    elif step.kind == LOOKUP:
        look_up(memory, step, item)
    elif step.kind == DEPTHWISE:
        depthwise(memory, blocks, terms, step, item, thread)
    elif step.kind == REQUANTIZE:
        requantize(memory, terms, step, item, thread)
    elif step.kind == MAX_POOL:
        max_pool(memory, step, item, thread)
    elif step.kind == SUM_POOL:
        sum_pool(memory, step, item, thread)
    elif step.kind == COPY:
        copy(memory, step, item)
    else:
        multiply(memory, step, item)


@kept(parallel=True)
def run(machine, memory, blocks, terms, steps):
    """The steps one after another, the items of each shared out over the threads."""
    for i in range(len(steps)):
        for item in prange(steps[i].items):
            work(machine, memory[0], blocks, terms, steps[i], item, get_thread_id())


@kept()
def run_alone(machine, memory, blocks, terms, steps):
    """`run` on one thread, which wakes no other."""
    for i in range(len(steps)):
        for item in range(steps[i].items):
            work(machine, memory[0], blocks, terms, steps[i], item, 0)


@kept()
def switch_weights(out, codes, count, drop, epsilon):
    """Signed codes at an address to another width, whole lines of them to whole lines of the cache."""
    for line in range(0, count, LINE):
        _switch_line_past_the_cache(out + line, codes + line, 128, drop, epsilon, 255 >> drop, 128 >> drop)
    _fence()
