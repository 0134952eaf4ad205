"""The controller explorer: the record is what the shipped program says; the script counts as the package."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dqt_book.widgets import controller_explorer

BOOK = Path(__file__).resolve().parents[1] / "book"

SCRIPT = BOOK / "_static" / "controller-explorer.js"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="needs node on the PATH to run the widgets' JavaScript"
)


@pytest.fixture(scope="module")
def record():
    return controller_explorer.explorer_data()


def run_script(expression, data, script=SCRIPT):
    program = f"const widget = require({json.dumps(str(script))}), data = {json.dumps(data)};"
    program += f"process.stdout.write(JSON.stringify({expression}))"
    result = subprocess.run(["node"], input=program, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


COSTS = "data.bitops.map((_, entry) => widget.bitopsOf(data, widget.widthsOf(data, entry)))"
PIXELS = """data.pictures.flatMap(picture => data.brightness.flatMap(b => data.noise.map(n =>
    widget.pixelsOf(picture.pixels, data.noiseField, b, n))))"""


def pixels_by_package(data):
    noise_field = np.array(data["noiseField"]).reshape(8, 8)
    bases = [np.array(picture["pixels"]).reshape(8, 8) for picture in data["pictures"]]
    return [
        controller_explorer.pixels(base, noise_field, b, n).ravel().tolist()
        for base in bases
        for b in data["brightness"]
        for n in data["noise"]
    ]


def test_the_committed_record_is_that_of_a_run_today(record):
    assert controller_explorer.PATH.read_text() == controller_explorer.as_script(record)


def test_the_record_is_small_and_holds_every_setting(record):
    runs = len(record["pictures"]) * len(record["brightness"]) * len(record["noise"])
    assert {len(record[name]) for name in ("widths", "classes", "classesAt8", "bitops")} == {runs}
    assert controller_explorer.PATH.stat().st_size < 150_000


def test_the_controller_does_not_say_the_same_of_every_picture(record):
    assert len(set(record["widths"])) > 4
    assert len(set(record["classes"])) > 4


@needs_node
def test_the_script_counts_the_cost_that_was_recorded(record):
    assert run_script(COSTS, record) == record["bitops"]


@needs_node
def test_the_script_shows_the_pixels_that_were_run(record):
    assert run_script(PIXELS, record) == pixels_by_package(record)


@needs_node
def test_the_script_finds_the_run_of_a_setting(record):
    entries = run_script(
        "data.pictures.flatMap((_, p) => data.brightness.flatMap((_, b) => data.noise.map((_, n) =>"
        " widget.entryOf(data, p, b, n))))",
        record,
    )
    assert entries == list(range(len(record["widths"])))


@needs_node
@pytest.mark.parametrize(("cost", "words"), [(100, "the same"), (150, "50.0 % more"), (75, "25.0 % less")])
def test_the_script_says_how_a_cost_changes(cost, words):
    assert run_script(f"widget.changeOf({cost}, 100)", {}, SCRIPT.with_name("widget.js")) == words


@needs_node
@pytest.mark.parametrize(
    ("expression", "right", "mutant"),
    [
        (COSTS, lambda data: data["bitops"], ("widths[i] * widths[i];", "widths[i];")),
        (COSTS, lambda data: data["bitops"], ("data.fixedMacs + data.controllerMacs", "data.fixedMacs")),
        (PIXELS, pixels_by_package, (">> 7", ">>> 7")),
        (PIXELS, pixels_by_package, ("+ 50)", ")")),
    ],
)
def test_a_wrong_script_is_caught(record, expression, right, mutant, tmp_path):
    source = SCRIPT.read_text()
    assert mutant[0] in source
    (tmp_path / SCRIPT.name).write_text(source.replace(*mutant))
    assert run_script(expression, record) == right(record)
    assert run_script(expression, record, tmp_path / SCRIPT.name) != right(record)
