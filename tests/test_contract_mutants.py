"""A program that differs from a valid one in any field is refused, or every way of running has one answer."""

import collections
import itertools
import os
import random
import shutil

import numpy as np
import pytest
from _pytest.mark.expression import Expression
from hypothesis import HealthCheck, given, seed, settings
from mutations import Mutant, bases, mutant_of
from program_checks import small_program
from test_export import answer as by_onnx
from test_export import session_of
from test_live_demo import answer as by_node

from dqt_core import ProgramError
from dqt_core.export.qdq import to_qdq
from dqt_core.export.qonnx import to_qonnx
from dqt_core.program import Conv, Lookup, Result, Scale, Term
from reproductions.exports.c_program import CHECKED, build, written
from reproductions.exports.c_program import run as run_c

IN_PROCESS = "torch", "numba"
LARGEST = 2**19  # numbers of all values: larger programs are accepted and not run here
EACH = 10  # mutants of one program
EVERY = 40  # of the accepted programs one also goes where a compiler or another process takes its time


class Judge:
    """Accepts what a test draws, runs it, and counts."""

    def __init__(self, folder, every):
        self.folder, self.every = folder, every
        self.counts = collections.Counter()

    def __call__(self, mutant):
        program, reason = outcome(ProgramError, mutant.program)
        if program is None:
            self.counts["refused"] += 1
            assert "\n" not in reason
            assert len(reason) < 500
            return
        if sum(np.prod(value.shape) for value in program.values.values()) > LARGEST:
            self.counts["accepted, too large to run"] += 1
            return
        self.counts["accepted"] += 1
        is_seldom = self.counts["accepted"] % self.every == 0
        self.counts["on every way"] += is_seldom
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (3, *program.image_shape)).astype(np.uint8)
        picks = rng.integers(0, len(program.choices), (3, len(program.layers)))
        pairs = np.array(program.choices)[picks].reshape(3, len(program.layers), 2)
        for widths in (pairs, "controller")[: 1 + program.has_controller]:
            ways = self.ways(program) if is_seldom else by_package(program, IN_PROCESS)
            expected = program.run(images, widths, "numpy")
            for way, run in ways.items():
                found = run(images, widths)
                assert found.digest == expected.digest, way
                np.testing.assert_array_equal(found.choices, expected.choices, way)

    def ways(self, program):
        ways = by_package(program, (*IN_PROCESS, "emulator"))
        session = session_of(program, self.folder)
        ways["onnx"] = lambda images, widths: by_onnx(program, session, images, widths)
        if shutil.which(os.environ.get("CC", "gcc")):
            executable = build(written(program, self.folder), self.folder, *CHECKED)
            ways["c"] = lambda images, widths: run_c(executable, program, images, widths)
        if shutil.which("node"):
            ways["javascript"] = lambda images, widths: javascript(program, images, widths)
        to_qonnx(program, self.folder / "qonnx.onnx", [program.choices[-1]] * len(program.layers))
        self.write_qdq(program)
        return ways

    def write_qdq(self, program):
        """Other bits, but a graph that ONNX's checker accepts; or a refusal that says why."""
        path = self.folder / "qdq.onnx"
        _, reason = outcome(ValueError, lambda: to_qdq(program, path, program.choices[-1][0]))
        known = "does not fit int32", "rounds by floor", "is not in this program"
        assert not reason or any(words in reason for words in known), reason


def outcome(error, make):
    """What is made; or None and the words of an error that may come."""
    try:
        return make(), ""
    except error as refusal:
        return None, str(refusal)


def by_package(program, backends):
    return {name: lambda images, widths, name=name: program.run(images, widths, name) for name in backends}


def javascript(program, images, widths):
    logits, used = by_node(program, images, widths)
    used = used.reshape(len(images), len(program.layers), 2).astype(np.int64)  # of no layers, floats
    return Result(logits, program._choices_of(used, len(images)), used, "javascript")


def judge(folder, count, every, start):
    """Counts, and what was wrong."""
    judge, numbers, faults = Judge(folder, every), itertools.count(), []

    @seed(start)
    @settings(
        max_examples=-(-count // EACH), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(program=bases())
    def on_mutants(program):
        for number in itertools.islice(numbers, EACH):
            mutant = mutant_of(program, random.Random(f"{start} {number}"))
            try:
                judge(mutant)
            except Exception as error:
                faults.append(f"{mutant.changes}: {error!r}")

    on_mutants()
    return judge.counts, faults


def test_mutants(tmp_path):
    counts, faults = judge(tmp_path, 300, 10, start=0)
    assert not faults
    assert counts["refused"] > 100
    assert counts["accepted"] > 30, "a strategy that only makes nonsense tests nothing"


@pytest.mark.slow
def test_many_mutants(tmp_path):
    start = int(os.environ.get("SEED", random.randrange(2**32)))
    print(f"\nSEED={start}", flush=True)
    counts, faults = judge(tmp_path, 5000, EVERY, start)
    print(dict(counts), *faults, sep="\n")
    assert not faults


ODD_NAMES = "__proto__", "constructor", "constant0", "Gather1", "depthwise:sum:switched", "größe %d 'x'"


@pytest.mark.parametrize("name", ["codes", *ODD_NAMES])
@pytest.mark.parametrize("layers", [(), ("only",)])
def test_programs_at_the_edge(tmp_path, name, layers):
    """No switchable layer, no requantize, one pixel; names that mean something to somebody."""
    one, zero = np.ones((1, 1), np.int32), np.zeros((1, 1), np.int64)
    table = np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8)
    weight = np.array([90, -7, 33, -128, 127, 1], np.int8).reshape(2, 1, 1, 3)
    ops = (
        Lookup(table, name),
        Conv("only", weight, 1, 0, 1, 0 if layers else None, name, "sums"),
        Scale(Term("sums", one, zero, None), 1, "logits"),
    )
    judge = Judge(tmp_path, every=1)
    judge(Mutant({"name": "edge", "ops": ops, "choices": ((2, 2), (8, 8)), "layers": layers,
        "image_shape": (1, 1, 3)}, ()))  # fmt: skip
    assert judge.counts["on every way"] == 1


def test_the_judge_sees_a_backend_that_differs(tmp_path, monkeypatch):
    monkeypatch.setattr("dqt_core.backends.torch_cpu.Backend.choose", lambda *_: np.zeros((3, 4), np.int64))
    with pytest.raises(AssertionError, match="torch"):
        Judge(tmp_path, every=10)(unchanged())


def test_the_judge_sees_an_exporter_that_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dqt_core.export.onnx._Exporter._choice", lambda self, layer: self.constant(0, np.int64)
    )
    with pytest.raises(AssertionError, match="onnx"):
        Judge(tmp_path, every=1)(unchanged())


def test_the_judge_lets_no_other_error_pass(tmp_path):
    class Broken:
        def program(self):
            raise KeyError("terms")

    with pytest.raises(KeyError):
        Judge(tmp_path, every=10)(Broken())


def unchanged():
    class Unchanged:
        def program(self):
            return small_program()

    return Unchanged()


def test_the_slow_part_is_left_out_by_default(request):
    """And its command finds it."""
    marks = Expression.compile(request.config.getini("addopts")[-1])
    assert not marks.evaluate(lambda name: name == "slow")
    assert marks.evaluate(lambda name: False)
    assert [mark.name for mark in test_many_mutants.pytestmark] == ["slow"]
    assert "pytest -m slow -s tests" in (request.config.rootpath / "Makefile").read_text()
