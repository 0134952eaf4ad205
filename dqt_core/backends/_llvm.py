"""LLVM's integers, and phrases in which kernels are written, for the backend numba and `bit_planes`."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
VOID = ir.VoidType()
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """Numba's decorator for what `run` calls; a caller sees the function's own types."""
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(Kernel, njit(nogil=True, error_model="numpy", **wrappers)(function))


def instructions(write: Callable[..., Any]) -> Any:
    """Make a function for kernels, of int64s, from one that writes its instructions.

    write : is given a builder, and of every argument its value: of a tuple a list of them, of a machine its
        class. It returns an int64 or, as its annotation says, None.
    """

    @functools.wraps(write)
    def typed(typingctx: Any, *kinds: Any) -> Any:
        numbers = [_numbers(kind) for kind in kinds]

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            made = write(builder, *[_given(builder, *pair) for pair in zip(numbers, arguments, strict=True)])
            return context.get_dummy_value() if made is None else made

        result = types.none if write.__annotations__["return"] is None else types.int64
        return result(*numbers), codegen

    return intrinsic(typed)


def _numbers(kind: Any) -> Any:
    if isinstance(kind, types.NamedUniTuple):
        return kind
    return types.UniTuple(types.int64, len(kind)) if isinstance(kind, types.BaseTuple) else types.int64


def _given(builder: Any, kind: Any, argument: Any) -> Any:
    if isinstance(kind, types.NamedUniTuple):
        return kind.instance_class
    return cgutils.unpack_tuple(builder, argument) if isinstance(kind, types.UniTuple) else argument


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A call of one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def pointer(builder: Any, *parts: Any, of: Any = BYTE) -> Any:
    """A pointer to the sum of addresses and constants."""
    total = parts[0]
    for part in parts[1:]:
        total = builder.add(total, LONG(part) if isinstance(part, int) else part)
    return builder.inttoptr(total, of.as_pointer())


def every(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of the low bits of one integer."""
    if value.type != vector.element:
        value = builder.trunc(value, vector.element)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(one, one, ir.VectorType(INT, vector.count)([0] * vector.count))
