"""The fast backend: kernels compiled by Numba for this processor, integers only, the bits of `numpy_ref`.

A plan is made for a program and kept with it. It joins every requantize to the convolution before it, gives
each value a place in one block of memory, and lists the steps that `_numba_kernels.run` then walks: between
the bytes of the images and the logits nothing is allocated.

Kernels work on addresses, so what they touch is sized here, by what `_numba_kernels` says of each buffer.
Every byte that a kernel may touch comes from `_memory`, which the tests put between pages that may not be
touched.
"""

import contextlib
import ctypes
import functools
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import integer, nested
from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    import numba
    from llvmlite import binding
    from numba.core import event
    from numba.core.compiler_lock import global_compiler_lock

from dqt_core.backends import _numba_kernels as kernels
from dqt_core.backends import drops_of, rows_of
from dqt_core.backends.analysis import FusedConv, Step, fused, lives, places
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import (
    IMAGE,
    Choice,
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
    is_forked,
    once,
)

Picks = NDArray[np.int64]
Machine = kernels.Amx | kernels.Vnni512 | kernels.Vnni256 | kernels.Plain

LINE = kernels.LINE
MARGIN = LINE  # bytes that may be read beyond a value: a line that begins with its last code
PANEL = 1 << 18  # bytes of windows that a thread collects before it multiplies, if a product has no more
MOST = 4096  # pixels of a block
ARENA = 1 << 26  # bytes of values; larger batches are run in parts
_POOL = threading.RLock()  # some of Numba's pools of threads serve one caller

if hasattr(os, "register_at_fork"):  # a fork waits for what is being compiled, which its child cannot finish
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def machine() -> Machine:
    """The widest dot products of this processor.

    Returns
    -------
    Amx, Vnni512, Vnni256 or Plain
        Of `_numba_kernels`. ``ONEDNN_MAX_CPU_ISA`` and ``ATEN_CPU_CAPABILITY``, which hide instructions from
        torch, hide them here too.
    """
    isa, capability = (
        os.environ.get(name, "").upper() for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    )
    most = 0 if capability in ("DEFAULT", "AVX2") else _LEVELS.get(isa, 3)
    has = _features()
    if most >= 3 and {"amx-int8", "amx-tile", "avx512f"} <= has and _tiles_are_allowed():
        return kernels.Amx()
    if most >= 2 and {"avx512vnni", "avx512f"} <= has:
        return kernels.Vnni512()
    if most >= 1 and ("avxvnni" in has or {"avx512vnni", "avx512vl"} <= has):
        return kernels.Vnni256()
    return kernels.Plain()


_LEVELS = {"SSE41": 0, "AVX": 0, "AVX2": 0, "AVX512_CORE": 0, "AVX2_VNNI": 1, "AVX2_VNNI_2": 1}
_LEVELS |= {"AVX512_CORE_VNNI": 2, "AVX512_CORE_BF16": 2, "AVX512_CORE_FP16": 2, "AVX10_1_512": 2}


def _features() -> set[str]:
    """Instructions that Numba compiles for."""
    settings = numba.config
    if platform.machine() not in ("x86_64", "AMD64") or settings.CPU_NAME or not settings.ENABLE_AVX:
        return set()
    return {name for name, there in binding.get_host_cpu_features().items() if there}


def _tiles_are_allowed() -> bool:
    """Ask Linux for the tile registers, which it gives to a process on request."""
    if sys.platform != "linux":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


