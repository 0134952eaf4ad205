"""What a training run is, apart from the network and the data: its recipe, optimizers and rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[nn.Module, Tensor, Tensor, float], tuple[Tensor, dict[str, float]]]


@dataclass
class CrossEntropy:
    """The loss of an ordinary float network; see `objective.Objective` for nested codes.

    Attributes
    ----------
    smoothing : float
        Part of every label, 0..1, that is spread evenly over all classes.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> CrossEntropy()(lambda images: logits, torch.zeros(1), torch.tensor([0]), 0.0)[0]
    tensor(0.1269)
    """

    smoothing: float = 0.0

    def __call__(
        self, net: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The mean over a batch, and the same for the log."""
        loss = functional.cross_entropy(net(images).float(), labels, label_smoothing=self.smoothing)
        return loss, {"loss": loss.item()}


def optimizers(
    net: nn.Module, lr: float, weight_decay: float = 5e-4, bias_rate: float = 1.0
) -> list[torch.optim.Optimizer]:
    """SGD with Nesterov momentum for weights, Adam for log steps and the controller.

    Parameters
    ----------
    net : Module
        Parameters named ``log_step`` and the controller's go to Adam.
    lr : float
        Peak learning rate of SGD.
    weight_decay : float
        For weights of convolutions and linear layers alone.
    bias_rate : float
        How many times faster the biases of batch norms learn.

    Returns
    -------
    list of Optimizer
        SGD, then Adam (2e-3 for log steps, 1e-2 for the controller) where the network has such parameters.

    Examples
    --------
    >>> [type(o).__name__ for o in optimizers(nn.Linear(2, 2), lr=0.1)]
    ['SGD']
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms = {f"{name}.bias" for name, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)}
    steps: list[nn.Parameter] = []
    controller: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        if name.endswith("log_step"):
            steps.append(parameter)
        elif ".controller." in f".{name}":
            controller.append(parameter)
        elif name in norms:
            biases.append(parameter)
        else:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0, "lr": lr * bias_rate},
    ]
    groups = [group for group in groups if group["params"]]
    result: list[torch.optim.Optimizer] = [torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)]
    adaptive = [{"params": steps, "lr": 2e-3}, {"params": controller, "lr": 1e-2}]
    if steps or controller:
        result.append(torch.optim.Adam([group for group in adaptive if group["params"]]))
    return result


@dataclass
class Recipe:
    """What a training run is, apart from the network and the data.

    Attributes
    ----------
    epochs : float
        Passes over the training images; fractions are allowed.
    lr : float
        Peak learning rate of SGD, reached after `warmup` of the steps, then a cosine to zero.
    batch_size : int
        Images per step, over all processes.
    microbatch : int, optional
        Images of one forward and backward; a step adds up the gradients of ``batch_size / microbatch`` of
        them, shared out among the processes. Batch statistics are those of a microbatch. None: each process's
        part of the batch at once; the run then depends on the number of processes.
    seed : int
        Seeds every step together with its number.
    precision : {"no", "bf16", "fp16"}
        Accelerate's mixed precision. Codes are exact in all three.
    augment : bool
        Random crop after reflection padding by 4, and horizontal flip.
    flip : bool
        False leaves the flip out (digits).
    clip : float, optional
        Largest norm of the gradient of all weights together.
    bias_rate : float
        How many times faster the biases of batch norms learn.
    small_crops : float
        Part of the training, 0..1, from its start, whose crops have three quarters of the image's side.
    average : float, optional
        Decay of a running average of the weights, a step; the network ends with the average.
    compiled : bool
        Whether the network's passes are compiled by `torch.compile`, which fuses what works on single
        elements. It needs a C++ compiler, takes a minute the first time, and gives other roundings.

    Examples
    --------
    >>> Recipe(epochs=30, batch_size=256, precision="no").lr
    0.1
    >>> Recipe(epochs=30, batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size=0, expected 1 or more
    """

    epochs: float
    lr: float = 0.1
    batch_size: int = 128
    seed: int = 0
    precision: str = "bf16"
    warmup: float = 0.15
    weight_decay: float = 5e-4
    clip: float | None = 1.0
    bias_rate: float = 1.0
    small_crops: float = 0.0
    average: float | None = None
    augment: bool = True
    flip: bool = True
    microbatch: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("microbatch", self.microbatch)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}, expected 1 or more")


def rate_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Rates that rise in a line over the recipe's `warmup`, then fall to zero along a cosine.

    Parameters
    ----------
    optimizer : Optimizer
    recipe : Recipe
    steps : int
        Of the whole run, 1 or more.

    Returns
    -------
    LambdaLR
        To be called once a step.

    Examples
    --------
    >>> optimizer, recipe = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0), Recipe(1, warmup=0.5)
    >>> factor = rate_schedule(optimizer, recipe, steps=8).lr_lambdas[0]
    >>> [round(factor(step), 2) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    warmup = max(1, round(recipe.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
