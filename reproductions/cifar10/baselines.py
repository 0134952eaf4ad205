"""What a reader would otherwise choose: DoReFa-Net, PACT and Any-Precision, simulated in float32.

DoReFa-Net: arXiv 1606.06160. PACT: arXiv 1805.06085. Any-Precision: arXiv 1911.07346 and its published code.
Their weights lie on 2**b levels around zero, without a zero among them, scaled by a layer's largest weight.
They have no form as nested codes, and are evaluated as they are trained, in float32.

What is the same for all, and as in this package's networks: the first and last layers at 8 bits, every other
convolution with weights and input at one width. What differs from the papers: convolutions round their own
input, so that shortcuts stay unrounded (here they carry 8-bit codes), which helps the baselines; a PACT clip
starts where it rounds the data best instead of at 10, because training is short.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.nested import MASTER_WIDTH
from dqt_core.training import straight_through


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
    """Clip to 0..limit and round to 2**bits levels: PACT, Eqs. 1-3, and DoReFa-Net's with the limit 1.

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


class QuantLayer(nn.Module):
    """A convolution or linear layer that rounds its weights and its input."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, current: Current | None, rounds_input: str) -> None:
        super().__init__()
        self.layer, self.current, self.rounds_input = layer, current, rounds_input
        self.alpha = nn.Parameter(torch.ones(())) if rounds_input == "pact" else None
        self.is_calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        bits = MASTER_WIDTH if self.current is None else self.current.width
        if self.is_calibrating and self.alpha is not None:
            log_step = straight_through.initial_log_step(x.relu(), 0, 2**bits - 1, (MASTER_WIDTH,))
            self.alpha.data = log_step.exp() * (2**bits - 1)
        weight = self.layer.weight
        weight = channel_weight(weight) if self.current is None else dorefa_weight(weight, bits)
        return self._product(self._input(x, bits), weight)

    def _input(self, x: Tensor, bits: int) -> Tensor:
        if self.rounds_input == "no":
            return x
        return clip_and_round(x, x.new_ones(()).float() if self.alpha is None else self.alpha, bits)

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
        return self.norms[self.current.widths.index(self.current.width)](x)


class BaselineNet(nn.Module):
    """A float ResNet whose layers round as one of the methods does."""

    def __init__(self, net: nn.Module, method: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.net, self.current = copy.deepcopy(net), Current(tuple(widths))
        layers = [n for n, m in self.net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        rounds_input = "pact" if method == "pact" else "clip"
        for name, module in list(self.net.named_modules()):
            if name in layers:
                is_switched = name not in (layers[0], layers[-1])
                current = self.current if is_switched else None
                self._replace(name, QuantLayer(module, current, "no" if name == layers[0] else rounds_input))
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
        """Take the PACT clips from what passes through the network."""
        layers = [module for module in self.modules() if isinstance(module, QuantLayer)]
        for layer in layers:
            layer.is_calibrating = True
        self.train()(x)  # the float network's statistics are not those of the scaled weights
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
        alphas = [parameter for name, parameter in net.named_parameters() if name.endswith("alpha")]
        total = total + 0.5 * self.decay * sum(alpha**2 for alpha in alphas)
        return total, {"loss": round(total.item(), 4)}
