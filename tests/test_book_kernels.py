"""Chapter 8 and its appendix are read on computers with and without a C++ compiler."""

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from dqt_book.exercises import chapter08 as checks
from dqt_book.exercises import emulation

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.mark.parametrize(("page", "fewest"), [("08-kernels", 9), ("kernels-in-detail", 1)])
def test_the_page_runs_to_its_end_without_a_compiler(no_compiler, page, fewest):
    cells = jupytext.read(BOOK / f"{page}.md").cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    ending = "\nprint('the end')\n"
    command = [sys.executable, "-c", "from IPython.display import display\n" + code + ending]
    result = subprocess.run(command, cwd=BOOK, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("the end\n")
    assert "This cell was not run: the emulator needs a C++ compiler, no-such-compiler" in result.stdout
    # Each cell that would run a kernel says that it did not.
    asked = sum("if cpu():" in cell.source for cell in cells if cell.cell_type == "code")
    assert result.stdout.count("This cell was not run") == asked >= fewest


def test_a_checker_says_that_it_has_no_compiler(no_compiler):
    verdict = checks.floor_kernel(lambda: "")
    assert not verdict
    assert verdict.message.startswith("Not checked: the emulator needs a C++ compiler, no-such-compiler")


def test_elsewhere_than_on_linux_the_emulator_is_not_tried(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert emulation.missing() == "the emulator needs Linux, this is darwin"
