"""Data sets as uint8 images in memory, verified by checksum."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dqt_core._extras import needed

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

ENVIRONMENT_VARIABLE = "DQT_DATA"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DOWNLOAD = "python -m dqt_core.data cifar10 DIR && export DQT_DATA=DIR"


# sha256, first half, of the copy behind the records of `reproductions/`: 93 of its images went through JPEG.
RECORDED_COPY = {
    "data_batch_1.bin": "0def081c410489f98b3935c2d405fc74",
    "data_batch_2.bin": "4d0a9f6a8434c9b3b3de28d817dc3d36",
    "data_batch_3.bin": "1a4d0920ea06101641902b09fdac800c",
    "data_batch_4.bin": "20de2186179cc65bcf69a83ca83e90a4",
    "data_batch_5.bin": "ce4b8267c2f77f8915b4299443568f52",
    "test_batch.bin": "123ca0dad8f960344d9149742165d421",
}


class DataError(RuntimeError):
    """A data set is missing or damaged; the message names the file and the command that gets it.

    Examples
    --------
    >>> require_images([], 1, "digits")
    Traceback (most recent call last):
    dqt_core.data.datasets.DataError: digits: images are list of shape (), expected uint8 (N, H, W, 1)
    """


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one data set, split into training and test.

    Attributes
    ----------
    name : str
        "cifar10" or "embedded".
    train_images, test_images : uint8 array, (N, H, W, C)
        Bytes 0..255; channels R, G, B, or one where they are grey.
    train_labels, test_labels : int64 array, (N,)
        Class numbers 0..classes-1.
    mean, std : tuple of C floats
        Per channel, of bytes divided by 255.
    classes : tuple of str
        Class names in order.

    Examples
    --------
    >>> grey, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 1, 0])
    >>> tiny = Dataset("tiny", grey, labels, grey[:2], labels[:2], (0.5,), (0.25,), ("even", "odd"))
    >>> tiny.checksums["train_images"] == hashlib.sha256(bytes(4 * 8 * 8)).hexdigest()
    True
    """

    name: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = (getattr(self, f"{split}_{kind}") for kind in ("images", "labels"))
            require_images(images, len(self.mean), f"{self.name}, {split}")
            require_labels(labels, len(images), len(self.classes), f"{self.name}, {split}")

    @functools.cached_property
    def checksums(self) -> dict[str, str]:
        """sha256 of the pixels as (N, H, W, C) uint8 in C order, and of the labels as int64."""
        return {
            f"{split}_{kind}": hashlib.sha256(getattr(self, f"{split}_{kind}").tobytes()).hexdigest()
            for split in ("train", "test")
            for kind in ("images", "labels")
        }


def require_images(images: object, channels: int, place: str) -> None:
    """Refuse images that are not bytes with their channels last.

    Parameters
    ----------
    images : uint8 array, (N, H, W, channels)
    channels : int
    place : str
        Whose images they are, for the message.

    Raises
    ------
    DataError
        If they are no such array.

    Examples
    --------
    >>> require_images(np.zeros((2, 8, 8), np.uint8), 1, "digits")
    Traceback (most recent call last):
    dqt_core.data.datasets.DataError: digits: images are uint8 of shape (2, 8, 8), expected uint8 (N, H, W, 1)
    """
    kind, shape = getattr(images, "dtype", type(images).__name__), tuple(getattr(images, "shape", ()))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or shape[3:] != (channels,):
        raise DataError(f"{place}: images are {kind} of shape {shape}, expected uint8 (N, H, W, {channels})")