def threads() -> int:
    """Threads to use: as torch where it is loaded, else as OMP_NUM_THREADS says, else all; one after a fork.

    Returns
    -------
    int
    """
    if is_forked():
        return 1
    most: int = numba.config.NUMBA_NUM_THREADS
    torch = sys.modules.get("torch")
    if torch is not None:
        return min(most, torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(most, max(1, int(wanted))) if wanted.isdigit() else most


@functools.cache
def _start_pool() -> None:
    """Start Numba's threads, and leave torch as many as it had.

    Both use one OpenMP where they are on GNU's, and Numba sets its number of threads, when it starts, to all.
    """
    try:
        openmp = ctypes.CDLL("libgomp.so.1")
    except OSError:  # not GNU's: nothing is shared
        numba.get_num_threads()
        return
    before = openmp.omp_get_max_threads()
    numba.get_num_threads()
    openmp.omp_set_num_threads(before)


class _Notice(event.Listener):
    """Says once that the kernels are being compiled, which Numba does in silence."""

    is_due = True

    def on_start(self, event: Any) -> None:
        if self.is_due and event.data["dispatcher"] in (kernels.run, kernels.run_alone):
            self.is_due = False
            kept = "kept on disk"
            if not kernels.run.is_kept:
                kept = "not kept, as no folder of Numba's cache can be written to: set NUMBA_CACHE_DIR to one"
            print(f"dqt_core: compiling the kernels for this processor, once; {kept}", file=sys.stderr)

    def on_end(self, event: Any) -> None:
        """Nothing is said."""


event.register("numba:compile", _Notice())


def prepare() -> None:
    """Compile the kernels now, if they are not on disk; otherwise the first run does.

    Examples
    --------
    >>> prepare()
    """
    _start_pool()
    nothing = (np.zeros(int(kind is kernels.MEMORY), kind) for kind in _ARGUMENTS)
    arguments = machine(), *nothing
    for run in (kernels.run_alone, kernels.run):
        run(*arguments)
    kernels.switch_weights(0, 0, 0, 0, 0)


_ARGUMENTS = kernels.MEMORY, kernels.BLOCK, kernels.TERM, kernels.STEP


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
    steps : int
        Lines of a window.
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
        self.steps = -(-self.terms // unit)
        touched = LINE * self.steps + 2 * len(op.weight)  # bytes of a pixel
        products = min(MOST, PANEL // touched) // kernels.PIXELS
        self.block_pixels = max(1, products) * kernels.PIXELS
        self._switched: dict[int, tuple[NDArray[Any], NDArray[np.int32]]] = {}
        self._made: dict[tuple[int, int, bool], tuple[NDArray[Any], NDArray[np.int32]]] = {}

    @once
    def _packed(self) -> NDArray[np.int8]:
        """(groups, blocks of 16 channels, lines, 16 channels, 4 bytes), channels padded to whole products."""
        op, size = self.op, self.unit // 16
        blocks = -(-self.outputs // kernels.CHANNELS) * 2
        padded = np.zeros((op.groups, blocks * 16, self.steps * self.unit), np.int8)
        padded[:, : self.outputs, : self.terms] = op.weight.reshape(op.groups, self.outputs, self.terms)
        lines = padded.reshape(op.groups, blocks, 16, -1, size).swapaxes(2, 3)
        packed = _memory(padded.size, np.int8)
        packed[:] = lines.reshape(-1)
        return packed

    def _at(self, width: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Switched weights, and the sum of every channel's."""
        if width not in self._switched:
            packed = self._packed
            codes = _memory(len(packed), np.int8)
            epsilon = int(self.rounding == "half_up" and width < MASTER_WIDTH)
            kernels.switch_weights(
                codes.ctypes.data, packed.ctypes.data, len(codes), MASTER_WIDTH - width, epsilon
            )
            by_channel = codes.reshape(self.op.groups, -1, self.steps * 16, 16, self.unit // 16)
            sums = by_channel.sum((2, 4), dtype=np.int32).reshape(self.op.groups, -1)[:, : self.outputs]
            if self.unit != LINE:
                narrow, codes = codes, _memory(len(codes), np.int16)
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
                made = _padded(taps), _padded(np.zeros(len(self.op.weight), np.int32))
            else:
                codes, sums = self._at(weight_bits)
                made = codes, _padded(sums * np.int32(zero))
            self._made.setdefault(key, made)
        codes, correction = self._made[key]
        return codes.ctypes.data, correction.ctypes.data, zero, middle


def _memory(size: int, dtype: Any, alignment: int = LINE) -> NDArray[Any]:
    """Zeros at a multiple of `alignment` bytes, and not a byte more: all that kernels touch is made here."""
    count = size * np.dtype(dtype).itemsize
    memory = np.zeros(count + alignment - 1, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + count].view(dtype)


def _table(values: NDArray[Any], beyond: int = 0) -> NDArray[Any]:
    """A flat copy, with zeros beyond its end."""
    table = _memory(values.size + beyond, values.dtype, values.itemsize)
    table[: values.size] = values.ravel()
    return table


def _padded(values: NDArray[Any]) -> NDArray[Any]:
    """A table of channels, of which 16 are read at a time, from the last one on too."""
    return _table(values, beyond=15)


@dataclass(frozen=True)
class _Conv:
    """A convolution of a plan, and what is decided when the widths are known."""

    weights: Weights
    record: int  # the switch of its codes is the record before
    layer: int | None
    signed: bool
    x: int
    switched: int
    own: tuple[NDArray[Any], NDArray[Any], int] | None  # M, B, length of a choice's row, where fused
    pixels: int  # of an image
    entries: int  # of its sorted images; those of its switch follow
    is_pointwise: bool


class Plan:
    """The steps of a program for up to `capacity` images.

    Parameters
    ----------
    program : Program
    weights : mapping of a convolution's value to `Weights`
    unit : int
        Codes in a line of 64 bytes.
    capacity : int
    given : bool
        Whether the widths come with the images; otherwise the controller chooses.
    keep : bool
        Fuse nothing and let no two values share memory, so that every value can be looked at.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Weights],
        unit: int,
        capacity: int,
        given: bool,
        keep: bool = False,
    ) -> None:
        self.program, self.capacity, self._weights, self._unit = program, capacity, weights, unit
        ops = [op for op in program.ops if not (given and op.controller)]
        steps: list[Step] = list(ops) if keep else fused(ops)
        self.shapes = {name: value.shape for name, value in program.values.items()}
        self.dtypes = {name: value.dtype for name, value in program.values.items()}
        self.places, self.size = self._placed(steps, keep)
        self._made: list[dict[str, int]] = []
        self._convs: list[_Conv] = []
        self._readers: list[tuple[Term, int]] = []  # a term, and the first of its entries
        self._terms: list[tuple[int, ...]] = []
        self._tables: list[NDArray[np.int8]] = []
        self._offsets: list[int] = []
        self._kept: list[NDArray[Any]] = []  # whose addresses are in the records
        self._entries = 0
        self._on_host: list[tuple[int, Scale | Choose]] = []
        for step in steps:
            self._add(step)
        self._fix()

    def _placed(self, steps: list[Step], keep: bool) -> tuple[dict[str, int], int]:
        alive = lives(steps, forever=keep)
        for i, step in enumerate(steps):
            conv = step.conv if isinstance(step, FusedConv) else step
            if isinstance(conv, Conv):
                self.shapes[_switched(conv)], self.dtypes[_switched(conv)] = (
                    self.shapes[conv.x],
                    np.dtype("u1"),
                )
                alive[_switched(conv)] = i, i
        sizes = {
            name: self.capacity * int(np.prod(self.shapes[name])) * self.dtypes[name].itemsize
            for name in alive
            if self.dtypes[name] != np.int64  # logits are made on the host
        }
        return places(sizes, alive)

    def _add(self, step: Step) -> None:
        match step:
            case Scale() | Choose():
                self._on_host.append((len(self._made), step))
            case Lookup():
                rows = len(step.table)
                self._record(kernels.LOOKUP, step.x, step.out, table=len(self._tables), terms=rows)
                self._tables += list(step.table.view(np.int8))
            case MaxPool():
                size = {"kernel_height": step.kernel, "kernel_width": step.kernel}
                self._record(
                    kernels.MAX_POOL, step.x, step.out, **size, stride=step.stride, padding=step.padding
                )
            case SumPool():
                self._record(kernels.SUM_POOL, step.x, step.out)
            case Concat():
                self._add_concat(step)
            case Product():
                y = {"y": self.places[step.y], "y_kind": self._kind(step.y)}
                y |= {"y_pixels": int(np.prod(self.shapes[step.y][:2]))}
                self._record(kernels.MULTIPLY, step.x, step.out, **y)
            case Requantize():
                first = len(self._terms)
                for i, term in enumerate(step.terms):
                    self._add_term(term, step.out, half=1 << (step.r - 1) if i == 0 else 0)
                rounding = {"r": step.r, "lo": step.lo, "hi": step.hi}
                self._record(
                    kernels.REQUANTIZE, step.out, step.out, **rounding, term=first, terms=len(step.terms)
                )
            case Conv():
                self._add_conv(step, None)
            case FusedConv():
                self._add_conv(step.conv, step)

    def _record(self, kind: int, x: str, out: str, **fields: int) -> None:
        height, width, channels = self.shapes[x]
        out_height, out_width, outputs = self.shapes[out]
        record = {"kind": kind, "x": self.places[x], "x_kind": self._kind(x)}
        record |= {"out": self.places[out], "out_kind": self._kind(out)}
        record |= {"height": height, "width": width, "channels": channels}
        record |= {"out_height": out_height, "out_width": out_width, "outputs": outputs, "splits": 1}
        self._made.append(record | fields)

    def _add_concat(self, op: Concat) -> None:
        first = 0
        for name in op.parts:
            self._record(kernels.COPY, name, op.out)
            self._made[-1]["out"] += first
            first += self.shapes[name][2]

    def _kind(self, name: str) -> int:
        return {"uint8": kernels.UNSIGNED, "int8": kernels.SIGNED}.get(self.dtypes[name].name, kernels.SUMS)

    def _rows(self, term: Term, channels: int, half: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """M and B of every row and channel."""
        shape = max(len(term.multiplier), len(term.offset)), channels
        tables = np.broadcast_to(term.multiplier, shape), np.broadcast_to(term.offset, shape) + half
        m, b = _padded(tables[0].astype(np.int32)), _padded(tables[1].astype(np.int64))
        self._kept += [m, b]
        return m, b

    def _add_term(self, term: Term, out: str, half: int = 0) -> None:
        m, b = self._rows(term, self.shapes[out][2], half)
        self._terms.append(
            (self.places[term.x], self._kind(term.x), m.ctypes.data, b.ctypes.data, self._entries)
        )
        self._readers.append((term, self._entries))
        self._entries += self.capacity

    def _add_conv(self, op: Conv, joint: FusedConv | None) -> None:
        weights, out = self._weights[op.out], op.out if joint is None else joint.out
        signed = self.dtypes[op.x] == np.int8
        lines = -(-int(np.prod(self.shapes[op.x])) // (1 << 14))  # of 16 kB
        entries, self._entries = self._entries, self._entries + 2 * self.capacity
        self._record(
            kernels.SWITCH,
            op.x,
            _switched(op),
            order=entries + self.capacity,
            table=int(self.program.rounding == "half_up"),
            r=int(weights.is_depthwise and signed),
            splits=lines,
        )
        fields = {
            "kernel_height": op.weight.shape[1],
            "kernel_width": op.weight.shape[2],
            "stride": op.stride,
        }
        fields |= {"padding": op.padding, "groups": op.groups, "steps": weights.steps, "order": entries}
        own = None
        if joint is not None:
            r = joint.requantize.r
            fields |= {"r": r, "lo": joint.requantize.lo, "hi": joint.requantize.hi, "term": len(self._terms)}
            m, b = self._rows(joint.term, len(op.weight), 1 << (r - 1))
            has_rows = max(len(joint.term.multiplier), len(joint.term.offset)) > 1
            own = m, b, len(op.weight) if has_rows else 0
            if joint.skip is not None:
                fields["terms"] = 1
                self._add_term(joint.skip, out)
        kind = kernels.DEPTHWISE if weights.is_depthwise else kernels.CONV
        self._record(kind, op.x, out, **fields, panel=len(self._offsets))
        self._offsets += [LINE * line for line in range(weights.steps)]
        pixels = int(np.prod(self.shapes[op.out][:2]))
        is_pointwise = (
            (op.weight.shape[1:3] == (1, 1) and (op.stride, op.padding, op.groups) == (1, 0, 1))
            and weights.unit == LINE
            and weights.terms % LINE == 0
        )
        places = self.places[op.x], self.places[_switched(op)]
        self._convs.append(
            _Conv(weights, len(self._made) - 1, op.layer, signed, *places, own, pixels, entries, is_pointwise)
        )

    def _fix(self) -> None:
        self.records = _memory(len(self._made), kernels.STEP)
        for record, fields in zip(self.records, self._made, strict=True):
            for name, value in fields.items():
                record[name] = value
        rowwise = kernels.LOOKUP, kernels.REQUANTIZE, kernels.MAX_POOL, kernels.COPY, kernels.MULTIPLY
        self._items = np.array([int(r["out_height"]) if r["kind"] in rowwise else 1 for r in self.records])
        self.order, self.drops, self.rows = (_memory(self._entries, np.int64) for _ in range(3))
        self.terms = _table(np.array(self._terms, kernels.TERM))
        self.offsets = _table(np.array(self._offsets, np.int64))
        self.tables = _table(np.stack(self._tables))
        self.blocks: dict[int, NDArray[Any]] = {}  # of every part
        self._filled: dict[int, Any] = {}

    def _fill(self, part: int, records: slice, images: int, choices: Picks | None, workers: int) -> None:
        """What depends on the images' number and widths; kept for the next batch that is alike."""
        key = images, workers, b"" if choices is None else choices.tobytes()
        if self._filled.get(part) == key:
            return
        self.records["items"][records] = images * self._items[records]
        half_up = self.program.rounding == "half_up"
        for term, first in self._readers:
            if term.layer is None or choices is not None:
                entries = slice(first, first + images)
                rows = max(len(term.multiplier), len(term.offset))
                self.rows[entries] = rows_of(choices, term.layer, rows)
                layer = term.layer if half_up else None
                self.drops[entries] = drops_of(choices, layer, self.program.choices)
        blocks: list[tuple[int, ...]] = []
        for conv in self._convs:
            if records.start <= conv.record < records.stop:
                self._fill_conv(conv, images, choices, workers, blocks)
        self.blocks[part] = _table(np.array(blocks, kernels.BLOCK))
        self._filled[part] = key

    def _fill_conv(
        self, conv: _Conv, images: int, choices: Picks | None, workers: int, blocks: list[tuple[int, ...]]
    ) -> None:
        record, switch = self.records[conv.record], self.records[conv.record - 1]
        weights, is_gemm = conv.weights, not conv.weights.is_depthwise
        table = self.program.choices
        column = (
            np.zeros(images, np.int64) if conv.layer is None or choices is None else choices[:, conv.layer]
        )
        if conv.layer is None:
            table = ((MASTER_WIDTH, MASTER_WIDTH),)
        input_drops = MASTER_WIDTH - np.array([bits for _, bits in table])[column]
        must_switch = bool(input_drops.any()) or (conv.signed and is_gemm)
        self.drops[switch["order"] : switch["order"] + images] = input_drops
        switch["items"] = images * switch["splits"] if must_switch else 0
        record["x"] = conv.switched if must_switch else conv.x
        order = np.argsort(column, kind="stable")
        self.order[conv.entries : conv.entries + images] = order
        used, starts = np.unique(column[order], return_index=True)
        record["direct"] = int(conv.is_pointwise and len(used) == 1)
        record["block"] = len(blocks)
        if not is_gemm:
            blocks += [(image, 1, *self._widths(conv, int(column[image]), table)) for image in range(images)]
            record["items"] = images * record["out_height"]
            return
        most = weights.block_pixels
        if workers > 1:
            share = -(-images * conv.pixels // (2 * workers))
            most = min(most, -(-share // kernels.PIXELS) * kernels.PIXELS)
        for choice, start, end in zip(used, starts, [*starts[1:], images], strict=True):
            rest = self._widths(conv, int(choice), table)
            last = int(end) * conv.pixels
            for first in range(int(start) * conv.pixels, last, most):
                blocks.append((first, min(most, last - first), *rest))
        count = len(blocks) - int(record["block"])
        parts = -(-weights.outputs // kernels.CHANNELS)
        record["splits"] = 1 if workers == 1 else min(parts, max(1, -(-2 * workers // count)))
        record["items"] = count * record["splits"]

    def _widths(self, conv: _Conv, choice: int, table: tuple[Choice, ...]) -> tuple[int, ...]:
        """What a block holds beside its pixels."""
        weight_bits, input_bits = table[choice]
        at, correction, zero, middle = conv.weights.at((weight_bits, input_bits), conv.signed)
        drop = 2 * MASTER_WIDTH - weight_bits - input_bits
        floor = self.program.rounding == "floor"
        shift = 1 + drop if floor else drop if conv.own is not None else 0
        if conv.weights.is_depthwise:
            shift, middle = 0 if floor else shift, 0
        if conv.own is None:
            return at, correction, shift, middle, zero, 0, 0
        m, b, row = conv.own
        start = choice * row
        return at, correction, shift, middle, zero, m.ctypes.data + 4 * start, b.ctypes.data + 8 * start

    def run(
        self, images: NDArray[np.uint8], choices: Picks | None, arena: NDArray[np.uint8], scratch: "Scratch"
    ) -> tuple[dict[str, NDArray[np.int64]], Picks | None]:
        """Fill the arena; return what is made on the host, and the choices."""
        n, start = len(images), 0
        arena[self.places[IMAGE] :][: images.size] = images.reshape(-1)
        made: dict[str, NDArray[np.int64]] = {}
        for part, (stop, op) in enumerate(self._on_host):
            if stop > start:
                records = slice(start, stop)
                self._fill(part, records, n, choices, scratch.workers)
                memory = self._addresses(arena, scratch)
                run = kernels.run_alone if scratch.workers == 1 else kernels.run
                run(scratch.machine, memory, self.blocks[part], self.terms, self.records[records])
            start = stop
            if isinstance(op, Choose):
                logits = made[op.x].reshape(n, op.layers, len(self.program.choices))
                choices = logits.argmax(axis=-1)
            else:
                sums = self.value(op.term.x, n, arena)
                made[op.out] = integer.scale(sums, op.term.multiplier[0], op.term.offset[0])
        return made, choices

    def value(self, name: str, images: int, arena: NDArray[np.uint8]) -> NDArray[Any]:
        """A value in the arena."""
        shape = images, *self.shapes[name]
        size = int(np.prod(shape)) * self.dtypes[name].itemsize
        return arena[self.places[name] :][:size].view(self.dtypes[name]).reshape(shape)

    def _addresses(self, arena: NDArray[np.uint8], scratch: "Scratch") -> NDArray[Any]:
        memory = _table(scratch.memory)
        memory["arena"] = arena.ctypes.data
        for name in ("offsets", "order", "drops", "rows", "tables"):
            memory[name] = getattr(self, name).ctypes.data
        return memory


class Scratch:
    """What every thread has for itself.

    Notes
    -----
    Channels are worked on 16 at a time, so sums and totals of any number of them have 15 more. A block's
    windows are whole products (`Weights.block_pixels`); a line copied into the last may end beyond it.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Weights], machine: Machine, workers: int
    ) -> None:
        self.machine, self.workers = machine, workers
        count: int = numba.config.NUMBA_NUM_THREADS
        widest = max(value.shape[2] for value in program.values.values()) + 15
        windows = max((own.block_pixels * own.steps * LINE for own in weights.values()), default=0)
        sizes = {"sums": max(kernels.PRODUCT, 4 * widest), "totals": 8 * widest}
        # `spare` takes 16 channels, of int32 at most, of every pixel of a product
        sizes |= {"middles": 4 * MOST, "spare": 4 * 16 * kernels.PIXELS, "panel": windows + LINE}
        self.memory = np.zeros(1, kernels.MEMORY)
        self._kept: dict[str, NDArray[Any]] = {}
        for name, size in sizes.items():
            step = -(-size // LINE) * LINE
            self._kept[name] = _memory((count - 1) * step + size, np.uint8)
            self.memory[f"{name}_step"] = step
        tiles = self._kept["config"] = _memory(LINE, np.uint8)
        tiles[0] = 1  # the one palette there is
        tiles[16:32].view(np.uint16)[:] = LINE  # bytes of a row of a tile
        tiles[48:56] = 16  # rows
        self._kept |= {"ones": _table(np.ones(16, np.int32)), "zeros": _table(np.zeros(16, np.int32))}
        for name, array in self._kept.items():
            self.memory[name] = array.ctypes.data


class Workspace:
    """All that a run writes to."""

    def __init__(self, program: Program, weights: Mapping[str, Weights], machine: Machine) -> None:
        self.program, self._weights, self._machine = program, weights, machine
        self.plans: dict[bool, Plan] = {}
        self.arena = np.zeros(0, np.uint8)
        self.scratch: Scratch | None = None

    def plan(self, images: int, given: bool, keep: bool = False) -> Plan:
        """The plan for so many images; one that keeps every value is made for one run."""
        if keep:
            return Plan(self.program, self._weights, self._machine.unit, images, given, keep)
        if given not in self.plans or self.plans[given].capacity < images:
            self.plans[given] = Plan(self.program, self._weights, self._machine.unit, images, given)
        return self.plans[given]

    def run(
        self, plan: Plan, images: NDArray[np.uint8], choices: Picks | None
    ) -> tuple[dict[str, NDArray[np.int64]], Picks]:
        """What is made on the host, and the choices; the arena holds the rest."""
        workers = threads()
        if len(self.arena) < plan.size + MARGIN:
            self.arena = _memory(plan.size + MARGIN, np.uint8)
        if self.scratch is None or self.scratch.workers != workers:
            self.scratch = Scratch(self.program, self._weights, self._machine, workers)
        with contextlib.nullcontext() if workers == 1 else _pool(workers):
            made, chosen = plan.run(images, choices, self.arena, self.scratch)
        assert chosen is not None, "the controller's Choose comes before the first switchable layer"
        return made, chosen


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[None]:
    """Within, Numba's threads are this caller's, and so many."""
    with _POOL:
        _start_pool()
        before = numba.get_num_threads()
        numba.set_num_threads(workers)
        try:
            yield
        finally:
            numba.set_num_threads(before)


class Backend:
    """A program compiled for this processor.

    Parameters
    ----------
    program : Program

    Notes
    -----
    Each of the runs that are under way at the same time has a workspace of its own. One whose run was
    interrupted is not used again: it may be half filled.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._machine = machine()
        unit = self._machine.unit
        self._weights = {
            op.out: Weights(op, program.rounding, unit) for op in program.ops if isinstance(op, Conv)
        }
        one = Plan(program, self._weights, unit, 1, given=False)
        self.most = max(1, ARENA // one.size)  # images at a time
        self.idle: list[Workspace] = []

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        try:
            workspace = self.idle.pop()
        except IndexError:
            workspace = Workspace(self.program, self._weights, self._machine)
        yield workspace
        self.idle.append(workspace)

    def run(self, images: NDArray[np.uint8], choices: Picks | None) -> tuple[NDArray[np.int64], Picks]:
        """One batch; None: the controller chooses."""
        logits, picks = [], []
        with self._workspace() as workspace:
            for start in range(0, len(images), self.most):
                part = slice(start, start + self.most)
                plan = workspace.plan(len(images[part]), choices is not None)
                made, chosen = workspace.run(plan, images[part], None if choices is None else choices[part])
                logits.append(next(reversed(made.values())).reshape(len(images[part]), -1))
                picks.append(chosen)
        return np.concatenate(logits), np.concatenate(picks)

    def every_value(
        self, images: NDArray[np.uint8], choices: Picks | None
    ) -> tuple[dict[str, NDArray[Any]], Picks]:
        """Every value by name, from a run that fuses nothing; and the choices."""
        with self._workspace() as workspace:
            plan = workspace.plan(len(images), choices is not None, keep=True)
            made, chosen = workspace.run(plan, images, choices)
            names = [name for name in plan.places if name != IMAGE and "/" not in name]
            values = {name: plan.value(name, len(images), workspace.arena).copy() for name in names}
            return values | made, chosen


def _switched(op: Conv) -> str:
    return f"{op.out}/switched"  # no name of a program holds a slash
