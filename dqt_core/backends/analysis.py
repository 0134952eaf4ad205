"""What every runner and exporter asks of a program, worked out once.

Shapes, types and bounds of values are the program's own, `Program.values`. Here is what follows from them and
from the order of the operations: who reads a value last, which operations become one step, and where in one
block of memory each value has its place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core.program.contract import Value
from dqt_core.program.operations import IMAGE, Choose, Conv, Op, Requantize, Term, inputs

ALIGNMENT = 256  # bytes; a whole number of every vector load, and of a line of the cache
Names: TypeAlias = tuple[str, ...]
Picks: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FusedConv:
    """A convolution and the requantize that alone reads it: its sums never reach memory.

    skip : the other term of the requantize, added in the same epilogue; None: there is none

    Examples
    --------
    >>> from dqt_core import load
    >>> first = next(step for step in fused(load("digits").ops) if isinstance(step, FusedConv))
    >>> first.conv.name, first.out, reads(first)
    ('conv1', 'relu_codes', ('x_codes',))
    """

    conv: Conv
    term: Term
    skip: Term | None
    requantize: Requantize

    @property
    def out(self) -> str:
        """The codes' name."""
        return self.requantize.out


Step: TypeAlias = Op | FusedConv


def fused(ops: Sequence[Op]) -> list[Step]:
    """The steps of a program, each requantize joined to the convolution before it where that is possible.

    Parameters
    ----------
    ops : sequence of operations

    Returns
    -------
    list of operations and `FusedConv`
        A fused convolution stands where its requantize stood, where both of its terms are known.

    Notes
    -----
    Of two convolutions that meet in one requantize the first of its terms is fused and reads the sums of the
    other; a value that something else reads too, and a requantize of three terms, stay as they are.

    Examples
    --------
    >>> from collections import Counter
    >>> from dqt_core import load
    >>> steps = fused(load("digits").ops)
    >>> len(load("digits").ops), len(steps), Counter(type(step).__name__ for step in steps)["FusedConv"]
    (49, 31, 18)
    """
    readers = [name for op in ops for name in inputs(op)]
    made = {op.out: op for op in ops if isinstance(op, Conv) and readers.count(op.out) == 1}
    joined = {
        id(op): joint for op in ops if isinstance(op, Requantize) and (joint := _joint(op, made)) is not None
    }
    convs = {id(joint.conv) for joint in joined.values()}
    return [joined.get(id(op), op) for op in ops if id(op) not in convs]


def _joint(op: Requantize, made: Mapping[str, Conv]) -> FusedConv | None:
    candidates = [(made[term.x], term) for term in op.terms if term.x in made]
    candidates = [(conv, term) for conv, term in candidates if conv.layer == term.layer]
    if not candidates or len(op.terms) > 2:
        return None
    conv, term = candidates[0]
    rest = [other for other in op.terms if other is not term]
    return FusedConv(conv, term, rest[0] if rest else None, op)


def reads(step: Step) -> Names:
    """Names of the values that a step reads.

    Parameters
    ----------
    step : operation or `FusedConv`

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from dqt_core.program.operations import Concat
    >>> reads(Concat(("a", "b"), "c"))
    ('a', 'b')
    """
    if isinstance(step, FusedConv):
        return (step.conv.x, *(() if step.skip is None else (step.skip.x,)))
    return inputs(step)


def places(
    sizes: Mapping[str, int], lives: Mapping[str, tuple[int, int]], alignment: int = ALIGNMENT
) -> tuple[dict[str, int], int]:
    """Offsets of values in one block of memory, in which values that live at different times share bytes.

    Parameters
    ----------
    sizes : mapping of name to bytes
    lives : mapping of name to (first, last)
        Steps at which the value is made and last read, both included: what a step reads and what it writes
        never overlap.
    alignment : int
        Bytes.

    Returns
    -------
    offsets : dict of name to bytes
        Multiples of the alignment.
    total : int
        Bytes of the block.

    Examples
    --------
    >>> places({"a": 100, "b": 300, "c": 200}, {"a": (0, 1), "b": (1, 2), "c": (2, 3)})
    ({'a': 512, 'b': 0, 'c': 512}, 768)
    """
    placed: dict[str, int] = {}
    total = 0
    for name in sorted(sizes, key=lambda name: (-sizes[name], lives[name])):
        taken = sorted(
            (offset, offset + _aligned(sizes[other], alignment))
            for other, offset in placed.items()
            if lives[other][0] <= lives[name][1] and lives[name][0] <= lives[other][1]
        )
        size = _aligned(sizes[name], alignment)
        placed[name] = _first_gap(taken, size)
        total = max(total, placed[name] + size)
    return {name: placed[name] for name in sizes}, total


