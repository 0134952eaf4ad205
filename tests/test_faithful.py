"""A model that converts is the model that was given; another is refused, by name and with a way out."""

import copy
import io
import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from small_nets import MEAN, STD, CourseNet, images, model, nested_net, seeded, tensors
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from dqt_core import convert, lower
from dqt_core.training import calibration, inputs, parts, straight_through
from dqt_core.training.conversion import comparison, conversion
from dqt_core.training.recipe import Recipe

PIXELS = images(6)
plain = model(lambda m, x: m.tail(m.head(x)))


def changed(change, make=plain):
    """A model that something was done to."""

    def made():
        net = seeded(make)
        result = change(net)
        return result if isinstance(result, torch._dynamo.OptimizedModule | nn.DataParallel) else net

    return made


def on_image(before):
    return model(lambda m, x: m.tail(m.head(before(m, x))))


def between(middle, **modules):
    return model(lambda m, x: m.tail(middle(m, m.head(x))), **modules)


def in_place(m, y):
    z = m.c(y)
    z.relu_()
    return z


def in_place_alias(m, y):
    z = m.c(y)
    v = m.i(z)
    functional.relu(v, inplace=True)
    return z + y


def with_flag(m, x, *others, flag=None, more=False, **rest):
    return m.tail(m.head(x if flag is None and not more else x + flag))


class Derived(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3)


