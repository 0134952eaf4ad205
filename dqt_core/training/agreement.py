"""A program beside its twin, the torch network it was lowered from: who classifies otherwise, and why."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dqt_core.backends.stepwise import walk
from dqt_core.data import Images
from dqt_core.evaluation import allocate
from dqt_core.program import IMAGE, Choose, Program, step_by_step
from dqt_core.training import calibration
from dqt_core.training.layers import Coded, Quantizer
from dqt_core.training.network import NestedNet
from dqt_core.training.parts import CodedMaxPool

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Trace:
    """What a twin computed for some images.

    Attributes
    ----------
    codes : dict of str to int64 array, (N, H, W, C)
        Codes by the name of the program's value.
    real : dict of str to float64 array, (N, H, W, C)
        What was rounded to those codes, in steps.
    logits : float64 array, (N, classes)
    controller : float64 array, (N, L * K), or None
        The controller's logits.
    choices : int64 array, (N, L)
    """

    codes: Values
    real: Values
    logits: NDArray[np.float64]
    controller: NDArray[np.float64] | None
    choices: NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """An image that a program and its twin put into different classes.

    Attributes
    ----------
    image : int
        Its number.
    value : str
        The first of the program's values whose codes differ; all before it are equal. "logits" where no
        codes do, "choices" where the controller decides otherwise on equal codes.
    count : int
        Codes of that value that differ.
    distance : float
        How far from a tie, at most, the numbers were that gave those codes, in steps: the two round a number
        differently only where float32 cannot tell on which side of the tie it lies.
    gap : float
        By how much the program's class leads the twin's, in the program's real logits.
    """

    image: int
    value: str
    count: int
    distance: float
    gap: float


def run(net: NestedNet, images: Images, choices: NDArray[np.int64] | None = None) -> Trace:
    """Run a network in float32 and keep what it computes.

    Parameters
    ----------
    net : NestedNet
        In evaluation mode.
    images : uint8 array, (N, H, W, C)
    choices : int64 array, (N, L), optional
        Index into the network's choices for every image and layer; None: the controller decides.

    Returns
    -------
    Trace

    Examples
    --------
    >>> from dqt_core import convert
    >>> from torch import nn
    >>> layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    >>> images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
    >>> trace = run(convert(nn.Sequential(*layers), images, (0.5,), (0.25,)), images)
    >>> trace.logits.shape, trace.controller.shape, trace.choices.shape
    ((2, 2), (2, 5), (2, 1))
    """
    codes: Values = {}
    real: Values = {}
    seen: Values = {}

    def keep(name: str, module: torch.nn.Module, inputs: tuple[Any, ...], out: Coded) -> None:
        codes[name] = _channels_last(out.codes).astype(np.int64)
        if isinstance(module, Quantizer):
            x = inputs[0].value if isinstance(inputs[0], Coded) else inputs[0]
            real[name] = _channels_last(x) / module.log_step.detach().exp().double().item()

    hooks = [
        module.register_forward_hook(functools.partial(keep, name))
        for name, module in net.graph.named_modules()
        if isinstance(module, Quantizer | CodedMaxPool)
    ]
    if net.controller is not None:
        hooks.append(
            net.controller.fc2.register_forward_hook(
                lambda module, inputs, out: seen.update(controller=out.detach().double().numpy())
            )
        )
    try:
        with torch.no_grad():
            logits, selection = net.run(calibration.inputs(net, images), _weights(net, choices))
    finally:
        for hook in hooks:
            hook.remove()
    picks = selection.per_layer
    assert isinstance(picks, torch.Tensor), "weights over the choices were given, or the controller made them"
    return Trace(codes, real, logits.double().numpy(), seen.get("controller"), picks.argmax(-1).numpy())


def differences(
    net: NestedNet,
    program: Program,
    images: Images,
    width: int | str,
    batch_size: int = 256,
) -> list[Difference]:
    """Find the images that a program and its twin classify differently, and what made them differ.

    Parameters
    ----------
    net : NestedNet
        In evaluation mode, as it was lowered.
    program : Program
        ``lower(net)``.
    images : uint8 array, (N, H, W, C)
    width : int or "controller"
        One width for all switchable layers, or the controller's choice for each image.
    batch_size : int
        Images at a time; no result depends on it.

    Returns
    -------
    list of Difference
        Empty where both agree on every image.

    Raises
    ------
    ValueError
        If the network is in training mode: its batch norms would take the images' own statistics.

    Examples
    --------
    >>> from dqt_core import convert, data, lower, models
    >>> digits = data.embedded()
    >>> float_net = models.resnet18(classes=10, channels=8, small_images=True)
    >>> net = convert(float_net, digits.train_images[:64], digits.mean, digits.std)
    >>> found = differences(net, lower(net), digits.test_images[:50], 4)
    >>> all(difference.distance < 2e-3 for difference in found)
    True
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected 1 or more")
    if net.training:
        raise ValueError("the network is in training mode, expected evaluation mode: call net.eval()")
    found = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        ours = program.run(part, width)  # type: ignore[arg-type]
        with torch.no_grad():
            theirs = net(calibration.inputs(net, part), width).argmax(1).numpy()
        for i in np.flatnonzero(ours.classes != theirs):
            lead = int(ours.logits[i, ours.classes[i]] - ours.logits[i, theirs[i]])
            given = None if width == "controller" else ours.choices[i : i + 1]
            value, count, distance = _first(net, program, part[i : i + 1], given)
            gap = float(np.ldexp(float(lead), -allocate.logit_shift(program)))
            found.append(Difference(start + int(i), value, count, distance, gap))
    return found


def from_tie(real: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of numbers from the nearest half, where rounding turns.

    Parameters
    ----------
    real : float64 array
        In steps.

    Returns
    -------
    float64 array
        0..0.5.

    Examples
    --------
    >>> from_tie(np.array([2.0, 2.25, -0.5]))
    array([0.5 , 0.25, 0.  ])
    """
    return np.abs(real - np.floor(real) - 0.5)


def _first(
    net: NestedNet, program: Program, images: Images, choices: NDArray[np.int64] | None
) -> tuple[str, int, float]:
    """The first value that differs: its name, how many of its codes do, their largest distance from a tie."""
    trace, backend = run(net, images, choices), step_by_step(program, "numpy")
    for op, made in walk(backend, program.ops, {IMAGE: images}, choices, len(program.choices)):
        if isinstance(op, Choose):
            if not np.array_equal(made, trace.choices):
                return "choices", int(np.count_nonzero(made != trace.choices)), 0.0
        elif op.out in trace.codes:
            is_off = made != trace.codes[op.out]
            if is_off.any():
                distance = from_tie(trace.real[op.out])[is_off].max() if op.out in trace.real else 0.5
                return op.out, int(np.count_nonzero(is_off)), float(distance)
    return "logits", 0, 0.0


def _weights(net: NestedNet, choices: NDArray[np.int64] | None) -> Any:
    if choices is None:
        return "controller"
    return torch.eye(len(net.choices))[torch.from_numpy(choices)]


def _channels_last(tensor: torch.Tensor) -> NDArray[np.float64]:
    tensor = tensor.detach().double()
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor[:, None, None]).numpy()
