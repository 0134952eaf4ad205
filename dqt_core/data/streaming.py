"""Training images at scale: from class folders or packed shards, decoded by worker processes.

The order of the images and every random crop depend on (seed, epoch, image) alone: not on the number of
processes or workers, not on where a run was interrupted, not on how the images are stored.
"""

import functools
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dqt_core.data import DataError, Images, Labels
from dqt_core.data._torchvision import import_torchvision
from dqt_core.data.imagenet import DAMAGE, MEAN, STD, ImageFiles, cut, pillow

Key = tuple[int, Tensor]  # epoch, image numbers
INDEX = "index.npz"  # written last: a folder without it is not whole


class Stored(Protocol):
    """Encoded images with their labels: `ImageFiles` or `Packed`."""

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


@dataclass(frozen=True)
class Packed:
    """Images in tar files in WebDataset's format, read by position; made by `pack`, found by `open_packed`.

    Attributes
    ----------
    folder : Path
    labels : int64 array, (N,)
    names : bytes array, (N,)
    places : int64 array, (N, 3)
        Shard, first byte, length.
    classes : tuple of str
    left_out : dict of str to str
        Files that could not be decoded when the shards were made, and why.
    resize : int or None
        Length of the short side before a central cut; None: as stored.
    """

    folder: Path
    labels: Labels
    names: NDArray[np.bytes_]
    places: NDArray[np.int64]
    classes: tuple[str, ...]
    left_out: dict[str, str]
    resize: int | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def place(self) -> str:
        """The folder, for messages."""
        return str(self.folder)

    def name(self, i: int) -> str:
        """Shard and file name."""
        return f"{self.folder / shard_name(self.places[i, 0])}: {self.names[i].decode()}"

    def read(self, i: int) -> bytes:
        """The image's file, in one read."""
        shard, start, length = self.places[i].tolist()
        found = os.pread(_handle(self.folder / shard_name(shard)), length, start)
        if len(found) < length:
            raise OSError(f"the shard ends {length - len(found)} bytes early")
        return found


@functools.lru_cache(maxsize=4096)
def _handle(shard: Path) -> int:
    """An open shard; forked workers share it, which reading by position allows."""
    return os.open(shard, os.O_RDONLY)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:06}.tar"


def pack(
    files: ImageFiles, folder: str | Path, per_shard: int = 1000, seed: int = 0, workers: int = 1
) -> Packed:
    """Write images, as they are, into tar files in WebDataset's format, in random order.

    Every image is decoded once: one that cannot be is left out, and named in the index.

    Parameters
    ----------
    files : ImageFiles
    folder : str or Path
        Must not exist; it gets its name when it is whole.
    per_shard : int
        Images in a tar file.
    seed : int
        Of the order.
    workers : int
        Processes that decode.

    Returns
    -------
    Packed

    Raises
    ------
    DataError
        If the folder exists, or no image can be decoded.
    ImportError
        If webdataset is not installed.

    Notes
    -----
    Other programs read the shards with ``webdataset.WebDataset``: keys "jpg" (or "png") and "cls".
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists; give a new folder, or remove it")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed).permutation(len(files))
    files = files.part(numbers)
    kept: list[int] = []
    left_out: dict[str, str] = {}
    with _shard_writer(unfinished, per_shard) as writer, ProcessPoolExecutor(workers) as pool:
        checked = pool.map(_check, files.paths, chunksize=16)
        found = zip(tqdm(files.paths), files.labels.tolist(), numbers.tolist(), checked, strict=False)
        for path, label, number, error in found:
            if error:
                left_out[str(path)] = error
            else:
                kept.append(number)
                kind = "png" if path.suffix.lower() == ".png" else "jpg"
                key = f"{path.parent.name}/{path.stem.replace('.', '_')}"
                writer.write({"__key__": key, kind: path.read_bytes(), "cls": str(label).encode()})
    if len(left_out) == len(files):
        raise DataError(f"none of {len(files)} images can be decoded: {_some(left_out)}")
    _write_index(unfinished, np.argsort(kept), files, left_out)
    os.replace(unfinished, folder)
    return open_packed(folder)


def _shard_writer(folder: Path, per_shard: int) -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError('packing needs webdataset: pip install "dqt_core[train]"') from error
    pattern = str(folder / shard_name(0).replace("000000", "%06d"))
    # the time of writing would make every packing another one
    return webdataset.ShardWriter(pattern, maxcount=per_shard, maxsize=1e12, verbose=0, mtime=0)


def _check(path: Path) -> str:
    """Why an image cannot be decoded; empty if it can."""
    try:
        with pillow().open(path) as opened:
            opened.convert("RGB")
    except DAMAGE as error:
        return str(error) or type(error).__name__
    return ""


def _write_index(
    folder: Path, order: NDArray[np.int64], files: ImageFiles, left_out: Mapping[str, str]
) -> None:
    """The images are numbered as in their folders: shards are another way to store them, no other data."""
    names: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for number, shard in enumerate(sorted(folder.glob("*.tar"))):
        with tarfile.open(shard) as opened:
            for member in opened:
                if member.name.endswith(".cls"):
                    content = opened.extractfile(member)
                    assert content is not None, "the writer wrote files alone"
                    labels.append(int(content.read()))
                else:
                    names.append(member.name.encode())
                    places.append((number, member.offset_data, member.size))
    np.savez(
        folder / INDEX,
        names=np.array(names)[order],
        places=np.array(places, np.int64)[order],
        labels=np.array(labels, np.int64)[order],
        classes=np.array(files.classes),
        resize=np.array(files.resize or 0),
        left_out=np.array(list(left_out.items()), np.str_).reshape(-1, 2),
    )


def open_packed(folder: str | Path) -> Packed:
    """Open shards that `pack` made.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    Packed

    Raises
    ------
    DataError
        If the index or a shard is missing, or a shard has another length than the index says.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        unfinished = folder.with_name(f"{folder.name}.unfinished").is_dir()
        state = (
            "packing was interrupted; start it again"
            if unfinished
            else "make it with: python -m reproductions.imagenet.pack"
        )
        raise DataError(f"{folder / INDEX} is missing: {state}")
    with np.load(folder / INDEX) as index:
        found = {key: index[key] for key in ("names", "places", "labels", "classes", "left_out", "resize")}
    for number in np.unique(found["places"][:, 0]).tolist():
        shard, places = folder / shard_name(number), found["places"][found["places"][:, 0] == number]
        least = int(places[:, 1:].sum(1).max())
        size = shard.stat().st_size if shard.is_file() else 0
        if size < least:
            raise DataError(f"{shard} has {size} bytes, its {len(places)} images need {least}; copy it again")
    left_out = dict(found["left_out"].tolist())
    classes = tuple(found["classes"].tolist())
    resize = int(found["resize"]) or None
    return Packed(folder, found["labels"], found["names"], found["places"], classes, left_out, resize)


