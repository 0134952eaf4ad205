"""The tasks of the notebook beside this file, in order: `pytest`, or one of them: `pytest -m a1_3`."""

import contextlib
import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NAME = re.search(r"^ +(\w+): all tasks", (HERE / "pytest.ini").read_text(encoding="utf-8"), re.MULTILINE)[1]
NOTEBOOK = HERE / f"{NAME}.ipynb"
CELLS = [
    cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
]


def graded():
    for number, cell in enumerate(CELLS):
        marks = cell["metadata"].get("nbgrader", {})
        if marks.get("grade"):
            task = marks["grade_id"].removesuffix("_check")
            yield pytest.param(
                number, marks=[getattr(pytest.mark, task), getattr(pytest.mark, NAME)], id=task
            )


@pytest.mark.parametrize("number", list(graded()))
def test_task(number):
    import grading

    space = {"__name__": "__main__"}
    for cell in CELLS[:number]:
        if not cell["metadata"].get("nbgrader", {}).get("grade"):
            with contextlib.suppress(NotImplementedError):
                exec("".join(cell["source"]), space)
    try:
        exec("".join(CELLS[number]["source"]), space)
    except grading.CheckFailed as error:
        pytest.fail(str(error), pytrace=False)
