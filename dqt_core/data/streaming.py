"""Training images at scale: from class folders or packed shards, decoded by worker processes.

The order of the images and every random crop depend on (seed, epoch, image) alone: not on the number of
processes or workers, not on where a run was interrupted, not on how the images are stored.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dqt_core._extras import needed
from dqt_core.data._torchvision import import_torchvision
from dqt_core.data.datasets import DataError, Images, Labels, require_labels
from dqt_core.data.decoding import UNREADABLE, cut, decode, some_reasons
from dqt_core.data.imagenet import MEAN, STD

with needed("dqt_core.data.streaming", "train"):
    import torch
    from torch import Tensor
    from torch.utils.data import DataLoader
    from tqdm import tqdm

Key = tuple[int, Tensor]  # epoch, image numbers


class Stored(Protocol):
    """Encoded images with their labels: `imagenet.ImageFiles` or `shards.Packed`."""

    labels: Labels

    @property
    def resize(self) -> int | None:
        """Length of the short side before a central cut; None: as stored."""

    @property
    def place(self) -> str:
        """The folder, for messages."""

    def name(self, i: int) -> str:
        """What the image is called in messages."""

    def read(self, i: int) -> bytes:
        """Its file."""


@dataclass
class ImageStream:
    """Training images as microbatches of random crops, decoded in worker processes.

    Attributes
    ----------
    stored : Stored
    size : int
        Side of the crops.
    scale : pair of floats
        Least and greatest part of the picture's area that a crop takes, before it is resized.
    seed : int
        Of the crops.
    workers : int
        Processes that decode for each training process; 0: it does so itself.
    unreadable_limit : int
        So many unreadable images are replaced by the next one of the data set and named, on the screen and in
        `log`; one more ends the run, which can be resumed.
    log : path, optional
        File that gets a line for every unreadable image.
    mean, std : tuple of 3 floats
        The normalisation, which the network's input takes.

    Examples
    --------
    >>> from dqt_core.data.imagenet import ImageFiles
    >>> files = ImageFiles((Path("train/n01440764/1.jpeg"),) * 3, np.arange(3), ("a", "b", "c"), 256)
    >>> stream = ImageStream(files, size=32)
    >>> len(stream), stream.digest == ImageStream(files, size=32, seed=1).digest
    (3, False)
    """

    stored: Stored
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    seed: int = 0
    workers: int = 0
    unreadable_limit: int = 100
    log: Path | None = None
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_labels(self.stored.labels, len(self.stored.labels), None, self.stored.place)

    def __len__(self) -> int:
        return len(self.stored.labels)

    @property
    def digest(self) -> str:
        """Of the labels in order, and of what is done to the images: a checkpoint knows its data by it."""
        settings = f"{self.size} {self.scale} {self.flip} {self.seed} "
        return hashlib.sha256(settings.encode() + self.stored.labels.tobytes()).hexdigest()

    def batches(self, keys: Iterable[Key]) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of each key, in order.

        Parameters
        ----------
        keys : iterable of (int, int64 tensor (n,))
            Epoch and image numbers; consumed a little ahead of what is yielded.

        Yields
        ------
        images : uint8 tensor, (n, size, size, 3)
        labels : int64 tensor, (n,)

        Raises
        ------
        DataError
            If more than `unreadable_limit` images could not be decoded.
        """
        loader = DataLoader(
            _Crops(self.stored, self.size, self.scale, self.flip, self.seed),
            batch_size=None,  # a key is a whole microbatch
            sampler=keys,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from the training's own
        )
        for images, labels, unreadable in loader:
            for name, reason in unreadable.items():
                self._note(name, reason)
            yield images, labels

    def _note(self, name: str, reason: str) -> None:
        if name in self.unreadable:
            return
        self.unreadable[name] = reason
        line = f"unreadable, replaced by the next image: {name}: {reason}"
        tqdm.write(line)
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"{line}\n")
        if len(self.unreadable) > self.unreadable_limit:
            raise DataError(
                f"{len(self.unreadable)} images cannot be decoded, at most {self.unreadable_limit} were "
                f"allowed: {some_reasons(self.unreadable)}; get them again or allow more, and start the run "
                "again: it goes on from its last checkpoint"
            )


def central(
    stored: Stored, count: int, seed: int = 0, batch_size: int = 32, go_on: bool = False
) -> Iterator[Images]:
    """Images drawn at random, cut as for evaluation: what steps and batch-norm tables are taken from.

    Parameters
    ----------
    stored : Stored
    count : int
        Of images, 1..N.
    seed : int
        Of the draw.
    batch_size : int
        Images at a time, 1 or more.
    go_on : bool
        Whether to take another image for one that cannot be decoded.

    Yields
    ------
    uint8 array, (n, 224, 224, 3)

    Raises
    ------
    DataError
        If there are fewer than `count` images, or one cannot be decoded.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dqt_core.data.imagenet import ImageFiles, pillow
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "1.png"
    ...     pillow().new("RGB", (300, 256), "grey").save(path)
    ...     files = ImageFiles((path,) * 5, np.zeros(5, np.int64), ("a",), resize=256)
    ...     shapes = [images.shape for images in central(files, 4, batch_size=3)]
    >>> shapes
    [(3, 224, 224, 3), (1, 224, 224, 3)]
    """
    order = np.random.default_rng(seed).permutation(len(stored.labels)).tolist()
    if count > len(order):
        raise DataError(f"{count} images were asked for, {stored.place} has {len(order)}; ask for fewer")
    found: list[Images] = []
    for i in order:
        if count == 0:
            break
        try:
            found.append(cut(decode(stored.read(i)), stored.resize))
        except UNREADABLE as error:
            if not go_on:
                raise DataError(f"{stored.name(i)} cannot be decoded: {error}; get the file again") from error
            continue
        count -= 1
        if len(found) == batch_size or count == 0:
            yield np.stack(found)
            found = []
    if count:
        raise DataError(
            f"{count} images are missing: {stored.place} has {len(order)}, and too many cannot be decoded; "
            "ask for fewer, or get them again"
        )


class _Crops(torch.utils.data.Dataset[Any]):
    """Microbatches of random crops, by key."""

    def __init__(self, stored: Stored, size: int, scale: tuple[float, float], flip: bool, seed: int) -> None:
        self.stored, self.seed = stored, seed
        transforms = import_torchvision().transforms
        chain = [transforms.RandomResizedCrop(size, scale)] + [transforms.RandomHorizontalFlip()] * flip
        self.transform = transforms.Compose(chain)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, dict[str, str]]:
        epoch, index = key
        unreadable: dict[str, str] = {}
        with torch.random.fork_rng(devices=[]):
            pairs = [self._one(epoch, i, unreadable) for i in index.tolist()]
        images, labels = zip(*pairs, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels), unreadable

    def _one(self, epoch: int, i: int, unreadable: dict[str, str]) -> tuple[NDArray[np.uint8], int]:
        """A crop of image i, or of the next one that can be decoded."""
        count = len(self.stored.labels)
        for j in (k % count for k in range(i, i + count)):
            try:
                picture = decode(self.stored.read(j))
            except UNREADABLE as error:
                unreadable[self.stored.name(j)] = str(error) or type(error).__name__
                continue
            seed = np.random.SeedSequence([self.seed, epoch, j]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed))
            return np.asarray(self.transform(picture), np.uint8), int(self.stored.labels[j])
        raise DataError(f"none of {count} images can be decoded: {some_reasons(unreadable)}")
