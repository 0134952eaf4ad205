"""Records of runs: what they hold, and that a difference is seen."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dqt_core import cost, data, results

RECORD = {"name": "r", "dataset": {}, "programs": {}, "rows": [], "provenance": {}}


def row(images, correct, logits, first=None):
    return {"widths": "4", "images": images, "correct": correct, "logits": logits, "first": first or {}}


def test_a_record_comes_back_as_written(tmp_path):
    path = results.write(RECORD, tmp_path / "new" / "r.json")
    assert results.read(path) == RECORD | {"schema": results.SCHEMA}
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


@pytest.mark.parametrize("key", [key for key in results.REQUIRED if key != "schema"])
def test_a_record_without_a_required_key_is_refused(tmp_path, key):
    record = {k: v for k, v in RECORD.items() if k != key}
    with pytest.raises(results.ResultError, match=f"missing: {key}"):
        results.write(record, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "dqt-result-0"}', '{"schema": NaN}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(results.ResultError, match=r"r\.json is not a"):
        results.read(path)


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(results.ResultError, match="run the reproduction again"):
        results.read(tmp_path / "absent.json")


def test_differences_compares_what_both_hold():
    recorded = row(10_000, 900, "all", {"100": {"correct": 9, "logits": "hundred"}})
    assert results.differences(row(10_000, 900, "all"), recorded) == []
    assert results.differences(row(100, 9, "hundred"), recorded) == []
    assert len(results.differences(row(100, 8, "other"), recorded)) == 2
    with pytest.raises(results.ResultError, match="at least 100 images"):
        results.differences(row(50, 9, "x"), recorded)


def test_provenance_names_commit_versions_and_hardware():
    made = results.provenance()
    assert made["versions"]["numpy"] == np.__version__
    assert made["hardware"]["cores"] >= 1
    assert len(made["commit"].split("+")[0]) == 40 or made["commit"] == "unknown"
    json.dumps(made)


def test_evaluate_counts(shipped):
    digits, program = data.embedded(), shipped("embedded")
    rows = [results.evaluate(program, digits, w, limit=100, backend="numpy") for w in (8, "controller")]
    outcome = program.run(digits.test_images[:100], "controller", "numpy")
    assert rows[1]["correct"] == (outcome.classes == digits.test_labels[:100]).sum()
    assert rows[1]["logits"] == outcome.digest == rows[1]["first"]["100"]["logits"]
    assert rows[1]["bitops"] == cost.bitops(program, outcome.widths).mean()
    assert rows[0]["bitops"] == cost.bitops(program, 8)[0]
    assert (rows[0]["transitions"], rows[0]["mean_width"]) == (0, 8)
    with pytest.raises(ValueError, match="positive number of images"):
        results.evaluate(program, digits, 8, limit=0)


@pytest.mark.parametrize("images", [1, 7, 8, 1001])
def test_hits_come_back_as_packed(images):
    right = np.random.default_rng(images).random(images) < 0.7
    row = {"hits": results.packed(right), "images": images, "correct": int(right.sum())}
    np.testing.assert_array_equal(results.hits(row), right)
    for damage in ({"correct": row["correct"] + 1}, {"images": images + 8}, {"hits": ""}):
        with pytest.raises(results.ResultError, match="run the reproduction again"):
            results.hits(row | damage)


def test_several_writers_of_one_record(tmp_path):
    """Each has an unfinished file of its own."""
    record = RECORD | {"schema": results.SCHEMA}
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: results.write(record, tmp_path / "record.json"), range(40)):
            assert results.read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
