"""Integer arithmetic: exact products of codes, and the one rounding that makes them codes again.

Nothing here uses a float except `fixed_point`, which turns real ratios into integer multipliers once, when a
network is lowered. Tensors are NHWC, weights OHWI. This module is the definition that every backend equals.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dqt_core.nested import Codes, require_codes

Accumulators: TypeAlias = NDArray[np.int32]
Integers: TypeAlias = NDArray[np.integer]
Term: TypeAlias = tuple[Integers, int | Integers, int | Integers]

LARGEST_PRODUCT = 128 * 255
ACCUMULATOR_LIMIT = 2**31
SUM_LIMIT = 2**62
LARGEST_SHIFT = 61


def require_accumulator(terms: int, largest_product: int = LARGEST_PRODUCT) -> None:
    """Raise OverflowError if a sum of products of master codes could leave int32.

    Parameters
    ----------
    terms : int
        Products summed: kernel height * kernel width * input channels of a group.
    largest_product : int
        Largest magnitude of one product, in master units.

    Raises
    ------
    OverflowError
        If ``terms * largest_product`` reaches 2**31.

    Notes
    -----
    Dropping d bits divides a code by 2**d and shifting the accumulator left multiplies it back, so the bound
    is the same at every pair of widths.

    Examples
    --------
    >>> require_accumulator(65_793)
    >>> require_accumulator(65_794)
    Traceback (most recent call last):
    OverflowError: a sum of 65794 products of up to 32640 can overflow int32; split it into at most 65793 terms
    """
    if terms * largest_product >= ACCUMULATOR_LIMIT:
        most = (ACCUMULATOR_LIMIT - 1) // largest_product
        raise OverflowError(
            f"a sum of {terms} products of up to {largest_product} can overflow int32; "
            f"split it into at most {most} terms"
        )


def matmul(x: Codes, weight: Codes) -> Accumulators:
    """Sums of products of codes, ``x @ weight.T``, exact in int32.

    Parameters
    ----------
    x : int8 or uint8 array, (..., K)
    weight : int8 array, (O, K)

    Returns
    -------
    int32 array, (..., O)

    Raises
    ------
    TypeError
        If an argument is not an array of codes.
    ValueError
        If the inner sizes differ.
    OverflowError
        If K is too large for int32.

    Examples
    --------
    >>> matmul(np.array([[200, 3]], np.uint8), np.array([[-128, 1]], np.int8))
    array([[-25597]], dtype=int32)
    """
    require_codes(x, "matmul")
    require_codes(weight, "matmul")
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"inner sizes differ: x is {x.shape}, weight is {weight.shape}")
    require_accumulator(weight.shape[-1])
    return np.einsum("...k,ok->...o", x.astype(np.int32), weight.astype(np.int32))


def conv2d(x: Codes, weight: Codes, stride: int = 1, padding: int = 0, groups: int = 1) -> Accumulators:
    """Two-dimensional convolution of codes, exact in int32; the padding is code 0, which is real zero.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, I)
    weight : int8 array, (O, kernel height, kernel width, I / groups)
    stride, padding : int
        The same along both axes.
    groups : int
        Divides I and O; I for a depthwise convolution.

    Returns
    -------
    int32 array, (N, H', W', O)

    Raises
    ------
    TypeError
        If an argument is not an array of codes.
    ValueError
        If the shapes do not fit.
    OverflowError
        If the accumulator could overflow.

    Examples
    --------
    >>> x = np.ones((1, 3, 3, 1), np.uint8)
    >>> conv2d(x, np.ones((1, 3, 3, 1), np.int8), padding=1)[0, :, :, 0]
    array([[4, 6, 4],
           [6, 9, 6],
           [4, 6, 4]], dtype=int32)
    """
    require_codes(x, "conv2d")
    require_codes(weight, "conv2d")
    outputs, height, width, inputs = _require_fit(x, weight, groups)
    require_accumulator(height * width * inputs)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    if padded.shape[1] < height or padded.shape[2] < width:
        raise ValueError(f"the kernel {height}x{width} is larger than the padded image {padded.shape[1:3]}")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    out_shape = (*windows.shape[:3], outputs)
    # (pixels, groups, terms) against (groups, outputs, terms): plain sums of products along the last axis
    rows = windows.reshape(*windows.shape[:3], groups, inputs, height, width)
    rows = rows.transpose(0, 1, 2, 3, 5, 6, 4).reshape(-1, groups, height * width * inputs)
    kernels = weight.reshape(groups, outputs // groups, height * width * inputs)
    out = np.einsum("pgk,gok->pgo", rows.astype(np.int32), kernels.astype(np.int32))
    return out.reshape(out_shape)


def sum_pool(x: Codes) -> Accumulators:
    """Sum of every channel over height and width, exact in int32.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, C)

    Returns
    -------
    int32 array, (N, 1, 1, C)
        The mean follows in `requantize`, with 1 / (H * W) folded into the multiplier.

    Raises
    ------
    TypeError
        If `x` is not an array of codes.

    Examples
    --------
    >>> sum_pool(np.full((1, 2, 2, 1), 255, np.uint8)).item()
    1020
    """
    require_codes(x, "sum_pool")
    return x.sum(axis=(1, 2), keepdims=True, dtype=np.int32)


def max_pool(x: Codes, kernel: int, stride: int, padding: int = 0) -> Codes:
    """Largest code of every window; padding never wins.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, C)
    kernel, stride, padding : int
        The same along both axes.

    Returns
    -------
    array, (N, H', W', C)
        Dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array of codes.

    Examples
    --------
    >>> max_pool(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), 2, 2)[0, :, :, 0]
    array([[ 5,  7],
           [13, 15]], dtype=uint8)
    """
    require_codes(x, "max_pool")
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, edges, constant_values=np.iinfo(x.dtype).min)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return windows[:, ::stride, ::stride].max(axis=(-2, -1))


def requantize(terms: Sequence[Term], offset: int | Integers, r: int, lo: int = -128, hi: int = 127) -> Codes:
    """Round a sum of scaled integers to master codes: the one rounding in the system.

    ``clamp((sum_j (a_j << d_j) * M_j + B + 2**(r-1)) >> r, lo, hi)``, in 64 bits; ties go up.

    Parameters
    ----------
    terms : sequence of (a, d, M)
        a : integer array, an accumulator or a skip connection's codes. d : dropped bits to put back, an int or
        an array (per image). M : int32 multipliers, an int or an array (per channel). All broadcast.
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
        If a term or the offset is not an integer.
    ValueError
        If r or the clamp is out of range.
    OverflowError
        If the sum could reach 2**62.

    Notes
    -----
    [ours] M, B and r do not depend on the widths: a switch changes only the shift counts d.

    Examples
    --------
    >>> requantize([(np.array([5, 7, -6]), 0, 1)], 0, r=1)
    array([ 3,  4, -3], dtype=int8)
    """
    if not 1 <= r <= LARGEST_SHIFT:
        raise ValueError(f"r is {r}, expected 1..{LARGEST_SHIFT}")
    dtype = _clamped_dtype(lo, hi)
    _require_sum(terms, offset, r)
    total = np.asarray(offset, np.int64) + (1 << (r - 1))
    for a, drop, multiplier in terms:
        total = total + (np.asarray(a, np.int64) << drop) * np.asarray(multiplier, np.int64)
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
    OverflowError
        If a result could reach 2**62.

    Examples
    --------
    >>> scale(np.array([2, 3], np.int32), np.array([10, 1], np.int32), np.array([1, 1]))
    array([21,  4])
    """
    _require_sum([(a, 0, multiplier)], offset, 1)
    return a.astype(np.int64) * multiplier + offset


