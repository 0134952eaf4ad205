"""The reference: every operation is one call of `integer` or `nested`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import integer, nested
from dqt_core.backends import by_choice, drops_of, rows_of
from dqt_core.program import (
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Product,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
)

Values = dict[str, NDArray[Any]]
Picks = NDArray[np.int64]


class Backend:
    """NumPy, integers only.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> from dqt_core.program import execute
    >>> program = selftest.network()
    >>> logits, choices = execute(program, Backend(program), selftest.images(), None)
    >>> logits.shape, choices.shape
    ((12, 5), (12, 3))
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    def upload(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images

    def download(self, logits: NDArray[np.int64]) -> NDArray[np.int64]:
        return logits

    def lookup(self, op: Lookup, values: Values, choices: Picks) -> NDArray[Any]:
        return integer.lookup(values[op.x], op.table)

    def conv(self, op: Conv, values: Values, choices: Picks) -> NDArray[np.int32]:
        x = values[op.x]
        parts = [
            (images, self._conv_at(op, x if images is None else x[images], *widths))
            for widths, images in by_choice(choices, op.layer, self.program.choices)
        ]
        if parts[0][0] is None:
            return parts[0][1]
        out = np.empty((len(x), *parts[0][1].shape[1:]), np.int32)
        for images, part in parts:
            out[images] = part
        return out

    def _conv_at(self, op: Conv, x: NDArray[Any], weight_bits: int, input_bits: int) -> NDArray[np.int32]:
        rounding = self.program.rounding
        weight = nested.switch(op.weight, weight_bits, rounding=rounding)
        codes = nested.switch(x, input_bits, rounding=rounding)
        if rounding == "half_up":
            return integer.conv2d(codes, weight, op.stride, op.padding, op.groups)
        drops = 8 - weight_bits, 8 - input_bits
        return integer.conv2d_mid_bin(codes, weight, *drops, op.stride, op.padding, op.groups)

    def requantize(self, op: Requantize, values: Values, choices: Picks) -> NDArray[Any]:
        terms = [
            (values[t.x], self._drop(t, choices), self._rows(t.multiplier, t, choices)) for t in op.terms
        ]
        offset = sum(self._rows(t.offset, t, choices) for t in op.terms)
        return integer.requantize(terms, offset, op.r, op.lo, op.hi)

    def maxpool(self, op: MaxPool, values: Values, choices: Picks) -> NDArray[Any]:
        return integer.max_pool(values[op.x], op.kernel, op.stride, op.padding, op.ceil)

    def sumpool(self, op: SumPool, values: Values, choices: Picks) -> NDArray[np.int32]:
        return integer.sum_pool(values[op.x])

    def concat(self, op: Concat, values: Values, choices: Picks) -> NDArray[Any]:
        return np.concatenate([values[name] for name in op.parts], axis=-1)

    def product(self, op: Product, values: Values, choices: Picks) -> NDArray[np.int32]:
        return integer.product(values[op.x], values[op.y])

    def scale(self, op: Scale, values: Values, choices: Picks) -> NDArray[np.int64]:
        return integer.scale(values[op.term.x], op.term.multiplier[0], op.term.offset[0])

    def choose(self, op: Choose, logits: NDArray[np.int64], choices: int) -> Picks:
        return logits.reshape(len(logits), op.layers, choices).argmax(axis=-1)

    def _rows(self, table: NDArray[Any], term: Term, choices: Picks) -> NDArray[Any]:
        return table[rows_of(choices, term.layer, len(table))][:, None, None, :]

    def _drop(self, term: Term, choices: Picks) -> NDArray[np.int64]:
        # floor accumulators are already in half master steps, see integer.conv2d_mid_bin
        layer = term.layer if self.program.rounding == "half_up" else None
        return drops_of(choices, layer, self.program.choices)[:, None, None, None]
