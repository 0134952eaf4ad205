"""The plan of a whole program on a GPU: which kernels run, in what order, on which buffers.

A plan is made once for a batch size. It fuses (`fused`), gives every value a place in one block of memory
(`places`), and turns each step into a launch of a kernel with fixed arguments (`gpu_launches`). Running it is
then a walk along a list: nothing is allocated or decided, and nothing returns to the host between the image
bytes and the logits. That is also what a CUDA graph needs, which replays the walk without the host.

The same plan runs on two engines: CuPy on a GPU, and the emulator of `dqt_core.kernels` on a CPU.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.backends.analysis import Step, early_choices, fused, lives, places, sizes
from dqt_core.backends.gpu_launches import Batch, Launch, Launches, Series
from dqt_core.kernels.engine import Engine
from dqt_core.program import IMAGE, Choose, Program


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
        self.values = self._allocate(program, steps, keep)
        group = Batch(launches.engine.xp, batch, len(program.layers), len(program.choices))
        self.picks = group.picks
        self._run = self._compile(launches, steps, group)
        self.logits = self.values[steps[-1].out].reshape(batch, -1)  # type: ignore[union-attr]
        self.done: Any = None  # says when its last run is over, where there are streams
        self._uses = 0
        self._replay: Callable[[], None] | None = None

    def _allocate(self, program: Program, steps: Sequence[Step], keep: bool) -> dict[str, Any]:
        known, alive = program.values, lives(steps, forever=keep)
        bytes_of = sizes(known, alive, self.batch)
        offsets, total = places(bytes_of, alive)
        # Zeros: what stands in images that a partial batch does not fill is never unwritten memory.
        self._memory = self._engine.xp.zeros(total, np.uint8)
        return {
            name: self._memory[offset : offset + bytes_of[name]]
            .view(known[name].dtype)
            .reshape(self.batch, *known[name].shape)
            for name, offset in offsets.items()
        }

    def _compile(self, launches: Launches, steps: Sequence[Step], group: Batch) -> list[Launch | Series]:
        """The launches in order; the images are grouped by choice as soon as the choices are known."""
        grouping = [launches.group_images(group)] if group.layers else []
        early = early_choices(steps)
        group.picks[:, : len(early)] = self._engine.xp.asarray(np.array(early, np.int32))
        made: list[Launch | Series] = list(grouping) if self.given or early else []
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
    beyond the batch are computed with the rest; no image's result depends on another image. Each of the runs
    that are under way at the same time has a plan of its own. An interrupted run's is not used again.
    """

    def __init__(self, program: Program, engine: Engine) -> None:
        self.program, self.engine = program, engine
        self._launches = Launches(engine, program.choices, program.rounding)
        self._idle: dict[tuple[int, bool], list[Plan]] = {}

    def run(
        self, images: NDArray[np.uint8], choices: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One batch from the host and back to it; None: the controller chooses."""
        with self._started(images, choices) as plan:
            return _on_host(plan.logits[: len(images)]), _on_host(plan.picks[: len(images)]).astype(np.int64)

    def logits(self, images: Any, choices: Any | None) -> Any:
        """Of images that may be on the device, where the logits stay."""
        with self._started(images, choices) as plan:
            return plan.logits[: len(images)].copy()

    @contextlib.contextmanager
    def _started(self, images: Any, choices: Any | None) -> Iterator[Plan]:
        """A plan that runs on the current stream; within, its buffers are no other run's."""
        plan = self._taken(len(images), choices is not None)
        self._fill(plan, images, choices)
        plan()
        yield plan
        self._give_back(plan)

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

    def _taken(self, images: int, given: bool) -> Plan:
        largest = max((batch for batch, mode in list(self._idle) if mode == given), default=0)
        batch = images if images >= largest else min(largest, 1 << (images - 1).bit_length())
        try:
            return self._idle.setdefault((batch, given), []).pop()
        except IndexError:
            return Plan(self.program, self._launches, batch, given, keep=False)

    def _give_back(self, plan: Plan) -> None:
        self._idle[plan.batch, plan.given].append(plan)


def _on_host(array: Any) -> NDArray[Any]:
    """A copy in the host's memory, of an array of NumPy or CuPy."""
    return array.get() if hasattr(array, "get") else array.copy()