def _first_gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    offset = 0
    for start, end in taken:
        if start - offset >= size:
            break
        offset = max(offset, end)
    return offset


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def lives(
    steps: Sequence[Step], forever: bool = False, read: Callable[[Any], Sequence[str]] = reads
) -> dict[str, tuple[int, int]]:
    """The first and the last step of every value.

    Parameters
    ----------
    steps : sequence of operations and `FusedConv`
    forever : bool
        Keep each to the end.
    read : function
        Names that a step reads, for who computes some values where they are read.

    Returns
    -------
    dict of name to (first, last)

    Examples
    --------
    >>> from dqt_core.program.operations import MaxPool
    >>> lives([MaxPool(2, 2, 0, "image", "a"), MaxPool(2, 2, 0, "a", "b")])
    {'image': (0, 0), 'a': (0, 1), 'b': (1, 2)}
    """
    born = {IMAGE: 0} | {step.out: i for i, step in enumerate(steps) if not isinstance(step, Choose)}
    last = {name: i for i, step in enumerate(steps) for name in read(step)}
    end = len(steps)
    # The result is read after the last step; the image is written before the first one.
    return {name: (at, end if forever else last.get(name, end)) for name, at in born.items()}


def last_reads(steps: Sequence[Step]) -> list[Names]:
    """Names of the values that nothing reads after a step, for every step.

    Parameters
    ----------
    steps : sequence of operations and `FusedConv`

    Returns
    -------
    list of tuples of str

    Examples
    --------
    >>> from dqt_core.program.operations import MaxPool
    >>> last_reads([MaxPool(2, 2, 0, "image", "a"), MaxPool(2, 2, 0, "a", "b")])
    [('image',), ('a',)]
    """
    spans = lives(steps)
    return [tuple(name for name, (_, last) in spans.items() if last == i) for i in range(len(steps))]


def sizes(values: Mapping[str, Value], names: Iterable[str], images: int) -> dict[str, int]:
    """Bytes of some values of a batch.

    Parameters
    ----------
    values : mapping of name to Value
        `Program.values`.
    names : iterable of str
    images : int
        Of the batch, 1 or more.

    Returns
    -------
    dict of name to bytes

    Examples
    --------
    >>> from dqt_core import load
    >>> sizes(load("digits").values, ["image", "logits"], images=2)
    {'image': 6144, 'logits': 160}
    """
    return {name: images * int(np.prod(values[name].shape)) * values[name].dtype.itemsize for name in names}


def early_choices(ops: Sequence[Step]) -> tuple[int, ...]:
    """Choices of the layers before the controller's decision, as they are where the controller decides.

    Parameters
    ----------
    ops : sequence of operations and `FusedConv`

    Returns
    -------
    tuple of int
        Indices into the program's choices; empty where no layer comes before the decision, or none is made.

    Examples
    --------
    >>> early_choices([Choose(2, "scores", before=(1,))])
    (1,)
    """
    return next((op.before for op in ops if isinstance(op, Choose)), ())


def undecided(ops: Sequence[Op], images: int) -> Picks | None:
    """Choices (N, L) as they are before the controller's decision; None where no layer comes before it.

    Parameters
    ----------
    ops : sequence of operations
    images : int
        N, 1 or more.

    Returns
    -------
    int64 array (N, L), or None
        0 where the controller is still to decide.

    Examples
    --------
    >>> undecided([Choose(2, "scores", before=(1,))], images=2)
    array([[1, 0, 0],
           [1, 0, 0]])
    """
    decision = next((op for op in ops if isinstance(op, Choose)), None)
    if decision is None or not decision.before:
        return None
    return of_all_layers(decision, np.zeros((images, decision.layers), np.int64))


def of_all_layers(op: Choose, picks: Picks) -> Picks:
    """Choices (N, L): of the layers before the decision, and those that it made (N, `op.layers`).

    Parameters
    ----------
    op : Choose
    picks : int64 array, (N, op.layers)

    Returns
    -------
    int64 array, (N, L)

    Examples
    --------
    >>> of_all_layers(Choose(2, "scores", before=(1,)), np.array([[0, 2]]))
    array([[1, 0, 2]])
    """
    before = np.tile(np.array(op.before, np.int64), (len(picks), 1))
    return np.concatenate([before, picks], axis=1)
