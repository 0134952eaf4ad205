"""Measuring on a GPU: the harness reaches its end on the emulator, keeps what it has, and is drawn."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import record, rows, run
from benchmarks.gpu.clock import HostClock, medians
from dqt_book.records import gpu as gpu_records
from dqt_core import kernels
from dqt_core.kernels.emulator import Emulator

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {"device": "NVIDIA X100 (test)", "cuda": "13.0"}


@pytest.fixture(scope="module")
def measured():
    """Every row of a run on the emulator, by group."""
    bench = run.emulated_bench()
    return {name: list(measure(bench)) for name, measure in rows.GROUPS.items()}


def test_every_measurement_reaches_its_end(measured):
    assert {group: {row["group"] for row in made} for group, made in measured.items()} == {
        "switch": {"switch"},
        "network": {"network", "random widths"},
        "gemv": {"matrix-vector product"},
        "conv": {"switch in a convolution", "convolution", "1x1 as a product"},
    }
    for made in measured.values():
        for row in made:
            assert row["ratio"] == row["peer_ms"] / row["ours_ms"]
            assert row["met"] == (None if row["aim"] is None else row["ratio"] >= row["aim"])


def test_bytes_and_operations_are_counted(measured):
    row = next(row for row in measured["conv"] if "8->16 3x3/2 on 8x8, batch 3" in row["what"])
    assert row["operations"] == 2 * 3 * 4 * 4 * 16 * 8 * 9
    assert row["bytes"] == 3 * 8 * 8 * 8 + 3 * 4 * 4 * 16 + 16 * 8 * 9
    row = next(row for row in measured["gemv"] if "from 4 planes" in row["what"])
    assert row["bytes"] == 2 * 64 * 64 // 2


PLANTED = {
    "switch": ("common.cuh", "(codes >> (drop - 1)) & EACH_BYTE", "(codes >> drop) & EACH_BYTE"),
    "gemv": ("planes.cu", ">> (8 - width)", ">> (7 - width)"),
    "conv": ("conv.cu", "(1ll << (c.r - 1))", "(1ll << c.r)"),
    "network": ("common.cuh", "return scaled(x, drop, __ldg", "return scaled(x, 0 * drop, 2 * __ldg"),
}


@pytest.mark.parametrize("group", PLANTED)
def test_what_is_not_exact_is_not_timed(group):
    file, text, wrong = PLANTED[group]
    assert text in kernels.source(file)
    sources = {file: kernels.source(file).replace(text, wrong)}
    bench = rows.Bench(Emulator(sources=sources), HostClock(), rows.TINY)
    with pytest.raises(AssertionError):
        list(rows.GROUPS[group](bench))


def test_a_failed_group_is_recorded_and_the_next_goes_on(tmp_path, monkeypatch):
    def broken(bench):
        yield {"group": "a", "ratio": 1}
        raise AssertionError("not exact")

    kept = record.Record(tmp_path, MACHINE)
    monkeypatch.setattr(rows, "GROUPS", {"a": broken, "b": lambda bench: iter([{"group": "b"}])})
    rows.measure(None, kept, lambda: False)
    stored = json.loads(kept.path.read_text())
    assert [row["group"] for row in stored["rows"]] == ["a", "b"]
    assert [(check["name"], check["passed"]) for check in stored["checks"]] == [("benchmark a", False)]
    assert not stored["finished"]


def test_a_run_out_of_time_keeps_what_it_has(tmp_path, monkeypatch):
    kept = record.Record(tmp_path, MACHINE)
    monkeypatch.setattr(rows, "GROUPS", {"a": lambda bench: iter([{"group": "1"}, {"group": "2"}])})
    rows.measure(None, kept, lambda: len(kept.data["rows"]) == 1)
    stored = json.loads(kept.path.read_text())
    assert [row["group"] for row in stored["rows"]] == ["1"]
    assert stored["checks"][0]["detail"] == "cut: no time left"
    kept.finish()
    assert not kept.data["finished"]
    assert [path.name for path in tmp_path.iterdir()] == [kept.path.name]
    assert kept.path.name.startswith("nvidia-x100-test-20")


def test_commands_are_recorded(tmp_path, capsys):
    kept = record.Record(tmp_path, MACHINE)
    run.command(kept, "good", [sys.executable, "-c", "print('= 3 passed in 1s =')"], 60)
    run.command(kept, "bad", [sys.executable, "-c", "print('1 failed, 2 passed'); exit(1)"], 60)
    run.command(kept, "slow", [sys.executable, "-c", "import time; time.sleep(60)"], 5)
    run.command(kept, "late", [sys.executable, "-c", ""], 1)
    found = [(check["name"], check["passed"], check["detail"]) for check in kept.data["checks"]]
    assert found == [
        ("good", True, "3 passed in 1s"),
        ("bad", False, "1 failed, 2 passed"),
        ("slow", False, "not finished after 5 s"),
        ("late", None, "not run: no time left"),
    ]
    assert "1 failed" in capsys.readouterr().out


def test_without_a_gpu_one_sentence(tmp_path):
    """make gpu on a machine that has none; where there is one, the tests marked gpu look at it."""
    from conftest import without_gpu

    if not without_gpu():
        pytest.skip("this machine has a GPU")
    line = [sys.executable, "-m", "benchmarks.gpu.run", "--out", tmp_path]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (2, without_gpu(), "")
    assert not list(tmp_path.iterdir())


def test_runs_take_turns():
    class Clock(HostClock):
        meaningful = True

        def __call__(self, run, times):
            order.append(run())
            return {"a": 1.0, "b": 3.0}[order[-1]]

    order = []
    assert medians(Clock(), {"a": lambda: "a", "b": lambda: "b"}, rounds=4) == {"a": 1.0, "b": 3.0}
    assert "".join(order[2:]) == "abbaabba"


# The page


def test_the_page_says_that_nothing_was_run(tmp_path):
    (page,) = gpu_records.pages(tmp_path)
    assert page.data == "*Not yet run on a GPU.*"


def test_the_page_draws_records(tmp_path, measured):
    kept = record.Record(tmp_path, MACHINE)
    kept.check("tests", True, 12.34, "30 passed")
    for made in measured.values():
        for row in made:
            kept.row(row)
    title, machine, checks, table = gpu_records.pages(tmp_path)
    assert "NVIDIA X100 (test)" in title.data
    assert "The run was cut" in title.data
    assert machine.rows[0] == ["cuda", "13.0"]
    assert checks.rows == [["tests", "passed", "12.3", "30 passed"]]
    assert len(table.rows) == sum(map(len, measured.values()))
    assert {len(row) for row in table.rows} == {len(table.head)}
    kept.finish()
    assert "The run was cut" not in gpu_records.pages(tmp_path)[0].data


def test_records_of_this_project_are_drawn():
    for page in gpu_records.pages():
        assert page is not None
    assert all("test" not in found["machine"]["device"].lower() for found in gpu_records.records())


def test_the_table_of_resources(tmp_path):
    columns = [
        "source",
        "variant",
        "kernel",
        "sm",
        "registers",
        "shared_bytes",
        "stack_bytes",
        "spilled_bytes",
    ]
    lines = [["switch", "FLOOR=0", "switch_codes", sm, sm - 50, 0, 0, sm % 2] for sm in (75, 80)]
    path = tmp_path / "resources.json"
    path.write_text(json.dumps({"compiler": "c", "columns": columns, "rows": lines}))
    table = gpu_records.resources(path)
    assert table.head[3:] == ["sm_75", "sm_80", "shared bytes", "spilled bytes"]
    assert table.rows == [["switch", "switch_codes", "FLOOR=0", "25", "30", "0", "1"]]
    assert gpu_records.compiler(path) == "c"
    assert gpu_records.records(tmp_path) == []  # no record of a run


def test_the_networks_are_lively():
    """Random programs whose values are not all clamped: a wrong kernel shows in the logits."""
    for make in rows.TINY.nets:
        program = make()
        images = np.random.default_rng(0).integers(0, 256, (4, *program.image_shape), np.uint8)
        logits = program.run(images, 8, "numpy").logits
        assert len(np.unique(logits, axis=0)) == 4
        assert not np.array_equal(logits, program.run(images, 2, "numpy").logits)
