"""LLVM's integers, and three phrases in which `_products` and `_lines` are written."""

from typing import Any

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from llvmlite import ir
    from numba.core import cgutils

BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
VOID = ir.VoidType()


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
