"""Every operation of a program as a launch of a kernel: its variant, its grid and its arguments.

What a kernel computes is told in its source (`dqt_core.kernels`); here is who calls it with what. Variants of
a kernel are chosen by macros (signs, rounding, tiles), so a decision that is the same for a whole layer costs
nothing at run time; what differs between images, their widths, is an argument.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dqt_core.backends.analysis import FusedConv, Step
from dqt_core.kernels.engine import Engine, Kernel
from dqt_core.kernels.structs import Struct
from dqt_core.nested import Rounding
from dqt_core.program import (
    Choice,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Product,
    Requantize,
    Scale,
    SumPool,
    Term,
)

Values: TypeAlias = Mapping[str, Any]

THREADS = 256
CONV_THREADS = 128
DEPTHWISE_TILE, DEPTHWISE_TAPS = (64, 32), 49  # channels and pixels of a block; taps that it has room for
SUMMED_CHANNELS = 64  # of a block of `sum_pool`
TILES = (128, 128), (128, 64), (64, 64), (64, 32), (32, 32)
BUSY = 256  # blocks that keep a large GPU busy; with fewer, smaller tiles make more of them
KINDS = {np.dtype(np.uint8): 1, np.dtype(np.int8): 2, np.dtype(np.int32): 3}  # as common.cuh has them


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel with its grid and its arguments, ready to run on the current stream."""

    kernel: Kernel
    blocks: int
    threads: int
    args: tuple[Any, ...]

    def __call__(self) -> None:
        """Start the kernel."""
        self.kernel((self.blocks, 1, 1), (self.threads, 1, 1), self.args)


@dataclass(frozen=True, eq=False)
class Series:
    """Launches that run one after the other."""

    launches: tuple[Launch, ...]

    def __call__(self) -> None:
        """Start them all."""
        for launch in self.launches:
            launch()


class Batch:
    """The images of a batch, grouped by choice at every layer.

    Attributes
    ----------
    picks : int32 array, (N, L)
        Choice of every image and layer: written by the host, or by the controller's `choose`.
    columns : int32 array, (L, N)
        The same by layer.
    order : int32 array, (L, N)
        Images sorted by choice, for every layer.
    starts : int32 array, (L, K + 1)
        Where each choice's images begin in `order`.
    everyone : pair of int32 arrays, (N,) and (2,)
        The order and the starts of a layer that is always 8 bits: one group of all images.
    """

    def __init__(self, xp: Any, images: int, layers: int, choices: int) -> None:
        self.images, self.layers, self.choices = images, layers, choices
        self.picks = xp.zeros((images, layers), np.int32)
        self.columns = xp.zeros((layers, images), np.int32)
        self.order = xp.zeros((layers, images), np.int32)
        self.starts = xp.zeros((layers, choices + 1), np.int32)
        self.everyone = xp.arange(images, dtype=np.int32), xp.asarray(np.array([0, images], np.int32))


