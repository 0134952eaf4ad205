"""What kernels are given, field by field: the steps of a plan, its blocks and terms, and where memory is.

Kernels get records of a NumPy array (`record`), plans make the tuples; either has the fields declared here.
An *address* is a number of bytes in memory; a *place* is one within the arena.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dqt_core.backends._processor import Machine

PIXELS = CHANNELS = 32  # of one product
LINE = 64  # bytes
PRODUCT = 4 * PIXELS * CHANNELS  # bytes of the sums of one product
LOOKUP, SWITCH, CONV, DEPTHWISE, REQUANTIZE, MAX_POOL, SUM_POOL, COPY, MULTIPLY = range(9)
# How a value is stored: uint8, int8, int32. A convolution may have no other term, or no requantize.
NOTHING, UNSIGNED, SIGNED, SUMS, RAW = range(5)


class Step(NamedTuple):
    """One operation of a plan, for all images; what an operation has no use for is 0."""

    kind: int  # LOOKUP .. MULTIPLY
    x: int  # its place
    x_kind: int
    out: int  # its place
    out_kind: int
    height: int  # of x
    width: int
    channels: int
    out_height: int
    out_width: int
    outputs: int
    items: int = 0  # that threads share
    splits: int = 1  # items of a block, or of an image of a switch
    # of a convolution and of pooling
    kernel_height: int = 0
    kernel_width: int = 0
    stride: int = 0
    padding: int = 0
    groups: int = 0
    images: int = 0  # of a convolution and its switch: the first entry of `Memory.order` and `Memory.drops`
    block: int = 0  # its first
    lines: int = 0  # of a window
    pieces: int = 0  # of a window, each at an address of its own and of as many lines
    direct: int = 0  # 1: pieces within the image are read where they are
    # of a requantize, alone or with a convolution
    term: int = 0  # its first
    terms: int = 0
    r: int = 0
    lo: int = 0
    hi: int = 0
    # of a switch
    half_up: int = 0  # 1: it rounds so
    lifted: int = 0  # 1: signed codes stay signed
    # of a look-up
    table: int = 0  # its first
    tables: int = 0  # 1, or one for each channel
    # of a product
    y: int = 0  # the place of the other factor
    y_kind: int = 0
    y_pixels: int = 0


class Block(NamedTuple):
    """A run of pixels whose images all use the same widths at a layer; of a depthwise one, an image."""

    weights: int  # address
    correction: int  # address, int32: what sums are too large by
    shift: int  # of the sums, to the left
    middle: int  # floor: what a code of the window adds to its sums
    zero: int  # the code that padding is
    # of a depthwise one, all pixels of its image
    first: int = 0  # pixel, where images are sorted by choice
    pixels: int = 0
    # of a requantize with the convolution
    m: int = 0  # address, int32: multipliers
    b: int = 0  # address, int64: offsets


class Term(NamedTuple):
    """An addend of a requantize, beside the sums that a fused convolution has at hand."""

    x: int  # its place
    kind: int
    m: int  # address, int32: multipliers
    b: int  # address, int64: offsets
    rows: int  # its first entry of `Memory.rows` and `Memory.drops`


class Memory(NamedTuple):
    """Addresses of all that a thread reads and writes.

    A kernel writes a value's own bytes and no others. It reads whole lines, so that up to 63 bytes beyond a
    value are read, and none before it; nothing that is kept depends on these bytes.
    """

    arena: int  # every value, and a line that may be read beyond the last
    order: int  # int64: images sorted by choice, for every convolution
    drops: int  # int64: dropped bits of every image, for every reader
    rows: int  # int64: row of its table of every image, for every term
    tables: int  # int8 (rows, 256): of every look-up, one or one for a channel
    counts: int  # int64, a line each: items taken and items done, of every step
    ones: int  # int32, as many as sums
    zeros: int  # int32
    config: int  # shapes of the tiles
    # the thread's own
    sums: int  # int32, of a product or of one pixel's channels, up to 15 more of these
    totals: int  # int64, of one pixel's channels and up to 15 more
    middles: int  # int32, for every pixel of a block
    spare: int  # 16 channels of every pixel of a product; a line of codes
    windows: int  # int64 (pieces, pixels of a block in whole tiles): the address of every piece of a window
    panel: int  # the windows of a block, in whole products, and a line


Memories: TypeAlias = Sequence[Memory]  # of every thread
Steps: TypeAlias = Sequence[Step]
Blocks: TypeAlias = Sequence[Block]
Terms: TypeAlias = Sequence[Term]


class Sums(NamedTuple):
    """Sums of neighbouring pixels of one image and of some channels."""

    at: int  # address, int32
    middles: int  # address, int32: what is added to all sums of a pixel, if there is a middle
    image: int
    place: int  # among the outputs, of the first
    channel: int  # the first
    channels: int
    pixels: int


def record(fields: Any) -> np.dtype[np.void]:
    """The layout of a declaration.

    Examples
    --------
    >>> record(Term).names
    ('x', 'kind', 'm', 'b', 'rows')
    """
    return np.dtype([(name, np.int64) for name in fields._fields])


STEP, BLOCK, TERM, MEMORY = map(record, (Step, Block, Term, Memory))


class Given(NamedTuple):
    """What every kernel of a thread is given."""

    machine: Machine
    memory: Memory
    blocks: Blocks
    terms: Terms
