"""The ImageNet tables, drawn from records alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dqt_core import results, statistics

Record = dict[str, Any]


def percent(row: Record) -> str:
    return f"{100 * row['correct'] / row['images']:.1f} %"


def span(row: Record) -> str:
    low, high = statistics.interval(row["correct"], row["images"])
    return f"{100 * low:.1f} to {100 * high:.1f}"


def against(row: Record, other: Record) -> Record:
    """Points that `row` is above `other` on the same images, with their interval."""
    return statistics.paired(results.hits(row), results.hits(other))


def points(test: Record) -> str:
    low, high = 100 * test["low"], 100 * test["high"]
    return f"{100 * test['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def rows_of(record: Record) -> list[list[str]]:
    """Widths, accuracy, interval, difference to float, mean width and BitOPs of every row."""
    table = []
    for row in record["rows"]:
        costs = ["", "", ""]
        if row["kind"] == "integer":
            gap = points(against(row, record["rows"][0]))
            costs = [gap, f"{row['mean_width']:.2f}", f"{row['bitops'] / 1e9:.2f}"]
        left_out = f" ({len(row['unreadable'])} unreadable)" if row["unreadable"] else ""
        table.append([row["widths"], percent(row) + left_out, span(row), *costs])
    return table


def short_rows(trained: Record, record: Record) -> list[list[str]]:
    """Widths, accuracy without and with a short training, paired differences, what they say; same images."""
    if trained["dataset"]["files"] != record["dataset"]["files"]:
        raise results.ResultError(
            f"the trained network saw {trained['dataset']['images']} images, the other "
            f"{record['dataset']['images']} or others; evaluate both with the same --limit"
        )
    before = {row["widths"]: row for row in record["rows"]}
    return [
        [
            row["widths"],
            percent(before[row["widths"]]),
            percent(row),
            span(row),
            points(against(row, record["rows"][0])),
            points(test := against(row, before[row["widths"]])),
            "better" if test["low"] > 0 else "worse" if test["high"] < 0 else "cannot be told apart",
        ]
        for row in trained["rows"]
    ]


def layerwise_rows(record: Record) -> list[list[str]]:
    """For each part its divergences, accuracies where they were measured, and CPU minutes of the work."""
    right: dict[str, list[str]] = {}
    for row in record["rows"]:
        right.setdefault(row["part"], []).append(f"{100 * row['correct'] / row['images']:.1f}")
    return [
        [
            part["part"],
            " / ".join(f"{far:.2g}" for _, far in sorted(part["divergence"].items(), reverse=True)),
            " / ".join(right.get(part["part"], ["not measured"])),
            f"{part['cpu_seconds'] / 60:.1f}",
        ]
        for part in record["parts"]
    ]


def training_facts(trained: Record) -> list[list[str]]:
    """What a record says of its training."""
    training, recipe = trained["training"], trained["training"]["recipe"]
    first, last = (training["loss"][part]["consistency"] for part in ("first tenth", "last tenth"))
    return [
        ["training images", f"{training['images']:,}"],
        ["epochs", f"{recipe['epochs']:g}"],
        ["steps", f"{training['steps']:,}, of {recipe['batch_size']} images"],
        ["crops", f"{training['size']} x {training['size']}, {recipe['precision']}"],
        ["widths trained", ", ".join(map(str, training["widths"]))],
        ["peak learning rate", f"{recipe['lr']:g}"],
        ["part of the loss from the float network", f"{training['distillation']:g}"],
        ["loss, first and last tenth", f"{first:.2f}, {last:.2f}"],
        ["unreadable images", str(training["unreadable"])],
    ]


def chosen(record: Record) -> str:
    """The rule of steps, and whose tables were corrected."""
    choice = record["calibration"]["chosen"]
    tables = ", ".join(f"{width} bits {kind}" for width, kind in choice["tables"].items())
    return f"steps by {choice['rule']}; tables: {tables}"


def band_rows(records: Mapping[str, Record], bands: Iterable[Record]) -> list[list[str]]:
    """Difference, what was measured, band and status."""
    table = []
    for band in bands:
        rows = {row["widths"]: row for row in records.get(band["network"], {"rows": []})["rows"]}
        claim = f"{band['network']}: {band['row']} minus {band['against']}"
        wanted = f"at least {band['at_least']:+.2f}"
        if not {band["row"], band["against"]} <= set(rows):
            table.append([claim, "", wanted, "not yet run"])
            continue
        test = against(rows[band["row"]], rows[band["against"]])
        status = "within band" if 100 * test["difference"] >= band["at_least"] else "not reproduced"
        table.append([claim, points(test), wanted, status])
    return table


def published_rows(rows: Iterable[Record], networks: Sequence[str]) -> list[list[str]]:
    """Method, network, float, top-1 by width, source; of ImageNet."""
    table = []
    for row in rows:
        if row["dataset"] == "ImageNet" and row["network"] in networks:
            mixed = next((v for key, v in row["top1"].items() if key.startswith("mixed")), "")
            widths = [row["top1"].get(width, "") for width in ("2", "3", "4", "6", "8")]
            floating = "" if row["float_top1"] is None else row["float_top1"]
            table.append([row["method"], row["network"], floating, *widths, mixed, row["source"]])
    return table


def not_attempted_rows(rows: Iterable[Record]) -> list[list[str]]:
    return [[row["row"], row["reason"], row["command"]] for row in rows]
