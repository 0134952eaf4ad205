"""A program as an ONNX file: standard integer operators, every weight stored once, the widths an input."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.backends.analysis import early_choices
from dqt_core.export import _onnx_graph
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import (
    IMAGE,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Product,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
)

if TYPE_CHECKING:
    from onnx import GraphProto

SIGN = 128  # signed codes travel as q + 128, so that one unsigned shift switches both kinds
UP = 62  # sums travel as t + 2**62, so that an unsigned shift rounds them down
DECIDED = -1  # instead of the index of a choice: the controller decides


def to_onnx(program: Program, path: str | Path) -> Path:
    """Write a program as an ONNX model, which a stock ONNX Runtime executes with the same bits.

    Parameters
    ----------
    program : Program
    path : str or Path
        Of the file; equal programs make equal files.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        If onnx is not installed.

    Notes
    -----
    Inputs: ``images``, uint8 (N, H, W, C), and ``widths``, int64 (N, L), or (N, L, 2) with the bits of
    weights and input where they differ in one of the program's choices. Width 0 leaves a layer to the
    controller, if the program has one. Any other width that the program does not hold stops the run: "indices
    element out of data bounds". Outputs: ``logits``, int64 (N, classes), and ``chosen``, the widths that were
    used.

    The operators are those of ONNX's own domain, version 17, on integers alone. What they do not offer, and
    what stands in its place:

    - Signed shifts (BitShift takes unsigned integers). A signed code q travels as q + 128, which switches as
      an unsigned one does, its zero point becoming ``128 >> d``. A sum t of magnitude below 2**62 is shifted
      as ``((t + 2**62) >> r) - 2**(62 - r)``; 2**r divides 2**62, so this is ``t >> r``.
    - Room above 255. With ``h = 2**d >> 1``, half_up is ``(min(q, 255 - h) + h) >> d`` in eight bits: where
      q + h would pass 255 the result is ``255 >> d``, the highest code, which is Eq. 4's epsilon of 0.
    - A weight for every image of a batch. A Scan takes the images one by one through the whole program. The
      views of a weight are made from its master before it, and each image gathers the one it needs.
    - Exact products of uint8 and int8: without 8-bit dot-product instructions runtimes add pairs of them in
      16 bits, which saturate. ConvInteger gets uint8 on both sides, with zero points.
    - ArgMax of int64. TopK names the first of the largest logits.
    - Clip, Max and ReduceMax of int64: ONNX Runtime gets some numbers beyond 32 bits wrong (seen in version
      1.31 on x86-64). Less is right, so sums are clamped by Less and Where.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import onnxruntime
    >>> table, one = np.arange(-128, 128, dtype=np.int8)[None].repeat(3, 0), np.ones((1, 1), np.int32)
    >>> weight = np.array([90, -7, 33], np.int8).reshape(1, 1, 1, 3)
    >>> ops = (
    ...     Lookup(table, "codes"),
    ...     Conv("sum", weight, 1, 0, 1, 0, "codes", "sums"),
    ...     Requantize((Term("sums", one, 0 * one.astype(np.int64), 0),), 7, -128, 127, "rounded"),
    ...     Conv("last", np.full((2, 1, 1, 1), 5, np.int8), 1, 0, 1, None, "rounded", "last:sums"),
    ...     Scale(Term("last:sums", one, 0 * one.astype(np.int64), None), 1, "logits"),
    ... )
    >>> program = Program("tiny", ops, ((2, 2), (8, 8)), ("sum",), (1, 1, 3))
    >>> images = np.array([[130, 9, 200]] * 2, np.uint8).reshape(2, 1, 1, 3)
    >>> widths = np.array([[2], [8]])
    >>> with TemporaryDirectory() as folder:
    ...     session = onnxruntime.InferenceSession(to_onnx(program, Path(folder) / "tiny.onnx"))
    >>> logits, _ = session.run(None, {"images": images, "widths": widths})
    >>> logits.tolist() == program.run(images, widths).logits.tolist()
    True
    """
    return _Exporter(program).save(path)


@dataclass(frozen=True)
class _Value:
    """A value of one image, (1, C, H, W): uint8, codes plus their zero point, or int64 sums."""

    name: str
    zero_point: int | None = None


class _Exporter:
    """Writes the body of the Scan operation by operation, then what surrounds it."""

    def __init__(self, program: Program) -> None:
        self.program, self.writer = program, _onnx_graph.Writer()
        self.add, self.constant, self.cast = self.writer.add, self.writer.constant, self.writer.cast
        self.values: dict[str, _Value] = {IMAGE: _Value("image")}
        self.chosen = "given"
        self.is_floor = program.rounding == "floor"
        bits = np.array(program.choices)
        self.has_pairs = bool((bits[:, 0] != bits[:, 1]).any())
        self.bits = bits if self.has_pairs else bits[:, 0]
        self.weight_drops, self.input_drops = MASTER_WIDTH - bits.T

    def save(self, path: str | Path) -> Path:
        shape = ("N", len(self.program.layers), *self.bits.shape[1:])
        given = self._given_choices()
        self.views = {op.out: self._weight_views(op) for op in self.program.ops if isinstance(op, Conv)}
        outside, self.writer.nodes = self.writer.nodes, []
        body = self._body()
        self.writer.nodes = outside
        indices = "indices"
        self.writer.add_all("Scan", ("images", given), ["logits", indices], body=body, num_scan_inputs=2)
        self.add("Gather", self.constant(self.bits, np.int64), indices, out="chosen")
        images = _onnx_graph.value("images", np.uint8, ("N", *self.program.image_shape))
        inputs = images, _onnx_graph.value("widths", np.int64, shape)
        outputs = (
            _onnx_graph.value("logits", np.int64, ("N", "classes")),
            _onnx_graph.value("chosen", np.int64, shape),
        )
        whole = _onnx_graph.graph(
            self.program.name, self.writer.nodes, inputs, outputs, self.writer.constants
        )
        return _onnx_graph.save(whole, self.program, path)

    def _given_choices(self) -> str:
        """Indices of the choices (N, L): an index that no table has where a width is unknown."""
        unknown = len(self.program.choices)
        table = np.full((MASTER_WIDTH + 2,) * 2, unknown)
        for k, pair in enumerate(self.program.choices):
            table[pair] = k
        if self.program.has_controller:
            table[0, 0] = DECIDED
        # -1 is the table's last row or column, which no width has: a negative one must not become the 0 that
        # leaves a layer to the controller
        bits = self._clamp("widths", -1, MASTER_WIDTH + 1)
        if not self.has_pairs:
            return self.add("Gather", self.constant(table.diagonal(), np.int64), bits)
        position = self.add("Mul", bits, self.constant([MASTER_WIDTH + 2, 1], np.int64))
        position = self.add("ReduceSum", position, self.constant([2], np.int64), keepdims=0)
        return self.add("Gather", self.constant(table.ravel(), np.int64), position)

    def _weight_views(self, op: Conv) -> str:
        """Views of the weights for every choice, (K, O, I, height, width), from their master; uint8."""
        master = self.constant(op.weight.transpose(0, 3, 1, 2) + np.int16(SIGN), np.uint8)
        if op.layer is None:
            return master
        return self._switch(master, self.constant(self.weight_drops.reshape(-1, 1, 1, 1, 1), np.uint8))

    def _switch(self, codes: str, drop: str) -> str:
        if self.is_floor:
            return self.add("BitShift", codes, drop, direction="RIGHT")
        one = self.constant(1, np.uint8)
        half = self.add("BitShift", self.add("BitShift", one, drop, direction="LEFT"), one, direction="RIGHT")
        room = self.add("Sub", self.constant(255, np.uint8), half)
        raised = self.add("Add", self.add("Min", codes, room), half)
        return self.add("BitShift", raised, drop, direction="RIGHT")

    def _body(self) -> "GraphProto":
        shape = self.program.image_shape
        planes = self.add("Transpose", "image", perm=[2, 0, 1])
        self.values[IMAGE] = _Value(self.add("Unsqueeze", planes, self.constant([0], np.int64)))
        if early := early_choices(self.program.ops):
            left = len(self.program.layers) - len(early)
            self._decide(self.constant([*early, *[DECIDED] * left], np.int64))
        for op in self.program.ops:
            if isinstance(op, Choose):
                self._choose(op)
            else:
                self.values[op.out] = result = self._made(op)
        logits = self.add("Reshape", result.name, self.constant([-1], np.int64))
        chosen = self.add("Identity", self.chosen)
        layers = (len(self.program.layers),)
        inputs = _onnx_graph.value("image", np.uint8, shape), _onnx_graph.value("given", np.int64, layers)
        outputs = (
            _onnx_graph.value(logits, np.int64, ("classes",)),
            _onnx_graph.value(chosen, np.int64, layers),
        )
        return _onnx_graph.graph("one image", self.writer.nodes, inputs, outputs)

    def _made(self, op: Op) -> _Value:
        match op:
            case Lookup():
                return self._lookup(op)
            case Conv():
                return self._conv(op)
            case Requantize():
                return self._requantize(op)
            case MaxPool():
                return self._max_pool(op)
            case SumPool():
                return self._sum_pool(op)
            case Concat():
                return self._concat(op)
            case Product():
                return _Value(self.add("Mul", self._sums(op.x), self._sums(op.y)))
            case Scale():
                return self._scale(op)
            case Choose():
                raise AssertionError("the controller's choice is no value")

    def _choice(self, layer: int) -> str:
        return self.add("Gather", self.chosen, self.constant(layer, np.int64))

    def _of_choice(self, table: NDArray[Any], dtype: Any, choice: str) -> str:
        """The row of a choice; the table has one for each."""
        return self.add("Gather", self.constant(table, dtype), choice)

    def _lookup(self, op: Lookup) -> _Value:
        rows = self.constant(np.arange(len(op.table)).reshape(-1, 1, 1) * 256, np.int32)
        x = self.values[op.x]
        position = self.add("Add", self.cast(x.name, np.int32), rows)
        zero_point = SIGN if op.table.dtype == np.int8 else 0
        table = np.roll(op.table, x.zero_point or 0, axis=1) + np.int16(zero_point)
        return _Value(self.add("Gather", self.constant(table.ravel(), np.uint8), position), zero_point)

    def _conv(self, op: Conv) -> _Value:
        x, weight = self.values[op.x], self.views[op.out]
        assert x.zero_point is not None, f"{op.name} reads codes"
        codes, zero_points = x.name, [self.constant(zero, np.uint8) for zero in (x.zero_point, SIGN)]
        choice = None if op.layer is None else self._choice(op.layer)
        if choice is not None:
            drops = [self._of_choice(d, np.uint8, choice) for d in (self.input_drops, self.weight_drops)]
            codes, weight = self._switch(codes, drops[0]), self.add("Gather", weight, choice)
            pairs = zip(zero_points, drops, strict=True)
            zero_points = [self.add("BitShift", zero, drop, direction="RIGHT") for zero, drop in pairs]
        sums = self._products(op, codes, weight, *zero_points)
        return _Value(self._mid_bin(op, sums, codes, zero_points[0], choice) if self.is_floor else sums)

    def _products(self, op: Conv, *operands: str) -> str:
        window = _onnx_graph.window(op.weight.shape[1:3], op.stride, op.padding)
        return self.cast(self.add("ConvInteger", *operands, group=op.groups, **window), np.int64)

    def _mid_bin(self, op: Conv, sums: str, codes: str, zero_point: str, choice: str | None) -> str:
        """`integer.conv2d_mid_bin` from the plain sums: in half master steps."""
        if choice is None:
            return self.add("Mul", sums, self.constant(2, np.int64))
        ones = np.ones((op.groups, *op.weight.shape[1:]), np.uint8).transpose(0, 3, 1, 2)
        window_sums = self._products(op, codes, self.constant(ones, np.uint8), zero_point)
        group = np.arange(len(op.weight)) // (len(op.weight) // op.groups)
        window_sums = self.add("Gather", window_sums, self.constant(group, np.int64), axis=1)
        middle = ((1 << self.weight_drops) - 1) << self.input_drops
        unit = self._of_choice(2 << (self.weight_drops + self.input_drops), np.int64, choice)
        middles = self.add("Mul", window_sums, self._of_choice(middle, np.int64, choice))
        return self.add("Add", self.add("Mul", sums, unit), middles)

    def _requantize(self, op: Requantize) -> _Value:
        up = self.constant((1 << (op.r - 1)) + (1 << UP), np.int64)
        addends = [self._scaled(term) for term in op.terms]
        total = self.cast(functools.reduce(functools.partial(self.add, "Add"), [*addends, up]), np.uint64)
        shifted = self.add("BitShift", total, self.constant(op.r, np.uint64), direction="RIGHT")
        zero_point = SIGN if op.lo < 0 else 0
        down = self.constant((1 << (UP - op.r)) - zero_point, np.int64)
        codes = self.add("Sub", self.cast(shifted, np.int64), down)
        codes = self._clamp(codes, op.lo + zero_point, op.hi + zero_point)
        return _Value(self.cast(codes, np.uint8), zero_point)

    def _clamp(self, x: str, lo: int, hi: int) -> str:
        lowest, highest = (self.constant(limit, np.int64) for limit in (lo, hi))
        x = self.add("Where", self.add("Less", x, lowest), lowest, x)
        return self.add("Where", self.add("Less", highest, x), highest, x)

    def _scaled(self, term: Term) -> str:
        """``(a << d) * M + B``, int64; the shift is applied to M, a number for every channel."""
        choice = None if term.layer is None else self._choice(term.layer)
        multiplier, offset = (self._row(table, choice) for table in (term.multiplier, term.offset))
        if choice is not None and not self.is_floor:
            power = self._of_choice(1 << (self.weight_drops + self.input_drops), np.int64, choice)
            multiplier = self.add("Mul", multiplier, power)
        return self.add("Add", self.add("Mul", self._sums(term.x), multiplier), offset)

    def _row(self, table: NDArray[Any], choice: str | None) -> str:
        rows = table[:, None, :, None, None]
        if choice is None or len(table) == 1:
            return self.constant(rows[0], np.int64)
        return self._of_choice(rows, np.int64, choice)

    def _sums(self, name: str) -> str:
        """A value in int64, without a zero point."""
        x = self.values[name]
        if x.zero_point is None:
            return x.name
        codes = self.cast(x.name, np.int64)
        return self.add("Sub", codes, self.constant(x.zero_point, np.int64)) if x.zero_point else codes

    def _max_pool(self, op: MaxPool) -> _Value:
        x = self.values[op.x]
        window = _onnx_graph.pool_window(op, self.program.values[op.x].shape)
        return _Value(self.add("MaxPool", x.name, **window), x.zero_point)

    def _sum_pool(self, op: SumPool) -> _Value:
        return _Value(self.add("ReduceSum", self._sums(op.x), self.constant([2, 3], np.int64)))

    def _concat(self, op: Concat) -> _Value:
        parts = [self.values[name] for name in op.parts]
        return _Value(self.add("Concat", *(part.name for part in parts), axis=1), parts[0].zero_point)

    def _scale(self, op: Scale) -> _Value:
        return _Value(self._scaled(op.term))

    def _choose(self, op: Choose) -> None:
        rows = self.constant([op.layers, len(self.program.choices)], np.int64)
        logits = self.add("Reshape", self.values[op.x].name, rows)
        one = self.constant([1], np.int64)
        _, first = self.writer.add_all("TopK", (logits, one), ["largest score", "first choice"], axis=1)
        first = self.add("Squeeze", first, one)
        if op.before:
            first = self.add("Concat", self.constant(list(op.before), np.int64), first, axis=0)
        self._decide(first)

    def _decide(self, choices: str) -> None:
        """Choices of all layers, for those that are left to the controller."""
        is_left = self.add("Less", self.chosen, self.constant(0, np.int64))
        self.chosen = self.add("Where", is_left, choices, self.chosen)
