"""The fast backend: kernels compiled by Numba for this processor, integers only, the bits of `numpy_ref`.

A plan is made for a program and kept with it. It joins every requantize to the convolution before it, gives
each value a place in one block of memory, and lists the steps that one compiled function then walks: between
the bytes of the images and the logits nothing is allocated.

============== ======================================================================================
`_layout`      what the compiled function is given: steps, blocks, terms, addresses
`_plan`        a program as such steps; `_weights`, those of a convolution in the order of their reading
`_buffers`     the memory of all that, and of a thread
`_kernels`     the compiled function, an operation at a time; `_convolutions`, the longest of them
`_products`    its dot products; `_vectors`, the rest of it that works on vectors
`_sharing`     how threads share the items of a step
============== ======================================================================================

`backends._processor` says which instructions there are, `backends._llvm` how functions are made of them.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from numba.core import event

from dqt_core.backends._numba_cache import require_compiler
from dqt_core.backends._processor import Machine, machine, pool, start_pool, threads
from dqt_core.backends.analysis import Picks
from dqt_core.backends.numba_cpu import _buffers as buffers
from dqt_core.backends.numba_cpu import _kernels as kernels
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.backends.numba_cpu._plan import Plan
from dqt_core.backends.numba_cpu._weights import Weights
from dqt_core.program import IMAGE, Conv, Program

ARENA = 1 << 26  # bytes of values; larger batches are run in parts


class _Notice(event.Listener):
    """Says once that the kernels are being compiled, which Numba does in silence."""

    is_due = True

    def on_start(self, event: Any) -> None:
        if self.is_due and event.data["dispatcher"] in (kernels.run, kernels.run_alone):
            self.is_due = False
            kept = "kept on disk"
            if not kernels.run.is_kept:
                kept = "not kept, as no folder of Numba's cache can be written to: set NUMBA_CACHE_DIR to one"
            print(f"dqt_core: compiling the kernels for this processor, once; {kept}", file=sys.stderr)

    def on_end(self, event: Any) -> None:
        """Nothing is said."""


event.register("numba:compile", _Notice())


def prepare() -> None:
    """Compile the kernels now, if they are not on disk; otherwise the first run does.

    Examples
    --------
    >>> prepare()
    """
    start_pool()
    kernels.run(*_nothing(), 1)
    _load_what_forks_need()


def _nothing() -> tuple[Any, ...]:
    """Arguments of a run without steps."""
    kinds = layout.MEMORY, layout.BLOCK, layout.TERM, layout.STEP
    return machine(), *(np.zeros(int(kind is layout.MEMORY), kind) for kind in kinds)


def _load_what_forks_need() -> None:
    kernels.run_alone(*_nothing())
    kernels.switch_weights(0, 0, 0, 0, 0)


def _before_fork() -> None:
    """Load, where kernels are in use, those that a child calls.

    A thread that ends holds a lock of the C++ runtime, and a child forked then keeps it for ever: it can run
    what is loaded, and would wait to load anything.
    """
    if kernels.run.signatures or kernels.run_alone.signatures:
        _load_what_forks_need()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)


class Workspace:
    """All that a run writes to."""

    def __init__(self, program: Program, weights: Mapping[str, Weights], machine: Machine) -> None:
        self.program, self._weights, self._machine = program, weights, machine
        self.plans: dict[bool, Plan] = {}
        self.arena = np.zeros(0, np.uint8)
        self.scratch: buffers.Scratch | None = None

    def plan(self, images: int, given: bool) -> Plan:
        """The plan for so many images, or for more."""
        if given not in self.plans or self.plans[given].capacity < images:
            self.plans[given] = Plan(self.program, self._weights, images, given)
        return self.plans[given]

    def run(
        self, plan: Plan, images: NDArray[np.uint8], choices: Picks | None
    ) -> tuple[dict[str, NDArray[np.int64]], Picks]:
        """What is made on the host, and the choices; the arena holds the rest."""
        workers = threads()
        if len(self.arena) < plan.size + buffers.MARGIN:
            self.arena = buffers.zeros(plan.size + buffers.MARGIN, np.uint8)
        if self.scratch is None or self.scratch.workers != workers:
            self.scratch = buffers.Scratch(self.program, self._weights, self._machine, workers)
        with contextlib.nullcontext() if workers == 1 else pool(workers):
            made, chosen = plan.run(images, choices, self.arena, self.scratch)
        assert chosen is not None, "the controller's Choose comes before the first switchable layer"
        return made, chosen


class Backend:
    """A program compiled for this processor.

    Parameters
    ----------
    program : Program

    Notes
    -----
    Each of the runs that are under way at the same time has a workspace of its own. One whose run was
    interrupted is not used again: it may be half filled.
    """

    def __init__(self, program: Program) -> None:
        require_compiler()
        self.program = program
        self._machine = machine()
        self._weights = {
            op.out: Weights(op, program.rounding, self._machine) for op in program.ops if isinstance(op, Conv)
        }
        one = Plan(program, self._weights, 1, given=False)
        self.most = max(1, ARENA // one.size)  # images at a time
        self.idle: list[Workspace] = []

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        try:
            workspace = self.idle.pop()
        except IndexError:
            workspace = Workspace(self.program, self._weights, self._machine)
        yield workspace
        self.idle.append(workspace)

    def run(self, images: NDArray[np.uint8], choices: Picks | None) -> tuple[NDArray[np.int64], Picks]:
        """One batch; None: the controller chooses."""
        logits, picks = [], []
        with self._workspace() as workspace:
            parts = -(-len(images) // self.most)
            size = -(-len(images) // parts)  # alike: what is found out for a part serves the next
            for start in range(0, len(images), size):
                part = slice(start, start + size)
                plan = workspace.plan(len(images[part]), choices is not None)
                made, chosen = workspace.run(plan, images[part], None if choices is None else choices[part])
                logits.append(next(reversed(made.values())).reshape(len(images[part]), -1))
                picks.append(chosen)
        return np.concatenate(logits), np.concatenate(picks)

    def every_value(
        self, images: NDArray[np.uint8], choices: Picks | None
    ) -> tuple[dict[str, NDArray[Any]], Picks]:
        """Every value by name, from a run that fuses nothing; and the choices."""
        with self._workspace() as workspace:
            plan = Plan(self.program, self._weights, len(images), choices is not None, keep=True)
            made, chosen = workspace.run(plan, images, choices)
            names = [name for name in plan.places if name != IMAGE and "/" not in name]
            values = {name: plan.value(name, len(images), workspace.arena).copy() for name in names}
            return values | made, chosen
