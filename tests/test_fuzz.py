"""The campaign of `make fuzz` finds what is planted, makes it small, and shows it again from its file."""

import json
import textwrap

import fuzz
import pytest

PLANTED = """
import os, signal, time
from fuzz import Target

def draw(rng):
    return {"numbers": [rng.randrange(10) for _ in range(20)], "other": 1}

def judge(case, folder):
    assert not list(folder.iterdir())
    (folder / "left").touch()
    numbers = case.get("numbers", ())
    FAULT
    return "right"

TARGETS = {"planted": Target(draw, judge, seconds=2), "idle": Target(draw, lambda case, folder: "idle")}
"""
FAULTS = {
    "raises": ("if 7 in numbers: {}['x']", "planted: KeyError in elsewhere", [7]),
    "dies": ("if 7 in numbers: os.kill(os.getpid(), signal.SIGSEGV)", "its process: it ended with -11", [7]),
    "hangs": ("if 7 in numbers: time.sleep(60)", "more than 2 s", [7]),
    "swallows": ("if 7 in numbers: b = b'x' * 2**27; time.sleep(60)", "more than 64 MiB", None),
    "leaves something behind": (
        "if 7 in numbers: os.environ['LEFT'] = '1'\n    elif 'LEFT' in os.environ: {}['x']",
        "planted: KeyError in elsewhere",
        None,
    ),
}


def planted(tmp_path, monkeypatch, fault):
    module = f"planted_{abs(hash(fault))}"
    text = textwrap.dedent(PLANTED).replace("FAULT", fault)
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return (module,)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_made_small_and_shown_again(name, tmp_path, monkeypatch, capsys):
    fault, kind, least = FAULTS[name]
    modules = planted(tmp_path, monkeypatch, fault)
    if name == "hangs":
        monkeypatch.setattr(fuzz, "SMALLER", 0)  # each smaller case that hangs takes its time
    if name == "swallows":
        monkeypatch.setattr(fuzz, "MOST_BYTES", 2**26)
        monkeypatch.setattr(fuzz, "SMALLER", 0)
    campaign = fuzz.Campaign(3, modules, tmp_path / "out")
    campaign.run(1)
    assert any(kind in found for found in campaign.findings)
    path = next(iter(campaign.findings.values()))[0]
    found = json.loads(path.read_text())
    assert kind in found["kind"]
    assert fuzz.again(path, modules) == found["kind"]
    assert ("after" in found) == (name == "leaves something behind")
    if fuzz.SMALLER and least:
        assert found["case"] == {"numbers": least}
    campaign.report()
    assert "SEED=3: 1 kinds of faults" in capsys.readouterr().out


def test_without_a_fault_all_is_counted(tmp_path, monkeypatch, capsys):
    campaign = fuzz.Campaign(3, planted(tmp_path, monkeypatch, ""), tmp_path / "out")
    campaign.run(1, workers=2)
    assert not campaign.findings
    assert campaign.counts["planted"].keys() == {"right"}
    assert campaign.counts["idle"].keys() == {"idle"}
    assert not list(tmp_path.glob("out/*"))
