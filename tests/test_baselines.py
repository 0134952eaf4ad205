"""The baselines do as their papers say, from a fair start."""

import functools

import numpy as np
import pytest
import torch
from small_nets import CourseNet, seeded, tensors
from torch import nn

from dqt_core import models
from reproductions.cifar10 import baselines


def test_dorefa_weights_are_those_of_equation_9():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4):
        found = baselines.dorefa_weight(weight, bits).double().numpy()
        squashed = np.tanh(weight.double().numpy())
        steps = 2**bits - 1
        expected = 2 * np.round((squashed / (2 * np.abs(squashed).max()) + 0.5) * steps) / steps - 1
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert len(np.unique(found.round(5))) <= 2**bits


def test_pact_clips_rounds_and_learns_its_clip():
    x = torch.tensor([-1.0, 0.2, 0.74, 1.5, 9.0], requires_grad=True)
    alpha = torch.tensor(1.5, requires_grad=True)
    y = baselines.clip_and_round(x, alpha, 2)
    assert y.tolist() == pytest.approx([0, 0, 0.5, 1.5, 1.5])
    (y * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).sum().backward()
    assert x.grad.tolist() == [0, 2, 4, 0, 0]
    assert alpha.grad.item() == 8 + 16


def test_a_baseline_rounds_all_but_the_first_input():
    net = baselines.BaselineNet(models.resnet18(10, 8, small_images=True), "pact", (2,))
    layers = [m for m in net.modules() if isinstance(m, baselines.QuantLayer)]
    switched = [layer for layer in layers if layer.current is not None]
    assert (len(layers), len(switched)) == (21, 19)
    assert [layer.clips is None for layer in layers] == [True] + [False] * 20
    net.calibrate(tensors(4, 32))
    assert all(layer.clips.item() != 1 for layer in layers[1:])
    seen = {}
    for i, layer in enumerate(switched):
        layer._product = functools.partial(_keep, seen, i, layer._product)
    net.eval()(tensors(2, 32))
    for x, weight in seen.values():
        assert len(x.unique()) <= 4
        assert len(weight.unique()) <= 4


def _keep(seen, i, product, x, weight):
    seen[i] = x, weight
    return product(x, weight)


def test_a_switchable_baseline_has_a_norm_for_every_width():
    net = baselines.BaselineNet(seeded(CourseNet), "any-precision", (2, 8)).eval()
    narrow, wide = net(tensors(), 2), net(tensors(), 8)
    assert not torch.equal(narrow, wide)
    for norm in (m for m in net.modules() if isinstance(m, baselines.SwitchNorm)):
        norm.norms[0].weight.data.zero_()
    assert torch.equal(net(tensors(), 8), wide)
    assert not torch.equal(net(tensors(), 2), narrow)


@pytest.mark.parametrize(("method", "learns"), [("pact", True), ("dorefa", False), ("any-precision", False)])
def test_clips_start_where_they_round_best_at_each_width_and_pact_learns_them(method, learns):
    net = baselines.BaselineNet(seeded(CourseNet), method, (2, 8))
    net.calibrate(tensors(8))
    layer = next(
        m for m in net.modules() if isinstance(m, baselines.QuantLayer) and m.current and m.clips is not None
    )
    narrow, wide = layer.clips.tolist()
    assert 0 < narrow < wide, "few levels are worth a tighter clip"
    loss, _ = baselines.BaselineLoss(method)(net, tensors(), torch.tensor([0, 1, 2, 3]), 0.0)
    loss.backward()
    assert (layer.clips.grad is not None) == learns


def test_narrow_widths_learn_from_the_next_wider():
    net = baselines.BaselineNet(seeded(CourseNet), "any-precision", (2, 8))
    labels = torch.tensor([0, 1, 2, 3])
    loss, _ = baselines.BaselineLoss("any-precision")(net, tensors(), labels, 0.0)
    wide, narrow = net(tensors(), 8), net(tensors(), 2)
    cross_entropy = nn.functional.cross_entropy
    expected = cross_entropy(wide, labels) + cross_entropy(narrow, wide.detach().softmax(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
