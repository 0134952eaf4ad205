"""What a reader would otherwise choose: DoReFa-Net, PACT and Any-Precision, simulated in float32.

DoReFa-Net: arXiv 1606.06160. PACT: arXiv 1805.06085. Any-Precision: arXiv 1911.07346 and its published code.
Their weights lie on 2**b levels around zero, without a zero among them, scaled by a layer's largest weight.
They have no form as nested codes, and are evaluated as they are trained, in float32.

What is the same for all, and as in this package's networks: the first and last layers at 8 bits, every other
convolution with weights and input at one width. What differs from the papers, each to the baselines' good:
convolutions round their own input, so that shortcuts stay unrounded (here they carry 8-bit codes); activations
are clipped where that rounds a sample best, at each width. There PACT's clips, which it learns, start instead of
at 10, and there those of DoReFa-Net and Any-Precision stay instead of at 1. A constant clip of 1 suits a network
that was trained with it from the first step; on the activations of a trained float network it cuts off most of
what they say, and the row would show that start, not the method.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.nested import MASTER_WIDTH
from dqt_core.training import steps


def round_to_levels(x: Tensor, bits: int) -> Tensor:
    """0..1 to the nearest of 2**bits levels; the gradient passes straight through."""
    steps = 2**bits - 1
    return x + ((x * steps).round() / steps - x).detach()


def dorefa_weight(weight: Tensor, bits: int) -> Tensor:
    """DoReFa-Net, Eq. 9: tanh, normalised by the layer's largest, on 2**bits levels in -1..1."""
    squashed = weight.tanh()
    return 2 * round_to_levels(squashed / (2 * squashed.abs().max()) + 0.5, bits) - 1


def channel_weight(weight: Tensor) -> Tensor:
    """Symmetric 8-bit weights with one step per output channel, for the first and last layers."""
    largest = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-8)
    step = largest.reshape([-1] + [1] * (weight.ndim - 1)) / 127
    return weight + ((weight / step).round() * step - weight).detach()


class _ClipAndRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor, bits: int) -> Tensor:
        steps = 2**bits - 1
        ctx.save_for_backward(x, limit)
        return torch.minimum(x.relu(), limit).mul_(steps / limit).round_().mul_(limit / steps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, limit = ctx.saved_tensors
        grad_limit = (grad * (x >= limit)).sum() if ctx.needs_input_grad[1] else None
        return torch.ops.aten.hardtanh_backward(grad, x, 0, limit.item()), grad_limit, None


def clip_and_round(x: Tensor, limit: Tensor, bits: int) -> Tensor:
    """Clip to 0..limit and round to 2**bits levels: PACT, Eqs. 1-3; with a constant limit DoReFa-Net's.

    The gradient passes where x is not clipped; the limit's is 1 where x reaches it, else 0.
    """
    return _ClipAndRound.apply(x.float(), limit, bits)


@dataclass
class Current:
    """The width of the running pass, shared by a network's layers."""

    widths: tuple[int, ...]
    width: int = field(init=False)

    def __post_init__(self) -> None:
        self.width = self.widths[-1]

    @property
    def index(self) -> int:
        """Of the width, among all."""
        return self.widths.index(self.width)


class QuantLayer(nn.Module):
    """A convolution or linear layer that rounds its weights and its input.

    Without a `method` its input stays as it is. The clips of PACT are parameters, those of the others are not.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, current: Current | None, method: str | None) -> None:
        super().__init__()
        self.layer, self.current, self.is_calibrating = layer, current, False
        self.clips: Tensor | None = None
        if method is not None:
            ones = torch.ones(1 if current is None else len(current.widths))
            self.clips = nn.Parameter(ones, requires_grad=method == "pact")

    def forward(self, x: Tensor) -> Tensor:
        bits, k = (MASTER_WIDTH, 0) if self.current is None else (self.current.width, self.current.index)
        if self.clips is not None:
            if self.is_calibrating:
                step = steps.initial_log_step(x.relu(), 0, 2**bits - 1, (MASTER_WIDTH,)).exp()
                self.clips.data[k] = step * (2**bits - 1)
            x = clip_and_round(x, self.clips[k], bits)
        weight = self.layer.weight
        weight = channel_weight(weight) if self.current is None else dorefa_weight(weight, bits)
        return self._product(x, weight)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, layer.bias)
        return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)


class SwitchNorm(nn.Module):
    """A batch norm for every width."""

    def __init__(self, norm: nn.BatchNorm2d, current: Current) -> None:
        super().__init__()
        self.current = current
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in current.widths)

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.current.index](x)


class BaselineNet(nn.Module):
    """A float ResNet whose layers round as one of the methods does."""

    def __init__(self, net: nn.Module, method: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.net, self.current = copy.deepcopy(net), Current(tuple(widths))
        layers = [n for n, m in self.net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for name, module in list(self.net.named_modules()):
            if name in layers:
                is_switched = name not in (layers[0], layers[-1])
                current = self.current if is_switched else None
                self._replace(name, QuantLayer(module, current, None if name == layers[0] else method))
            elif isinstance(module, nn.BatchNorm2d):
                self._replace(name, SwitchNorm(module, self.current))

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.net.get_submodule(parent), leaf, module)

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        if width is not None:
            self.current.width = width
        return self.net(x)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Take the clips from what passes through the network at each width, the widest last."""
        layers = [module for module in self.modules() if isinstance(module, QuantLayer)]
        for layer in layers:
            layer.is_calibrating = True
        self.train()  # the float network's statistics are not those of the scaled weights
        for width in sorted(self.current.widths):
            self(x, width)
        for layer in layers:
            layer.is_calibrating = False


@dataclass
class BaselineLoss:
    """Cross-entropy; PACT's clips decay as weights do.

    With several widths, as Any-Precision trains: the widest learns the labels, and every narrower width the
    softmax of the next wider one.
    """

    method: str
    decay: float = 5e-4

    def __call__(
        self, net: BaselineNet, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        target, total = None, torch.zeros((), device=images.device)
        for width in sorted(net.current.widths, reverse=True):
            logits = net(images, width).float()
            total = total + functional.cross_entropy(logits, labels if target is None else target)
            target = logits.detach().softmax(1)
        if self.method == "pact":
            clips = [module.clips for module in net.modules() if isinstance(module, QuantLayer)]
            total = total + 0.5 * self.decay * sum((clip**2).sum() for clip in clips if clip is not None)
        return total, {"loss": round(total.item(), 4)}
