"""Conversion: what becomes of each part of a float model, and what is refused."""

import numpy as np
import pytest
import torch
from small_nets import MEAN, STD, CourseNet, assert_equal_states, images, model, nested_net, seeded, state
from torch import nn
from torch.nn import functional

from dqt_core import convert, lower, models
from dqt_core.data import normalization_table
from dqt_core.program import Scale
from dqt_core.training.conversion.forms import mean_pool_sizes
from dqt_core.training.layers import Quantizer, SwitchLayer
from dqt_core.training.parts import CodedMaxPool
from dqt_core.training.train import normalize


def inputs(pixels):
    return normalize(torch.from_numpy(pixels), torch.from_numpy(normalization_table(MEAN, STD)))


def names_of(net, kind):
    return [name for name, module in net.graph.named_modules() if isinstance(module, kind)]


def quantizers(net):
    return {name: module for name, module in net.graph.named_modules() if isinstance(module, Quantizer)}


# Whole models: (float model, image size, layers, names of some switchable layers, signed codes)

WHOLE = {
    "resnet18": (
        lambda: models.resnet18(10, 4, small_images=True),
        16,
        19,
        ["layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2"],
        {"x"},  # the input; a shortcut is added unrounded
    ),
    "resnet50": (
        lambda: models.resnet50(10, 4),
        32,
        52,
        ["layer1.0.conv1", "layer1.0.downsample.0", "layer4.2.conv3"],
        {"x"},
    ),
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(10),
        32,
        51,
        ["features.1.conv.0.0", "features.18.0"],
        {"x"}
        | {f"features_{i}_conv_{2 if i == 1 else 3}" for i in (1, 2, 4, 7, 11, 14, 17)}
        | {f"add{'' if i == 0 else f'_{i}'}" for i in range(10)},
    ),
}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request):
    make, size, *facts = WHOLE[request.param]
    net = seeded(make)
    before, pixels = state(net), images(1, size)
    with torch.no_grad():
        expected = net(inputs(pixels))
    converted = convert(net, pixels, MEAN, STD, widths=(4, 8))
    return net, before, expected, converted, pixels, facts


def test_float_model_is_left_unchanged(whole):
    net, before, expected, _, pixels, _ = whole
    assert_equal_states(state(net), before)
    assert not net.training
    with torch.no_grad():
        assert torch.equal(net(inputs(pixels)), expected)
    assert not any(isinstance(module, SwitchLayer | Quantizer) for module in net.modules())


def test_converted_parameters_are_copies(whole):
    net, *_, converted, _, _ = whole
    own = {parameter.data_ptr() for parameter in net.parameters()}
    assert not own & {parameter.data_ptr() for parameter in converted.parameters()}


def test_layers_and_their_names(whole):
    net, *_, converted, _, (layers, some_names, signed) = whole
    assert len(converted.switch_layers) == layers
    named = {module: name for name, module in converted.graph.named_modules()}
    names = [named[layer] for layer in converted.switch_layers]
    every = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert set(names) == set(every[1:-1]), "the first and the last stay at 8 bits"
    assert [name for name in names if name in some_names] == some_names
    fixed = {named[layer] for layer in converted.fixed_layers}
    assert fixed == {every[0], every[-1], "controller.fc1", "controller.fc2"}
    assert all(layer.choices == ((8, 8),) for layer in converted.fixed_layers)
    assert {
        name.removesuffix("_codes") for name, codes in quantizers(converted).items() if codes.signed
    } == signed


def test_master_widths_are_close_to_the_float_model(whole):
    _, _, expected, converted, pixels, _ = whole
    with torch.no_grad():
        found = converted(inputs(pixels), 8)
    # codes of 8 bits through up to 53 layers: a bound on the noise, tight enough for any wrong layer
    assert (found - expected).norm() < 0.15 * expected.norm()


def test_limits_are_those_of_relu6(whole):
    *_, converted, _, _ = whole
    limits = {codes.limit for codes in quantizers(converted).values()}
    is_mobilenet = any(name.startswith("features") for name in quantizers(converted))
    assert limits == ({None, 6.0} if is_mobilenet else {None})


