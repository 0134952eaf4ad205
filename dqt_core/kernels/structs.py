"""The structs that kernels are given by value, filled on the host by the names of their fields.

A struct is declared once, in ``common.cuh``; its layout is read there. Nothing in it is padded, so the host's
bytes are the device's: a compiler is asked to confirm its size wherever a kernel is compiled (`sizes_in_c`).
"""

import functools
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core import kernels

Address: TypeAlias = Callable[[Any], int]
"""Where an array of the engine lies."""

_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^ +(?:const )?([\w ]+?(?:\*| )) ?(\w+(?:, \w+)*);", re.MULTILINE)
_SCALARS: dict[str, type[np.signedinteger[Any]]] = {"int": np.int32, "long long": np.int64}


@functools.cache
def fields() -> dict[str, dict[str, str]]:
    """By struct and field its kind: ``*`` for a pointer, ``int``, ``long long``, or the name of a struct.

    Examples
    --------
    >>> fields()["Term"]["picks"], fields()["Term"]["rows"], fields()["Convolution"]["skip"]
    ('*', 'int', 'Term')
    """
    return {
        struct: {
            name: "*" if "*" in kind else kind.strip()
            for kind, names in _FIELD.findall(body)
            for name in names.split(", ")
        }
        for struct, body in _STRUCT.findall(kernels.source("common.cuh"))
    }


@functools.cache
def layout(struct: str) -> np.dtype[np.void]:
    """The layout of a struct, pointers as integers.

    Raises
    ------
    TypeError
        If there is something between its fields.

    Examples
    --------
    >>> layout("Term").itemsize
    48
    """

    def of(kind: str) -> Any:
        return layout(kind) if kind in fields() else np.uintp if kind == "*" else _SCALARS[kind]

    formats = [(name, of(kind)) for name, kind in fields()[struct].items()]
    packed, aligned = np.dtype(formats), np.dtype(formats, align=True)
    if packed.itemsize != aligned.itemsize:
        raise TypeError(
            f"{struct} of common.cuh is padded; put pointers first, and an even number of ints last"
        )
    return packed


def leaves(struct: str) -> list[str]:
    """Its fields, those of a struct within it in its place.

    Examples
    --------
    >>> leaves("Convolution")[6:10]
    ['codes', 'own.x', 'own.multiplier', 'own.offset']
    """
    made = []
    for name, kind in fields()[struct].items():
        made += [f"{name}.{leaf}" for leaf in leaves(kind)] if kind in fields() else [name]
    return made


def sizes_in_c() -> str:
    """Lines of C++ that do not compile where a struct is not as large as its layout.

    Examples
    --------
    >>> print(sizes_in_c().splitlines()[0])
    static_assert(sizeof(Term) == 48, "the host lays out Term otherwise");
    """
    line = 'static_assert(sizeof({0}) == {1}, "the host lays out {0} otherwise");\n'
    return "".join(line.format(struct, layout(struct).itemsize) for struct in fields())


class Struct:
    """A struct of ``common.cuh`` as an argument of a kernel.

    Parameters
    ----------
    name : str
    **values
        By field: an array of the engine for a pointer, an int, or a `Struct`. What is not named, or None, is
        null, 0, or a struct of these.

    Raises
    ------
    TypeError
        If a field is not the struct's, or what is given for one is not of its kind.
    OverflowError
        If an int does not fit.

    Examples
    --------
    >>> term = Struct("Term", x=np.arange(4, dtype=np.int32), kind=3, rows=1)
    >>> term.packed(lambda array: 0x1000)["x"], term.packed(lambda array: 0x1000)["rows"]
    (array([4096], dtype=uint64), array([1], dtype=int32))
    """

    def __init__(self, name: str, /, **values: Any) -> None:
        kinds = fields()[name]
        if unknown := sorted(values.keys() - kinds.keys()):
            raise TypeError(f"{name} has no field {unknown[0]!r}; it has {', '.join(kinds)}")
        self.name = name
        self._values = {field: _value(kind, values.get(field)) for field, kind in kinds.items()}

    def leaves(self) -> Iterator[Any]:
        """Arrays (or None) and NumPy scalars, in the order of `leaves`."""
        for value in self._values.values():
            if isinstance(value, Struct):
                yield from value.leaves()
            else:
                yield value

    def packed(self, address: Address) -> NDArray[np.void]:
        """Its bytes, an array of one element."""
        return np.array([self._numbers(address)], layout(self.name))

    def _numbers(self, address: Address) -> tuple[Any, ...]:
        return tuple(_number(value, address) for value in self._values.values())


def _value(kind: str, value: Any) -> Any:
    if kind == "*":
        return value
    if kind in _SCALARS:
        return _SCALARS[kind](operator.index(0 if value is None else value))
    if value is not None and not (isinstance(value, Struct) and value.name == kind):
        raise TypeError(f"got {value!r} for a {kind}, expected Struct({kind!r}, ...)")
    return value or Struct(kind)


def _number(value: Any, address: Address) -> Any:
    if isinstance(value, Struct):
        return value._numbers(address)
    if value is None or isinstance(value, np.generic):
        return value or 0
    return address(value)
