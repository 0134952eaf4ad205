"""What a notebook was called with, checked before it does any work; and where its results go.

Papermill writes the parameters that it was given into a cell of their own, below the notebook's. It warns of
a name that the notebook does not have, and goes on.
"""

import ast
import math
import tempfile
from pathlib import Path

from IPython import get_ipython

from dqt_book.places import ROOT

INJECTED = "# Parameters\n"  # how papermill begins its cell


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or one that it cannot use."""


def choice(*values):
    return f"one of {', '.join(map(repr, values))}", lambda value: value in values


def whole(least):
    return f"an integer from {least} on", lambda value: type(value) is int and value >= least


def optional(rule):
    return f"{rule[0]}, or None", lambda value: value is None or rule[1](value)


def place(*words):
    """A file or a folder that is there, or one of some words."""
    said = "".join(f"{word!r} or " for word in words)

    def is_there(value):
        return isinstance(value, str) and (value in words or (value != "" and Path(value).exists()))

    return f"{said}a path that exists", is_there


FLAG = "True or False", lambda value: type(value) is bool
TEXT = "text", lambda value: isinstance(value, str)
POSITIVE = "a positive number", lambda value: type(value) in (int, float) and 0 < value < math.inf
WIDTHS = (
    "a list of widths 1 to 8",
    lambda value: isinstance(value, list) and value and all(type(w) is int and 0 < w < 9 for w in value),
)


def check(values, **rules):
    """Refuse a parameter that has no rule, and one that its rule refuses.

    `values` maps names to values, as the notebook's `globals()` does; a rule is its words, and a function
    that says whether a value will do.
    """
    for name in injected(values.get("In", ())):
        if name not in rules:
            raise ParameterError(f"there is no parameter {name}; this notebook has {', '.join(rules)}")
    for name, (words, allows) in rules.items():
        if not allows(values[name]):
            raise ParameterError(
                f"{name} is {values[name]!r}, expected {words}; run it again with another value"
            )


def injected(cells):
    """The names that papermill was given, of the texts of all cells so far; not those that it adds itself."""
    for cell in cells:
        for line in ast.parse(cell).body if cell.startswith(INJECTED) else []:
            name = line.targets[0].id
            if not name.startswith("PAPERMILL_"):
                yield name


def output(folder):
    """The folder for a run's results, made and tried now: they are written when all the work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ParameterError(
            f"nothing can be written to {folder} ({error.strerror}); name another folder by -p out FOLDER"
        ) from error
    return folder


def say(what, path):
    """Print where a result is, on the terminal behind the notebook too: papermill may keep no notebook."""
    print(f"{what}: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.kernel.log.warning(f"{what}: {path}")
