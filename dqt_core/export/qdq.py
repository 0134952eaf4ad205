"""A program at one width as the float network that tools exchange: QuantizeLinear and DequantizeLinear."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqt_core import nested
from dqt_core.export import _onnx_graph
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

Reals = NDArray[np.float64]


def to_qdq(
    program: Program,
    path: str | Path,
    width: int = nested.MASTER_WIDTH,
    steps: Mapping[str, float] | None = None,
) -> Path:
    """Write what a program computes at one width in floats, as a QDQ model.

    Parameters
    ----------
    program : Program
    path : str or Path
        Of the ONNX file.
    width : int
        Of all switchable layers; one that the program holds.
    steps : mapping of name to float, optional
        Steps of the values that hold codes, by the program's names. Integers do not need them, so a program
        does not hold them; without them a step is 1 and the network is the same in other units.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If the program lacks the width or rounds by floor, or a bias does not fit int32 at its scale.

    Notes
    -----
    Input: ``images``, uint8 (N, H, W, C). Output: ``logits``, float32 (N, classes). Codes have the names of
    the program's values, so that both can be compared.

    This is *not* the program: convolutions are sums of floats (or of integers, where a runtime fuses them),
    multipliers are float32, biases are rounded to the accumulator's scale, and QuantizeLinear rounds ties to
    even, in the switch of an input to a narrower width too.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import onnx
    >>> one, zero = np.ones((1, 1), np.int32), np.zeros((1, 1), np.int64)
    >>> ops = (
    ...     Lookup(np.arange(-128, 128, dtype=np.int8)[None].repeat(3, 0), "codes"),
    ...     Conv("sum", np.ones((1, 1, 1, 3), np.int8), 1, 0, 1, None, "codes", "sums"),
    ...     Scale(Term("sums", one, zero, None), 1, "logits"),
    ... )
    >>> with TemporaryDirectory() as folder:
    ...     path = to_qdq(Program("tiny", ops, ((8, 8),), (), (1, 1, 3)), Path(folder) / "tiny.onnx")
    ...     [node.op_type for node in onnx.load(path).graph.node][-3:]
    ['DequantizeLinear', 'Conv', 'Flatten']
    """
    return _Exporter(program, width, steps or {}).save(path)


class _Exporter:
    def __init__(self, program: Program, width: int, steps: Mapping[str, float]) -> None:
        if program.rounding != "half_up":
            raise ValueError(
                "QuantizeLinear rounds to nearest; a program that rounds by floor has no QDQ form"
            )
        self.program, self.width, self.steps = program, width, steps
        choices = program._choices_of(width, 1)
        assert choices is not None, "widths are given as a number"
        self.choice = int(choices.max(initial=0))  # the same for all layers, of which there may be none
        self.writer = _onnx_graph.Writer(taken=program.values)  # which keep their names in the graph
        self.add, self.constant = self.writer.add, self.writer.constant
        self.convs = {op.out: op for op in program.ops if isinstance(op, Conv)}
        self.products = {op.out: op for op in program.ops if isinstance(op, Product)}
        self.pools = {op.out: op for op in program.ops if isinstance(op, SumPool)}

    def save(self, path: str | Path) -> Path:
        for op in self._ops():
            self._add(op)
        images = _onnx_graph.value("images", np.uint8, ("N", *self.program.image_shape))
        logits = _onnx_graph.value("logits", np.float32, ("N", "classes"))
        whole = _onnx_graph.graph(
            self.program.name, self.writer.nodes, [images], [logits], self.writer.constants
        )
        return _onnx_graph.save(whole, self.program, path)

    def _add(self, op: Op) -> None:
        match op:
            case Lookup():
                self._lookup(op)
            case Requantize():
                self._requantize(op)
            case MaxPool():
                self._max_pool(op)
            case Concat():
                self.add("Concat", *op.parts, out=op.out, axis=1)
            case Scale():
                self._scale(op)
            case Conv() | SumPool() | Product() | Choose():
                """Convolutions, sums and products are written where they are read; no choice is left."""

    def _ops(self) -> list[Op]:
        return [op for op in self.program.ops if not op.controller and not isinstance(op, Choose)]

    def _lookup(self, op: Lookup) -> None:
        x = self.add("Transpose", IMAGE + "s", perm=[0, 3, 1, 2]) if op.x == IMAGE else op.x
        lowest = -128 if self._type_of(op.x) is np.int8 else 0  # the place of its entry is 0
        rows = self.constant(np.arange(len(op.table)).reshape(-1, 1, 1) * 256 - lowest, np.int32)
        position = self.add("Add", self.writer.cast(x, np.int32), rows)
        table = np.roll(op.table, lowest, axis=1)
        self.add("Gather", self.constant(table.ravel(), table.dtype), position, out=op.out)

    def _requantize(self, op: Requantize) -> None:
        step = self.steps.get(op.out, 1.0)
        total = self._sum(op.terms, op.r, step)
        if op.lo >= 0:
            total = self.add("Relu", total)
        self._quantize(total, step, op.lo, op.hi, op.lo < 0, op.out)

    def _max_pool(self, op: MaxPool) -> None:
        window = _onnx_graph.pool_window(op, self.program.values[op.x].shape)
        self.add("MaxPool", op.x, out=op.out, **window)

    def _scale(self, op: Scale) -> None:
        logits = self._sum((op.term,), op.r, 1.0)
        self.add("Flatten", logits, out="logits")

    def _sum(self, terms: tuple[Term, ...], r: int, step: float) -> str:
        """The real sum of terms, for a result of this step."""
        total = ""
        for term in terms:
            multiplier, offset = (self._row(table) for table in (term.multiplier, term.offset))
            ratio, bias = np.ldexp(multiplier, -r) * step, np.ldexp(offset, -r) * step
            is_conv = term.x in self.convs
            addend = (
                self._conv(self.convs[term.x], ratio, bias) if is_conv else self._plain(term.x, ratio, bias)
            )
            total = self.add("Add", total, addend) if total else addend
        return total

    def _row(self, table: NDArray[np.integer]) -> Reals:
        return table[self.choice if len(table) > 1 else 0].astype(np.float64)

    def _conv(self, op: Conv, ratio: Reals, bias: Reals) -> str:
        """Convolution of real numbers; `ratio` is the real value of one unit of the accumulator."""
        width = nested.MASTER_WIDTH if op.layer is None else self.width
        x, x_step = self._view(op.x, width)
        drop = nested.MASTER_WIDTH - width
        unit = np.broadcast_to(ratio * 4.0**drop, len(op.weight))
        unit = np.where((unit == 0) & (bias == 0), 1.0, unit)
        with np.errstate(divide="ignore"):
            whole = np.rint(bias / unit)
        if not (np.abs(whole) < 2**31).all():
            raise ValueError(
                f"{op.name}: a bias of {np.abs(whole).max()} accumulator units does not fit int32"
            )
        codes = nested.switch(op.weight, width).transpose(0, 3, 1, 2)
        weight = self._dequantize(self.constant(codes, np.int8), unit / x_step, 0, np.int8)
        integer_bias = self.constant(whole, np.int32)
        real_bias = self._dequantize(integer_bias, unit, 0, np.int32)
        window = _onnx_graph.window(op.weight.shape[1:3], op.stride, op.padding)
        return self.add("Conv", x, weight, real_bias, group=op.groups, **window)

    def _view(self, name: str, width: int) -> tuple[str, float]:
        """The real values of codes read at a width, and the step of that width."""
        step, signed = self.steps.get(name, 1.0), self._type_of(name) is np.int8
        x = self._dequantize(name, step, None, self._type_of(name))
        drop = nested.MASTER_WIDTH - width
        if drop == 0:
            return x, step
        step *= 2.0**drop
        narrow = self._quantize(x, step, *nested.code_range(width, signed), signed)
        return self._dequantize(narrow, step, None, self._type_of(name)), step

    def _plain(self, name: str, ratio: Reals, bias: Reals) -> str:
        """Codes, the sum of codes over an image, or a product of codes, times a ratio."""
        if name in self.pools:
            source = self.pools[name].x
            pixels = np.prod(self.program.values[source].shape[:2])
            x = self._dequantize(source, ratio * pixels, 1, self._type_of(source))
            x = self.add("GlobalAveragePool", x)
        elif name in self.products:
            op = self.products[name]
            x = self._dequantize(op.x, ratio, 1, self._type_of(op.x))
            x = self.add("Mul", x, self._dequantize(op.y, 1.0, None, self._type_of(op.y)))
        else:
            x = self._dequantize(name, ratio, 1, self._type_of(name))
        return self.add("Add", x, self._reals(bias.reshape(-1, 1, 1))) if bias.any() else x

    def _quantize(self, x: str, step: float, lo: int, hi: int, signed: bool, out: str = "") -> str:
        """Codes of real numbers; the type clamps, and a Clip where the limits are narrower than the type."""
        if (lo, hi) != nested.code_range(nested.MASTER_WIDTH, signed):
            x = self.add("Clip", x, self._reals(lo * step), self._reals(hi * step))
        zero = self.constant(0, np.int8 if signed else np.uint8)
        return self.add("QuantizeLinear", x, self._reals(step), zero, out=out)

    def _dequantize(self, codes: str, step: Reals | float, axis: int | None, dtype: type) -> str:
        steps = np.asarray(step, np.float64)
        if axis is None or (steps.size == 1 and axis == 1):
            return self.add(
                "DequantizeLinear", codes, self._reals(steps.reshape(())), self.constant(0, dtype)
            )
        zeros = self.constant(np.zeros(steps.shape), dtype)
        return self.add("DequantizeLinear", codes, self._reals(steps), zeros, axis=axis)

    def _type_of(self, name: str) -> type:
        return self.program.values[name].dtype.type

    def _reals(self, numbers: Reals | float) -> str:
        return self.constant(numbers, np.float32)
