"""The one rounding that makes codes of sums, `requantize`, and the integers that it multiplies by.

Nothing here uses a float except `fixed_point` and `largest_shift`, which turn real ratios into integer
multipliers once, when a network is lowered.
"""

import operator
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dqt_core.integer.products import ACCUMULATOR_LIMIT
from dqt_core.nested import Codes

Integers: TypeAlias = NDArray[np.integer]
Reals: TypeAlias = NDArray[np.float64]
Term: TypeAlias = tuple[Integers, int | Integers, int | Integers]

SUM_LIMIT = 2**62
LARGEST_SHIFT = 61


def requantize(terms: Sequence[Term], offset: int | Integers, r: int, lo: int = -128, hi: int = 127) -> Codes:
    """Round a sum of scaled integers to master codes: the one rounding to them; a narrower view rounds again.

    ``clamp((sum_j (a_j << d_j) * M_j + B + 2**(r-1)) >> r, lo, hi)``, in 64 bits; ties go up.

    Parameters
    ----------
    terms : sequence of (a, d, M)
        a : integer array, an accumulator or a skip connection's codes. d : dropped bits to put back, 0..61,
        an int or an array (per image). M : int32 multipliers, an int or an array (per channel). All
        broadcast.
    offset : int64 array or int
        B, at the scale 2**r.
    r : int
        Right shift, 1..61.
    lo, hi : int
        Clamp; ``lo=0`` is a ReLU. Within -128..127 for int8 codes or 0..255 for uint8 codes.

    Returns
    -------
    int8 or uint8 array
        uint8 where ``lo >= 0``.

    Raises
    ------
    TypeError
        If any of the numbers is not an integer.
    ValueError
        If r, a d or the clamp is out of range.
    OverflowError
        If a multiplier reaches 2**31, or the magnitudes in a sum add up to 2**62.

    Notes
    -----
    [ours] M, B and r do not depend on the widths: a switch changes only the shift counts d.

    Examples
    --------
    >>> requantize([(np.array([5, 7, -6]), 0, 1)], 0, r=1)
    array([ 3,  4, -3], dtype=int8)
    """
    r, lo, hi = _require_shift(r), operator.index(lo), operator.index(hi)
    dtype = _clamped_dtype(lo, hi)
    half = 1 << (r - 1)
    _require_sum(terms, offset, half)
    total = np.asarray(offset, np.int64) + half
    for term in terms:
        a, drop, multiplier = (np.asarray(values, np.int64) for values in term)
        total = total + (a << drop) * multiplier
    return np.clip(total >> r, lo, hi).astype(dtype)


def scale(a: Integers, multiplier: Integers, offset: Integers) -> NDArray[np.int64]:
    """Logits at a common scale, ``a * M + B`` in int64.

    Parameters
    ----------
    a : int32 array, (..., C)
    multiplier : int32 array, (C,)
    offset : int64 array, (C,)

    Returns
    -------
    int64 array, (..., C)

    Raises
    ------
    TypeError
        If an argument is not an integer.
    OverflowError
        If a multiplier reaches 2**31, or the magnitudes in a sum add up to 2**62.

    Examples
    --------
    >>> scale(np.array([2, 3], np.int32), np.array([10, 1], np.int32), np.array([1, 1]))
    array([21,  4])
    """
    _require_sum([(a, 0, multiplier)], offset, 0)
    return np.asarray(a, np.int64) * np.asarray(multiplier, np.int64) + np.asarray(offset, np.int64)


def fixed_point(
    ratios: ArrayLike, r: int | None = None, limit: int = ACCUMULATOR_LIMIT
) -> tuple[NDArray[np.int32], int]:
    """Real ratios as integer multipliers and one right shift, ``ratio = M / 2**r``.

    Parameters
    ----------
    ratios : float array
        Finite.
    r : int, optional
        Right shift, 1..61; None: the largest that `largest_shift` allows for one term without an offset.
    limit : int
        Largest magnitude of the integers that M will multiply.

    Returns
    -------
    multipliers : int32 array
        ``floor(ratio * 2**r + 1/2)``, exactly.
    r : int

    Raises
    ------
    ValueError
        If r is not in 1..61.
    OverflowError
        If a multiplier would leave int32, or a ratio is not finite.

    Examples
    --------
    >>> m, r = fixed_point([0.75, 0.001])
    >>> m.tolist(), r
    ([1610612736, 2147484], 31)
    """
    ratios = np.asarray(ratios, np.float64)
    r = largest_shift([(ratios, limit)], 0.0) if r is None else _require_shift(r)
    multipliers = _rounded(ratios, r)
    if not (np.abs(multipliers) < ACCUMULATOR_LIMIT).all():
        raise OverflowError(f"ratio {np.abs(ratios).max()} times 2**{r} leaves int32; use a smaller r")
    return multipliers.astype(np.int32), r


