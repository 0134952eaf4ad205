"""What the checks of all assignments share: fresh inputs, oracles that nobody has changed, closed modules.

Each assignment has a module `tasks` beside its notebook. A task judges a function on what a random generator
gives it; `check` runs it on inputs that are always the same, `grade` on fresh ones.
"""

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator

import numpy as np

PACKAGE = "dqt_core"


class _Closed:
    """A finder that refuses modules, and says why."""

    closes: tuple[str, ...]

    def __init__(self, names, reason):
        self.closes, self.reason = names, reason

    def find_spec(self, name, path=None, target=None):
        if any(name == closed or name.startswith(f"{closed}.") for closed in self.closes):
            raise ImportError(f"{name} is closed in this notebook: {self.reason}")


def close(reason, *names):
    """Refuse imports of the package, or of these modules of it, from here on.

    What a task asks for is then not to be had by calling it. The checks keep copies of their own.
    """
    closed = tuple(f"{PACKAGE}.{name}" for name in names) or (PACKAGE,)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "closes")]
    sys.meta_path.insert(0, _Closed(closed, reason))
    for name in [*sys.modules]:
        if any(name == one or name.startswith(f"{one}.") for one in closed):
            parent, _, last = name.rpartition(".")
            with contextlib.suppress(KeyError, AttributeError):
                delattr(sys.modules[parent], last)
            del sys.modules[name]


@contextlib.contextmanager
def pristine() -> Iterator[None]:
    """Import modules of the package from their files, whatever the notebook closed or changed.

    All is put back afterwards. The package's own `__init__` is not run: it imports much that nobody needs.
    """

    def own():
        return [name for name in sys.modules if name.partition(".")[0] == PACKAGE]

    finders, kept = sys.meta_path[:], {name: sys.modules.pop(name) for name in own()}
    sys.meta_path[:] = [finder for finder in finders if not hasattr(finder, "closes")]
    try:
        package = types.ModuleType(PACKAGE)
        package.__path__ = importlib.util.find_spec(PACKAGE).submodule_search_locations
        sys.modules[PACKAGE] = package
        yield
    finally:
        for name in own():
            del sys.modules[name]
        sys.modules.update(kept)
        sys.meta_path[:] = finders


def oracles(*names):
    """Modules of the package, read from their files anew."""
    with pristine():
        return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]


with pristine():
    import judging
Case, Launch, bits = judging.Case, judging.Launch, judging.bits


class CheckFailed(AssertionError):
    """A task is not solved; the message says where."""

    def _render_traceback_(self):
        # A notebook shows this instead of the checker's own lines.
        return [str(self)]


def checkers(tasks):
    """`check` and `grade` for {name: task}; a task gets (function, rng) and returns a `judging.Verdict`."""

    def check(name, function, seed=0):
        """Raise CheckFailed at the first wrong element; the same inputs every time for a seed."""
        if name not in tasks:
            raise ValueError(f"there is no task {name!r}, the tasks are {', '.join(tasks)}")
        verdict = tasks[name](function, np.random.default_rng([seed, *name.encode()]))
        if not verdict:
            raise CheckFailed(f"{name}: {verdict.message}")
        print(f"{name}: {verdict.message}")

    def grade(name, function):
        """`check` on inputs that nobody has seen: 0 is the seed of those that all have."""
        seed = 1 + int.from_bytes(os.urandom(4), "little")
        print(f"Fresh inputs; the same again: check({name!r}, ..., seed={seed})")
        check(name, function, seed)

    return check, grade


def judge(function, cases, right):
    """As `judging.judge`, and a result must consist of integers."""

    def integral(*arguments):
        result = function(*arguments)
        kind = np.asarray(result).dtype
        if result is not None and result is not Ellipsis and kind.kind not in "iub":
            raise TypeError(f"it returned {kind} numbers; codes and sums are integers")
        return result

    return judging.judge(integral, cases, right)


def among(rng, telling, drawn):
    """Inputs in a random order: the telling ones, which every draw has, among drawn ones."""
    return rng.permutation(np.concatenate([telling, drawn]))


def steps(rows, got, slips):
    """Lines that lead to the right value, and, where one fits, the slip that leads to `got`.

    `rows` are (what, value, bits shown), `slips` are {what went wrong: the value it gives}.
    """
    lines = [f"    {what:<34} {value:>20}  {bits(value, width)}" for what, value, width in rows]
    found = [slip for slip, value in slips.items() if value == got]
    if found:
        lines.append(f"    {got} is what comes out {found[0]}.")
    return "\n".join(lines)
