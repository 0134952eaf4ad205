"""Memory that kernels touch: every byte of it is made by `zeros`.

Kernels work on addresses, so what they touch is sized here, in `_weights` and in `_plan`, by what `_layout`
says of each buffer. The tests put what `zeros` makes between pages that may not be touched.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dqt_core.backends._processor import Machine
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.program import Program

MARGIN = layout.LINE  # bytes that may be read beyond a value: a line that begins with its last code
MOST = 4096  # pixels of a block


class Windows(Protocol):
    """Of the weights of a convolution, what says how much its windows take."""

    block_pixels: int
    lines: int
    pieces: int


def zeros(size: int, dtype: Any, alignment: int = layout.LINE) -> NDArray[Any]:
    """Zeros at a multiple of `alignment` bytes, and not a byte more: all that kernels touch is made here."""
    count = size * np.dtype(dtype).itemsize
    memory = np.zeros(count + alignment - 1, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + count].view(dtype)


def table(values: NDArray[Any], beyond: int = 0, alignment: int = 0) -> NDArray[Any]:
    """A flat copy, with zeros beyond its end; at a multiple of an item's bytes, if nothing is said."""
    made = zeros(values.size + beyond, values.dtype, alignment or values.itemsize)
    made[: values.size] = values.ravel()
    return made


def padded(values: NDArray[Any]) -> NDArray[Any]:
    """A table of channels, of which 16 are read at a time, from the last one on too."""
    return table(values, beyond=15)


class Scratch:
    """What every thread has for itself.

    Notes
    -----
    Channels are worked on 16 at a time, so sums and totals of any number of them have 15 more. A block's
    windows are whole products (`Weights.block_pixels`); a line copied into the last may end beyond it.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Windows], machine: Machine, workers: int
    ) -> None:
        self.machine, self.workers = machine, workers
        widest = max(value.shape[2] for value in program.values.values()) + 15
        windows = max((own.block_pixels * own.lines * machine.line for own in weights.values()), default=0)
        pieces = max((own.block_pixels * own.pieces for own in weights.values()), default=0)
        sizes = {"sums": max(layout.PRODUCT, 4 * widest), "totals": 8 * widest, "windows": 8 * pieces}
        # `spare` takes 16 channels, of int32 at most, of every pixel of a product
        sizes |= {"middles": 4 * MOST, "spare": 4 * 16 * layout.PIXELS, "panel": windows + layout.LINE}
        tiles = zeros(layout.LINE, np.uint8)
        tiles[0] = 1  # the one palette there is
        tiles[16:32].view(np.uint16)[:] = layout.LINE  # bytes of a row of a tile
        tiles[48:56] = 16  # rows
        ones, nothing = table(np.ones(widest, np.int32)), table(np.zeros(16, np.int32))
        shared = {"config": tiles, "ones": ones, "zeros": nothing}
        self.memory = np.zeros(workers, layout.MEMORY)
        self._kept = [
            shared | {name: zeros(size, np.uint8) for name, size in sizes.items()} for _ in range(workers)
        ]
        for own, kept in zip(self.memory, self._kept, strict=True):
            for name, array in kept.items():
                own[name] = array.ctypes.data
