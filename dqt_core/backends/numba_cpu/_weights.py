"""The weights of a convolution in the order in which products read them, at every width asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import nested
from dqt_core.backends._processor import Amx, Machine, Plain
from dqt_core.backends.numba_cpu import _buffers as buffers
from dqt_core.backends.numba_cpu import _kernels as kernels
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import Choice, Conv, once

PANEL = 1 << 18  # bytes of a block's codes and of what becomes of them, which stay in a core's own cache


class Weights:
    """The weights of one convolution in the order in which products read them, at every width asked for.

    Parameters
    ----------
    op : Conv
    rounding : {"half_up", "floor"}
    machine : Amx, Vnni512, Vnni256 or Plain

    Attributes
    ----------
    pieces : int
        Of a window: its rows; all of it for tiles, whose windows lie at one distance from each other.
    lines : int
        Of a window; every piece has whole ones.
    block_pixels : int
        Most pixels whose windows are gathered at a time: whole products, as many as `PANEL` holds.

    Notes
    -----
    Plans hold addresses of what is made here: where two threads make the same, both go on with the first.
    """

    def __init__(self, op: Conv, rounding: nested.Rounding, machine: Machine) -> None:
        self.op, self.rounding, self._machine = op, rounding, machine
        self._has_tiles = isinstance(machine, Amx)
        kernel, inputs = op.weight.shape[1], op.weight.shape[3]
        self.outputs, self.terms = len(op.weight) // op.groups, int(np.prod(op.weight.shape[1:]))
        self.is_depthwise = op.groups > 1 and self.outputs == 1 and inputs == 1
        self.pieces = 1 if self._has_tiles else kernel
        self.lines = self.pieces * -(-self.terms // (self.pieces * machine.line))
        self._shape = op.groups, -1, self.lines * machine.line // 4, machine.channels, 4
        codes = inputs * min(op.stride, kernel) ** 2 if self.is_direct(1) else self.lines * machine.line
        touched = codes + 2 * len(op.weight)  # bytes of a pixel
        products = min(buffers.MOST, PANEL // touched) // layout.PIXELS
        self.block_pixels = max(1, products) * layout.PIXELS
        self._switched: dict[int, tuple[NDArray[Any], NDArray[np.int32]]] = {}
        self._made: dict[tuple[Choice, bool], tuple[layout.Block, tuple[NDArray[Any], ...]]] = {}

    def is_direct(self, choices: int) -> bool:
        """Whether windows are read where they are, where the images are of so many choices."""
        op, machine = self.op, self._machine
        if not self._has_tiles:
            return op.groups == 1
        is_pointwise = op.weight.shape[1:3] == (1, 1) and (op.stride, op.padding, op.groups) == (1, 0, 1)
        return is_pointwise and self.terms % machine.line == 0 and choices == 1

    @once
    def _packed(self) -> NDArray[np.int8]:
        """(groups, blocks of channels, fours of bytes of a window, channels of a block, codes of four bytes).

        Channels are padded to whole products, pieces to whole lines.
        """
        op = self.op
        groups, _, quadruples, channels, codes = self._shape
        outputs = -(-self.outputs // layout.CHANNELS) * layout.CHANNELS
        terms = self.terms // self.pieces
        padded = np.zeros((groups, outputs, self.pieces, quadruples * codes // self.pieces), np.int8)
        padded[:, : self.outputs, :, :terms] = op.weight.reshape(groups, self.outputs, self.pieces, terms)
        lines = padded.reshape(groups, -1, channels, quadruples, codes).swapaxes(2, 3)
        return buffers.table(lines, alignment=layout.LINE)

    def _at(self, width: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Switched weights, and the sum of every channel's."""
        if width not in self._switched:
            codes, drop = buffers.zeros(len(self._packed), np.int8), MASTER_WIDTH - width
            epsilon = int(self.rounding == "half_up" and drop > 0)
            addresses = codes.ctypes.data, self._packed.ctypes.data
            kernels.switch_weights(*addresses, len(codes), drop, epsilon)
            by_channel = codes.reshape(self._shape)
            sums = by_channel.sum((2, 4), dtype=np.int32).reshape(self.op.groups, -1)[:, : self.outputs]
            if isinstance(self._machine, Plain):  # of four, the first and third are multiplied together
                pairs = codes.reshape(-1, 8, 2, 2).transpose(0, 3, 1, 2)
                codes = buffers.table(pairs.astype(np.int16), alignment=layout.LINE)
            self._switched.setdefault(width, (codes, sums.ravel()))
        return self._switched[width]

    def at(self, widths: Choice, signed: bool) -> layout.Block:
        """What a block has of the weights, for codes with a sign or without: no pixels, and no requantize."""
        if (widths, signed) not in self._made:
            weight_drop, input_drop = (MASTER_WIDTH - bits for bits in widths)
            zero, shift, middle = 128 >> input_drop if signed else 0, weight_drop + input_drop, 0
            if self.rounding == "floor":
                shift, middle = 1 + shift, (1 << weight_drop) - 1 << input_drop
            if self.is_depthwise:  # codes keep their sign, and weights have what floor does to the sums
                codes = nested.switch(self.op.weight, widths[0], rounding=self.rounding).astype(np.int32)
                if self.rounding == "floor":
                    codes, shift = (codes << shift) + middle, 0
                codes, sums = buffers.padded(codes[..., 0].transpose(1, 2, 0)), np.zeros(len(codes), np.int32)
                zero = middle = 0
            else:
                codes, sums = self._at(widths[0])
            correction = buffers.padded(sums * np.int32(zero))
            block = layout.Block(codes.ctypes.data, correction.ctypes.data, shift, middle, zero)
            self._made.setdefault((widths, signed), (block, (codes, correction)))
        return self._made[widths, signed][0]
