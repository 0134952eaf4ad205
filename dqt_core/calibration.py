"""Post-training quantization: steps and batch-norm tables of a converted network from some images."""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dqt_core import fake
from dqt_core.data import normalization_table
from dqt_core.layers import Choice, Codes
from dqt_core.nested import code_range
from dqt_core.network import NestedNet

Images = NDArray[np.uint8]
Rule: TypeAlias = Literal["error", "percentile", "largest"]
Statistics: TypeAlias = Literal["kept", "estimated", "shifted"]
RULES: tuple[Rule, ...] = ("error", "percentile", "largest")
SAMPLE = 1 << 18  # activations kept of every quantizer
PERCENTILE = 0.9999


def step_of(x: Tensor, rule: Rule, lo: int, hi: int, widths: Sequence[int]) -> Tensor:
    """The log step that a rule takes from a sample.

    Parameters
    ----------
    x : float tensor
        Sample of activations.
    rule : {"error", "percentile", "largest"}
        The least sum over widths of log mean squared error; the top 0.01 % of magnitudes are clipped; nothing
        is clipped.
    lo, hi : int
        Range of the master code.
    widths : sequence of int
        Widths that are read; for "error".

    Returns
    -------
    float32 tensor, ()

    Examples
    --------
    >>> step_of(torch.tensor([0.0, 0.5, 51.0]), "largest", 0, 255, (8,)).exp()
    tensor(0.2000)
    """
    if rule == "error":
        return fake.initial_log_step(x, lo, hi, widths)
    magnitudes = x.float().abs().flatten()
    if rule == "largest":
        top = magnitudes.max()
    elif rule == "percentile":
        top = magnitudes.kthvalue(max(1, round(PERCENTILE * len(magnitudes)))).values
    else:
        raise ValueError(f"rule {rule!r} is unknown; choose one of {RULES}")
    return (top.clamp_min(1e-8) / hi).log()


