"""The comparison's tables, drawn from its records alone: lines, means over seeds, paired tests, statuses."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqt_core import results, statistics

WIDTHS, BUDGETS = (8, 6, 4, 3, 2), (3, 4, 5)


@dataclass(frozen=True)
class Line:
    """A line of a table: which result of which row's record it shows."""

    label: str
    row: str
    result: str


@dataclass(frozen=True)
class Method:
    """One way to a network: its line at the BitOPs of each uniform width that it was run at.

    networks : how many have to be stored for all of them
    """

    label: str
    networks: str
    lines: dict[int, Line]


def _switchable(label: str, row: str, ending: str = "") -> list[Line]:
    return [Line(f"{label}, {width} bits", row, f"{width}{ending}") for width in WIDTHS]


SHUFFLED = "another image's widths"
REMEDIES = {
    "paths": "random mixed paths in the consistency term",
    "rates": "a rate of two widths in each layer",
    "quiet": "no noise, from the widest on",
    "right": "the narrowest width that is right",
    "losses": "the loss at each width",
    "offset": "the loss around learned widths",
    "margin": "a cascade's second look",
    "stage1": "the loss at each width, decided behind stage 1",
    "stage2": "the loss at each width, decided behind stage 2",
}
_STAGES = [f"stage {i}" for i in (1, 2, 3, 4)]
PLACES = ("nothing (dealt)", "the stem", *_STAGES, "the margin", "the labels (no decision can)")
DEALT = "the same passes dealt to other images"
ITSELF = "the same stored network at that width"
LEARNED = "static widths learned by gradient"
CHOSEN = "the best static widths"


def _method(label: str, networks: str, row: str, result: str, widths: Sequence[int], at: str = "") -> Method:
    """`row` and `result` have {} for the width, and so has `at`, which ends a line's label."""
    ending = at or ", {} bits"
    lines = {b: Line(label + ending.format(b), row.format(b), result.format(b)) for b in widths}
    return Method(label, networks, lines)


_ONE, _EACH, _BUDGET = "one", "one for each", " at {}-bit BitOPs"
METHODS = [
    _method("one width, learned step", _EACH, "lsq-{}", "{}", WIDTHS),
    _method("PACT", _EACH, "pact-{}", "{}", (4, 3, 2)),
    _method("DoReFa-Net", _EACH, "dorefa-{}", "{}", (4, 3, 2)),
    _method("torchao (PT2E)", _EACH, "torchao-{}", "{}", (8,)),
    _method("Any-Precision", _ONE, "any-precision", "{}", WIDTHS),
    _method("DQT static", _ONE, "dqt-static", "{}", WIDTHS),
    _method("DQT static, trained further", _ONE, "cascade", "{}", WIDTHS),
    _method("cascade", _ONE, "cascade", "cascade at {} bits", (4, 3), _BUDGET),
    _method("cascade, trained at its two widths", _EACH, "cascade-{}", "cascade at {} bits", (3,), _BUDGET),
    _method("DQT, uniform, trained further", _EACH, "uniform-{}", "uniform", (4, 3)),
    _method("best static", _EACH, "mixed-{}", "mixed", BUDGETS, _BUDGET),
    _method("controller", _EACH, "dynamic-{}", "controller", BUDGETS, _BUDGET),
]
LEVELS = sorted({b for method in METHODS for b in method.lines}, reverse=True)
FLOAT = [
    Line("float", "float", "float"),
    Line("float, trained further", "float-further", "float, trained further"),
]
MAIN = [
    *FLOAT,
    *(line for method in METHODS for line in method.lines.values()),
    *(Line(f"{DEALT}, {b} bits", "cascade", f"cascade at {b} bits, dealt to other images") for b in (3, 4)),
    Line(f"{DEALT}, its two widths", "cascade-3", "cascade at 3 bits, dealt to other images"),
    Line("cascade of three steps at 3-bit BitOPs", "cascade", "cascade of three steps at 3 bits"),
]
ABLATIONS = {
    "not trained for the cut": [Line(f"cut to {w} bits", "cut", f"cut {w}") for w in WIDTHS]
    + [Line(f"cut to {w} bits, statistics re-estimated", "cut", f"cut {w}, recalibrated") for w in WIDTHS],
    "batch-norm statistics": _switchable("as training left them", "dqt-static", ", statistics of training"),
    "one batch norm for all widths": _switchable("shared batch norm", "shared-norm"),
    "rounding": _switchable("rounding floor", "floor"),
    "the controller's input": [
        Line(f"controller that sees nothing, {b}-bit BitOPs", f"blind-{b}", "blind") for b in BUDGETS
    ],
    "remedies for a controller that does not look": [
        Line(f"{what}, {b}-bit BitOPs{dealt}", f"{row}-{b}", result)
        for b in BUDGETS
        for row, what in REMEDIES.items()
        for result, dealt in (("controller", ""), (SHUFFLED, ", dealt to other images"))
    ],
    "a cascade between two allocations": [
        Line("the best static widths of 2.5 and of 4 bits", "cascade-chosen-3", "cascade at 3 bits"),
        Line(DEALT, "cascade-chosen-3", "cascade at 3 bits, dealt to other images"),
    ],
    "where a gain can be foreseen": [Line(f"seen from {p}", "foresight", f"seen from {p}") for p in PLACES],
    "consistency": [
        Line(f"{name}, {label}", row, result)
        for name, row in (("alpha = 1", "joint"), ("alpha = 0", "no-consistency"))
        for label, result in (("8 bits", "8"), ("4 bits", "4"), ("2 bits", "2"), ("controller", "controller"))
    ],
}


