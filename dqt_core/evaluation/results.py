"""Recorded runs: what was measured, on what data and hardware, from which commit."""

import base64
import datetime
import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core.data import Dataset
from dqt_core.evaluation import consistency, cost
from dqt_core.evaluation.cascade import Step, cascade
from dqt_core.program import BackendName, Program, Result, Widths

SCHEMA = "dqt-result-1"
PREFIXES = (100, 1000)  # also counted on the first images alone, so that a short run can be checked
PACKAGES = ("dqt_core", "numpy", "torch", "accelerate", "cupy-cuda13x")
REQUIRED = ("schema", "name", "dataset", "programs", "rows", "provenance")

Record: TypeAlias = dict[str, Any]


class ResultError(ValueError):
    """A record is not of this package's form; the message names what is missing."""


def evaluate(
    program: Program,
    dataset: Dataset,
    widths: Widths,
    limit: int | None = None,
    backend: BackendName = "auto",
    label: str | None = None,
) -> Record:
    """Run a program over the test images, and count.

    Parameters
    ----------
    program : Program
    dataset : Dataset
        Its test split is used.
    widths : as in `Program.run`
    limit : int, optional
        The first `limit` images only.
    backend : as in `Program.run`
    label : str, optional
        Of the row; None: the widths as text.

    Returns
    -------
    dict
        "widths", "correct", "images", "bitops" and "transitions" (mean an image), "mean_width", "logits"
        (digest), "first" (correct and digest of the first 100 and 1,000 images), "hits" (which images are
        correct, see `hits`), "backend", "seconds"; where the widths vary, "layers": name, mean width, its
        standard deviation over the images, and how many images got each choice.

    Raises
    ------
    ValueError
        If `limit` is not positive, or the widths do not fit.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> program, images = selftest.network(), selftest.images()
    >>> labels = program.run(images, 8, "numpy").classes
    >>> noise = Dataset("noise", images, labels, images, labels, (0.5,) * 3, (0.25,) * 3, tuple("01234"))
    >>> row = evaluate(program, noise, 2, backend="numpy")
    >>> row["correct"], row["images"], row["bitops"], row["logits"][:12]
    (12, 12, 1119232.0, '9435d1d77217')
    """
    images, labels = _test_images(dataset, limit)
    start = time.perf_counter()
    result = program.run(images, widths, backend)
    seconds = time.perf_counter() - start
    varies = isinstance(widths, np.ndarray) or widths == "controller"
    counted = result.widths if varies else widths
    row = _row(str(widths) if label is None else label, result, labels, seconds)
    row |= {
        "bitops": float(cost.bitops(program, counted).mean()),
        "transitions": float(cost.transitions(program, counted).mean()),
    }
    return row | ({"layers": _by_layer(program, result)} if varies else {})


def evaluate_cascade(
    program: Program,
    dataset: Dataset,
    steps: Sequence[Step],
    thresholds: Sequence[int],
    limit: int | None = None,
    backend: BackendName = "auto",
    label: str | None = None,
) -> Record:
    """Run a cascade over the test images, and count; see `evaluation.cascade`.

    Parameters
    ----------
    program, dataset, limit, backend : as in `evaluate`
    steps, thresholds : as in `cascade`
    label : str, optional
        Of the row; None: the steps as text.

    Returns
    -------
    dict
        As of `evaluate`, "bitops" and "transitions" being those of all passes of an image; and "steps",
        "thresholds", "passes" (how many images took one pass, two, ...).
    """
    images, labels = _test_images(dataset, limit)
    start = time.perf_counter()
    result = cascade(program, images, steps, thresholds, backend)
    seconds = time.perf_counter() - start
    return _row(" -> ".join(map(str, steps)) if label is None else label, result, labels, seconds) | {
        "bitops": float(result.bitops.mean()),
        "transitions": float(result.transitions.mean()),
        "steps": list(steps),
        "thresholds": [int(threshold) for threshold in thresholds],
        "passes": np.bincount(result.passes, minlength=len(steps) + 1)[1:].tolist(),
    }