@torch.no_grad()
def set_steps(net: NestedNet, batches: Iterable[Images], rule: Rule = "error") -> None:
    """Take every activation step from what passes through the network at its widest choice.

    Parameters
    ----------
    net : NestedNet
        Changed in place; ends in evaluation mode.
    batches : iterable of uint8 arrays, (n, H, W, 3)
        Calibration images.
    rule : {"error", "percentile", "largest"}
        See `step_of`.

    Raises
    ------
    ValueError
        If there are no images, or the rule is unknown.

    Examples
    --------
    >>> from dqt_core import convert, models
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    >>> net = convert(models.resnet18(10, 8, small_images=True), images, (0.5,) * 3, (0.25,) * 3)
    >>> set_steps(net, [images[:2], images[2:]], "largest")
    """
    samples: dict[Codes, list[Tensor]] = {m: [] for m in net.graph.modules() if isinstance(m, Codes)}

    def keep(quantizer: nn.Module, arguments: tuple[Tensor]) -> None:
        assert isinstance(quantizer, Codes)
        x = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0].value
        stride = (x.numel() // SAMPLE) | 1  # odd: an even one can meet the same few columns of every image
        offset = len(samples[quantizer]) % stride  # the batches differ in what they contribute
        samples[quantizer].append(x.flatten()[offset::stride].clone())

    handles = [quantizer.register_forward_pre_hook(keep) for quantizer in samples]
    try:
        _run(net.eval(), batches, [net.selection.choices[-1:] * len(net.switch_layers)])
    finally:
        for handle in handles:
            handle.remove()
    for quantizer, parts in samples.items():
        _set_step(quantizer, _thinned(parts), rule)


def _thinned(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ValueError("there are no calibration images; give at least one batch")
    return torch.cat([part[:: len(parts)] for part in parts])


def _set_step(quantizer: Codes, x: Tensor, rule: Rule) -> None:
    quantizer.log_step.data.zero_()  # the range then does not depend on the old step
    lo, hi = code_range(8, quantizer.signed)
    low, high = (-float("inf") if quantizer.signed else 0.0), quantizer.limit or float("inf")
    quantizer.log_step.data = step_of(x.clamp(low, high), rule, lo, hi, quantizer.widths)


@torch.no_grad()
def set_statistics(
    net: NestedNet,
    batches: Sequence[Images],
    kind: Statistics = "shifted",
    settings: Sequence[Sequence[Choice]] | None = None,
) -> None:
    """Correct the batch-norm tables for what rounding does to their inputs.

    Parameters
    ----------
    net : NestedNet
        Changed in place; ends in evaluation mode.
    batches : sequence of uint8 arrays, (n, H, W, 3)
        Calibration images.
    kind : {"shifted", "estimated", "kept"}
        "estimated": mean and variance of the calibration images at each setting. "shifted": those of the
        float network, moved by the difference that the calibration images show between the setting and the
        widest choice, so that the choice of images matters less. "kept": those of the float network.
    settings : sequence of lists of L choices, optional
        Whole-network widths whose tables are set; None: every choice, uniform.

    Raises
    ------
    ValueError
        If the kind is unknown, or the network shares one table among its widths.

    Notes
    -----
    Moving a layer's mean is the bias correction of Nagel et al. 2019 (arXiv 1906.04721), measured.
    """
    if kind not in ("shifted", "estimated", "kept"):
        raise ValueError(f"kind={kind!r} is unknown; choose 'shifted', 'estimated' or 'kept'")
    if kind == "kept":
        return
    layers, widest = net.switch_layers, net.selection.choices[-1]
    if any(0 < len(layer.norms) < len(layer.choices) for layer in layers):
        raise ValueError("this network shares its batch norm among widths; convert with 'per_width'")
    settings = settings or [[choice] * len(layers) for choice in net.selection.choices]
    old = _tables(net, [widest] * len(layers))
    reference = _estimated(net, batches, [widest] * len(layers)) if kind == "shifted" else None
    for setting in settings:
        is_reference = list(setting) == [widest] * len(layers)
        found = reference if reference and is_reference else _estimated(net, batches, setting)
        for norm, kept, new, base in zip(_norms(net, setting), old, found, reference or found, strict=True):
            mean, variance = new
            if reference:
                mean, variance = kept[0] + new[0] - base[0], kept[1] * new[1] / base[1].clamp_min(1e-12)
            norm.running_mean, norm.running_var = mean, variance
    net.eval()


def _norms(net: NestedNet, setting: Sequence[Choice]) -> list[nn.BatchNorm2d]:
    """The batch norms that a setting reads, in the order of the switchable layers."""
    found = [
        layer.norm_of(net.selection.index_of(choice))
        for layer, choice in zip(net.switch_layers, setting, strict=True)
    ]
    return [norm for norm in found if norm is not None]


def _tables(net: NestedNet, setting: Sequence[Choice]) -> list[tuple[Tensor, Tensor]]:
    tables = []
    for norm in _norms(net, setting):
        assert norm.running_mean is not None, "convert keeps batch norm's running statistics"
        assert norm.running_var is not None
        tables.append((norm.running_mean.clone(), norm.running_var.clone()))
    return tables


def _estimated(
    net: NestedNet, batches: Sequence[Images], setting: Sequence[Choice]
) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance before each norm of a setting, averaged over batches; the norms stay as they are."""
    norms = _norms(net, setting)
    before = _tables(net, setting)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a plain average
        norm.train()
    _run(net, batches, [setting])
    found = _tables(net, setting)
    for norm, momentum, (mean, variance) in zip(norms, momenta, before, strict=True):
        norm.momentum, norm.running_mean, norm.running_var = momentum, mean, variance
        norm.eval()
    return found


def divergence(
    net: NestedNet, batches: Sequence[Images], logits: Sequence[Tensor], widths: int | Sequence[Choice]
) -> float:
    """How far the network's classes are from a float network's: the mean Kullback-Leibler divergence.

    Parameters
    ----------
    net : NestedNet
    batches : sequence of uint8 arrays, (n, H, W, 3)
        Images that did not set the steps.
    logits : sequence of float tensors, (n, classes)
        The float network's, of the same images.
    widths : as in `NestedNet.forward`

    Returns
    -------
    float
        In nats; 0 if both agree on every probability.
    """
    with torch.no_grad():
        own = [net(inputs(net, images), widths).log_softmax(1) for images in batches]
    wanted = torch.cat(list(logits)).log_softmax(1)
    return float((wanted.exp() * (wanted - torch.cat(own))).sum(1).mean())


def inputs(net: NestedNet, images: Images) -> Tensor:
    """Normalised float images (n, 3, H, W) of uint8 ones, as the network takes them."""
    table = torch.from_numpy(normalization_table(net.mean, net.std))
    return table[torch.arange(3), torch.from_numpy(images).long()].permute(0, 3, 1, 2)


def _run(net: NestedNet, batches: Iterable[Images], settings: Sequence[Sequence[Choice]]) -> None:
    for images in batches:
        x = inputs(net, images)
        for setting in settings:
            net(x, setting)
