"""Running a program operation by operation: the loop through which `numpy_ref` and `torch_cpu` are led."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core.backends.analysis import Picks, last_reads, of_all_layers, undecided
from dqt_core.program.operations import (
    IMAGE,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Product,
    Requantize,
    Scale,
    SumPool,
)

Values: TypeAlias = dict[str, Any]


class Executor(Protocol):
    """A backend with a method for every kind of operation; its arrays are its own matter."""

    def upload(self, images: NDArray[np.uint8]) -> Any: ...
    def download(self, logits: Any) -> NDArray[np.int64]: ...
    def lookup(self, op: Lookup, values: Any, choices: Any) -> Any: ...
    def conv(self, op: Conv, values: Any, choices: Any) -> Any: ...
    def requantize(self, op: Requantize, values: Any, choices: Any) -> Any: ...
    def maxpool(self, op: MaxPool, values: Any, choices: Any) -> Any: ...
    def sumpool(self, op: SumPool, values: Any, choices: Any) -> Any: ...
    def concat(self, op: Concat, values: Any, choices: Any) -> Any: ...
    def product(self, op: Product, values: Any, choices: Any) -> Any: ...
    def scale(self, op: Scale, values: Any, choices: Any) -> Any: ...
    def choose(self, op: Choose, logits: Any, choices: int) -> Picks: ...


def walk(
    executor: Executor,
    ops: Sequence[Op],
    values: Values,
    choices: Picks | None,
    count: int,
    keep: bool = False,
) -> Iterator[tuple[Op, Any]]:
    """Run operations one after the other.

    Parameters
    ----------
    executor : Executor
    ops : sequence of operations
    values : dict
        What has been made already, by name; filled, and emptied of what nothing reads any more.
    choices : int64 array (N, L), or None
        None: the controller decides.
    count : int
        Choices there are.
    keep : bool
        Forget nothing.

    Yields
    ------
    op : operation
    made : array
        Its value; of `Choose`, the choices.

    Examples
    --------
    >>> from dqt_core.program import load, step_by_step
    >>> program, images = load("digits"), np.zeros((1, 32, 32, 3), np.uint8)
    >>> steps = walk(step_by_step(program, "numpy"), program.ops, {IMAGE: images}, None, len(program.choices))
    >>> [(op.out, made.dtype.name, made.shape) for op, made in (next(steps), next(steps))]
    [('x_codes', 'int8', (1, 32, 32, 3)), ('conv1:sum', 'int32', (1, 32, 32, 8))]
    """
    forgotten = last_reads(ops)
    is_given = choices is not None
    if not is_given:
        choices = undecided(ops, len(values[IMAGE]))
    for op, names in zip(ops, forgotten, strict=True):
        if op.controller and is_given:
            continue
        if isinstance(op, Choose):
            made = choices = of_all_layers(op, executor.choose(op, values[op.x], count))
        else:
            made = values[op.out] = _made(executor, op, values, choices)
        yield op, made
        for name in () if keep else names:
            values.pop(name, None)


def _made(executor: Executor, op: Op, values: Values, choices: Picks | None) -> Any:
    match op:
        case Lookup():
            return executor.lookup(op, values, choices)
        case Conv():
            return executor.conv(op, values, choices)
        case Requantize():
            return executor.requantize(op, values, choices)
        case MaxPool():
            return executor.maxpool(op, values, choices)
        case SumPool():
            return executor.sumpool(op, values, choices)
        case Concat():
            return executor.concat(op, values, choices)
        case Product():
            return executor.product(op, values, choices)
        case Scale():
            return executor.scale(op, values, choices)
        case Choose():
            raise AssertionError("the controller's choice is no value")


def execute(
    ops: Sequence[Op], count: int, executor: Executor, images: NDArray[np.uint8], choices: Picks | None
) -> tuple[NDArray[np.int64], Picks]:
    """Run a whole program on one batch; see `dqt_core.program.execute`.

    Parameters
    ----------
    ops : sequence of operations
    count : int
        Choices there are.
    executor : Executor
    images : uint8 array, (N, H, W, C)
    choices : int64 array (N, L), or None
        None: the controller decides.

    Returns
    -------
    logits : int64 array, (N, classes)
    choices : int64 array, (N, L)

    Examples
    --------
    >>> from dqt_core.program import load, step_by_step
    >>> program, images = load("digits"), np.zeros((1, 32, 32, 3), np.uint8)
    >>> logits, choices = execute(program.ops, 5, step_by_step(program, "numpy"), images, None)
    >>> logits.shape, choices.shape
    ((1, 10), (1, 19))
    """
    made: Any = None
    for op, made in walk(executor, ops, {IMAGE: executor.upload(images)}, choices, count):
        if isinstance(op, Choose):
            choices = made
    assert choices is not None, "they are given, or the controller's"
    return executor.download(made).reshape(len(images), -1), choices
