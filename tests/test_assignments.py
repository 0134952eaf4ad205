"""The assignments grade themselves: blank ones, right ones, and the kept wrong and cheating submissions."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import nbformat
import pytest
from nbgrader.converters import Autograde
from nbgrader.preprocessors import Execute, NbGraderPreprocessor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "assignments")]
import course  # noqa: E402
import submissions  # noqa: E402

KEPT = [(name, wrong) for name in course.NAMES for wrong in submissions.wrong(name)]


def execute(notebook, folder, send):
    """Run the cells as a kernel would, one space for all; send what each of them printed and raised."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    space = {"__name__": "__main__"}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        printed, outputs = io.StringIO(), []
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            try:
                exec(compile(cell.source, f"cell {number}", "exec"), space)
            except BaseException as error:
                told = {"ename": type(error).__name__, "evalue": str(error), "traceback": [traceback.format_exc()]}
                outputs = [{"output_type": "error", **told}]
        stream = {"output_type": "stream", "name": "stdout", "text": printed.getvalue()}
        send(json.dumps([number, [stream, *outputs]]).encode() + b"\n")


class InProcess(NbGraderPreprocessor):
    """nbgrader's `Execute` without a kernel: a fork of this process, so that nothing a student does remains."""

    def preprocess(self, nb, resources):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                execute(nb, resources["metadata"]["path"], lambda data: os.write(writing, data))
            os._exit(0)
        os.close(writing)
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                number, outputs = json.loads(line)
                nb.cells[number].outputs = [nbformat.from_dict(output) for output in outputs]
        os.waitpid(child, 0)
        missing = [cell for cell in nb.cells if cell.cell_type == "code" and not cell.outputs]
        assert not missing, "the run ended early"
        return nb, resources


WITHOUT_KERNEL = [InProcess if step is Execute else step for step in Autograde.autograde_preprocessors.default()]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    course.make(folder)
    return folder


def released(folder, name, which="release"):
    return nbformat.read(folder / which / name / f"{name}.ipynb", as_version=4)


def graded(folder, student, name, notebook, **changes):
    there = folder / "submitted" / student / name
    shutil.copytree(folder / "release" / name, there)
    nbformat.write(notebook, there / f"{name}.ipynb")
    changes = changes or {"Autograde": {"autograde_preprocessors": WITHOUT_KERNEL}}
    return course.grade(folder, student, name, **changes)


def points(name):
    return {task: most for task, (_, most) in course.facts(name)["tasks"].items()}


@pytest.mark.parametrize("name", course.NAMES)
def test_a_blank_submission_gets_nothing(made, name, record_property):
    got = graded(made, "blank", name, released(made, name))
    record_property("graded", [name, "blank", sum(got.values())])
    assert got == dict.fromkeys(points(name), 0)


@pytest.mark.parametrize("name", course.NAMES)
def test_the_solution_gets_all_points(made, name, record_property):
    notebook = submissions.filled(released(made, name), submissions.solutions(name))
    got = graded(made, "solution", name, notebook)
    record_property("graded", [name, "solution", sum(got.values())])
    assert got == points(name)
    assert sum(got.values()) == 100


@pytest.mark.parametrize(("name", "wrong"), KEPT, ids=lambda value: getattr(value, "name", value))
def test_a_wrong_submission_loses_its_points(made, name, wrong, record_property):
    notebook = submissions.submitted(released(made, name), wrong, submissions.solutions(name))
    got = graded(made, wrong.name, name, notebook)
    record_property("graded", [name, wrong.what, sum(got.values())])
    assert {task for task, most in points(name).items() if got[task] < most} == set(wrong.lost)
    assert all(got[task] == 0 for task in wrong.lost)
