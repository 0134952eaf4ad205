"""Small things the chapters show numbers with."""

from html import escape

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib_inline.backend_inline import set_matplotlib_formats

# No background, and mid-tones that read on white and on near-black pages; lines differ by marker too.
INK = "#7d7d7d"
MARKERS = "os^DvXP*<>h"  # more than colours, for figures with many series
COLOURS = ["#2e86c1", "#d0661f", "#2a9466", "#b659a6", "#8f7a1c", INK]
STYLE = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS, marker=list(MARKERS[: len(COLOURS)])),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.figsize": (8, 3.4),
    "font.size": 11,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 7,
    "svg.hashsalt": "dqt_core",
}


def style():
    """Draw figures as SVG that a light and a dark page can both show."""
    set_matplotlib_formats("svg", metadata={"Date": None})
    plt.rcParams.update(STYLE)


def page(path, title, *tables):
    """Write tables as a page that needs no other file, and return its path."""
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    body = "\n".join(table._repr_html_() for table in tables)
    path.write_text(f"{head}\n<h1>{escape(title)}</h1>\n{body}\n</html>\n")
    return path


class Table:
    """A table that a page shows as HTML and a terminal as aligned text."""

    def __init__(self, head, rows):
        self.head = [str(cell) for cell in head]
        self.rows = [[str(cell) for cell in row] for row in rows]

    def __repr__(self):
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    def _repr_html_(self):
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        # A wide table scrolls by itself on a narrow page: it must be reachable by keyboard.
        opening = '<table class="table dataframe" tabindex="0">'
        return f"{opening}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
