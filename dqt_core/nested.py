"""Nested codes: an 8-bit master code that holds every lower width in its top bits.

A master code is int8 (signed, -128..127) or uint8 (unsigned, 0..255); its real value is ``step * code``. A
view of `width` bits drops the ``8 - width`` low bits of the master, so its step is ``step * 2**(8 - width)``.
Switching precision is one shift. This module is the definition: every other implementation in the package
returns the same bits or is wrong.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

MASTER_WIDTH = 8

Codes: TypeAlias = NDArray[np.int8] | NDArray[np.uint8]
Steps: TypeAlias = NDArray[np.float64]
Planes: TypeAlias = NDArray[np.uint8]
Rounding: TypeAlias = Literal["half_up", "floor"]


def code_range(width: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code of a width.

    Parameters
    ----------
    width : int
        Bits, 1..8.
    signed : bool
        Two's complement if true.

    Returns
    -------
    tuple of two ints

    Raises
    ------
    ValueError
        If the width is not in 1..8.

    Examples
    --------
    >>> code_range(8, signed=True), code_range(2, signed=False)
    ((-128, 127), (0, 3))
    """
    width = require_width(width)
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)


def quantize(
    x: ArrayLike,
    signed: bool = True,
    axis: int | None = None,
    step: ArrayLike | None = None,
) -> tuple[Codes, Steps]:
    """Turn real numbers into master codes, rounding to nearest with ties up.

    Parameters
    ----------
    x : float array, any shape
        Finite.
    signed : bool
        int8 codes if true, uint8 codes if false (negative numbers then become 0).
    axis : int, optional
        Axis that has a step for each index (0 for the output channels of a weight). None: one step.
    step : float array, optional
        Positive, broadcastable to `x`, with an axis to (1, ..., n, ..., 1). None: the largest magnitude
        (for each index of `axis`) becomes the highest code.

    Returns
    -------
    codes : int8 or uint8 array
        The shape of `x`.
    step : float64 array
        A given step as it came; otherwise shape (1, ..., n, ..., 1) for an axis of n, else ().

    Raises
    ------
    ValueError
        If `x` or `step` is not finite, a step is not positive, or its shape or the axis does not fit.

    Notes
    -----
    ``clamp(floor(x / step + 1/2))`` in float64. DQT, Eqs. 3-4 for the nesting; sign and granularity are this
    package's.

    Examples
    --------
    >>> codes, step = quantize([-1.0, 0.25, 1.27], step=0.01)
    >>> codes
    array([-100,   25,  127], dtype=int8)
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise ValueError(
            f"quantize needs finite numbers, got {np.count_nonzero(~np.isfinite(x))} NaN or infinite"
        )
    lo, hi = code_range(MASTER_WIDTH, signed)
    shape = x.shape if axis is None else _step_shape(x, axis)
    step = _largest_magnitude(x, axis) / hi if step is None else _fitting(np.asarray(step, np.float64), shape)
    if not (np.isfinite(step).all() and (step > 0).all()):
        raise ValueError(f"every step must be finite and positive, got {step.min()}..{step.max()}")
    with np.errstate(over="ignore"):  # a quotient beyond float64 is clamped like any other
        codes = np.clip(np.floor(x / step + 0.5), lo, hi)
    return _as_codes(codes, signed), step


def switch(codes: Codes, width: int, signed: bool | None = None, rounding: Rounding = "half_up") -> Codes:
    """The `width`-bit codes of master codes, by one shift.

    Always call it on the master: with half_up, 8 -> 4 -> 2 is not 8 -> 2.

    Parameters
    ----------
    codes : int8 or uint8 array
        Master codes; int8 is signed.
    width : int
        Bits of the result, 1..8.
    signed : bool, optional
        Stated for the reader; must agree with the dtype.
    rounding : {"half_up", "floor"}
        half_up adds the top dropped bit after the shift, except where that would overflow.

    Returns
    -------
    int8 or uint8 array
        Dtype and shape of `codes`; values in ``code_range(width, signed)``.

    Raises
    ------
    TypeError
        If `codes` is neither int8 nor uint8, or `signed` contradicts it.
    ValueError
        If the width or the rounding is unknown.

    Notes
    -----
    DQT, Eq. 4: ``q_b = (q >> d) + epsilon``.

    Examples
    --------
    >>> master = np.array([0b01011000, 0b11111111], np.uint8)
    >>> [format(code, "04b") for code in switch(master, 4)]
    ['0110', '1111']
    >>> [format(code, "04b") for code in switch(master, 4, rounding="floor")]
    ['0101', '1111']
    """
    is_signed = require_codes(codes, "switch")
    if signed is not None and signed != is_signed:
        raise TypeError(f"signed={signed} was given with {codes.dtype} codes; int8 is signed, uint8 is not")
    width = require_width(width)
    require_rounding(rounding)
    drop = MASTER_WIDTH - width
    if drop == 0:
        return codes.copy()
    wide = codes.astype(np.int16)
    if rounding == "half_up":
        wide = np.minimum(wide + (1 << (drop - 1)), code_range(width, is_signed)[1] << drop)
    return _as_codes(wide >> drop, is_signed)


def dequantize(
    codes: Codes, step: ArrayLike, width: int = MASTER_WIDTH, rounding: Rounding = "half_up"
) -> NDArray[np.float64]:
    """The real value of codes of a width.

    Parameters
    ----------
    codes : int8 or uint8 array
        As `switch` returns them.
    step : float array
        The master's step, broadcastable to `codes`.
    width : int
        Bits, 1..8.
    rounding : {"half_up", "floor"}
        For signed floor codes (weights) the value is the middle of the bin, (2**d - 1) / 2 master steps up.

    Returns
    -------
    float64 array

    Raises
    ------
    TypeError
        If `codes` is neither int8 nor uint8.
    ValueError
        If the width or the rounding is unknown, or a code is too large for the width.

    Examples
    --------
    >>> dequantize(np.array([-2, 1], np.int8), 0.5, width=2).tolist()
    [-64.0, 32.0]
    """
    is_signed = require_codes(codes, "dequantize")
    width = require_width(width)
    require_rounding(rounding)
    require_view(codes, width)
    scale = 1 << (MASTER_WIDTH - width)
    middle = (scale - 1) / 2 if rounding == "floor" and is_signed else 0.0
    return np.asarray(step, np.float64) * (codes.astype(np.float64) * scale + middle)


def to_planes(codes: Codes) -> Planes:
    """Store master codes as eight bit planes.

    Parameters
    ----------
    codes : int8 or uint8 array, (..., n)

    Returns
    -------
    uint8 array, (8, ..., ceil(n / 8))
        Plane 0 holds the most significant bits, eight codes a byte, the first code in the top bit. The last
        byte is filled with zeros.

    Raises
    ------
    TypeError
        If `codes` is neither int8 nor uint8.
    ValueError
        If `codes` has no axis.

    Examples
    --------
    >>> to_planes(np.array([128, 0, 129], np.uint8))[[0, 7]]
    array([[160],
           [ 32]], dtype=uint8)
    """
    require_codes(codes, "to_planes")
    if codes.ndim == 0:
        raise ValueError("to_planes packs codes along their last axis, got a single code; reshape it to (1,)")
    bits = (codes.view(np.uint8) >> _plane_shifts(MASTER_WIDTH, codes.ndim)) & 1
    return np.packbits(bits, axis=-1)


def from_planes(
    planes: Planes,
    width: int = MASTER_WIDTH,
    signed: bool = True,
    rounding: Rounding = "floor",
    length: int | None = None,
) -> Codes:
    """Read codes of a width back from bit planes, touching no plane below those it needs.

    Parameters
    ----------
    planes : uint8 array, (at least width, ..., m)
        As `to_planes` makes them; lower planes may be left out.
    width : int
        Bits, 1..8.
    signed : bool
        Whether the master was int8.
    rounding : {"floor", "half_up"}
        floor reads `width` planes; half_up reads one more, which holds the top dropped bit.
    length : int, optional
        Codes along the last axis, up to 8 * m; None: 8 * m.

    Returns
    -------
    int8 or uint8 array, (..., length)
        Equal to ``switch(master, width, rounding=rounding)``.

    Raises
    ------
    TypeError
        If `planes` is not uint8.
    ValueError
        If there are too few planes or codes, or the width or the rounding is unknown.

    Examples
    --------
    >>> planes = to_planes(np.arange(-4, 4, dtype=np.int8) * 16)
    >>> from_planes(planes[:4], width=4)
    array([-4, -3, -2, -1,  0,  1,  2,  3], dtype=int8)
    """
    width = require_width(width)
    require_rounding(rounding)
    needed = min(width + (rounding == "half_up"), MASTER_WIDTH)
    _require_planes(planes, needed, length, f"{rounding} at width {width}")
    bits = np.unpackbits(planes[:needed], axis=-1, count=length)
    top_bits = (bits << _plane_shifts(needed, bits.ndim - 1)).sum(axis=0, dtype=np.uint8)
    return switch(top_bits.view(np.int8 if signed else np.uint8), width, rounding=rounding)


def require_width(width: int) -> int:
    """Raise ValueError unless the width is an integer in 1..8; return it as a Python int.

    Parameters
    ----------
    width : int
        1..8; NumPy's integers too.

    Returns
    -------
    int

    Examples
    --------
    >>> require_width(np.uint8(4))
    4
    >>> require_width(9)
    Traceback (most recent call last):
    ValueError: width 9 is outside 1..8: a view keeps 1 to 8 bits of the master
    """
    if isinstance(width, bool) or not isinstance(width, int | np.integer) or not 1 <= width <= MASTER_WIDTH:
        raise ValueError(f"width {width!r} is outside 1..8: a view keeps 1 to 8 bits of the master")
    return int(width)  # 1 << np.uint8(8) is 0, while 1 << 8 is 256


def require_codes(codes: Codes, caller: str) -> bool:
    """Raise TypeError unless `codes` is an int8 or uint8 array; return whether it is signed.

    Parameters
    ----------
    codes : int8 or uint8 array
    caller : str
        Who asks, for the message.

    Returns
    -------
    bool

    Examples
    --------
    >>> require_codes(np.zeros(3, np.uint8), "switch")
    False
    """
    dtype = getattr(codes, "dtype", type(codes).__name__)
    if dtype not in (np.int8, np.uint8):
        raise TypeError(f"{caller} needs int8 or uint8 codes, got {dtype}; make them with nested.quantize")
    return bool(dtype == np.int8)


def require_view(codes: Codes, width: int) -> None:
    """Raise ValueError unless every code fits the width, as after `switch`.

    Examples
    --------
    >>> require_view(np.array([15], np.uint8), 4)
    """
    lo, hi = code_range(width, codes.dtype == np.int8)
    if codes.size and not lo <= codes.min() <= codes.max() <= hi:
        raise ValueError(
            f"codes {codes.min()}..{codes.max()} are outside {lo}..{hi} at width {width}; switch them first"
        )


def require_rounding(rounding: str) -> None:
    """Raise ValueError unless the rounding is "half_up" or "floor".

    Examples
    --------
    >>> require_rounding("floor")
    """
    if rounding not in ("half_up", "floor"):
        raise ValueError(f"rounding {rounding!r} is unknown; choose 'half_up' or 'floor'")


def _as_codes(values: NDArray[Any], signed: bool) -> Codes:
    return values.astype(np.int8) if signed else values.astype(np.uint8)


def _step_shape(x: NDArray[np.float64], axis: int) -> tuple[int, ...]:
    kept = np.lib.array_utils.normalize_axis_index(axis, x.ndim)
    return tuple(size if i == kept else 1 for i, size in enumerate(x.shape))


def _fitting(step: Steps, shape: tuple[int, ...]) -> Steps:
    sizes = zip(step.shape[::-1], shape[::-1], strict=False)
    if step.ndim > len(shape) or any(have not in (1, expected) for have, expected in sizes):
        raise ValueError(f"step has shape {step.shape}, expected one that broadcasts to {shape}")
    return step


def _require_planes(planes: Planes, needed: int, length: int | None, view: str) -> None:
    dtype = getattr(planes, "dtype", type(planes).__name__)
    if dtype != np.uint8:
        raise TypeError(f"from_planes needs uint8 bit planes, got {dtype}; make them with nested.to_planes")
    if planes.ndim < 2 or len(planes) < needed:
        raise ValueError(
            f"{view} reads {needed} planes, expected (at least {needed}, ..., m), got {planes.shape}"
        )
    if length is not None and not 0 <= length <= 8 * planes.shape[-1]:
        raise ValueError(f"length is {length}, expected 0..{8 * planes.shape[-1]}, eight codes a byte")


def _largest_magnitude(x: NDArray[np.float64], axis: int | None) -> Steps:
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    largest = np.abs(x).max(axis=others, keepdims=axis is not None, initial=0)
    return np.where(largest > 0, largest, 1.0)


def _plane_shifts(planes: int, ndim: int) -> Planes:
    return np.arange(7, 7 - planes, -1, dtype=np.uint8).reshape(-1, *[1] * ndim)
