"""The record of exported networks: every way printed one digest, and prints it again today."""

import shutil
import subprocess

import numpy as np
import pytest

from dqt_book.records import exports as export_records
from dqt_core import data, results
from dqt_core.export.c import sizes
from reproductions.exports import c_program
from reproductions.exports import record as exports

ROWS = ("mixed", "controller")


def rows_of(name):
    return {row["widths"]: row for row in results.read(exports.FOLDER / f"{name}.json")["rows"]}


@pytest.mark.parametrize("name", exports.IMAGES)
def test_every_way_recorded_one_digest(name, shipped):
    record, rows = results.read(exports.FOLDER / f"{name}.json"), rows_of(name)
    program = shipped(name)
    assert record["programs"]["trained"] == program.digest
    for made in (record["provenance"], *record.get("later", {}).values()):
        assert len(made["commit"]) == 40, "recorded from files that no commit holds"
    assert set(rows) == set(exports.settings(program, 1))
    for setting, row in rows.items():
        ways = {way for way in export_records.WAYS if setting not in exports.WITHOUT.get(way, ())}
        assert row.keys() == {"widths", *ways}
        assert len({row[way] for way in ways}) == 1, row
    assert export_records.verdict(name) == (
        "the same in all 7 ways at each of the 7 settings, QONNX at controller left out"
    )


def test_the_record_is_that_of_the_training_run():
    trained = results.read(exports.ROOT / "reproductions" / "results" / "resnet18_cifar" / "embedded.json")
    rows = rows_of("embedded")
    for row in trained["rows"]:
        assert rows[row["widths"]]["numpy"] == row["logits"]


@pytest.fixture(scope="module")
def embedded(shipped):
    return shipped("embedded"), data.embedded().test_images


def check(way, run, program, images):
    rows = rows_of("embedded")
    for setting in ROWS:
        logits = run(images, exports.settings(program, len(images))[setting])
        assert exports.digest(logits) == rows[setting][way]


def test_the_fast_ways_agree_on_every_cifar_image():
    whole = results.read(exports.FOLDER / "cifar10.json")["whole"]
    assert whole["images"] == 10_000
    assert [row["widths"] for row in whole["rows"]] == list(exports.WHOLE["cifar10"])
    assert all(len({row[way] for way in exports.FAST}) == 1 for row in whole["rows"])
    shipped_rows = results.read(
        exports.ROOT / "reproductions" / "results" / "resnet18_cifar" / "cifar10.json"
    )["rows"]
    recorded = {row["widths"]: row["logits"] for row in shipped_rows}
    same = {row["widths"]: row["onnx"] for row in whole["rows"] if row["widths"] in recorded}
    assert same == {widths: recorded[widths] for widths in ("4", "controller")}


def test_imagenet_was_recorded_with_one_digest():
    record = results.read(exports.FOLDER / "imagenet.json")
    assert len(record["provenance"]["commit"]) == 40, "recorded from files that no commit holds"
    assert {row["widths"] for row in record["rows"]} >= {"8", "mixed"}
    digests = [row[way] for row in record["rows"] for way in exports.FAST]
    assert len(set(digests)) == len(record["rows"])
    assert export_records.agreement(record["rows"]).startswith("torch, Numba and ONNX print one digest")
    record["rows"][0]["onnx"] = "0" * 64
    assert "do NOT print one digest" in export_records.agreement(record["rows"])


@pytest.mark.parametrize("backend", ["numpy", "torch", "numba"])
def test_a_backend_prints_it_again(embedded, backend):
    program, images = embedded
    check(backend, exports.by_package(program, backend), program, images)


def test_onnx_runtime_prints_it_again(embedded, tmp_path):
    program, images = embedded
    check("onnx", exports.by_onnx(program, tmp_path), program, images)


def test_qonnx_prints_it_again(embedded, tmp_path):
    """A part of the images: the package makes a session of every node of every file."""
    pytest.importorskip("qonnx", reason="needs qonnx: pip install qonnx")
    program, images = embedded[0], embedded[1][:3]
    widths = exports.mixed(program, 2)[[0, 1, 0]]
    logits = exports.by_qonnx(program, tmp_path)(images, widths)
    np.testing.assert_array_equal(logits, program.run(images, widths).logits)


def test_the_c_program_prints_it_again(embedded, tmp_path):
    """With the sizes; that of the code where the compiler is the recorded one."""
    try:
        compiler = c_program.compiler()
    except c_program.NotThere as error:
        pytest.skip(str(error))
    program, images = embedded
    check("c", exports.by_c(program, tmp_path), program, images)
    record = results.read(exports.FOLDER / "embedded.json")
    own, recorded = sizes(program), record["files"]
    assert (own.weights, own.tables, own.ram) == (recorded["weights"], recorded["tables"], recorded["ram"])
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    if version == record["provenance"]["tools"]["compiler"] and shutil.which("size"):
        text = c_program.written(program, tmp_path)
        assert c_program.sections(text, tmp_path)[".text"] == recorded["code"]


# The last way, the browser, is tried on its page by test_browser.py, and its script by test_live_demo.py.


def test_a_digest_that_differs_is_told(monkeypatch):
    record = export_records.record("embedded")
    record["rows"][1]["c"] = "0" * 64
    monkeypatch.setattr(export_records, "record", lambda name: record)
    assert export_records.verdict("embedded") == "NOT the same at 3"
    assert "000000" in repr(export_records.digests("embedded"))