def require_labels(labels: object, count: int, classes: int | None, place: str) -> None:
    """Refuse labels that are not one class number for every image.

    Parameters
    ----------
    labels : int array, (count,)
    count : int
        Images.
    classes : int or None
        Labels are 0..classes-1; None: their number is not known.
    place : str
        Whose labels they are, for the message.

    Raises
    ------
    DataError
        If they are no integers, not as many as the images, or no class numbers.

    Examples
    --------
    >>> require_labels(np.array([0, 99]), 2, 10, "digits")
    Traceback (most recent call last):
    dqt_core.data.datasets.DataError: digits: label 99 of image 2, expected 0..9; give its class number
    """
    kind, shape = getattr(labels, "dtype", type(labels).__name__), getattr(labels, "shape", None)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or shape != (count,):
        raise DataError(
            f"{place}: labels are {kind} of shape {shape}, expected integers of shape ({count},); give one "
            "class number for each image"
        )
    wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if wrong.any():
        i = int(wrong.argmax())
        most = "" if classes is None else classes - 1
        raise DataError(
            f"{place}: label {labels[i]} of image {i + 1}, expected 0..{most}; give its class number"
        )


def load(name: Literal["auto", "cifar10", "embedded"] = "auto") -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name : {"auto", "cifar10", "embedded"}
        "auto" is CIFAR-10 where the environment variable ``DQT_DATA`` is set, else the embedded set.

    Returns
    -------
    Dataset
        uint8 images in memory.

    Raises
    ------
    ValueError
        If the name is none of the three.
    DataError
        If CIFAR-10 is asked for, or ``DQT_DATA`` is set, and the files are missing or damaged.

    Examples
    --------
    >>> load("embedded").test_images.shape
    (359, 32, 32, 3)
    """
    if name not in ("auto", "cifar10", "embedded"):
        raise ValueError(f"data set {name!r} is unknown; choose 'auto', 'cifar10' or 'embedded'")
    folder = os.environ.get(ENVIRONMENT_VARIABLE)
    if name == "embedded" or (name == "auto" and not folder):
        return embedded()
    if not folder:
        raise DataError(f"CIFAR-10 was asked for and {ENVIRONMENT_VARIABLE} is not set; run: {DOWNLOAD}")
    return cifar10(folder)


def cifar10(folder: str | Path) -> Dataset:
    """Read CIFAR-10 from the official binary layout or from torchvision's download.

    Parameters
    ----------
    folder : str or Path
        Holds ``cifar-10-batches-bin/`` (binary) or ``cifar-10-batches-py/`` (torchvision, md5 verified), or
        is one of these.

    Returns
    -------
    Dataset
        50,000 training and 10,000 test images, (N, 32, 32, 3) uint8.

    Raises
    ------
    DataError
        If neither layout is there, or a file has the wrong size or the wrong labels, or differs while others
        of its folder are those of the recorded copy.
    """
    folder = Path(folder).expanduser()
    if folder.absolute().name in ("cifar-10-batches-bin", "cifar-10-batches-py"):
        folder = folder.absolute().parent
    binary = folder / "cifar-10-batches-bin"
    if binary.is_dir():
        *batches, test = [_binary_batch(binary / name) for name in RECORDED_COPY]
        _require_one_copy(binary)
        train = _concatenate(batches)
    elif (folder / "cifar-10-batches-py").is_dir():
        train, test = (_torchvision_split(folder, is_train) for is_train in (True, False))
    elif renamed := [name for name in ("test_batch.bin", "test_batch") if (folder / name).is_file()]:
        kind = "bin" if renamed[0].endswith("bin") else "py"
        raise DataError(
            f"{folder} holds {renamed[0]} itself; rename it to cifar-10-batches-{kind}, and set "
            f"{ENVIRONMENT_VARIABLE} to the folder around it"
        )
    else:
        raise DataError(f"no cifar-10-batches-bin/ or cifar-10-batches-py/ in {folder}; run: {DOWNLOAD}")
    _check_balance(train[1], 5000, folder)
    _check_balance(test[1], 1000, folder)
    return Dataset("cifar10", *train, *test, CIFAR10_MEAN, CIFAR10_STD, CIFAR10_CLASSES)


def embedded(channels: int = 3) -> Dataset:
    """The set that needs no download: scikit-learn's 8x8 digits as 32x32 images.

    Each pixel becomes a 4x4 block and 0..16 becomes 0..255. Every fifth image is a test image.

    Parameters
    ----------
    channels : int
        3: as RGB; 1: grey.

    Returns
    -------
    Dataset
        1,438 training and 359 test images, (N, 32, 32, channels) uint8, ten classes.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> embedded(channels=1).train_images.shape, len(embedded().classes)
    ((1438, 32, 32, 1), 10)
    """
    with needed("the embedded data set", "train"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    grey = (digits.images.astype(np.int64) * 255 + 8) // 16
    images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2).astype(np.uint8)
    images = np.repeat(images[..., None], channels, axis=3)
    labels = digits.target.astype(np.int64)
    is_test = np.arange(len(labels)) % 5 == 4
    names = tuple(str(digit) for digit in range(10))
    mean, std = (0.3059,) * channels, (0.3763,) * channels
    return Dataset(
        "embedded", images[~is_test], labels[~is_test], images[is_test], labels[is_test], mean, std, names
    )


def normalization_table(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The float32 value of every byte of every channel, (byte / 255 - mean) / std.

    Parameters
    ----------
    mean, std : tuple of C floats
        Per channel.

    Returns
    -------
    float32 array, (C, 256)
        The one definition of the network's input; training and lowering both read it.

    Examples
    --------
    >>> normalization_table((0.5,) * 3, (0.5,) * 3)[0, [0, 255]]
    array([-1.,  1.], dtype=float32)
    """
    bytes_ = np.arange(256)[None, :] / 255
    return ((bytes_ - np.asarray(mean)[:, None]) / np.asarray(std)[:, None]).astype(np.float32)


