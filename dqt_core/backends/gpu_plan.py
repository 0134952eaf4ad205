"""The plan of a whole program on a GPU: which kernels run, in what order, on which buffers.

A plan is made once for a batch size. It fuses (`fused`), gives every value a place in one block of memory
(`places`), and turns each step into a launch of a kernel with fixed arguments (`gpu_launches`). Running it is
then a walk along a list: nothing is allocated or decided, and nothing returns to the host between the image
bytes and the logits. That is also what a CUDA graph needs, which replays the walk without the host.

The same plan runs on two engines: CuPy on a GPU, and the emulator of `dqt_core.kernels` on a CPU.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core.backends.gpu_launches import Batch, FusedConv, Launch, Launches
from dqt_core.backends.shapes import value_shapes
from dqt_core.kernels.engine import Engine
from dqt_core.program import (
    IMAGE,
    Choose,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Program,
    Requantize,
    Scale,
    inputs,
)

ALIGNMENT = 256  # bytes; a whole number of every vector load, and of a line of the cache
Names: TypeAlias = tuple[str, ...]


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
    """Names of the values that a step reads."""
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


def lives(steps: Sequence[Step], forever: bool) -> dict[str, tuple[int, int]]:
    """The first and the last step of every value; `forever` keeps each to the end."""
    born = {IMAGE: 0} | {step.out: i for i, step in enumerate(steps) if not isinstance(step, Choose)}
    last = {name: i for i, step in enumerate(steps) for name in reads(step)}
    end = len(steps)
    # The result is read after the last step; the image is written before the first one.
    return {name: (at, end if forever else last.get(name, end)) for name, at in born.items()}


def dtypes(ops: Iterable[Op]) -> dict[str, np.dtype[Any]]:
    """The dtype of every value of a program."""
    known: dict[str, Any] = {IMAGE: np.uint8}
    for op in ops:
        if isinstance(op, Requantize):
            known[op.out] = np.uint8 if op.lo >= 0 else np.int8
        elif isinstance(op, MaxPool):
            known[op.out] = known[op.x]
        elif not isinstance(op, Choose):
            known[op.out] = {Lookup: np.int8, Scale: np.int64}.get(type(op), np.int32)
    return {name: np.dtype(kind) for name, kind in known.items()}


class Plan:
    """The launches of a program at one batch size, and every buffer they use.

    Parameters
    ----------
    program : Program
    launches : Launches
        Makes the launches; holds the weights and tables, which all plans of a program share.
    batch : int
        Images; fewer may be run, the rest are computed and not looked at.
    given : bool
        Whether the widths come with the images; otherwise the controller chooses.
    keep : bool
        Fuse nothing and let no two values share memory, so that every value can be looked at.
    """

    def __init__(self, program: Program, launches: Launches, batch: int, given: bool, keep: bool) -> None:
        self.batch, self.given = batch, given
        self._engine = launches.engine
        ops = [op for op in program.ops if not (given and op.controller)]
        steps: list[Step] = list(ops) if keep else fused(ops)
        self.values = self._allocate(program, ops, steps, keep)
        group = Batch(launches.engine.xp, batch, len(program.layers), len(program.choices))
        self.picks = group.picks
        self._run = self._compile(launches, steps, group)
        self.logits = self.values[steps[-1].out].reshape(batch, -1)  # type: ignore[union-attr]
        self._uses = 0
        self._replay: Callable[[], None] | None = None

    def _allocate(
        self, program: Program, ops: Sequence[Op], steps: Sequence[Step], keep: bool
    ) -> dict[str, Any]:
        shapes, kinds = value_shapes(program.ops, program.image_shape), dtypes(program.ops)
        alive = lives(steps, forever=keep)
        sizes = {name: self.batch * int(np.prod(shapes[name])) * kinds[name].itemsize for name in alive}
        offsets, total = places(sizes, alive)
        # Zeros: what stands in images that a partial batch does not fill is never unwritten memory.
        self._memory = self._engine.xp.zeros(total, np.uint8)
        return {
            name: self._memory[offset : offset + sizes[name]]
            .view(kinds[name])
            .reshape(self.batch, *shapes[name])
            for name, offset in offsets.items()
        }

    def _compile(self, launches: Launches, steps: Sequence[Step], group: Batch) -> list[Launch]:
        """The launches in order; the images are grouped by choice as soon as the choices are known."""
        grouping = [launches.group_images(group)] if group.layers else []
        made = list(grouping) if self.given else []
        for step in steps:
            made.append(launches.of(step, self.values, group))
            made += grouping if isinstance(step, Choose) else []
        return made

    def __call__(self) -> None:
        """Run on the current stream; from the second time on as one graph, on an engine that has graphs."""
        self._uses += 1
        capture = getattr(self._engine, "capture", None)
        if capture is not None and self._uses == 2:
            self._replay = capture(self._walk)
        (self._replay or self._walk)()

    def _walk(self) -> None:
        for launch in self._run:
            launch()


class Backend:
    """A program compiled for an engine.

    Parameters
    ----------
    program : Program
    engine : Engine

    Notes
    -----
    Plans are made when they are first needed and kept: for the largest batch so far, and for smaller ones at
    powers of two, so that the last part of a data set is padded and not planned anew for every size. Images
    beyond the batch are computed with the rest; no image's result depends on another image.
    """

    def __init__(self, program: Program, engine: Engine) -> None:
        self.program, self.engine = program, engine
        self._launches = Launches(engine, program.choices, program.rounding)
        self._plans: dict[tuple[int, bool], Plan] = {}

    def run(
        self, images: NDArray[np.uint8], choices: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One batch from the host and back to it; None: the controller chooses."""
        plan = self.start(images, choices)
        return _on_host(plan.logits[: len(images)]), _on_host(plan.picks[: len(images)]).astype(np.int64)

    def start(self, images: Any, choices: Any | None) -> Plan:
        """Fill the input buffers and run; the logits stay in the plan's buffer until its next run."""
        plan = self._plan(len(images), choices is not None)
        self._fill(plan, images, choices)
        plan()
        return plan

    def every_value(
        self, images: NDArray[np.uint8], choices: NDArray[np.int64] | None
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """Every value by name, from a run that fuses nothing; and the choices."""
        plan = Plan(self.program, self._launches, len(images), choices is not None, keep=True)
        self._fill(plan, images, choices)
        plan()
        values = {name: _on_host(value) for name, value in plan.values.items() if name != IMAGE}
        return values, _on_host(plan.picks).astype(np.int64)

    def _fill(self, plan: Plan, images: Any, choices: Any | None) -> None:
        xp = self.engine.xp
        plan.values[IMAGE][: len(images)] = xp.asarray(images)
        if choices is not None:
            plan.picks[: len(images)] = xp.asarray(choices)

    def _plan(self, images: int, given: bool) -> Plan:
        largest = max((batch for batch, mode in self._plans if mode == given), default=0)
        batch = images if images >= largest else min(largest, 1 << (images - 1).bit_length())
        if (batch, given) not in self._plans:
            self._plans[batch, given] = Plan(self.program, self._launches, batch, given, keep=False)
        return self._plans[batch, given]


def _on_host(array: Any) -> NDArray[Any]:
    """A copy in the host's memory, of an array of NumPy or CuPy."""
    return array.get() if hasattr(array, "get") else array.copy()
