"""A program as one C99 file: no library, no allocation, no float, nothing wider than 64 bits."""

import functools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.backends.analysis import early_choices, lives, places
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
    inputs,
)

TEMPLATES = Path(__file__).with_name("templates")
COLUMNS = 110
STEPS = (
    "requantize",
    "scale",
    "lookup",
    "copy_channels",
    "max_pool",
    "choose",
)  # written where they are called
UNSTORED = Conv | SumPool | Product  # a requantize computes them where it reads them
C_TYPES = {"int8": "int8_t", "int32": "int32_t", "int64": "int64_t"}
NO_LAYER = -1


@dataclass(frozen=True)
class Sizes:
    """What a C program occupies, in bytes; the code itself is the compiler's matter.

    Attributes
    ----------
    weights : int
        Constant: the master codes of all weights.
    tables : int
        Constant: multipliers, offsets and the look-up table of the image.
    ram : int
        Static buffers that are written: codes, rows and filters of a convolution, scores of the controller.
        The image and the logits are the caller's.
    """

    weights: int
    tables: int
    ram: int


def to_c(program: Program, path: str | Path) -> Path:
    """Write a program as one C99 file, which gives the same bits wherever it is compiled.

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
    OSError
        If the file cannot be written.

    Notes
    -----
    The file has one function::

        int dqt_run(const uint8_t image[DQT_HEIGHT * DQT_WIDTH * DQT_CHANNELS],
                    const uint8_t widths[DQT_LAYERS], int64_t logits[DQT_CLASSES],
                    uint8_t chosen[DQT_LAYERS]);

    ``widths`` are bits; 0 leaves a layer to the controller, NULL all of them. Where the program has choices
    with different widths of weights and input, both arrays hold two numbers a layer. ``chosen``, if it is not
    NULL, receives the widths that were used. The result is 0, or -1 for a width that the program does not
    hold. Buffers are static, so two threads may not be inside at once.

    Codes of values that live at different times share bytes. Accumulators are never stored: a requantize
    computes the sums that it reads, one row of the image at a time, from the rows of the input under the
    kernel and from one filter, both switched to their widths. What C leaves to the compiler is avoided:
    negative numbers are shifted as their complements, and left by a multiplication.

    With ``DQT_MAIN`` defined the file is a whole program: raw images on its input, a line of class, widths
    and logits for each on its output, then `Result.digest`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> table, one = np.zeros((3, 256), np.int8), np.ones((1, 1), np.int32)
    >>> ops = (
    ...     Lookup(table, "codes"),
    ...     Conv("sum", np.ones((2, 1, 1, 3), np.int8), 1, 0, 1, None, "codes", "sums"),
    ...     Scale(Term("sums", one, 0 * one.astype(np.int64), None), 1, "logits"),
    ... )
    >>> program = Program("tiny", ops, ((8, 8),), (), (1, 1, 3))
    >>> with TemporaryDirectory() as folder:
    ...     lines = to_c(program, Path(folder) / "tiny.c").read_text().splitlines()
    >>> [line for line in lines if line.startswith("static uint8_t memory")]
    ['static uint8_t memory[3];']
    """
    path = Path(path)
    path.write_text(_Writer(program).text(), encoding="utf-8")
    return path


def sizes(program: Program) -> Sizes:
    """Bytes of the constants and of the static buffers of a program's C file.

    Parameters
    ----------
    program : Program

    Returns
    -------
    Sizes
    """
    return _Writer(program).sizes


