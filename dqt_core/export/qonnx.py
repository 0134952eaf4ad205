"""A program at its widths as a QONNX graph, where a switch is the operator `Trunc`; with the same bits."""

import functools
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqt_core import nested
from dqt_core.export import _onnx_graph
from dqt_core.export.onnx import UP
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
    Widths,
)

DOMAIN, VERSION = "qonnx.custom_op.general", 2  # the first version whose Trunc has a scale for its output
EXACT = 2**24  # up to here float32 has every integer


def to_qonnx(program: Program, path: str | Path, widths: Widths = nested.MASTER_WIDTH) -> Path:
    """Write a program at given widths as a QONNX model, which the package qonnx executes with the same bits.

    Parameters
    ----------
    program : Program
    path : str or Path
        Of the file; equal programs and widths make equal files.
    widths : int, or array of int, (L,) or (L, 2)
        Of all switchable layers, or of each, or the bits of its weights and of its input.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If the program lacks a width, or ``widths="controller"``, which is no width of a file.

    Notes
    -----
    Input: ``images``, uint8 (1, H, W, C); qonnx's ``ChangeBatchSize`` makes it more. Output: ``logits``,
    int64 (1, classes). Codes have the names of the program's values.

    Weights are stored as master codes, in floats as QONNX has them. ``Quant`` says that codes have 8 bits.
    A layer that reads d bits less does so by ``Trunc``, from a scale of 1 to one of 2**d: floor is its mode
    ``FLOOR``, half_up the same after adding ``2**d >> 1``. (``ROUND`` takes ties to even, and the package's
    ``HALF_UP`` takes them away from zero.) Trunc clamps as `nested.switch` does. Another width is other
    numbers in these operators, and another row of multipliers.

    A ``Conv`` sums in float32, exactly while no sum of magnitudes reaches 2**24. Where these weights could
    reach it, their terms are shared among several convolutions, which are added as integers. Requantize is
    64-bit integers, as in `export.onnx.to_onnx`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import dqt_core, onnx
    >>> with TemporaryDirectory() as folder:
    ...     model = onnx.load(to_qonnx(dqt_core.load("digits"), Path(folder) / "digits.onnx", 4))
    >>> sorted({node.op_type for node in model.graph.node if node.domain})
    ['Quant', 'Trunc']
    """
    return _Exporter(program, widths).save(path)


