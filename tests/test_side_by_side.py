"""Small images in one row: the same convolution, by value, gradient and layout."""

import pytest
import torch
from torch.nn import functional

from reproductions.cifar10 import side_by_side


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def whole(*shape):
    """Integers, whose sums are exact in any order."""
    return torch.randint(-9, 10, shape).double()


def pair(kernel):
    return kernel if isinstance(kernel, tuple) else (kernel, kernel)


def convolved(x, weight, bias, stride):
    """The convolution and the gradients of everything it takes."""
    y = functional.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)
    return y, *torch.autograd.grad(y, (x, weight, bias), torch.arange(y.numel()).reshape(y.shape) % 7 - 3.0)


@pytest.fixture
def rows(monkeypatch):
    """How wide the images are that reach a plain convolution; a test's own call comes first."""
    rows, plain = [], functional.conv2d

    def noted(x, *more, **named):
        rows.append(x.shape[-1])
        return plain(x, *more, **named)

    monkeypatch.setattr(functional, "conv2d", noted)
    return rows


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [1, 2, 4, 7, 8])
def test_values_and_gradients_are_those_of_the_plain_convolution(rows, size, kernel, stride):
    x = whole(32, 3, size, size).to(memory_format=torch.channels_last)
    tensors = [t.requires_grad_() for t in (x, whole(5, 3, kernel, kernel), whole(5))]
    expected = convolved(*tensors, stride)
    with side_by_side.SideBySide():
        found = convolved(*tensors, stride)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].stride() == expected[0].stride() or found[0].shape[-1] == 1
    assert rows[-1] >= side_by_side.IMAGES * size


@pytest.mark.parametrize(
    ("count", "size", "kernel", "options"),
    [
        (15, 4, 3, {"padding": 1}),  # no whole rows
        (16, 9, 3, {"padding": 1}),  # wide enough
        (16, 4, 1, {}),
        (16, 4, (5, 3), {"padding": 1}),
        (16, 4, (3, 1), {"padding": 1}),
        (16, 4, 3, {}),  # no margin: neighbours would be seen
        (16, 4, 3, {"padding": 1, "groups": 2}),
        (16, 5, 3, {"padding": 1, "dilation": 2}),
        (16, 4, 3, {"padding": (1, 0)}),
        (16, 4, 3, {"padding": 1, "stride": (1, 2)}),
        (16, 4, 3, {"padding": "same"}),
    ],
)
def test_anything_else_is_left_alone(rows, count, size, kernel, options):
    x, weight = whole(count, 4, size, size), whole(6, 4 // options.get("groups", 1), *pair(kernel))
    expected = functional.conv2d(x, weight, **options)
    with side_by_side.SideBySide():
        assert torch.equal(functional.conv2d(x, weight, **options), expected)
    assert set(rows) == {size}


def test_autocast_reaches_the_convolution():
    x, weight = whole(16, 3, 4, 4).float(), whole(4, 3, 3, 3).float()
    with torch.autocast("cpu", torch.bfloat16), side_by_side.SideBySide():
        y = functional.conv2d(x, weight, padding=1)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.float(), functional.conv2d(x, weight, padding=1).bfloat16().float())