RIGHT = {
    "ReLU on the input": on_image(lambda m, x: m.relu(x)),
    "ReLU6 on the input, after dropout": on_image(
        lambda m, x: functional.relu6(functional.dropout(x, 0.5, m.training))
    ),
    "ReLU, then max-pool, on the input": on_image(lambda m, x: m.pool(m.relu(x))),
    "max-pool, then ReLU, on the input": on_image(lambda m, x: m.relu(m.pool(x))),
    "the input and its ReLU": on_image(lambda m, x: x + m.relu(x)),
    "arguments with defaults": model(with_flag),
    "sum with keywords": between(lambda m, y: torch.add(input=m.c(y), other=y, alpha=1)),
    "half precision": changed(lambda net: net.half()),
    "bfloat16": changed(lambda net: net.bfloat16()),
    "double precision": changed(lambda net: net.double()),
    "compiled in place": changed(lambda net: net.compile()),
    "in place, result dropped": between(in_place),
    "in place, through another name": between(in_place_alias, i=nn.Identity()),
    "in place, then read again": between(
        lambda m, y: (lambda z: m.d(m.q(z)) + z)(m.c(y)), d=nn.Conv2d(8, 8, 1), q=nn.ReLU(True)
    ),
    "a layer nobody reads": between(lambda m, y: (m.c(y), y)[1], b=nn.Conv2d(8, 8, 1)),
    "a class derived from Conv2d": between(lambda m, y: m.q(y), q=Derived(8)),
    "dropout of channels": between(lambda m, y: m.q(m.c(y)), q=nn.Dropout2d()),
    "tied weights": changed(lambda net: setattr(net.c, "weight", net.b.weight), between(lambda m, y: m.c(y))),
    "one batch norm after two layers": between(
        lambda m, y: m.norm(m.d(m.relu(m.norm(m.c(y))))), d=nn.Conv2d(8, 8, 1)
    ),
    "batch norm without momentum": between(
        lambda m, y: m.norm(m.c(y)), norm=nn.BatchNorm2d(8, momentum=None)
    ),
    "a branch on training": changed(
        lambda net: net.train(), between(lambda m, y: y if m.training else m.c(y))
    ),
    "names of the package's own": between(
        lambda m, y: m.x_codes(m.relu_codes(y)), x_codes=nn.Conv2d(8, 8, 1), relu_codes=nn.Conv2d(8, 8, 1)
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    net = RIGHT[name]()
    own = copy.deepcopy(net).float().eval()
    converted = convert(net, PIXELS, MEAN, STD, widths=(4, 8))
    x = calibration.inputs(converted, PIXELS)
    with torch.no_grad():
        expected, found = own(x.clone()), converted(x, 8)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert all(parameter.dtype == torch.float32 for parameter in converted.parameters())
    assert (lower(converted).run(PIXELS, 8).classes == found.argmax(1).numpy()).mean() > 0.8


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def put_nan(net):
    net.b.weight.data[0, 0, 0, 0] = float("nan")


class Twice(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


DEFAULT = torch.ones(1)

REFUSED = {
    "addends of other channels": (
        r"`add` adds `c` of \(8, 16, 16\) and `m` of \(1, 16, 16\), expected equal shapes",
        between(lambda m, y: m.c(y) + m.m(y), m=nn.Conv2d(8, 1, 1)),
    ),
    "addends of other sizes": ("adds .* expected equal shapes", between(lambda m, y: m.c(y) + m.mean(y))),
    "weight norm": (
        r"`weight` of `b` is computed .*remove_parametrizations\(module, 'weight'\)",
        changed(lambda net: parametrizations.weight_norm(net.b)),
    ),
    "weight norm of old": (
        r"`b` is computed .* torch.nn.utils.remove_weight_norm\(module\)",
        changed(lambda net: quietly(nn.utils.weight_norm, net.b)),
    ),
    "spectral norm of old": ("remove_spectral_norm", changed(lambda net: nn.utils.spectral_norm(net.b))),
    "pruned": (
        r"`weight` of `fc` .*prune.remove\(module, 'weight'\)",
        changed(lambda net: prune.l1_unstructured(net.fc, "weight", 0.5)),
    ),
    "pruned bias": (r"prune.remove\(module, 'bias'\)", changed(lambda net: prune.identity(net.b, "bias"))),
    "compiled": ("the model is compiled; give .* `_orig_mod`", changed(torch.compile)),
    "a part compiled": ("`b` is compiled", changed(lambda net: setattr(net, "b", torch.compile(net.b)))),
    "scripted": ("the model is scripted or traced; give", lambda: quietly(torch.jit.script, nn.ReLU())),
    "traced": ("scripted or traced", lambda: quietly(torch.jit.trace, nn.ReLU(), tensors())),
    "in parallel": ("the model is wrapped .* `module`", changed(nn.DataParallel)),
    "no model": ("the model is a function, expected an nn.Module$", lambda: functional.relu),
    "a state dict": ("expected an nn.Module; build the model, give it", lambda: nn.ReLU().state_dict()),
    "a class": (r"the model is a type, .*; give an instance of it, ReLU\(...\)", lambda: nn.ReLU),
    "slices": (
        "no integer form for `getitem`; a 1x1 convolution .* with stride 2 the same pixels",
        between(lambda m, y: m.c(y)[:, :, 1::2, ::2]),
    ),
    "rows split": ("`getitem`; a 1x1 convolution", between(lambda m, y: m.c(y).chunk(2, 2)[0])),
    "two inputs": (
        r"forward takes \(x, y\), expected images alone",
        model(lambda m, x, y: m.tail(m.head(x) + m.a(y))),
    ),
    "a tensor as a default": ("`_tensor_constant0`", model(lambda m, x, z=DEFAULT: m.tail(m.head(x) + z))),
    "a map": (
        r"returns \(1, 8, 16, 16\) for one image, expected \(1, C\)",
        model(lambda m, x: m.c(m.head(x))),
    ),
    "a mean that keeps its axes": (r"returns \(1, 8, 1, 1\)", model(lambda m, x: m.mean(m.c(m.head(x))))),
    "probabilities": ("return the logits, or log_softmax", lambda: nn.Sequential(plain(), nn.Softmax(1))),
    "a probability": (
        "the model returns `.*Sigmoid.*leave off",
        lambda: nn.Sequential(plain(), nn.Sigmoid()),
    ),
    "a dictionary": ("expected one tensor", model(lambda m, x: {"logits": m.tail(m.head(x))})),
    "images flattened too": (r"makes \(10,\)", model(lambda m, x: m.tail(m.head(x)).flatten(0))),
    "linear on a map of 1x1": (
        r"`g` reads \(1, 8, 1, 1\)",
        model(lambda m, x: m.g(m.mean(m.head(x))), g=nn.Linear(1, 10)),
    ),
    "a hook": (
        r"`b` has a forward hook, which convert would lose; remove it \(handle.remove\(\)\)",
        changed(lambda net: net.b.register_forward_hook(lambda m, i, out: 2 * out)),
    ),
    "a hook before": ("forward hook", changed(lambda net: net.register_forward_pre_hook(lambda m, i: i))),
    "a class that computes otherwise": (
        r"in `b` \(Twice\)",
        model(lambda m, x: m.tail(m.head(x)), b=Twice(8, 8, 1)),
    ),
    "NaN in a weight": ("`b.weight` holds NaN or infinite numbers", changed(put_nan)),
    "NaN in statistics": (
        "`norm.running_var` holds NaN",
        changed(lambda net: net.norm.running_var.fill_(float("nan")), between(lambda m, y: m.norm(m.c(y)))),
    ),
    "NaN from a variance below 0": (
        "`c` is NaN or infinite on these images",
        changed(
            lambda net: net.norm.running_var.fill_(-1), between(lambda m, y: functional.relu6(m.norm(m.c(y))))
        ),
    ),
    "no numbers": ("`a.weight` has no numbers yet", changed(lambda net: net.to("meta"))),
    "sparse": (
        "`b.weight` is a Tensor of torch.float32, torch.sparse_coo, expected an ordinary dense",
        changed(lambda net: setattr(net.b, "weight", nn.Parameter(net.b.weight.detach().to_sparse()))),
    ),
    "one channel": (
        "`a` reads 1 channels, and the images have 3; give images of 1, and a mean and a std for each",
        between(lambda m, y: y, a=nn.Conv2d(1, 8, 3)),
    ),
    "channels that do not fit": (
        "the model itself fails on an image .* at `b: Conv2d",
        between(lambda m, y: y, b=nn.Conv2d(9, 8, 3)),
    ),
    "autocast in forward": (
        "switches autocast on",
        between(lambda m, y: torch.autocast("cpu", torch.bfloat16)(m.c)(y)),
    ),
    "dropout that stays": ("no integer form for `dropout`", between(lambda m, y: functional.dropout(m.c(y)))),
    "changed in place by an unknown function": (
        "`floor_`",
        between(lambda m, y: (lambda z: (z.floor_(), z)[1])(m.c(y))),
    ),
    "statistics taken away": (
        "`norm: BatchNorm2d.* convert needs batch norm with affine",
        changed(lambda net: setattr(net.norm, "running_var", None), between(lambda m, y: m.norm(m.c(y)))),
    ),
    "attention": (
        "`q: MultiheadAttention",
        between(lambda m, y: m.q(y, y, y)[0], q=nn.MultiheadAttention(8, 2)),
    ),
    "a controller of the model's own": (
        "has a module `controller`",
        between(lambda m, y: m.controller(y), controller=nn.Conv2d(8, 8, 1)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    message, make = REFUSED[name]
    net = make()
    with pytest.raises(ValueError, match=message) as caught:
        convert(net, PIXELS, MEAN, STD)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"images": torch.from_numpy(PIXELS)},
            r"got torch.uint8 .*give a NumPy array.*permute\(0, 2, 3, 1\)",
        ),
        ({"images": PIXELS[:0]}, "there are no calibration images"),
        ({"images": list(PIXELS)}, "got list"),
        ({"std": (0.2, 0.0, 0.2)}, "std positive"),
        ({"mean": (0.2, 0.2)}, "have 3 channels, and mean and std 2 and 3 numbers"),
        ({"mean": 0.2}, r"mean=0.2 and .* expected a number for each channel"),
        (
            {"mean": (113, 115, 112), "std": (60, 55, 57)},
            "leave 2 codes for the 256 bytes of a channel; give those of bytes divided",
        ),
        ({"widths": 4}, "widths must be one or more ints"),
    ],
    ids=str,
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        convert(**{"net": plain(), "images": PIXELS, "mean": MEAN, "std": STD} | options)


def test_images_in_any_order_of_memory():
    turned = PIXELS[..., ::-1]
    turned.flags.writeable = False
    expected = lower(convert(seeded(plain), turned.copy(), MEAN, STD, controller=False)).digest
    assert lower(convert(seeded(plain), turned, MEAN, STD, controller=False)).digest == expected


def test_widths_of_numpy_and_torch():
    expected = ((2, 4), (4, 4), (8, 8))
    assert nested_net(widths=[torch.tensor(8), np.int64(4), np.array([2, 4])]).choices == expected
    net = nested_net(widths=torch.tensor([2, 8]))
    x = tensors()
    for width in (torch.tensor(8), torch.tensor([8, 8]), np.array([8, 8]), (8, 8)):
        assert torch.equal(net(x, width), net(x, 8))
    net = nested_net(widths=((2, 8), 2, 8))
    with pytest.raises(ValueError, match=r"give \[2, 8\] or \[\(2, 8\)\] \* 2"):
        net(x, (2, 8))


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 16, 16, 3)])
def test_a_nested_network_takes_normalised_floats(x):
    with pytest.raises(ValueError, match=r"expected float32 \(N, 3, H, W\), normalised"):
        nested_net()(x, 8)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "another device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_conversion_and_lowering_do_not_depend_on_the_surroundings(name):
    net = seeded(CourseNet)
    expected = lower(convert(net, PIXELS, MEAN, STD, controller=False)).digest
    with SURROUNDINGS[name]():
        converted = convert(net, PIXELS, MEAN, STD, controller=False)
        assert lower(converted).digest == expected
    converted.train()(tensors(), 4).sum().backward()  # its parameters are ordinary ones