def test_every_quantizer_is_calibrated(whole):
    *_, converted, _, _ = whole
    assert all(codes.log_step.item() != 0 for codes in quantizers(converted).values())


# A course's own model


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_hand_written_model(rounding):
    net, pixels = seeded(CourseNet), images(8)
    converted = convert(net, pixels, MEAN, STD, widths=(4, 8), rounding=rounding)
    with torch.no_grad():
        expected, found = net(inputs(pixels)), converted(inputs(pixels), 8)
    assert (found - expected).norm() < 0.03 * expected.norm()
    assert names_of(converted, SwitchLayer)[:2] == ["conv1", "controller.fc1"]
    assert [name for name, m in converted.graph.named_modules() if m in converted.switch_layers] == [
        "conv2",
        "conv3",
    ]
    assert len(names_of(converted, CodedMaxPool)) == 2
    program = lower(converted)
    assert program.layers == ("conv2", "conv3")
    assert program.run(pixels, widths=8).classes.tolist() == expected.argmax(1).tolist()


def test_widths_are_sorted_from_narrow_to_wide():
    choices = nested_net(widths=(8, 2, (2, 4), 4, 2, np.int64(3))).choices
    assert choices == ((2, 2), (2, 4), (3, 3), (4, 4), (8, 8))
    assert all(type(width) is int for pair in choices for width in pair)


def test_steps_weigh_the_widths_at_which_they_are_read():
    net = nested_net(widths=(2, (4, 3), 8))
    widths = {name.removesuffix("_codes"): codes.widths for name, codes in quantizers(net).items()}
    assert widths["x"] == (8,), "the first layer"
    assert widths["relu"] == (2, 3, 8), "seen through the max-pool"
    assert widths["relu_1"] == (2, 3, 8)
    assert widths["relu_2"] == (8,)
    assert widths["mean"] == (8,), "the last layer"


def test_batch_norm_tables():
    per_width = nested_net(widths=(2, 4, 8))
    assert [len(layer.norms) for layer in per_width.switch_layers] == [3, 0]
    shared = nested_net(widths=(2, 4, 8), batch_norm="shared")
    assert [len(layer.norms) for layer in shared.switch_layers] == [1, 0]
    assert len(per_width.graph.conv1.norms) == 1
    tables = [norm.running_mean for norm in per_width.graph.conv2.norms]
    assert torch.equal(tables[0], tables[2])
    assert tables[0].data_ptr() != tables[2].data_ptr()


def test_without_controller():
    net = nested_net(controller=False)
    assert net.controller is None
    assert len(net.fixed_layers) == 2


# Small models with one peculiarity each


