"""The training loop, on Accelerate: one CPU or many GPUs, bf16, progress bar, checkpoint and resume.

Every random number of a step is drawn from (seed, step, microbatch), so a run that was killed and resumed
takes the same steps as one that was not, with the same number of processes or another; see `distributed`.
"""

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from dqt_core.data import Dataset, Images, normalization_table
from dqt_core.data.streaming import ImageStream
from dqt_core.training import distributed
from dqt_core.training.network import NestedNet

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


def augment(images: Tensor, flip: bool = True, part: float = 1.0) -> Tensor:
    """Random crop after reflection padding by 4 pixels, then a random horizontal flip.

    Parameters
    ----------
    images : uint8 tensor, (N, H, W, C)
    flip : bool
        Whether to mirror half of the images.
    part : float
        Of the image's sides that a crop has.

    Returns
    -------
    uint8 tensor, (N, part * H, part * W, C)
        Drawn from torch's global generator.

    Examples
    --------
    >>> augment(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape
    torch.Size([2, 32, 32, 3])
    """
    rows, columns = (_crop(size, part, len(images), images.device) for size in images.shape[1:3])
    if flip:
        mirrored = torch.rand(len(images), 1, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return images[index, rows[:, :, None], columns[:, None, :]]


def _crop(size: int, part: float, count: int, device: torch.device) -> Tensor:
    """Rows (or columns) of `count` crops, (count, part * size)."""
    kept = round(part * size)
    first = torch.randint(0, size - kept + 9, (count, 1), device=device) - 4
    return _reflect(torch.arange(kept, device=device) + first, size)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def normalize(images: Tensor, table: Tensor) -> Tensor:
    """Bytes to the network's float input, by look-up.

    Parameters
    ----------
    images : uint8 tensor, (N, H, W, 3)
    table : float32 tensor, (3, 256)
        `data.normalization_table`.

    Returns
    -------
    float32 tensor, (N, 3, H, W), channels_last in memory

    Examples
    --------
    >>> normalize(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.ones(3, 256)).shape
    torch.Size([1, 3, 2, 2])
    """
    channel = torch.arange(3, device=images.device)
    return table[channel, images.long()].permute(0, 3, 1, 2)


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
        Takes float32 (N, 3, H, W).
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
        than the training set, `epochs` is not positive, or the microbatches cannot be shared out evenly.

    Notes
    -----
    Started by ``torchrun`` or ``accelerate launch``, all processes call this alike, and train one network.
    """
    AcceleratorState._reset_state()  # a process may train one network in bf16 and the next in float32
    # several processes without a GPU: Accelerate wants to be told
    on_cpus = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=on_cpus)
    batches = _Batches(dataset, recipe, accelerator)
    optimizers_ = optimizers(net, recipe.lr, recipe.weight_decay, recipe.bias_rate)
    schedules = [_schedule(optimizer, recipe, batches.steps) for optimizer in optimizers_]
    with _prepared(accelerator, net, optimizers_) as (model, prepared), _passes(model, recipe) as passes:
        distributed.broadcast(model)  # on the device: not every back end sends from a CPU
        average = _Average(model, recipe.average)
        run = _description(model, recipe, dataset, loss, batches.microbatches)
        checkpoint = _Checkpoint(accelerator, run, out, [*schedules, average])
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
        with model.compiled():
            yield model
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


def _schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    warmup = max(1, round(recipe.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class _Batches:
    """The training images as microbatches, in an order that depends on (seed, epoch) alone."""

    def __init__(self, dataset: Dataset | ImageStream, recipe: Recipe, accelerator: Accelerator) -> None:
        self.device, self.recipe = accelerator.device, recipe
        self.table = torch.from_numpy(normalization_table(dataset.mean, dataset.std)).to(self.device)
        self.stream = dataset if isinstance(dataset, ImageStream) else None
        if isinstance(dataset, Dataset):
            self.images = torch.from_numpy(dataset.train_images).to(self.device)
            self.labels = torch.from_numpy(dataset.train_labels).to(self.device)
        self.count = len(dataset if isinstance(dataset, ImageStream) else dataset.train_labels)
        if recipe.small_crops and (self.stream or not recipe.augment):
            raise ValueError(
                f"small_crops={recipe.small_crops} needs images in memory, augmented here; set it to 0"
            )
        if recipe.epochs <= 0:
            raise ValueError(f"epochs={recipe.epochs}, expected a positive number; fractions are allowed")
        self.per_epoch = self.count // recipe.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f"batch_size={recipe.batch_size} is more than the {self.count} training images; lower it"
            )
        self.steps = max(1, round(recipe.epochs * self.per_epoch))
        self.microbatches = _microbatches(recipe, accelerator.num_processes)
        self.mine = range(accelerator.process_index, self.microbatches, accelerator.num_processes)

    def start_at(self, first: int) -> Iterator[tuple[int, Iterator[tuple[Tensor, Tensor]]]]:
        """The steps from `first` on, and this process's microbatches in each."""
        served = self._served(first)
        for step in range(first, self.steps):
            yield step, itertools.islice(served, len(self.mine))

    def _served(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        plan = self._plan(first)
        if self.stream is None:
            for number, (seed, _, index) in enumerate(plan):
                torch.manual_seed(seed)
                mine = index.to(self.device)
                step = first + number // len(self.mine)
                yield self._input(self.images[mine], step), self.labels[mine]
            return
        plan, keys = itertools.tee(plan)
        read = self.stream.batches((epoch, index) for _, epoch, index in keys)
        for (seed, _, _), (images, labels) in zip(plan, read, strict=True):
            torch.manual_seed(seed)
            images = images.to(self.device, non_blocking=True)
            yield normalize(images, self.table), labels.to(self.device, non_blocking=True)

    def _plan(self, first: int) -> Iterator[tuple[int, int, Tensor]]:
        """Seed, epoch and image numbers of every microbatch of this process."""
        order, epoch = torch.empty(0), -1
        for step in range(first, self.steps):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + epoch)
                order = torch.randperm(self.count, generator=generator)
            start = (step % self.per_epoch) * self.recipe.batch_size
            batch = order[start : start + self.recipe.batch_size]
            for i in self.mine:
                seed = (self.recipe.seed * 1_000_003 + step) * self.microbatches + i
                yield seed, epoch, batch[i :: self.microbatches]

    def _input(self, images: Tensor, step: int) -> Tensor:
        if self.recipe.augment:
            is_small = step < self.recipe.small_crops * self.steps
            images = augment(images, self.recipe.flip, 0.75 if is_small else 1.0)
        return normalize(images, self.table)


def _microbatches(recipe: Recipe, processes: int) -> int:
    """How many microbatches a global batch has."""
    if recipe.microbatch is None:
        return processes
    count, rest = divmod(recipe.batch_size, recipe.microbatch)
    if rest or count % processes:
        raise ValueError(
            f"batch_size={recipe.batch_size} in microbatches of {recipe.microbatch} cannot be shared out "
            f"evenly among {processes} processes; make it a multiple of {recipe.microbatch * processes}"
        )
    return count


def _description(
    net: nn.Module, recipe: Recipe, dataset: Dataset | ImageStream, loss: Loss, microbatches: int
) -> dict[str, Any]:
    """All that shapes a run: what a checkpoint must agree with to be gone on from."""
    settings: dict[str, Any] = vars(loss) if dataclasses.is_dataclass(loss) else {}  # such as an `Objective`
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    run = {**vars(recipe), **settings, "loss": f"{kind.__module__}.{kind.__qualname__}"}
    run["microbatches"] = microbatches
    del run["microbatch"]
    if isinstance(teacher := run.get("teacher"), nn.Module):
        run["teacher"] = distributed.digest(teacher)
    if isinstance(dataset, ImageStream):
        run["images"] = dataset.digest
    else:
        run |= {"images": dataset.checksums["train_images"], "labels": dataset.checksums["train_labels"]}
    run |= {"mean": dataset.mean, "std": dataset.std, "start": distributed.digest(net)}
    if isinstance(net, NestedNet):
        run |= {"choices": net.selection.choices, "rounding": net.selection.rounding}
    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


def _differing(run: dict[str, Any], other: dict[str, Any]) -> str:
    """The settings of one run that another does not share."""
    return ", ".join(f"{k}={v!r}" for k, v in run.items() if k not in other or other[k] != v) or "no more"


class _Checkpoint:
    """Writes the run's state beside the last one, then swaps the two: a kill leaves a whole checkpoint."""

    def __init__(
        self, accelerator: Accelerator, run: dict[str, Any], out: str | Path | None, states: list[Any]
    ) -> None:
        self.accelerator, self.run = accelerator, run
        self.folder = None if out is None else Path(out)
        accelerator.register_for_checkpointing(*states)

    def restore(self) -> list[dict[str, float]]:
        if self.folder is None:
            return []
        last, previous = self.folder / "last", self.folder / "previous"
        if self.accelerator.is_main_process and not last.is_dir() and previous.is_dir():
            os.replace(previous, last)
        self.accelerator.wait_for_everyone()
        if not last.is_dir():
            return []
        state = json.loads((last / "run.json").read_text())
        if (made := state["run"]) != self.run:
            raise ValueError(
                f"{last} was made by another run: {_differing(made, self.run)}, this one has "
                f"{_differing(self.run, made)}; give what it was made with, or another folder"
            )
        self.accelerator.load_state(str(last))
        return state["history"]

    def save(self, history: list[dict[str, float]]) -> None:
        if self.folder is None:
            return
        new, last, previous = (self.folder / name for name in ("new", "last", "previous"))
        if self.accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)  # what a kill left of it
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()  # every process writes a part of the folder that is moved below
        if self.accelerator.is_main_process:
            (new / "run.json").write_text(json.dumps({"run": self.run, "history": history}))
            shutil.rmtree(previous, ignore_errors=True)
            if last.is_dir():
                os.replace(last, previous)
            os.replace(new, last)
        self.accelerator.wait_for_everyone()


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
    dataset : Dataset, or iterable of uint8 arrays (n, H, W, 3)
        The first `images` training images are used, as they are; or all of the given batches.
    images, batch_size : int
        For a data set.

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
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a plain average over the batches
    device = next(net.parameters()).device
    table = torch.from_numpy(normalization_table(net.mean, net.std)).to(device)
    net.train()
    if isinstance(dataset, Dataset):
        dataset = _parts(dataset.train_images[:images], batch_size)
    for part in dataset:
        x = normalize(torch.from_numpy(part).to(device), table)
        for choice in net.selection.choices:
            net(x, [choice] * len(net.switch_layers))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


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
        Takes float32 (N, 3, H, W) and `options`; returns logits.
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
    """
    device = torch.device("cpu")
    if isinstance(net, nn.Module):
        net.eval()
        device = next((parameter.device for parameter in net.parameters()), device)
    table = torch.from_numpy(normalization_table(dataset.mean, dataset.std)).to(device)
    images, labels = dataset.test_images[:limit], dataset.test_labels[:limit]
    correct = 0
    for start in range(0, len(images), batch_size):
        batch = normalize(torch.from_numpy(images[start : start + batch_size]).to(device), table)
        classes = net(batch, **options).argmax(1).cpu().numpy()
        correct += int((classes == labels[start : start + batch_size]).sum())
    return correct / len(images)
