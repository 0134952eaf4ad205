"""Switchable layers, the controller and the network around them, against `nested` in float64."""

import math
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from lowering_checks import Joints
from small_nets import WIDTHS, images, nested_net, seeded, tensors
from torch import nn
from torch.nn import functional

from dqt_core import convert, cost, lower, nested
from dqt_core.training import steps, straight_through
from dqt_core.training.controller import Controller
from dqt_core.training.layers import (
    Coded,
    Quantizer,
    Rounded,
    Selection,
    SwitchLayer,
)
from dqt_core.training.parts import (
    Addition,
    CodedMaxPool,
    Concatenation,
    MeanPool,
    Multiplication,
    Pointwise,
    WindowMean,
)

CHOICES = ((2, 2), (2, 4), (4, 4), (8, 8))
ROUNDINGS = pytest.mark.parametrize("rounding", ["half_up", "floor"])


def coded(signed, shape=(2, 6, 7, 7)):
    lo, hi = nested.code_range(8, signed)
    codes = torch.randint(lo, hi + 1, shape, generator=torch.Generator().manual_seed(1)).float()
    return Coded(codes, torch.tensor(0.03), signed)


def layer_of(layer, norm=None, rounding="half_up", index=0, **options):
    return SwitchLayer(layer, norm, CHOICES, rounding, index, **options)


def at(layer, x, choice):
    return layer(x, Selection([choice]))


def as_values(codes, step, width, rounding, middle):
    """Real numbers of master codes seen at a width, through `nested`."""
    signed = bool((codes < 0).any())
    stored = codes.detach().numpy().astype(np.int8 if signed else np.uint8)
    view = nested.switch(stored, width, rounding=rounding).astype(np.float64) * 2 ** (8 - width)
    if middle and rounding == "floor":
        view += (2 ** (8 - width) - 1) / 2
    return torch.from_numpy(view) * step.detach().double()


# One layer


@ROUNDINGS
@pytest.mark.parametrize("choice", range(4))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 4, 3, stride=2, padding=1),
        nn.Conv2d(6, 4, (3, 1), bias=False),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    ],
    ids=["stride", "no padding", "depthwise"],
)
def test_layer_is_the_dequantized_convolution(conv, signed, choice, rounding):
    norm = nn.BatchNorm2d(conv.out_channels).eval()
    norm.running_mean.uniform_(-1, 1)
    layer, x = layer_of(conv, norm, rounding).eval(), coded(signed)
    weight_bits, input_bits = CHOICES[choice]
    weight = as_values(layer.master(), layer.log_step.exp(), weight_bits, rounding, middle=True)
    values = as_values(x.codes, x.step, input_bits, rounding, middle=False)
    bias = None if conv.bias is None else conv.bias.double()
    expected = functional.conv2d(values, weight, bias, conv.stride, conv.padding, groups=conv.groups)
    expected = norm.double()(expected)
    norm.float()
    # float32: the sum of codes is exact, the steps and the norm are not
    torch.testing.assert_close(at(layer, x, choice).double(), expected, rtol=2e-5, atol=2e-5)