def largest_shift(terms: Sequence[tuple[ArrayLike, int]], offset: ArrayLike) -> int:
    """The largest r that keeps every multiplier below 2**31 and every sum below 2**62.

    Parameters
    ----------
    terms : sequence of (ratios, limit)
        Real ratios, () or (..., channels), and the largest magnitude of the integers they multiply. The rows
        of a table (one for each width, say) are chosen freely, for each term and for the offset.
    offset : float array
        Real offset in units of the result, () or (..., channels).

    Returns
    -------
    int
        1..61.

    Raises
    ------
    OverflowError
        If even r = 1 is too much, or a ratio or offset is not finite.

    Notes
    -----
    For every channel and choice of rows, with M and B rounded as in `fixed_point`: ``|M_j| < 2**31`` and
    ``sum_j |M_j| * limit_j + |B| + 2**(r-1) < 2**62``. `requantize` accepts whatever keeps to the limits.

    Examples
    --------
    >>> largest_shift([([0.5], 2**20), ([0.001], 255)], [10.0])
    31
    """
    ratios = [np.asarray(ratio, np.float64) for ratio, _ in terms]
    limits = [operator.index(limit) for _, limit in terms]
    offset = np.asarray(offset, np.float64)
    for r in range(LARGEST_SHIFT, 0, -1):
        if _fits([_rounded(ratio, r) for ratio in ratios], limits, _rounded(offset, r), 1 << (r - 1)):
            return r
    largest = [float(np.abs(values).max(initial=0)) for values in (*ratios, offset)]
    raise OverflowError(
        f"ratios up to {largest[:-1]} with an offset up to {largest[-1]} do not fit 64-bit sums, expected "
        "finite ones below 2**30 and 2**61; a step or a batch-norm gain is degenerate"
    )


def _require_shift(r: int) -> int:
    if not 1 <= operator.index(r) <= LARGEST_SHIFT:
        raise ValueError(f"r is {r}, expected 1..{LARGEST_SHIFT}")
    return operator.index(r)  # 1 << np.uint8(30) is 0


def _clamped_dtype(lo: int, hi: int) -> type[np.int8] | type[np.uint8]:
    if 0 <= lo <= hi <= 255:
        return np.uint8
    if -128 <= lo <= hi <= 127:
        return np.int8
    raise ValueError(f"clamp {lo}..{hi} fits neither int8 (-128..127) nor uint8 (0..255) codes")


def _require_sum(terms: Sequence[Term], offset: int | Integers, half: int) -> None:
    bound = _magnitude(offset) + half
    for a, drop, multiplier in terms:
        if _magnitude(multiplier) >= ACCUMULATOR_LIMIT:
            raise OverflowError(f"a multiplier is {_magnitude(multiplier)}, expected magnitudes below 2**31")
        if _magnitude(drop) > LARGEST_SHIFT or np.any(np.asarray(drop) < 0):
            raise ValueError(f"d is {np.min(drop)}..{np.max(drop)}, expected 0..{LARGEST_SHIFT}")
        bound += (_magnitude(a) << _magnitude(drop)) * _magnitude(multiplier)
    # The bound pairs the largest of every factor; where that is too coarse, each sum is looked at.
    if bound >= SUM_LIMIT and (bound := _largest_sum(terms, offset, half)) >= SUM_LIMIT:
        raise OverflowError(f"the sum can reach {bound}, expected below 2**62; lower r or the multipliers")


def _largest_sum(terms: Sequence[Term], offset: int | Integers, half: int) -> int:
    sums = np.abs(_unbounded(offset)) + half
    for a, drop, multiplier in terms:
        sums = sums + np.abs((_unbounded(a) << _unbounded(drop)) * _unbounded(multiplier))
    return int(np.max(sums, initial=0))


def _fits(multipliers: list[Reals], limits: list[int], offset: Reals, half: int) -> bool:
    if not all((np.abs(m) < ACCUMULATOR_LIMIT).all() for m in multipliers):
        return False
    if not (np.abs(offset) < SUM_LIMIT).all():
        return False
    terms = [(_largest_rows(m), 0, limit) for m, limit in zip(multipliers, limits, strict=True)]
    return _largest_sum(terms, _largest_rows(offset), half) < SUM_LIMIT


def _largest_rows(table: Reals) -> Integers:
    """The largest magnitude of every channel."""
    rows = tuple(range(table.ndim - 1))
    largest: Integers = np.abs(table).astype(np.int64).max(axis=rows, initial=0)
    return largest


def _rounded(values: ArrayLike, r: int) -> Reals:
    """``floor(values * 2**r + 1/2)``; adding 1/2 before the floor would itself round beyond 2**52."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused by the caller
        scaled = np.ldexp(values, r)
        whole = np.floor(scaled)
        return whole + (scaled - whole >= 0.5)


def _unbounded(values: int | Integers) -> NDArray[np.object_]:
    return np.asarray(values).astype(object)


def _magnitude(values: int | Integers) -> int:
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise TypeError(f"integer arithmetic got {values.dtype}; expected integers of at most 64 bits")
    return max(abs(int(values.max())), abs(int(values.min()))) if values.size else 0
