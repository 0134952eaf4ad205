"""The kernel of grouped.cu beside `integer`, on the convolution's cases; its mutants."""

from dataclasses import dataclass

import numpy as np
from conv_checks import Case, check


@dataclass(frozen=True)
class Grouped(Case):
    """A convolution in groups; `blocks` threads of 128 make one value each."""

    parts: int = 1

    @property
    def groups(self):
        return self.parts

    @property
    def source(self):
        return "grouped"

    @property
    def blocks(self):
        return -(-self.size[0] * int(np.prod(self.out_size)) * self.outputs // 128)


def cases():
    yield Grouped((3, 5, 7), 12, 18, parts=2, extreme=True)
    yield Grouped((3, 6, 5), 12, 12, parts=6, stride=2, signed=True, own_rows=False, skip="uint8")
    yield Grouped((3, 4, 5), 6, 9, parts=3, padding=0, rounding="floor", skip="int8", skip_rows=True)
    yield Grouped((3, 4, 4), 5, 10, parts=5, kernel=(1, 3), skip="int32", skip_rows=True, skip_switched=True)
    yield Grouped((7, 3, 3), 4, 4, parts=2, clamp=(-128, 127), picks=(2, 0, 2, 1, 1, 0, 2), rounding="floor")


def check_grouped(engine):
    for case in cases():
        check(engine, case)


GROUPED_CHECKS = (check_grouped,)

GROUPED_MUTANTS = [
    ("o / (c.O / c.groups) * inputs", "o % c.groups * inputs", "grouped: another group's channels"),
    ("if (i >= c.N * values) return;", "", "grouped: no end"),
    (
        "while (place >= c.starts[choice + 1])",
        "while (place > c.starts[choice + 1])",
        "grouped: another choice",
    ),
    ("image = c.order[place]", "image = place", "grouped: images not in order"),
    ("x < 0 || ", "x <= 0 || ", "grouped: first column is padding"),
    ("y >= c.H || ", "", "grouped: reads below the image"),
    ("inputs + k], weight_bits, true)", "inputs + k], x_bits, true)", "grouped: width of the other operand"),
    ("window += code;", "window = code;", "grouped: last code for the window's sum"),
]
