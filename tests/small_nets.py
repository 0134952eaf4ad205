"""Small networks and data for the tests of training; one thread, so that sums are added in one order."""

import dataclasses
import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dqt_core import convert, data
from dqt_core.training.objective import Objective

torch.set_num_threads(1)

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
WIDTHS = (2, 4, 8)


def images(count=4, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def tensors(count=4, size=16, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class CourseNet(nn.Module):
    """As a student writes it: functional ReLUs, an addition, one pool called twice, torch.flatten."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 10)  # registered before the layers that are called before it
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(x))
        x = self.pool(functional.relu(x + y))
        x = torch.relu(self.conv3(x))
        return self.fc(torch.flatten(x.mean((2, 3), keepdim=True), 1))


class Base(nn.Module):
    """Parts of which `model` makes small networks with one peculiarity each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)

    def tail(self, x):
        return self.fc(self.mean(x).flatten(1))

    def head(self, x):
        return self.relu(self.b(self.relu(self.a(x))))


def model(forward, **modules):
    def make():
        net = type("Model", (Base,), {"forward": forward})()
        for name, module in modules.items():
            net.add_module(name, module)
        return net

    return make


def seeded(make, seed=0):
    """A network whose batch norms have statistics of their own, and in which the image reaches the output."""
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def nested_net(seed=0, **options):
    """`CourseNet` converted: two switchable layers."""
    options = {"widths": WIDTHS} | options
    return convert(seeded(CourseNet, seed), images(), MEAN, STD, **options)


@functools.cache
def digits():
    """The digits, normalized as `nested_net` reads its images."""
    return dataclasses.replace(data.load("embedded"), mean=MEAN, std=STD)


def same_loss(objective):
    """A class of tests as `Objective` itself, for all that a checkpoint sees of it."""
    objective.__module__, objective.__qualname__ = Objective.__module__, Objective.__qualname__
    return objective


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
