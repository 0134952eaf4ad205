"""The package qonnx returns the bits of `Program.run` from a file whose switches are its operator Trunc."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from program_checks import (
    CHOICES,
    LAYERS,
    joined_program,
    mixed_choices,
    saturated,
    small_images,
    small_program,
)
from strategies import runs

from dqt_core import data, nested
from dqt_core.export.qonnx import EXACT, _masks, to_qonnx
from dqt_core.program import Conv, Requantize, load
from reproductions.exports import qonnx_file

MIXED = [CHOICES[k] for k in mixed_choices()[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("qonnx")


@pytest.fixture(scope="module")
def execute():
    """Logits of a file, by qonnx itself."""
    pytest.importorskip("qonnx", reason="needs qonnx: pip install qonnx")
    return qonnx_file.execute


def assert_same(execute, program, path, images, widths):
    logits = execute(to_qonnx(program, path, widths), images)
    np.testing.assert_array_equal(logits, program.run(images, widths, "numpy").logits)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(run=runs(max_size=8))
def test_random_programs(execute, folder, run):
    picks = np.zeros(len(run.program.layers), int) if run.choices is None else run.choices[0]
    widths = [run.program.choices[k] for k in picks]
    assert_same(execute, run.program, folder / "random.onnx", run.images, widths)


@pytest.mark.parametrize("widths", [*([pair] * LAYERS for pair in CHOICES), MIXED], ids=str)
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_small_program(execute, folder, rounding, widths):
    assert_same(execute, small_program(rounding), folder / "small.onnx", small_images(), widths)


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_joined_values(execute, folder, rounding):
    program = joined_program(rounding)
    for pair in program.choices[:2]:
        widths = [pair] * len(program.layers)
        assert_same(execute, program, folder / "joined.onnx", small_images(), widths)


@pytest.mark.parametrize("terms", [600, 5_000])
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_the_largest_sums(execute, folder, terms, rounding):
    """Codes 255 against weights -128, whose sum float32 does not hold."""
    program = saturated(terms, rounding)
    assert_same(execute, program, folder / "largest.onnx", np.zeros((2, 1, 1, 3), np.uint8), 8)
    kinds = [node.op_type for node in onnx.load(folder / "largest.onnx").graph.node]
    assert kinds.count("Conv") > sum(isinstance(op, Conv) for op in program.ops)


def test_sums_that_float32_does_not_hold(execute, folder, monkeypatch):
    """Without the parts the last bit is lost: the test above can fail."""
    monkeypatch.setattr("dqt_core.export.qonnx.EXACT", 2**40)
    ops = [
        replace(op, weight=op.weight | (np.arange(op.weight.size) % 2 == 0).reshape(op.weight.shape))
        if isinstance(op, Conv) and op.layer is not None
        else op
        for op in saturated(5_000, "half_up").ops
    ]
    program = replace(saturated(5_000, "half_up"), ops=tuple(ops))
    with pytest.raises(AssertionError):
        assert_same(execute, program, folder / "lost.onnx", np.zeros((2, 1, 1, 3), np.uint8), 8)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (3, 600, 1, 1), (4, 2, 3, 3)])
def test_parts_hold_every_term_once(shape):
    sizes = np.full(shape, 255 * 128)
    masks = _masks(sizes)
    assert (sum(masks) == 1).all()
    assert all(((sizes * mask).reshape(len(sizes), -1).sum(1) < EXACT).all() for mask in masks)
    assert len(masks) == -(-sizes[0].size // 514)


def test_shipped_program(execute, folder):
    program, images = load("digits"), data.load("embedded").test_images[:4]
    mixed = [program.choices[k % len(program.choices)] for k in range(len(program.layers))]
    assert_same(execute, program, folder / "digits.onnx", images, mixed)


# What needs no qonnx


def test_a_switch_is_trunc(folder):
    """A layer that reads fewer bits has one Trunc for its input and one for its weights; others have none."""
    program = small_program()
    for weight_bits, input_bits in CHOICES:
        path = to_qonnx(program, folder / "switch.onnx", [(weight_bits, input_bits)] * LAYERS)
        model = onnx.load(path)
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("Trunc") == LAYERS * ((weight_bits < 8) + (input_bits < 8))
        assert {node.domain for node in model.graph.node} == {"", "qonnx.custom_op.general"}
        assert {p.key: p.value for p in model.metadata_props}["digest"] == program.digest


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", range(1, 8))
def test_the_form_of_a_switch_is_exact(rounding, signed, width):
    """The arithmetic of Trunc, as its definition says, on all 256 codes."""
    codes = np.arange(-128, 128).astype(np.int8) if signed else np.arange(256).astype(np.uint8)
    drop = 8 - width
    lo, hi = nested.code_range(width, signed)
    raised = codes.astype(np.float32) + (0 if rounding == "floor" else 1 << (drop - 1))
    found = np.floor(np.clip(raised / 2**drop, lo, hi))
    np.testing.assert_array_equal(found, nested.switch(codes, width, rounding=rounding))


def test_equal_programs_make_equal_files(folder):
    files = (to_qonnx(small_program(), folder / name, MIXED) for name in ("a.onnx", "b.onnx"))
    first, second = (path.read_bytes() for path in files)
    assert first == second


def test_the_controller_is_no_width_of_a_file(folder):
    with pytest.raises(ValueError, match="'controller' is no width of a QONNX file; give one"):
        to_qonnx(small_program(), folder / "never.onnx", "controller")


def test_an_unknown_width_is_refused(folder):
    with pytest.raises(ValueError, match="width 5 is not in this program"):
        to_qonnx(small_program(), folder / "never.onnx", 5)


# Planted errors: what the comparison must see


def plain_half(self, codes, drop, signed):
    """ROUND in place of the raised FLOOR: ties go to even."""
    if drop == 0:
        return codes
    numbers = (self._number(number) for number in (1, 0, 8, 1 << drop, 8 - drop))
    return self._own("Trunc", codes, *numbers, rounding_mode="ROUND", signed=int(signed), narrow=0)


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("_switch", plain_half),
        ("_row", lambda self, table, term: self.constant(table[0].reshape(-1, 1, 1), np.int64)),
        ("_drops", lambda self, layer: (4, 4) if layer is not None else (0, 0)),
    ],
    ids=["ties to even", "one row for all", "one width for all"],
)
def test_an_exporter_with_a_wrong_rule_is_seen(execute, folder, monkeypatch, rule, wrong):
    monkeypatch.setattr(f"dqt_core.export.qonnx._Exporter.{rule}", wrong)
    with pytest.raises(AssertionError):
        assert_same(execute, small_program(), folder / "wrong.onnx", small_images(), [(4, 3)] * LAYERS)


def test_a_planted_error_is_seen(execute, folder):
    """One offset of one layer, changed by one unit."""
    program = small_program()
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if isinstance(op, Requantize) and op.terms[0].layer is not None)
    term = replace(ops[at].terms[0], offset=ops[at].terms[0].offset + (1 << ops[at].r))
    ops[at] = replace(ops[at], terms=(term, *ops[at].terms[1:]))
    path = to_qonnx(replace(program, ops=tuple(ops)), folder / "planted.onnx", 8)
    assert (execute(path, small_images()) != program.run(small_images(), 8).logits).any()
