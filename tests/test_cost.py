"""Costs: the published sizes of four networks, and two layers counted by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from program_checks import CHOICES, LAYERS, small_images, small_program

from dqt_core import convert, cost, lower, models
from dqt_core.program import Choose, Conv, Lookup, Program, Requantize, Scale, SumPool, Term
from dqt_core.training import steps

torch.set_num_threads(1)  # small tensors: threads would only wait for each other
NETWORKS = {
    # name: model, image size, GMACs, G BitOPs at 4 bits as switched and as run: method.md, section 6
    "ResNet-50": (models.resnet50, 224, "4.0892", "65.43", "71.19"),
    "CIFAR ResNet-18": (
        lambda: models.resnet18(classes=10, small_images=True),
        32,
        "0.5554",
        "8.89",
        "8.97",
    ),
    "ResNet-18": (models.resnet18, 224, "1.8141", "29.03", "34.71"),
    "MobileNetV2": (models.mobilenet_v2, 224, "0.3008", "4.81", "5.39"),
}


@pytest.mark.filterwarnings("ignore:the converted model differs")  # a step of 1 makes another network
@pytest.mark.parametrize("name", NETWORKS)
def test_published_sizes(name, monkeypatch):
    monkeypatch.setattr(
        steps, "initial_log_step", step_of_one
    )  # sizes do not depend on steps, which take time
    make, size, macs, as_switched, as_run = NETWORKS[name]
    program = lower(convert(make(), np.zeros((1, size, size, 3), np.uint8), (0.5,) * 3, (0.25,) * 3, (4, 8)))
    layers = [layer for layer in cost.layer_sizes(program) if not layer.controller]
    assert f"{sum(layer.macs for layer in layers) / 1e9:.4f}" == macs
    assert f"{cost.bitops(program, 4, fixed='as switched').item() / 1e9:.2f}" == as_switched
    assert f"{cost.bitops(program, 4).item() / 1e9:.2f}" == as_run
    first, *inner, last = layers
    assert first.layer is None
    assert last.layer is None
    assert [layer.layer for layer in inner] == list(range(len(program.layers)))
    assert cost.bitops(program, 4, fixed="excluded").item() == 16 * sum(layer.macs for layer in inner)


def step_of_one(x, lo, hi, widths, per_channel=False):
    return torch.zeros([len(x)] + [1] * (x.ndim - 1) if per_channel else [])


def two_layers(rounding="half_up"):
    """A fixed stem, two switchable layers of which one has groups, a fixed classifier, a controller.

    On an image of 6 x 4 pixels:

    layer       weight          output     MACs                  weights  inputs
    stem        4 x 3 x 3 x 3   6 x 4 x 4  6 * 4 * 108 = 2592    108      72
    grouped     6 x 3 x 3 x 2   3 x 2 x 6  3 * 2 * 108 = 648     108      96
    pointwise   2 x 1 x 1 x 6   3 x 2 x 2  3 * 2 * 12 = 72       12       36
    classifier  5 x 1 x 1 x 2   1 x 1 x 5  10                    10       2
    controller  8 x 1 x 1 x 4   1 x 1 x 8  32                    32       4
    """

    def conv(name, x, shape, stride=1, padding=0, groups=1, layer=None):
        return Conv(name, np.ones(shape, np.int8), stride, padding, groups, layer, x, f"{name}:sum")

    def codes(name, layer=None):
        table = np.ones((1, 1), np.int32)
        return Requantize((Term(f"{name}:sum", table, table.astype(np.int64), layer),), 8, 0, 255, name)

    def scale(name):
        return Scale(codes(name).terms[0], 8, f"{name}:logits")

    controller = [
        SumPool("stem", "means:sum"),
        codes("means"),
        conv("controller", "means", (8, 1, 1, 4)),
        scale("controller"),
        Choose(2, "controller:logits"),
    ]
    ops = (
        Lookup(np.zeros((3, 256), np.int8), "input"),
        conv("stem", "input", (4, 3, 3, 3), padding=1),
        codes("stem"),
        *(replace(op, controller=True) for op in controller),
        conv("grouped", "stem", (6, 3, 3, 2), stride=2, padding=1, groups=2, layer=0),
        codes("grouped", 0),
        conv("pointwise", "grouped", (2, 1, 1, 6), layer=1),
        codes("pointwise", 1),
        SumPool("pointwise", "pooled:sum"),
        codes("pooled"),
        conv("classifier", "pooled", (5, 1, 1, 2)),
        scale("classifier"),
    )
    choices = ((2, 4), (4, 4), (8, 2), (8, 8))
    return Program("two", ops, choices, ("grouped", "pointwise"), (6, 4, 3), rounding)


FIXED = 64 * (2592 + 10)
CONTROLLER = 64 * 32
# images that choose (2, 4) and (8, 8), (8, 2) and (4, 4), (8, 8) twice
PER_IMAGE = np.array([[(2, 4), (8, 8)], [(8, 2), (4, 4)], [(8, 8), (8, 8)]])


def test_sizes_of_layers():
    sizes = [
        (size.name, size.layer, size.macs, size.weights, size.inputs, size.controller)
        for size in cost.layer_sizes(two_layers())
    ]
    assert sizes == [
        ("stem", None, 2592, 108, 72, False),
        ("controller", None, 32, 32, 4, True),
        ("grouped", 0, 648, 108, 96, False),
        ("pointwise", 1, 72, 12, 36, False),
        ("classifier", None, 10, 10, 2, False),
    ]


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [("as run", FIXED + 16 * 720), ("as switched", 16 * (720 + 2602)), ("excluded", 16 * 720)],
)
def test_bitops_of_one_width(fixed, expected):
    for widths in (4, [4, 4], [(4, 4), 4], np.array([4, 4])):
        assert cost.bitops(two_layers(), widths, fixed).tolist() == [expected]


def test_bitops_of_pairs():
    assert cost.bitops(two_layers(), [(2, 4), (8, 2)]).tolist() == [FIXED + 8 * 648 + 16 * 72]
    assert cost.bitops(two_layers(), [(2, 4), (2, 4)], "as switched").tolist() == [8 * (720 + 2602)]


def test_bitops_of_every_image_count_the_controller():
    per_image = [FIXED + CONTROLLER + sum_ for sum_ in (8 * 648 + 64 * 72, 16 * 648 + 16 * 72, 64 * 720)]
    assert cost.bitops(two_layers(), PER_IMAGE).tolist() == per_image
    excluded = [total - FIXED for total in per_image]
    assert cost.bitops(two_layers(), PER_IMAGE, "excluded").tolist() == excluded
    fours = np.full((3, 2), 4)
    assert cost.bitops(two_layers(), fours, "as switched").tolist() == [16 * 3322 + CONTROLLER] * 3


def test_transitions():
    """Weights and inputs, each where it is below 8 bits."""
    program = two_layers()
    assert cost.transitions(program, 8).tolist() == [0]
    assert cost.transitions(program, 4).tolist() == [108 + 96 + 12 + 36]
    assert cost.transitions(program, [(8, 2), (2, 4)]).tolist() == [96 + 12 + 36]
    assert cost.transitions(program, PER_IMAGE).tolist() == [108 + 96, 96 + 12 + 36, 0]
    assert cost.transitions(program, PER_IMAGE).dtype == np.int64


@pytest.mark.parametrize(("rounding", "extra"), [("floor", 0), ("half_up", 1)])
def test_weight_bytes(rounding, extra):
    """A plane is an eighth of a byte for each weight; half_up also reads the top dropped bit."""
    program = two_layers(rounding)
    fixed, controller = 108 + 10, 32
    assert cost.weight_bytes(program, 8).tolist() == [fixed + 120]
    assert cost.weight_bytes(program, 4).tolist() == [fixed + 120 * (4 + extra) / 8]
    assert cost.weight_bytes(program, [(2, 4), (8, 2)]).tolist() == [fixed + 108 * (2 + extra) / 8 + 12]
    per_image = [108 * (2 + extra) / 8 + 12, 108 + 12 * (4 + extra) / 8, 120]
    assert cost.weight_bytes(program, PER_IMAGE).tolist() == [fixed + controller + n for n in per_image]
    assert cost.weight_bytes(program, 4, "master").tolist() == [fixed + 120]
    assert cost.weight_bytes(program, PER_IMAGE, "master").tolist() == [fixed + controller + 120] * 3


def test_costs_of_a_run():
    """What the controller chose, image by image, costs what the same widths cost on their own."""
    program = small_program()
    run = program.run(small_images(), "controller", "numpy")
    assert len(np.unique(run.choices, axis=0)) > 1
    controller = sum(size.macs for size in cost.layer_sizes(program) if size.controller)
    for name, of_controller in (
        ("bitops", 64 * controller),
        ("transitions", 0),
        ("weight_bytes", controller),
    ):
        function = getattr(cost, name)
        alone = [function(program, [tuple(pair) for pair in widths]).item() for widths in run.widths.tolist()]
        assert function(program, run.widths).tolist() == [n + of_controller for n in alone]


def test_shapes_of_values_are_those_of_a_run():
    program = small_program()
    shapes = {name: value.shape for name, value in program.values.items()}
    assert shapes["image"] == (5, 4, 3)
    assert shapes["pooled"] == (5, 4, 4)
    assert shapes["grouped:sum"] == shapes["shortcut:sum"] == shapes["a"] == (3, 2, 6)
    assert shapes["logits"] == (1, 1, 5)
    assert shapes["choice:logits"] == (1, 1, LAYERS * len(CHOICES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: cost.bitops(p, "controller"), "depend on the images: give Result.widths of a run"),
        (lambda p: cost.bitops(p, 5), "width 5 is not in this program; it holds (2, 4), 4, (8, 2), 8"),
        (lambda p: cost.transitions(p, [4]), "got widths for 1 layers; the program has 2"),
        (lambda p: cost.bitops(p, [4, 8], "as switched"), 'fixed="as switched" needs one width'),
        (lambda p: cost.bitops(p, 4, "as-run"), "fixed='as-run' is unknown; choose one of ('as run',"),
        (lambda p: cost.weight_bytes(p, 4, "plane"), "storage='plane' is unknown; choose 'master' or"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(two_layers())
