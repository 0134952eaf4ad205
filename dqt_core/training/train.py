"""The training loop, on Accelerate: one CPU or many GPUs, bf16, progress bar, checkpoint and resume.

Every random number of a step is drawn from (seed, step, microbatch), so a run that was killed and resumed
takes the same steps as one that was not, with the same number of processes or another; see `distributed`.
"""

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dqt_core._extras import needed

with needed("dqt_core.train", "train"):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from tqdm import tqdm

from dqt_core.data import Dataset, Images
from dqt_core.data.streaming import ImageStream
from dqt_core.training import distributed
from dqt_core.training.batches import Batches, augment, normalize
from dqt_core.training.checkpoint import Checkpoint, alone, description
from dqt_core.training.inputs import normalized
from dqt_core.training.network import NestedNet
from dqt_core.training.recipe import CrossEntropy, Loss, Recipe, optimizers, rate_schedule

__all__ = ["CrossEntropy", "Recipe", "augment", "evaluate", "fit", "normalize", "optimizers", "recalibrate"]


def fit(
    net: nn.Module,
    dataset: Dataset | ImageStream,
    recipe: Recipe,
    loss: Loss = CrossEntropy(),  # noqa: B008 (no call changes it)
    out: str | Path | None = None,
    checkpoint_every: int = 200,
) -> list[dict[str, float]]:
    """Train a network in place, on a GPU where there is one; it comes back on the CPU, in evaluation mode.

    Parameters
    ----------
    net : Module
        Takes float32 (N, C, H, W).
    dataset : Dataset or ImageStream
        A data set's training images are held in memory on the device; a stream's are read as they are needed,
        and augmented by the stream.
    recipe : Recipe
        Length, learning rate, seed, precision.
    loss : callable
        ``loss(net, images, labels, progress)`` returns the scalar to minimise and a dict of figures to log.
    out : path, optional
        Folder for checkpoints, which all processes see. A run whose folder holds a checkpoint goes on from
        there.
    checkpoint_every : int
        Steps between checkpoints.

    Returns
    -------
    list of dict
        One entry per step: "step" and the logged figures.

    Raises
    ------
    FloatingPointError
        If the loss stops being finite.
    ValueError
        If the folder's checkpoint was made by another run (start, recipe, loss or images), a batch is larger
        than the training set, `epochs` or `checkpoint_every` is not positive, the microbatches cannot be
        shared out evenly, or a nested network was converted for another mean and std than the images have.
    DataError
        If another run is training in the folder; it is named.
    OSError
        If a checkpoint cannot be written; the last one is left as it is.

    Notes
    -----
    Started by ``torchrun`` or ``accelerate launch``, all processes call this alike, and train one network.

    Examples
    --------
    >>> from dqt_core import data
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 3, 10))
    >>> history = fit(net, data.embedded(), Recipe(epochs=1, batch_size=718, precision="no"))
    >>> len(history), sorted(history[0])
    (2, ['loss', 'step'])
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}, expected 1 or more steps")
    _require_normalization(net, dataset)
    with _own_accelerator():
        # several processes without a GPU: Accelerate wants to be told
        on_cpus = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
        accelerator = Accelerator(mixed_precision=recipe.precision, cpu=on_cpus)
        with alone(accelerator, out):
            return _fit(net, dataset, recipe, loss, out, checkpoint_every, accelerator)


@contextmanager
def _own_accelerator() -> Iterator[None]:
    """Within, Accelerate starts anew: in bf16 for one network, in float32 for the next, or for the caller."""
    state = AcceleratorState._shared_state
    kept = dict(state)
    AcceleratorState._reset_state()
    try:
        yield
    finally:
        state.clear()
        state.update(kept)


def _fit(
    net: nn.Module,
    dataset: Dataset | ImageStream,
    recipe: Recipe,
    loss: Loss,
    out: str | Path | None,
    checkpoint_every: int,
    accelerator: Accelerator,
) -> list[dict[str, float]]:
    batches = Batches(dataset, recipe, accelerator)
    optimizers_ = optimizers(net, recipe.lr, recipe.weight_decay, recipe.bias_rate)
    schedules = [rate_schedule(optimizer, recipe, batches.steps) for optimizer in optimizers_]
    with _prepared(accelerator, net, optimizers_) as (model, prepared), _passes(model, recipe) as passes:
        distributed.broadcast(model)  # on the device: not every back end sends from a CPU
        average = _Average(model, recipe.average)
        run = description(model, recipe, dataset, loss, batches.microbatches)
        kept: dict[str, Any] = {"model": model, "average": average}
        kept |= {f"optimizer-{i}": optimizer for i, optimizer in enumerate(prepared)}
        kept |= {f"schedule-{i}": schedule for i, schedule in enumerate(schedules)}
        kept |= {"scaler": accelerator.scaler} if accelerator.scaler is not None else {}  # of fp16
        checkpoint = Checkpoint(accelerator, run, out, kept)
        history = checkpoint.restore()
        statistics = distributed.RunningStatistics(model, batches.microbatches)
        bar = tqdm(total=batches.steps, initial=len(history), disable=not accelerator.is_local_main_process)
        for step, microbatches in batches.start_at(len(history)):
            statistics.begin()
            parts = []
            for images, labels in microbatches:
                with accelerator.autocast():
                    value, figures = loss(passes, images, labels, step / batches.steps)
                accelerator.backward(value / batches.microbatches)
                statistics.microbatch_done()
                parts.append({**figures, "": value.item()})
            statistics.finish()
            figures = distributed.mean_figures(parts, batches.microbatches, accelerator.device)
            _require_finite(figures.pop(""), step)
            distributed.sum_gradients(model.parameters())
            if recipe.clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer, schedule in zip(prepared, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            average.update()
            history.append({"step": step, **figures})
            bar.set_postfix(figures)
            bar.update()
            if (step + 1) % checkpoint_every == 0 or step + 1 == batches.steps:
                distributed.require_equal(model)
                checkpoint.save(history)
        bar.close()
        average.finish()
    return history


@contextmanager
def _prepared(
    accelerator: Accelerator, net: nn.Module, optimizers_: list[torch.optim.Optimizer]
) -> Iterator[tuple[nn.Module, list[Any]]]:
    """Within, the network trains on Accelerate's device; afterwards it is in float32 on the CPU again."""
    # evaluation_mode: without torch's DistributedDataParallel, see `distributed`
    model = accelerator.prepare_model(_channels_last(net), evaluation_mode=True)
    prepared = [accelerator.prepare_optimizer(optimizer) for optimizer in optimizers_]
    try:
        yield model.train(), prepared
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval().cpu()


