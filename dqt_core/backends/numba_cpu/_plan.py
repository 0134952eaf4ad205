"""The steps of a program: what is fused, where every value lies, and what the kernels read of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import program as made_of
from dqt_core.backends import analysis, drops_of, rows_of
from dqt_core.backends.analysis import FusedConv, Picks, Step, places
from dqt_core.backends.numba_cpu import _buffers as buffers
from dqt_core.backends.numba_cpu import _kernels as kernels
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.backends.numba_cpu._weights import Weights
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import IMAGE, Choice, Choose, Conv, Program, Scale, Term
from dqt_core.program.contract import Value


@dataclass(frozen=True)
class _Conv:
    """A convolution of a plan, and what is decided when the widths are known."""

    op: Conv
    record: int  # the switch of its codes is the record before
    own: tuple[int, int, int] | None  # addresses of M and B, length of a choice's row, where fused


class Plan:
    """The steps of a program for up to `capacity` images.

    Parameters
    ----------
    program : Program
    weights : mapping of a convolution's value to `Weights`
    capacity : int
    given : bool
        Whether the widths come with the images; otherwise the controller chooses.
    keep : bool
        Fuse nothing and let no two values share memory, so that every value can be looked at.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Weights], capacity: int, given: bool, keep: bool = False
    ) -> None:
        self.program, self.capacity, self._weights = program, capacity, weights
        ops = [op for op in program.ops if not (given and op.controller)]
        steps: list[Step] = list(ops) if keep else analysis.fused(ops)
        self.values = dict(program.values)
        self.places, self.size = self._placed(steps, keep)
        self._made: list[layout.Step] = []
        self._convs: list[_Conv] = []
        self._readers: list[tuple[Term, int]] = []  # a term, and the first of its entries
        self._terms: list[layout.Term] = []
        self._tables: list[NDArray[np.int8]] = []
        self._kept: list[NDArray[Any]] = []  # whose addresses are in the records
        self._entries = 0
        self._on_host: list[tuple[int, Scale | Choose]] = []
        for step in steps:
            self._add(step)
        self.records = buffers.table(np.array(self._made, layout.STEP))
        # items of an image; of convolutions they depend on the widths
        rowwise = layout.LOOKUP, layout.REQUANTIZE, layout.MAX_POOL, layout.COPY, layout.MULTIPLY
        self._items = np.where(np.isin(self.records["kind"], rowwise), self.records["out_height"], 1)
        self.order, self.drops, self.rows = (buffers.zeros(self._entries, np.int64) for _ in range(3))
        self.terms = buffers.table(np.array(self._terms, layout.TERM))
        self.tables = buffers.table(np.stack(self._tables))
        self.counts = buffers.zeros(len(self._made) * 2 * layout.LINE // 8, np.int64)
        self.blocks: dict[int, NDArray[Any]] = {}  # of every part
        self._filled: dict[int, Any] = {}
        self._memory: tuple[NDArray[np.uint8], buffers.Scratch, NDArray[Any]] | None = None

    def _placed(self, steps: list[Step], keep: bool) -> tuple[dict[str, int], int]:
        alive = analysis.lives(steps, forever=keep)
        for i, step in enumerate(steps):
            conv = step.conv if isinstance(step, FusedConv) else step
            if isinstance(conv, Conv):
                name = _switched(conv)
                self.values[name] = replace(self.values[conv.x], dtype=np.dtype(np.uint8))
                alive[name] = i, i
        in_arena = [name for name in alive if self.values[name].kind != "logits"]  # made on the host
        return places(analysis.sizes(self.values, in_arena, self.capacity), alive)

    def _add(self, step: Step) -> None:
        match step:
            case Scale() | Choose():
                self._on_host.append((len(self._made), step))
            case made_of.Lookup():
                tables = {"table": len(self._tables), "tables": len(step.table)}
                self._record(layout.LOOKUP, step.x, step.out, **tables)
                self._tables += list(step.table.view(np.int8))
            case made_of.MaxPool():
                size = {"kernel_height": step.kernel, "kernel_width": step.kernel}
                size |= {"stride": step.stride, "padding": step.padding}
                self._record(layout.MAX_POOL, step.x, step.out, **size)
            case made_of.SumPool():
                self._record(layout.SUM_POOL, step.x, step.out)
            case made_of.Concat():
                first = self.places[step.out]
                for name in step.parts:
                    self._record(layout.COPY, name, step.out, out=first)
                    first += self.values[name].shape[2]
            case made_of.Product():
                value = self.values[step.y]
                y = {"y": self.places[step.y], "y_kind": _kind(value), "y_pixels": math.prod(value.shape[:2])}
                self._record(layout.MULTIPLY, step.x, step.out, **y)
            case made_of.Requantize():
                own = {"term": len(self._terms), "terms": len(step.terms)}
                for i, term in enumerate(step.terms):
                    self._add_term(term, step.out, half=1 << (step.r - 1) if i == 0 else 0)
                rounding = {"r": step.r, "lo": step.lo, "hi": step.hi}
                self._record(layout.REQUANTIZE, step.out, step.out, **own, **rounding)
            case Conv():
                self._add_conv(step, None)
            case FusedConv():
                self._add_conv(step.conv, step)

    def _record(self, kind: int, source: str, target: str, **fields: int) -> None:
        """A step of one value to another; `fields` are the operation's own."""
        x, out = self.values[source], self.values[target]
        values = self.places[source], _kind(x), self.places[target], _kind(out)
        self._made.append(layout.Step(kind, *values, *x.shape, *out.shape)._replace(**fields))

    def _rows(self, term: Term, channels: int, half: int) -> tuple[int, int]:
        """Addresses of M and B of every row and channel."""
        shape = max(len(term.multiplier), len(term.offset)), channels
        m, b = np.broadcast_to(term.multiplier, shape), np.broadcast_to(term.offset, shape) + half
        tables = buffers.padded(m.astype(np.int32)), buffers.padded(b.astype(np.int64))
        self._kept += tables
        return tables[0].ctypes.data, tables[1].ctypes.data

    def _add_term(self, term: Term, out: str, half: int = 0) -> None:
        x, tables = self.values[term.x], self._rows(term, self.values[out].shape[2], half)
        self._terms.append(layout.Term(self.places[term.x], _kind(x), *tables, self._entries))
        self._readers.append((term, self._entries))
        self._entries += self.capacity

    def _add_conv(self, op: Conv, joint: FusedConv | None) -> None:
        weights, x = self._weights[op.out], self.values[op.x]
        of_switch = {"images": self._entries, "half_up": int(self.program.rounding == "half_up")}
        of_switch |= {"lifted": int(weights.is_depthwise and x.dtype == np.int8)}
        of_switch |= {"splits": -(-math.prod(x.shape) // (1 << 14))}  # of 16 kB
        self._record(layout.SWITCH, op.x, _switched(op), **of_switch)
        fields = dict(zip(("kernel_height", "kernel_width"), op.weight.shape[1:3], strict=True))
        fields |= {"stride": op.stride, "padding": op.padding, "groups": op.groups, "images": self._entries}
        fields |= {"lines": weights.lines, "pieces": weights.pieces}
        self._entries += self.capacity
        own = None
        if joint is not None:
            r, lo, hi = joint.requantize.r, joint.requantize.lo, joint.requantize.hi
            fields |= {"r": r, "lo": lo, "hi": hi, "term": len(self._terms)}
            row = len(op.weight) * (max(len(joint.term.multiplier), len(joint.term.offset)) > 1)
            own = *self._rows(joint.term, len(op.weight), 1 << (r - 1)), row
            if joint.skip is not None:
                fields["terms"] = 1
                self._add_term(joint.skip, joint.out)
        kind = layout.DEPTHWISE if weights.is_depthwise else layout.CONV
        self._record(kind, op.x, op.out if joint is None else joint.out, **fields)
        self._convs.append(_Conv(op, len(self._made) - 1, own))

    def _fill(self, part: int, records: slice, images: int, choices: Picks | None, workers: int) -> None:
        """What depends on the images' number and widths; kept for the next batch that is alike."""
        key = images, workers, b"" if choices is None else choices.tobytes()
        if self._filled.get(part) == key:
            return
        self.records["items"][records] = images * self._items[records]
        for term, first in self._readers:
            entries, rows = slice(first, first + images), max(len(term.multiplier), len(term.offset))
            self.rows[entries] = rows_of(choices, term.layer, rows)
            layer = term.layer if self.program.rounding == "half_up" else None
            self.drops[entries] = drops_of(choices, layer, self.program.choices)
        blocks: list[layout.Block] = []
        for conv in self._convs:
            if records.start <= conv.record < records.stop:
                blocks += self._blocks(conv, images, choices, workers, len(blocks))
        self.blocks[part] = buffers.table(np.array(blocks, layout.BLOCK))
        self._filled[part] = key

    def _blocks(
        self, conv: _Conv, images: int, choices: Picks | None, workers: int, first: int
    ) -> list[layout.Block]:
        """The blocks of a convolution, of which this is the first, and what its records say of them."""
        record, switch = self.records[conv.record], self.records[conv.record - 1]
        op, weights = conv.op, self._weights[conv.op.out]
        table, column = self.program.choices, np.zeros(images, np.int64)
        if op.layer is None:
            table = ((MASTER_WIDTH, MASTER_WIDTH),)
        elif choices is not None:
            column = choices[:, op.layer]
        input_drops = MASTER_WIDTH - np.array([bits for _, bits in table])[column]
        is_lifted = record["x_kind"] == layout.SIGNED and not weights.is_depthwise
        must_switch = bool(input_drops.any()) or is_lifted
        entries, order = slice(record["images"], record["images"] + images), np.argsort(column, kind="stable")
        self.drops[entries], self.order[entries] = input_drops, order
        switch["items"] = images * switch["splits"] if must_switch else 0
        used, starts = np.unique(column[order], return_index=True)
        record["x"], record["block"] = self.places[_switched(op) if must_switch else op.x], first
        record["direct"] = int(weights.is_direct(choices=len(used)))
        if weights.is_depthwise:
            record["items"] = images * record["out_height"]
            return [self._block(conv, table[choice], choice) for choice in column.tolist()]
        most, size = weights.block_pixels, math.prod(self.values[op.out].shape[:2])
        if workers > 1:
            share = -(-images * size // (2 * workers))
            most = min(most, -(-share // layout.PIXELS) * layout.PIXELS)
        blocks: list[layout.Block] = []
        for choice, *ends in zip(used.tolist(), starts, [*starts[1:], images], strict=True):
            begin, end = (int(image) * size for image in ends)
            whole = self._block(conv, table[choice], choice)
            for pixel in range(begin, end, most):
                blocks.append(whole._replace(first=pixel, pixels=min(most, end - pixel)))
        parts = -(-weights.outputs // layout.CHANNELS)
        record["splits"] = 1 if workers == 1 else min(parts, max(1, -(-2 * workers // len(blocks))))
        record["items"] = len(blocks) * record["splits"]
        return blocks

    def _block(self, conv: _Conv, widths: Choice, choice: int) -> layout.Block:
        """A block of no pixels yet, of images of one choice."""
        block = self._weights[conv.op.out].at(widths, self.values[conv.op.x].dtype == np.int8)
        if conv.own is not None:
            m, b, row = conv.own
            return block._replace(m=m + 4 * choice * row, b=b + 8 * choice * row)
        # sums are as the program says: floor's are shifted, the others by who reads them
        return block if self.program.rounding == "floor" else block._replace(shift=0)

    def run(
        self,
        images: NDArray[np.uint8],
        choices: Picks | None,
        arena: NDArray[np.uint8],
        scratch: buffers.Scratch,
    ) -> tuple[dict[str, NDArray[np.int64]], Picks | None]:
        """Fill the arena; return what is made on the host, and the choices."""
        n, start = len(images), 0
        if choices is None:
            choices = analysis.undecided(self.program.ops, n)
        arena[self.places[IMAGE] :][: images.size] = images.reshape(-1)
        made: dict[str, NDArray[np.int64]] = {}
        for part, (stop, op) in enumerate(self._on_host):
            if stop > start:
                records = slice(start, stop)
                self._fill(part, records, n, choices, scratch.workers)
                memory = self.memory(arena, scratch)
                steps = self.blocks[part], self.terms, self.records[records]
                if scratch.workers == 1:
                    kernels.run_alone(scratch.machine, memory, *steps)
                else:
                    kernels.run(scratch.machine, memory, *steps, scratch.workers)
            start = stop
            if isinstance(op, Choose):
                logits = made[op.x].reshape(n, op.layers, len(self.program.choices))
                choices = analysis.of_all_layers(op, logits.argmax(axis=-1))
            else:
                sums, term = self.value(op.term.x, n, arena), op.term
                made[op.out] = np.multiply(sums, term.multiplier[0], dtype=np.int64) + term.offset[0]
        return made, choices

    def value(self, name: str, images: int, arena: NDArray[np.uint8]) -> NDArray[Any]:
        """A value in the arena."""
        value = self.values[name]
        shape = images, *value.shape
        size = math.prod(shape) * value.dtype.itemsize
        return arena[self.places[name] :][:size].view(value.dtype).reshape(shape)

    def memory(self, arena: NDArray[np.uint8], scratch: buffers.Scratch) -> NDArray[Any]:
        """The addresses that kernels are given, of every thread; kept, as to find them out takes time."""
        if self._memory is None or self._memory[0] is not arena or self._memory[1] is not scratch:
            memory = buffers.table(scratch.memory)
            memory["arena"] = arena.ctypes.data
            for name in ("order", "drops", "rows", "tables", "counts"):
                memory[name] = getattr(self, name).ctypes.data
            self._memory = arena, scratch, memory
        return self._memory[2]


def _switched(op: Conv) -> str:
    return f"{op.out}/switched"  # no name of a program holds a slash


def _kind(value: Value) -> int:
    return {"uint8": layout.UNSIGNED, "int8": layout.SIGNED}.get(value.dtype.name, layout.SUMS)
