"""The records of exported networks as tables: who printed which digest, and what the files weigh."""

import json

from dqt_book.places import ROOT
from dqt_book.show import Table

FOLDER = ROOT / "reproductions" / "results" / "export"
WAYS = {
    "numpy": "NumPy",
    "torch": "torch",
    "numba": "Numba",
    "onnx": "ONNX",
    "qonnx": "QONNX",
    "c": "C99",
    "browser": "browser",
}
SIZES = {
    "weights": "weights, constant",
    "tables": "multipliers and offsets, constant",
    "code": "machine code",
    "ram": "memory that is written",
    "c": "the C file itself",
    "onnx": "the ONNX file",
}
NETWORKS = {"embedded": "8 channels, digits", "cifar10": "16 channels, CIFAR-10"}


def record(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def digests(name):
    """One line for each way to run the network, one column for each setting of the widths."""
    rows = record(name)["rows"]
    head = ["run by", *(_title(row["widths"]) for row in rows)]
    return Table(head, [[WAYS[way], *(row.get(way, "none")[:6] for row in rows)] for way in WAYS])


def _title(widths):
    return f"{widths} bits" if widths.isdigit() else widths


def verdict(name):
    """In words, whether every column of the table holds one digest."""
    rows = record(name)["rows"]
    differing = [row["widths"] for row in rows if len({row[way] for way in WAYS if way in row}) > 1]
    if differing:
        return f"NOT the same at {', '.join(differing)}"
    left_out = [f"{WAYS[way]} at {_title(row['widths'])}" for row in rows for way in WAYS if way not in row]
    without = f", {' and '.join(left_out)} left out" if left_out else ""
    return f"the same in all {len(WAYS)} ways at each of the {len(rows)} settings{without}"


def agreement(rows):
    """In words, whether the ways that these rows have agree."""
    ways = [way for way in WAYS if all(way in row for row in rows)]
    names = ", ".join(WAYS[way] for way in ways[:-1]) + f" and {WAYS[ways[-1]]}"
    agree = all(len({row[way] for way in ways}) == 1 for row in rows)
    where = ", ".join(_title(row["widths"]) for row in rows)
    word = "print one digest" if agree else "do NOT print one digest"
    return f"{names} {word} at each of: {where}"


def sizes():
    """Bytes of the files, and of the compiled C program."""
    files = {name: record(name)["files"] for name in NETWORKS}
    return Table(
        ["bytes", *NETWORKS.values()],
        [[words, *(f"{files[name][key]:,}" for name in NETWORKS)] for key, words in SIZES.items()],
    )


def _recorded(origin):
    return f"{origin['date']}, commit {origin['commit'][:12]}"


def facts():
    """What the page says of the records in its text."""
    origin = record("embedded")["provenance"]
    qonnx = record("embedded").get("later", {}).get("qonnx", origin)
    return {
        "digits_images": record("embedded")["dataset"]["images"],
        "digits_verdict": verdict("embedded"),
        "cifar_images": record("cifar10")["dataset"]["images"],
        "cifar_verdict": verdict("cifar10"),
        "cifar_whole_images": f"{record('cifar10')['whole']['images']:,}",
        "cifar_whole": agreement(record("cifar10")["whole"]["rows"]),
        "imagenet_images": record("imagenet")["dataset"]["images"],
        "imagenet": agreement(record("imagenet")["rows"]),
        "ways": f"{len(WAYS)} ways",
        "ram": f"{record('embedded')['files']['ram'] / 1024:.0f} KiB",
        "runtime": origin["tools"]["onnxruntime"],
        "qonnx": f"{qonnx['tools']['qonnx']} ({_recorded(qonnx)})",
        "compiler": origin["tools"]["compiler"],
        "browser": origin["tools"]["browser"],
        "processor": origin["hardware"]["cpu"],
        "recorded": _recorded(origin),
    }
