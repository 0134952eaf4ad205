"""The checkers of the book's exercises accept the book's own solutions and reject the kept wrong ones."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dqt_book.exercises import judging, wrong
from dqt_book.exercises.emulation import cpu
from dqt_book.exercises.wrong import WRONG
from dqt_book.exercises.wrong.chapter02 import two_steps, wide_half_up
from dqt_book.exercises.wrong.chapter08 import BROKEN
from dqt_core import integer, nested

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGES = [*sorted(BOOK.glob("[0-9]*.md")), BOOK / "kernels-in-detail.md"]  # those with exercises
TEXT = "\n".join(path.read_text() for path in PAGES)
# The checkers of all chapters, by the name of their exercise.
CHECKERS = [
    importlib.import_module(f"dqt_book.exercises.{chapter.__name__[-9:]}") for chapter in wrong.CHAPTERS
]
checks = SimpleNamespace(bits=judging.bits)
for chapter, answers in zip(CHECKERS, wrong.CHAPTERS, strict=True):
    vars(checks).update({name: vars(chapter)[name] for name in answers.WRONG})


def solutions():
    """Yield (label, code) of every solution in the book."""
    pattern = r"\{solution-start\} (\S+)\n(.*?)\{solution-end\}"
    for label, body in re.findall(pattern, TEXT, re.S):
        yield label, "\n".join(re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", body, re.S))


SOLUTIONS = list(solutions())
WRONG_ONES = [(name, kind) for name, kinds in WRONG.items() for kind in kinds]


@pytest.mark.parametrize(("label", "code"), SOLUTIONS, ids=[label for label, _ in SOLUTIONS])
def test_the_books_solution_is_accepted(label, code):
    names = {"np": np, "nested": nested, "integer": integer, "checks": checks, "cpu": cpu, **BROKEN}
    names |= {"two_steps": two_steps, "unsigned": judging.UNSIGNED}
    exec(code, names)
    name = label.removeprefix("ex-").replace("-", "_")
    verdict = getattr(checks, name)(names[name])
    assert verdict
    assert verdict.message.startswith("Right")


def test_every_checker_has_an_exercise_and_wrong_solutions():
    labels = {label.removeprefix("ex-").replace("-", "_") for label, _ in SOLUTIONS}
    assert labels == set(WRONG)
    assert min(len(kinds) for kinds in WRONG.values()) >= 4


@pytest.mark.parametrize(("name", "kind"), WRONG_ONES)
def test_a_wrong_solution_is_rejected_with_a_reason(name, kind):
    verdict = getattr(checks, name)(WRONG[name][kind])
    assert not verdict
    assert name in verdict.message
    assert not verdict.message.startswith("Right")
    assert "raised" not in verdict.message


def test_a_verdict_names_the_first_wrong_code_with_its_bits():
    verdict = checks.half_up(WRONG["half_up"]["no epsilon"])
    assert repr(verdict) == (
        "half_up(unsigned, 7): first wrong at master 1 (00000001): expected 1 (0000001), got 0 (0000000)"
    )
    verdict = checks.half_up(wide_half_up)
    assert "master 255 (11111111): expected 127 (1111111), got 128 (10000000)" in verdict.message


@pytest.mark.parametrize(("empty", "said"), [(..., "Not solved yet"), (None, "Not solved yet")])
@pytest.mark.parametrize("name", WRONG)
def test_an_empty_solution_is_not_solved(name, empty, said):
    assert said in getattr(checks, name)(lambda *arguments: empty).message


def test_an_error_in_a_solution_is_reported():
    assert "raised ZeroDivisionError" in checks.bytes_at(lambda count, width: 1 / 0).message


def test_a_solution_that_changes_its_input_does_no_harm():
    def spoil(codes, width):
        codes[:] = 0
        return codes

    assert not checks.drop_bits(spoil)
    assert checks.drop_bits(lambda codes, width: codes >> (8 - width))


@pytest.mark.parametrize(
    ("code", "width", "shown"),
    [(6, 4, "0110"), (-1, 4, "1111"), (-8, 4, "1000"), (16, 4, "10000"), (0, 1, "0")],
)
def test_bits(code, width, shown):
    assert checks.bits(code, width) == shown
