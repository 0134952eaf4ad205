"""A stock ONNX Runtime returns the bits of `Program.run`, at every width, from one file."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from program_checks import (
    CHOICES,
    LAYERS,
    K,
    R,
    late_program,
    mixed_choices,
    saturated,
    small_images,
    small_program,
)
from strategies import runs

from dqt_core import data
from dqt_core.export import to_onnx
from dqt_core.program import Requantize, Result, Scale


def session_of(program, folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a refused width is an exception; its log line says no more
    return onnxruntime.InferenceSession(to_onnx(program, folder / "program.onnx"), options)


def answer(program, session, images, widths):
    """Logits and choices of a session, as the result of a run."""
    logits, chosen = session.run(None, {"images": images, "widths": as_input(program, len(images), widths)})
    return Result(logits, program._choices_of(chosen, len(images)), chosen, "onnx")


def as_input(program, n, widths):
    """Widths in any form of `Program.run` as the graph takes them."""
    pairs = np.array(program.choices)
    undecided = np.zeros((n, len(program.layers), 2), np.int64)
    table = undecided if isinstance(widths, str) else pairs[program._choices_of(widths, n)]
    return table if (pairs[:, 0] != pairs[:, 1]).any() else table[..., 0]


def assert_same(program, session, images, widths):
    result, expected = answer(program, session, images, widths), program.run(images, widths, "numpy")
    np.testing.assert_array_equal(result.logits, expected.logits)
    assert result.digest == expected.digest
    np.testing.assert_array_equal(result.widths, expected.widths)


# Random programs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@settings(deadline=None, derandomize=True, max_examples=150)
@given(run=runs(max_size=8))
def test_random_programs(folder, run):
    assert_same(run.program, session_of(run.program, folder), run.images, run.widths)


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_small_program(folder, rounding):
    program, images = small_program(rounding), small_images()
    session = session_of(program, folder)
    for pair in CHOICES:
        assert_same(program, session, images, [pair] * LAYERS)
    assert_same(program, session, images, np.array(CHOICES)[mixed_choices()])
    assert_same(program, session, images, "controller")
    late = late_program(rounding)
    assert_same(late, session_of(late, folder), images, "controller")


@pytest.mark.parametrize("terms", [1, 2, 64, 600, 32_896])
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_the_largest_sums(folder, terms, rounding):
    """Codes 255 against weights -128: where 16-bit sums of pairs would saturate."""
    program = saturated(terms, rounding)
    assert_same(program, session_of(program, folder), np.zeros((2, 1, 1, 3), np.uint8), 8)


# Numbers whose largest one Clip or ReduceMax of ONNX Runtime 1.31 on x86-64 does not find
BEYOND_32_BITS = [3 << 30, 255], [-6514092032, -5993091072, -2132528640, -7845480448, -2923726848]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("numbers", BEYOND_32_BITS)
def test_comparisons_beyond_32_bits(folder, numbers, order):
    """As scores of the controller, and as sums before the clamp."""
    program = small_program()
    row = np.tile(np.resize(numbers[::order], K), LAYERS)[None]
    ops = []
    for op in program.ops:
        if isinstance(op, Scale) and op.controller:
            op = replace(op, term=replace(op.term, multiplier=op.term.multiplier * 0, offset=row))
        if isinstance(op, Requantize) and op.out == "a":
            term = op.terms[0]
            offset = term.offset + (np.resize(numbers, term.offset.shape[1]) << R)
            op = replace(op, terms=(replace(term, offset=offset), *op.terms[1:]))
        ops.append(op)
    program = replace(program, ops=tuple(ops))
    assert_same(program, session_of(program, folder), small_images(), "controller")


def test_a_layer_can_be_left_to_the_controller(folder):
    """Width 0 in some places: there the controller's choice, elsewhere the given width."""
    program, images = small_program(), small_images()
    own = program.run(images, "controller").widths
    given_widths = np.array(CHOICES)[mixed_choices()]
    left = np.random.default_rng(0).random(given_widths.shape[:2]) < 0.5
    widths = np.where(left[..., None], own, given_widths)
    expected = program.run(images, widths, "numpy")
    session = session_of(program, folder)
    asked = {"images": images, "widths": np.where(left[..., None], 0, given_widths)}
    logits, chosen = session.run(None, asked)
    np.testing.assert_array_equal(chosen, widths)
    np.testing.assert_array_equal(logits, expected.logits)


@pytest.mark.parametrize("wrong", [(1, 1), (2, 4), (0, 8), (-1, -1), (9, 9), (100, 100), (2**62, 2), (0, 0)])
def test_an_unknown_width_stops_the_run(folder, wrong):
    program = small_program(controller=False)
    session = session_of(program, folder)
    widths = np.full((2, LAYERS, 2), 8)
    widths[1, 2] = wrong
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"images": small_images(2), "widths": widths})