def _test_images(dataset: Dataset, limit: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give a positive number of images, or None for all")
    return dataset.test_images[:limit], dataset.test_labels[:limit]


def _row(label: str, result: Result, labels: NDArray[np.int64], seconds: float) -> Record:
    right = result.classes == labels
    return {
        "widths": label,
        "correct": int(right.sum()),
        "images": len(labels),
        "mean_width": float(result.widths.mean()),
        "logits": result.digest,
        "hits": packed(right),
        "first": {str(n): _first(result, labels, n) for n in PREFIXES if n <= len(labels)},
        "backend": result.backend,
        "seconds": round(seconds, 2),
    }


def _by_layer(program: Program, result: Result) -> list[Record]:
    widths = result.widths.reshape(len(result.widths), len(program.layers), -1).mean(-1)
    means, deviations = widths.mean(0).round(4).tolist(), widths.std(0).round(4).tolist()
    counts = (result.choices[..., None] == np.arange(len(program.choices))).sum(0).tolist()
    return [
        {"name": name, "mean": mean, "deviation": deviation, "counts": count}
        for name, mean, deviation, count in zip(program.layers, means, deviations, counts, strict=True)
    ]


def _first(result: Result, labels: NDArray[np.int64], n: int) -> Record:
    logits = np.ascontiguousarray(result.logits[:n], "<i8")
    correct = int((result.classes[:n] == labels[:n]).sum())
    return {"correct": correct, "logits": hashlib.sha256(logits.tobytes()).hexdigest()}


def differences(row: Record, recorded: Record) -> list[str]:
    """Where a row differs from the recorded one over the images that both hold; empty if it does not.

    Parameters
    ----------
    row, recorded : dict
        As `evaluate` returns them.

    Returns
    -------
    list of str

    Raises
    ------
    ResultError
        If no set of images is in both.

    Examples
    --------
    >>> row = {"widths": "4", "images": 2, "correct": 2, "logits": "ab", "first": {}}
    >>> differences(row, row | {"correct": 1})
    ['widths 4, 2 images: correct is 2, recorded 1']
    """
    mine, theirs = _by_images(row), _by_images(recorded)
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        raise ResultError(
            f"the run has {row['images']} images, the record {recorded['images']} and its first "
            f"{', '.join(recorded['first'])}; run at least {min(theirs)} images"
        )
    return [
        f"widths {row['widths']}, {n} images: {key} is {mine[n][key]}, recorded {theirs[n][key]}"
        for n in shared
        for key in ("correct", "logits")
        if mine[n][key] != theirs[n][key]
    ]


def _by_images(row: Record) -> dict[int, Record]:
    return {row["images"]: row} | {int(n): first for n, first in row["first"].items()}


def provenance() -> Record:
    """Where and when a run is made: commit, versions, hardware, date.

    Returns
    -------
    dict
        "commit" ("unknown" outside a checkout; "+changes" where files differ from it), "date" (UTC),
        "versions", "python", "hardware".

    Examples
    --------
    >>> sorted(provenance())
    ['commit', 'date', 'hardware', 'python', 'versions']
    """
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
        "hardware": {"cpu": _processor(), "cores": os.cpu_count(), "machine": platform.machine()},
    }


def write(record: Mapping[str, Any], path: str | Path) -> Path:
    """Write a record as JSON with its digest, atomically.

    Parameters
    ----------
    record : mapping
        Holds `REQUIRED` but for "schema", which is added, as "digest" is.
    path : str or Path
        Folders are created.

    Returns
    -------
    Path

    Raises
    ------
    ResultError
        If something required is missing, or figures contradict one another.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> record = {"name": "mine", "dataset": {}, "programs": {}, "rows": [], "provenance": {}}
    >>> with TemporaryDirectory() as folder:
    ...     path = write(record, Path(folder) / "mine.json")
    ...     print(read(path)["schema"])
    dqt-result-1
    """
    path = Path(path)
    content = {key: value for key, value in record.items() if key != consistency.DIGEST}
    consistency.write_signed(_require({"schema": SCHEMA, **content}, path), path)
    return path


def read(path: str | Path) -> Record:
    """Read a record, and check its form, its digest, and that its figures agree.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict
        Without the digest, which is its file's.

    Raises
    ------
    ResultError
        If the file is not a record of this schema, is not as it was written, or contradicts itself. One
        without a digest is read; ``python -m reproductions.sign`` adds it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> record = {"name": "mine", "dataset": {}, "programs": {}, "rows": [], "provenance": {}}
    >>> with TemporaryDirectory() as folder:
    ...     read(write(record, Path(folder) / "mine.json")) == {"schema": SCHEMA, **record}
    True
    """
    path = Path(path)
    try:
        record = consistency.parse(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} is not a readable record ({error}); run the reproduction again") from error
    _require(record, path)
    return {key: value for key, value in record.items() if key != consistency.DIGEST}


def packed(hits: NDArray[np.bool_]) -> str:
    """One bit for every image, in base64: what `hits` reads.

    Parameters
    ----------
    hits : bool array, (N,)

    Returns
    -------
    str

    Examples
    --------
    >>> packed(np.array([True, False, True]))
    'oA=='
    """
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def hits(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which images a recorded row classified correctly.

    Parameters
    ----------
    row : mapping
        As `evaluate` returns it.

    Returns
    -------
    bool array, (N,)

    Raises
    ------
    ResultError
        If the bits and the recorded count differ.

    Examples
    --------
    >>> hits({"hits": "oA==", "images": 3, "correct": 2})
    array([ True, False,  True])
    """
    found = consistency.bits(row)
    if found is None:
        raise ResultError(
            f"the row counts {row['correct']} correct of {row['images']}, its bits say otherwise; run the "
            "reproduction again"
        )
    return found


def _require(record: Record, path: Path) -> Record:
    if not isinstance(record, dict):
        raise ResultError(f"{path} is not a record of schema {SCHEMA!r}: it holds a {type(record).__name__}")
    missing = [key for key in REQUIRED if key not in record]
    if missing or record["schema"] != SCHEMA:
        raise ResultError(
            f"{path} is not a record of schema {SCHEMA!r}: schema is {record.get('schema')!r}, "
            f"missing: {', '.join(missing) or 'nothing'}; give one of reproductions/results "
            "(the report of `quantize` is none)"
        )
    if problems := consistency.problems(record):
        raise ResultError(
            f"{path} contradicts itself: {'; '.join(problems[:3])}; take it from the repository, or run the "
            "reproduction again"
        )
    return record


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parents[1]  # the whole package, whatever of it has changed
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