class _Exporter:
    def __init__(self, program: Program, widths: Widths) -> None:
        choices = program._choices_of(widths, 1)
        if choices is None:
            raise ValueError(
                "widths='controller' is no width of a QONNX file; give one, or one for each layer"
            )
        self.program, self.choices = program, choices[0]
        self.is_floor = program.rounding == "floor"
        self.writer = _onnx_graph.Writer(taken=program.values)  # which keep their names in the graph
        self.add, self.constant, self.cast = self.writer.add, self.writer.constant, self.writer.cast

    def save(self, path: str | Path) -> Path:
        for op in self.program.ops:
            if not (op.controller or isinstance(op, Choose)):
                self._add(op)
        images = _onnx_graph.value("images", np.uint8, (1, *self.program.image_shape))
        classes = self.program.values["logits"].shape[-1]
        logits = _onnx_graph.value("logits", np.int64, (1, classes))
        whole = _onnx_graph.graph(
            self.program.name, self.writer.nodes, [images], [logits], self.writer.constants
        )
        return _onnx_graph.save(whole, self.program, path, {DOMAIN: VERSION})

    def _add(self, op: Op) -> None:
        match op:
            case Lookup():
                self._lookup(op)
            case Conv():
                self._conv(op)
            case Requantize():
                self._requantize(op)
            case MaxPool():
                window = _onnx_graph.pool_window(op, self.program.values[op.x].shape)
                self.add("MaxPool", op.x, out=op.out, **window)
            case SumPool():
                self.add("ReduceSum", self._integers(op.x), self.constant([2, 3], np.int64), out=op.out)
            case Concat():
                self.add("Concat", *op.parts, out=op.out, axis=1)
            case Product():
                self.add("Mul", self._integers(op.x), self._integers(op.y), out=op.out)
            case Scale():
                self.add("Flatten", self._sum((op.term,), 0), out="logits")
            case Choose():
                raise AssertionError("the controller's choice is no value")

    def _lookup(self, op: Lookup) -> None:
        x = self.add("Transpose", IMAGE + "s", perm=[0, 3, 1, 2]) if op.x == IMAGE else op.x
        lowest = -128 if self._is_signed(op.x) else 0  # the place of its entry is 0
        rows = self.constant(np.arange(len(op.table)).reshape(-1, 1, 1) * 256 - lowest, np.int32)
        position = self.add("Add", self.cast(x, np.int32), rows)
        table = np.roll(op.table, lowest, axis=1)
        codes = self.add("Gather", self.constant(table.ravel(), np.float32), position)
        self._quant(codes, op.table.dtype == np.int8, op.out)

    def _conv(self, op: Conv) -> None:
        weight_drop, input_drop = self._drops(op.layer)
        x = self._switch(op.x, input_drop, self._is_signed(op.x))
        weight = self._quant(self.constant(op.weight.transpose(0, 3, 1, 2), np.float32), True)
        weight = self._switch(weight, weight_drop, True)
        if self.is_floor:  # in half steps, at the middle of the bin
            weight = self.add("Mul", weight, self._number(2))
            weight = self.add("Add", weight, self._number((1 << weight_drop) - 1))
        window = _onnx_graph.window(op.weight.shape[1:3], op.stride, op.padding)
        sums = [
            self.cast(self.add("Conv", x, part, group=op.groups, **window), np.int64)
            for part in self._parts(op, weight)
        ]
        self.add("Identity", functools.reduce(functools.partial(self.add, "Add"), sums), out=op.out)

    def _parts(self, op: Conv, weight: str) -> list[str]:
        """The weights, or copies of them with parts of their terms, so that float32 holds every sum."""
        weight_drop, input_drop = self._drops(op.layer)
        codes = nested.switch(op.weight, nested.MASTER_WIDTH - weight_drop, rounding=self.program.rounding)
        largest_code = (128 if self._is_signed(op.x) else 255) >> input_drop
        steps = codes.astype(np.int64) << weight_drop
        if self.is_floor:
            steps = 2 * steps + (1 << weight_drop) - 1
        masks = _masks(np.abs(steps).transpose(0, 3, 1, 2) * largest_code)
        if len(masks) == 1:
            return [weight]
        return [self.add("Mul", weight, self.constant(mask, np.float32)) for mask in masks]

    def _requantize(self, op: Requantize) -> None:
        up = (1 << (op.r - 1)) + (1 << UP)
        total = self.cast(self._sum(op.terms, up), np.uint64)
        shifted = self.add("BitShift", total, self.constant(op.r, np.uint64), direction="RIGHT")
        down = self.constant(1 << (UP - op.r), np.int64)
        codes = self.cast(self.add("Sub", self.cast(shifted, np.int64), down), np.float32)
        codes = self.add("Clip", codes, self._number(op.lo), self._number(op.hi))
        self._quant(codes, op.lo < 0, op.out)

    def _sum(self, terms: tuple[Term, ...], up: int) -> str:
        """The sum of terms and of a number, int64; sums of products are in steps of the master."""
        total = ""
        for term in terms:
            addend = self.add("Mul", self._integers(term.x), self._row(term.multiplier, term))
            addend = self.add("Add", addend, self._row(term.offset, term))
            total = self.add("Add", total, addend) if total else addend
        return self.add("Add", total, self.constant(up, np.int64)) if up else total

    def _row(self, table: NDArray[np.integer], term: Term) -> str:
        row = table[0 if term.layer is None or len(table) == 1 else self.choices[term.layer]]
        return self.constant(row.reshape(-1, 1, 1), np.int64)

    def _switch(self, codes: str, drop: int, signed: bool) -> str:
        """The view of codes without their `drop` low bits, in steps of the master."""
        if drop == 0:
            return codes
        half = 0 if self.is_floor else 1 << (drop - 1)
        raised = self.add("Add", codes, self._number(half)) if half else codes
        scales = self._number(1), self._number(1 << drop)
        bits = self._number(nested.MASTER_WIDTH + bool(half)), self._number(nested.MASTER_WIDTH - drop)
        inputs = raised, scales[0], self._number(0), bits[0], scales[1], bits[1]
        return self._own("Trunc", *inputs, rounding_mode="FLOOR", signed=int(signed), narrow=0)

    def _quant(self, codes: str, signed: bool, out: str = "") -> str:
        """The same codes, known to have 8 bits."""
        numbers = (self._number(number) for number in (1, 0, nested.MASTER_WIDTH))
        return self._own(
            "Quant", codes, *numbers, out=out, rounding_mode="ROUND", signed=int(signed), narrow=0
        )

    def _own(self, kind: str, *inputs: str, out: str = "", **attributes: str | int) -> str:
        return self.add(kind, *inputs, out=out, domain=DOMAIN, **attributes)

    def _number(self, number: int) -> str:
        return self.constant(number, np.float32)

    def _integers(self, name: str) -> str:
        is_codes = self.program.values[name].dtype.itemsize == 1
        return self.cast(name, np.int64) if is_codes else name

    def _drops(self, layer: int | None) -> tuple[int, int]:
        """The low bits that a layer leaves out of its weights and its input."""
        if layer is None:
            return 0, 0
        weight_bits, input_bits = self.program.choices[self.choices[layer]]
        return nested.MASTER_WIDTH - weight_bits, nested.MASTER_WIDTH - input_bits

    def _is_signed(self, name: str) -> bool:
        return self.program.values[name].dtype == np.int8


def _masks(sizes: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Masks of the terms (O, I, height, width), as few as keep every sum of sizes below `EXACT`."""
    flat = sizes.reshape(len(sizes), -1)
    for count in itertools.count(1):
        part = np.arange(flat.shape[1]) * count // flat.shape[1]
        masks = [part == number for number in range(count)]
        if all((flat[:, mask].sum(axis=1) < EXACT).all() for mask in masks):
            return [mask.reshape(1, *sizes.shape[1:]) for mask in masks]
    raise AssertionError("one term is below 2**24")
