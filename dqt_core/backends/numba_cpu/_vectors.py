"""Lines of 64 codes, and 16 channels on their way from sums to codes, as instructions on vectors."""

from collections.abc import Callable, Sequence
from typing import Any

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba.core import cgutils

from dqt_core.backends._llvm import BYTE, INT, LONG, compiled, every, instructions, pointer
from dqt_core.backends.numba_cpu._layout import LINE, NOTHING, RAW, SIGNED, SUMS, UNSIGNED

_CODES = ir.VectorType(BYTE, LINE)


@instructions
def copy_line(builder: Any, out: Any, x: Any) -> None:
    builder.store(_line(builder, x), pointer(builder, out, of=_CODES), align=1)


def _line(builder: Any, x: Any) -> Any:
    return builder.load(pointer(builder, x, of=_CODES), align=1)


@instructions
def fill_line(builder: Any, out: Any, code: Any) -> None:
    builder.store(every(builder, code, _CODES), pointer(builder, out, of=_CODES), align=1)


def _switcher(past_the_cache: bool) -> Any:
    """A function for 64 codes at another width, Eq. 4.

    ``min((u >> d) + epsilon * bit_(d-1)(u), highest) - lift``, u = x ^ flip.

    past_the_cache : the line, which is a whole one of the cache, is written without being read first
    """

    @instructions
    def switch(
        builder: Any, out: Any, x: Any, flip: Any, drop: Any, epsilon: Any, top: Any, lift: Any
    ) -> None:
        # at d = 0 the shift is by 7 and epsilon is 0
        last = builder.and_(builder.sub(drop, LONG(1)), LONG(7))
        values = (every(builder, value, _CODES) for value in (flip, drop, last, epsilon, top, lift))
        flip, drop, last, epsilon, top, lift = values
        codes = builder.xor(_line(builder, x), flip)
        bit = builder.and_(builder.lshr(codes, last), epsilon)
        rounded = builder.add(builder.lshr(codes, drop), bit)
        result = builder.select(builder.icmp_unsigned("<", rounded, top), rounded, top)
        line, align = pointer(builder, out, of=_CODES), LINE if past_the_cache else 1
        store = builder.store(builder.sub(result, lift), line, align=align)
        if past_the_cache:
            store.set_metadata("nontemporal", builder.module.add_metadata([INT(1)]))

    return switch


switch_line, switch_line_past_the_cache = _switcher(False), _switcher(True)


@instructions
def fence(builder: Any) -> None:
    """What was written past the cache is there for every thread."""
    builder.fence("seq_cst")


@instructions
def largest_line(builder: Any, out: Any, x: Any, flip: Any) -> None:
    """The larger of 64 codes without a sign and 64 others ^ flip."""
    codes, best = builder.xor(_line(builder, x), every(builder, flip, _CODES)), _line(builder, out)
    best = builder.select(builder.icmp_unsigned(">", codes, best), codes, best)
    builder.store(best, pointer(builder, out, of=_CODES), align=1)


