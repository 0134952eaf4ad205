"""Images in a few large files instead of a million small ones: for a shared disk, in WebDataset's format."""

import contextlib
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core._extras import needed
from dqt_core.data.datasets import DataError
from dqt_core.data.decoding import DecodingError, decode, printable, read_file, some_reasons
from dqt_core.data.holding import held
from dqt_core.data.imagenet import ImageFiles
from dqt_core.data.shards import (
    INDEX,
    Packed,
    digest_of_arrays,
    digest_of_file,
    open_packed,
    shard_name,
    sum_of,
)


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
        Images in a tar file, 1 or more.
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
        If the folder exists, another process is packing into it, a decoding process was killed, or no image
        can be decoded.
    ValueError
        If `per_shard` is not positive.
    OSError
        If the shards cannot be written.
    ImportError
        If webdataset is not installed.

    Notes
    -----
    Other programs read the shards with ``webdataset.WebDataset``: keys "jpg" (or "png") and "cls". An image
    is called by its class folder and its name, dots replaced; a number is added where two would be the same.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dqt_core.data.imagenet import pillow
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "1.png"
    ...     pillow().new("RGB", (64, 64), "grey").save(path)
    ...     files = ImageFiles((path,) * 3, np.arange(3), ("a", "b", "c"), resize=None)
    ...     packed = pack(files, Path(folder) / "packed", per_shard=2)
    >>> len(packed), packed.places[:, 0].tolist()  # the shard of each
    (3, [0, 1, 0])
    """
    from tqdm import tqdm

    folder = Path(folder)
    if per_shard < 1:
        raise ValueError(f"per_shard is {per_shard}, a shard holds at least 1 image")
    if folder.exists():
        raise DataError(f"{folder} exists; give a new folder, or remove it")
    keys = _keys(files)
    numbers = np.random.default_rng(seed).permutation(len(files))
    shuffled = files.part(numbers)
    kept: list[int] = []
    left_out: dict[str, str] = {}
    with _unfinished(folder) as place:
        with _shard_writer(place, per_shard) as writer, _checked(shuffled, workers) as checked:
            for number, reason in zip(tqdm(numbers.tolist()), checked, strict=True):
                path = files.paths[number]
                try:
                    content = _unless(reason, path)
                except DecodingError as error:
                    left_out[files.name(number)] = str(error)
                    continue
                kept.append(number)
                kind = "png" if path.suffix.lower() == ".png" else "jpg"
                label = str(files.labels[number]).encode()
                writer.write({"__key__": keys[number], kind: content, "cls": label})
        if not kept:
            raise DataError(f"none of {len(files)} images can be decoded: {some_reasons(left_out)}")
        _write_index(place, np.argsort(kept), files, left_out)
        os.replace(place, folder)
    return open_packed(folder)


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """An empty folder to pack into, this process's alone."""
    place = Path(f"{folder.resolve()}.unfinished")
    place.mkdir(parents=True, exist_ok=True)
    with held(place, f"packing into {place}"):
        left = [*place.glob("*.tar"), *place.glob(INDEX)]
        if left:
            print(f"{place}: {len(left)} files of an interrupted packing are removed", file=sys.stderr)
        for file in left:
            file.unlink()
        try:
            yield place
        except OSError as error:
            told = (
                f"shards cannot be written to {place} ({error.strerror}); make room, or give another folder"
            )
            raise OSError(error.errno, told) from error


@contextlib.contextmanager
def _checked(files: ImageFiles, workers: int) -> Iterator[Iterator[str]]:
    """Of each image why it cannot be decoded, from other processes."""
    pool = ProcessPoolExecutor(workers, initializer=_end_with_parent)
    try:
        yield pool.map(_check, files.paths, chunksize=16)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images was killed, for want of memory or by an image; start it again "
            "with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # or an interrupted packing would first decode all the rest


def _end_with_parent() -> None:
    """A packing that is killed cannot end its processes, and they would wait for images for ever."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, args=[os.getppid()], daemon=True).start()


def _check(path: Path) -> str:
    """Why an image cannot be decoded; empty if it can."""
    try:
        decode(read_file(path))
    except DecodingError as error:
        return str(error)
    return ""


def _unless(reason: str, path: Path) -> bytes:
    """The image's file, which may have gone since it was checked."""
    if reason:
        raise DecodingError(reason)
    return read_file(path)


def _keys(files: ImageFiles) -> list[str]:
    """What each image is called in its shard.

    WebDataset ends a name at its first dot, skips folders like ``__this__``, and needs every name once.
    """
    found: list[str] = []
    taken: set[str] = set()
    for path in files.paths:
        plain = printable(f"{path.parent.name}/{path.stem.replace('.', '_')}")
        plain = f"-{plain}" if plain.startswith("__") else plain
        key, count = plain, 1
        while key in taken:
            count += 1
            key = f"{plain}-{count}"
        taken.add(key)
        found.append(key)
    return found


def _shard_writer(folder: Path, per_shard: int) -> Any:
    with needed("packing", "train"):
        import webdataset
    pattern = str(folder.absolute()).replace("%", "%%") + "/%06d.tar"
    # the time of writing would make every packing another one
    return webdataset.ShardWriter(pattern, maxcount=per_shard, maxsize=1e12, verbose=0, mtime=0)


def _write_index(
    folder: Path, order: NDArray[np.int64], files: ImageFiles, left_out: Mapping[str, str]
) -> None:
    """The images are numbered as in their folders: shards are another way to store them, no other data."""
    names: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    sums: list[bytes] = []
    shards: list[bytes] = []
    for number in range(len(list(folder.glob("*.tar")))):
        shard = folder / shard_name(number)
        with tarfile.open(shard) as opened:
            for member in opened:
                extracted = opened.extractfile(member)
                assert extracted is not None, "the writer wrote files alone"
                content = extracted.read()
                if member.name.endswith(".cls"):
                    labels.append(int(content))
                else:
                    names.append(member.name.encode())
                    places.append((number, member.offset_data, member.size))
                    sums.append(sum_of(content))
        shards.append(digest_of_file(shard))
    arrays: dict[str, Any] = {
        "names": np.array(names)[order],
        "places": np.array(places, np.int64)[order],
        "labels": np.array(labels, np.int64)[order],
        "sums": np.array(sums)[order],
        "shards": np.array(shards),
        "classes": np.array(files.classes),
        "resize": np.array(files.resize or 0),
        "left_out": np.array(list(left_out.items()), np.str_).reshape(-1, 2),
    }
    np.savez(folder / INDEX, digest=np.array(digest_of_arrays(arrays)), **arrays)
