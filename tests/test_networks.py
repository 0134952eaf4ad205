"""Networks as courses and papers write them: each converts, is close at 8 bits, and runs alike everywhere."""

import functools
import itertools
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dqt_book import networks
from dqt_core import convert, lower, quantize, results
from dqt_core.training.conversion import comparison
from reproductions.cifar10 import resnet20
from reproductions.exports import record as exports

WIDTHS, IMAGES = (3, 8), 2
EMULATED = 4_000_000  # products of an image up to which the emulator takes seconds
NEEDS = {"node": "node", "c": "gcc"}
# Of a hundred layers: a compiler and ONNX Runtime take seconds to read them, `make slow` lets them
DEEP = ("DenseNet-121", "ResNet-101", "ResNet-110", "Inception", "EfficientNet-B0", "ShuffleNet")
WAYS = ("torch", "numba", "emulator", "node", "c", "onnx")


def is_slow(name, way):
    return way in ("c", "onnx") and name.startswith(DEEP)


@functools.cache
def converted(name):
    """A network with random weights, converted; its program, and images."""
    network = networks.NETWORKS[name]
    images = np.random.default_rng(0).integers(0, 256, (8, *network.image), np.uint8)
    mean, std = (0.5,) * network.image[2], (0.25,) * network.image[2]
    nested = convert(networks.seeded(network.make), images, mean, std, widths=WIDTHS)
    return nested, lower(nested), images[:IMAGES]


@functools.cache
def by_numpy(name):
    _, program, images = converted(name)
    return program.run(images, exports.mixed(program, IMAGES), "numpy").logits


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_it_converts_and_8_bits_are_close(name):
    nested, program, _ = converted(name)
    assert nested.differences[comparison.OUTPUT] < networks.BOUND
    assert len(program.layers) == len(nested.switch_layers)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(*case, marks=pytest.mark.slow if is_slow(*case) else ())
        for case in itertools.product(networks.NETWORKS, WAYS)
    ],
)
def test_every_way_gives_the_same_bits(name, way, tmp_path):
    nested, program, images = converted(name)
    if way in NEEDS and shutil.which(NEEDS[way]) is None:
        pytest.skip(f"{NEEDS[way]} is not installed")
    layers = nested.switch_layers + nested.fixed_layers
    if way == "emulator" and sum(layer.macs for layer in layers) > EMULATED:
        pytest.skip("the emulator would take a minute")
    widths = exports.mixed(program, IMAGES)
    runs = {
        "node": lambda: exports.by_node(program)(images, widths)[0],
        "c": lambda: exports.by_c(program, tmp_path)(images, widths),
        "onnx": lambda: exports.by_onnx(program, tmp_path)(images, widths),
    }
    logits = runs.get(way, lambda: exports.by_package(program, way)(images, widths))()
    np.testing.assert_array_equal(logits, by_numpy(name))


def test_resnet_20_without_training():
    """Published weights, all test images: 8 bits within 0.2 points of float, 6 within 0.4."""
    record = results.read(networks.RESNET20)
    right = {row["widths"]: row["correct"] for row in record["rows"]}
    assert {row["images"] for row in record["rows"]} == {10_000}
    assert right["float"] == resnet20.PUBLISHED == record["published"]
    assert abs(right["8"] - right["float"]) <= 20
    assert abs(right["6"] - right["float"]) <= 40
    assert len(networks.without_training().rows) == len(right) == 1 + len(resnet20.WIDTHS)


class Viewed(nn.Module):
    """A course's network whose `view` torch takes of maps in order alone, which ends in log_softmax."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 5), nn.Linear(4 * 6 * 6, 10)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return functional.log_softmax(self.fc(x.view(-1, 4 * 6 * 6)), dim=1)


@pytest.mark.parametrize("make", [Viewed, networks.mlp, networks.regression])
def test_a_course_quantizes_in_one_call(make):
    size = 16 if make is Viewed else 28
    images = np.random.default_rng(0).integers(0, 256, (12, size, size, 1), np.uint8)
    options = {"widths": (4, 8), "rules": ("error",), "progress": False}
    program, report = quantize(networks.seeded(make), images, (0.5,), (0.25,), **options)
    assert len(report.layers) == len(program.layers)
    for widths in (4, [4] * len(program.layers)):
        assert program.run(images, widths).widths.shape == (12, len(program.layers))


def test_thinned_networks_keep_their_structure():
    thin = networks.NETWORKS["ResNeXt-50 32x4d"].make()
    groups = {module.groups for module in thin.modules() if isinstance(module, nn.Conv2d)}
    assert groups == {1, 16, 32}
    assert [module.out_features for module in thin.modules() if isinstance(module, nn.Linear)] == [7]