WRITTEN_OUT = {
    "two paddings": (nn.Conv2d(6, 4, (1, 5), padding=(0, 2)), (0, 0, 0, 0)),
    "dilation": (nn.Conv2d(6, 4, 3, padding=2, dilation=(2, 1)), (0, 0, 0, 0)),
    "same": (nn.Conv2d(6, 6, (4, 3), padding="same", groups=6), (0, 0, 0, 0)),
    "zeros on two sides": (nn.Conv2d(6, 4, 3, stride=2), (0, 1, 0, 1)),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_layer_written_out_with_zeros_makes_the_same_sums(name):
    conv, margins = WRITTEN_OUT[name]
    layer, x = layer_of(conv, margins=margins), coded(True)
    kernel = layer.written_out(layer.master())
    expected = functional.conv2d(x.codes, kernel, None, layer.stride, layer.padding, groups=layer.groups)
    assert kernel.shape != conv.weight.shape
    assert torch.equal(layer._product(x, layer.master(), (8, 8)), expected)
    padded = functional.pad(x.codes, margins)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that an even kernel copies its input
        own = conv._conv_forward(padded, layer.master(), None)
    assert torch.equal(own, expected)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_floor_would_read_the_zeros_as_something(name):
    conv, margins = WRITTEN_OUT[name]
    with pytest.raises(ValueError, match="convert with rounding='half_up'"):
        layer_of(conv, rounding="floor", margins=margins)
    layer_of(conv, rounding="floor", margins=margins, index=None)


@pytest.mark.parametrize("is_training", [False, True])
def test_batch_norm_of_rows(is_training):
    linear, norm, x = nn.Linear(6, 5), nn.BatchNorm1d(5), coded(False, (8, 6))
    norm.running_mean.uniform_(-1, 1)
    layer = layer_of(linear, norm).train(is_training)
    plain = at(layer_of(linear), x, 3)
    expected = norm.train(is_training)(plain)
    torch.testing.assert_close(at(layer, x, 3), expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(layer.norm_of(3).running_var, norm.running_var)


@ROUNDINGS
@pytest.mark.parametrize("choice", range(4))
def test_linear_layer_is_the_dequantized_product(choice, rounding):
    linear, x = nn.Linear(6, 5), coded(False, (3, 6))
    layer = layer_of(linear, rounding=rounding)
    weight_bits, input_bits = CHOICES[choice]
    weight = as_values(layer.master(), layer.log_step.exp(), weight_bits, rounding, middle=True)
    values = as_values(x.codes, x.step, input_bits, rounding, middle=False)
    expected = values @ weight.T + linear.bias.double()
    torch.testing.assert_close(at(layer, x, choice).double(), expected, rtol=2e-5, atol=2e-5)


def test_master_is_nested_quantize_of_the_weight():
    layer = layer_of(nn.Conv2d(6, 4, 3))
    codes, _ = nested.quantize(
        layer.weight.detach().numpy(), axis=0, step=layer.log_step.exp().detach().numpy()
    )
    np.testing.assert_array_equal(layer.master().detach().numpy(), codes.astype(np.float32))


def test_layer_without_index_stays_at_8_bits():
    layer, x = layer_of(nn.Conv2d(6, 4, 3), index=None), coded(False)
    values = as_values(layer.master(), layer.log_step.exp(), 8, "half_up", middle=False)
    expected = functional.conv2d(x.value.double(), values, layer.bias.double())
    torch.testing.assert_close(at(layer, x, 0).double(), expected, rtol=2e-5, atol=2e-5)


def test_every_choice_has_its_own_batch_norm():
    layer, x = layer_of(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)).train(), coded(False)
    at(layer, x, 2).square().sum().backward()
    for choice, norm in enumerate(layer.norms):
        trained = choice == 2
        assert norm.num_batches_tracked == trained
        assert bool(norm.running_mean.any()) == trained
        assert (norm.weight.grad is not None) == trained


def test_tables_of_batch_norm_are_not_mixed_up():
    layer, x = layer_of(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)).eval(), coded(False)
    plain = [at(layer, x, choice) for choice in range(4)]
    for choice, norm in enumerate(layer.norms):
        norm.bias.data.fill_(1000.0 * choice)
    for choice in range(4):
        shift = at(layer, x, choice) - plain[choice]
        torch.testing.assert_close(shift, torch.full_like(shift, 1000.0 * choice), rtol=0, atol=0.01)


def test_shared_batch_norm_is_one_table():
    layer = layer_of(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), shared_norm=True)
    assert len(layer.norms) == 1
    assert {layer.norm_of(choice) for choice in range(4)} == {layer.norms[0]}


def test_weights_over_the_choices_mix_the_outputs():
    layer, x = layer_of(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)).eval(), coded(False)
    outputs = [at(layer, x, choice) for choice in range(4)]
    weights = torch.tensor([[0.25, 0, 0, 0.75], [0, 1, 0, 0]])
    mixed = layer(x, Selection(weights[:, None]))
    torch.testing.assert_close(mixed[0], 0.25 * outputs[0][0] + 0.75 * outputs[3][0])
    assert torch.equal(mixed[1], outputs[1][1])


