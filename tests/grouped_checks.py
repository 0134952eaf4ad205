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
    def blocks(self):
        return -(-self.size[0] * int(np.prod(self.out_size)) * self.outputs // 128)


class AsGrouped:
    """An engine that runs the kernel of grouped.cu, which has one argument more, in the place of `conv`."""

    def __init__(self, engine, groups):
        self.engine, self.groups, self.xp = engine, np.int32(groups), engine.xp

    def kernel(self, source, name, **defines):
        kernel = self.engine.kernel("grouped", "grouped", **defines)
        return lambda grid, block, args: kernel(grid, block, (*args, self.groups))


def cases():
    yield Grouped((3, 5, 7), 12, 18, parts=2, extreme=True)
    yield Grouped((3, 6, 5), 12, 12, parts=6, stride=2, signed=True, own_rows=False, skip="uint8")
    yield Grouped((3, 4, 5), 6, 9, parts=3, padding=0, rounding="floor", skip="int8", skip_rows=True)
    yield Grouped((3, 4, 4), 5, 10, parts=5, kernel=(1, 3), skip="int32", skip_rows=True, skip_switched=True)
    yield Grouped((7, 3, 3), 4, 4, parts=2, clamp=(-128, 127), picks=(2, 0, 2, 1, 1, 0, 2), rounding="floor")


def check_grouped(engine):
    for case in cases():
        check(AsGrouped(engine, case.groups), case)


GROUPED_CHECKS = (check_grouped,)

GROUPED_MUTANTS = [
    ("o / (outputs / groups) * inputs", "o % groups * inputs", "grouped: another group's channels"),
    ("if (i >= images * values) return;", "", "grouped: no end"),
    ("while (place >= starts[choice + 1])", "while (place > starts[choice + 1])", "grouped: another choice"),
    ("image = order[place]", "image = place", "grouped: images not in order"),
    ("column < 0 || ", "column <= 0 || ", "grouped: first column is padding"),
    ("y >= height || ", "", "grouped: reads below the image"),
    ("inputs + c], weight_bits, true)", "inputs + c], x_bits, true)", "grouped: width of the other operand"),
    ("window += code;", "window = code;", "grouped: last code for the window's sum"),
    ("(multiplier_rows == 1 ? 0 : choice)", "choice", "grouped: a row that is not there"),
    ("skip_picks ? skip_picks[image] : 0", "choice", "grouped: own choice for the skip's"),
    ("        drop = 0;\n", "", "grouped: floor shifted twice"),
    ("return ((const signed char*)values)[i];", "return ((const unsigned char*)values)[i];", "grouped: sign"),
]
