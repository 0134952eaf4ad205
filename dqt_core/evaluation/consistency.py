"""Whether the figures of a record agree with one another, and whether it is as it was written."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.program.storage import write_whole

DIGEST = "digest"


def digest(record: Mapping[str, Any]) -> str:
    """sha256 of a record's content, however its file is laid out.

    Parameters
    ----------
    record : mapping
        Its own "digest" is left out.

    Returns
    -------
    str

    Examples
    --------
    >>> digest({"rows": [1]}) == digest({"digest": "any", "rows": [1]})
    True
    """
    content = {key: value for key, value in record.items() if key != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its digest.

    Parameters
    ----------
    record : mapping

    Returns
    -------
    dict

    Examples
    --------
    >>> sorted(signed({"rows": []}))
    ['digest', 'rows']
    """
    content = json.loads(json.dumps(record))  # names that are numbers become text, and sort as text
    return {**content, DIGEST: digest(content)}


def write_signed(record: Mapping[str, Any], path: Path) -> None:
    """Write a record with its digest, whole or not at all; folders are created.

    Parameters
    ----------
    record : mapping
    path : Path
        Of the JSON file.

    Raises
    ------
    OSError
        If it cannot be written; what was there is there still.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_signed({"rows": [1]}, Path(folder) / "record.json")
    ...     problems(parse((Path(folder) / "record.json").read_text()))
    []
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"{json.dumps(signed(record), indent=1, sort_keys=True)}\n".encode())


def parse(text: str) -> Any:
    """JSON in which every name of an object is there once, and every number is finite.

    Parameters
    ----------
    text : str

    Returns
    -------
    object

    Raises
    ------
    ValueError
        If the text is no JSON, repeats a name, or holds NaN or an infinity.

    Examples
    --------
    >>> parse('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: 'a' is there twice
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{name!r} is there twice")
            found[name] = value
        return found

    def finite(literal: str) -> Any:
        raise ValueError(f"{literal} is no finite number")

    return json.loads(text, object_pairs_hook=once, parse_constant=finite)


def problems(record: Mapping[str, Any]) -> list[str]:
    """Where figures of a record contradict one another; empty if they agree.

    Parameters
    ----------
    record : mapping
        Everything in it that counts correct images is looked at.

    Returns
    -------
    list of str

    Examples
    --------
    >>> problems({"digest": "0", "rows": []})
    ['its digest is not that of its content']
    >>> problems({"rows": [{"widths": "8", "correct": 11, "images": 10}]})
    ["row '8': 11 correct of 10 images"]
    """
    if DIGEST in record and record[DIGEST] != digest(record):
        return ["its digest is not that of its content"]
    try:
        return _contradictions(record)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        return [f"it has not a record's form ({type(error).__name__}: {error})"]


def _contradictions(record: Mapping[str, Any]) -> list[str]:
    found = []
    labels = [row["widths"] for row in record.get("rows", ()) if isinstance(row, Mapping) and "widths" in row]
    found += [f"row {label!r} is there twice" for label in sorted({x for x in labels if labels.count(x) > 1})]
    if not _all_finite(record):
        found.append("a number is not finite")
    known = set(record.get("programs", {}).values())
    for row in _counting(record):
        reasons = [*_of_counts(row), *_of_widths(row), *_of_layers(row)]
        if "run" in row and isinstance(row["run"], int) and row.get("program", "") not in known | {""}:
            reasons.append("its program is none of the record's")
        found += [f"row {row.get('widths')!r}: {reason}" for reason in reasons]
    found += [f"costs of widths: {reason}" for reason in _of_costs(record.get("rows", ()))]
    return found


def bits(row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Which images a row classified correctly; None if its bits contradict its counts.

    Parameters
    ----------
    row : mapping
        Holds "hits", "images" and "correct".

    Returns
    -------
    bool array, (images,), or None

    Examples
    --------
    >>> bits({"hits": "oA==", "images": 3, "correct": 2})
    array([ True, False,  True])
    """
    try:
        found = np.unpackbits(np.frombuffer(base64.b64decode(row["hits"], validate=True), np.uint8)).astype(
            bool
        )
    except (TypeError, ValueError):
        return None
    hits, rest = found[: row["images"]], found[row["images"] :]
    agrees = len(hits) == row["images"] and len(rest) < 8 and not rest.any() and hits.sum() == row["correct"]
    return hits if agrees else None


def _counting(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object that counts correct images, wherever it is."""
    if isinstance(value, Mapping):
        if "correct" in value and "images" in value:
            yield value
        for part in value.values():
            yield from _counting(part)
    elif isinstance(value, list):
        for part in value:
            yield from _counting(part)


def _all_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _of_counts(row: Mapping[str, Any]) -> Iterator[str]:
    correct, images = row["correct"], row["images"]
    if type(correct) is not int or type(images) is not int or not 0 <= correct <= images or not images:
        yield f"{correct} correct of {images} images"
        return
    hits = bits(row) if "hits" in row else None
    if "hits" in row and hits is None:
        yield f"its hits are not {correct} of {images}"
    if row.get("unreadable"):  # so that fewer images than it says are the first
        return
    for n, first in row.get("first", {}).items():
        if hits is not None and first["correct"] != hits[: int(n)].sum():
            yield f"{first['correct']} correct of the first {n}, {hits[: int(n)].sum()} by its hits"
        if not 0 <= first["correct"] <= min(correct, int(n)) or int(n) - first["correct"] < 0:
            yield f"{first['correct']} correct of the first {n}, {correct} of all"
        if int(n) == images and "unreadable" not in row and first["logits"] != row["logits"]:
            yield "the first images are all, with another digest"


def _of_widths(row: Mapping[str, Any]) -> Iterator[str]:
    mean, run = row.get("mean_width"), row.get("run")
    if mean is not None and not 0 < mean <= 32:
        yield f"a mean width of {mean}"
    if type(run) is int and mean is not None and mean != run:
        yield f"a mean width of {mean} where every layer has {run}"
    if isinstance(run, list) and mean is not None:
        expected = sum(run) / len(run)
        if not math.isclose(mean, expected, rel_tol=1e-9):
            yield f"a mean width of {mean}, the layers' is {expected}"
    for name in ("bitops", "transitions", "seconds"):
        if row.get(name) is not None and not row[name] >= 0:
            yield f"{name} of {row[name]}"


def _of_layers(row: Mapping[str, Any]) -> Iterator[str]:
    layers = [layer for layer in row.get("layers", ()) if "counts" in layer]
    for layer in layers:
        if sum(layer["counts"]) != row["images"]:
            yield f"layer {layer['name']} counts {sum(layer['counts'])} images of {row['images']}"
    if layers and abs(sum(layer["mean"] for layer in layers) / len(layers) - row["mean_width"]) > 1e-4:
        yield f"a mean width of {row['mean_width']}, another one by its layers"  # means have four places


def _of_costs(rows: Any) -> Iterator[str]:
    """One program at one width costs one number of BitOPs, and at a wider one more."""
    uniform = [row for row in rows if isinstance(row, Mapping) and type(row.get("run")) is int]
    costs = sorted(
        {(str(row.get("program")), row["run"], row["bitops"]) for row in uniform if row.get("bitops")}
    )
    for (program, width, cost), (other, wider, more) in pairwise(costs):
        if program == other and (width == wider or cost >= more):
            yield f"{cost} BitOPs at {width}, {more} at {wider}"
