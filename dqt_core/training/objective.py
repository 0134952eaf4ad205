"""The three-term loss: the task at the controller's widths, consistency at fixed widths, and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.training.layers import Choice, Shared
from dqt_core.training.network import NestedNet


@dataclass
class Objective:
    """``J = J_task + alpha * J_consistency + beta * J_cost``.

    Attributes
    ----------
    alpha : float
        Weight of the consistency term, the sum of the task losses of the whole network at each width.
    beta : float
        Weight of the cost term.
    consistency_widths : tuple of int or pairs, optional
        None: all of the network's.
    sampled_widths : int, optional
        Passes of the consistency term in a step: the narrowest, the widest, and others drawn anew [ours; the
        sandwich rule of universally slimmable networks, arXiv 1903.05134]. None: one for every width.
    mixed_paths : int
        Further passes of the consistency term in a step, each with every layer at a width drawn anew, so that
        no mixture stays untrained [ours; RFQuant, CVPR 2024].
    target_bitops : float, optional
        None: J_cost is the mean expected BitOPs over those of the widest choice [paper]. A number: J_cost is
        ``max(0, expected BitOPs / target - 1)``, so that "4-bit" can be asked for [ours].
    target_rates : tuple of floats, optional
        For every choice, 0..1: what part of the images is to get it, in each layer. J_cost is then the mean
        over layers of the squared distance of the batch's mean probabilities from it [ours; convnet-aig,
        arXiv 1711.11503]. One and the same decision for all images cannot meet a rate between 0 and 1.
    controller_from : float
        Fraction of the training after which the controller's pass joins; before, only consistency is trained.
    temperature : tuple of two floats
        Of the Gumbel-softmax, first and last.
    controller_share : float
        Part of the batch, 0..1, that the controller's pass takes: that pass computes every layer at every
        width. Less than 1 makes the gradients of J_task and J_cost as noisy as a smaller batch would [ours].
    teacher : Module, optional
        A float network with the same input and classes, for distillation [ours].
    distillation : float
        Part of every task loss, 0..1, that is the divergence from the teacher's probabilities at temperature
        1; the rest is the cross-entropy of the labels. LSQ (arXiv 1902.08153) takes a half.

    Notes
    -----
    DQT, Eq. 11. With alpha = 0 the 2-bit configuration is unstable [paper, App. F].

    The controller's pass does not update the switchable layers' running statistics, because its inputs come
    from layers of other widths. With alpha = 0, or for a width that `consistency_widths` leaves out,
    `train.recalibrate` must follow the training.

    Examples
    --------
    >>> objective = Objective(alpha=1.0, beta=0.2, target_bitops=1e8)
    >>> objective.distillation, objective.temperature
    (0.0, (2.0, 0.5))
    >>> Objective(sampled_widths=1)
    Traceback (most recent call last):
    ValueError: sampled_widths=1, expected 2 or more: the narrowest and the widest always take part
    """

    alpha: float = 1.0
    beta: float = 0.0
    consistency_widths: tuple[int | Choice, ...] | None = None
    sampled_widths: int | None = None
    mixed_paths: int = 0
    target_bitops: float | None = None
    target_rates: tuple[float, ...] | None = None
    controller_from: float = 0.0
    temperature: tuple[float, float] = (2.0, 0.5)
    controller_share: float = 1.0
    teacher: nn.Module | None = field(default=None, repr=False)
    distillation: float = 0.0

    def __post_init__(self) -> None:
        if (self.teacher is None) != (self.distillation == 0) or not 0 <= self.distillation <= 1:
            has = "no teacher" if self.teacher is None else "a teacher"
            raise ValueError(
                f"distillation={self.distillation} with {has}, expected 0 without one, more than 0 and at "
                "most 1 with one"
            )
        if self.sampled_widths is not None and self.sampled_widths < 2:
            raise ValueError(
                f"sampled_widths={self.sampled_widths}, expected 2 or more: the narrowest and the widest "
                "always take part"
            )
        if self.target_rates is not None and self.target_bitops is not None:
            raise ValueError("target_bitops and target_rates are both given; choose what J_cost is to be")
        if not 0 < self.controller_share <= 1:
            raise ValueError(f"controller_share={self.controller_share}, expected more than 0, at most 1")

    def __call__(
        self, net: NestedNet, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch.

        Parameters
        ----------
        net : NestedNet
        images : float32 tensor, (N, C, H, W)
        labels : int64 tensor, (N,)
        progress : float
            0..1, of the training.

        Returns
        -------
        loss : tensor, ()
        figures : dict of floats
            The terms, for the log.
        """
        if not hasattr(net, "switch_layers"):
            raise ValueError(f"the network is a {type(net).__name__}, expected what convert returns")
        widths = self._widths(net)
        layers = len(net.switch_layers)
        soft = self._soft_labels(images)
        shared: Shared = {}
        terms = {}
        if self.alpha:
            mixed = [self._mixed(net) for _ in range(self.mixed_paths)]
            paths = [*([width] * layers for width in widths), *mixed]
            losses = [self._task(net(images, path, shared), labels, soft) for path in paths]
            terms["consistency"] = torch.stack(losses).sum()
        if net.controller is not None and progress >= self.controller_from:
            net.controller.temperature = self._temperature(progress)
            part = slice(math.ceil(self.controller_share * len(images)))
            own = None if soft is None else soft[part]
            logits, selection = net.run(images[part], "controller", shared)
            assert selection.probabilities is not None, "the controller fills them in its pass"
            terms["task"] = self._task(logits, labels[part], own)
            terms["cost"] = self._cost(net, selection.probabilities)
        if not terms:
            raise ValueError(
                "there is no loss: alpha is 0 and no controller's pass joins; "
                "set alpha, or controller_from=0 on a network with a controller"
            )
        weights = {"consistency": self.alpha, "task": 1.0, "cost": self.beta}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return loss, {name: round(term.item(), 4) for name, term in terms.items()}

    def _widths(self, net: NestedNet) -> Sequence[int | Choice]:
        """Those of this step's consistency term, the sampled ones from torch's generator."""
        widths = net.choices if self.consistency_widths is None else self.consistency_widths
        if self.sampled_widths is None or self.sampled_widths >= len(widths):
            return widths
        drawn = torch.randperm(len(widths) - 2)[: self.sampled_widths - 2] + 1
        return [widths[0], *(widths[k] for k in sorted(drawn.tolist())), widths[-1]]

    def _mixed(self, net: NestedNet) -> list[Choice]:
        """A width for every layer, from torch's generator."""
        drawn = torch.randint(len(net.choices), (len(net.switch_layers),))
        return [net.choices[k] for k in drawn.tolist()]

    def _soft_labels(self, images: Tensor) -> Tensor | None:
        """The teacher's log probabilities."""
        if self.teacher is None:
            return None
        teacher = self.teacher.to(images.device).eval()
        with torch.no_grad():
            return teacher(images).float().log_softmax(1)

    def _task(self, logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
        hard = functional.cross_entropy(logits.float(), labels)
        if soft is None:
            return hard
        own = logits.float().log_softmax(1)
        far = functional.kl_div(own, soft, reduction="batchmean", log_target=True)
        return (1 - self.distillation) * hard + self.distillation * far

    def _temperature(self, progress: float) -> float:
        first, last = self.temperature
        return first * (last / first) ** progress

    def _cost(self, net: NestedNet, probabilities: Tensor) -> Tensor:
        if self.target_rates is not None:
            if len(self.target_rates) != len(net.choices):
                raise ValueError(
                    f"got {len(self.target_rates)} target_rates for {len(net.choices)} choices {net.choices}"
                )
            wanted = torch.tensor(self.target_rates, device=probabilities.device)
            return ((probabilities.mean(0) - wanted) ** 2).sum(-1).mean()
        expected = net.bitops(probabilities).mean()
        if self.target_bitops is not None:
            return functional.relu(expected / self.target_bitops - 1)
        widest = torch.zeros_like(probabilities[:1])
        widest[..., -1] = 1
        return expected / net.bitops(widest).mean()