def _binary_batch(path: Path) -> tuple[Images, Labels]:
    if not path.is_file():
        raise DataError(f"{path} is missing; run: {DOWNLOAD}")
    rows = np.fromfile(path, np.uint8)
    if rows.size != 10_000 * 3073:
        raise DataError(f"{path} has {rows.size:,} bytes, expected 30,730,000; run: {DOWNLOAD}")
    rows = rows.reshape(10_000, 3073)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].astype(np.int64)


def _require_one_copy(folder: Path) -> None:
    """Files of the recorded copy come together: one that differs is damaged. Another copy matches in none."""
    different = [
        folder / name
        for name, digest in RECORDED_COPY.items()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest()[:32] != digest
    ]
    if 0 < len(different) < len(RECORDED_COPY):
        raise DataError(
            f"{different[0]} is damaged: its sha256 is not that of the others' copy; run: {DOWNLOAD}"
        )


def _torchvision_split(folder: Path, is_train: bool) -> tuple[Images, Labels]:
    from dqt_core.data._torchvision import import_torchvision

    try:
        split = import_torchvision().datasets.CIFAR10(folder, train=is_train, download=False)
    except RuntimeError as error:
        raise DataError(f"{folder / 'cifar-10-batches-py'} is damaged ({error}); run: {DOWNLOAD}") from error
    return np.ascontiguousarray(split.data), np.asarray(split.targets, np.int64)


def _concatenate(batches: list[tuple[Images, Labels]]) -> tuple[Images, Labels]:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _check_balance(labels: Labels, expected: int, folder: Path) -> None:
    counts = np.bincount(labels, minlength=10)
    if (counts != expected).any():  # a label above 9 makes it longer, with zeros
        raise DataError(
            f"the labels in {folder} are damaged: classes have {counts.tolist()} images, "
            f"expected {expected} each; run: {DOWNLOAD}"
        )


def download_cifar10(folder: str | Path) -> None:
    """Fetch CIFAR-10 through torchvision, which verifies it; needs a network.

    Parameters
    ----------
    folder : path
        Where it goes; `ENVIRONMENT_VARIABLE` is to name it afterwards.
    """
    from dqt_core.data._torchvision import import_torchvision

    for is_train in (True, False):
        import_torchvision().datasets.CIFAR10(folder, train=is_train, download=True)
    print(f"CIFAR-10 is complete; now: export {ENVIRONMENT_VARIABLE}={folder}")
