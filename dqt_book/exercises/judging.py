"""How a student's function is judged: the first wrong element, its bits, and what leads to it.

The exercises of the chapters (`checks`) and the tasks of the assignments share this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

UNSIGNED = np.arange(256).astype(np.uint8)  # every code of a byte, read as unsigned and as signed
SIGNED = UNSIGNED.view(np.int8)


@dataclass(frozen=True)
class Verdict:
    """What a checker says; true if the exercise is solved."""

    passed: bool
    message: str

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return self.message


class Case(NamedTuple):
    """A call and what it has to return.

    `width` is the number of bits that an element is shown with. `element` names an element by its place in
    the flattened result. `explain` gets that place and the wrong value, and says how the right one comes
    about.
    """

    call: str
    arguments: tuple[Any, ...]
    expected: Any
    width: int
    element: Callable[[int], str] | None = None
    explain: Callable[[int, int], str] | None = None


class Launch(NamedTuple):
    """A kernel's run: the first argument is what it reads, the one at place `out` what it writes."""

    what: str
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    expected: Any
    width: int
    element: Callable[[int], str]
    out: int = 1
    block: tuple[int, int, int] = (128, 1, 1)
    explain: Callable[[int, int], str] | None = None


def bits(code, width):
    """The two's complement bits of a code; more than `width` of them where the code does not fit."""
    code = int(code)
    fits = -(1 << (width - 1)) <= code < 1 << width
    return format(code & ((1 << width) - 1), f"0{width}b") if fits else format(code, "b")


def judge(function, cases: Sequence[tuple], right, element=None):
    """Compare function(*arguments) with what is expected; cases are `Case` or their first fields."""
    for case in cases:
        call, arguments, expected, width, name, explain = Case(*case)
        try:
            got = function(*[a.copy() if isinstance(a, np.ndarray) else a for a in arguments])
        except Exception as error:
            return Verdict(False, f"{call} raised {type(error).__name__}: {error}")
        if got is None or got is Ellipsis:
            return Verdict(False, f"Not solved yet: {call.partition('(')[0]} returned {got}.")
        problem = first_wrong(np.asarray(got), np.asarray(expected), width, name or element, explain)
        if problem:
            return Verdict(False, f"{call}: {problem}")
    return Verdict(True, f"Right: {right}.")


def judge_kernel(emulation, function, name, kernel, cases, right, header="common.cuh"):
    """Run the kernel that function() is the text of, in both orders of threads and strictly; then on a GPU.

    Cases are `Launch`, or (what it is run on, blocks of 128 threads, arguments, expected, bits); then the
    first argument holds codes, the second receives the result. A GPU is asked where one answers, and only
    for texts that need no header.
    """
    if lacks := emulation.missing():
        return Verdict(False, f"Not checked: {lacks}.")
    text = function()
    if text is None or text is Ellipsis:
        return Verdict(False, f"Not solved yet: {name} returned {text}.")
    launches = [case if isinstance(case, Launch) else _over_codes(*case) for case in cases]
    where = "both orders of threads"
    try:
        for order in ("ascending", "descending"):
            run = emulation.compiled(text, kernel, header, backwards=order == "descending", checked=True)
            if problem := _launched(run, launches):
                return Verdict(False, f"{name}, {problem[0]}, threads in {order} order: {problem[1]}")
    except emulation.EmulatorError as error:
        return Verdict(False, f"{name}: {error}")
    if header != "common.cuh" and (run := emulation.on_gpu(text, kernel)):
        where += " and on the GPU"
        if problem := _launched(run, launches):
            return Verdict(False, f"{name}, {problem[0]}, on the GPU: {problem[1]}")
    return Verdict(True, f"Right: {right}, in {where}.")


def _launched(run, launches):
    """What a launch was run on, and its first wrong element; None if all are right."""
    for launch in launches:
        arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in launch.arguments]
        run(launch.grid, launch.block, tuple(arguments))
        got, wanted = arguments[launch.out], np.asarray(launch.expected)
        problem = first_wrong(got, wanted, launch.width, launch.element, launch.explain)
        if problem:
            return launch.what, problem
    return None


def first_wrong(got, expected, width, element=None, explain=None):
    """Name the first element of an array that is wrong, or return None."""
    if got.dtype.kind not in "biuf" or (got.dtype.kind == "f" and (got % 1 != 0).any()):
        return f"expected integers, got {got.dtype} {got.ravel()[:3].tolist()}"
    common = min(got.size, expected.size)
    wrong = np.flatnonzero(got.ravel()[:common] != expected.ravel()[:common])
    if got.ndim == expected.ndim and wrong.size:
        i = int(wrong[0])
        values = [int(array.ravel()[i]) for array in (expected, got)]
        where = f"first wrong at {element(i)}: " if element else ""
        pair = [f"{value} ({bits(value, width)})" for value in values]
        steps = f"\n{explain(i, values[1])}" if explain else ""
        return f"{where}expected {pair[0]}, got {pair[1]}{steps}"
    if got.shape != expected.shape:
        return f"expected shape {expected.shape}, got {got.shape}"
    return None


def _over_codes(what, blocks, arguments, expected, width):
    codes = arguments[0]

    def element(i):
        return f"element {i}, of code {codes[i]} ({bits(codes[i], 8)})"

    return Launch(what, (blocks, 1, 1), arguments, expected, width, element)


def judge_each(function, cases, right, noun):
    """As `judge`; the first argument of every case is an array, whose elements are named."""
    for case in cases:
        given, width = case[1][0], case[3]
        verdict = judge(
            function, [case], right, lambda i, g=given, w=width: f"{noun} {g[i]} ({bits(g[i], w)})"
        )
        if not verdict:
            return verdict
    return verdict


def judge_reals(function, cases, right, element):
    """As `judge` for real numbers, equal to five digits; cases are (call, arguments, expected)."""
    for call, arguments, expected in cases:
        try:
            got = function(*[a.copy() if isinstance(a, np.ndarray) else a for a in arguments])
        except Exception as error:
            return Verdict(False, f"{call} raised {type(error).__name__}: {error}")
        if got is None or got is Ellipsis:
            return Verdict(False, f"Not solved yet: {call.partition('(')[0].split()[0]} returned {got}.")
        got = np.asarray(got, float)
        if got.shape != expected.shape:
            return Verdict(False, f"{call}: expected shape {expected.shape}, got {got.shape}")
        wrong = np.flatnonzero(~np.isclose(got, expected, rtol=1e-5, atol=1e-4))
        if wrong.size:
            i = wrong[0]
            values = f"expected {expected[i]:.6g}, got {got[i]:.6g}"
            return Verdict(False, f"{call}: first wrong at {element(i)}: {values}")
    return Verdict(True, f"Right: {right}.")
