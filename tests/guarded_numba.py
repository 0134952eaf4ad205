"""Run the backend numba with all of its memory between pages that may not be touched.

    python guarded_numba.py SIDE WORKERS [TEXT REPLACEMENT FOLDER]

An access outside ends the process, which is why it is one of its own; the case it happened in is the last
that was printed. Bytes left over beside a buffer are filled, and looked at after every run. Every value has
pages of its own too, with the line that may be read beyond it. With TEXT the backend is a copy with one
planted error; where its kernels hold the text it is theirs, and they are compiled in FOLDER.
"""

import contextlib
import importlib
import itertools
import math
import mmap
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from mutations import bases, mutant_of
from program_checks import (
    CHOICES,
    conv,
    joined_program,
    mixed_choices,
    requantize,
    saturated,
    small_images,
    small_program,
)
from strategies import runs

from dqt_core import ProgramError
from dqt_core.backends import numba_cpu
from dqt_core.backends.numba_cpu import _layout
from dqt_core.kernels.emulator import FILL, PAGE, _forbid
from dqt_core.program import IMAGE, Conv, Lookup, MaxPool, Program, Requantize, Scale, SumPool, Term


class OutsideError(Exception):
    """A byte outside a buffer was written."""


class Pages:
    """Filled memory of which some pages may not be touched."""

    def __init__(self, size):
        self.bytes = np.frombuffer(mmap.mmap(-1, _whole_pages(size)), np.uint8)
        self.bytes[:] = FILL
        self._left_over = []

    def leave(self, start, end):
        """Nothing may write here."""
        self._left_over.append(self.bytes[start:end])

    def forbid(self, start):
        _forbid(self.bytes[start : start + PAGE])

    def require_intact(self):
        if any((part != FILL).any() for part in self._left_over):
            raise OutsideError("a write outside a buffer")