def test_bf16_autocast_changes_the_result_by_its_last_rounding_alone():
    layer, x = layer_of(nn.Conv2d(6, 4, 3, bias=False)), coded(True)
    exact = at(layer, x, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = at(layer, x, 3)
    torch.testing.assert_close(rounded, exact, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"stride": (1, 2)}, "one stride for both axes"),
        ({"padding_mode": "reflect", "padding": 1}, "padding with zeros"),
    ],
    ids=str,
)
def test_layer_refuses_geometry(options, needed):
    with pytest.raises(ValueError, match=f": convert needs {needed}; change that in the model and train it"):
        layer_of(nn.Conv2d(6, 4, 3, **options))


# Activations


def test_limit_is_the_code_nearest_to_6():
    codes = Quantizer(signed=False, limit=6.0)
    x = torch.tensor([-1.0, 3.0, 5.9, 6.0, 7.0, 500.0])
    for step in (0.023, 0.0235, 0.025, 0.03, 0.1, 0.7, 3.9):
        codes.log_step.data = torch.tensor(step).log()
        coded_x = codes(x, Selection())
        limit = min(255, math.floor(6 / step + 0.5))
        assert codes.range == (0, limit)
        assert coded_x.codes.max() == limit
        assert coded_x.codes.min() == 0
        assert not coded_x.signed
        torch.testing.assert_close(coded_x.value.max().item(), limit * step)


@pytest.mark.parametrize(("step", "moves"), [(0.01, True), (6 / 255, True), (0.03, False), (0.7, False)])
def test_no_step_moves_what_is_cut_at_6(step, moves):
    """Below 6/255 the clamp is code 255 and moves with the step; above, it stands at 6."""
    codes = Quantizer(signed=False, limit=6.0)
    codes.log_step.data = torch.tensor(step).log()
    top = codes(torch.tensor([9.0, 500.0]), Selection()).value
    (gradient,) = torch.autograd.grad(top.sum(), codes.log_step)
    expected = 2 * 255 * step if moves else 2 * (codes.range[1] * step - 6)
    torch.testing.assert_close(gradient.item(), expected, rtol=1e-4, atol=1e-4)
    order = torch.tensor([1, 0])
    for part in codes(torch.tensor([9.0, 500.0]), Selection()).sorted(order).split([1, 1]):
        (gradient,) = torch.autograd.grad(part.value.sum(), codes.log_step)
        torch.testing.assert_close(gradient.item(), expected / 2, rtol=1e-4, atol=1e-4)


def test_codes_of_codes_are_rounded_again():
    codes = Quantizer(signed=False)
    codes.log_step.data = torch.tensor(2.0).log()
    again = codes(Coded(torch.tensor([-5.0, 3.0, 10.0]), torch.tensor(1.0), signed=True), Selection())
    assert again.codes.tolist() == [0, 2, 5]


@pytest.mark.parametrize("signed", [False, True])
def test_calibration_takes_the_step_from_what_passes(signed):
    codes, x = Quantizer(signed, limit=None if signed else 6.0, widths=(4, 8)), 4 * tensors(8)
    codes(x, Selection(is_calibrating=True))
    sample = x if signed else x.clamp(0, 6)
    assert torch.equal(codes.log_step, steps.initial_log_step(sample, *nested.code_range(8, signed), (4, 8)))
    before = codes.log_step.item()
    codes(100 * x, Selection())
    assert codes.log_step.item() == before, "no calibration in another pass"


def test_calibration_sees_every_column():
    x = torch.rand(8, 25, 32, 1).expand(8, 25, 32, 32 * 32).reshape(200, 32, 32, 32).clone()
    x[..., 0] = 0.001  # the column that every 32nd element falls in
    codes = Quantizer(signed=False)
    codes(x, Selection(is_calibrating=True))
    assert codes.log_step.exp() * 255 > 0.5


def test_joints():
    x, y = coded(True), coded(False)
    torch.testing.assert_close(Multiplication()(x, y), x.value * y.value)
    torch.testing.assert_close(Concatenation()(x, y.value), torch.cat([x.value, y.value], 1))
    torch.testing.assert_close(WindowMean((2, 2), 2, 0)(x), functional.avg_pool2d(x.value, 2))
    torch.testing.assert_close(Pointwise(nn.SiLU(inplace=True))(x), functional.silu(x.value))