@contextmanager
def _passes(model: nn.Module, recipe: Recipe) -> Iterator[Any]:
    """What the loss calls: the network, compiled where the recipe says so."""
    if recipe.compiled and isinstance(model, NestedNet):  # it compiles its passes, one for each width
        with model.compiled() as compiled:
            yield compiled
    else:
        yield torch.compile(model, dynamic=False) if recipe.compiled else model


class _Average:
    """A running average of the weights and statistics, which the network ends with; none without a decay."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model, self.decay = model, decay
        self.kept = [] if decay is None else [tensor.clone() for tensor in self._tensors()]

    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]

    def update(self) -> None:
        if self.decay is not None:
            torch._foreach_lerp_(self.kept, self._tensors(), 1 - self.decay)

    def finish(self) -> None:
        if self.decay is not None:
            torch._foreach_copy_(self._tensors(), self.kept)

    def state_dict(self) -> dict[str, Tensor]:  # for a checkpoint
        return {str(i): tensor for i, tensor in enumerate(self.kept)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for i, tensor in enumerate(self.kept):
            tensor.copy_(state[str(i)])


def _channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _require_finite(value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at step {step}; lower the learning rate")


@torch.no_grad()
def recalibrate(
    net: NestedNet, dataset: Dataset | Iterable[Images], images: int = 5120, batch_size: int = 256
) -> None:
    """Estimate the batch-norm statistics anew, each width's with the whole network at that width.

    In training they are running averages over augmented images while the weights move, and a width outside
    the consistency term has none: the controller's pass uses each batch's own and updates none.

    Parameters
    ----------
    net : NestedNet
        Changed in place; ends in evaluation mode.
    dataset : Dataset, or iterable of uint8 arrays (n, H, W, C)
        The first `images` training images are used, as they are; or all of the given batches.
    images, batch_size : int
        For a data set.

    Raises
    ------
    ValueError
        If there are no images, or they are not uint8 (n, H, W, C).

    Examples
    --------
    >>> from dqt_core import convert, data, models
    >>> digits = data.embedded()
    >>> float_net = models.resnet18(classes=10, channels=8, small_images=True)
    >>> net = convert(float_net, digits.train_images[:8], digits.mean, digits.std, widths=(2, 8))
    >>> recalibrate(net, digits, images=16, batch_size=8)
    >>> int(net.switch_layers[0].norm_of(0).num_batches_tracked)
    2
    """
    _require_size(batch_size)
    parts = iter(
        _parts(dataset.train_images[:images], batch_size) if isinstance(dataset, Dataset) else dataset
    )
    if (first := next(parts, None)) is None:
        raise ValueError("there are no images to take statistics from; give at least one")
    device = next(net.parameters()).device
    with fresh_statistics(net):
        for part in itertools.chain([first], parts):
            x = normalized(part, net.mean, net.std).to(device)
            for choice in net.choices:
                net(x, [choice] * len(net.switch_layers))


@contextmanager
def fresh_statistics(net: nn.Module) -> Iterator[None]:
    """Batch-norm statistics from the passes that are run inside: plain averages over their batches.

    Parameters
    ----------
    net : nn.Module
        In training mode inside, in evaluation mode afterwards. A batch norm that no pass reaches keeps its
        table; all do where a pass raises.

    Examples
    --------
    >>> net = nn.BatchNorm2d(1)
    >>> with fresh_statistics(net):
    ...     _ = net(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
    >>> float(net.running_mean)
    2.0
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a plain average over the batches
    net.train()
    finished = False
    try:
        yield
        finished = True
    finally:
        for norm, table, momentum in zip(norms, before, momenta, strict=True):
            norm.momentum = momentum
            if not (finished and norm.num_batches_tracked):
                norm.load_state_dict(table)
        net.eval()


def _require_normalization(net: Callable[..., Tensor], dataset: Dataset | ImageStream) -> None:
    """What a nested network is trained on is what its program makes of the bytes."""
    if not isinstance(net, NestedNet):
        return
    own, other = ((tuple(x.mean), tuple(x.std)) for x in (net, dataset))
    if own != other:
        raise ValueError(
            f"this network was converted for mean={own[0]} and std={own[1]}, the data set has "
            f"mean={other[0]} and std={other[1]}; convert with those, or give the data set the network's"
        )


def _require_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected 1 or more")


def _parts(images: Images, size: int) -> Iterator[Images]:
    return (images[start : start + size] for start in range(0, len(images), size))


@torch.no_grad()
def evaluate(
    net: Callable[..., Tensor],
    dataset: Dataset,
    limit: int | None = None,
    batch_size: int = 500,
    **options: Any,
) -> float:
    """Fraction of test images that a torch network classifies correctly, in float32.

    Parameters
    ----------
    net : callable
        Takes float32 (N, C, H, W) and `options`; returns logits.
    dataset : Dataset
        Its test images are used.
    limit : int, optional
        The first `limit` test images only.
    batch_size : int
        Images at a time.

    Returns
    -------
    float
        In 0..1.

    Raises
    ------
    ValueError
        If `limit` or `batch_size` is not positive, or the network was converted for another mean and std.

    Examples
    --------
    >>> from dqt_core import data
    >>> evaluate(lambda images: torch.eye(10)[[3] * len(images)], data.embedded(), limit=100)  # always a 3
    0.18
    """
    _require_size(batch_size)
    _require_normalization(net, dataset)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}, expected a positive number of images, or None for all")
    device = torch.device("cpu")
    if isinstance(net, nn.Module):
        net.eval()
        device = next((parameter.device for parameter in net.parameters()), device)
    images, labels = dataset.test_images[:limit], np.asarray(dataset.test_labels[:limit])
    classes = [
        net(normalized(part, dataset.mean, dataset.std).to(device), **options).argmax(1).cpu().numpy()
        for part in _parts(images, batch_size)
    ]
    return int((np.concatenate(classes) == labels).sum()) / len(images)
