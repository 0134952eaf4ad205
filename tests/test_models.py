"""The float models are torchvision's: names, numbers and outputs."""

import copy

import pytest
import torch
from small_nets import MEAN, STD, images, seeded, tensors
from torch import nn
from torch.nn import functional

from dqt_core import convert, lower, models
from dqt_core.data._torchvision import import_torchvision
from dqt_core.program import Conv

PARAMETERS = {"resnet18": 11_689_512, "resnet50": 25_557_032, "mobilenet_v2": 3_504_872}


@pytest.mark.parametrize("name", PARAMETERS)
def test_torchvision_state_dict_gives_torchvision_outputs(name):
    original = seeded(lambda: getattr(import_torchvision().models, name)(weights=None))
    net = getattr(models, name)()
    net.load_state_dict(original.state_dict(), strict=True)
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
    with torch.no_grad():
        x = 5 * tensors(2, 64)
        expected, found = original(x), net.eval()(x)
    assert found.shape == (2, 1000)
    # the same operations in the same order: equal, but for what a library may reorder
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert (expected[0] - expected[1]).norm() > 0.01 * expected.norm(), "the image must reach the output"


def test_small_images_keep_their_size_in_the_stem():
    net = models.resnet18(classes=10, channels=8, small_images=True).eval()
    seen = {}
    for name in ("relu", "layer1", "layer4"):
        net.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, name=name: seen.__setitem__(name, tuple(out.shape[1:]))
        )
    assert net(tensors(1, 32)).shape == (1, 10)
    assert seen == {"relu": (8, 32, 32), "layer1": (8, 32, 32), "layer4": (64, 4, 4)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_activation_is_a_module_of_its_own(name):
    net, called = getattr(models, name)(classes=10).eval(), []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: called.append(module))
    net(tensors(1, 32))
    assert len(called) == len(set(called))


@pytest.mark.parametrize("size", [32, 64])
def test_padding_after_the_image_is_keras_padding_in_float_and_in_integers(size):
    net = seeded(lambda: models.mobilenet_v2(classes=10))
    reference, keras = copy.deepcopy(net), copy.deepcopy(net)
    strided = [m for m in reference.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for module in strided:
        module.padding = (0, 0)
        module.register_forward_pre_hook(lambda m, x: functional.pad(x[0], (0, 1, 0, 1)))
    models.pad_after(keras)
    assert len(strided) == 5
    with torch.no_grad():
        x = tensors(2, size)
        expected, found, symmetric = reference(x), keras(x), net(x)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (symmetric - expected).norm() > 0.1 * expected.norm()
    program = lower(convert(keras, images(2, size), MEAN, STD, (8,), controller=False))
    assert sum(op.weight.shape[1] == 4 for op in program.ops if isinstance(op, Conv)) == 5
    assert all((op.weight[:, 0] == 0).all() for op in program.ops if isinstance(op, Conv) and op.stride == 2)
