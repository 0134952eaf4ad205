"""Packed images: opened, read by position, and compared with what was packed."""

import functools
import hashlib
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.data.datasets import DataError, Labels, require_labels
from dqt_core.data.decoding import DecodingError

INDEX = "index.npz"  # written last: a folder without it is not whole
COMMAND = "python -m reproductions.imagenet.pack"
ARRAYS = {  # of the index: kind of type, dimensions
    "names": ("S", 1),
    "places": ("i", 2),
    "labels": ("i", 1),
    "sums": ("S", 1),
    "shards": ("S", 1),
    "classes": ("U", 1),
    "left_out": ("U", 2),
    "resize": ("i", 0),
}


@dataclass(frozen=True)
class Packed:
    """Images in tar files, read by position; made by `pack`, found by `open_packed`.

    Attributes
    ----------
    folder : Path
    labels : int64 array, (N,)
    names : bytes array, (N,)
    places : int64 array, (N, 3)
        Shard, first byte, length.
    sums : bytes array, (N,)
        Of each image's file: the first half of its sha256. Every reading is compared with it.
    shards : bytes array, (shards,)
        sha256 of each tar file; what `verify` compares.
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
    sums: NDArray[np.bytes_]
    shards: NDArray[np.bytes_]
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
        """The image's file, in one read; a `DecodingError` if it is not the one that was packed."""
        shard, start, length = self.places[i].tolist()
        # a folder that was packed anew while this process runs holds other files of the same names
        handle = _handle(self.folder / shard_name(shard), bytes(self.shards[shard]))
        found = os.pread(handle.number, length, start)
        if sum_of(found) != self.sums[i]:
            raise DecodingError(
                "its bytes are not those that were packed: the shard is damaged, copy it again"
            )
        return found


class _Handle:
    """An open shard; forked workers share it, which reading by position allows."""

    def __init__(self, shard: Path) -> None:
        self.number = os.open(shard, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _most_open() -> int:
    """Half of the files that this process may have open."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 256
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(1, min(4096, allowed // 2))


@functools.lru_cache(maxsize=_most_open())
def _handle(shard: Path, digest: bytes) -> _Handle:
    return _Handle(shard)


def shard_name(number: int) -> str:
    """File name of a shard.

    Parameters
    ----------
    number : int

    Returns
    -------
    str

    Examples
    --------
    >>> shard_name(7)
    '000007.tar'
    """
    return f"{number:06}.tar"


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
        If the index or a shard is missing, the index is damaged or was edited, or a shard is shorter than the
        index says.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dqt_core.data import imagenet, packing
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "1.png"
    ...     imagenet.pillow().new("RGB", (64, 64), "grey").save(path)
    ...     files = imagenet.ImageFiles((path,) * 3, np.arange(3), ("a", "b", "c"), resize=None)
    ...     _ = packing.pack(files, Path(folder) / "packed")
    ...     packed = open_packed(Path(folder) / "packed")
    ...     print(packed.read(0) == path.read_bytes(), packed.labels)
    True [0 1 2]
    """
    folder = Path(folder)
    found = _read_index(folder)
    for number in range(len(found["shards"])):
        shard, places = folder / shard_name(number), found["places"][found["places"][:, 0] == number]
        least = int(places[:, 1:].sum(1).max())
        size = shard.stat().st_size if shard.is_file() else 0
        if size < least:
            raise DataError(f"{shard} has {size} bytes, its {len(places)} images need {least}; copy it again")
    left_out = dict(found["left_out"].tolist())
    classes = tuple(found["classes"].tolist())
    resize = int(found["resize"]) or None
    arrays = {name: found[name] for name in ("labels", "names", "places", "sums", "shards")}
    return Packed(folder=folder, classes=classes, left_out=left_out, resize=resize, **arrays)


def verify(packed: Packed) -> list[str]:
    """Read every shard from its first byte to its last, and compare it with what was packed.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    list of str
        File names of the shards that differ; empty if the folder is whole.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dqt_core.data import imagenet, packing
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "1.png"
    ...     imagenet.pillow().new("RGB", (64, 64), "grey").save(path)
    ...     files = imagenet.ImageFiles((path,) * 3, np.arange(3), ("a", "b", "c"), resize=None)
    ...     packed = packing.pack(files, Path(folder) / "packed", per_shard=2)
    ...     with (packed.folder / "000001.tar").open("ab") as shard:
    ...         _ = shard.write(b"more")
    ...     print(verify(packed))
    ['000001.tar']
    """
    return [
        shard_name(number)
        for number, digest in enumerate(packed.shards.tolist())
        if digest_of_file(packed.folder / shard_name(number)) != digest
    ]


def _read_index(folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / INDEX
    if not path.is_file():
        unfinished = Path(f"{folder.resolve()}.unfinished").is_dir()
        state = "packing was interrupted; start it again" if unfinished else f"make it with: {COMMAND}"
        raise DataError(f"{path} is missing: {state}")
    try:
        with path.open("rb") as file, np.load(file) as index:
            found = {name: index[name] for name in [*ARRAYS, "digest"]}
    except Exception as error:  # a damaged zip file raises whatever its parts do
        reason = textwrap.shorten(str(error), 200) or type(error).__name__  # some hold the whole file
        raise DataError(
            f"{path} is damaged ({reason}); copy it again, or pack again with: {COMMAND}"
        ) from error
    forms = {name: (found[name].dtype.kind, found[name].ndim) for name in ARRAYS}
    if forms != ARRAYS or found["digest"].tolist() != digest_of_arrays(found):
        raise DataError(f"{path} is not as it was written; copy it again, or pack again with: {COMMAND}")
    _require_consistent(path, found)
    return found


def _require_consistent(path: Path, found: Mapping[str, NDArray[Any]]) -> None:
    """What any program that writes such an index has to keep."""
    places, count = found["places"], len(found["names"])
    require_labels(found["labels"], count, len(found["classes"]), str(path))
    numbers = np.unique(places[:, 0]).tolist() if places.shape == (count, 3) else []
    if not count or len(found["sums"]) != count or numbers != list(range(len(found["shards"]))):
        raise DataError(
            f"{path} names {count} images at {len(places)} places in {len(found['shards'])} shards, which do "
            f"not agree; pack again with: {COMMAND}"
        )


def sum_of(content: bytes) -> bytes:
    """First half of the sha256 of an image's file.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    bytes

    Examples
    --------
    >>> sum_of(b"")
    b'e3b0c44298fc1c149afbf4c8996fb924'
    """
    return hashlib.sha256(content).hexdigest()[:32].encode()


def digest_of_file(path: Path) -> bytes:
    """sha256 of a whole file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bytes

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     (Path(folder) / "empty").touch()
    ...     digest_of_file(Path(folder) / "empty")[:12]
    b'e3b0c44298fc'
    """
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest().encode()


def digest_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """sha256 of an index.

    Parameters
    ----------
    arrays : mapping of str to array
        Those of `ARRAYS`.

    Returns
    -------
    bytes
    """
    digest = hashlib.sha256()
    for name in ARRAYS:
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest().encode()
