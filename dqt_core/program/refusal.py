"""How a program is refused: by one error, a sentence of where, what came, what was expected, what to do."""

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np

REPAIR = "correct it, or lower the network again"
Fits: TypeAlias = Callable[[tuple[int, ...]], bool]
LARGEST_VALUE = 2**24  # numbers of a value, its padding included: 64 images' sums are four gigabytes
NAME_BYTES = 180  # a file system takes 255; the program's digest and the ending follow


class ProgramError(RuntimeError):
    """A program is not valid, or its file is missing or damaged; the message says what to do.

    Examples
    --------
    >>> from dqt_core import load
    >>> load("lost")
    Traceback (most recent call last):
    dqt_core.program.refusal.ProgramError: lost does not exist; give the path of a program, or "digits"
    """


def came(got: object) -> str:
    """What came in, for the sentence of an error: short, and one line, whatever it is.

    Parameters
    ----------
    got : object

    Returns
    -------
    str
        Dtype and shape of an array, else a shortened repr.

    Examples
    --------
    >>> came(np.zeros((2, 3))), came([[4, 5]])
    ('float64 (2, 3)', '[[4, 5]]')
    """
    text = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else reprlib.repr(got)
    return " ".join(text.split())


@dataclass(frozen=True)
class Place:
    """A part of a program, for the sentence of an error.

    Examples
    --------
    >>> Place("operation 3").refuse("the stride", 0, "1 or more", "lower it again")
    Traceback (most recent call last):
    dqt_core.program.refusal.ProgramError: operation 3: the stride is 0, expected 1 or more; lower it again
    """

    text: str

    def refuse(self, what: str, got: object, expected: str, todo: str = REPAIR) -> NoReturn:
        """Raise ProgramError: what came, what was expected, what to do."""
        raise ProgramError(f"{self.text}: {what} is {came(got)}, expected {expected}; {todo}")

    def integer(self, what: str, value: object, lowest: int, highest: int) -> None:
        """An int, no bool or NumPy integer, within limits."""
        if type(value) is not int or not lowest <= value <= highest:
            self.refuse(what, value, f"an int in {lowest}..{highest}")

    def integers(self, what: str, values: object, lowest: int, highest: int) -> None:
        """A tuple of such ints."""
        if type(values) is not tuple:
            self.refuse(what, values, "a tuple of ints")
        for value in values:
            self.integer(f"one of {what}", value, lowest, highest)

    def name(self, what: str, value: object) -> None:
        """Text that can stand in a file of C, in JSON and in ONNX."""
        if type(value) is not str or not value.isprintable() or not 1 <= len(value.encode()) <= NAME_BYTES:
            self.refuse(what, value, f"printable text of 1 to {NAME_BYTES} bytes", "rename it")
        if not {"/", "\\"}.isdisjoint(value):
            self.refuse(what, value, "a name without slashes", "rename it")

    def array(self, what: str, value: object, dtype: type, shape: str, fits: Fits) -> None:
        """An array of a type and a shape."""
        if not isinstance(value, np.ndarray) or value.dtype != dtype or not fits(value.shape):
            self.refuse(what, value, f"an array {np.dtype(dtype).name} {shape}")

    def size(self, what: str, shape: Sequence[int]) -> None:
        """No larger than a network needs."""
        if math.prod(shape) > LARGEST_VALUE:
            self.refuse(what, tuple(shape), f"at most {LARGEST_VALUE} numbers for one image")


def place(number: int, op: object) -> Place:
    """Where an operation stands.

    Parameters
    ----------
    number : int
        From 0, among the program's operations.
    op : operation, or whatever stands there

    Returns
    -------
    Place

    Examples
    --------
    >>> from dqt_core.program import SumPool
    >>> place(3, SumPool("x", "means")).text
    "operation 3 (SumPool 'means')"
    """
    name = getattr(op, "name", None) or getattr(op, "out", None)
    called = f" {reprlib.repr(name)}" if type(name) is str else ""
    return Place(f"operation {number} ({type(op).__name__}{called})")