# One thing changed: (row, result) against (row, result), with {} for the width
CHANGES = {
    "not trained for lower widths": ("cut", "cut {}", "dqt-static", "{}"),
    "not trained, but statistics re-estimated": ("cut", "cut {}, recalibrated", "dqt-static", "{}"),
    "statistics as training left them": ("dqt-static", "{}, statistics of training", "dqt-static", "{}"),
    "one batch norm for all widths": ("shared-norm", "{}", "dqt-static", "{}"),
    "rounding down, not to nearest": ("floor", "{}", "dqt-static", "{}"),
    "no consistency term (alpha = 0)": ("no-consistency", "{}", "joint", "{}"),
}


class Records:
    """The records of one network size and training length."""

    def __init__(self, folder: Path, channels: int, epochs: float) -> None:
        self.channels, self.epochs = channels, epochs
        paths = sorted(folder.glob(f"*_c{channels}_e{epochs:g}_s*.json"))
        self.all = [results.read(path) for path in paths if path.name[:9] != "embedded_"]

    def of(self, line: Line) -> list[results.Record]:
        """The results that a line shows, by seed."""
        found = {record["seed"]: record for record in self.all if record["row"] == line.row}
        return [_result(found[seed], line.result) for seed in sorted(found)]

    def pairs(self, first: Line, second: Line) -> list[tuple[int, results.Record, results.Record]]:
        """Seed, and the two lines' results, of every seed that has both."""
        one, other = ({r["seed"]: r for r in self.all if r["row"] == line.row} for line in (first, second))
        return [
            (seed, _result(one[seed], first.result), _result(other[seed], second.result))
            for seed in sorted(set(one) & set(other))
        ]

    def starts_elsewhere(self) -> list[str]:
        """Records that start from another training of DQT static than the recorded one of their seed."""
        own = {r["seed"]: r["programs"]["trained"] for r in self.all if r["row"] == "dqt-static"}
        return [
            f"{record['row']}, seed {record['seed']}"
            for record in self.all
            if (start := record.get("training", {}).get("starts from")) and start != own.get(record["seed"])
        ]

    def change(self, name: str, width: int) -> float | None:
        """Points of accuracy that one of `CHANGES` gains at a width, over the seeds that have both rows."""
        row, result, against, other = CHANGES[name]
        return self.lead(Line("", row, result.format(width)), Line("", against, other.format(width)))

    def lead(self, first: Line, second: Line) -> float | None:
        """Points of accuracy of one line over another, over the seeds that have both; None without one."""
        leads = [accuracy([one]) - accuracy([other]) for _, one, other in self.pairs(first, second)]
        return float(np.mean(leads)) if leads else None

    def paired(self, first: Line, second: Line) -> dict[str, Any] | None:
        """The test of one line against another on the same images, over the seeds that have both, or None."""
        pairs = self.pairs(first, second)
        if not pairs:
            return None
        one, other = (np.stack([results.hits(pair[side]) for pair in pairs]) for side in (1, 2))
        return statistics.paired(one, other) | {"seeds": len(pairs)}

    def gain(self, first: Line, second: Line) -> str:
        """Points of one line over another, with interval, p and seeds, in words."""
        test = self.paired(first, second)
        if test is None:
            return "not yet run"
        difference, low, high = (100 * test[key] for key in ("difference", "low", "high"))
        seeds = "one seed" if test["seeds"] == 1 else f"{test['seeds']} seeds"
        p = "p < 0.0001" if test["p"] < 1e-4 else f"p = {test['p']:.2g}"
        return f"{difference:+.2f} points ({low:+.2f} to {high:+.2f}, {p}, {seeds})"

    def chosen(self) -> list[str]:
        """Where the best static widths of each budget and seed came from."""
        return [
            f"{record['row'].split('-')[1]} bits, seed {record['seed']}: {record['training']['chosen']}"
            for record in self.all
            if "chosen" in record["training"]
        ]

    @property
    def title(self) -> str:
        return f"{self.channels} channels, {self.epochs:g} epochs after float"

    def missing(self, lines: Iterable[Line]) -> str:
        """In words: the rows of a table that have no record, and what makes them."""
        rows = list(dict.fromkeys(line.row for line in lines if not self.of(line)))
        if not rows:
            return "every row was run"
        options = f"--channels {self.channels} --epochs {self.epochs:g}"
        for key in ("float epochs", "float lr"):
            if trained := {r["training"].get(key) for r in self.all} - {None}:
                options += f" --{key.replace(' ', '-')} {max(trained):g}"
        command = f"python -m reproductions.cifar10.compare {options} --row {' '.join(rows)}"
        return f"not yet run: {', '.join(rows)}; what would run them: `{command}`"

    def methods(self) -> list[list[str]]:
        """A row for each recorded method: label, networks that it stores, accuracy at each of `LEVELS`."""
        rows = []
        for method in METHODS:
            shown = {b: self.of(line) for b, line in method.lines.items()}
            if any(shown.values()):
                cells = [short(shown[b]) if shown.get(b) else "" for b in LEVELS]
                rows.append([method.label, method.networks, *cells])
        return rows

    def table(self, lines: Iterable[Line]) -> list[list[str]]:
        """A table's recorded rows: label, accuracy, seeds, BitOPs, how it was evaluated."""
        rows = []
        for line in lines:
            shown = self.of(line)
            if not shown:
                continue
            spent = [row["bitops"] for row in shown if row["bitops"]]
            bitops = f"{np.mean(spent) / 1e9:.3f}" if spent else ""
            rows.append([line.label, spread(shown), str(len(shown)), bitops, shown[0]["kind"]])
        return rows


