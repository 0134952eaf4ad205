"""The cost calculator counts as `cost` does: both sides are given the same layers."""

import itertools
import json

import numpy as np
import pytest
import test_widgets
from test_widgets import needs_node

from dqt_core import cost
from dqt_core.program import Conv, Lookup, Program, Requantize, Scale, SumPool, Term

# height, width, inputs, outputs, kernel, stride, groups
LAYERS = [
    (32, 32, 16, 16, 3, 1, 1),
    (7, 7, 512, 64, 1, 1, 1),
    (9, 6, 24, 24, 3, 2, 24),
    (14, 13, 8, 12, 5, 3, 4),
    (1, 1, 512, 10, 1, 1, 1),
    (6, 5, 4, 6, 2, 1, 2),
    (8, 8, 3, 5, 7, 4, 1),
]
FIELDS = ("height", "width", "inputs", "outputs", "kernel", "stride", "groups")
CASES = [
    {**dict(zip(FIELDS, layer, strict=True)), "weightBits": w, "inputBits": a, "rounding": rounding}
    for layer in LAYERS
    for w, a in itertools.product((1, 2, 4, 7, 8), repeat=2)
    for rounding in ("half_up", "floor")
]


def by_widget(function="widget.layerCost(layer)", layers=CASES):
    return test_widgets.run_script(f"{json.dumps(layers)}.map(layer => {function})", "cost-calculator.js")


def one_layer_program(layer):
    """A fixed 1x1 stem that makes the input channels, then the layer under test."""
    weights = layer["inputs"], 1, 1, 3
    kernel = layer["outputs"], layer["kernel"], layer["kernel"], layer["inputs"] // layer["groups"]
    one = np.ones((1, 1), np.int32)
    stem = Conv("stem", np.zeros(weights, np.int8), 1, 0, 1, None, "input", "stem:sum")
    tested = Conv(
        "tested",
        np.zeros(kernel, np.int8),
        layer["stride"],
        (layer["kernel"] - 1) // 2,
        layer["groups"],
        0,
        "stem",
        "tested:sum",
    )
    ops = (
        Lookup(np.zeros((3, 256), np.int8), "input"),
        stem,
        Requantize((Term("stem:sum", one, one.astype(np.int64), None),), 8, 0, 255, "stem"),
        tested,
        Requantize((Term("tested:sum", one, one.astype(np.int64), 0),), 8, 0, 255, "tested"),
        SumPool("tested", "sums"),
        Scale(Term("sums", one, one.astype(np.int64), None), 8, "logits"),
    )
    choice = layer["weightBits"], layer["inputBits"]
    image = layer["height"], layer["width"], 3
    return Program("one", ops, (choice,), ("tested",), image, layer["rounding"])


def by_package(layer):
    program = one_layer_program(layer)
    choice = [(layer["weightBits"], layer["inputBits"])]
    stem, size = cost.layer_sizes(program)
    height, width, _ = program.values["tested:sum"].shape
    elements = cost.transitions(program, choice).item()
    return {
        "outHeight": height,
        "outWidth": width,
        "weights": size.weights,
        "inputElements": size.inputs,
        "macs": size.macs,
        "bitops": cost.bitops(program, choice, "excluded").item(),
        "bitopsAt8": size.macs * 64,
        "elements": elements,
        "shifts": elements,
        "floatMacs": 2 * elements,
        "masterBytes": cost.weight_bytes(program, choice, "master").item() - stem.weights,
        "planeBytes": cost.weight_bytes(program, choice, "planes").item() - stem.weights,
    }


@needs_node
def test_the_calculator_counts_as_the_package():
    assert by_widget() == [by_package(layer) for layer in CASES]


@needs_node
@pytest.mark.parametrize(
    "mutant",
    [
        ("2 * elements", "elements"),
        ("layer.weightBits < 8", "layer.weightBits <= 8"),
        ('"half_up" ? 1 : 0', '"floor" ? 1 : 0'),
        ("2 * padding(layer) - layer.kernel", "padding(layer) - layer.kernel"),
        ("layer.inputs / layer.groups", "layer.inputs"),
        ("layer.weightBits * layer.inputBits", "layer.weightBits ** 2"),
    ],
)
def test_a_wrong_calculator_is_caught(mutant, tmp_path, monkeypatch):
    source = (test_widgets.STATIC / "cost-calculator.js").read_text()
    assert mutant[0] in source
    (tmp_path / "cost-calculator.js").write_text(source.replace(*mutant))
    monkeypatch.setattr(test_widgets, "STATIC", tmp_path)
    assert by_widget() != [by_package(layer) for layer in CASES]


@needs_node
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"height": 0}, "image height must be a whole number from 1 to 4096"),
        ({"stride": 1.5}, "stride must be a whole number from 1 to 31"),
        ({"inputs": None}, "input channels must be a whole number from 1 to 65536"),
        ({"groups": 3}, "groups must divide both channel numbers"),
        ({"height": 1, "width": 1, "kernel": 4}, "the kernel is larger than the padded input"),
        ({"height": 1, "width": 1, "kernel": 5}, ""),
    ],
)
def test_a_layer_that_cannot_be_is_refused(change, said):
    assert by_widget("widget.problemOf(layer)", [CASES[0] | change]) == [said]