@pytest.mark.parametrize("wrong", [(-1, -8), (-1, 0), (0, -1), (-(2**62), 2), (9, 9), (8, -1)])
def test_a_negative_width_is_not_the_controllers(folder, wrong):
    program = small_program()
    session = session_of(program, folder)
    widths = np.zeros((2, LAYERS, 2), np.int64)
    widths[1, 2] = wrong
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"images": small_images(2), "widths": widths})


def test_equal_programs_make_equal_files(folder):
    first, second = (to_onnx(small_program(), folder / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second


def test_the_file_is_integers_in_standard_operators(folder):
    program = small_program()
    model = onnx.load(to_onnx(program, folder / "program.onnx"))
    (scan,) = (node for node in model.graph.node if node.op_type == "Scan")
    nodes = [*model.graph.node, *scan.attribute[0].g.node]
    assert {node.domain for node in nodes} == {""}
    assert [opset.version for opset in model.opset_import] == [17]
    types = {onnx.helper.tensor_dtype_to_np_dtype(table.data_type).name for table in model.graph.initializer}
    assert types <= {"uint8", "int32", "int64", "uint64"}
    masters = [table for table in model.graph.initializer if table.dims[:1] == [6] and len(table.dims) == 4]
    assert len(masters) == LAYERS, "every switchable weight is stored once, not once for each choice"
    assert {p.key: p.value for p in model.metadata_props}["digest"] == program.digest


# Planted errors: what the comparison must see


def off_by_one(program, kind):
    """The program with one number changed by one unit."""
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if isinstance(op, Requantize) and op.terms[0].layer is not None)
    op = ops[at]
    term = op.terms[0]
    change = {
        "offset": {"offset": term.offset + (1 << op.r)},
        "one row": {"multiplier": term.multiplier[::-1].copy()},
    }
    ops[at] = replace(op, terms=(replace(term, **change[kind]), *op.terms[1:]))
    return replace(program, ops=tuple(ops))


@pytest.mark.parametrize("kind", ["offset", "one row"])
def test_a_planted_error_is_seen(folder, kind):
    program = small_program()
    session = session_of(off_by_one(program, kind), folder)
    with pytest.raises(AssertionError):
        assert_same(program, session, small_images(), 8)


@pytest.mark.parametrize(
    ("rounding", "rule", "wrong"),
    [
        (
            "half_up",
            "_switch",
            lambda self, codes, drop: self.add("BitShift", codes, drop, direction="RIGHT"),
        ),
        ("half_up", "_choice", lambda self, layer: self.constant(K - 1, np.int64)),
        ("floor", "_row", lambda self, table, choice: self.constant(table[:1, :, None, None], np.int64)),
        (
            "floor",
            "_mid_bin",
            lambda self, op, sums, *others: self.add("Mul", sums, self.constant(2, np.int64)),
        ),
    ],
    ids=["no epsilon", "one choice for all", "one row for all", "no middle"],
)
def test_an_exporter_with_a_wrong_rule_is_seen(folder, monkeypatch, rounding, rule, wrong):
    monkeypatch.setattr(f"dqt_core.export.onnx._Exporter.{rule}", wrong)
    program = small_program(rounding)
    session = session_of(program, folder)
    with pytest.raises(AssertionError):
        assert_same(program, session, small_images(), np.array(CHOICES)[mixed_choices()])


# Shipped programs


def mixed_widths(program, n):
    picks = np.random.default_rng(5).integers(0, len(program.choices), (n, len(program.layers)))
    return np.array(program.choices)[picks][..., 0]


def check_shipped(program, images, folder):
    session = session_of(program, folder)
    for width, _ in program.choices:
        assert_same_as_fast(program, session, images, width)
    assert_same_as_fast(program, session, images, mixed_widths(program, len(images)))
    if program.has_controller:
        assert_same_as_fast(program, session, images, "controller")


def assert_same_as_fast(program, session, images, widths):
    result, expected = answer(program, session, images, widths), program.run(images, widths)
    assert result.digest == expected.digest
    np.testing.assert_array_equal(result.widths, expected.widths)


@pytest.mark.parametrize("kind", ["trained", "cut"])
def test_shipped_embedded_program(shipped, folder, kind):
    check_shipped(shipped("embedded", kind), data.load("embedded").test_images[:60], folder)


@pytest.mark.parametrize("kind", ["trained", "cut"])
def test_shipped_cifar_program(shipped, folder, kind):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    check_shipped(shipped("cifar10", kind), images, folder)


def test_shipped_program_on_cifar_images(shipped, folder, cifar10):
    check_shipped(shipped("cifar10"), cifar10.test_images[:50], folder)