def groups(folder: Path) -> list[Records]:
    """The recorded comparisons: the longest trained first, then the one with most records."""
    found: Counter[tuple[int, float]] = Counter()
    for path in folder.glob("*_c*_e*_s*.json"):
        record = results.read(path)
        if record["dataset"]["name"] == "cifar10" and record["dataset"]["limit"] is None:
            found[record["channels"], record["epochs"]] += 1
    order = sorted(found, key=lambda group: (group[1], found[group], group), reverse=True)
    return [Records(folder, *group) for group in order]


def _result(record: results.Record, label: str) -> results.Record:
    return next(row for row in record["rows"] if row["widths"] == label)


def accuracy(rows: Sequence[results.Record]) -> float:
    """Mean over seeds, in percent."""
    return 100 * float(np.mean([row["correct"] / row["images"] for row in rows]))


def spread(rows: Sequence[results.Record]) -> str:
    """Mean and standard deviation over seeds; for one seed, its interval over test images."""
    if len(rows) > 1:
        return f"{accuracy(rows):.2f} % ± {_deviation(rows):.2f}"
    low, high = statistics.interval(rows[0]["correct"], rows[0]["images"])
    return f"{accuracy(rows):.2f} % ({100 * low:.1f} to {100 * high:.1f})"


def short(rows: Sequence[results.Record]) -> str:
    """Mean accuracy in percent, with its standard deviation where there are several seeds."""
    return f"{accuracy(rows):.2f}" + (f" ± {_deviation(rows):.2f}" if len(rows) > 1 else "")


def _deviation(rows: Sequence[results.Record]) -> float:
    return 100 * float(np.std([row["correct"] / row["images"] for row in rows], ddof=1))


# The question: does looking at the image help?

UNIFORM = "the uniform width, trained further"
BLIND = "a controller that sees nothing"  # it and `SHUFFLED` have all but the look at the image
OPPONENTS = {
    CHOSEN: lambda b: Line("", f"mixed-{b}", "mixed"),
    BLIND: lambda b: Line("", f"blind-{b}", "blind"),
    UNIFORM: lambda b: Line("", f"uniform-{b}", "uniform"),
    SHUFFLED: lambda b: Line("", f"dynamic-{b}", SHUFFLED),
    "each layer's usual width": lambda b: Line("", f"dynamic-{b}", "each layer's usual width"),
}