def test_conversion_and_lowering_do_not_depend_on_the_default_dtype():
    net = seeded(CourseNet)
    expected = lower(convert(net, PIXELS, MEAN, STD, controller=False)).digest
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert lower(convert(net, PIXELS, MEAN, STD, controller=False)).digest == expected
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


def pickled(net):
    return pickle.loads(pickle.dumps(net))


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("move", [pickled, copy.deepcopy, saved])
def test_a_copy_is_the_network(move):
    net = nested_net()
    moved = move(net)
    assert torch.equal(moved(tensors(), 4), net(tensors(), 4))
    assert torch.equal(moved(tensors(), "controller"), net(tensors(), "controller"))
    assert lower(moved).digest == lower(net).digest
    assert moved.differences == net.differences


def _elsewhere(net):
    return net(tensors(), 4).tolist(), lower(net).digest


def test_a_spawned_process_runs_the_network():
    net = nested_net()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        logits, digest = pool.submit(_elsewhere, net).result()  # or what the process died of
    assert torch.equal(torch.tensor(logits), net(tensors(), 4))
    assert digest == lower(net).digest


# The comparison


def test_what_conversion_measured_is_kept():
    net = nested_net()
    assert list(net.differences) == ["conv1", "conv2", "conv3", "fc", comparison.OUTPUT]
    assert 0 < max(net.differences.values()) < comparison.JUMP


