"""A controller that decides once for an image: which of a few allocations of widths it gets.

The weights are finished before; the decision alone is trained, on what its allocations say of each image. These
answers are labels that cost no annotation: the cheapest allocation that is right (DS-Net, arXiv 2103.13258), the
loss at each, or whether the cheap one's margin is small, which is a cascade's question.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.training.network import NestedNet

Allocation = tuple[int, ...]
Target = Literal["right", "losses", "margin"]
NEVER = 100.0  # below what is scored, in units of the controller's logits


@dataclass(frozen=True)
class Scores:
    """Where a controller's logits say what it thinks of each allocation.

    All layers follow one of them, the speaker, in which every allocation has a width of its own. A layer whose
    widths do not tell the allocations apart stays at that of the middle one in all of them.
    """

    allocations: tuple[Allocation, ...]  # from cheap to dear
    speaker: int

    @classmethod
    def of(cls, allocations: Sequence[Sequence[int]]) -> "Scores":
        """With the layers fixed that cannot follow."""
        columns = list(zip(*allocations, strict=True))
        middle = len(allocations) // 2
        follows = [len(set(column)) == len(column) for column in columns]
        if not any(follows):
            raise ValueError(
                f"allocations {list(allocations)} have no layer with a width of its own in each; give "
                "allocations that differ in some layer throughout"
            )
        columns = [
            column if own else (column[middle],) * len(column)
            for column, own in zip(columns, follows, strict=True)
        ]
        return cls(tuple(zip(*columns, strict=True)), follows.index(True))

    def rows(self, net: NestedNet, layer: int) -> list[int]:
        """The rows of the controller's last layer that say how good each allocation is for a layer."""
        assert net.controller is not None
        widths = [allocation[layer] for allocation in self.allocations]
        first = (layer - len(net.controller.before)) * len(net.choices)
        return [first + net.index_of(width) for width in widths]

    def __call__(self, net: NestedNet, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The controller's scores (N, D), and the logits of each allocation, which no gradient reaches."""
        controller = net.controller
        assert controller is not None
        with torch.no_grad(), inputs_of(controller) as given:
            outputs = [net(images, list(allocation)).float() for allocation in self.allocations]
        logits = controller.logits(*given[0]).float().flatten(1)
        return logits[:, self.rows(net, self.speaker)], outputs

    @torch.no_grad()
    def settle(self, net: NestedNet, prices: Tensor) -> None:
        """Let every layer follow the speaker, each allocation's score lowered by its price (D,)."""
        controller = net.controller
        assert controller is not None
        last, choices = controller.fc2, len(net.choices)
        spoken = self.rows(net, self.speaker)
        weight, step = last.weight[spoken].clone(), last.log_step[spoken].clone()
        bias = last.bias[spoken] - prices.to(last.bias)
        first = len(controller.before)  # a later controller has no rows for the layers in front of it
        for layer in range(first, len(net.switch_layers)):
            every = slice((layer - first) * choices, (layer - first + 1) * choices)
            last.weight[every], last.log_step[every] = weight[0], step[0]
            last.bias[every] = bias[0] - NEVER
            rows = self.rows(net, layer)
            if len(set(rows)) == 1:  # the same in all allocations
                last.bias[rows[0]] = bias[0]
            else:
                last.weight[rows], last.log_step[rows], last.bias[rows] = weight, step, bias


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Within, what a module is given, call by call."""
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given))
    try:
        yield seen
    finally:
        handle.remove()


@dataclass
class Decision:
    """The loss of a controller that decides among allocations; the network's weights are to be frozen.

    Attributes
    ----------
    allocations : tuple of allocations
        From cheap to dear.
    target : {"right", "losses", "margin"}
        What it learns of an image: the cheapest allocation that is right (the dearest where none is), by
        cross-entropy; the loss at each allocation, by least squares, for the cheapest weighed sum of loss and
        cost; or which images have the smallest margins at the cheapest of two allocations.
    share : float
        Of "margin": the part of a batch, 0..1, whose margins are small.
    """

    allocations: tuple[Allocation, ...]
    target: Target
    share: float = 0.0

    @property
    def scores(self) -> Scores:
        """Where the controller says what it thinks of each."""
        return Scores.of(self.allocations)

    def __call__(
        self, net: NestedNet, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and for the log how often the decision is the target's."""
        net.eval()  # the statistics are finished too
        scores, outputs = self.scores(net, images)
        if self.target == "losses":
            losses = torch.stack([functional.cross_entropy(o, labels, reduction="none") for o in outputs], 1)
            # what an allocation is worth beside the others; a score may say the same of all
            worth = (losses.mean(1, keepdim=True) - losses).clamp(-3, 3)
            loss = functional.mse_loss(scores - scores.mean(1, keepdim=True), worth)
            wanted = worth.argmax(1)
        else:
            wanted = self._right(outputs, labels) if self.target == "right" else self._doubtful(outputs[0])
            loss = functional.cross_entropy(scores, wanted)
        agrees = (scores.argmax(1) == wanted).float().mean()
        return loss, {"loss": round(loss.item(), 4), "agrees": round(agrees.item(), 4)}

    def _right(self, outputs: list[Tensor], labels: Tensor) -> Tensor:
        right = torch.stack([output.argmax(1) == labels for output in outputs], 1)
        right[:, -1] = True
        return right.int().argmax(1)  # the first that is right

    def _doubtful(self, narrow: Tensor) -> Tensor:
        first, second = narrow.topk(2, 1).values.unbind(1)
        margins = first - second
        return (margins <= margins.quantile(self.share)).long()


@torch.no_grad()
def prices_for(
    scores: Scores, net: NestedNet, batches: Sequence[Tensor], costs: Tensor, budget: float
) -> Tensor:
    """What each allocation's score is lowered by, (D,), so that the decisions cost the budget: a multiple of its
    cost, found by bisection on training images."""
    seen = torch.cat([scores(net.eval(), x)[0] for x in batches])
    relative = costs / costs.max()
    low, high = -64.0, 64.0
    for _ in range(20):  # finer, it would end on the brink of one image's decision, where rounding decides
        middle = (low + high) / 2
        spent = costs[(seen - middle * relative).argmax(1)].mean().item()
        low, high = (middle, high) if spent > budget else (low, middle)
    return high * relative


def train_only_the_controller(net: NestedNet) -> None:
    """Every other parameter stays as it is."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(".controller." in f".{name}")