class _Writer:
    """Tables first, then the calls; a step is an operation that stores its result."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.makers: dict[str, Op] = {op.out: op for op in program.ops if not isinstance(op, Choose)}
        self.shapes = {name: value.shape for name, value in program.values.items()}
        self.is_floor = program.rounding == "floor"
        self.steps = [op for op in program.ops if not isinstance(op, UNSTORED)]
        self.early = early_choices(program.ops)
        self.bits = np.array(program.choices)
        self.widths = 1 + int((self.bits[:, 0] != self.bits[:, 1]).any())
        self.offsets, self.memory = self._places()
        self.weights, self.constants = 0, 0
        self.tables = "\n".join(self._tables())

    @functools.cached_property
    def sizes(self) -> Sizes:
        buffers = 2 * math.prod(self._buffer("row")) + 2 * math.prod(self._buffer("filter"))
        return Sizes(self.weights, self.constants, self.memory + buffers + 8 * self._scores())

    def text(self) -> str:
        calls = self._calls()
        called = [name for name in STEPS if f"    {name}(" in calls]
        operations = [
            (TEMPLATES / f"{name}.c").read_text() for name in ("operations", *called, "given_choices")
        ]
        parts = [self._head(), *operations, self.tables, calls, (TEMPLATES / "main.c").read_text()]
        return "\n".join(part.strip("\n") + "\n" for part in parts)

    def _head(self) -> str:
        height, width, channels = self.program.image_shape
        logits = self.shapes[self.steps[-1].out]  # type: ignore[union-attr]
        defines = {
            "HEIGHT": height,
            "WIDTH": width,
            "CHANNELS": channels,
            "CLASSES": math.prod(logits),
            "LAYERS": len(self.program.layers),
            "CHOICES": len(self.bits),
            "WIDTHS": f"{self.widths} /* numbers for a layer: {self._meaning()} */",
            "CONTROLLER": int(self.program.has_controller),
            "EARLY": f"{len(self.early)} /* layers before the controller, which it does not decide */",
            "FLOOR": f"{int(self.is_floor)} /* codes are switched by floor, not half_up */",
        }
        rows, filters = self._buffer("row"), self._buffer("filter")
        size = self.sizes
        return "\n".join(
            [
                f"/* {self.program.name}, written by dqt_core; the program's digest is",
                f"   {self.program.digest}.",
                f"   Constant: {size.weights:,} bytes of weights, {size.tables:,} of tables.",
                f"   RAM: {size.ram:,} bytes, static; not to be entered by two threads at once. */",
                "",
                "#include <stddef.h>",
                "#include <stdint.h>",
                "",
                *(f"#define DQT_{name} {value}" for name, value in defines.items()),
                "#define UNDECIDED 255",
                "",
                f"{self._prototype()};",
                "",
                _array("static const uint8_t choices[DQT_CHOICES][2]", [_braced(row) for row in self.bits]),
                *([_array("static const uint8_t early[DQT_EARLY]", self.early)] if self.early else []),
                f"static uint8_t memory[{self.memory}];",
                f"static int16_t row_buffer[{rows[0]}][{rows[1]}];",
                f"static int16_t filter_buffer[{filters[0]}][{filters[1]}];",
                *([f"static int64_t scores[{self._scores()}];"] if self.program.has_controller else []),
            ]
        )

    def _meaning(self) -> str:
        return "bits of both" if self.widths == 1 else "bits of the weights, bits of the input"

    def _sources(self, op: Op) -> list[str]:
        """The stored values that a step reads: through the sums that it computes itself."""
        sources: list[str] = []
        for name in inputs(op):
            maker = self.makers.get(name)
            sources += inputs(maker) if isinstance(maker, UNSTORED) else [name]
        return sources

    def _places(self) -> tuple[dict[str, int], int]:
        stored = [op.out for op in self.steps if not isinstance(op, Choose | Scale)]
        bytes_of = {name: math.prod(self.shapes[name]) for name in stored}
        return places(bytes_of, lives(self.steps, read=self._sources), alignment=1)

    def _is_signed(self, name: str) -> bool:
        return self.program.values[name].dtype == np.int8

    def _conv_terms(self) -> Iterator[tuple[int, Conv]]:
        for op in self.steps:
            if isinstance(op, Requantize | Scale):
                terms = op.terms if isinstance(op, Requantize) else (op.term,)
                for place, term in enumerate(terms):
                    maker = self.makers[term.x]
                    if isinstance(maker, Conv):
                        yield place, maker

    def _buffer(self, kind: str) -> tuple[int, int]:
        """How many rows or filters are kept at once, and the elements of the largest."""
        convs = list(self._conv_terms())
        lengths = [self._rows_of(op) if kind == "row" else op.weight[0].size for _, op in convs]
        return 1 + max((place for place, _ in convs), default=0), max(lengths, default=1)

    def _rows_of(self, op: Conv) -> int:
        _, width, depth = self.shapes[op.x]
        return int(op.weight.shape[1]) * (width + 2 * op.padding) * depth

    def _scores(self) -> int:
        own = [op for op in self.steps[:-1] if isinstance(op, Scale)]
        return max((math.prod(self.shapes[op.out]) for op in own), default=0)

    def _tables(self) -> Iterator[str]:
        for number, op in enumerate(self.steps):
            if isinstance(op, Lookup):
                yield self._constants(f"table_{number}", op.table.view(np.int8))
            elif isinstance(op, Requantize):
                yield from self._step_tables(number, op.terms, op.out, (op.r, op.lo, op.hi))
            elif isinstance(op, Scale):
                plain = Term(op.term.x, op.term.multiplier[:1], op.term.offset[:1], None)
                yield from self._step_tables(number, (plain,), op.out, (op.r, 0, 0))

    def _step_tables(
        self, number: int, terms: Sequence[Term], out: str, rounding: tuple[int, int, int]
    ) -> Iterator[str]:
        structs = []
        for place, term in enumerate(terms):
            name = f"{number}_{place}"
            multiplier, offset = np.broadcast_arrays(term.multiplier, term.offset)
            yield self._constants(f"multiplier_{name}", multiplier)
            yield self._constants(f"offset_{name}", offset)
            maker = self.makers[term.x]
            if isinstance(maker, Conv):
                yield f"/* {maker.name} */"
                yield self._constants(f"weight_{name}", maker.weight)
            structs.append(self._term(name, term, multiplier.shape))
        yield _array(f"static const Term terms_{number}[{len(terms)}]", structs)
        step = (f"terms_{number}", len(terms), *rounding, *self.shapes[out])
        yield f"static const Step step_{number} = {_braced(step)};"

    def _term(self, name: str, term: Term, table: tuple[int, ...]) -> str:
        maker = self.makers[term.x]
        x = maker.x if isinstance(maker, UNSTORED) else term.x
        y = maker.y if isinstance(maker, Product) else None
        other = (
            ("NULL", 0, 0)
            if y is None
            else (self._at(y), math.prod(self.shapes[y][:2]), int(self._is_signed(y)))
        )
        geometry: tuple[int, ...] = (1, 1, 1, 0, 1)
        weight, conv_layer = "NULL", NO_LAYER
        if isinstance(maker, Conv):
            geometry = (*maker.weight.shape[1:3], maker.stride, maker.padding, maker.groups)
            weight = f"weight_{name}"
            conv_layer = NO_LAYER if maker.layer is None else maker.layer
        layer = NO_LAYER if term.layer is None else term.layer
        return _braced(
            [
                *(self._at(x), weight, f"multiplier_{name}", f"offset_{name}", *table, layer, conv_layer),
                *(*self.shapes[x], *geometry, int(self._is_signed(x)), int(isinstance(maker, SumPool))),
                *other,
            ]
        )

    def _constants(self, name: str, table: NDArray[Any]) -> str:
        if name.startswith("weight"):
            self.weights += table.nbytes
        else:
            self.constants += table.nbytes
        kind = C_TYPES[table.dtype.name]
        return _array(f"static const {kind} {name}[{table.size}]", table.ravel().tolist())

    def _at(self, name: str) -> str:
        return f"memory + {self.offsets[name]}"

    def _calls(self) -> str:
        lines, last = [], self.steps[-1]
        for number, op in enumerate(self.steps):
            call = self._call(number, op, is_last=op is last)
            lines += ["    if (undecided)", f"        {call}"] if op.controller else [f"    {call}"]
        unread = "" if self.program.layers else " = {0}"  # what nothing writes to is taken for unwritten
        begin = (line.format(unread=unread) for line in BEGIN)
        return "\n".join([self._prototype(), "{", *begin, *lines, *END])

    def _prototype(self) -> str:
        """C knows no array of nothing: without layers both are pointers that nobody follows."""
        many = "[DQT_LAYERS * DQT_WIDTHS]"
        widths, chosen = (
            f"{name}{many}" if self.program.layers else f"*{name}" for name in ("widths", "chosen")
        )
        return PROTOTYPE.format(widths=widths, chosen=chosen)

    def _call(self, number: int, op: Op, is_last: bool) -> str:
        match op:
            case Lookup():
                x = "image" if op.x == IMAGE else self._at(op.x)
                sizes = f"{math.prod(self.shapes[op.x])}, {len(op.table)}"
                return f"lookup({x}, table_{number}, {sizes}, {self._at(op.out)});"
            case Concat():
                return "\n        ".join(["{", *self._copies(op)]) + "\n    }"
            case Requantize():
                return f"requantize(&step_{number}, choice, {self._at(op.out)});"
            case Scale():
                return f"scale(&step_{number}, choice, {'logits' if is_last else 'scores'});"
            case Choose():
                return "choose(scores, choice + DQT_EARLY);"
            case MaxPool():
                window = op.kernel, op.stride, op.padding, *self.shapes[op.out][:2]
                shape = *self.shapes[op.x], int(self._is_signed(op.x)), *window
                return f"max_pool({self._at(op.x)}, {', '.join(map(str, shape))}, {self._at(op.out)});"
            case Conv() | SumPool() | Product():
                raise AssertionError("convolutions and sums are part of the step that reads them")

    def _copies(self, op: Concat) -> Iterator[str]:
        """A copy of every part."""
        height, width, depth = self.shapes[op.out]
        first = self.offsets[op.out]
        for name in op.parts:
            channels = self.shapes[name][2]
            sizes = f"{height * width}, {channels}, {depth}"
            yield f"copy_channels({self._at(name)}, {sizes}, memory + {first});"
            first += channels


PROTOTYPE = """\
int dqt_run(const uint8_t image[DQT_HEIGHT * DQT_WIDTH * DQT_CHANNELS],
            const uint8_t {widths}, int64_t logits[DQT_CLASSES],
            uint8_t {chosen})"""
BEGIN = (
    "    uint8_t choice[DQT_LAYERS + 1]{unread};",
    "    int32_t i, undecided = given_choices(widths, choice);",
    *("    if (undecided < 0)", "        return -1;"),
)
END = (
    "    for (i = 0; chosen && i < DQT_LAYERS * DQT_WIDTHS; i++)",
    "        chosen[i] = choices[choice[i / DQT_WIDTHS]][i % DQT_WIDTHS];",
    *("    return 0;", "}"),
)


def _braced(items: Sequence[Any] | NDArray[Any]) -> str:
    return "{" + ", ".join(map(str, items)) + "}"


def _array(declaration: str, items: Sequence[Any]) -> str:
    """A constant array in lines of bearable length."""
    lines, line = [], ""
    for item in items:
        text = f"{item}, "
        if len(text) > COLUMNS:
            *broken, text = (f"{part} " for part in textwrap.wrap(text, COLUMNS))
            lines += [part.rstrip() for part in (line, *broken) if part]
            line = ""
        if len(line) + len(text) > COLUMNS:
            lines.append(line.rstrip())
            line = ""
        line += text
    return "\n".join([f"{declaration} = {{", *lines, line.rstrip(" ,") + "};"])
