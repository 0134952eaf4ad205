"""Does looking at the image help? The controller's duels and a cascade's second looks as figures."""

import re
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from dqt_book import show
from dqt_book.records import comparison
from dqt_book.records.comparison import Records
from dqt_core import results

Pair = tuple[int, int]  # widths of the first and of the second look


def duels(found: Sequence[dict[str, Any]]) -> None:
    """Draw each duel's difference with its interval, by opponent."""
    _, axis = plt.subplots(figsize=(6, 0.6 + 0.27 * (len(found) + len(comparison.OPPONENTS))))
    at, ticks, names = 0.0, [], []
    for i, opponent in enumerate(comparison.OPPONENTS):
        mine = [duel for duel in found if duel["opponent"] == opponent]
        if mine:
            axis.text(0.01, at, opponent, transform=axis.get_yaxis_transform(), va="center")
        for row, duel in enumerate(mine, 1):
            centre, low, high = (100 * duel[key] for key in ("difference", "low", "high"))
            look = {"color": show.COLOURS[i % len(show.COLOURS)], "marker": show.MARKERS[i], "capsize": 3}
            axis.errorbar([centre], [at + row], xerr=[[centre - low], [high - centre]], **look)
            ticks.append(at + row)
            names.append(f"{duel['bits']} bits, seed {duel['seed']}")
        at += len(mine) + 1.2 if mine else 0
    axis.axvline(0, color=show.INK, marker="", ls=":")
    axis.set_yticks(ticks, names, fontsize=9)
    axis.set(xlabel="points that the controller is ahead")
    axis.grid(axis="y", visible=False)
    axis.set_ylim(at - 0.5, -0.7)
    plt.show()


def looked_twice(records: Records) -> list[results.Record]:
    """The records of this network's cascades, by seed."""
    return sorted((r for r in records.all if r["row"] == "cascade"), key=lambda record: record["seed"])


def second_looks(record: results.Record) -> dict[Pair, list[results.Record]]:
    """The rows of a cascade's record by their two widths, from few second looks to many."""
    found: dict[Pair, list[results.Record]] = {}
    for row in record["rows"]:
        if named := re.fullmatch(r"(\d) -> (\d), \d+%", row["widths"]):
            found.setdefault((int(named[1]), int(named[2])), []).append(row)
    return {pair: sorted(rows, key=lambda row: row["passes"][1]) for pair, rows in found.items()}


def curve(records: Records, record: results.Record, bits: int = 3) -> None:
    """Draw accuracy against cost: one stored network at a width for all, with second looks, and opponents."""
    rows = {row["widths"]: row for row in record["rows"]}
    _, axis = plt.subplots(figsize=(6, 4))
    drawn = {"one width for all": [rows[b] for b in ("2", "3", "4")]}
    drawn |= {f"{a}, then {b} bits": found for (a, b), found in second_looks(record).items() if b <= 4}
    for name, line in drawn.items():
        axis.plot([row["bitops"] / 1e9 for row in line], [_percent(row) for row in line], label=name)
    for b in ("2", "3", "4"):
        spot = rows[b]["bitops"] / 1e9, _percent(rows[b])
        axis.annotate(f"{b} bits", spot, xytext=(8, -14), textcoords="offset points")
    others = {
        "dealt by chance": rows[f"cascade at {bits} bits, dealt to other images"],
        comparison.UNIFORM: _of(records, f"uniform-{bits}", "uniform", record["seed"]),
        comparison.LEARNED: _of(records, f"blind-{bits}", "blind", record["seed"]),
    }
    for (name, row), marker in zip(others.items(), "XP*", strict=True):
        if row:
            axis.plot(row["bitops"] / 1e9, _percent(row), ls="", marker=marker, ms=10, label=name)
    axis.set(xlabel="G BitOPs an image, both looks counted", ylabel="top-1, %")
    axis.legend(fontsize=9)
    plt.show()


def rescued(record: results.Record, pair: Pair = (2, 4)) -> list[tuple[int, int, int]]:
    """(looked at twice, rescued, lost) of each row of a cascade, counted in images."""
    once = results.hits(next(row for row in record["rows"] if row["widths"] == str(pair[0])))
    counts = []
    for row in second_looks(record)[pair]:
        hits = results.hits(row)
        counts.append((row["passes"][1], int((hits & ~once).sum()), int((once & ~hits).sum())))
    return counts


def gains(record: results.Record, pair: Pair = (2, 4)) -> None:
    """Draw how many images second looks rescue and lose, against how many images get one."""
    looked, up, down = np.transpose(rescued(record, pair))
    _, axis = plt.subplots(figsize=(6, 3))
    wide = 0.6 * np.diff(looked).min()
    axis.bar(looked, up, wide, label="rescued", color=show.COLOURS[0])
    axis.bar(looked, -down, wide, label="lost", color=show.COLOURS[1], hatch="//")
    axis.plot(looked, up - down, color=show.INK, marker="o", label="gain")
    axis.set(xlabel=f"images looked at twice, of {record['rows'][0]['images']:,}", ylabel="images")
    axis.legend()
    plt.show()


def _percent(row: results.Record) -> float:
    return comparison.accuracy([row])


def _of(records: Records, row: str, result: str, seed: int) -> results.Record | None:
    """A result of the seed, or None where it was not run."""
    own = {record["seed"]: record for record in records.all if record["row"] == row}
    return comparison._result(own[seed], result) if seed in own else None