def fixed_point(
    ratios: ArrayLike, r: int | None = None, limit: int = ACCUMULATOR_LIMIT
) -> tuple[NDArray[np.int32], int]:
    """Real ratios as integer multipliers and one right shift, ``ratio = M / 2**r``.

    Parameters
    ----------
    ratios : float array
        Finite.
    r : int, optional
        Right shift; None: the largest that `largest_shift` allows for one term.
    limit : int
        Largest magnitude of the integers that M will multiply.

    Returns
    -------
    multipliers : int32 array
        ``round(ratio * 2**r)``.
    r : int

    Raises
    ------
    OverflowError
        If a multiplier would leave int32.

    Examples
    --------
    >>> m, r = fixed_point([0.75, 0.001])
    >>> m.tolist(), r
    ([1610612736, 2147484], 31)
    """
    ratios = np.asarray(ratios, np.float64)
    r = largest_shift([(ratios, limit)], 0.0) if r is None else r
    multipliers = np.floor(np.ldexp(ratios, r) + 0.5)
    if not (np.abs(multipliers) < ACCUMULATOR_LIMIT).all():
        raise OverflowError(f"ratio {np.abs(ratios).max()} times 2**{r} leaves int32; use a smaller r")
    return multipliers.astype(np.int32), r


def largest_shift(terms: Sequence[tuple[ArrayLike, int]], offset: ArrayLike) -> int:
    """The largest r that keeps every multiplier below 2**31 and every sum below 2**62.

    Parameters
    ----------
    terms : sequence of (ratios, limit)
        Real ratios (per channel), and the largest magnitude of the integers they multiply.
    offset : float array
        Real offset in units of the result.

    Returns
    -------
    int
        1..61.

    Raises
    ------
    OverflowError
        If even r = 1 is too much, or a ratio or offset is not finite.

    Examples
    --------
    >>> largest_shift([([0.5], 2**20), ([0.001], 255)], [10.0])
    31
    """
    ratios = [(float(np.abs(np.asarray(ratio)).max()), limit) for ratio, limit in terms]
    offset = float(np.abs(np.asarray(offset)).max())
    for r in range(LARGEST_SHIFT, 0, -1):
        multipliers = [(ratio * 2.0**r + 1, limit) for ratio, limit in ratios]
        total = sum(m * limit for m, limit in multipliers) + offset * 2.0**r + 2.0**r
        if all(m < ACCUMULATOR_LIMIT for m, _ in multipliers) and total < SUM_LIMIT:
            return r
    raise OverflowError(
        f"ratios up to {max(ratio for ratio, _ in ratios)} with an offset of {offset} do not fit 64-bit sums; "
        "a step or a batch-norm gain is degenerate"
    )


