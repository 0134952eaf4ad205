"""The operations of a program: what each one holds and what it reads. `integer` says what it computes."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core import integer

Choice: TypeAlias = tuple[int, int]
Shape: TypeAlias = tuple[int, int, int]

IMAGE = "image"
LATER = {"is later": True}  # a field that older files lack: one at its default is not written


@dataclass(frozen=True, eq=False)
class Lookup:
    """Any function of one byte: ``table[channel, byte]``, or ``table[0, byte]`` for all channels.

    The first one makes codes of the image's bytes, and holds the normalisation; the others are activations.

    table : codes, int8 or uint8 (C, 256) or (1, 256); the byte of a negative code q is q + 256

    Examples
    --------
    >>> relu = np.maximum(np.arange(256).astype(np.uint8).view(np.int8), 0)[None]
    >>> op = Lookup(relu, out="y", x="x")
    >>> integer.lookup(np.array([[[[-5, 7]]]], np.int8), op.table).tolist()
    [[[[0, 7]]]]
    """

    table: NDArray[Any]
    out: str
    x: str = IMAGE
    controller: bool = False


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution of codes at a layer's widths; a linear layer is a 1x1 convolution of a 1x1 image.

    weight : int8 master codes (O, kernel height, kernel width, I / groups)
    layer : number among the switchable layers; None: always 8 bits

    Examples
    --------
    >>> weight = np.ones((16, 3, 3, 8), np.int8)
    >>> op = Conv("layer", weight, stride=2, padding=1, groups=1, layer=0, x="x", out="y")
    >>> out_shape(op, (32, 32, 8))
    (16, 16, 16)
    """

    name: str
    weight: NDArray[np.int8]
    stride: int
    padding: int
    groups: int
    layer: int | None
    x: str
    out: str
    controller: bool = False


@dataclass(frozen=True, eq=False)
class Term:
    """One addend of `Requantize` or `Scale`.

    multiplier : int32 (K, C), a row for every choice of widths, or one row
    offset : int64 (K, C), at the scale 2**r
    layer : the switchable layer whose choice picks the row and the shift; None: row 0, no shift

    Examples
    --------
    >>> term = Term("sums", np.array([[3], [5]], np.int32), np.zeros((2, 1), np.int64), layer=0)
    >>> term.multiplier[1]  # of the second choice of widths
    array([5], dtype=int32)
    """

    x: str
    multiplier: NDArray[np.int32]
    offset: NDArray[np.int64]
    layer: int | None


