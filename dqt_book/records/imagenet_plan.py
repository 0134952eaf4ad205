"""What a training of nested codes on ImageNet takes on 1, 8 and 64 GPUs: hours, bytes, money.

    python -m dqt_book.records.imagenet_plan --gpu-images-per-second 1500 --price 2.5

What was measured comes from the record of `reproductions.imagenet.measure`: images that one worker decodes
in a second, and how many times the float network's step a step of nested codes takes. What was **not**
measured is a parameter: how many images a second one GPU trains the float network on, how well several GPUs
share the work, and the price. Nothing of this has been run on a GPU; put your own numbers in.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqt_book.places import ROOT
from dqt_core import results

RECORD = ROOT / "reproductions" / "results" / "imagenet_training.json"
HEAD = ["GPUs", "limited by", "images/s", "hours", "GPU hours", "cost", "TB read", "TB sent by each GPU"]


@dataclass(frozen=True)
class Measured:
    """From one machine: images a second of one core, step of nested codes over the float step, parameters."""

    decoded_per_worker: float
    step_ratio: float
    parameters: int


@dataclass(frozen=True)
class Assumed:
    """What nobody measured here; every default is a guess to be replaced."""

    gpu_images_per_second: float = (
        1000.0  # float ResNet-50 at 224, bf16, one GPU: forward, backward and update
    )
    scaling: float = 0.9  # of the ideal rate that is left on more than one GPU
    price: float = 2.0  # of one GPU for an hour
    workers: int = 12  # decoding processes for each GPU
    images: int = 1_281_167
    epochs: int = 90
    batch: int = 256  # for each GPU
    bytes_per_image: float = 147_897_477_120 / 1_281_167  # the published archive of training images


@dataclass(frozen=True)
class Plan:
    """One row of the table."""

    gpus: int
    limited_by: str
    images_per_second: float
    hours: float
    cost: float
    bytes_read: float
    bytes_sent: float


def measured(record: dict[str, Any], widths: str) -> Measured:
    """Medians of a record: CPU time of full-size photographs from shards, and of the steps of `widths`."""
    row = next(
        row
        for row in record["rows"]
        if (row["images"], row["stored"], row["workers"]) == ("photographs", "shards", 0)
    )
    steps = record["steps"]
    ratio = statistics.median(steps[widths]) / statistics.median(steps["float"])
    return Measured(1 / statistics.median(row["cpu_seconds_per_image"]), ratio, steps[f"{widths} parameters"])


def plan(gpus: int, known: Measured, assumed: Assumed) -> Plan:
    """Hours, bytes and cost on some GPUs."""
    shared = assumed.scaling if gpus > 1 else 1.0
    computed = gpus * shared * assumed.gpu_images_per_second / known.step_ratio
    decoded = gpus * assumed.workers * known.decoded_per_worker
    rate = min(computed, decoded)
    steps = assumed.images // (assumed.batch * gpus) * assumed.epochs
    seen = steps * assumed.batch * gpus
    hours = seen / rate / 3600
    # every process sends and receives 2 (n - 1) / n of the gradients in a ring
    sent = steps * 2 * (gpus - 1) / gpus * 4 * known.parameters
    limit = "GPUs" if computed <= decoded else "decoding"
    cost = hours * gpus * assumed.price
    return Plan(gpus, limit, rate, hours, cost, seen * assumed.bytes_per_image, sent)


def table(known: Measured, assumed: Assumed, gpus: tuple[int, ...] = (1, 8, 64)) -> list[list[str]]:
    """Rows under `HEAD`."""
    plans = [plan(count, known, assumed) for count in gpus]
    return [
        [
            str(p.gpus),
            p.limited_by,
            f"{p.images_per_second:,.0f}",
            f"{p.hours:,.1f}",
            f"{p.hours * p.gpus:,.0f}",
            f"{p.cost:,.0f}",
            f"{p.bytes_read / 1e12:.1f}",
            f"{p.bytes_sent / 1e12:.1f}",
        ]
        for p in plans
    ]


def reading_rows(record: dict[str, Any]) -> list[list[str]]:
    """Images a second of every way to read."""
    return [
        [
            row["images"],
            f"{row['bytes_per_image'] / 1e3:.0f}",
            row["stored"],
            str(row["workers"]),
            f"{statistics.median(row['images_per_second']):.0f}",
            " to ".join(f"{f(row['images_per_second']):.0f}" for f in (min, max)),
            f"{1e3 * statistics.median(row['cpu_seconds_per_image']):.1f}" if not row["workers"] else "",
        ]
        for row in record["rows"]
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--widths", default="2 3 4 6 8", help="whose steps were measured")
    defaults = Assumed()
    for name, value in vars(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    chosen = vars(parser.parse_args(arguments))
    known = measured(results.read(chosen.pop("record")), chosen.pop("widths"))
    print(f"measured: {known}")
    print(f"assumed, not measured: {Assumed(**chosen)}")
    widths = [max(len(head), 12) for head in HEAD]
    for row in [HEAD, *table(known, Assumed(**chosen))]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