def test_gradients_pass_all_joints():
    options = {"widths": (4, 8), "controller": False}
    net = convert(seeded(Joints), images(size=12), (0.4,) * 3, (0.3,) * 3, **options).train()
    for width in options["widths"]:
        net(tensors(size=12), width).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_pools_and_addition():
    x = coded(True)
    pooled = CodedMaxPool(3, 2, 1)(x)
    assert torch.equal(pooled.codes, functional.max_pool2d(x.codes, 3, 2, 1))
    assert (pooled.step, pooled.signed) == (x.step, True)
    torch.testing.assert_close(MeanPool()(x), x.value.mean((2, 3)))
    torch.testing.assert_close(Addition()(x, torch.ones(())), x.value + 1)
    torch.testing.assert_close(Addition()(torch.ones(()), x), x.value + 1)
    torch.testing.assert_close(Addition()(x, x), 2 * x.value)


# The network


@pytest.fixture(scope="module")
def net():
    return nested_net().eval()


def one_hot(choices):
    return functional.one_hot(torch.tensor(choices), len(WIDTHS)).float()


def test_one_hot_weights_are_static_runs_of_each_image(net):
    x, choices = tensors(6), [[0, 0], [1, 1], [2, 2], [0, 2], [2, 1], [1, 0]]
    with torch.no_grad():
        mixed = net(x, one_hot(choices))
        for image, row in enumerate(choices):
            assert torch.equal(mixed[image], net(x, [WIDTHS[k] for k in row])[image])


def test_widths_differ(net):
    with torch.no_grad():
        outputs = [net(tensors(), width) for width in WIDTHS]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_forms_of_static_widths(net):
    x = tensors()
    expected = net(x, [(4, 4), (2, 2)])
    for widths in ([4, 2], (4, 2), np.array([4, 2]), [np.int64(4), (2, 2)], [[4, 4], 2]):
        assert torch.equal(net(x, widths), expected)
    assert torch.equal(net(x, np.int64(4)), net(x, [4, 4]))
    assert torch.equal(net(x), net(x, 8))


def test_pairs_of_widths():
    net = nested_net(widths=(8, (2, 8), (8, 2), 4)).eval()
    assert net.choices == ((2, 8), (4, 4), (8, 2), (8, 8))
    assert not torch.equal(net(tensors(), [(2, 8)] * 2), net(tensors(), [(8, 2)] * 2))
    with pytest.raises(ValueError, match="width 2 is not among"):
        net(tensors(), 2)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (3, "width 3 is not among this network's choices"),
        ([4, 5], "width 5 is not among"),
        ([(2, 4), 4], r"width \(2, 4\) is not among"),
        ([4], "got 1 widths for 2 switchable layers"),
        ([4, 4, 4], "got 3 widths for 2 switchable layers"),
        ("widest", "give an int, a list, or 'controller'"),
        (torch.ones(4, 2), r"\(4, 2\), expected \(N, \(2, 3\)\)"),
        (torch.ones(4, 3, 3), r"\(4, 3, 3\), expected"),
    ],
    ids=str,
)
def test_bad_widths_are_refused(net, widths, message):
    with pytest.raises(ValueError, match=message):
        net(tensors(), widths)


def test_controller_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'controller' on a network with one"):
        nested_net(controller=False)(tensors(), "controller")


def test_masters_are_shared_within_and_fresh_after(net, monkeypatch):
    computed, quantize = [], straight_through.quantize
    monkeypatch.setattr(
        straight_through, "quantize", lambda x, *rest: computed.append(x) or quantize(x, *rest)
    )

    def masters(run):
        computed.clear()
        run()
        return [sum(x is layer.weight for x in computed) for layer in layers]

    layers, shared = net.switch_layers, {}
    assert masters(lambda: [net(tensors(), 2), net(tensors(), 8)]) == [2, 2]
    assert masters(lambda: [net(tensors(), 2, shared), net(tensors(), 8, shared)]) == [1, 1]
    assert masters(lambda: net(tensors(), 8)) == [1, 1]


