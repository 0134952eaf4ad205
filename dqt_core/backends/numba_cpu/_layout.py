"""What kernels are given, field by field: the steps of a plan, its blocks and terms, and where memory is."""

from typing import NamedTuple, TypeAlias

import numpy as np

PIXELS = CHANNELS = 32  # of one product
LINE = 64  # bytes
PRODUCT = 4 * PIXELS * CHANNELS  # bytes of the sums of one product
LOOKUP, SWITCH, CONV, DEPTHWISE, REQUANTIZE, MAX_POOL, SUM_POOL, COPY, MULTIPLY = range(9)
NOTHING, UNSIGNED, SIGNED, SUMS = range(4)  # how a value is stored: uint8, int8, int32

STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kind", "items", "splits", "block", "order", "x", "x_kind", "out", "out_kind"),
            *("height", "width", "channels", "out_height", "out_width", "outputs"),
            *("kernel_height", "kernel_width", "stride", "padding", "groups"),
            *("steps", "panel", "direct", "table", "term", "terms", "r", "lo", "hi"),
            *("y", "y_kind", "y_pixels"),  # of a product: the other factor, and its pixels
        )
    ]
)
# A run of pixels whose images all use the same widths at a layer.
BLOCK = np.dtype(
    [
        (name, np.int64)
        for name in ("first", "pixels", "weights", "correction", "shift", "middle", "zero", "m", "b")
    ]
)
# Addresses of all that the steps of a plan read and write, and the bytes from a thread's to the next's.
# A kernel writes a value's own bytes and no others. It reads whole lines, so that up to 63 bytes beyond a
# value are read, and none before it; nothing that is kept depends on these bytes.
MEMORY = np.dtype(
    [
        (name, np.int64)
        for name in (
            "arena",  # every value, and a line that may be read beyond the last
            "offsets",  # int64: of the lines of a pixel, for every convolution
            "order",  # int64: images sorted by choice, for every convolution
            "drops",  # int64: dropped bits of every image, for every reader
            "rows",  # int64: row of its table of every image, for every term
            "tables",  # int8 (rows, 256): of every look-up, one or one for a channel
            "counts",  # int64, a line each: items taken and items done, of every step
            "ones",  # int32
            "zeros",  # int32
            "config",  # shapes of the tiles
            *("sums", "sums_step"),  # int32, of a product or of one pixel's channels, up to 15 more of these
            *("totals", "totals_step"),  # int64, of one pixel's channels and up to 15 more
            *("middles", "middles_step"),  # int32, for every pixel of a block
            *("spare", "spare_step"),  # 16 channels of every pixel of a product; a line of codes
            *("panel", "panel_step"),  # the windows of a block, in whole products, and a line
        )
    ]
)
# An addend of a requantize, beside the sums that a fused convolution has at hand.
TERM = np.dtype([(name, np.int64) for name in ("x", "kind", "m", "b", "rows")])


class Amx(NamedTuple):
    """Tiles of 16 x 64 bytes."""

    unit: int = LINE  # products along a line


class Vnni512(NamedTuple):
    """Dot products of four bytes, 16 at a time."""

    unit: int = LINE


class Vnni256(NamedTuple):
    """Dot products of four bytes, 8 at a time."""

    unit: int = LINE


class Plain(NamedTuple):
    """Dot products of two 16-bit integers, on any processor."""

    unit: int = LINE // 2


Machine: TypeAlias = Amx | Vnni512 | Vnni256 | Plain
