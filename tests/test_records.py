"""Recorded JSON: an edit anywhere is noticed, by the digest, and most by figures that contradict another."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from dqt_core import cost, results
from dqt_core.evaluation import consistency
from reproductions import sign

FOLDER = Path(__file__).parents[1] / "reproductions" / "results"
RECORDS = sign.records(FOLDER)
CIFAR, DYNAMIC = (FOLDER / "resnet18_cifar" / f"{name}.json" for name in ("cifar10", "dynamic-4_c16_e0.5_s0"))
STATIC, BLIND = (FOLDER / "resnet18_cifar" / f"{name}_c16_e0.5_s0.json" for name in ("dqt-static", "blind-4"))


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_record_is_as_it_was_written(path):
    record = consistency.parse(path.read_text())
    assert consistency.problems(record) == []
    assert consistency.DIGEST in record, (
        f"python -m reproductions.sign {path} adds the digest of a new record"
    )


def leaves(value, place=()):
    """Where every single value of a record is."""
    if isinstance(value, dict | list) and value:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*place, name))
    else:
        yield place


def changed(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}<script>" if isinstance(value, str) else [*value, 0]


@pytest.mark.parametrize(
    "path", [CIFAR, DYNAMIC, STATIC, FOLDER / "export" / "cifar10.json"], ids=lambda p: p.stem
)
def test_every_single_value_that_is_changed_is_noticed(path):
    record = read(path)
    for place in leaves(record):
        edited = copy.deepcopy(record)
        *outer, last = place
        part = edited
        for name in outer:
            part = part[name]
        part[last] = changed(part[last])
        assert consistency.problems(edited), place


def test_what_is_taken_out_or_put_in_is_noticed(tmp_path):
    record = read(CIFAR)
    for name in record.keys() - {consistency.DIGEST}:
        assert consistency.problems({key: value for key, value in record.items() if key != name}), name
    assert consistency.problems(record | {"note": ""})
    path = tmp_path / "r.json"
    for name in ("rows", "dataset"):
        path.write_text(json.dumps(record)[:-1] + f', "{name}": []' + "}")
        with pytest.raises(
            results.ResultError, match=rf"r\.json is not a readable record \('{name}' is there twice\)"
        ):
            results.read(path)


def row_of(label="4"):
    return lambda record: next(row for row in record["rows"] if row["widths"] == label)


# By whoever makes the digest anew: an edit, and what of it contradicts the rest.
EDITS = {
    "correct by one": (
        STATIC,
        lambda r: row_of()(r).update(correct=row_of()(r)["correct"] + 1),
        "its hits are not",
    ),
    "correct by many": (
        STATIC,
        lambda r: row_of()(r).update(correct=row_of()(r)["correct"] + 300),
        "hits are not",
    ),
    "all correct and more": (
        CIFAR,
        lambda r: row_of()(r).update(correct=10_001),
        "10001 correct of 10000 images",
    ),
    "images": (STATIC, lambda r: row_of()(r).update(images=9_999), "its hits are not"),
    "hits and count together": (
        STATIC,
        lambda r: row_of()(r).update(correct=0, hits=results.packed(np.zeros(10_000, bool))),
        "of the first 100",
    ),
    "the first": (
        STATIC,
        lambda r: row_of()(r)["first"]["100"].update(correct=3),
        "3 correct of the first 100",
    ),
    "costs halved": (
        STATIC,
        lambda r: row_of()(r).update(bitops=row_of()(r)["bitops"] / 2),
        "BitOPs at 3, .* at 4",
    ),
    "costs not finite": (STATIC, lambda r: row_of()(r).update(bitops=float("nan")), "a number is not finite"),
    "costs negative": (STATIC, lambda r: row_of()(r).update(transitions=-1.0), "transitions of -1"),
    "mean width": (STATIC, lambda r: row_of()(r).update(mean_width=3.9), "where every layer has 4"),
    "mean width of layers": (
        BLIND,
        lambda r: r["rows"][0].update(mean_width=4.0),
        "a mean width of 4.0, the layers",
    ),
    "mean width of images": (
        DYNAMIC,
        lambda r: r["rows"][0].update(mean_width=4.0),
        "another one by its layers",
    ),
    "counts of a layer": (
        DYNAMIC,
        lambda r: r["rows"][0]["layers"][2]["counts"].__setitem__(0, 77),
        r"counts \d+ images of 10000",
    ),
    "a row twice": (STATIC, lambda r: r["rows"].append(copy.deepcopy(r["rows"][0])), "is there twice"),
    "another program": (STATIC, lambda r: row_of()(r).update(program="0" * 64), "its program is none"),
    "times negative": (CIFAR, lambda r: row_of()(r).update(seconds=-1), "seconds of -1"),
    "hits of another kind": (STATIC, lambda r: row_of()(r).update(hits=7), "its hits are not"),
    "rows of another kind": (STATIC, lambda r: row_of()(r).update(first=[]), "not a record's form"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_contradicts_the_rest(kind, tmp_path):
    path, edit, said = EDITS[kind]
    record = read(path)
    del record[consistency.DIGEST]
    assert consistency.problems(record) == []
    edit(record)
    with pytest.raises(results.ResultError, match=rf"r\.json contradicts itself: .*{said}"):
        results.write(record, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar10", "embedded"])
def test_costs_are_those_of_the_shipped_program(shipped, name):
    program, record = shipped(name), read(FOLDER / "resnet18_cifar" / f"{name}.json")
    assert program.digest in record["programs"].values()
    rows = [row for row in record["rows"] if row["widths"].isdigit()]
    assert len(rows) >= 5
    for row in rows:
        width = int(row["widths"])
        assert row["bitops"] == cost.bitops(program, width)[0]
        assert row["transitions"] == cost.transitions(program, width)[0]


def test_a_digest_is_of_the_content_and_not_of_the_layout(tmp_path):
    record = read(STATIC)
    path = results.write(record, tmp_path / "r.json")
    assert path.read_text() == STATIC.read_text()
    path.write_text(json.dumps(record, indent=4))
    assert results.read(path) == {name: record[name] for name in record if name != consistency.DIGEST}
    path.write_text(json.dumps(record | {"title": "Other"}))
    with pytest.raises(
        results.ResultError, match=r"r\.json contradicts itself: its digest is not that of its"
    ):
        results.read(path)


def test_names_that_are_numbers_are_written_and_read(tmp_path):
    record = read(STATIC) | {"budgets": {10: 1.0, 9: 2.0}}
    assert results.read(results.write(record, tmp_path / "r.json"))["budgets"] == {"10": 1.0, "9": 2.0}


def test_a_record_without_a_digest_is_read_and_can_be_signed(tmp_path, capsys):
    record = read(STATIC)
    plain = {name: record[name] for name in record if name != consistency.DIGEST}
    path, edited = tmp_path / "a" / "r.json", tmp_path / "b.json"
    path.parent.mkdir()
    path.write_text(json.dumps(plain))
    assert results.read(path) == plain
    assert sign.run([str(tmp_path)]) == 0
    assert path.read_text() == STATIC.read_text()
    edited.write_text(json.dumps(record | {"title": "Other"}))
    assert sign.run([str(edited), str(path.parent)]) == 1
    told = capsys.readouterr()
    assert "b.json: its digest is not that of its content" in told.err
    assert told.out.endswith("1 of 2 records have their digest\n")
    assert read(edited)["title"] == "Other"
