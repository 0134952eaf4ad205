"""ImageNet from an ordinary tree of class folders, streamed as uint8 batches of 224 x 224."""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from dqt_core._extras import needed
from dqt_core.data.datasets import DataError, Images, Labels, require_labels
from dqt_core.data.decoding import (
    CROP,
    RESIZED,
    UNREADABLE,
    cut,
    decode,
    pillow,
    printable,
    read_file,
    stated_size,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of torchvision's networks
SUFFIXES = (".jpeg", ".jpg", ".png")

Batch: TypeAlias = tuple[Images, Labels]
Resize: TypeAlias = Literal["auto"] | int | None


@dataclass(frozen=True)
class ImageFiles:
    """Files of one split with their classes; read when they are asked for.

    Attributes
    ----------
    paths : tuple of Path
    labels : int64 array, (N,)
        Class numbers: positions in `classes`.
    classes : tuple of str
        WordNet ids, sorted: torchvision's order.
    resize : int or None
        Length that the short side gets before the central 224 x 224 are cut out; None: as stored.
    missing : tuple of str
        Classes without a folder.
    unreadable : dict of Path to str
        Files that could not be decoded so far, and why; filled by `batches` where it was told to go on.

    Examples
    --------
    >>> paths = tuple(Path(f"val/{name}/1.jpeg") for name in ("n01440764", "n01443537", "n01484850"))
    >>> files = ImageFiles(paths, np.arange(3), ("n01440764", "n01443537", "n01484850"), resize=256)
    >>> files.place, files.part(slice(1, 3)).labels, len(files.sample(2))
    ('val', array([1, 2]), 2)
    """

    paths: tuple[Path, ...]
    labels: Labels
    classes: tuple[str, ...]
    resize: int | None
    missing: tuple[str, ...] = ()
    unreadable: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_labels(self.labels, len(self.paths), len(self.classes), self.place)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def place(self) -> str:
        """The split's folder, for messages."""
        return str(self.paths[0].parents[1]) if self.paths else "the split"

    def name(self, i: int) -> str:
        """The path, for messages: one line that any terminal can show."""
        return printable(str(self.paths[i]))

    def read(self, i: int) -> bytes:
        """The file of one image, undecoded."""
        return read_file(self.paths[i])

    def part(self, index: slice | Labels) -> "ImageFiles":
        """Some of the files, in the order of `index`; what cannot be read is kept together.

        Parameters
        ----------
        index : slice, or int64 array of numbers 0..N-1

        Returns
        -------
        ImageFiles
        """
        chosen = np.arange(len(self))[index]
        paths = tuple(self.paths[i] for i in chosen)
        return replace(self, paths=paths, labels=self.labels[chosen])

    def sample(self, count: int, seed: int = 0) -> "ImageFiles":
        """Files drawn at random, for calibration.

        Parameters
        ----------
        count : int
        seed : int

        Returns
        -------
        ImageFiles

        Raises
        ------
        DataError
            If there are fewer than `count` files.
        """
        if count > len(self):
            raise DataError(
                f"{count} images were asked for, {self.place} has {len(self)}; ask for fewer, or "
                "give a folder with more"
            )
        return self.part(np.random.default_rng(seed).permutation(len(self))[:count])

    def batches(self, size: int = 32, go_on: bool = False) -> Iterator[Batch]:
        """The images in order, decoded one batch at a time.

        Parameters
        ----------
        size : int
            Images a batch.
        go_on : bool
            True: a file that cannot be decoded is entered in `unreadable` and left out of its batch. False:
            it ends the run.

        Yields
        ------
        images : uint8 array, (n, 224, 224, 3)
        labels : int64 array, (n,)

        Raises
        ------
        DataError
            Of the first file that cannot be decoded, unless `go_on`.
        ImportError
            If Pillow is not installed.
        """
        for start in range(0, len(self), size):
            read: list[tuple[Images, int]] = []
            for i in range(start, min(start + size, len(self))):
                try:
                    read.append((cut(decode(self.read(i)), self.resize), int(self.labels[i])))
                except UNREADABLE as error:
                    self._note(i, error, go_on)
            if read:
                images, labels = zip(*read, strict=True)
                yield np.stack(images), np.asarray(labels, np.int64)

    def _note(self, i: int, error: Exception, go_on: bool) -> None:
        self.unreadable[self.paths[i]] = str(error)
        if not go_on:
            raise DataError(
                f"{self.name(i)} (image {i + 1} of {len(self)}) cannot be decoded: {error}; get the file "
                "again, or allow unreadable images: they are then left out and named"
            ) from error


def open_split(
    root: str | Path,
    split: str = "val",
    class_count: int = 1000,
    is_sample: bool = False,
    resize: Resize = "auto",
) -> ImageFiles:
    """Find the images of ``root/<split>/<WordNet id>/``.

    Parameters
    ----------
    root : str or Path
        Holds the split's folder, and ``synsets.txt`` where some classes have no folder: line i begins with
        the WordNet id of class i.
    split : str
        "val" or "train".
    class_count : int
        Classes that the network knows.
    is_sample : bool
        Whether classes may lack a folder. Then ``synsets.txt`` numbers them.
    resize : int, None or "auto"
        "auto": 256, or None where the images are stored smaller than that and at least 224 square.

    Returns
    -------
    ImageFiles
        Sorted by class, then by name.

    Raises
    ------
    DataError
        If the folder is missing or empty, a class has no folder, the label map is not `class_count` sorted
        WordNet ids, or a folder is not in it; or, without a map, the other split beside it has other classes,
        or the classes are numbers that sort otherwise as names.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as root:
    ...     for name in ("n01440764", "n01443537"):
    ...         (Path(root) / "val" / name).mkdir(parents=True)
    ...         pillow().new("RGB", (300, 256), "grey").save(Path(root) / "val" / name / "1.png")
    ...     files = open_split(root, class_count=2)
    ...     images, labels = next(files.batches())
    >>> files.resize, images.shape, labels.tolist()
    (256, (2, 224, 224, 3), [0, 1])
    """
    root = Path(root).expanduser()
    if not (root / split).is_dir() and (root / "imagenet" / split).is_dir():
        root = root / "imagenet"
    folder = root / split
    if not folder.is_dir():
        inner = f"; give its parent, {root.absolute().parent}" if root.absolute().name == split else ""
        raise DataError(f"{folder} is missing; expected {split}/<WordNet id>/<image> in {root}{inner}")
    found = _class_folders(folder)
    classes = _classes(root, folder, found, class_count)
    missing = tuple(name for name in classes if name not in set(found))
    if missing and not is_sample:
        raise DataError(
            f"{folder} lacks {len(missing)} of {class_count} class folders: {_some(missing)}; get them, or "
            "say that this is a sample"
        )
    number = {name: i for i, name in enumerate(classes)}
    paths = [path for name in found for path in sorted((folder / name).iterdir()) if _is_image(path)]
    full = Counter(path.parent.name for path in paths)
    if empty := [name for name in found if not full[name]]:
        raise DataError(f"{folder} has {len(empty)} class folders without an image: {_some(empty)}")
    labels = np.asarray([number[path.parent.name] for path in paths], np.int64)
    length = _resize(paths) if resize == "auto" else resize
    return ImageFiles(tuple(paths), labels, classes, length, missing)


def _classes(root: Path, folder: Path, found: list[str], class_count: int) -> tuple[str, ...]:
    """WordNet ids in the order of class numbers, from the map or from the folders."""
    if not found:
        raise DataError(f"{folder} has no class folders; expected {class_count}")
    listing = root / "synsets.txt"
    if not listing.is_file():
        if len(found) != class_count:
            raise DataError(
                f"{folder} has {len(found)} class folders, the network knows {class_count} classes; without "
                f"all of them {listing} must number them"
            )
        _require_order(folder, found)
        _require_other_split(root, folder, found)
        return tuple(found)
    classes = tuple(line.split()[0] for line in _lines(listing) if line.strip())
    _require_map(listing, classes, class_count)
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(f"{folder} has {len(unknown)} folders that {listing} lacks: {_some(unknown)}")
    return classes


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _require_order(folder: Path, found: list[str]) -> None:
    """Classes are numbered by sorted name; names that are numbers say another order."""
    if all(re.fullmatch("[0-9]+", name) for name in found):
        for before, after in pairwise(found):
            if int(before) >= int(after):
                raise DataError(
                    f"{folder} has folders named by number, and {after!r} comes after {before!r}; name them "
                    "by WordNet id, as the networks number them"
                )


def _require_other_split(root: Path, folder: Path, found: list[str]) -> None:
    """Each split is numbered by its own folders, so that both have to be the same ones."""
    other = root / {"val": "train", "train": "val"}.get(folder.name, folder.name)
    if other != folder and other.is_dir() and (names := _class_folders(other)):
        require_same_classes(tuple(found), str(folder), tuple(names), str(other))


def require_same_classes(first: tuple[str, ...], place: str, second: tuple[str, ...], other: str) -> None:
    """Refuse two splits whose classes have other names, or another order.

    Parameters
    ----------
    first, second : tuple of str
        Names in the order of class numbers.
    place, other : str
        Where they are from, for the message.

    Raises
    ------
    DataError

    Examples
    --------
    >>> require_same_classes(("0",), "val", ("n01440764",), "train")
    Traceback (most recent call last):
    dqt_core.data.datasets.DataError: class 0 is '0' in val and 'n01440764' in train; name the folders alike
    """
    if first == second:
        return
    if len(first) != len(second):
        alone = sorted(set(first) ^ set(second))
        raise DataError(
            f"{place} has {len(first)} classes, {other} {len(second)}; {_some(alone)} in one of them alone; "
            "both need the same folders"
        )
    i, one, two = next((i, a, b) for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    raise DataError(f"class {i} is {one!r} in {place} and {two!r} in {other}; name the folders alike")


def _lines(listing: Path) -> list[str]:
    """Lines of a text in UTF-8, UTF-16 with a mark, or else Latin-1: ids are the same in all of them."""
    content = listing.read_bytes()
    try:
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if "\0" in text:
        raise DataError(f"{listing} is no text in UTF-8; save it as UTF-8")
    return text.replace("\r", "\n").split("\n")


def _require_map(listing: Path, classes: tuple[str, ...], class_count: int) -> None:
    wrong = [name for name in classes if not re.fullmatch("n[0-9]{8}", name)]
    if wrong or len(classes) != class_count:
        what = f"{len(wrong)} are no WordNet ids: {_some(wrong)}" if wrong else f"{class_count} are expected"
        raise DataError(f"{listing} names {len(classes)} classes, {what}; line i is the id of class i")
    for i, (before, after) in enumerate(pairwise(classes), 2):
        if before >= after:
            raise DataError(
                f"{listing}, line {i}: {after} follows {before}; the networks number the classes by sorted id"
            )


def _resize(paths: list[Path]) -> int | None:
    """None where the first images of the split are squares that were cut before."""
    sizes = {stated_size(path) for path in paths[:16]} - {
        None
    }  # what cannot be read is named when it is its turn
    stored_cut = len(sizes) == 1 and all(CROP <= side[0] == side[1] < RESIZED for side in sizes if side)
    return None if stored_cut else RESIZED


def photographs() -> Images:
    """The two photographs that come with scikit-learn, cut to 224 x 224, for a machine without ImageNet.

    Returns
    -------
    uint8 array, (2, 224, 224, 3)
        A temple and a flower.

    Raises
    ------
    ImportError
        If scikit-learn or Pillow is not installed.

    Examples
    --------
    >>> photographs().shape
    (2, 224, 224, 3)
    """
    with needed("imagenet.photographs", "train"):
        from sklearn.datasets import load_sample_images
    pictures = [pillow().fromarray(pixels) for pixels in load_sample_images().images]
    return np.stack([cut(picture, RESIZED) for picture in pictures])


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _some(names: list[str] | tuple[str, ...]) -> str:
    return printable(", ".join(names[:5])) + (", ..." if len(names) > 5 else "")