@dataclass(frozen=True, eq=False)
class Requantize:
    """A sum of terms, rounded once to master codes, see `integer.requantize`.

    Examples
    --------
    >>> term = Term("sums", np.array([[3]], np.int32), np.array([[0]], np.int64), layer=None)
    >>> op = Requantize((term,), r=4, lo=0, hi=255, out="codes")
    >>> sums = np.array([[[[100]], [[-100]]]], np.int32)
    >>> integer.requantize([(sums, 0, term.multiplier)], term.offset, op.r, op.lo, op.hi).ravel()
    array([19,  0], dtype=uint8)
    """

    terms: tuple[Term, ...]
    r: int
    lo: int
    hi: int
    out: str
    controller: bool = False


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Largest code of every window; with `ceil` also of a last one that begins inside and ends outside.

    Examples
    --------
    >>> [out_shape(MaxPool(2, 2, 0, "x", "y", ceil=ceil), (5, 5, 8)) for ceil in (False, True)]
    [(2, 2, 8), (3, 3, 8)]
    """

    kernel: int
    stride: int
    padding: int
    x: str
    out: str
    controller: bool = False
    ceil: bool = dataclasses.field(default=False, metadata=LATER)


@dataclass(frozen=True, eq=False)
class SumPool:
    """Sum of codes over height and width.

    Examples
    --------
    >>> out_shape(SumPool("x", "y"), (4, 4, 512))
    (1, 1, 512)
    """

    x: str
    out: str
    controller: bool = False


@dataclass(frozen=True, eq=False)
class Concat:
    """Codes of several values, all of one type and step, side by side in the channels.

    Examples
    --------
    >>> out_shape(Concat(("a", "b"), "y"), (4, 4, 8), (4, 4, 16))
    (4, 4, 24)
    """

    parts: tuple[str, ...]
    out: str
    controller: bool = False


@dataclass(frozen=True, eq=False)
class Product:
    """Codes times codes, exact; ``y`` has the shape of ``x``, or is one pixel that multiplies all of them.

    Examples
    --------
    >>> inputs(Product("maps", "gates", "y"))
    ('maps', 'gates')
    """

    x: str
    y: str
    out: str
    controller: bool = False


@dataclass(frozen=True, eq=False)
class Scale:
    """Logits at a common scale: ``acc * M + B`` in int64; times 2**-r they are the real logits.

    Examples
    --------
    >>> term = Term("sums", np.array([[3]], np.int32), np.array([[8]], np.int64), layer=None)
    >>> op = Scale(term, r=4, out="logits")
    >>> integer.scale(np.array([[[[100]]]], np.int32), term.multiplier[0], term.offset[0]).item() * 2**-op.r
    19.25
    """

    term: Term
    r: int
    out: str
    controller: bool = False


@dataclass(frozen=True, eq=False)
class Choose:
    """The controller's decision: argmax over the choices for every layer, ties to the narrower.

    layers : how many it decides, the last ones
    before : for every layer in front of them, the choice that it has where the controller decides

    Examples
    --------
    >>> from dqt_core import load
    >>> [op.layers for op in load("digits").ops if isinstance(op, Choose)]
    [19]
    """

    layers: int
    x: str
    controller: bool = True
    before: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)


Op: TypeAlias = Lookup | Conv | Requantize | MaxPool | SumPool | Concat | Product | Scale | Choose
KINDS = Lookup, Conv, Requantize, MaxPool, SumPool, Concat, Product, Scale, Choose


def inputs(op: Op) -> tuple[str, ...]:
    """Names of the values an operation reads.

    Parameters
    ----------
    op : operation

    Returns
    -------
    tuple of str
        In the order of its fields.

    Examples
    --------
    >>> inputs(MaxPool(2, 2, 0, "x", "y")), inputs(Concat(("a", "b"), "y"))
    (('x',), ('a', 'b'))
    """
    match op:
        case Requantize():
            return tuple(term.x for term in op.terms)
        case Scale():
            return (op.term.x,)
        case Concat():
            return op.parts
        case Product():
            return op.x, op.y
        case _:
            return (op.x,)


def out_shape(op: Op, x: Shape, *others: Shape) -> Shape:
    """(H, W, C) of what an operation makes of values of some shapes, in the order of `inputs`.

    Parameters
    ----------
    op : operation
    x, *others : (H, W, C)

    Returns
    -------
    (H, W, C)

    Examples
    --------
    >>> out_shape(MaxPool(kernel=3, stride=2, padding=1, x="x", out="y"), (8, 7, 16))
    (4, 4, 16)
    """
    match op:
        case Conv():
            kernel = op.weight.shape[1], op.weight.shape[2]
            return *_window_counts(x, kernel, op.stride, op.padding), len(op.weight)
        case MaxPool():
            return *_window_counts(x, (op.kernel, op.kernel), op.stride, op.padding, op.ceil), x[2]
        case SumPool():
            return 1, 1, x[2]
        case Concat():
            return *x[:2], x[2] + sum(other[2] for other in others)
        case _:
            return x


def _window_counts(
    x: Shape, kernel: tuple[int, int], stride: int, padding: int, ceil: bool = False
) -> tuple[int, int]:
    height, width = (integer.window_count(x[i], kernel[i], stride, padding, ceil) for i in range(2))
    return height, width


def stored(value: Any) -> Any:
    """An operation, or a tuple of them, as a program keeps it: its arrays cannot change any more.

    Parameters
    ----------
    value : tuple, operation, array or anything else

    Returns
    -------
    the same
        Arrays of integers are contiguous, little-endian, read-only and nobody else's; others are copied.

    Examples
    --------
    >>> table = np.zeros((3, 256), np.int8)
    >>> kept = stored(Lookup(table, "codes"))
    >>> table[:] = 1
    >>> int(kept.table.max()), kept.table.flags.writeable
    (0, False)
    """
    if isinstance(value, np.ndarray):
        return _stored_array(value)
    if type(value) is tuple:
        items = tuple(stored(item) for item in value)
        is_same = all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else items
    if type(value) not in (*KINDS, Term):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        if (new := stored(old)) is not old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def _stored_array(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "iu":
        return array  # is refused for its type
    dtype, flags = array.dtype.newbyteorder("<"), array.flags
    is_own = type(array) is np.ndarray and array.base is None and not flags.writeable
    if is_own and flags.c_contiguous and array.dtype == dtype:
        return array
    copy = np.array(array, dtype, order="C", subok=False)
    copy.setflags(write=False)
    return copy