class Guard:
    """Takes the place of what allocates in a copy of `numba_cpu`."""

    def __init__(self, module, side):
        # side: "end" or "start" of its pages, where a buffer stands
        self._module, self._side, self._all = module, side, []
        self._layouts = []  # (what `places` returned, the pages and the value of every place)
        module.buffers.zeros, module._plan.places = self.memory, self.places
        guard = self

        class Workspace(module.Workspace):
            """Values that live at different times share no memory, nor does one run with the next."""

            def run(self, plan, images, choices):
                self.arena = guard.arena(plan)
                return super().run(plan, images, choices)

        self.Backend, module.Workspace = module.Backend, Workspace

    def memory(self, size, dtype, alignment=_layout.LINE):
        count = size * np.dtype(dtype).itemsize
        pages = self._pages(_whole_pages(count) + 2 * PAGE)
        room = -(-count // alignment) * alignment
        end = len(pages.bytes) - PAGE
        start = end - room if self._side == "end" else PAGE
        pages.leave(PAGE, start)
        pages.leave(start + count, end)
        pages.forbid(0)
        pages.forbid(end)
        buffer = pages.bytes[start : start + count]
        buffer[:] = 0
        return buffer.view(dtype)

    def places(self, sizes, lives):
        """Every value between pages of its own; with the margin the total is whole pages."""
        margin, offsets, layout, at = self._module.buffers.MARGIN, {}, [], 0
        for name, size in sizes.items():
            first, last = at + PAGE, at + PAGE + _whole_pages(size + margin)
            offsets[name] = start = last - margin - size if self._side == "end" else first
            layout.append((first, start, start + size, last))
            at = last
        total = at + PAGE - margin
        self._layouts.append((offsets, layout))
        return offsets, total

    def arena(self, plan):
        margin = self._module.buffers.MARGIN
        pages = self._pages(plan.size + margin)
        layout = next(layout for offsets, layout in self._layouts if offsets is plan.places)
        for first, start, end, last in layout:
            pages.forbid(first - PAGE)
            pages.leave(first, start)
            pages.leave(end, last)
        pages.forbid(plan.size + margin - PAGE)
        return pages.bytes

    def _pages(self, size):
        self._all.append(Pages(size))
        return self._all[-1]

    def require_intact(self):
        for pages in self._all:
            pages.require_intact()

    def forget(self):
        self._all.clear()
        self._layouts.clear()


def _whole_pages(size):
    return -(-max(size, 1) // PAGE) * PAGE


def programs():
    """Every geometry by name."""
    for terms, rounding in ((65_793, "half_up"), (32_896, "floor"), (32_896, "half_up"), (64, "half_up")):
        yield f"{terms} terms, {rounding}", saturated(terms, rounding)
    for rounding in ("half_up", "floor"):
        yield f"small, {rounding}", small_program(rounding)
        yield f"joined, {rounding}", joined_program(rounding)
        for name, (shape, layers) in GEOMETRIES.items():
            yield f"{name}, {rounding}", network(shape, layers, rounding)


# Of the image; (outputs, kernel, stride, padding, groups) of every convolution, None: a max-pool.
GEOMETRIES = {
    "one pixel": ((1, 1, 3), [(64, 1, 1, 0, 1), (65, 1, 1, 0, 1), (3, 3, 1, 1, 1)]),
    "whole lines": ((7, 5, 3), [(64, 3, 1, 1, 1), (128, 1, 1, 0, 1), (64, 3, 2, 1, 1), (32, 1, 1, 0, 1)]),
    "odd channels": ((7, 5, 3), [(33, 3, 1, 1, 1), None, (17, 1, 2, 0, 1), (15, 3, 2, 0, 1)]),
    "depthwise": ((6, 5, 3), [(17, 3, 1, 1, 17), (17, 3, 2, 1, 17), (130, 1, 1, 0, 1), (130, 3, 1, 1, 130)]),
    "groups": ((5, 6, 3), [(128, 1, 1, 0, 1), (66, 3, 1, 1, 2), (6, 3, 2, 1, 3)]),
    "long windows in full blocks": ((11, 10, 3), [(260, 1, 1, 0, 1), (10, 3, 1, 1, 2)]),
    "longer windows than a block holds": ((6, 6, 3), [(2000, 1, 1, 0, 1), (4, 3, 1, 1, 2)]),
    "many pixels": ((40, 40, 3), [(4, 3, 1, 1, 1)]),
    "many pixels in full blocks": ((40, 40, 3), [(45, 3, 1, 1, 1)]),
    "many channels": ((3, 2, 3), [(1101, 1, 1, 0, 1), (1101, 3, 1, 1, 1101)]),
}


def network(shape, layers, rounding):
    """A stem, the convolutions of a geometry with their requantizes, a sum-pool and a classifier."""
    rng = np.random.default_rng(0)
    stem = layers[0][0] if layers[0][4] > 1 else 5
    ops = [
        Lookup(rng.integers(-128, 128, (3, 256)).astype(np.int8), "input", IMAGE),
        conv(rng, "stem", "input", (stem, 1, 1, 3)),
        requantize(rng, "stem:codes", [("stem:sum", 3, stem, None)], -128, 127),
    ]
    x, channels, count = "stem:codes", stem, 0
    for i, layer in enumerate(layers):
        if layer is None:
            ops.append(MaxPool(3, 1, 1, x, f"pool{i}"))
            x = f"pool{i}"
            continue
        outputs, kernel, stride, padding, groups = layer
        weight = outputs, kernel, kernel, channels // groups
        ops.append(conv(rng, f"conv{i}", x, weight, stride, padding, groups, count))
        terms, lowest = [(f"conv{i}:sum", kernel**2 * channels // groups, outputs, count)], -128 * (i % 2)
        ops.append(requantize(rng, f"codes{i}", terms, lowest, lowest + 255))
        x, channels, count = f"codes{i}", outputs, count + 1
    one, offset = np.ones((1, 1), np.int32), np.zeros((1, 1), np.int64)
    ops += [
        SumPool(x, "sums"),
        Requantize((Term("sums", one, offset, None),), 4, 0, 255, "features"),
        conv(rng, "classifier", "features", (5, 1, 1, channels)),
        Scale(Term("classifier:sum", one, offset, None), 1, "logits"),
    ]
    names = tuple(op.name for op in ops if isinstance(op, Conv) and op.layer is not None)
    return Program("geometry", tuple(ops), CHOICES, names, shape, rounding)


def batches(program):
    """Images and choices: alike, different, fewer than before; the controller's."""
    rng = np.random.default_rng(0)
    if program.name == "small" and program.has_controller and program.image_shape == (5, 4, 3):
        yield from ((small_images(), choices) for choices in (mixed_choices(), None, mixed_choices()[::-1]))
    for n, is_mixed in itertools.product((3, 1), (True, False)):
        images = rng.integers(0, 256, (n, *program.image_shape)).astype(np.uint8)
        rows = n if is_mixed else 1
        choices = rng.integers(0, len(program.choices), (rows, len(program.layers)))
        yield images, np.repeat(choices, n // rows, axis=0)


def check(guard, program, batches):
    """The bits of `numpy`, and no byte outside."""
    backend = guard.Backend(program)
    for images, choices in batches:
        widths = "controller" if choices is None else np.array(program.choices)[choices]
        expected = program.run(images, widths, "numpy")
        for logits, picks in (backend.run(images, choices), _of_every_value(backend, images, choices)):
            guard.require_intact()
            np.testing.assert_array_equal(logits, expected.logits)
            np.testing.assert_array_equal(picks, expected.choices)
    guard.forget()


def _of_every_value(backend, images, choices):
    values, picks = backend.every_value(images, choices)
    return values[backend.program.ops[-1].out].reshape(len(images), -1), picks


def check_all(module, side, examples):
    """Raise, or end the process, where a byte outside of a buffer is touched."""
    guard = Guard(module, side)
    for name, program in programs():
        print(name, flush=True)
        check(guard, program, batches(program))

    @settings(deadline=None, derandomize=True, max_examples=examples, database=None)
    @given(run=runs(max_size=12, max_images=12))
    def on_random_programs(run):
        check(guard, run.program, [(run.images, run.choices)])

    print("random programs", flush=True)
    on_random_programs()

    numbers = itertools.count()

    @settings(deadline=None, derandomize=True, max_examples=examples, database=None)
    @given(program=bases())
    def on_programs_with_mistakes(program):
        """What is accepted of them."""
        for number in itertools.islice(numbers, 10):
            with contextlib.suppress(ProgramError):
                program = mutant_of(program, random.Random(number)).program()
                if sum(math.prod(value.shape) for value in program.values.values()) < 2**16:
                    check(guard, program, batches(program))

    print("programs with mistakes", flush=True)
    on_programs_with_mistakes()


PACKAGE, FOLDER = re.escape(numba_cpu.__name__), Path(numba_cpu.__file__).parent
ON_HOST = "__init__", "_buffers", "_weights", "_plan"  # what Numba compiles anew only if the error is there


def planted(text, replacement, folder):
    """A copy of the backend that differs in one place."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    found = [name for name, source in sources.items() if text in source]
    assert [sources[name].count(text) for name in found] == [1], (
        f"{text!r} is not there once: adapt the mutant"
    )
    copied = ON_HOST if found[0] in ON_HOST else sources
    names = "|".join(sorted(set(copied) - {"__init__"}))
    there = Path(folder) / "wrong_backend"
    there.mkdir()
    for name in copied:
        source = sources[name].replace(text, replacement)
        source = re.sub(rf"{PACKAGE}(?= import ({names}) as|\.({names}) import)", "wrong_backend", source)
        (there / f"{name}.py").write_text(source, encoding="utf-8")
    sys.path.insert(0, str(folder))
    return importlib.import_module("wrong_backend")


def in_a_process(script, *arguments, **environment):
    """A finished Python process, which may have crashed."""
    paths = [Path(__file__).parents[1], Path(__file__).parent, os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, filter(None, paths)))} | environment
    command = [sys.executable, "-X", "faulthandler", script, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def main(side, workers, *mutation):
    module = planted(*mutation) if mutation else numba_cpu
    module.threads = lambda: int(workers)
    print(type(module.machine()).__name__)
    # threads that wait for each other are slow where the machine does something else too
    check_all(module, side, examples=1 if mutation else 30 if workers == "1" else 5)
    print("intact")


if __name__ == "__main__":
    main(*sys.argv[1:])
