"""Whether a program is the one that a record is of: its digest, its costs, and its logits on the images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqt_core import data
from dqt_core.data import Dataset
from dqt_core.evaluation import cost, results
from dqt_core.evaluation.results import Record, ResultError
from dqt_core.program import BackendName, Program

_LISTS = {"rows": "trained", "cut_rows": "cut"}  # of a record, and whose rows they are if they do not say


@dataclass(frozen=True)
class Verification:
    """What of a record was compared with a program, and where they differ.

    Attributes
    ----------
    costs : tuple of str
        Rows whose BitOPs and transitions were worked out again.
    logits : tuple of str
        Rows that were run again.
    images : int
        On how many images.
    differences : tuple of str
        Empty if all is as recorded.
    """

    costs: tuple[str, ...]
    logits: tuple[str, ...]
    images: int
    differences: tuple[str, ...]


def verify(
    program: Program,
    record: Record,
    dataset: Dataset | None = None,
    limit: int | None = 100,
    backend: BackendName = "auto",
) -> Verification:
    """Compare a program with a record of it.

    Parameters
    ----------
    program : Program
    record : dict
        As `results.read` returns it.
    dataset : Dataset, optional
        The record's, see `dataset_of`; None: no images are run, and costs that depend on them are left out.
    limit : int, optional
        The first `limit` test images only: 100 and 1,000 are recorded; None: all.
    backend : as in `Program.run`

    Returns
    -------
    Verification

    Raises
    ------
    ResultError
        If the record is of other programs or other images.

    Examples
    --------
    >>> from dqt_core import load
    >>> program = load("digits")
    >>> row = {"widths": "4", "bitops": cost.bitops(program, 4).item(), "transitions": 0.0}
    >>> record = {"name": "mine", "programs": {"trained": program.digest}, "rows": [row]}
    >>> verify(program, record).differences
    ('widths 4: transitions is 257280, recorded 0',)
    """
    rows = [(row, widths) for row in _rows_of(program, record) if (widths := _widths(row)) is not None]
    costs, differences = [], list[str]()
    for row, widths in rows:
        if widths != "controller":
            costs.append(row["widths"])
            differences += _costs(program, row, widths)
    if dataset is None:
        return Verification(tuple(costs), (), 0, tuple(differences))
    _require_images(dataset, record)
    for row, widths in rows:
        again = results.evaluate(program, dataset, widths, limit, backend, row["widths"])
        differences += results.differences(again, row)
    count = len(dataset.test_images[:limit])
    return Verification(tuple(costs), tuple(row["widths"] for row, _ in rows), count, tuple(differences))


def dataset_of(record: Record, channels: int = 3) -> Dataset | None:
    """The data set that a record was made on, where it is at hand.

    Parameters
    ----------
    record : dict
    channels : int
        Of the program's images; the digits are there in colour and in grey.

    Returns
    -------
    Dataset or None
        None for CIFAR-10 without ``DQT_DATA``, for digits without scikit-learn, and for ImageNet, which is no
        data set in memory.

    Examples
    --------
    >>> dataset_of({"dataset": {"name": "imagenet"}}) is None
    True
    """
    name = record["dataset"]["name"]
    if name not in ("embedded", "cifar10"):
        return None
    try:
        return data.embedded(channels) if name == "embedded" else data.load(name)
    except (ImportError, data.DataError):
        return None


def _rows_of(program: Program, record: Record) -> list[Record]:
    programs: dict[str, str] = record["programs"]
    if program.digest not in programs.values():
        known = ", ".join(f"{kind} {digest[:12]}" for kind, digest in programs.items()) or "none"
        raise ResultError(
            f"the program is {program.digest[:12]}, and record {record['name']!r} is of others ({known}); "
            "give the record that names it"
        )
    found: list[Record] = []
    for rows, owner in _LISTS.items():
        for row in record.get(rows, ()):
            is_integer = row.get("kind", "integer") == "integer"
            if is_integer and row.get("program", programs.get(owner)) == program.digest:
                found.append(row)
    return found


def _widths(row: Record) -> Any:
    """What a row ran at; None where it cannot be told, as for another image's widths."""
    if "run" in row:
        return row["run"]
    label = row["widths"]
    if label == "controller":
        return label
    return int(label) if label.isdecimal() else None


def _costs(program: Program, row: Record, widths: Any) -> Iterator[str]:
    for name, count in (("bitops", cost.bitops), ("transitions", cost.transitions)):
        found = float(np.mean(count(program, widths)))
        if name in row and not math.isclose(found, row[name], rel_tol=1e-9):
            yield f"widths {row['widths']}: {name} is {found:.0f}, recorded {row[name]:.0f}"


def _require_images(dataset: Dataset, record: Record) -> None:
    recorded = record["dataset"].get("checksums", {})
    other = [name for name, digest in dataset.checksums.items() if recorded.get(name, digest) != digest]
    if other or dataset.name != record["dataset"]["name"]:
        raise ResultError(
            f"record {record['name']!r} is of {record['dataset']['name']}, and the images at hand "
            f"({dataset.name}) are others: {', '.join(other) or 'another data set'}; get those it was made on"
        )
