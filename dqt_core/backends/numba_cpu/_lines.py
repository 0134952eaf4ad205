"""Lines of 64 codes, and 16 channels on their way from sums to codes, as instructions on vectors."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

from dqt_core.backends.numba_cpu._layout import LINE, SIGNED, SUMS, UNSIGNED
from dqt_core.backends.numba_cpu._llvm import BYTE, INT, LONG, SHORT, every, pointer

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
_CODES, _WIDE_CODES = ir.VectorType(BYTE, LINE), ir.VectorType(SHORT, LINE // 2)


@intrinsic
def copy_line(typingctx: Any, out: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, x = (pointer(builder, argument, of=_CODES) for argument in arguments)
        builder.store(builder.load(x, align=1), out, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def _filler(vector: Any) -> Any:
    @intrinsic
    def fill(typingctx: Any, out: Any, code: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            line = every(builder, arguments[1], vector)
            builder.store(line, pointer(builder, arguments[0], of=vector), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), codegen

    return fill


fill_line, fill_wide_line = _filler(_CODES), _filler(_WIDE_CODES)


@intrinsic
def widen_line(typingctx: Any, out: Any, x: Any) -> Any:
    """32 codes without a sign to 16-bit integers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes = builder.load(pointer(builder, arguments[1], of=ir.VectorType(BYTE, LINE // 2)), align=1)
        out = pointer(builder, arguments[0], of=_WIDE_CODES)
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
            def spread(value: Any) -> Any:
                return every(builder, value, _CODES)

            out, x, flip, drop, epsilon, highest, lift = arguments
            codes = builder.xor(builder.load(pointer(builder, x, of=_CODES), align=1), spread(flip))
            floor = builder.lshr(codes, spread(drop))
            # at d = 0 the shift is by 7 and epsilon is 0
            last = builder.lshr(codes, spread(builder.and_(builder.sub(drop, LONG(1)), LONG(7))))
            rounded = builder.add(floor, builder.and_(last, spread(epsilon)))
            top = spread(highest)
            result = builder.select(builder.icmp_unsigned("<", rounded, top), rounded, top)
            result = builder.sub(result, spread(lift))
            line = pointer(builder, out, of=_CODES)
            store = builder.store(result, line, align=LINE if past_the_cache else 1)
            if past_the_cache:
                store.set_metadata("nontemporal", builder.module.add_metadata([INT(1)]))
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), codegen

    return switch_line


switch_line, switch_line_past_the_cache = _switcher(False), _switcher(True)


@intrinsic
def fence(typingctx: Any) -> Any:
    """What was written past the cache is there for every thread."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


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


def _halves(builder: Any, values: Any) -> tuple[Any, Any]:
    """Int32 values as int64, of even places and of odd ones: so each is multiplied where it is."""
    half = every(builder, LONG(32), _LONGS)
    pairs = builder.bitcast(values, _LONGS)
    return builder.ashr(builder.shl(pairs, half), half), builder.ashr(pairs, half)


def _table(builder: Any, m: Any, b: Any) -> tuple[Any, Any]:
    """M as int64, and B, in halves."""
    longs = builder.load(pointer(builder, b, of=ir.VectorType(LONG, _SIXTEEN)), align=8)
    offsets = tuple(builder.shuffle_vector(longs, longs, places) for places in (_EVEN, _ODD))
    return _halves(builder, builder.load(pointer(builder, m, of=_INTS), align=4)), offsets


def _terms(builder: Any, values: Any, m: Any, b: Any) -> list[Any]:
    """``values * M + B`` of int32 values, in halves of int64."""
    halves = zip(_halves(builder, values), m, b, strict=True)
    return [builder.add(builder.mul(value, factor), offset) for value, factor, offset in halves]


def _round(builder: Any, totals: Any, rounding: Any, out: Any) -> None:
    r, lo, hi = rounding
    codes = []
    for total in totals:
        total = builder.ashr(total, every(builder, r, _LONGS))
        for bound, order in ((lo, ">"), (hi, "<")):
            bound = every(builder, bound, _LONGS)
            total = builder.select(builder.icmp_signed(order, total, bound), total, bound)
        codes.append(builder.bitcast(total, _INTS))
    places = [place + 16 * odd for place in range(0, _SIXTEEN, 2) for odd in (0, 1)]
    together = builder.shuffle_vector(*codes, _INTS(places))
    builder.store(builder.trunc(together, _BYTES), pointer(builder, out, of=_BYTES), align=1)


def _finish(kind: int | None) -> Any:
    """A function for 16 channels of some pixels: their requantize, whose other term is of a kind.

    kind : NOTHING, UNSIGNED, SIGNED or SUMS; None: the sums are stored as they are, corrected
    own : (sums, correction, middles, M, B, out), addresses
    other : (x, M, B), addresses
    strides : bytes from a pixel to the next in (sums, middles, out, x)
    shifts : (of the sums, of x)
    rounding : (r, lo, hi)
    """

    @intrinsic
    def finish(
        typingctx: Any, pixels: Any, own: Any, other: Any, strides: Any, shifts: Any, rounding: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            unpacked = (cgutils.unpack_tuple(builder, argument) for argument in arguments[1:])
            own, other, strides, shifts, rounding = unpacked
            sums, correction, middles, m, b, out = own
            correction = _load(builder, correction, SUMS)
            left = every(builder, shifts[0], _INTS)
            mine = _table(builder, m, b) if kind is not None else ()
            theirs = _table(builder, *other[1:]) if kind else ()
            with cgutils.for_range(builder, arguments[0], intp=LONG) as loop:
                at = [builder.mul(loop.index, stride) for stride in strides]
                values = builder.sub(_load(builder, builder.add(sums, at[0]), SUMS), correction)
                middle = builder.load(pointer(builder, middles, at[1], of=INT), align=4)
                values = builder.add(builder.shl(values, left), every(builder, middle, _INTS))
                place = builder.add(out, at[2])
                if kind is None:
                    builder.store(values, pointer(builder, place, of=_INTS), align=4)
                else:
                    totals = _terms(builder, values, *mine)
                    if kind:
                        x = _load(builder, builder.add(other[0], at[3]), kind)
                        x = builder.shl(x, every(builder, shifts[1], _INTS))
                        totals = list(map(builder.add, totals, _terms(builder, x, *theirs)))
                    _round(builder, totals, rounding, place)
            return context.get_dummy_value()

        numbers = [types.UniTuple(types.int64, count) for count in (6, 3, 4, 2, 3)]
        return types.none(types.int64, *numbers), codegen

    return finish


store_sums, (finish_alone, finish_unsigned, finish_signed, finish_sums) = (
    _finish(None),
    map(_finish, range(4)),
)


def _places(builder: Any, totals: Any) -> list[Any]:
    return [pointer(builder, totals, start, of=_LONGS) for start in (0, 8 * _SIXTEEN // 2)]


def _add(kind: int) -> Any:
    """Add a term of 16 values to int64 totals, which lie in halves."""

    @intrinsic
    def add(typingctx: Any, totals: Any, x: Any, drop: Any, m: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = builder.shl(_load(builder, arguments[1], kind), every(builder, arguments[2], _INTS))
            terms = _terms(builder, values, *_table(builder, *arguments[3:]))
            for place, term in zip(_places(builder, arguments[0]), terms, strict=True):
                builder.store(builder.add(builder.load(place, align=8), term), place, align=8)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 5), codegen

    return add


add_unsigned, add_signed, add_sums = (_add(kind) for kind in (UNSIGNED, SIGNED, SUMS))


@intrinsic
def round_line(typingctx: Any, totals: Any, r: Any, lo: Any, hi: Any, out: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        totals, r, lo, hi, out = arguments
        halves = [builder.load(place, align=8) for place in _places(builder, totals)]
        _round(builder, halves, (r, lo, hi), out)
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
            builder.store(total, pointer(builder, sums, of=_INTS), align=4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 3), codegen

    return multiply


multiply_unsigned, multiply_signed = _multiply(UNSIGNED), _multiply(SIGNED)


def _reader(kind: Any) -> Any:
    """A function that reads one integer without a sign at an address as int64."""

    @intrinsic
    def read(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(pointer(builder, arguments[0], of=kind), align=kind.width // 8)
            return value if kind is LONG else builder.zext(value, LONG)

        return types.int64(types.int64), codegen

    return read


def _writer(kind: Any) -> Any:
    """A function that writes the low bits of an integer at an address."""

    @intrinsic
    def write(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = arguments[1] if kind is LONG else builder.trunc(arguments[1], kind)
            builder.store(value, pointer(builder, arguments[0], of=kind), align=kind.width // 8)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), codegen

    return write


read_byte, read_short, read_long = (_reader(kind) for kind in (BYTE, SHORT, LONG))
put_byte, put_int, put_long = (_writer(kind) for kind in (BYTE, INT, LONG))


@intrinsic
def largest_line(typingctx: Any, out: Any, x: Any, flip: Any) -> Any:
    """The larger of 64 codes without a sign and 64 others ^ flip."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, x = (pointer(builder, argument, of=_CODES) for argument in arguments[:2])
        codes = builder.xor(builder.load(x, align=1), every(builder, arguments[2], _CODES))
        best = builder.load(out, align=1)
        best = builder.select(builder.icmp_unsigned(">", codes, best), codes, best)
        builder.store(best, out, align=1)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 3), codegen


def compiled(function: Kernel) -> Kernel:
    """Numba's decorator for what `run` calls; a caller sees the function's own types."""
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(Kernel, njit(nogil=True, error_model="numpy", **wrappers)(function))


@compiled
def copy_rest(out: int, x: int, count: int) -> None:
    """Fewer bytes than a line."""
    for i in range(count):
        put_byte(out + i, read_byte(x + i))


@compiled
def clear(out: int, count: int) -> None:
    """Zeros, four bytes at a time."""
    for i in range(0, count, 4):
        put_int(out + i, 0)
