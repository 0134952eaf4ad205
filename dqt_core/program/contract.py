"""What makes a program a program: all that a backend relies on, checked where one is made or loaded.

Whoever runs or exports a `Program` checks nothing of it again. What is accepted here gives the same bits on
every backend and reads nothing outside its arrays; what is refused is named in one sentence.

- A value is made once, before it is read, and read at least once; the logits, made by the last operation, a
  Scale, are the result. One Lookup, the first operation, reads the image.
- Convolutions, pools, look-ups, concatenations and products read codes, a requantize codes and sums of one
  shape, a scale the sums of one pixel.
- A switchable layer is one convolution, called as the program's list of layers says.
- The controller's values are read by the controller alone. Its one `Choose` comes before what it decides.
- No sum leaves 32 bits, and none of a requantize or a scale 62, at any choice of widths.
- No array is larger than a network needs: a number that was mistyped ends in an error, not in the swap.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import integer
from dqt_core.nested import MASTER_WIDTH, Rounding
from dqt_core.program import bounds
from dqt_core.program.header import require_header
from dqt_core.program.operations import (
    IMAGE,
    KINDS,
    Choice,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Product,
    Requantize,
    Scale,
    Shape,
    SumPool,
    Term,
    out_shape,
)
from dqt_core.program.refusal import LARGEST_VALUE, Place, ProgramError, place

LARGEST_WINDOWS = 2**28  # codes under all windows of a convolution, which the reference collects as int32
LARGEST_WEIGHT = 2**28
LARGEST_KERNEL = 16  # of a convolution of windows: the GPU's has 32 bits for the rows and columns of one
LARGEST_STRIDE = 2**12
MOST_TERMS = 3  # of a requantize: what the GPU's kernel takes
RESERVED = "image", "images", "logits"  # inputs and output of exported files; the logits have the last's name
LAST = "logits"


@dataclass(frozen=True)
class Value:
    """What is known of a value before any image is seen.

    Attributes
    ----------
    shape : (H, W, C)
    dtype : numpy.dtype
        uint8 or int8 codes, int32 sums, int64 logits.
    largest : tuple of int
        The largest magnitude, at every choice of `layer`, or one for all.
    layer : int or None
        The switchable layer that made it.
    controller : bool
        Whether it is the controller's own.
    """

    shape: Shape
    dtype: np.dtype[Any]
    largest: tuple[int, ...]
    layer: int | None = None
    controller: bool = False

    @property
    def kind(self) -> str:
        """What its numbers are: "codes", "sums" or "logits"."""
        return {1: "codes", 4: "sums", 8: "logits"}[self.dtype.itemsize]


def require_program(
    name: str,
    ops: tuple[Op, ...],
    choices: tuple[Choice, ...],
    layers: tuple[str, ...],
    image_shape: Shape,
    rounding: Rounding,
) -> dict[str, Value]:
    """Check the fields of a program.

    Parameters
    ----------
    name, ops, choices, layers, image_shape, rounding
        As those of `Program`.

    Returns
    -------
    dict of name to Value
        Everything the program computes, the image included, in order.

    Raises
    ------
    ProgramError
        If anything is not as this module says.

    Examples
    --------
    >>> require_program("empty", (), ((8, 8),), (), (1, 1, 3), "half_up")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dqt_core.program.refusal.ProgramError: the program: ops is (), expected a tuple of operations; ...
    """
    at = require_header(name, choices, layers, image_shape, rounding)
    if type(ops) is not tuple or not ops:
        at.refuse("ops", ops, "a tuple of operations")
    return _Walk(ops, choices, layers, image_shape, rounding).values


class _Walk:
    """The operations in order, with what is known of every value so far."""

    def __init__(
        self,
        ops: tuple[Op, ...],
        choices: tuple[Choice, ...],
        layers: tuple[str, ...],
        image_shape: Shape,
        rounding: Rounding,
    ) -> None:
        self.choices, self.layers, self.is_floor = choices, layers, rounding == "floor"
        self.shifts = bounds.shifts(choices, self.is_floor)
        # The bound of a sum is the same at every pair of widths: it is that of the masters without a sign.
        self.longest = bounds.largest_product((MASTER_WIDTH, MASTER_WIDTH), False, self.is_floor)
        self.values = {IMAGE: Value(image_shape, np.dtype(np.uint8), (255,))}
        self.unread = {IMAGE}
        self.names: set[str] = set()  # of convolutions
        self.left = set(range(len(layers)))  # layers without a convolution so far
        decision = next((op for op in ops if type(op) is Choose), None)
        self.is_undecided = decision is not None
        self.early = len(decision.before) if decision and type(decision.before) is tuple else 0  # layers
        for number, op in enumerate(ops):
            self.add(place(number, op), op, number == 0, number == len(ops) - 1)
        self.finish(place(len(ops) - 1, ops[-1]), ops[-1])

    def add(self, at: Place, op: Op, is_first: bool, is_last: bool) -> None:
        if type(op) not in KINDS:
            at.refuse("an operation", op, f"one of {', '.join(kind.__name__ for kind in KINDS)}")
        if type(op.controller) is not bool:
            at.refuse("controller", op.controller, "a bool")
        if (isinstance(op, Lookup) and op.x == IMAGE) != is_first:
            at.refuse(
                "its place", "first" if is_first else "later", "a Lookup of the image first, and no other"
            )
        if isinstance(op, Choose):
            self.choose(at, op)
            return
        at.name("out", op.out)
        if op.out in self.values or (op.out in RESERVED and not (is_last and op.out == LAST)):
            at.refuse(
                "out", op.out, f"a name of its own, not one of {', '.join(RESERVED)}", "rename the value"
            )
        value = self.made(at, op)
        at.size("its result", value.shape)
        self.values[op.out] = replace(value, controller=op.controller)
        self.unread.add(op.out)

    def made(self, at: Place, op: Op) -> Value:
        match op:
            case Lookup():
                return self.lookup(at, op)
            case Conv():
                return self.conv(at, op)
            case Requantize():
                return self.requantize(at, op)
            case MaxPool():
                return self.max_pool(at, op)
            case SumPool():
                return self.sum_pool(at, op)
            case Concat():
                return self.concat(at, op)
            case Product():
                return self.product(at, op)
            case Scale():
                return self.scale(at, op)
            case Choose():
                raise AssertionError("Choose makes no value")

    def finish(self, at: Place, last: Op) -> None:
        if not isinstance(last, Scale) or last.controller:
            at.refuse(
                "the last operation", type(last).__name__, "the Scale of the logits, not the controller's"
            )
        if unread := self.unread - {last.out}:
            name = min(unread)
            at.refuse(
                "the last reader of a value", name, f"one for {name!r}, which is never read", "remove it"
            )
        if self.left:
            name = self.layers[min(self.left)]
            at.refuse("a layer", name, "a convolution of that name and number", "remove it from layers")

    def read(self, at: Place, op: Op, name: object, *kinds: str) -> Value:
        """A value that is there already, of one of some kinds."""
        if type(name) is not str or name not in self.values:
            at.refuse("a name it reads", name, "a value made before", "reorder or rename")
        value = self.values[name]
        if value.controller and not op.controller:
            at.refuse("a name it reads", name, "no value of the controller's", "set its `controller`")
        kind = IMAGE if name == IMAGE else value.kind
        if kind not in kinds:
            at.refuse("a name it reads", name, f"{' or '.join(kinds)}, and these are {kind}")
        self.unread.discard(name)
        return value

    def use(self, at: Place, op: Op, layer: int | None) -> None:
        """A layer whose choice must be known here."""
        if layer is None:
            return
        at.integer("layer", layer, 0, len(self.layers) - 1)
        if op.controller or (self.is_undecided and layer >= self.early):
            at.refuse("layer", layer, "none before the controller has chosen", "move the controller up")

    def lookup(self, at: Place, op: Lookup) -> Value:
        x = self.read(at, op, op.x, IMAGE, "codes")
        dtype = np.uint8 if getattr(op.table, "dtype", None) == np.uint8 else np.int8
        shapes = (1, 256), (x.shape[2], 256)
        at.array("table", op.table, dtype, " or ".join(map(str, shapes)), shapes.__contains__)
        return Value(x.shape, np.dtype(dtype), (bounds.largest_code(dtype == np.int8),))

    def conv(self, at: Place, op: Conv) -> Value:
        x, weight = self.read(at, op, op.x, "codes"), op.weight
        at.array("weight", weight, np.int8, "(O, height, width, I / groups)", lambda shape: len(shape) == 4)
        if not 0 < weight.size <= LARGEST_WEIGHT:
            at.refuse("weight", weight, f"1 to {LARGEST_WEIGHT} codes")
        outputs, height, width, inputs = weight.shape
        is_whole = (height, width) == x.shape[:2] and (op.padding, op.groups) == (0, 1)
        if max(height, width) > LARGEST_KERNEL and not is_whole:
            whole = f"{x.shape[0]}x{x.shape[1]}, as its input"
            at.refuse("weight", weight, f"a kernel of at most {LARGEST_KERNEL} rows and columns, or {whole}")
        at.integer("groups", op.groups, 1, x.shape[2])
        if inputs * op.groups != x.shape[2] or outputs % op.groups:
            fitting = f"{x.shape[2]} input channels in {op.groups} groups, which also share the outputs"
            at.refuse("weight", weight, fitting)
        _require_sum(at, height * width * inputs, self.longest)
        _require_window(at, op.stride, op.padding, x.shape, (height, width))
        shape = out_shape(op, x.shape)
        if shape[0] * shape[1] * height * width * x.shape[2] > LARGEST_WINDOWS:
            at.refuse("its result", shape, f"at most {LARGEST_WINDOWS} codes under its windows")
        self._require_own_layer(at, op)
        widths = ((MASTER_WIDTH, MASTER_WIDTH),) if op.layer is None else self.choices
        products = [bounds.largest_product(pair, x.dtype == np.int8, self.is_floor) for pair in widths]
        largest = tuple(height * width * inputs * product for product in products)
        return Value(shape, np.dtype(np.int32), largest, op.layer)

    def _require_own_layer(self, at: Place, op: Conv) -> None:
        at.name("name", op.name)
        if op.name in self.names:
            at.refuse("name", op.name, "another name for every convolution", "rename it")
        self.names.add(op.name)
        self.use(at, op, op.layer)
        if op.layer is None:
            return
        if op.layer not in self.left:
            at.refuse("layer", op.layer, "one convolution for every layer")
        self.left.remove(op.layer)
        if op.name != self.layers[op.layer]:
            called = f"{self.layers[op.layer]!r}, as layer {op.layer} is called"
            at.refuse("name", op.name, called, "rename it")

    def max_pool(self, at: Place, op: MaxPool) -> Value:
        x = self.read(at, op, op.x, "codes")
        at.integer("kernel", op.kernel, 1, LARGEST_VALUE)
        at.integer("padding", op.padding, 0, op.kernel // 2)  # torch takes no more
        if type(op.ceil) is not bool:
            at.refuse("ceil", op.ceil, "a bool")
        _require_window(at, op.stride, op.padding, x.shape, (op.kernel, op.kernel))
        return Value(out_shape(op, x.shape), x.dtype, x.largest)

    def sum_pool(self, at: Place, op: SumPool) -> Value:
        x = self.read(at, op, op.x, "codes")
        pixels = x.shape[0] * x.shape[1]
        _require_sum(at, pixels, x.largest[0])
        return Value(out_shape(op, x.shape), np.dtype(np.int32), (pixels * x.largest[0],))

    def concat(self, at: Place, op: Concat) -> Value:
        if type(op.parts) is not tuple or len(op.parts) < 2:
            at.refuse("parts", op.parts, "a tuple of 2 names or more")
        parts = [self.read(at, op, name, "codes") for name in op.parts]
        kinds = [(*part.shape[:2], part.dtype.name) for part in parts]
        if len(set(kinds)) != 1:
            at.refuse("(height, width, type) of its parts", kinds, "equal ones", "requantize the parts")
        return Value(out_shape(op, *(part.shape for part in parts)), parts[0].dtype, parts[0].largest)

    def product(self, at: Place, op: Product) -> Value:
        x, y = (self.read(at, op, name, "codes") for name in (op.x, op.y))
        if y.shape not in (x.shape, (1, 1, x.shape[2])):
            at.refuse("the shape of y", y.shape, f"{x.shape} or {(1, 1, x.shape[2])}")
        return Value(x.shape, np.dtype(np.int32), (x.largest[0] * y.largest[0],))

    def requantize(self, at: Place, op: Requantize) -> Value:
        if type(op.terms) is not tuple or not 1 <= len(op.terms) <= MOST_TERMS:
            at.refuse("terms", op.terms, f"a tuple of 1 to {MOST_TERMS} terms", "add in two steps")
        for limit in (op.lo, op.hi):
            at.integer("a limit of the clamp", limit, -128, 255)
        highest = 255 if op.lo >= 0 else 127
        if not op.lo <= op.hi <= highest:
            at.refuse("the clamp", (op.lo, op.hi), "lo <= hi within -128..127 or 0..255")
        at.integer("r", op.r, 1, integer.LARGEST_SHIFT)
        shape = self.sum_of(at, op, op.terms, 1 << (op.r - 1), "codes", "sums")
        is_signed = op.lo < 0
        return Value(shape, np.dtype(np.int8 if is_signed else np.uint8), (128 if is_signed else 255,))

    def scale(self, at: Place, op: Scale) -> Value:
        at.integer("r", op.r, 1, integer.LARGEST_SHIFT)
        shape = self.sum_of(at, op, (op.term,), 0, "sums")
        if op.term.layer is not None:
            at.refuse("layer", op.term.layer, "None: logits have one scale at all widths")
        if shape[:2] != (1, 1):
            pixel = "the sums of one pixel, (1, 1, C)"
            at.refuse("what it reads", shape, pixel, "pool before the last layer")
        return Value(shape, np.dtype(np.int64), (integer.SUM_LIMIT,))

    def choose(self, at: Place, op: Choose) -> None:
        if not self.is_undecided or not op.controller:
            at.refuse("its place", op, "one Choose, with controller=True")
        scores = self.read(at, op, op.x, "logits")
        if not scores.controller:
            at.refuse("a name it reads", op.x, "scores of the controller's own")
        at.integers("before", op.before, 0, len(self.choices) - 1)
        at.integer("layers", op.layers, 1, len(self.layers))
        left = len(self.layers) - self.early
        got, wanted = (op.layers, scores.shape[2]), (left, left * len(self.choices))
        if got != wanted:
            at.refuse("(layers, scores)", got, f"{wanted}, a score for every layer and choice")
        self.is_undecided = False

    def sum_of(self, at: Place, op: Op, terms: tuple[Term, ...], half: int, *kinds: str) -> Shape:
        """The shape of a sum of terms, which stays within 62 bits."""
        total: NDArray[np.int64] = np.full(1, half, np.int64)
        shapes = []
        for term in terms:
            if type(term) is not Term:
                at.refuse("a term", term, "a Term")
            x = self.read(at, op, term.x, *kinds)
            self.use(at, op, term.layer)
            self._require_tables(at, term, x.shape[2])
            shapes.append(x.shape)
            # Two numbers below 2**62 add up to less than 2**63
            total = total + self._largest_term(at, term, x)
            if (total >= integer.SUM_LIMIT).any():
                at.refuse(
                    "its largest sum", int(total.max()), "less than 2**62", "lower r and the multipliers"
                )
        if len(set(shapes)) != 1:
            at.refuse("the shapes of its terms", shapes, "equal ones")
        return shapes[0]

    def _require_tables(self, at: Place, term: Term, channels: int) -> None:
        rows = (1,) if term.layer is None else (1, len(self.choices))
        for what, table, dtype in (
            ("multiplier", term.multiplier, np.int32),
            ("offset", term.offset, np.int64),
        ):
            shapes = {(row, column) for row in rows for column in (1, channels)}
            at.array(what, table, dtype, f"of a shape among {sorted(shapes)}", shapes.__contains__)

    def _largest_term(self, at: Place, term: Term, x: Value) -> NDArray[np.int64]:
        """The largest magnitudes of a term's products and offset together, for every channel."""
        for what, table, limit in (
            ("multiplier", term.multiplier, integer.ACCUMULATOR_LIMIT),
            ("offset", term.offset, integer.SUM_LIMIT),
        ):
            if not -limit < table.min() <= table.max() < limit:
                extreme = int(table.min()), int(table.max())
                at.refuse(f"the range of a {what}", extreme, f"magnitudes below {limit}")
        largest = [max(x.largest)]
        if term.layer is not None:
            own = x.largest if x.layer == term.layer else largest * len(self.choices)
            largest = [a << d for a, d in zip(own, self.shifts, strict=True)]
        if max(largest) >= integer.ACCUMULATOR_LIMIT:
            at.refuse(
                f"{term.x} with its dropped bits", max(largest), "less than 2**31", "read its own layer"
            )
        return bounds.largest_terms(term, largest)


def _require_sum(at: Place, terms: int, largest: int) -> None:
    if reason := bounds.too_long(terms, largest):
        raise ProgramError(f"{at.text}: {reason}")


def _require_window(at: Place, stride: int, padding: int, x: Shape, kernel: tuple[int, int]) -> None:
    at.integer("stride", stride, 1, LARGEST_STRIDE)
    at.integer("padding", padding, 0, LARGEST_VALUE)
    padded = x[0] + 2 * padding, x[1] + 2 * padding, x[2]
    at.size("its padded input", padded)
    if padded[0] < kernel[0] or padded[1] < kernel[1]:
        at.refuse("its padded input", padded, f"one that holds a window of {kernel[0]}x{kernel[1]}")
