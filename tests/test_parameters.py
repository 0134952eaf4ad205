"""What a reproduction was called with is checked first, from any folder; where its results are is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dqt_book import parameters, show

ROOT = Path(__file__).resolve().parents[1]
RESNET18, RESNET50 = (
    ROOT / "reproductions" / f"{name}.ipynb" for name in ("resnet18_cifar", "resnet50_imagenet")
)


def papermill(notebook, folder, *arguments):
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", notebook, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("notebook", "given", "sentence"),
    [
        (
            RESNET18,
            ("datset", "cifar10"),
            "there is no parameter datset; this notebook has dataset, profile, limit",
        ),
        (RESNET18, ("limit", "ten"), "limit is 'ten', expected an integer from 100 on, or None"),
        (RESNET50, ("imagenet_root", "none"), "imagenet_root is 'none', expected '' or a path that exists"),
        (
            RESNET50,
            ("out", "{folder}/file/out"),
            r"nothing can be written to {folder}/file/out (Not a directory)",
        ),
    ],
)
def test_a_notebook_refuses_before_it_works(tmp_path, notebook, given, sentence):
    (tmp_path / "file").touch()
    name, value = (part.format(folder=tmp_path) for part in given)
    done = papermill(notebook, tmp_path, "out.ipynb", "-p", name, value)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ParameterError: {sentence.format(folder=tmp_path)}")
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    assert sum(bool(cell.get("execution_count")) for cell in cells) == 3, (
        "parameters, injected ones, the check"
    )


def test_without_an_output_the_results_are_kept_and_named(tmp_path):
    done = papermill(RESNET50, tmp_path, "-p", "out", str(tmp_path / "kept"))
    page = tmp_path / "kept" / "resnet50_random.html"
    assert done.returncode == 0
    assert f"page: {page}\n" in done.stderr
    assert "<td>8</td>" in page.read_text()


RULES = {
    "choice": (parameters.choice("a", "b"), ["a"], ["c", None, ["a"]]),
    "whole": (parameters.whole(1), [1, 7], [0, 1.0, True, "ten", None]),
    "optional": (parameters.optional(parameters.whole(1)), [None, 1], [0, "None"]),
    "place": (parameters.place(""), ["", str(ROOT)], ["/nowhere", None, 3]),
    "only a place": (parameters.place(), [str(ROOT)], ["", "/nowhere"]),
    "flag": (parameters.FLAG, [True, False], [1, "True"]),
    "text": (parameters.TEXT, ["x"], [3, None]),
    "positive": (parameters.POSITIVE, [0.5, 3], [0, -1, float("inf"), float("nan"), "1", True]),
    "widths": (parameters.WIDTHS, [[2, 4]], [[], [0], [9], [2.0], "[2, 4]", 4]),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_tells_values_apart(name):
    rule, right, wrong = RULES[name]
    for value in right:
        parameters.check({"x": value}, x=rule)
    for value in wrong:
        with pytest.raises(parameters.ParameterError, match=r"^x is .*, expected "):
            parameters.check({"x": value}, x=rule)


def test_names_of_papermills_cell_alone_are_looked_at():
    cells = ["", "y = 3", "# Parameters\nx = 4\nPAPERMILL_INPUT_PATH = 'a'\nz = float('nan')"]
    assert list(parameters.injected(cells)) == ["x", "z"]


def test_a_page_of_tables_escapes_its_words(tmp_path):
    text = show.page(tmp_path / "p.html", "a < b", show.Table(["h"], [["<script>"]])).read_text()
    assert "<title>a &lt; b</title>" in text
    assert "<script>" not in text
