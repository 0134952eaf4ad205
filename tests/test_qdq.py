"""The QDQ form is the program with ties to even, in floats; these are exact where multipliers allow it."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from program_checks import small_program

from dqt_core import nested
from dqt_core.backends import numpy_ref
from dqt_core.export.qdq import to_qdq
from dqt_core.program import Conv, Requantize, Scale, execute

WIDTHS = (2, 3, 4, 6, 8)
STEPS = {"input": 0.25, "stem:codes": 2.0, "a": 0.125, "b": 8.0, "features": 0.5}
LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]


def powers_of_two(table):
    return np.sign(table) * 2 ** np.round(np.log2(abs(table))).astype(np.int64)


def exact_program():
    """Multipliers are powers of two, offsets whole accumulator units: float32 holds every sum exactly."""
    program = small_program(controller=False)

    def exact(term):
        multiplier = powers_of_two(term.multiplier)
        drops = [8 - width if term.layer is not None else 0 for width in WIDTHS[: len(multiplier)]]
        unit = multiplier << 2 * np.array(drops).reshape(-1, 1)
        is_sum = term.x.endswith(":sum")
        offset = np.round(term.offset / unit).astype(np.int64) * unit if is_sum else term.offset >> 16 << 16
        return replace(term, multiplier=multiplier.astype(np.int32), offset=offset)

    ops = [
        replace(op, terms=tuple(map(exact, op.terms)))
        if isinstance(op, Requantize)
        else replace(op, term=exact(op.term))
        if isinstance(op, Scale)
        else op
        for op in program.ops
    ]
    choices = tuple((width, width) for width in WIDTHS)
    return replace(program, ops=tuple(ops), choices=choices, image_shape=(4, 4, 3))


class ToEven(numpy_ref.Backend):
    """The reference with every tie going to the even code."""

    def _conv_at(self, op, x, weight_bits, input_bits):
        hi = nested.code_range(input_bits, x.dtype == np.int8)[1]
        narrow = np.minimum(np.rint(x / 2.0 ** (8 - input_bits)), hi).astype(x.dtype)
        weight = replace(op, weight=nested.switch(op.weight, weight_bits))
        return super()._conv_at(weight, narrow, 8, 8)

    def requantize(self, op, values, choices):
        total = 0
        for term in op.terms:
            rows = [self._rows(table, term, choices) for table in (term.multiplier, term.offset)]
            total = total + (values[term.x].astype(np.int64) << self._drop(term, choices)) * rows[0] + rows[1]
        return np.clip(np.rint(total / 2.0**op.r), op.lo, op.hi).astype(np.uint8 if op.lo >= 0 else np.int8)


def images(n=6):
    return np.random.default_rng(3).integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)


def answer(path, level):
    """Everything that a QDQ model computes under the program's names."""
    model = onnx.load(path)
    known = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for name in sorted(known):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images()}), strict=True))


def check(program, path, width, level=LEVELS[0]):
    """A QDQ file has the codes and the logits of a program in which ties go to even."""
    found, values = answer(path, level), {}

    class Recorder(ToEven):
        def requantize(self, op, *rest):
            values[op.out] = super().requantize(op, *rest)
            return values[op.out]

    logits, _ = execute(program, Recorder(program), images(), program._choices_of(width, len(images())))
    assert len(values) == 5
    for name, codes in values.items():
        assert len(np.unique(codes)) > 2
        np.testing.assert_array_equal(found[name].transpose(0, 2, 3, 1), codes, name)
    scale = next(op for op in program.ops if isinstance(op, Scale))
    np.testing.assert_array_equal(found["logits"], np.ldexp(logits.astype(np.float64), -scale.r))


@pytest.mark.parametrize("steps", [None, STEPS], ids=["steps of 1", "steps"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_the_program_with_ties_to_even(tmp_path, width, level, steps):
    program = exact_program()
    check(program, to_qdq(program, tmp_path / "qdq.onnx", width, steps), width, level)


def test_ties_matter():
    """The rule of `ToEven` and ours differ on this program, so the test above can tell them apart."""
    program = exact_program()
    choices = program._choices_of(4, len(images()))
    to_even, _ = execute(program, ToEven(program), images(), choices)
    assert (to_even != program.run(images(), 4, "numpy").logits).any()


@pytest.mark.parametrize("name", ["stem", "grouped", "shortcut", "plain", "depthwise", "classifier"])
def test_a_planted_error_is_seen(tmp_path, name):
    """The lowest bit of one layer's weights."""
    program = exact_program()
    ops = [
        replace(op, weight=op.weight ^ 1) if isinstance(op, Conv) and op.name == name else op
        for op in program.ops
    ]
    path = to_qdq(replace(program, ops=tuple(ops)), tmp_path / "qdq.onnx")
    with pytest.raises(AssertionError):
        check(program, path, 8)


def test_a_program_that_rounds_by_floor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rounds by floor has no QDQ form"):
        to_qdq(small_program("floor"), tmp_path / "never.onnx")


def test_an_unknown_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match="width 5 is not in this program"):
        to_qdq(exact_program(), tmp_path / "never.onnx", 5)


def test_a_bias_that_does_not_fit_is_refused(tmp_path):
    program = exact_program()
    ops = [
        replace(op, terms=tuple(replace(term, offset=term.offset + (1 << 60)) for term in op.terms))
        if isinstance(op, Requantize)
        else op
        for op in program.ops
    ]
    with pytest.raises(ValueError, match=r"stem: a bias of .* accumulator units does not fit int32"):
        to_qdq(replace(program, ops=tuple(ops)), tmp_path / "never.onnx")
