"""The comparison as a figure of two panels: what a width costs, and what methods reach at equal cost."""

import matplotlib.pyplot as plt
import numpy as np

from dqt_book import show
from dqt_book.records import comparison
from dqt_book.records.comparison import Method, Records

BASE = "DQT static"  # is in both panels, as the line to be at or above


def panels(records: Records) -> bool:
    """Draw both; False, and nothing, where no row but float is recorded, or float itself is not."""
    points = {m.label: found for m in comparison.METHODS if (found := _points(records, m))}
    floats = records.of(comparison.FLOAT[0])
    if not points or not floats:
        return False
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 4.4), width_ratios=(4, 5))
    budgeted = {m.label for m in comparison.METHODS if set(m.lines) <= set(comparison.BUDGETS)}
    look = {name: (show.MARKERS[i], show.COLOURS[i % 5]) for i, name in enumerate(points)}
    base = comparison.accuracy(floats)
    for name, found in points.items():
        marker, colour = look[name]
        if name not in budgeted:
            widths, values, _ = zip(*found, strict=True)
            at = [comparison.WIDTHS.index(width) for width in widths]
            left.plot(at, np.subtract(values, base), marker=marker, color=colour, label=name)
    left.axhline(0, color=show.INK, marker="", ls=":")
    left.set(xticks=range(len(comparison.WIDTHS)), xticklabels=comparison.WIDTHS)
    left.set(xlabel="width, bits", ylabel="points from float")
    _equal_cost(right, {n: found for n, found in points.items() if n in budgeted or n == BASE}, look)
    for axis in (axis for axis in (left, right) if axis.get_legend_handles_labels()[0]):
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(-0.1, -0.18))
    plt.show()
    return True


def _points(records: Records, method: Method) -> list[tuple[int, float, float]]:
    """(width, accuracy, G BitOPs) of a method's recorded lines."""
    found = []
    for width, line in method.lines.items():
        rows = records.of(line)
        if rows:
            spent = float(np.mean([row["bitops"] for row in rows])) / 1e9
            found.append((width, comparison.accuracy(rows), spent))
    return found


def _equal_cost(axis, points, look) -> None:
    """Accuracy against BitOPs where the budgets are, with the static network's line to compare."""
    near = [spent for found in points.values() for w, _, spent in found if w in comparison.BUDGETS]
    if not near:  # no method that is recorded has such a cost
        return
    low, high = min(near) * 0.85, max(near) * 1.1
    shown = []
    for name, found in points.items():
        _, values, spent = zip(*sorted(found, key=lambda point: point[2]), strict=True)
        marker, colour = look[name]
        axis.plot(spent, values, marker=marker, color=colour, ls="-" if name == BASE else "", label=name)
        shown += [value for value, cost in zip(values, spent, strict=True) if low <= cost <= high]
    margin = 0.1 * (max(shown) - min(shown)) + 0.05
    axis.set(xlim=(low, high), ylim=(min(shown) - margin, max(shown) + margin))
    axis.set(xlabel="G BitOPs an image", ylabel="top-1, %")
