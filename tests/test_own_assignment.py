"""An assignment of one's own: a folder is enough, and a rule that it breaks is named."""

import json

import nbformat
import pytest

from dqt_book.assignments import course, marking, room, submissions

OWN = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
assignment: {title: Widths, minutes: 10, chapters: [2]}
---

# Widths

```{code-cell} ipython3
:nbgrader: {grade_id: widths_begin, locked: true}
import tasks
from tasks import check
```

## Task 1: codes

```{code-cell} ipython3
:nbgrader: {grade_id: widths_1, solution: true}
def codes(b):
    ### BEGIN SOLUTION
    return 2**b
    ### END SOLUTION
```

```{code-cell} ipython3
:nbgrader: {grade_id: widths_1_check, grade: true, points: 7}
CHECK
```
"""
OWN_TASKS = """
from grading import Case, checkers, judge
def widths_1(codes, rng):
    return judge(codes, [Case(f"codes({b})", (b,), 2**b, 9) for b in rng.permutation(8).tolist()], "8 widths")
check, grade = checkers({"widths_1": widths_1})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    sources = tmp_path / "sources"
    (sources / "widths").mkdir(parents=True)
    (sources / "widths" / "widths.md").write_text(OWN.replace("CHECK", 'check("widths_1", codes)'))
    (sources / "widths" / "tasks.py").write_text(OWN_TASKS)
    monkeypatch.setattr(course, "SOURCES", sources)
    monkeypatch.setattr(course, "NAMES", ("widths",))
    return sources / "widths"


def test_an_assignment_of_ones_own_is_a_folder(own, tmp_path, capsys):
    folder = tmp_path / "course"
    course.make(folder, course.NAMES)
    released = nbformat.read(folder / "release" / "widths" / "widths.ipynb", as_version=4)
    for student, answers in (("ann", {}), ("bob", submissions.solutions("widths"))):
        (tmp_path / "class" / student).mkdir(parents=True)
        handed_in = json.dumps(submissions.filled(released, answers))
        (tmp_path / "class" / student / "widths.ipynb").write_text(handed_in)
    assert marking.grade_all(folder, tmp_path / "class", kind=room.Forked) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[3:5]] == [
        ["ann", "widths", "0/7"],
        ["bob", "widths", "7/7"],
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'check("widths_1", codes)',
            "assert codes(2) == 4",
            r"widths_1_check ends in assert .*; expected check\('widths_1'",
        ),
        ('check("widths_1", codes)', 'check("widths_1", codes, seed=3)', "expected check"),
        ("grade_id: widths_1_check", "grade_id: widths_1_test", "expected widths_1_test_check"),
        (
            "grade_id: widths_begin",
            "grade_id: begin",
            r"widths\.md: a cell has the grade_id begin, expected widths_",
        ),
    ],
)
def test_a_rule_that_an_own_assignment_breaks_is_named(own, tmp_path, old, new, said):
    source = own / "widths.md"
    source.write_text(source.read_text().replace(old, new))
    with pytest.raises(ValueError, match=said):
        course.make(tmp_path / "course", course.NAMES)


def test_a_name_with_an_underscore_is_refused(own, tmp_path, monkeypatch):
    source = own.rename(own.with_name("two_words"))
    (source / "widths.md").rename(source / "two_words.md")
    monkeypatch.setattr(course, "NAMES", ("two_words",))
    with pytest.raises(ValueError, match=r"an assignment's name has no underscore.*two_words"):
        course.make(tmp_path / "course", course.NAMES)
