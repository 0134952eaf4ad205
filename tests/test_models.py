"""The float models are torchvision's: names, numbers and outputs."""

import pytest
import torch
from small_nets import seeded, tensors

from dqt_core import models
from dqt_core._torchvision import import_torchvision

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
