"""Post-training quantization in one call: a float model and some images become a program and a report."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dqt_core.data import Images
from dqt_core.evaluation.report import Report, labels, report, steps
from dqt_core.program import Program
from dqt_core.training import calibration
from dqt_core.training.conversion.conversion import choices_of, convert
from dqt_core.training.inputs import in_float32, in_order, normalized
from dqt_core.training.layers import Choice
from dqt_core.training.layerwise import fit_layers
from dqt_core.training.lowering import lower
from dqt_core.training.network import NestedNet

WIDTHS = (4, 5, 6, 8)  # of the master's views; each more moves more codes by one, see `round_once`
FITTED = 64  # images, at most, that layers are fitted to


@dataclass(frozen=True)
class Calibration:
    """A network that was calibrated, and what was tried for it.

    Attributes
    ----------
    net : NestedNet
    rule : str
        Of the activations' steps, see `calibration.RULES`.
    tables : dict of str to str
        For each width whether its batch-norm tables are "kept" or "corrected", or all are "layer by layer".
    tried : list of dict
        "weights" ("rounded twice", "rounded once" or "chosen"), "rule", "tables", and "divergence" at each
        width.
    """

    net: NestedNet
    rule: str
    tables: dict[str, str]
    tried: list[dict[str, Any]]


@in_float32()
def quantize(
    model: nn.Module,
    images: Images,
    mean: Sequence[float],
    std: Sequence[float],
    widths: Sequence[int | Choice] = WIDTHS,
    name: str = "program",
    rules: Sequence[calibration.Rule] = calibration.RULES,
    progress: bool = True,
    layerwise: bool = False,
) -> tuple[Program, Report]:
    """Turn a trained float model into an integer program, without training, and say how far they differ.

    One image in four sets nothing: these choose among the rules, and are compared in the report.

    Parameters
    ----------
    model : Module
        See `convert`; left unchanged.
    images : uint8 array, (N, H, W, C)
        Training images, at least 2; a hundred or more, in any order. Time grows with their number.
    mean, std : C floats each
        The normalisation the float model was trained with.
    widths : sequence of int or (weight bits, input bits)
    name : str
        Of the program.
    rules : sequence of {"error", "percentile", "largest"}
        Of the activations' steps, tried in turn.
    progress : bool
        Whether to show a bar.
    layerwise : bool
        Whether to try as well codes and tables that are fitted layer by layer, see `layerwise.fit_layers`, to
        the first 64 images that set anything; for a gain at few bits. It takes two to three times as
        long, and memory for all that a layer reads and makes of them.

    Returns
    -------
    program : Program
    report : Report
        ``print(report)`` shows the difference at each width, and which layer hurts.

    Raises
    ------
    ValueError
        As `convert`; or if there are fewer than 2 images, or no rule.

    Examples
    --------
    >>> from dqt_core import models
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    >>> net = models.resnet18(classes=10, channels=8, small_images=True)
    >>> program, report = quantize(net, images, (0.5,) * 3, (0.25,) * 3, (4, 8), progress=False)
    >>> report.widths, len(report.layers), report.images
    (('4', '8'), 19, 2)
    """
    normalized(
        images[:1] if isinstance(images, np.ndarray) else images, mean, std
    )  # or it says what is wrong
    if len(images) < 2:
        raise ValueError("quantize needs 2 images or more: some set the steps, the others choose and compare")
    is_held_out = np.arange(len(images)) % 4 == 0
    held_out = images[is_held_out]
    ticks = 1 + len(rules) + layerwise + steps(len(choices_of(widths)), len(held_out))
    with tqdm(total=ticks, desc="quantize", disable=not progress) as bar:
        own, others = _batches(images[~is_held_out]), _batches(held_out)
        found = calibrate(model, own, others, mean, std, widths, rules, bar.update, layerwise)
        program = lower(found.net, name)
        logits = torch.cat(float_logits(model, found.net, others)).numpy()
        made = {"rule": found.rule, "tables": found.tables, "tried": found.tried}
        return program, report(program, held_out, logits, tick=bar.update, calibration=made)


def calibrate(
    model: nn.Module,
    batches: Sequence[Images],
    held_out: Sequence[Images],
    mean: Sequence[float],
    std: Sequence[float],
    widths: Sequence[int | Choice] = WIDTHS,
    rules: Sequence[calibration.Rule] = calibration.RULES,
    tick: Callable[[], object] = lambda: None,
    layerwise: bool = False,
) -> Calibration:
    """Convert a float model, and take the rule of steps and each width's tables that differ least from it.

    Parameters
    ----------
    model, mean, std, widths, rules, layerwise : as in `quantize`
    batches : sequence of uint8 arrays, (n, H, W, C)
        Training images for steps and tables.
    held_out : sequence of uint8 arrays, (n, H, W, C)
        Others, by which one is chosen.
    tick : callable
        Called after the conversion, after each rule, and after layers were fitted.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        As `convert`; or if there is no rule.

    Notes
    -----
    The measure is `calibration.divergence`; a rule's score is the mean over widths of its logarithm.

    Examples
    --------
    >>> layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    >>> found = calibrate(nn.Sequential(*layers), [images[:6]], [images[6:]], (0.5,), (0.25,), widths=(4, 8))
    >>> list(found.tables), found.rule in calibration.RULES, len(found.tried)
    (['4', '8'], True, 7)
    """
    if not rules:
        raise ValueError(f"there is no rule of steps; give one or more of {calibration.RULES}")
    net = convert(model, batches[0], mean, std, widths, controller=False)
    original = copy.deepcopy(net) if layerwise else None  # as large as the network
    wanted = float_logits(model, net, held_out)
    tried: list[dict[str, Any]] = []

    def tried_as(weights: str, rule: str, tables: str, net: NestedNet) -> list[float]:
        settings = [[choice] * len(net.switch_layers) for choice in net.choices]
        far = [calibration.divergence(net, held_out, wanted, setting) for setting in settings]
        measured = dict(zip(labels(net.choices), far, strict=True))
        tried.append({"weights": weights, "rule": rule, "tables": tables, "divergence": measured})
        return far

    tried_as("rounded twice", "error", "kept", net)
    calibration.round_once(net)
    tick()
    best = np.inf
    for rule in rules:
        calibration.set_steps(net, batches, rule)
        corrected = copy.deepcopy(net)
        calibration.correct_norms(corrected, batches)
        kept = tried_as("rounded once", rule, "kept", net)
        moved = tried_as("rounded once", rule, "corrected", corrected)
        score = float(np.log(np.maximum(np.minimum(kept, moved), 1e-12)).mean())
        if score < best or rule == rules[0]:
            kinds = ["corrected" if m < k else "kept" for k, m in zip(kept, moved, strict=True)]
            best, taken, found = score, rule, _with_tables(net, corrected, kinds)
            tables = dict(zip(labels(net.choices), kinds, strict=True))
        tick()
    if original is not None:
        fitted = copy.deepcopy(original)
        calibration.round_once(fitted)
        calibration.set_steps(fitted, batches, taken)
        fit_layers(fitted, original, np.concatenate(list(batches))[:FITTED])
        far = tried_as("chosen", taken, "layer by layer", fitted)
        if float(np.log(np.maximum(far, 1e-12)).mean()) < best:
            found, tables = fitted, dict.fromkeys(tables, "layer by layer")
        tick()
    return Calibration(found, taken, tables, tried)


@torch.no_grad()
def float_logits(model: nn.Module, net: NestedNet, batches: Iterable[Images]) -> list[torch.Tensor]:
    """What the float model makes of batches of images, normalised as for the converted network.

    Parameters
    ----------
    model : Module
        Float; left unchanged.
    net : NestedNet
        Of this model.
    batches : iterable of uint8 arrays, (n, H, W, C)

    Returns
    -------
    list of float32 tensors, (n, classes)

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    >>> net = convert(model, images, (0.5,), (0.25,), controller=False)
    >>> [logits.shape for logits in float_logits(model, net, [images[:3], images[3:]])]
    [torch.Size([3, 2]), torch.Size([1, 2])]
    """
    own = copy.deepcopy(model).to("cpu", torch.float32).eval()
    return [own(in_order(calibration.inputs(net, images))) for images in batches]


def _with_tables(net: NestedNet, corrected: NestedNet, tables: Sequence[str]) -> NestedNet:
    """A copy of the network that has another one's norms for the choices whose tables are "corrected"."""
    net = copy.deepcopy(net)
    for layer, other in zip(net.switch_layers, corrected.switch_layers, strict=True):
        for choice, kind in enumerate(tables):
            if kind == "corrected" and len(layer.norms):
                layer.norms[choice] = copy.deepcopy(other.norms[choice])
    return net


def _batches(images: Images, size: int = 16) -> list[Images]:
    return [images[start : start + size] for start in range(0, len(images), size)]