# How 16 channels go on from their sums.
_SIXTEEN = 16
_BYTES, _INTS = (ir.VectorType(kind, _SIXTEEN) for kind in (BYTE, INT))
_LONGS = ir.VectorType(LONG, _SIXTEEN // 2)
_EVEN, _ODD = (ir.VectorType(INT, _SIXTEEN // 2)(list(range(start, _SIXTEEN, 2))) for start in (0, 1))


def _load(builder: Any, x: Any, kind: int) -> Any:
    """16 values as int32."""
    if kind == SUMS:
        return builder.load(pointer(builder, x, of=_INTS), align=4)
    codes = builder.load(pointer(builder, x, of=_BYTES), align=1)
    return builder.zext(codes, _INTS) if kind == UNSIGNED else builder.sext(codes, _INTS)


def _for_its_kind(builder: Any, kind: Any, kinds: Sequence[int], write: Callable[[int], None]) -> None:
    """Instructions for each kind, of which those of one are run: of the last one where it is no other."""
    if len(kinds) == 1:
        write(kinds[0])
        return
    with builder.if_else(builder.icmp_unsigned("==", kind, LONG(kinds[0]))) as (same, other):
        with same:
            write(kinds[0])
        with other:
            _for_its_kind(builder, kind, kinds[1:], write)


def _halves(builder: Any, values: Any) -> tuple[Any, Any]:
    """Int32 values as int64, of even places and of odd ones: so each is multiplied where it is."""
    half = every(builder, LONG(32), _LONGS)
    pairs = builder.bitcast(values, _LONGS)
    return builder.ashr(builder.shl(pairs, half), half), builder.ashr(pairs, half)


def _table(builder: Any, m: Any, b: Any) -> tuple[Any, Any]:
    """M as int64, and B, in halves."""
    longs = builder.load(pointer(builder, b, of=ir.VectorType(LONG, _SIXTEEN)), align=8)
    offsets = tuple(builder.shuffle_vector(longs, longs, places) for places in (_EVEN, _ODD))
    return _halves(builder, _load(builder, m, SUMS)), offsets


def _terms(builder: Any, values: Any, m: Any, b: Any) -> list[Any]:
    """``values * M + B`` of int32 values, in halves of int64."""
    halves = zip(_halves(builder, values), m, b, strict=True)
    return [builder.add(builder.mul(value, factor), offset) for value, factor, offset in halves]


def _round(builder: Any, totals: Any, rounding: Any, out: Any) -> None:
    r, lo, hi = (every(builder, value, _LONGS) for value in rounding)
    codes = []
    for total in totals:
        total = builder.ashr(total, r)
        for bound, order in ((lo, ">"), (hi, "<")):
            total = builder.select(builder.icmp_signed(order, total, bound), total, bound)
        codes.append(builder.bitcast(total, _INTS))
    places = [place + 16 * odd for place in range(0, _SIXTEEN, 2) for odd in (0, 1)]
    together = builder.shuffle_vector(*codes, _INTS(places))
    builder.store(builder.trunc(together, _BYTES), pointer(builder, out, of=_BYTES), align=1)


@instructions
def finish(
    builder: Any, kind: Any, pixels: Any, own: Any, other: Any, strides: Any, shifts: Any, rounding: Any
) -> None:
    """16 channels of some pixels: their requantize.

    kind : of the other term, NOTHING where there is none; RAW: sums are stored as they are, corrected
    own : (sums, correction, middles, M, B, out), addresses
    other : (x, M, B), addresses
    strides : bytes from a pixel to the next in (sums, middles, out, x)
    shifts : (of the sums, of x)
    rounding : (r, lo, hi)
    """
    sums, correction, middles, m, b, out = own

    def write(kind: int) -> None:
        less = _load(builder, correction, SUMS)
        left, x_left = (every(builder, shift, _INTS) for shift in shifts)
        mine = () if kind == RAW else _table(builder, m, b)
        theirs = () if kind in (RAW, NOTHING) else _table(builder, *other[1:])
        with cgutils.for_range(builder, pixels, intp=LONG) as loop:
            at = [builder.mul(loop.index, stride) for stride in strides]
            values = builder.sub(_load(builder, builder.add(sums, at[0]), SUMS), less)
            middle = builder.load(pointer(builder, middles, at[1], of=INT), align=4)
            values = builder.add(builder.shl(values, left), every(builder, middle, _INTS))
            place = builder.add(out, at[2])
            if kind == RAW:
                builder.store(values, pointer(builder, place, of=_INTS), align=4)
            else:
                totals = _terms(builder, values, *mine)
                if kind != NOTHING:
                    x = builder.shl(_load(builder, builder.add(other[0], at[3]), kind), x_left)
                    totals = list(map(builder.add, totals, _terms(builder, x, *theirs)))
                _round(builder, totals, rounding, place)

    _for_its_kind(builder, kind, (NOTHING, UNSIGNED, SIGNED, SUMS, RAW), write)


def _places(builder: Any, totals: Any) -> list[Any]:
    return [pointer(builder, totals, start, of=_LONGS) for start in (0, 8 * _SIXTEEN // 2)]


@instructions
def add(builder: Any, kind: Any, totals: Any, x: Any, drop: Any, m: Any, b: Any) -> None:
    """Add a term of 16 values to int64 totals, which lie in halves."""

    def write(kind: int) -> None:
        values = builder.shl(_load(builder, x, kind), every(builder, drop, _INTS))
        terms = _terms(builder, values, *_table(builder, m, b))
        for place, term in zip(_places(builder, totals), terms, strict=True):
            builder.store(builder.add(builder.load(place, align=8), term), place, align=8)

    _for_its_kind(builder, kind, (UNSIGNED, SIGNED, SUMS), write)


@instructions
def round_totals(builder: Any, totals: Any, rounding: Any, out: Any) -> None:
    halves = [builder.load(place, align=8) for place in _places(builder, totals)]
    _round(builder, halves, rounding, out)


@instructions
def multiply(builder: Any, kind: Any, sums: Any, x: Any, weights: Any, taps: Any, channels: Any) -> None:
    """Int32 sums of codes times int32 weights, every channel its own, 16 of them at a time.

    x, weights : address, bytes from row to row, bytes from column to column
    taps : (rows, columns)
    """

    def write(kind: int) -> None:
        total = cgutils.alloca_once(builder, _INTS)
        with cgutils.for_range_slice(builder, LONG(0), channels, LONG(_SIXTEEN), intp=LONG) as (first, _):
            builder.store(_INTS(None), total)
            four = builder.mul(first, LONG(4))
            with cgutils.for_range(builder, taps[0], intp=LONG) as row:
                rows = [builder.mul(row.index, by) for _, by, _ in (x, weights)]
                with cgutils.for_range(builder, taps[1], intp=LONG) as column:
                    columns = [builder.mul(column.index, by) for _, _, by in (x, weights)]
                    tap = list(map(builder.add, rows, columns))
                    codes = _load(builder, builder.add(builder.add(x[0], first), tap[0]), kind)
                    factors = _load(builder, builder.add(builder.add(weights[0], four), tap[1]), SUMS)
                    builder.store(builder.add(builder.load(total), builder.mul(codes, factors)), total)
            builder.store(builder.load(total), pointer(builder, sums, four, of=_INTS), align=4)

    _for_its_kind(builder, kind, (UNSIGNED, SIGNED), write)


def _reader(kind: Any) -> Any:
    """A function that reads one integer without a sign at an address as int64."""

    @instructions
    def read(builder: Any, address: Any) -> int:
        value = builder.load(pointer(builder, address, of=kind), align=kind.width // 8)
        return value if kind is LONG else builder.zext(value, LONG)

    return read


def _writer(kind: Any) -> Any:
    """A function that writes the low bits of an integer at an address."""

    @instructions
    def write(builder: Any, address: Any, value: Any) -> None:
        value = value if kind is LONG else builder.trunc(value, kind)
        builder.store(value, pointer(builder, address, of=kind), align=kind.width // 8)

    return write


read_byte, read_long = (_reader(kind) for kind in (BYTE, LONG))
put_byte, put_int, put_long = (_writer(kind) for kind in (BYTE, INT, LONG))


@compiled
def copy_bytes(out: int, x: int, count: int) -> None:
    for i in range(count):
        put_byte(out + i, read_byte(x + i))


@compiled
def clear(out: int, count: int) -> None:
    """Zeros, four bytes at a time."""
    for i in range(0, count, 4):
        put_int(out + i, 0)
