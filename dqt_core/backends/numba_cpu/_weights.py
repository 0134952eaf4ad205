"""The weights of a convolution in the order in which products read them, at every width asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import nested
from dqt_core.backends.numba_cpu import _buffers as buffers
from dqt_core.backends.numba_cpu import _kernels as kernels
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import Choice, Conv, once

LINE = layout.LINE
PANEL = 1 << 18  # bytes of windows that a thread collects before it multiplies, if a product has no more


class Weights:
    """The weights of one convolution in the order in which products read them, at every width asked for.

    Parameters
    ----------
    op : Conv
    rounding : {"half_up", "floor"}
    unit : int
        Codes in a line of 64 bytes.

    Attributes
    ----------
    lines : int
        Of a window.
    block_pixels : int
        Most pixels whose windows are collected at a time: whole products, as many as `PANEL` holds.

    Notes
    -----
    Plans hold addresses of what is made here: where two threads make the same, both go on with the first.
    """

    def __init__(self, op: Conv, rounding: nested.Rounding, unit: int) -> None:
        self.op, self.rounding, self.unit = op, rounding, unit
        self.outputs, self.terms = len(op.weight) // op.groups, int(np.prod(op.weight.shape[1:]))
        self.is_depthwise = op.groups > 1 and self.outputs == 1 and op.weight.shape[3] == 1
        self.lines = -(-self.terms // unit)
        touched = LINE * self.lines + 2 * len(op.weight)  # bytes of a pixel
        products = min(buffers.MOST, PANEL // touched) // layout.PIXELS
        self.block_pixels = max(1, products) * layout.PIXELS
        self._switched: dict[int, tuple[NDArray[Any], NDArray[np.int32]]] = {}
        self._made: dict[tuple[int, int, bool], tuple[NDArray[Any], NDArray[np.int32]]] = {}

    @once
    def _packed(self) -> NDArray[np.int8]:
        """(groups, blocks of 16 channels, lines, 16 channels, 4 bytes), channels padded to whole products."""
        op, size = self.op, self.unit // 16
        blocks = -(-self.outputs // layout.CHANNELS) * 2
        padded = np.zeros((op.groups, blocks * 16, self.lines * self.unit), np.int8)
        padded[:, : self.outputs, : self.terms] = op.weight.reshape(op.groups, self.outputs, self.terms)
        lines = padded.reshape(op.groups, blocks, 16, -1, size).swapaxes(2, 3)
        packed = buffers.zeros(padded.size, np.int8)
        packed[:] = lines.reshape(-1)
        return packed

    def _at(self, width: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Switched weights, and the sum of every channel's."""
        if width not in self._switched:
            packed = self._packed
            codes = buffers.zeros(len(packed), np.int8)
            epsilon = int(self.rounding == "half_up" and width < MASTER_WIDTH)
            kernels.switch_weights(
                codes.ctypes.data, packed.ctypes.data, len(codes), MASTER_WIDTH - width, epsilon
            )
            by_channel = codes.reshape(self.op.groups, -1, self.lines * 16, 16, self.unit // 16)
            sums = by_channel.sum((2, 4), dtype=np.int32).reshape(self.op.groups, -1)[:, : self.outputs]
            if self.unit != LINE:
                narrow, codes = codes, buffers.zeros(len(codes), np.int16)
                codes[:] = narrow
            self._switched.setdefault(width, (codes, sums.ravel()))
        return self._switched[width]

    def at(self, widths: Choice, signed: bool) -> tuple[int, int, int, int]:
        """Addresses of the weights and of the correction for codes without a sign; zero point; middle."""
        weight_bits, input_bits = widths
        key = weight_bits, input_bits, signed
        zero = 128 >> (MASTER_WIDTH - input_bits) if signed else 0
        weight_drop, input_drop = MASTER_WIDTH - weight_bits, MASTER_WIDTH - input_bits
        middle = (1 << weight_drop) - 1 << input_drop if self.rounding == "floor" else 0
        if key not in self._made:
            if self.is_depthwise:
                zero = 0
                codes = nested.switch(self.op.weight, weight_bits, rounding=self.rounding).astype(np.int32)
                if self.rounding == "floor":
                    codes = (codes << (1 + weight_drop + input_drop)) + middle
                taps = codes[..., 0].transpose(1, 2, 0)
                made = buffers.padded(taps), buffers.padded(np.zeros(len(self.op.weight), np.int32))
            else:
                codes, sums = self._at(weight_bits)
                made = codes, buffers.padded(sums * np.int32(zero))
            self._made.setdefault(key, made)
        codes, correction = self._made[key]
        return codes.ctypes.data, correction.ctypes.data, zero, middle