@pytest.mark.parametrize("widths", [(2, 8), ("controller",)])
def test_sharing_does_not_change_gradients(widths):
    """The controller's pass in training takes the masters within `no_grad` too."""

    def gradients(shared):
        torch.manual_seed(0)
        net = nested_net().train()
        sum(net(tensors(), width, shared).square().sum() for width in widths).backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    alone = gradients(None)
    assert alone.keys() == gradients({}).keys() >= {"graph.conv2.weight", "graph.conv3.weight"}
    for name, gradient in gradients({}).items():
        torch.testing.assert_close(gradient, alone[name])


def test_what_precedes_the_first_switch_is_computed_once_within(net, monkeypatch):
    computed, stem, product = [], net.fixed_layers[0], SwitchLayer._product
    monkeypatch.setattr(
        SwitchLayer, "_product", lambda layer, *rest: computed.append(layer) or product(layer, *rest)
    )
    x, shared = tensors(), {}
    outputs = [net(x, width, shared) for width in WIDTHS]
    assert computed.count(stem) == 1
    net(tensors(seed=1), 8, shared)
    assert computed.count(stem) == 2, "other images"
    assert all(torch.equal(out, net(x, width)) for out, width in zip(outputs, WIDTHS, strict=True))
    assert computed.count(stem) == 2 + len(WIDTHS)


def together(*calls):
    """What each call returns, all begun at once, each in a thread, in turns as short as Python allows."""
    barrier, interval = threading.Barrier(len(calls)), sys.getswitchinterval()

    def started(call):
        barrier.wait(60)
        return call()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result(60) for future in [pool.submit(started, call) for call in calls]]
    finally:
        sys.setswitchinterval(interval)


def test_a_pass_does_not_depend_on_another_threads(net):
    x, widths = varied(4), [*WIDTHS, "controller"]

    def outputs(width, shared):
        with torch.no_grad():
            return [net(x, width, shared) for _ in range(8)]

    expected = [outputs(width, None)[0] for width in widths]
    found = together(*(partial(outputs, width, shared) for width in widths for shared in (None, {})))
    for out, right in zip(found, [e for e in expected for _ in range(2)], strict=True):
        assert all(torch.equal(one, right) for one in out)


def test_compiled_passes_are_of_whom_they_were_given(net, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda graph, **_: lambda *arguments: compiled.append(graph) or graph(*arguments)
    )
    net.forward = net.forward  # as Accelerate wraps it in bf16
    net.train()
    with net.compiled() as passes:
        net(tensors(), 2)
        passes(tensors(), [2, 8])
        passes(tensors(), "controller")
        assert not compiled
        passes(tensors(), 2)
        assert compiled == [net.graph]
    del net.forward
    net.eval()


def test_bitops_are_those_of_the_lowered_program(net):
    """Whatever the size of the images that passed last."""
    choices = [[0, 0], [1, 2], [2, 2]]
    with torch.no_grad():
        net(tensors(size=24), 8)
    widths = np.array(WIDTHS)[choices]
    expected = cost.bitops(lower(net), widths)
    np.testing.assert_array_equal(net.bitops(one_hot(choices)).numpy(), expected)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(net.bitops(one_hot(choices)).numpy(), expected)


# The controller


def decided(net, x):
    with torch.no_grad():
        return net.run(x, "controller")[1].per_layer.argmax(-1)


def varied(count):
    """Images from dark to bright, for which a controller decides differently."""
    return tensors(count) + torch.linspace(-3, 3, count).reshape(-1, 1, 1, 1)


def test_controller_is_deterministic_and_alone_with_its_image():
    net, x = nested_net().eval(), varied(33)
    choices = decided(net, x)
    assert len({tuple(row) for row in choices.tolist()}) > 1, "the images should not all get the same"
    assert torch.equal(decided(net, x), choices)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decided(net, x[order]), choices[order])
    for image in range(33):
        assert torch.equal(decided(net, x[image : image + 1])[0], choices[image])


