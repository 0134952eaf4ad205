"""Submissions that are kept: right ones, and wrong ones that lose exactly the points they should."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dqt_book.assignments import course


@dataclass(frozen=True)
class Wrong:
    """A submission with something wrong in it.

    `answers` replace the right ones, {task: source of its cell}. `first` is a cell of the student's own
    before all tasks. `edit` is done to the notebook last.
    """

    name: str
    what: str
    lost: tuple[str, ...]
    answers: dict[str, str] = field(default_factory=dict)
    first: str = ""
    edit: Callable[[Any], None] | None = None


def solutions(name):
    """{task: source} of an assignment's answers, without the marks around them."""
    marks = ("### BEGIN SOLUTION", "### END SOLUTION")
    return {
        cell.metadata.nbgrader.grade_id: "\n".join(
            line for line in cell.source.splitlines() if line.strip() not in marks
        )
        for cell in course.instructor(name).cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def changes(name):
    """A function of a task and of pairs (old, new): {task: the right answer with each old text replaced}."""
    right = solutions(name)

    def changed(task, *pairs):
        text = right[task]
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        return {task: text}

    return changed


def filled(released, answers):
    """The notebook a student was given, with answers typed in."""
    made = copy.deepcopy(released)
    for cell in made.cells:
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("solution") and marks.grade_id in answers:
            cell.source = answers[marks.grade_id]
    return made


def submitted(released, wrong, right):
    """The notebook of a wrong submission; `right` are the answers that it starts from."""
    made = filled(released, right | wrong.answers)
    if wrong.first:
        begin = next(i for i, cell in enumerate(made.cells) if cell.metadata.get("nbgrader"))
        cell = copy.deepcopy(made.cells[begin])
        cell.metadata.clear()
        cell.update(id="own", source=wrong.first)
        made.cells.insert(begin + 1, cell)
    if wrong.edit:
        wrong.edit(made)
    return made


def wrong(name):
    """The kept wrong submissions of an assignment."""
    return _kept(course.SOURCES / name / "wrong.py")


def cheats():
    """The kept submissions of A1 that attack the grader."""
    return _kept(course.SOURCES / "cheats.py")


def _kept(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


def emptied(notebook):
    """Replace every check by nothing, and ask for ten times the points."""
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("grade"):
            cell.source, marks["points"] = "pass", 10 * marks["points"]


def removed(notebook):
    """Take every check out."""
    notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("grade")]


def renamed(notebook):
    """Give the second check another name, and take the last one out."""
    checks = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    checks[1].metadata.nbgrader.grade_id += "_done"
    notebook.cells.remove(checks[-1])
