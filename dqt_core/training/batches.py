"""Training images as a run takes them: an order that depends on the seed alone, crops, flips, look-up."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dqt_core.data import Dataset, normalization_table
from dqt_core.data.streaming import ImageStream
from dqt_core.training.recipe import Recipe


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
    images : uint8 tensor, (N, H, W, C)
    table : float32 tensor, (C, 256)
        `data.normalization_table`.

    Returns
    -------
    float32 tensor, (N, C, H, W), channels_last in memory

    Examples
    --------
    >>> normalize(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.ones(3, 256)).shape
    torch.Size([1, 3, 2, 2])
    """
    channel = torch.arange(len(table), device=images.device)
    return table[channel, images.long()].permute(0, 3, 1, 2)


class Batches:
    """The training images as microbatches, in an order that depends on (seed, epoch) alone."""

    def __init__(self, dataset: Dataset | ImageStream, recipe: Recipe, accelerator: Accelerator) -> None:
        self.device, self.recipe = accelerator.device, recipe
        self.table = torch.from_numpy(normalization_table(dataset.mean, dataset.std)).to(self.device)
        self.stream = dataset if isinstance(dataset, ImageStream) else None
        if isinstance(dataset, Dataset):
            # copies: torch takes no array that runs backwards, is read-only or big-endian
            images, labels = np.array(dataset.train_images), np.array(dataset.train_labels, np.int64)
            self.images = torch.from_numpy(images).to(self.device)
            self.labels = torch.from_numpy(labels).to(self.device)
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
        self.microbatches = microbatches_of(recipe, accelerator.num_processes)
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


def microbatches_of(recipe: Recipe, processes: int) -> int:
    """How many microbatches a global batch has.

    Parameters
    ----------
    recipe : Recipe
    processes : int
        1 or more.

    Returns
    -------
    int
        A multiple of `processes`.

    Raises
    ------
    ValueError
        If the batch cannot be shared out evenly.

    Examples
    --------
    >>> microbatches_of(Recipe(epochs=1, batch_size=128, microbatch=32), processes=2)
    4
    """
    if recipe.microbatch is None:
        return processes
    count, rest = divmod(recipe.batch_size, recipe.microbatch)
    if rest or count % processes:
        raise ValueError(
            f"batch_size={recipe.batch_size} in microbatches of {recipe.microbatch} cannot be shared out "
            f"evenly among {processes} processes; make it a multiple of {recipe.microbatch * processes}"
        )
    return count
