"""Measuring on a CPU: the harness compares bits before it times, keeps what it has, and is drawn."""

import contextlib
import json
import os
import subprocess
import sys
from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import cpu
from benchmarks import planes as planes_bench
from benchmarks.gpu import networks
from dqt_book.records import cpu as cpu_records
from dqt_core.backends import numba_cpu


@pytest.fixture
def bench(tmp_path):
    return cpu.Bench(Namespace(threads=1, rounds=3, compile=False, add=True, out=tmp_path / "a" / "one.json"))


def small():
    return networks.resnet18(channels=4, size=8, classes=4, stages=2)


def test_a_network_is_measured_and_drawn(bench):
    cpu.network(bench, "resnet18", small(), (1, 2), exact=2)
    cpu.shares_of(bench, small(), 2)
    record = json.loads(bench.options.out.read_text())
    peers = {row["peer"] for row in record["rows"]}
    assert peers == {
        *("torch fp32", "torch bf16", "ONNX Runtime fp32", "ONNX Runtime int8", "dqt_core at 8 bits")
    }
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in record["rows"])
    assert {row["met"] for row in record["rows"] if row["aim"] is None} == {None}
    folder = bench.options.out.parent
    title, table = cpu_records.pages(folder)
    assert "The run was cut" in title.data
    assert len(table.rows) == len(record["rows"])
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_what_is_not_exact_is_not_timed(bench, monkeypatch):
    def wrong(self, images, choices):
        logits, picks = right(self, images, choices)
        logits[-1, -1] += 1
        return logits, picks

    right = numba_cpu.Backend.run
    monkeypatch.setattr(numba_cpu.Backend, "run", wrong)
    with pytest.raises(AssertionError, match="differ"):
        cpu.network(bench, "resnet18", small(), (2,), exact=1)
    assert bench.data["rows"] == []


def test_a_missed_aim_has_its_cause(bench, tmp_path):
    seconds = {"dqt_core": [1.0, 1.0, 1.0], "a": [2.0, 2.5, 3.0], "b": [0.5, 0.5, 0.5]}
    bench.rows("group", seconds, aims={"a": 2, "b": 1}, operations=4e9, bytes=1e6)
    bench.data["facts"]["roofline"] = {"operations_per_second": 8e9, "bytes_per_second": 1e9}
    bench.write()
    causes = tmp_path / "causes.json"
    name = cpu_records.processor(bench.data)
    causes.write_text(json.dumps({name: {"group | b": "because"}, "another": {"group | b": "no"}}))
    folder = bench.options.out.parent
    assert [row[2:] for row in cpu_records.misses(folder, causes).rows] == [
        ["group", "b", "0.50", "1", "because"]
    ]
    (row,) = cpu_records.roofline(folder).rows
    assert row[-1] == "50 %"


def test_a_record_goes_on(bench):
    seconds = {"dqt_core": [1.0, 1.0], "a": [2.0, 2.0]}
    for group in ("first", "second"):
        bench.rows(group, seconds)
    again = cpu.Bench(bench.options)
    again.rows("first", seconds | {"b": [3.0, 3.0]})
    assert [(row["group"], row["peer"]) for row in again.data["rows"]] == [
        *(("second", "a"), ("first", "a"), ("first", "b"))
    ]
    with pytest.raises(SystemExit, match="is of 1 threads"):
        cpu.Bench(Namespace(**vars(bench.options) | {"threads": 2}))


def test_a_folder_has_a_record_for_each_kind_of_processor(tmp_path):
    bench = cpu.Bench(Namespace(threads=1, rounds=3, compile=False, add=False, out=tmp_path))
    bench.rows("first", {"dqt_core": [1.0, 1.0], "a": [2.0, 2.0]})
    (written,) = tmp_path.iterdir()
    assert written.name == f"{type(numba_cpu.machine()).__name__.lower()}-one-thread.json"
    kind = cpu_records.processor(bench.data)
    assert cpu_records.one_thread(kind, tmp_path)["rows"][0]["group"] == "first"


def test_growth_is_drawn(bench):
    for axis in cpu_records.AXES:
        bench.data["growth"] += [
            {"axis": axis, "value": v, "ms": v, "arena_bytes": v, "weight_bytes": v, "macs": v}
            for v in (1, 2)
        ]
    bench.write()
    plt.switch_backend("agg")
    cpu_records.growth(bench.options.out.parent)
    assert len(plt.gcf().axes) == 6
    plt.close("all")


def test_runs_take_turns(bench):
    order = []
    bench.turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4)
    assert "".join(order) == "ab" + "abbaabba"


def test_the_records_of_this_project_are_drawn():
    for record in cpu_records.records():
        assert record["machine"]["masked"] == {}
        assert record["rows"]
    assert cpu_records.pages()
    table = cpu_records.summary()
    shown = {(*row[:3], peer): cell for row in table.rows for peer, cell in zip(table.head, row, strict=True)}
    for record in cpu_records.records():
        for row in record["rows"]:
            if row["what"] == "dqt_core":
                of = cpu_records.processor(record), str(record["threads"]), row["group"]
                assert shown[*of, row["peer"]] == f"{row['ratio']:.2f}"
    missed = cpu_records.misses()
    assert all(row[-1] != "not known" for row in getattr(missed, "rows", ()))


def test_the_training_step_is_drawn_with_its_aim():
    rows = cpu_records.training_step().rows
    assert {row[0] for row in rows} == {"16", "64"}
    for row in rows:
        is_peer = row[1].split()[0].strip(",") in ("float", "torchao")
        assert row[-1] == ("" if is_peer else "reached" if float(row[-2]) <= 1.3 else "missed")