def test_controller_run_is_the_run_at_its_choices():
    net, x = nested_net().eval(), varied(8)
    choices = decided(net, x)
    with torch.no_grad():
        assert torch.equal(net(x, "controller"), net(x, one_hot(choices.tolist())))


def test_a_static_run_does_not_ask_the_controller(net):
    with torch.no_grad():
        net(tensors(), "controller")
        selection = net.run(tensors(), 4)[1]
    assert (selection.per_layer, selection.probabilities) == ([1, 1], None)


@pytest.mark.parametrize("best", [(), (1,), (1, 2), (0, 2)], ids=str)
def test_ties_go_to_the_narrower_choice(best):
    net = nested_net(widths=(8, 2, 4)).eval()
    net.controller.fc2.weight.data.zero_()
    bias = torch.zeros(2, 3)
    bias[:, list(best)] = 1
    net.controller.fc2.bias.data = bias.flatten()
    assert net.choices == ((2, 2), (4, 4), (8, 8))
    assert (decided(net, tensors()) == min(best, default=0)).all()


def test_a_controller_may_read_the_spread_of_every_channel():
    controller = Controller(2, 1, ((2, 2), (8, 8)), "half_up", spread=True)
    codes = torch.tensor([[[60.0, 60.0], [60.0, 60.0]], [[0.0, 120.0], [120.0, 0.0]]])[None]
    means_and_squares = controller._features(Coded(codes, torch.tensor(0.5), signed=False))
    assert means_and_squares.tolist() == [[30.0, 30.0, 4 * 0.5 * 14, 4 * 0.5 * 28]]
    assert controller.fc1.weight.shape == (64, 4)


def test_no_gradient_reaches_the_stem_through_the_controller():
    net = nested_net().train()
    _, selection = net.run(tensors(), "controller")
    (selection.probabilities * torch.rand(4, 2, 3)).sum().backward()
    reached = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert reached
    assert all(name.startswith("graph.controller.") for name in reached)
    assert net.controller.fc1.weight.grad.any()


def test_training_picks_one_choice_with_a_gradient_to_every_logit():
    net = nested_net().train()
    logits = torch.randn(50, 2, 3, requires_grad=True)
    picked = net.controller._choose(logits)
    assert torch.equal(picked.detach().round().sum(-1), torch.ones(50, 2))
    torch.testing.assert_close(picked, picked.round(), rtol=0, atol=1e-6)
    assert not torch.equal(picked.argmax(-1), logits.argmax(-1)), "drawn, not the best"
    (picked * torch.randn(50, 2, 3)).sum().backward()
    assert (logits.grad != 0).all()


def test_training_without_noise_picks_the_best_with_a_gradient_to_every_logit():
    net = nested_net().train()
    net.controller.is_noisy, net.controller.temperature = False, 0.5
    logits = torch.randn(50, 2, 3, requires_grad=True)
    picked, weights = net.controller._choose(logits), torch.randn(50, 2, 3)
    assert torch.equal(picked.argmax(-1), logits.argmax(-1))
    torch.testing.assert_close(picked, picked.round(), rtol=0, atol=1e-6)
    soft = (logits / 0.5).softmax(-1)
    gradients = (torch.autograd.grad((weights * chosen).sum(), logits) for chosen in (picked, soft))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_that_of_the_gumbel_softmax(temperature):
    net, logits = nested_net().train(), torch.randn(5, 2, 3, requires_grad=True)
    net.controller.temperature = temperature
    torch.manual_seed(3)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / temperature).softmax(-1)
    torch.manual_seed(3)
    picked = net.controller._choose(logits)
    weights = torch.randn(5, 2, 3)
    torch.testing.assert_close(
        torch.autograd.grad((picked * weights).sum(), logits),
        torch.autograd.grad((soft * weights).sum(), logits),
    )


def test_probabilities_are_the_softmax_of_the_logits():
    net, seen = nested_net().eval(), []
    net.controller.register_forward_hook(lambda module, inputs, _: seen.append(module.logits(*inputs)))
    _, selection = net.run(tensors(), "controller")
    assert torch.equal(selection.probabilities, seen[0].softmax(-1))


