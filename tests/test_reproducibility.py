"""The page of claims: the evidence exists, and every status is one of the book's words and can change."""

import ast
import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dqt_book.records import claims

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = claims.claims()
BY_RULE = {claim["rule"]: claim for claim in CLAIMS}


def missing(evidence):
    """The pieces of evidence that are no file, or no test of their file."""
    lost = []
    for name in evidence:
        file, _, test = name.partition("::")
        path = ROOT / file
        if not path.exists():
            lost.append(name)
        elif test:
            tree = ast.parse(path.read_text())
            lost += [] if test in {getattr(node, "name", None) for node in tree.body} else [name]
    return lost


def statuses(rule, claim=None):
    return [status for _, status in claims.RULES[rule](claim or BY_RULE[rule])]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"][:40])
def test_the_evidence_exists(claim):
    assert claim["evidence"]
    assert missing(claim["evidence"]) == []


def test_missing_evidence_is_seen():
    names = ["tests/test_none.py", "tests/test_reproducibility.py::test_nothing", "reproductions/none.json"]
    assert missing(names) == names


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["claim"][:40])
def test_a_claim_is_whole_and_its_status_a_word_of_the_notation(claim):
    assert {"group", "claim", "source", "rule", "evidence"} <= set(claim)
    rows = list(claims.rows(claim))
    assert rows
    for _, source, status, shown_by in rows:
        assert re.match("paper|here", source)
        word, _, reason = status.partition(" (")
        assert word in claims.WORDS
        assert not (source == "here" and "reproduced" in word)
        assert bool(reason) == (word == "not attempted")
        assert shown_by
    assert "::" in claim["evidence"][0] or claim.get("command") or claim["rule"] == "absent"


def test_the_words_are_those_of_the_notation():
    notation = (ROOT / "book" / "notation.md").read_text().split("## Words for results")[1]
    assert tuple(re.findall(r"^\| ([a-z ]+) \|", notation, re.M)[1:]) == claims.WORDS


def test_the_papers_claims_are_counted_apart():
    counted = claims.counted(is_own=False), claims.counted(is_own=True)
    totals = [sum(int(part.split()[0]) for part in text.split(", ")) for text in counted]
    assert sum(totals) == sum(len(list(claims.rows(claim))) for claim in CLAIMS)
    assert "shown" not in counted[0]
    assert "reproduced" not in counted[1]


def test_every_group_of_claims_is_on_the_page():
    page = (ROOT / "book" / "reproducibility.md").read_text()
    assert set(re.findall(r'table\("(\w+)"\)', page)) == {claim["group"] for claim in CLAIMS}
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    assert "book/reproducibility" in [page["file"] for part in parts for page in part["chapters"]]


# Statuses follow the records


def test_a_missed_band_is_not_reproduced():
    record = copy.deepcopy(claims.results.read(claims.RECORDS / "cifar10.json"))
    for row in record["rows"]:
        row["correct"] = 1000
    found = [status for _, status in claims.shipped_bands(None, record)]
    assert "not reproduced" in found
    assert found != statuses("shipped_bands")


@pytest.mark.parametrize("rule", ["comparison_bands", "twins", "consistency"])
def test_what_has_no_record_is_not_attempted(rule, tmp_path, monkeypatch):
    group = claims.comparison.Records(tmp_path, 16, 0.5)
    monkeypatch.setattr(claims, "groups", lambda: [group])
    assert set(statuses(rule)) == {claims.NOT_YET}


@pytest.mark.parametrize(("wrong", "status"), [(0.4, "reproduced"), (0.0, "not reproduced")])
def test_consistency_is_judged_by_the_pairs(wrong, status, monkeypatch):
    rng = np.random.default_rng(0)
    first = np.ones(1000, bool)
    second = rng.random(1000) >= wrong
    pack = claims.results.packed
    rows = [{"hits": pack(h), "images": 1000, "correct": int(h.sum())} for h in (first, second)]

    class Group:
        channels, epochs = 16, 1

        def pairs(self, *lines):
            return [(0, *rows)]

    monkeypatch.setattr(claims, "groups", lambda: [Group()])
    assert statuses("consistency") == [status]


def test_another_figure_is_not_reproduced():
    assert set(statuses("bitops")) == {"reproduced"}
    claim = copy.deepcopy(BY_RULE["bitops"])
    claim["figures"]["ResNet-50"][2] = "71.20"
    assert statuses("bitops", claim).count("not reproduced") == 1


def test_the_papers_transitions(monkeypatch):
    assert statuses("transition_ratio") == ["reproduced"]
    assert statuses("transition_count") == ["not reproduced"]
    paper = {"dqt": {"transition_shifts_m": 33.2, "transition_float_macs_m": 99.0}}
    counts = claims.layer_counts("ResNet-50")
    paper["dqt"]["transition_shifts_m"] = round(counts[:, 1:].sum() / 1e6, 1)
    monkeypatch.setattr(claims, "read", lambda name: paper)
    assert statuses("transition_ratio") == ["not reproduced"]
    assert statuses("transition_count") == ["reproduced"]


def test_a_record_that_no_rule_reads_is_refused():
    claim = BY_RULE["absent"] | {"absent": "reproductions/results/*/cifar10.json"}
    with pytest.raises(ValueError, match="give the claim a rule"):
        statuses("absent", claim)


@pytest.mark.parametrize(
    ("passed", "met", "found"),
    [(True, True, ("reproduced", "reproduced")), (False, None, ("not reproduced", "reproduced")),
     (None, False, ("not reproduced", "not reproduced"))],
)  # fmt: skip
def test_gpu_statuses(passed, met, found, monkeypatch):
    record = {"checks": [{"passed": passed}], "rows": [{"met": met}]}
    monkeypatch.setattr(claims.gpu_records, "records", lambda: [record])
    assert (*statuses("gpu_checks"), *statuses("gpu_aims")) == found


def test_without_a_record_the_gpu_was_not_attempted(monkeypatch):
    monkeypatch.setattr(claims.gpu_records, "records", list)
    assert {*statuses("gpu_checks"), *statuses("gpu_aims")} == {"not attempted (not yet run on a GPU)"}


def test_claims_are_one_a_line():
    text = (ROOT / "reproductions" / "expected" / "claims.json").read_text()
    assert len(text.splitlines()) == len(json.loads(text)) + 2
