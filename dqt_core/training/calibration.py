"""Post-training quantization: steps and batch-norm tables of a converted network from some images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dqt_core.nested import code_range
from dqt_core.training import steps
from dqt_core.training.inputs import normalized
from dqt_core.training.layers import Choice, Quantizer
from dqt_core.training.network import NestedNet

Images = NDArray[np.uint8]
Rule: TypeAlias = Literal["error", "percentile", "largest"]
Moments: TypeAlias = tuple[Tensor, Tensor]  # mean and variance of every channel
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
        return steps.initial_log_step(x, lo, hi, widths)
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
    batches : iterable of uint8 arrays, (n, H, W, C)
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
    names = {module: name for name, module in net.graph.named_modules()}
    samples: dict[Quantizer, list[Tensor]] = {m: [] for m in names if isinstance(m, Quantizer)}

    def keep(quantizer: nn.Module, arguments: tuple[Tensor]) -> None:
        assert isinstance(quantizer, Quantizer)
        x = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0].value
        if not x.isfinite().all():
            raise ValueError(
                f"what `{names[quantizer]}` rounds is NaN or infinite on these images; a weight or a batch "
                "norm's statistics are: go back to an earlier checkpoint"
            )
        stride = (x.numel() // SAMPLE) | 1  # odd: an even one can meet the same few columns of every image
        offset = len(samples[quantizer]) % stride  # the batches differ in what they contribute
        samples[quantizer].append(x.flatten()[offset::stride].clone())

    handles = [quantizer.register_forward_pre_hook(keep) for quantizer in samples]
    try:
        _run(net.eval(), batches, [net.choices[-1:] * len(net.switch_layers)])
    finally:
        for handle in handles:
            handle.remove()
    if not any(samples.values()):
        raise ValueError("there are no calibration images; give at least one batch")
    for quantizer, parts in samples.items():
        if parts:  # a controller's were not called
            _set_step(quantizer, _thinned(parts), rule)


def _thinned(parts: list[Tensor]) -> Tensor:
    stride = sum(map(len, parts)) // SAMPLE | 1
    return torch.cat([part[::stride] for part in parts])


def _set_step(quantizer: Quantizer, x: Tensor, rule: Rule) -> None:
    quantizer.log_step.data.zero_()  # the range then does not depend on the old step
    lo, hi = code_range(8, quantizer.signed)
    low, high = (-float("inf") if quantizer.signed else 0.0), quantizer.limit or float("inf")
    quantizer.log_step.data = step_of(x.clamp(low, high), rule, lo, hi, quantizer.widths)


@torch.no_grad()
def restore_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give a float network's batch norms the statistics of their inputs, without changing what it computes.

    For weights that were published with the statistics folded into gain and bias: in evaluation nothing is
    missing, but training takes the batch's own, and would start from another function.

    Parameters
    ----------
    net : Module
        Changed in place; ends in evaluation mode.
    batches : iterable of float tensors, (n, C, H, W)
        Normalised training images.

    Raises
    ------
    ValueError
        If there are no images.

    Examples
    --------
    >>> from dqt_core import models
    >>> net, x = models.resnet18(10, 8, small_images=True).eval(), torch.randn(8, 3, 32, 32)
    >>> before = net(x)
    >>> restore_statistics(net, [x])
    >>> torch.allclose(net(x), before, atol=1e-4), bool(net.bn1.running_mean.any())
    (True, True)
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def look(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(arguments[0], (0, 2, 3), correction=0)
        seen[norm].append(torch.stack([mean, variance]))

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        for x in batches:
            net.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
    if not all(seen.values()):
        raise ValueError("there are no images to take statistics of; give at least one batch")
    for norm in norms:
        mean, variance = _average(seen[norm])
        old_mean, old_variance = _table(norm)
        slope = norm.weight / (old_variance + norm.eps).sqrt()
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.bias.copy_(norm.bias + slope * (mean - old_mean))
        norm.running_mean, norm.running_var = mean.clone(), variance.clone()  # each with memory of its own


@torch.no_grad()
def round_once(net: NestedNet) -> None:
    """Choose master codes whose narrower views are the weights rounded directly, not rounded twice.

    A code that was rounded up to a tie is rounded up a second time by the switch. Over all weights that is a
    bias of half a master step at every narrower width, and a layer adds it up over its terms. Here a code on
    a tie above its weight goes down by one, and as many codes whose narrower views do not notice go up by
    one, so that the master has no bias either.

    Depthwise layers stay as they are: over their few terms a bias does not add up, and the moves by one,
    which are noise at 8 bits, do not average out.

    Parameters
    ----------
    net : NestedNet
        Its weights become multiples of their steps, in place. Not for training, which rounds anew.

    Raises
    ------
    ValueError
        If the network rounds by floor, which has no ties.

    Examples
    --------
    >>> from dqt_core import convert, models
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    >>> net = convert(models.resnet18(10, 8, small_images=True), images, (0.5,) * 3, (0.25,) * 3)
    >>> round_once(net)
    """
    if net.rounding != "half_up":
        raise ValueError("round_once is for half_up; floor has no ties")
    for layer in net.switch_layers:
        if layer.groups > 1:
            continue
        step = layer.log_step.exp()
        drops = sorted({8 - weight_bits for weight_bits, _ in layer.choices} - {0})
        codes = once_rounded((layer.weight / step).flatten(1), drops)
        layer.weight.copy_(codes.reshape(layer.weight.shape) * step)


def once_rounded(x: Tensor, drops: Sequence[int]) -> Tensor:
    """Signed master codes of weights in units of their step; see `round_once`.

    Parameters
    ----------
    x : float32 tensor, (O, K)
        Each row is balanced by itself.
    drops : sequence of int
        Bits that the narrower views drop.

    Returns
    -------
    float32 tensor, (O, K)
        Integers -128..127.

    Examples
    --------
    >>> once_rounded(torch.tensor([[1.7, 2.2, 5.9, 6.3]]), [2])  # 5.9 is nearer to 4 than to 8
    tensor([[1., 3., 5., 7.]])
    """
    lo, hi = code_range(8, signed=True)
    codes = (x + 0.5).floor().clamp(lo, hi)
    is_above_tie = torch.zeros_like(x, dtype=torch.bool)
    for drop in drops:
        is_above_tie |= (codes % 2**drop == 2 ** (drop - 1)) & (x < codes)
    codes -= is_above_tie.float()
    unnoticed = (x > codes) & ~is_above_tie & (codes < hi)
    for drop in drops:
        unnoticed &= (codes + 1) % 2**drop != 2 ** (drop - 1)
    gain = torch.where(unnoticed, x - codes, -1.0)
    rank = gain.argsort(1, descending=True).argsort(1)
    missing = (x.clamp(lo, hi) - codes).sum(1, keepdim=True).round()
    return codes + (unnoticed & (rank < missing)).float()


@torch.no_grad()
def correct_norms(
    net: NestedNet, batches: Sequence[Images], settings: Sequence[Sequence[Choice]] | None = None
) -> None:
    """Set the batch-norm tables so that rounding moves no channel's mean and variance.

    After it, every channel leaves its norm with the mean and variance that it has at the widest choice, over
    the calibration images. The widest choice keeps the tables of the float network; layers without a batch
    norm stay as they are.

    Parameters
    ----------
    net : NestedNet
        Changed in place; ends in evaluation mode.
    batches : sequence of uint8 arrays, (n, H, W, C)
        Calibration images.
    settings : sequence of lists of L choices, optional
        Whole-network widths whose tables are set; None: every choice, uniform.

    Raises
    ------
    ValueError
        If the network shares one table among its widths.

    Notes
    -----
    Moving the mean is the bias correction of Nagel et al. 2019 (arXiv 1906.04721), measured. Unlike
    `train.recalibrate` this also fits networks whose statistics were folded into gain and bias.

    Examples
    --------
    >>> from dqt_core import convert, models
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    >>> net = convert(models.resnet18(10, 8, small_images=True), images, (0.5,) * 3, (0.25,) * 3)
    >>> correct_norms(net, [images])
    """
    if any(0 < len(layer.norms) < len(layer.choices) for layer in net.switch_layers):
        raise ValueError("this network shares its batch norm among widths; convert with 'per_width'")
    widest = [net.choices[-1]] * len(net.switch_layers)
    norms = _norms(net, widest)
    old = [_table(norm) for norm in norms]
    wide = _moments(net, batches, widest)
    for setting in settings or [[choice] * len(widest) for choice in net.choices[:-1]]:
        targets: dict[nn.Module, tuple[Moments, Moments]] = {
            norm: (table, reference)
            for norm, wide_norm, table, reference in zip(_norms(net, setting), norms, old, wide, strict=True)
            if norm is not wide_norm
        }
        _moments(net, batches, setting, targets)


def _correct(norm: nn.BatchNorm2d, old: Moments, wide: Moments, own: Moments) -> None:
    """The table under which `own` becomes what the table `old` makes of `wide`."""
    ratio = own[1].clamp_min(1e-12) / wide[1].clamp_min(1e-12)
    norm.running_mean = own[0] + (old[0] - wide[0]) * ratio.sqrt()
    norm.running_var = (old[1] + norm.eps) * ratio - norm.eps


def _norms(net: NestedNet, setting: Sequence[Choice]) -> list[nn.BatchNorm2d]:
    """The batch norms that a setting reads, in the order of the switchable layers."""
    found = [
        layer.norm_of(net.index_of(choice)) for layer, choice in zip(net.switch_layers, setting, strict=True)
    ]
    return [norm for norm in found if norm is not None]


def _table(norm: nn.BatchNorm2d) -> Moments:
    assert norm.running_mean is not None, "convert keeps batch norm's running statistics"
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def _moments(
    net: NestedNet,
    batches: Iterable[Images],
    setting: Sequence[Choice],
    targets: Mapping[nn.Module, tuple[Moments, Moments]] | None = None,
) -> list[Moments]:
    """Mean and variance before each norm of a setting, averaged over batches.

    With targets every norm is corrected before it is applied, so that what follows sees corrected inputs.
    """
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in _norms(net, setting)}

    def look(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(arguments[0], (0, 2, 3), correction=0)
        seen[norm].append(torch.stack([mean, variance]))
        if targets and norm in targets:
            assert isinstance(norm, nn.BatchNorm2d)
            _correct(norm, *targets[norm], _average(seen[norm]))

    handles = [norm.register_forward_pre_hook(look) for norm in seen]
    try:
        _run(net.eval(), batches, [setting])
    finally:
        for handle in handles:
            handle.remove()
    return [_average(parts) for parts in seen.values()]


def _average(parts: list[Tensor]) -> Moments:
    mean, variance = torch.stack(parts).mean(0)
    return mean, variance


def divergence(
    net: NestedNet, batches: Sequence[Images], logits: Sequence[Tensor], widths: int | Sequence[Choice]
) -> float:
    """How far the network's classes are from a float network's: the mean Kullback-Leibler divergence.

    Parameters
    ----------
    net : NestedNet
    batches : sequence of uint8 arrays, (n, H, W, C)
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
    """Normalised float images (n, C, H, W) of uint8 ones, as the network takes them."""
    return normalized(images, net.mean, net.std)


def _run(net: NestedNet, batches: Iterable[Images], settings: Sequence[Sequence[Choice]]) -> None:
    for images in batches:
        x = inputs(net, images)
        for setting in settings:
            net(x, setting)