def test_controller_reads_means_of_the_stem_in_codes():
    net = nested_net().eval()
    assert net.controller.shape == (2, 3)
    assert net.controller.fc1.weight.shape == (64, 6)
    assert net.controller.input.log_step.item() != 0, "calibrated"
    assert net.controller.hidden.log_step.item() != 0
    assert images().dtype == np.uint8


# The controller's pass in training: every choice forward, each image's own backward


def leaves(layer, x):
    return [x, layer.weight, layer.log_step, *(p for norm in layer.norms for p in norm.parameters())]


def plain_selected(layer, x, weights):
    """In plain autograd: statistics are those of all images, their gradient that of each choice's images."""
    total = 0
    for choice, norm in enumerate(layer.norms):
        value = layer._product(x, layer.master(), layer.choices[choice])
        dropped = 16 - sum(layer.choices[choice])
        eps = norm.eps / (layer.log_step.exp().flatten() * x.step * 2.0**dropped) ** 2
        group = value[weights[:, choice] > 0.5]
        mean, variance = (z.detach() for z in (value.mean((0, 2, 3)), value.var((0, 2, 3), unbiased=False)))
        if len(group):
            by_mean = group.mean((0, 2, 3))
            by_variance = ((group - mean.reshape(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
            mean, variance = mean + by_mean - by_mean.detach(), variance + by_variance - by_variance.detach()
        mean, variance, gain, bias = (
            z.reshape(1, -1, 1, 1) for z in (mean, variance + eps, norm.weight, norm.bias)
        )
        out = (value - mean) * variance.rsqrt() * gain + bias
        keep = weights[:, choice].reshape(-1, 1, 1, 1)
        total = total + keep * out.detach() + keep.detach() * (out - out.detach())
    return total


@pytest.mark.parametrize("picks", [[0, 2, 1, 2, 0, 2], [3] * 6, [1, 0, 0, 0, 0, 0]], ids=str)
def test_controllers_pass_in_training_is_the_plain_formulation(picks):
    norm = nn.BatchNorm2d(4)
    layer = layer_of(nn.Conv2d(6, 4, 3, bias=False), norm).train()
    for k, norm in enumerate(layer.norms):
        nn.init.uniform_(norm.weight, 0.5 + k, 1.5 + k)
        nn.init.uniform_(norm.bias)
    before = [norm.running_mean.clone() for norm in layer.norms]
    found = []
    for form in (
        SwitchLayer.forward,
        lambda layer, x, selection: plain_selected(layer, x, selection.of_layer(0)),
    ):
        real = (3 * tensors(6, 7)).repeat(1, 2, 1, 1).requires_grad_()
        step = torch.tensor(-2.0, requires_grad=True)
        weights = functional.one_hot(torch.tensor(picks), 4).float().requires_grad_()
        x = Rounded(real, step, 0, 255)
        out = form(layer, x, Selection(weights[:, None], by_controller=True))
        loss = (out * tensors(6, 5, seed=3).repeat(1, 2, 1, 1)[:, :4]).sum() + (x.value**2).sum()
        wanted = [*leaves(layer, real), step, weights]
        found.append((out, torch.autograd.grad(loss, wanted, allow_unused=True)))
    (out, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    for mine, plain in zip(gradients, expected_gradients, strict=True):
        if mine is None:  # the norm of a choice that no image took
            assert plain is None or not plain.any()
        else:
            torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(layer.norms, before, strict=True))


def test_bf16_training_follows_float32_training():
    found = []
    for precision in (torch.float32, torch.bfloat16):
        net = nested_net().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = net(tensors(8), 8).float().square().mean()
        loss.backward()
        gradient = torch.cat(
            [p.grad.flatten() for p in net.switch_layers[0].parameters() if p.grad is not None]
        )
        found.append((loss, gradient, net.switch_layers[0].norm_of(2).running_var))
    (loss, gradient, variance), (loss16, gradient16, variance16) = found
    torch.testing.assert_close(loss16, loss, rtol=0.02, atol=0)
    torch.testing.assert_close(variance16, variance, rtol=0.01, atol=0)
    assert functional.cosine_similarity(gradient, gradient16, dim=0) > 0.99