def test_narrow_widths_are_compared_at_8_bits():
    assert max(nested_net(widths=(1,)).differences.values()) < comparison.JUMP


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "fc"])
def test_a_wrong_layer_is_named(name, monkeypatch):
    right = conversion._Conversion._layer

    def wrong(self, node):
        right(self, node)
        if node.target == name:
            layer = self.root.get_submodule(name)
            layer.weight = nn.Parameter(1.5 * layer.weight.detach())
            layer.log_step.data += np.log(1.5)

    monkeypatch.setattr(conversion._Conversion, "_layer", wrong)
    with pytest.warns(comparison.ConversionWarning, match=f"first at `{name}` by [345]"):
        nested_net()


def signed_relu(self, node):
    self._codes(node, self._source(node), signed=node.name == "relu_1")


@pytest.mark.parametrize(
    ("owner", "step", "wrong", "name"),
    [
        (conversion._Conversion, "_relu", signed_relu, "conv3"),
        (parts.Addition, "forward", lambda self, x, y: y, "conv3"),
    ],
    ids=["a ReLU left out", "a shortcut left out"],
)
def test_a_wrong_step_is_noticed(owner, step, wrong, name, monkeypatch):
    """Named is the first layer that reads what went wrong."""
    monkeypatch.setattr(owner, step, wrong)
    with pytest.warns(comparison.ConversionWarning, match=f"first at `{name}`"):
        nested_net()


def test_noise_above_the_bound_is_said_too():
    expected = {name: torch.ones(4) for name in ("a", "b", comparison.OUTPUT)}
    found = {
        "a": torch.full((4,), 1.1),
        "b": torch.full((4,), 1.25),
        comparison.OUTPUT: torch.full((4,), 1.3),
    }
    with pytest.warns(comparison.ConversionWarning, match="first at `b` by 25%, and the output by 30%"):
        comparison.differences(expected, found)


# Edge values of training


@pytest.mark.parametrize("option", ["batch_size", "microbatch"])
def test_sizes_of_0_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}=0, expected 1 or more"):
        Recipe(epochs=1, **{option: 0})


def test_nan_is_refused_when_steps_are_set():
    net = nested_net()
    net.graph.conv2.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"what `relu_1_codes` rounds is NaN"):
        calibration.set_steps(net, [PIXELS])


def test_one_number_a_channel_has_no_statistics():
    norm = nn.BatchNorm2d(4)
    x = torch.zeros(1, 4, 1, 1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"one number a channel .* batches of 2 or more"):
        straight_through.scaled_batch_norm(x, torch.zeros(4), norm)


def test_normalised_is_the_look_up():
    x = inputs.normalized(PIXELS, MEAN, STD)
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(x, expected / torch.tensor(STD)[:, None, None])
