"""A program against its record: a change of either is told, and the images must be the record's."""

import copy
import dataclasses
from pathlib import Path

import pytest

import dqt_core
from dqt_book.places import network
from dqt_core import data, results
from dqt_core.evaluation import verification

RESULTS = Path(__file__).resolve().parents[1] / "reproductions" / "results"
RECORD = RESULTS / "resnet18_cifar" / "embedded.json"
WIDTHS = ("8", "6", "4", "3", "2")


@pytest.fixture
def record():
    return copy.deepcopy(results.read(RECORD))


@pytest.fixture(scope="module")
def program():
    return dqt_core.load("digits")


@pytest.fixture(scope="module")
def digits():
    return data.load("embedded")


def row(record, widths):
    return next(row for row in record["rows"] if row["widths"] == widths)


def test_the_shipped_program_is_as_recorded(program, digits, record):
    found = verification.verify(program, record, digits)
    assert found == verification.Verification(WIDTHS, (*WIDTHS, "controller"), 100, ())


def test_without_images_the_costs_are_worked_out_again(program, record):
    assert verification.verify(program, record) == verification.Verification(WIDTHS, (), 0, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row.update(bitops=row["bitops"] + 64),
            "widths 4: bitops is 152608768, recorded",
        ),
        (lambda row: row.update(transitions=0), "widths 4: transitions is"),
        (
            lambda row: row["first"]["100"].update(correct=3),
            "widths 4, 100 images: correct is",
        ),
        (lambda row: row["first"]["100"].update(logits="ab"), "widths 4, 100 images: logits is"),
    ],
)
def test_an_edited_row_is_told(program, digits, record, change, message):
    change(row(record, "4"))
    (difference,) = verification.verify(program, record, digits).differences
    assert difference.startswith(message)


def test_a_row_of_the_controller_is_compared_by_its_logits(program, digits, record):
    row(record, "controller")["first"]["100"]["logits"] = "ab"
    (difference,) = verification.verify(program, record, digits).differences
    assert difference.startswith("widths controller, 100 images: logits is")


def test_a_program_of_grey_images_is_as_recorded():
    record = results.read(RESULTS / "lenet5_digits" / "embedded.json")
    program = dqt_core.load(network(record, "trained"))
    found = verification.verify(program, record, verification.dataset_of(record, channels=1))
    assert found.differences == ()
    assert found.logits == WIDTHS


def test_another_program_is_refused(program, record):
    other = dataclasses.replace(program, name="other")
    with pytest.raises(results.ResultError, match=r"'resnet18_embedded' is of others \(.*trained be0b"):
        verification.verify(other, record)


@pytest.mark.parametrize("change", [{"name": "cifar10"}, {"checksums": {"test_images": "ab"}}], ids=str)
def test_other_images_are_refused(program, digits, record, change):
    record["dataset"] |= change
    with pytest.raises(results.ResultError, match="get those it was made on"):
        verification.verify(program, record, digits)


def test_rows_of_other_programs_and_of_floats_are_left_out():
    record = results.read(RESULTS / "resnet50_imagenet" / "mobilenet_v2.json")
    for kind, wanted in (("uniform", ["8", "6", "5", "4"]), ("mixed 5", ["mixed at 5-bit BitOPs"])):
        named = type("Named", (), {"digest": record["programs"][kind]})
        assert sorted(r["widths"] for r in verification._rows_of(named, record)) == sorted(wanted)
    assert verification.dataset_of(record) is None


@pytest.mark.parametrize("folder", ["missing", None], ids=str)
def test_images_that_are_not_at_hand(folder, monkeypatch, record):
    monkeypatch.setenv("DQT_DATA", folder) if folder else monkeypatch.delenv("DQT_DATA", raising=False)
    record["dataset"]["name"] = "cifar10"
    assert verification.dataset_of(record) is None
    record["dataset"]["name"] = "embedded"
    assert verification.dataset_of(record).name == "embedded"