def _require_fit(x: Codes, weight: Codes, groups: int) -> tuple[int, int, int, int]:
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"expected x (N, H, W, I) and weight (O, h, w, I/groups), got {x.shape}, {weight.shape}"
        )
    outputs, height, width, inputs = weight.shape
    if x.shape[3] != inputs * groups or outputs % groups:
        raise ValueError(
            f"x {x.shape} has {x.shape[3]} channels, weight {weight.shape} with groups={groups} "
            f"expects {inputs * groups} and a multiple of {groups} outputs"
        )
    return outputs, height, width, inputs


def _clamped_dtype(lo: int, hi: int) -> type[np.int8] | type[np.uint8]:
    if 0 <= lo <= hi <= 255:
        return np.uint8
    if -128 <= lo <= hi <= 127:
        return np.int8
    raise ValueError(f"clamp {lo}..{hi} fits neither int8 (-128..127) nor uint8 (0..255) codes")


def _require_sum(terms: Sequence[Term], offset: int | Integers, r: int) -> None:
    bound = _magnitude(offset) + (1 << (r - 1))
    for a, drop, multiplier in terms:
        if _magnitude(multiplier) >= ACCUMULATOR_LIMIT:
            raise OverflowError(f"a multiplier is {_magnitude(multiplier)}, expected magnitudes below 2**31")
        bound += (_magnitude(a) << int(np.max(drop))) * _magnitude(multiplier)
    if bound >= SUM_LIMIT:
        raise OverflowError(f"the sum can reach {bound}, expected below 2**62; lower r or the multipliers")


def _magnitude(values: int | Integers) -> int:
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise TypeError(f"integer arithmetic got {values.dtype}; expected integers")
    return max(abs(int(values.max())), abs(int(values.min()))) if values.size else 0