def test_products_from_planes_are_drawn_with_their_aims(tmp_path):
    assert cpu_records.planes(tmp_path / "none.json").data == "*Not yet measured.*"
    assert set(cpu_records.planes_facts(tmp_path / "none.json").values()) == {"not yet measured"}
    table = planes_bench.runners(64, 2)
    seconds = {name: [0.004 if name == "4 planes" else 0.008] * 3 for name in table}
    rows = [planes_bench.row(name, times, seconds) for name, times in seconds.items()]
    origin = {"hardware": {"cpu": "a processor"}}
    path = tmp_path / "planes.json"
    path.write_text(json.dumps({"rows": rows, "size": 64, "matrices": 2, "provenance": origin}))
    drawn = {row[0]: row for row in cpu_records.planes(path).rows}
    assert [drawn[name][-1] for name in ("8 planes", "4 planes", "2 planes", "1 planes")] == [
        "reached (1.2)",
        "reached (0.6)",
        "missed (0.35)",
        "",
    ]
    assert drawn["4 planes"][1:3] == ["4.00", "0.50 (0.50 to 0.50)"]
    assert cpu_records.planes_facts(path)["four"] == "0.50"


def test_words_are_those_of_the_record(tmp_path):
    row = {"peer": "torch PT2E int8", "group": "small", "ratio": 1.5, "what": "dqt_core"}
    shares = {"products": 0.6, "windows": 0.3, "Python": 0.1}
    record = {"schema": cpu_records.SCHEMA, "threads": 1, "rows": [row], "facts": {"net shares": shares}}
    record["machine"] = {"instructions": "Vnni512"}
    record["rows"].append(row | {"group": "large", "ratio": 0.7})
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert cpu_records.faster(tmp_path) == [("torch PT2E int8", "VNNI", 1, "large (0.70)")]
    assert cpu_records.above_a_tenth(tmp_path) == "windows (net on VNNI, 1 thread(s))"
    steps = [{"cpu_seconds": seconds} for seconds in (1, 2, 4, 3)]
    (tmp_path / "steps.json").write_text(json.dumps({"by_channels": {"64": steps}}))
    assert cpu_records.controller_on_a_part(path=tmp_path / "steps.json") == "50 %"


def test_the_page_says_that_nothing_was_measured(tmp_path):
    (page,) = cpu_records.pages(tmp_path)
    assert page.data == "*Not yet measured.*"


@pytest.mark.parametrize("instructions", ["AVX2", "AVX2_VNNI", "AVX512_CORE_VNNI", "DEFAULT"])
def test_every_kind_of_product_has_the_same_bits(instructions, monkeypatch):
    """In one process where the processor has them; two threads where there are two cores."""
    with monkeypatch.context() as masked:  # for no longer: torch reads it once, at its first convolution
        masked.setenv("ONEDNN_MAX_CPU_ISA", instructions)
        machine = numba_cpu.machine()
    monkeypatch.setattr(numba_cpu, "machine", lambda: machine)
    program = small()
    images = np.random.default_rng(0).integers(0, 256, (5, *program.image_shape), np.uint8)
    choices = np.random.default_rng(1).integers(0, 5, (5, len(program.layers)))
    widths = np.array(program.choices)[choices][..., 0]
    expected = program.run(images, widths, "numpy").logits
    np.testing.assert_array_equal(numba_cpu.Backend(program).run(images, choices)[0], expected)


def test_threads_share_the_work(monkeypatch):
    import numba

    workers = min(2, numba.config.NUMBA_NUM_THREADS)
    monkeypatch.setattr(numba_cpu, "threads", lambda: workers)
    program = small()
    images = np.random.default_rng(0).integers(0, 256, (3, *program.image_shape), np.uint8)
    choices = np.random.default_rng(1).integers(0, 5, (3, len(program.layers)))
    widths = np.array(program.choices)[choices][..., 0]
    expected = program.run(images, widths, "numpy").logits
    for part in (slice(0, 1), slice(0, 3)):
        got = numba_cpu.Backend(program).run(images[part], choices[part])[0]
        np.testing.assert_array_equal(got, expected[part])
    assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS


def test_a_thread_that_does_not_come_is_not_waited_for(monkeypatch):
    """Three are asked for and one is there: it does the work of all."""
    import numba

    monkeypatch.setattr(numba_cpu, "threads", lambda: 3)
    monkeypatch.setattr(numba_cpu, "pool", lambda workers: contextlib.nullcontext())
    program = small()
    images = np.random.default_rng(0).integers(0, 256, (3, *program.image_shape), np.uint8)
    choices = np.full((3, len(program.layers)), 2)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        got = numba_cpu.Backend(program).run(images, choices)[0]
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(got, program.run(images, program.choices[2][0], "numpy").logits)


@pytest.mark.parametrize("first", ["torch", "dqt_core.backends.numba_cpu"])
def test_torch_keeps_its_threads(first):
    """Numba and torch may share one OpenMP, whose number of threads Numba sets when it starts."""
    code = (
        f"import {first}\nfrom dqt_core.backends import numba_cpu\nnumba_cpu.prepare()\n"
        "import torch\nassert torch.get_num_threads() == 1, torch.get_num_threads()\n"
        "torch.set_num_threads(2)\nnumba_cpu.prepare()\nprint(torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_masked_instructions_are_not_used():
    code = "from dqt_core.backends import numba_cpu; print(type(numba_cpu.machine()).__name__)"
    for name, value in (("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ATEN_CPU_CAPABILITY", "avx2")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {name: value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "Plain"