class Launches:
    """Makes the launches of a program's operations; holds its weights and tables on the device.

    Parameters
    ----------
    engine : Engine
    choices : sequence of (weight bits, input bits)
    rounding : {"half_up", "floor"}
    **macros : int
        More macros for `conv`, to measure one of its variants.
    """

    def __init__(self, engine: Engine, choices: Sequence[Choice], rounding: Rounding, **macros: int) -> None:
        self.engine, self._macros = engine, macros
        self._is_floor = rounding == "floor"
        self._uploaded: dict[tuple[int, tuple[int, ...]], tuple[Any, Any]] = {}
        self._bits = engine.xp.asarray(np.array(choices, np.int32))
        self._full_bits = engine.xp.asarray(np.array([[8, 8]], np.int32))

    def of(self, step: Step, values: Values, batch: Batch) -> Launch | Series:
        """The launch of one step of a plan, or several of them.

        Parameters
        ----------
        step : operation or `FusedConv`
        values : mapping of name to array, (N, H, W, C)
        batch : Batch
        """
        match step:
            case Lookup():
                return self._lookup(step, values, batch)
            case Conv():
                return self._conv(step, values, batch)
            case FusedConv():
                return self._fused_conv(step, values, batch)
            case Requantize():
                return self._requantize(step, values, batch)
            case MaxPool():
                return self._max_pool(step, values, batch)
            case SumPool():
                return self._sum_pool(step, values, batch)
            case Concat():
                return self._concat(step, values)
            case Product():
                return self._product(step, values)
            case Scale():
                return self._scale(step, values, batch)
            case Choose():
                return self._choose(step, values, batch)

    def group_images(self, batch: Batch) -> Launch:
        """Sort the images of every layer by choice."""
        sizes = np.int32(batch.images), np.int32(batch.layers), np.int32(batch.choices)
        kernel = self.engine.kernel("pointwise", "group_images")
        return Launch(
            kernel, batch.layers, 32, (batch.picks, *sizes, batch.columns, batch.order, batch.starts)
        )

    def _lookup(self, op: Lookup, values: Values, batch: Batch) -> Launch:
        out = values[op.out]
        sizes = np.int64(out.size), np.int32(len(op.table))
        return self._each("lookup", out.size, values[op.x], self._upload(op.table), out, *sizes)

    def _conv(self, op: Conv, values: Values, batch: Batch) -> Launch:
        sums = values[op.out]
        return self._convolution(op, values[op.x], sums.shape, batch, sums=sums)

    def _fused_conv(self, step: FusedConv, values: Values, batch: Batch) -> Launch:
        op, x, out = step.requantize, values[step.conv.x], values[step.out]
        terms = {"own": Struct("Term", **self._tables(step.term, out.shape[3]))}
        if step.skip is not None:
            terms["skip"] = self._term(step.skip, values, out.shape[3], batch)
        return self._convolution(
            step.conv, x, out.shape, batch, codes=out, **terms, r=op.r, lo=op.lo, hi=op.hi
        )

    def _convolution(
        self, op: Conv, x: Any, out_shape: tuple[int, ...], batch: Batch, **results: Any
    ) -> Launch:
        """The kernel for its groups; `results` are what it writes and how, by field of ``Convolution``."""
        _, out_height, out_width, outputs = out_shape
        height, width = op.weight.shape[1:3]
        if (height, width) == x.shape[1:3] and (op.padding, op.groups) == (0, 1):
            height, width, x = 1, 1, x.reshape(len(x), 1, 1, -1)  # one pixel of all the image's codes
        shapes = dict(zip("NHWC", x.shape, strict=True)) | {"O": outputs, "kh": height, "kw": width}
        shapes |= {"stride": op.stride, "padding": op.padding, "groups": op.groups}
        shapes |= {"OH": out_height, "OW": out_width}
        groups = self._groups(op, batch)
        argument = Struct("Convolution", x=x, weight=self._upload(op.weight), **groups, **shapes, **results)
        defines = {"X_SIGNED": int(x.dtype == np.int8), "FLOOR": int(self._is_floor)}
        if op.groups == x.shape[3] == outputs and math.prod(op.weight.shape[1:]) <= DEPTHWISE_TAPS:
            defines["VECTOR"] = _vector(outputs, widest=4)
            channels, pixels = DEPTHWISE_TILE
            tiles = len(x) * -(-outputs // channels) * -(-out_height * out_width // pixels)
            kernel = self.engine.kernel("depthwise", "depthwise", **defines)
            return Launch(kernel, tiles, CONV_THREADS, (argument,))
        if op.groups > 1:
            kernel = self.engine.kernel("grouped", "grouped", **defines)
            return Launch(kernel, blocks(math.prod(out_shape)), THREADS, (argument,))
        rows = batch.images * out_height * out_width
        tile_m, tile_n = tile(rows, outputs)
        defines |= {"TILE_M": tile_m, "TILE_N": tile_n, "VECTOR": _vector(x.shape[3]), **self._macros}
        # A tile holds images of one choice: each choice after the first may add a tile that is partly filled.
        tiles = (-(-rows // tile_m) + groups["choices"] - 1) * -(-outputs // tile_n)
        return Launch(self.engine.kernel("conv", "conv", **defines), tiles, CONV_THREADS, (argument,))

    def _groups(self, op: Conv, batch: Batch) -> dict[str, Any]:
        """Order and starts of the images, widths of every choice, and how many choices there are."""
        if op.layer is None:
            order, starts = batch.everyone
            return {"order": order, "starts": starts, "bits": self._full_bits, "choices": 1}
        order, starts = batch.order[op.layer], batch.starts[op.layer]
        return {"order": order, "starts": starts, "bits": self._bits, "choices": batch.choices}

    def _tables(self, term: Term, channels: int) -> dict[str, Any]:
        """Multipliers and offsets, (rows, channels), and their rows: one, or one for every choice."""
        shape = rows, _ = max(len(term.multiplier), len(term.offset)), channels
        multiplier, offset = self._upload(term.multiplier, shape), self._upload(term.offset, shape)
        return {"multiplier": multiplier, "offset": offset, "rows": rows}

    def _term(self, term: Term, values: Values, channels: int, batch: Batch) -> Struct:
        x = values[term.x]
        chosen: dict[str, Any] = {}
        if term.layer is not None:
            # floor sums are already at the master's scale, see integer.conv2d_mid_bin
            bits = None if self._is_floor else self._bits
            chosen = {"picks": batch.columns[term.layer], "bits": bits}
        return Struct("Term", x=x, kind=KINDS[x.dtype], **self._tables(term, channels), **chosen)

    def _requantize(self, op: Requantize, values: Values, batch: Batch) -> Launch:
        out = values[op.out]
        _, height, width, channels = out.shape
        terms = [self._term(term, values, channels, batch) for term in op.terms]
        absent = [Struct("Term")] * (3 - len(terms))
        limits = np.int32(op.r), np.int32(op.lo), np.int32(op.hi)
        sizes = np.int64(out.size), np.int32(height * width), np.int32(channels)
        return self._each("requantize", out.size, *terms, *absent, *limits, out, *sizes)

    def _max_pool(self, op: MaxPool, values: Values, batch: Batch) -> Launch:
        x, out = values[op.x], values[op.out]
        sizes = *x.shape, op.kernel, op.stride, op.padding, *out.shape[1:3]
        variant = _pool_variant(x)
        return self._each("max_pool", out.size // variant["VECTOR"], x, out, *map(np.int32, sizes), **variant)

    def _sum_pool(self, op: SumPool, values: Values, batch: Batch) -> Launch:
        x, out = values[op.x], values[op.out]
        images, height, width, channels = x.shape
        sizes = map(np.int32, (images, height * width, channels))
        kernel = self.engine.kernel("pointwise", "sum_pool", **_pool_variant(x))
        return Launch(kernel, images * -(-channels // SUMMED_CHANNELS), THREADS, (x, out, *sizes))

    def _concat(self, op: Concat, values: Values) -> Series:
        out, first, launches = values[op.out], 0, []
        for name in op.parts:
            x, channels = values[name], values[name].shape[3]
            sizes = np.int64(x.size), *map(np.int32, (channels, out.shape[3], first))
            launches.append(self._each("copy_channels", x.size, x, out, *sizes))
            first += channels
        return Series(tuple(launches))

    def _product(self, op: Product, values: Values) -> Launch:
        x, y, out = values[op.x], values[op.y], values[op.out]
        sizes = np.int64(out.size), np.int32(out[0].size), np.int32(out.shape[3]), np.int32(y[0].size)
        kinds = np.int32(KINDS[x.dtype]), np.int32(KINDS[y.dtype])
        return self._each("product", out.size, x, kinds[0], y, kinds[1], out, *sizes)

    def _scale(self, op: Scale, values: Values, batch: Batch) -> Launch:
        x, out = values[op.term.x], values[op.out]
        tables = self._tables(op.term, out.shape[3])
        sizes = np.int64(out.size), np.int32(out.shape[3])
        return self._each("scale", out.size, x, tables["multiplier"], tables["offset"], out, *sizes)

    def _choose(self, op: Choose, values: Values, batch: Batch) -> Launch:
        sizes = np.int32(batch.images), np.int32(op.layers), np.int32(batch.choices), np.int32(batch.layers)
        return self._each("choose", batch.images * op.layers, values[op.x], batch.picks, *sizes)

    def _each(self, name: str, count: int, *args: Any, **defines: int) -> Launch:
        """A kernel in which one thread makes one value."""
        return Launch(self.engine.kernel("pointwise", name, **defines), blocks(count), THREADS, args)

    def _upload(self, table: Any, shape: tuple[int, ...] | None = None) -> Any:
        """A table on the device, once; broadcast to a shape."""
        if not isinstance(table, np.ndarray):
            return table  # it is there already
        shape = table.shape if shape is None else shape
        key = id(table), shape
        if key not in self._uploaded:
            whole = np.ascontiguousarray(np.broadcast_to(table, shape))
            # The table is kept beside its copy: an id names one object only while that object lives.
            self._uploaded[key] = table, self.engine.xp.asarray(whole)
        return self._uploaded[key][1]


def tile(rows: int, outputs: int) -> tuple[int, int]:
    """Rows and columns of a convolution's tiles: the largest that still keep a GPU busy.

    Large tiles use each loaded byte more often; small ones leave fewer sums unused at the edges.

    Examples
    --------
    >>> tile(128 * 56 * 56, 64), tile(128 * 7 * 7, 2048), tile(128, 2048), tile(20, 10)
    ((128, 64), (128, 128), (32, 32), (32, 32))
    """
    fitting = [(height, width) for height, width in TILES if width < 2 * outputs]
    busy = (size for size in fitting if -(-rows // size[0]) * -(-outputs // size[1]) >= BUSY)
    return next(busy, TILES[-1])


def _vector(channels: int, widest: int = 16) -> int:
    """Bytes that one load may take along the channels."""
    return next(size for size in (16, 4, 1) if size <= widest and channels % size == 0)


def _pool_variant(x: Any) -> dict[str, int]:
    return {"X_SIGNED": int(x.dtype == np.int8), "VECTOR": _vector(x.shape[3], widest=4)}


def blocks(values: int) -> int:
    """How many blocks have a thread for every value.

    Examples
    --------
    >>> blocks(1000)
    4
    """
    return -(-values // THREADS)
