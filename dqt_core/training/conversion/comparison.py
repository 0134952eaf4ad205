"""A float model beside what `convert` made of it, at 8 bits, layer by layer."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OUTPUT = "the output"
# Measured where 8 bits are read: ResNet-18, ResNet-50 and MobileNetV2 with published, own and random weights,
# and some 60 small random nets. Noise grows slowly: the output differs by 8 % at most, and no layer by more
# than 1.5 % and four times all before it (10 % in one of 32,896 terms). A mistake made a layer jump by 13 to
# 98 %.
BOUND = 0.2  # of the output
JUMP = 0.12  # of a layer, if it is `_GROWTH` times all before it
_GROWTH = 4
_SEEN = 0.01  # of the output: untrained, the images may not reach it, and noise is all that a layer holds
_IMAGES = 64  # compared, of all that are given
_NUMBERS = 1 << 16  # compared, of a layer's output


class ConversionWarning(UserWarning):
    """A converted model computes something else than the model that was given."""


@torch.no_grad()
def outputs_of(
    net: nn.Module, layers: Sequence[tuple[str, nn.Module]], x: Tensor, *arguments: Any, every: int = 1
) -> dict[str, Tensor]:
    """Run a network, and keep a sample of what its layers and the whole make of every so-many-th image.

    Parameters
    ----------
    net : Module
    layers : sequence of (name, module)
        In the order of their calls; a module that is called twice stands there twice, without a name where
        its output is not kept.
    x : float tensor, (N, C, H, W)
    *arguments
        Of the call, after the images.
    every : int
        Distance of the images that are kept.

    Returns
    -------
    dict of str to float tensor
        In the order of the calls; the network's own under `OUTPUT`.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> kept = outputs_of(net, [("0", net[0])], torch.ones(8, 3), every=2)
    >>> {name: len(numbers) for name, numbers in kept.items()}
    {'0': 16, 'the output': 16}
    """
    kept: dict[str, Tensor] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in [*layers, (OUTPUT, net)]:
        names.setdefault(module, []).append(name)

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
        name = names[module].pop(0)
        if not name:
            return
        if not out.isfinite().all():
            raise ValueError(
                f"`{name}` is NaN or infinite on these images; look at its weights and its batch norm's "
                "statistics, and at mean and std"
            )
        sample = out[::every].flatten()
        kept[name] = sample[:: sample.numel() // _NUMBERS | 1].clone()  # may be changed in place later

    handles = [module.register_forward_hook(keep) for module in names]
    try:
        net(x, *arguments)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def distance(images: int) -> int:
    """Of the images that are compared: every so-many-th of all that are given.

    Parameters
    ----------
    images : int
        That are given, 1 or more.

    Returns
    -------
    int
        1 for up to 64 images.

    Examples
    --------
    >>> [distance(images) for images in (64, 65, 1000)]
    [1, 2, 16]
    """
    return -(-images // _IMAGES)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """The relative difference of each layer's output, in its norm; warn if the converted model is another.

    Parameters
    ----------
    expected, found : dict of str to float tensor
        See `outputs_of`: of the float model, and of the converted one.

    Returns
    -------
    dict of str to float
        In the order of `found`.

    Warns
    -----
    ConversionWarning
        If the output differs by more than `BOUND`, or a layer's jumps above `JUMP`; it names the first such
        layer.

    Examples
    --------
    >>> differences({"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, 4.2])})
    {'a': 0.04}
    """
    result = {name: round(_relative(expected[name], found[name]), 4) for name in found}
    is_seen = result.get(OUTPUT, 0.0) > _SEEN
    start, largest = None, 0.0
    for name, value in result.items():
        if start is None and is_seen and value > JUMP and value > _GROWTH * largest:
            start = name
        largest = max(largest, value)
    if start is None and result.get(OUTPUT, 0.0) > BOUND:
        start = next(name for name, value in result.items() if value > BOUND)
    if start is not None:
        warnings.warn(
            f"the converted model differs from the float model at 8 bits, first at `{start}` by "
            f"{result[start]:.0%}, and the output by {result[OUTPUT]:.0%}: what leads to `{start}` was "
            "converted wrongly, or 8 bits cannot hold its range",
            ConversionWarning,
            stacklevel=4,
        )
    return result


def _relative(expected: Tensor, found: Tensor) -> float:
    difference = (found - expected).norm().item()
    return difference / expected.norm().clamp_min(torch.finfo(torch.float32).tiny).item()
