"""The committed records, programs and notebooks agree with each other and with a run."""

import json
import re
from pathlib import Path

import jupytext
import numpy as np
import papermill
import pytest
import torch

from dqt_core import data, results
from dqt_core.evaluation import consistency
from dqt_core.evaluation.verification import verify
from dqt_core.training.layers import Quantizer, Selection
from reproductions.digits import floored, lenet5

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "reproductions"
RECORDS = sorted((FOLDER / "results" / "resnet18_cifar").rglob("*.json"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_the_schema_and_from_a_commit(path):
    record = results.read(path)
    assert len(record["provenance"]["commit"]) == 40, "recorded from files that no commit holds"
    for row in record["rows"]:
        assert 0 <= row["correct"] <= row["images"]


@pytest.mark.parametrize("name", ["cifar10", "embedded"])
def test_the_recorded_programs_are_shipped(name, shipped):
    record = results.read(FOLDER / "results" / "resnet18_cifar" / f"{name}.json")
    for kind in ("trained", "cut"):
        program = shipped(name, kind)
        assert program.digest == record["programs"][kind]


def test_the_embedded_record_holds_on_both_backends(shipped):
    check("embedded", data.embedded(), shipped, 100, "numpy")
    check("embedded", data.embedded(), shipped, None, "torch")


def test_a_lenet_trains_to_a_program_of_grey_images():
    program = lenet5.trained(float_epochs=0.1, nested_epochs=0.1)
    assert program.image_shape == (32, 32, 1)
    assert len(program.run(data.embedded(channels=1).test_images[:2], 2).logits) == 2


def test_a_floored_master_is_floored():
    quantizer = Quantizer(signed=False)
    quantizer.log_step.data = torch.tensor(0.25).log()
    x = torch.tensor([-1.0, 0.1, 0.24, 0.26, 0.49, 70.0])
    (copied,) = floored.floored(torch.nn.Sequential(quantizer))
    assert copied(x, Selection()).codes.tolist() == [0, 0, 0, 1, 1, 255]
    assert quantizer(x, Selection()).codes.tolist() == [0, 0, 1, 1, 2, 255]


def test_the_record_of_floored_masters_is_whole():
    record = consistency.parse(floored.RECORD.read_text())
    assert consistency.problems(record) == []
    assert len(record["rows"]) == len(floored.SEEDS) * 4
    assert len(record["provenance"]["commit"]) == 40, "recorded from files that no commit holds"


def test_the_cifar10_record_holds_on_the_reference(cifar10, shipped):
    check("cifar10", cifar10, shipped, 100, "numpy")


def test_the_cifar10_record_holds_on_the_fast_backend(cifar10, shipped):
    check("cifar10", cifar10, shipped, 1000, "torch")


@pytest.mark.parametrize("limit", [100, pytest.param(None, marks=pytest.mark.slow)])
def test_the_notebook_equals_its_records_on_cifar10(cifar10, tmp_path, limit):
    """It compares: the rows of the trained and the cut network, and of the comparison's shipped programs."""
    source, parameters = FOLDER / "resnet18_cifar.ipynb", {"dataset": "cifar10", "limit": limit}
    parameters["out"] = str(tmp_path)
    cells = papermill.execute_notebook(
        source, tmp_path / "run.ipynb", parameters, kernel_name="python3", progress_bar=False
    ).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    assert "every count and every digest equals the record" in printed
    assert "the comparison's shipped programs equal their records" in printed
    assert re.search(r"^\S+, .*% of [\d,]+$", printed, re.M), "no program of the comparison is shipped"


def check(name, dataset, shipped, limit, backend):
    record = results.read(FOLDER / "results" / "resnet18_cifar" / f"{name}.json")
    found = verify(shipped(name), record, dataset, limit, backend)
    assert found.differences == ()
    assert set(found.logits) == {str(w) for w, _ in shipped(name).choices} | {"controller"}


def test_the_recorded_data_are_those_of_the_loader(cifar10):
    record = results.read(FOLDER / "results" / "resnet18_cifar" / "cifar10.json")
    assert record["dataset"]["checksums"] == cifar10.checksums


def test_the_answer_does_not_depend_on_batch_mates(cifar10, shipped):
    program, order = shipped("cifar10"), np.random.default_rng(0).permutation(60)
    images = cifar10.test_images[:60]
    whole = program.run(images, "controller")
    shuffled = program.run(images[order], "controller", batch_size=7)
    np.testing.assert_array_equal(shuffled.logits, whole.logits[order])
    np.testing.assert_array_equal(shuffled.widths, whole.widths[order])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_paired_script_hold_the_same_cells(path):
    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))

    def cells(pair):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in pair.cells]

    assert cells(notebook) == cells(script)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_one_parameters_cell_and_was_run(path):
    cells = json.loads(path.read_text())["cells"]
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code)
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])


@pytest.mark.parametrize("path", [p for p in RECORDS if "_s" in p.stem], ids=lambda path: path.stem)
def test_a_record_of_the_comparison_holds_together(path):
    record = results.read(path)
    assert path.stem == "{row}_c{channels}_e{epochs:g}_s{seed}".format(**record)
    assert record["dataset"] == results.read(RECORDS[0].parent / "cifar10.json")["dataset"]
    for row in record["rows"]:
        assert results.hits(row).sum() == row["correct"]
        assert row["kind"] in ("float", "float simulation", "integer")
        assert (row["kind"] == "integer") == (row["logits"] is not None)
        if (
            row["kind"] == "integer" and "before its training" not in row["widths"]
        ):  # of another row's network
            assert row["program"] in record["programs"].values()


def test_the_comparison_of_a_seed_is_of_one_float_network():
    floats = {}
    for record in (results.read(path) for path in RECORDS if "_s" in path.stem):
        floats.setdefault((record["channels"], record["epochs"], record["seed"]), set()).add(
            record["training"]["float"]
        )
    assert floats
    assert all(len(digests) == 1 for digests in floats.values())


def test_a_network_is_trained_and_lowered_from_nothing(tmp_path):
    from reproductions.cifar10.train import train_resnet18

    trained = train_resnet18(data.embedded(), tmp_path, width_multiplier=0.125, epochs=0.4, nested_epochs=0.2)
    assert trained.program.has_controller
    assert len(trained.program.run(data.embedded().test_images[:2], "controller").logits) == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_the_expected_bands_name_rows_of_the_record():
    record = results.read(FOLDER / "results" / "resnet18_cifar" / "cifar10.json")
    rows = {"float"} | {row["widths"] for row in record["rows"]}
    rows |= {f"cut {row['widths']}" for row in record["cut_rows"]}
    for band in json.loads((FOLDER / "expected" / "resnet18_cifar.json").read_text())["cifar10"]:
        assert {band["row"], band["against"]} <= rows