@dataclass
class ImageStream:
    """Training images as microbatches of random crops, decoded in worker processes.

    Attributes
    ----------
    stored : ImageFiles or Packed
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
            with self.log.open("a") as log:
                log.write(f"{line}\n")
        if len(self.unreadable) > self.unreadable_limit:
            raise DataError(
                f"{len(self.unreadable)} images cannot be decoded, at most {self.unreadable_limit} were "
                f"allowed: {_some(self.unreadable)}; get them again or allow more, and start the run again: "
                "it goes on from its last checkpoint"
            )


def central(
    stored: Stored, count: int, seed: int = 0, batch_size: int = 32, go_on: bool = False
) -> Iterator[Images]:
    """Images drawn at random, cut as for evaluation: what steps and batch-norm tables are taken from.

    Parameters
    ----------
    stored : ImageFiles or Packed
    count : int
    seed : int
        Of the draw.
    batch_size : int
    go_on : bool
        Whether to take another image for one that cannot be decoded.

    Yields
    ------
    uint8 array, (n, 224, 224, 3)

    Raises
    ------
    DataError
        If there are fewer than `count` images, or one cannot be decoded.
    """
    order = np.random.default_rng(seed).permutation(len(stored.labels)).tolist()
    if count > len(order):
        raise DataError(f"{count} images were asked for, {stored.place} has {len(order)}; ask for fewer")
    found: list[Images] = []
    for i in order:
        if count == 0:
            break
        try:
            with pillow().open(io.BytesIO(stored.read(i))) as opened:
                found.append(cut(opened.convert("RGB"), stored.resize))
        except DAMAGE as error:
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
                with pillow().open(io.BytesIO(self.stored.read(j))) as opened:
                    picture = opened.convert("RGB")
            except DAMAGE as error:
                unreadable[self.stored.name(j)] = str(error) or type(error).__name__
                continue
            seed = np.random.SeedSequence([self.seed, epoch, j]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed))
            return np.asarray(self.transform(picture), np.uint8), int(self.stored.labels[j])
        raise DataError(f"none of {count} images can be decoded: {_some(unreadable)}")


def _some(reasons: Mapping[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(reasons.items())[:3]]
    return ", ".join(shown) + (", ..." if len(reasons) > 3 else "")