SUPPORTED = {
    "max-pool before ReLU": model(
        lambda m, x: m.tail(m.relu(m.pool(m.c(m.relu(m.pool(m.norm(m.b(m.relu(m.a(x))))))))))
    ),
    "stem with a batch norm and no ReLU": model(lambda m, x: m.tail(m.relu(m.b(m.pool(m.norm(m.a(x))))))),
    "pre-activation": model(
        lambda m, x: m.tail(m.relu(m.b(m.relu(m.a(x))) + m.a2(x))), a2=nn.Conv2d(3, 8, 1)
    ),
    "a value before and after its ReLU": model(lambda m, x: (lambda y: m.tail(m.b(m.relu(y)) + y))(m.a(x))),
    "dropout and identity": model(
        lambda m, x: m.tail(m.i(m.d(m.head(x)))), d=nn.Dropout(0.5), i=nn.Identity()
    ),
    "nn.Flatten": model(lambda m, x: m.fc(m.flat(m.mean(m.head(x)))), flat=nn.Flatten()),
    "functional mean": model(lambda m, x: m.fc(functional.adaptive_avg_pool2d(m.head(x), 1).flatten(1))),
    "mean over negative axes": model(lambda m, x: m.fc(torch.mean(m.head(x), dim=[-1, -2]))),
    "two linear layers": model(
        lambda m, x: m.fc(m.relu(m.g(m.mean(m.head(x)).flatten(1)))), g=nn.Linear(8, 8)
    ),
    "no linear layer": model(lambda m, x: m.mean(m.c(m.head(x))).flatten(1)),
    "in-place addition and ReLU": model(
        lambda m, x: (lambda y: m.tail(m.b(y).add_(y).relu_()))(torch.relu_(m.a(x)))
    ),
    "relu6": model(lambda m, x: m.tail(functional.relu6(m.b(functional.relu(m.a(x), inplace=True))))),
    "flattened map": model(lambda m, x: m.fc(m.pool(m.pool(m.head(x))).flatten(1)), fc=nn.Linear(128, 10)),
    "flattened by its size": model(
        lambda m, x: (lambda y: m.fc(y.reshape(y.size(0), -1)))(m.pool(m.head(x))), fc=nn.Linear(512, 10)
    ),
    "linear layers on the image": model(
        lambda m, x: m.fc(m.relu(m.n(m.g(m.relu(m.f(torch.flatten(x, 1))))))),
        f=nn.Linear(768, 20),
        g=nn.Linear(20, 20),
        n=nn.BatchNorm1d(20),
        fc=nn.Linear(20, 10),
    ),
    "one layer": model(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(768, 10)),
    "two layers": model(lambda m, x: m.tail(m.relu(m.a(x)))),
    "a layer called twice": model(lambda m, x: m.tail(m.relu(m.b(m.head(x))))),
    "a layer called with a norm and without": model(
        lambda m, x: m.tail(m.relu(m.norm(m.b(m.relu(m.norm(m.b(m.head(x))))))))
    ),
    "dilation": model(lambda m, x: m.tail(m.head(x)), b=nn.Conv2d(8, 8, 3, dilation=(2, 1))),
    "padding by name": model(lambda m, x: m.tail(m.head(x)), b=nn.Conv2d(8, 8, (5, 3), padding="same")),
    "another kernel and padding along each axis": model(
        lambda m, x: m.tail(m.head(x)), b=nn.Conv2d(8, 8, (1, 5), padding=(0, 2))
    ),
    "padding on two sides": model(
        lambda m, x: m.tail(m.relu(m.b(functional.pad(m.relu(m.a(x)), (0, 1, 0, 1))))),
        b=nn.Conv2d(8, 8, 3, 2),
    ),
    "a shortcut of every other pixel, with channels of zeros": model(
        lambda m, x: (
            lambda y: m.tail(m.relu(m.b(y) + functional.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))
        )(m.relu(m.a(x))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(4, 8, 3, 2, 1),
    ),
    "halves of the channels": model(
        lambda m, x: (lambda y: m.fc(m.mean(m.d(y[0]) + y[1]).flatten(1)))(m.head(x).chunk(2, 1)),
        d=nn.Conv2d(4, 4, 1),
        fc=nn.Linear(4, 10),
    ),
    "shuffled channels": model(
        lambda m, x: (lambda y: m.tail(m.c(y.view(-1, 2, 4, 16, 16).transpose(1, 2).reshape(-1, 8, 16, 16))))(
            m.head(x).contiguous()
        )
    ),
    "batch norm of a sum": model(
        lambda m, x: (lambda y: m.tail(m.c(m.relu(m.norm(y + m.b(m.relu(y)))))))(m.a(x))
    ),
    "batch norm of the image": model(lambda m, x: m.tail(m.head(m.early(x))), early=nn.BatchNorm2d(3)),
    "batch norm of codes": model(lambda m, x: m.tail(m.c(m.relu(m.norm(m.pool(m.head(x))))))),
    "batch norm of a value that is read elsewhere": model(
        lambda m, x: (lambda y: m.tail(m.relu(m.norm(y) + y)))(m.b(m.relu(m.a(x))))
    ),
    "mean by a pool as large as the map": model(
        lambda m, x: (lambda y: m.fc(functional.avg_pool2d(y, y.size()[3]).view(y.size(0), -1)))(m.head(x))
    ),
    "pools of one pixel": model(
        lambda m, x: m.tail(m.p(functional.adaptive_avg_pool2d(m.head(x), 16))), p=nn.AvgPool2d(1, 1)
    ),
    "functional max-pool": model(
        lambda m, x: m.tail(functional.max_pool2d(m.head(x), (2, 2), ceil_mode=True))
    ),
    "max-pool with ceil_mode": model(
        lambda m, x: m.tail(m.c(m.pool(m.head(x)))), pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    ),
    "pool to 2x2": model(
        lambda m, x: m.fc(functional.adaptive_avg_pool2d(m.head(x), (2, 2)).flatten(1)), fc=nn.Linear(32, 10)
    ),
    "pool of 16x16 to 3x3, whose windows share rows": model(
        lambda m, x: m.tail(m.c(m.p(m.head(x)))), p=nn.AdaptiveAvgPool2d(3)
    ),
    "pool to one row": model(lambda m, x: m.tail(m.c(m.p(m.head(x)))), p=nn.AdaptiveAvgPool2d((1, 4))),
    "means of windows": model(
        lambda m, x: m.tail(m.c(functional.avg_pool2d(m.p(m.head(x)), 2))), p=nn.AvgPool2d((3, 2), 1, 1)
    ),
    **{
        f"{function.__class__.__name__}": model(
            lambda m, x: m.tail(m.f(m.norm(m.c(m.f(m.b(m.f(m.a(x)))))))), f=function
        )
        for function in (
            *(nn.LeakyReLU(0.1, inplace=True), nn.PReLU(8), nn.ELU(), nn.GELU(), nn.SiLU(), nn.Hardswish()),
            *(nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Hardtanh(-2, 3)),
        )
    },
    "activations as functions": model(
        lambda m, x: m.tail(
            torch.tanh(m.c(functional.hardswish(m.b(functional.leaky_relu(m.a(x), 0.2))).sigmoid()))
        )
    ),
    "an activation of codes that are read elsewhere": model(
        lambda m, x: (lambda y: m.tail(functional.silu(y) + m.c(torch.sigmoid(y))))(m.head(x))
    ),
    "channels side by side": model(
        lambda m, x: (lambda y: m.tail(m.c(torch.cat([y, m.relu(m.b(y)), m.d(y)], dim=1))))(m.relu(m.a(x))),
        c=nn.Conv2d(20, 8, 1),
        d=nn.Conv2d(8, 4, 1),
    ),
    "the same channels twice": model(
        lambda m, x: (lambda y: m.tail(m.c(torch.cat((y, y), -3))))(m.head(x)), c=nn.Conv2d(16, 8, 1)
    ),
    "ReLUs side by side": model(
        lambda m, x: (lambda y: m.tail(m.c(torch.cat([m.relu(m.b(y)), functional.relu(m.d(y))], 1))))(
            m.relu(m.a(x))
        ),
        c=nn.Conv2d(12, 8, 1),
        d=nn.Conv2d(8, 4, 1),
    ),
    "batch norm and ReLU of channels side by side": model(
        lambda m, x: (lambda y: m.tail(m.c(m.relu(m.n(torch.cat([y, m.b(y)], 1))))))(m.relu(m.a(x))),
        c=nn.Conv2d(16, 8, 1),
        n=nn.BatchNorm2d(16),
    ),
    "ReLU of channels side by side": model(
        lambda m, x: (lambda y: m.tail(m.c(m.relu(torch.cat([m.b(y), m.d(y)], 1)))))(m.relu(m.a(x))),
        c=nn.Conv2d(12, 8, 1),
        d=nn.Conv2d(8, 4, 1),
    ),
    "pixels side by side in a row": model(
        lambda m, x: (lambda y: m.fc(torch.cat([m.mean(y).flatten(1), m.mean(m.c(y)).flatten(1)], 1)))(
            m.head(x)
        ),
        fc=nn.Linear(16, 10),
    ),
    "squeeze and excitation": model(
        lambda m, x: (lambda y: m.tail(m.c(torch.sigmoid(m.e(m.relu(m.s(m.mean(y))))) * y)))(m.head(x)),
        s=nn.Conv2d(8, 4, 1),
        e=nn.Conv2d(4, 8, 1),
    ),
    "numbers": model(
        lambda m, x: m.tail(m.c(1 - 2 * m.head(x) / 3 + torch.add(m.b(m.relu(m.a(x))), 0.5).mul_(1.5)))
    ),
    "Hardswish by hand": model(
        lambda m, x: (lambda y: m.tail(m.c(y * (functional.relu6(y + 3.0) / 6.0))))(m.b(m.relu(m.a(x))))
    ),
    "SiLU by hand": model(lambda m, x: (lambda y: m.tail(m.c(y * y.sigmoid())))(m.b(m.relu(m.a(x))))),
    "squares": model(lambda m, x: (lambda y: m.tail(m.c(y * y)))(m.b(m.relu(m.a(x))))),
    **{
        f"squeeze and excitation, {name}": model(
            lambda m, x, spread=spread: (
                lambda y: m.tail(m.c(y * spread(torch.sigmoid(m.e(m.relu(m.s(y.mean(dim=(2, 3)))))))))
            )(m.head(x)),
            s=nn.Linear(8, 4),
            e=nn.Linear(4, 8),
        )
        for name, spread in {
            "axes by None": lambda y: y[:, :, None, None],
            "axes by dots and None": lambda y: y[..., None, None],
            "axes one by one": lambda y: y.unsqueeze(-1).unsqueeze(-1),
        }.items()
    },
    "squeeze and excitation by linear layers": model(
        lambda m, x: (
            lambda y: m.tail(
                m.c(torch.sigmoid(m.e(m.relu(m.s(m.mean(y).view(-1, 8))))).view(-1, 8, 1, 1).expand_as(y) * y)
            )
        )(m.head(x)),
        s=nn.Linear(8, 4),
        e=nn.Linear(4, 8),
    ),
    "a product of two maps": model(
        lambda m, x: (lambda y: m.tail(torch.mul(m.b(y), functional.gelu(m.c(y)))))(m.relu(m.a(x)))
    ),
    "a product in place, added to a shortcut": model(
        lambda m, x: (lambda y: m.tail(m.relu(m.b(y).mul_(m.c(y)) + y)))(m.relu(m.a(x)))
    ),
    "log_softmax at the end": model(lambda m, x: functional.log_softmax(m.tail(m.head(x)), dim=1)),
    "LogSoftmax at the end": model(lambda m, x: m.s(m.tail(m.head(x))), s=nn.LogSoftmax(-1)),
    "a convolution as the last layer": model(
        lambda m, x: m.k(m.mean(m.head(x))).flatten(1), k=nn.Conv2d(8, 10, 1)
    ),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported(name):
    net, pixels = seeded(SUPPORTED[name]), images(6)
    converted = convert(net, pixels, MEAN, STD, widths=(4, 8))
    with torch.no_grad():
        expected, found = net(inputs(pixels)), converted(inputs(pixels), 8)
        chosen = converted(inputs(pixels), "controller") if converted.controller else found
    compared = found.log_softmax(1) if "oftmax at the end" in name else found
    assert (compared - expected).norm() < 0.05 * expected.norm()
    assert chosen.shape == expected.shape
    assert (converted.controller is None) == (name in ("one layer", "two layers"))
    program = lower(converted)
    (logits,) = (op for op in program.ops if isinstance(op, Scale) and not op.controller)
    integers = program.run(pixels, widths=8).logits / 2.0**logits.r
    # The two differ where a sum falls between two codes: by one code here and there.
    assert np.linalg.norm(integers - found.numpy()) < 0.02 * np.linalg.norm(found.numpy())


def converted(name):
    return convert(seeded(SUPPORTED[name]), images(), MEAN, STD)


def test_a_value_with_two_readers_is_rounded_where_it_arises():
    assert quantizers(converted("a value before and after its ReLU"))["a_codes"].signed


@pytest.mark.parametrize(
    ("name", "signed"), [("dropout and identity", False), ("stem with a batch norm and no ReLU", True)]
)
def test_controller_reads_the_stem_with_its_sign(name, signed):
    net = converted(name)
    assert net.controller.input.signed == signed
    assert net.controller.fc1.weight.shape == (64, 8)


def test_model_in_training_mode_is_calibrated_in_evaluation_mode():
    net, pixels = seeded(CourseNet), images()
    expected = state(convert(net, pixels, MEAN, STD, controller=False))
    nested = convert(net.train(), pixels, MEAN, STD, controller=False)
    assert_equal_states(state(nested), expected)
    assert not nested.training


KNOWN = "convert has no integer form for .* it knows Conv2d, Linear, batch norm, pointwise"

REFUSED = {
    "a mean over columns": (
        r"for `mean` but over height and width, x.mean\(\(2, 3\)\); it knows",
        model(lambda m, x: m.tail(m.head(x).mean(3, keepdim=True))),
    ),
    "a branch before all layers": (
        "cannot be traced .*; before the first layer",
        model(lambda m, x: m.tail(m.head(x if x.mean() > 0 else -x))),
    ),
    "sine": (KNOWN, model(lambda m, x: m.tail(torch.sin(m.head(x))))),
    "softmax over channels": ("no integer form", model(lambda m, x: m.tail(m.s(m.head(x))), s=nn.Softmax(1))),
    "rows side by side": ("dim=1", model(lambda m, x: (lambda y: m.tail(torch.cat([y, y], 2)))(m.head(x)))),
    "a constant over a tensor": (KNOWN, model(lambda m, x: m.tail(2 / (m.head(x) + 1)))),
    "a product with one channel": (
        r"multiplies \(8, 16, 16\) and \(1, 16, 16\)",
        model(lambda m, x: (lambda y: m.tail(y * m.g(y)))(m.head(x)), g=nn.Conv2d(8, 1, 1)),
    ),
    "a product of rows, not channels": (
        "no integer form for `unsqueeze`",
        model(
            lambda m, x: (lambda y: m.tail(m.back(y * m.e(y.mean(dim=(2, 3))).unsqueeze(-1))))(
                m.wide(m.head(x))
            ),
            wide=nn.Conv2d(8, 16, 1),
            e=nn.Linear(16, 16),
            back=nn.Conv2d(16, 8, 1),
        ),
    ),
    "means without the padding": (
        "the padding counted",
        model(lambda m, x: m.tail(m.p(m.head(x))), p=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    ),
    "means of a window that ends outside": (
        "equal windows",
        model(lambda m, x: m.tail(m.p(m.head(x))), p=nn.AvgPool2d(3, 2, ceil_mode=True)),
    ),
    "pool of 16x16 to 6x6": (
        r"k \* n or k \* n \+ 1 rows for n of output",
        model(lambda m, x: m.tail(m.p(m.head(x))), p=nn.AdaptiveAvgPool2d(6)),
    ),
    "pool to more pixels": (
        "equal windows",
        model(lambda m, x: m.tail(m.p(m.head(x))), p=nn.AdaptiveAvgPool2d(48)),
    ),
    "two strides": (
        "`b`: .* needs one stride for both axes; change that in the model",
        model(lambda m, x: m.tail(m.head(x)), b=nn.Conv2d(8, 8, 3, (2, 1))),
    ),
    "padding by reflection": (
        "`b`: .* needs padding with zeros; change that in the model",
        model(lambda m, x: m.tail(m.head(x)), b=nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
    ),
    "the last pixels": ("`getitem`; a 1x1 convolution", model(lambda m, x: m.tail(m.head(x)[:, :, 1:, 1:]))),
    "ones around": (KNOWN, model(lambda m, x: m.tail(functional.pad(m.head(x), (1, 1, 1, 1), value=1.0)))),
    "a softmax": (
        "return the logits, or log_softmax of them, instead",
        model(lambda m, x: m.tail(m.head(x)).softmax(1)),
    ),
    "batch norm of flattened pixels": (
        "`early: BatchNorm1d.*reads flattened pixels",
        model(
            lambda m, x: m.fc(m.early(m.head(x).flatten(1))),
            early=nn.BatchNorm1d(2048),
            fc=nn.Linear(2048, 10),
        ),
    ),
    "no layer": ("has no convolution or linear layer", model(lambda m, x: m.mean(x).flatten(1))),
    "another activation by the name of relu": (
        "no integer form for `relu: RReLU",
        model(lambda m, x: m.tail(m.head(x)), relu=nn.RReLU()),
    ),
    "a softmin by the name of flatten": (
        "no integer form for `flatten: Softmin",
        model(lambda m, x: m.tail(m.flatten(m.head(x))), flatten=nn.Softmin(1)),
    ),
    "batch norm without statistics": (
        "convert needs batch norm with affine and track_running_stats",
        model(lambda m, x: m.tail(m.norm(m.b(m.relu(m.a(x))))), norm=nn.BatchNorm2d(8, affine=False)),
    ),
    "a tensor and itself": ("itself or a multiple", model(lambda m, x: (lambda y: m.tail(y + y))(m.head(x)))),
    "a multiple": (
        "itself or a multiple",
        model(lambda m, x: (lambda y: m.tail(torch.add(m.c(y), y, alpha=2)))(m.head(x))),
    ),
    "a buffer": (KNOWN, model(lambda m, x: m.tail(m.head(x) + m.fc.bias[:8, None, None]))),
    "mean over channels": (
        KNOWN,
        model(lambda m, x: m.fc(m.head(x).mean(1).flatten(1)), fc=nn.Linear(256, 10)),
    ),
    "mean over part of the axes": (
        KNOWN,
        model(lambda m, x: m.fc(m.head(x).mean((1, 2))), fc=nn.Linear(16, 10)),
    ),
    "max-pool with two sizes": (
        "one size for both axes",
        model(lambda m, x: m.tail(m.pool(m.head(x))), pool=nn.MaxPool2d((2, 1))),
    ),
    "max-pool with dilation": (
        "dilation 1",
        model(lambda m, x: m.tail(m.pool(m.head(x))), pool=nn.MaxPool2d(2, dilation=2)),
    ),
    "linear layer on pixels": (
        r"`g` reads \(1, 8, 16, 16\) for one image, expected \(1, C\)",
        model(lambda m, x: m.mean(m.c(m.g(m.head(x)))).flatten(1), g=nn.Linear(16, 16)),
    ),
    "rounded output": ("expected one tensor, of one layer", model(lambda m, x: m.relu(m.tail(m.head(x))))),
    "two outputs": (
        "expected one tensor, of one layer",
        model(lambda m, x: (lambda y: (m.tail(y), m.mean(y)))(m.head(x))),
    ),
    "a branch": (
        "cannot be traced .* without branches",
        model(lambda m, x: m.tail(m.head(x)) if x.sum() > 0 else x),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    message, make = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        convert(make(), images(), MEAN, STD)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "nearest"}, "choose 'half_up' or 'floor'"),
        ({"batch_norm": "none"}, "choose 'per_width' or 'shared'"),
        ({"widths": ()}, r"widths must be one or more ints or \(weight bits, input bits\)"),
        ({"widths": ((2, 4, 8),)}, "widths must be one or more ints"),
        ({"widths": (0, 8)}, r"width 0 is outside 1\.\.8"),
        ({"widths": ((4, 9),)}, r"width 9 is outside 1\.\.8"),
        ({"widths": ("4",)}, r"width '4' is outside 1\.\.8"),
        ({"images": images().astype(np.float32)}, r"must be uint8 \(N, H, W, C\), got float32"),
        ({"images": images()[0]}, r"got uint8 \(16, 16, 3\)"),
        (
            {"images": images().transpose(0, 3, 1, 2)},
            r"images \(4, 3, 16, 16\) have 16 channels, and mean and std 3",
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convert(**{"net": CourseNet(), "images": images(), "mean": MEAN, "std": STD} | options)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_an_adaptive_pool_of_equal_windows_is_a_plain_one(count):
    """Those with other windows are refused: of n results a map has k * n or k * n + 1 rows, or n is 1."""
    pool, found = nn.AdaptiveAvgPool2d(count), []
    for size in range(1, 17):
        x = torch.rand(1, 1, size, size, dtype=torch.float64)
        sizes = mean_pool_sizes(pool, x.shape, (1, 1, count, count))
        if sizes is not None:
            found.append(size)
            torch.testing.assert_close(functional.avg_pool2d(x, *sizes), pool(x))
    assert found == [size for size in range(max(1, count), 17) if count == 1 or size % count in (0, 1)]