def duels(records: Records) -> list[dict[str, Any]]:
    """The controller against each opponent at each budget and seed, on the same test images.

    Both have to start from the same network: a record without an opponent of its own start meets none.
    """
    starts = {(r["row"], r["seed"]): r.get("training", {}).get("starts from") for r in records.all}
    found = []
    for bits in BUDGETS:
        for opponent, line_of in OPPONENTS.items():
            looks, other = Line("", f"dynamic-{bits}", "controller"), line_of(bits)
            for seed, first, second in records.pairs(looks, other):
                if starts[looks.row, seed] != starts[other.row, seed]:
                    continue
                test = statistics.paired(results.hits(first), results.hits(second))
                ratio = first["bitops"] / second["bitops"]
                found.append({"bits": bits, "opponent": opponent, "seed": seed, "bitops": ratio, **test})
    return found


def verdict(found: Sequence[dict[str, Any]], *opponents: str) -> str:
    """In words, what the duels against some opponents say together."""
    mine = [duel for duel in found if duel["opponent"] in opponents]
    if not mine:
        return "not yet run"
    level = 0.05 / len(mine)  # Bonferroni: as many tests as duels
    wins = sum(duel["difference"] > 0 and duel["p"] < level for duel in mine)
    losses = sum(duel["difference"] < 0 and duel["p"] < level for duel in mine)
    mean = 100 * float(np.mean([duel["difference"] for duel in mine]))
    even = len(mine) - wins - losses
    return (
        f"better in {wins}, worse in {losses}, not distinguishable in {even} of {len(mine)} comparisons "
        f"(McNemar, p < {level:.2g}: 0.05 over {len(mine)}); mean difference {mean:+.2f} points"
    )


def second_look(folder: Path, bits: int = 3, row: str = "cascade") -> dict[str, str] | None:
    """What a row's cascade gains at a uniform width's BitOPs, in words, by opponent; None where not yet run.

    Of the networks that were trained longest. An opponent that was not run is named as that.
    """
    looks = Line("", row, f"cascade at {bits} bits")
    records = next((some for some in groups(folder) if some.of(looks)), None)
    if records is None:
        return None
    gains = {name: records.gain(looks, line) for name, line in rivals(bits, row).items()}
    return {"network": records.title, **gains}


def rivals(bits: int = 3, row: str = "cascade") -> dict[str, Line]:
    """The opponents of a row's cascade at a uniform width's BitOPs, by name."""
    found = {
        UNIFORM: Line("", f"uniform-{bits}", "uniform"),
        CHOSEN: Line("", f"mixed-{bits}", "mixed"),
        LEARNED: Line("", f"blind-{bits}", "blind"),
        DEALT: Line("", row, f"cascade at {bits} bits, dealt to other images"),
    }
    if row == "cascade":  # which is trained at that width, too
        found[ITSELF] = Line("", row, str(bits))
    return found


def over_seeds(found: Sequence[dict[str, Any]], opponent: str, bits: int) -> str:
    """Mean difference in points over seeds with its standard deviation; what one seed cannot say is said."""
    values = [100 * d["difference"] for d in found if (d["opponent"], d["bits"]) == (opponent, bits)]
    if opponent == UNIFORM and bits not in WIDTHS:
        return "not attempted (no such width)"
    if not values:
        return "not yet run"
    if len(values) == 1:
        return f"{values[0]:+.2f} (one seed)"
    return f"{np.mean(values):+.2f} ± {np.std(values, ddof=1):.2f} ({len(values)} seeds)"


# Bands


def statuses(records: Records, bands: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows (what, measured, band, status) of the bands: on a row, or on its lead over another."""
    rows = []
    for band in bands:
        names = [band[key] for key in ("row", "against") if key in band]
        shown = [records.of(Line("", *name.split("/"))) for name in names]
        claim, is_lead = " minus ".join(names), len(names) == 2
        wanted = f"at least {band['at_least']:{'+' if is_lead else ''}.2f}"
        if not all(shown):
            rows.append([claim, "", wanted, "not attempted"])
            continue
        first, *second = map(accuracy, shown)
        value = first - sum(second)
        status = "within band" if value >= band["at_least"] else "not reproduced"
        rows.append([claim, f"{value:+.2f} points" if is_lead else f"{value:.2f} %", wanted, status])
    return rows


def twins(records: Records) -> tuple[int, int, float]:
    """Of integer rows and their float twins: images of the same class, images, largest distance from a tie.

    The distance is that of the numbers which the two rounded differently first, in steps.
    """
    recorded = [row["twin"] for record in records.all for row in record["rows"] if "twin" in row]
    distances = [found["distance"] for twin in recorded for found in twin["differing"]]
    return sum(t["same"] for t in recorded), sum(t["images"] for t in recorded), max(distances, default=0.0)


def entropy(counts: Sequence[int]) -> float:
    """Of how a layer's widths are spread over the images, in bits."""
    shares = np.asarray(counts) / sum(counts)
    return float(-sum(share * math.log2(share) for share in shares if share))
