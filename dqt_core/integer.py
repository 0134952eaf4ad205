"""Integer arithmetic: exact products of codes, and the one rounding that makes them codes again.

Nothing here uses a float except `fixed_point`, which turns real ratios into integer multipliers once, when a
network is lowered. Tensors are NHWC, weights OHWI. This module is the definition that every backend equals.
"""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dqt_core.nested import MASTER_WIDTH, Codes, require_codes, require_view

Accumulators: TypeAlias = NDArray[np.int32]
Integers: TypeAlias = NDArray[np.integer]
Reals: TypeAlias = NDArray[np.float64]
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
    OverflowError: a sum of 65794 products of up to 32640 can overflow int32; sum at most 65793 of them
    """
    if terms * largest_product >= ACCUMULATOR_LIMIT:
        most = (ACCUMULATOR_LIMIT - 1) // largest_product
        raise OverflowError(
            f"a sum of {terms} products of up to {largest_product} can overflow int32; "
            f"sum at most {most} of them"
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
        If an argument is not an array of codes, or the weight is not int8.
    ValueError
        If the shapes do not fit.
    OverflowError
        If K is too large for int32.

    Examples
    --------
    >>> matmul(np.array([[200, 3]], np.uint8), np.array([[-128, 1]], np.int8))
    array([[-25597]], dtype=int32)
    """
    _require_operands(x, weight, "matmul")
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"expected x (..., K) and weight (O, K), got {x.shape} and {weight.shape}")
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
        If an argument is not an array of codes, or the weight is not int8.
    ValueError
        If the shapes do not fit, or the stride or the padding is out of range.
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
    _require_operands(x, weight, "conv2d")
    outputs, height, width, inputs = _require_fit(x, weight, groups)
    require_accumulator(height * width * inputs)
    windows = _windows(x, (height, width), stride, padding, fill=0)
    out_shape = (*windows.shape[:3], outputs)
    # (pixels, groups, terms) against (groups, outputs, terms): plain sums of products along the last axis
    rows = windows.reshape(*windows.shape[:3], groups, inputs, height, width)
    rows = rows.transpose(0, 1, 2, 3, 5, 6, 4).reshape(-1, groups, height * width * inputs)
    kernels = weight.reshape(groups, outputs // groups, height * width * inputs)
    out = np.einsum("pgk,gok->pgo", rows.astype(np.int32), kernels.astype(np.int32))
    return out.reshape(out_shape)


def conv2d_mid_bin(
    x: Codes,
    weight: Codes,
    weight_drop: int,
    input_drop: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Accumulators:
    """Convolution with floor-rounded weights reconstructed at the middle of their bin.

    The middle of a bin lies (2**d - 1) / 2 master steps above its code, so the result counts half master
    steps: ``2 * sum((w << d_w) * (x << d_a)) + (2**d_w - 1) * sum(x << d_a)``, both sums over the window.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, I)
        Switched codes, `input_drop` bits dropped.
    weight : int8 array, (O, kernel height, kernel width, I / groups)
        Switched codes, `weight_drop` bits dropped.
    weight_drop, input_drop : int
        0..7.
    stride, padding, groups : int
        As in `conv2d`.

    Returns
    -------
    int32 array, (N, H', W', O)

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `conv2d`, the largest product being 256 * 255; ValueError also where codes and drops do not agree.

    Examples
    --------
    >>> x, weight = np.ones((1, 1, 1, 1), np.uint8), np.zeros((1, 1, 1, 1), np.int8)
    >>> conv2d_mid_bin(x, weight, weight_drop=2, input_drop=0).item()
    3
    """
    _require_operands(x, weight, "conv2d_mid_bin")
    for codes, drop in ((weight, weight_drop), (x, input_drop)):
        if not 0 <= drop < MASTER_WIDTH:
            raise ValueError(f"{drop} bits cannot be dropped, expected 0..{MASTER_WIDTH - 1}")
        require_view(codes, MASTER_WIDTH - drop)
    # in half steps a weight reaches 2 * -128, where no bit is dropped and the middle is the code itself
    require_accumulator(int(np.prod(weight.shape[1:])), 256 * 255)
    sums = conv2d(x, weight, stride, padding, groups)
    ones = np.ones((groups, *weight.shape[1:]), np.int8)
    window_sums = np.repeat(conv2d(x, ones, stride, padding, groups), len(weight) // groups, axis=3)
    return (sums << (1 + weight_drop + input_drop)) + (((1 << weight_drop) - 1) * window_sums << input_drop)


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
    ValueError
        If `x` is not (N, H, W, C).
    OverflowError
        If H * W is too large for int32.

    Examples
    --------
    >>> sum_pool(np.full((1, 2, 2, 1), 255, np.uint8)).item()
    1020
    """
    signed = require_codes(x, "sum_pool")
    if x.ndim != 4:
        raise ValueError(f"expected x (N, H, W, C), got {x.shape}")
    require_accumulator(x.shape[1] * x.shape[2], 128 if signed else 255)
    return x.sum(axis=(1, 2), keepdims=True, dtype=np.int32)


def window_count(size: int, kernel: int, stride: int, padding: int, ceil: bool = False) -> int:
    """Windows along an axis that end within its padding; with `ceil` one more, if it begins inside.

    Examples
    --------
    >>> window_count(8, kernel=3, stride=2, padding=0), window_count(8, 3, 2, 0, ceil=True)
    (3, 4)
    """
    whole = (size + 2 * padding - kernel) // stride + 1
    is_more = ceil and (whole - 1) * stride + kernel < size + 2 * padding
    return whole + int(is_more and whole * stride < size + padding)


def max_pool(x: Codes, kernel: int, stride: int, padding: int = 0, ceil: bool = False) -> Codes:
    """Largest code of every window; padding never wins.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, C)
    kernel, stride, padding : int
        The same along both axes; the padding is smaller than the kernel, so every window holds a code.
    ceil : bool
        Whether a last window counts that begins inside and ends outside.

    Returns
    -------
    array, (N, H', W', C)
        Dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array of codes.
    ValueError
        If the shapes do not fit, or the kernel, the stride or the padding is out of range.

    Examples
    --------
    >>> max_pool(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), 2, 2)[0, :, :, 0]
    array([[ 5,  7],
           [13, 15]], dtype=uint8)
    """
    require_codes(x, "max_pool")
    if padding >= kernel:
        raise ValueError(f"padding {padding} is not below the kernel {kernel}: some windows hold no code")
    lowest = np.iinfo(x.dtype).min
    return _windows(x, (kernel, kernel), stride, padding, fill=lowest, ceil=ceil).max(axis=(-2, -1))


def lookup(x: Codes, table: Codes) -> Codes:
    """Any function of a code, as a table of all 256 bytes: exact by construction.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, C)
        Codes, or the bytes of images.
    table : int8 or uint8 array, (1, 256) or (C, 256)
        For all channels, or for each: what every byte becomes. The byte of a negative code q is q + 256.

    Returns
    -------
    array of the shape of `x`
        Dtype of `table`.

    Raises
    ------
    TypeError
        If an argument is not an array of codes.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> square_root = np.sqrt(np.arange(256)).astype(np.uint8)[None]
    >>> lookup(np.array([0, 10, 250], np.uint8).reshape(1, 1, 3, 1), square_root).ravel()
    array([ 0,  3, 15], dtype=uint8)
    """
    for codes in (x, table):
        require_codes(codes, "lookup")
    if x.ndim != 4 or table.shape not in ((1, 256), (x.shape[3], 256)):
        raise ValueError(f"expected x (N, H, W, C) and table (1 or C, 256), got {x.shape} and {table.shape}")
    return table[np.arange(len(table)), x.view(np.uint8)]


def product(x: Codes, y: Codes) -> Accumulators:
    """Products of codes, number by number, exact in int32.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, C)
    y : int8 or uint8 array, (N, H, W, C) or (N, 1, 1, C)
        One pixel multiplies all of them.

    Returns
    -------
    int32 array of the shape of `x`
        Its step is the product of both steps.

    Raises
    ------
    TypeError
        If an argument is not an array of codes.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> product(np.full((1, 2, 1, 1), 255, np.uint8), np.full((1, 1, 1, 1), -128, np.int8)).ravel()
    array([-32640, -32640], dtype=int32)
    """
    for codes in (x, y):
        require_codes(codes, "product")
    if x.ndim != 4 or y.shape not in (x.shape, (len(x), 1, 1, x.shape[3])):
        raise ValueError(f"expected y of x's shape or (N, 1, 1, C), got x {x.shape} and y {y.shape}")
    return x.astype(np.int32) * y.astype(np.int32)


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


def _require_operands(x: Codes, weight: Codes, caller: str) -> None:
    require_codes(x, caller)
    if not require_codes(weight, caller):
        raise TypeError(f"{caller} needs int8 weights, got uint8; quantize them with signed=True")


def _require_fit(x: Codes, weight: Codes, groups: int) -> tuple[int, int, int, int]:
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"expected x (N, H, W, I) and weight (O, h, w, I/groups), got {x.shape}, {weight.shape}"
        )
    outputs, height, width, inputs = weight.shape
    if groups < 1 or 0 in weight.shape:
        raise ValueError(f"weight {weight.shape} and groups={groups}: expected positive sizes")
    if x.shape[3] != inputs * groups or outputs % groups:
        raise ValueError(
            f"x {x.shape} has {x.shape[3]} channels, weight {weight.shape} with groups={groups} "
            f"expects {inputs * groups} and a multiple of {groups} outputs"
        )
    return outputs, height, width, inputs


def _windows(
    x: Codes, kernel: tuple[int, int], stride: int, padding: int, fill: int, ceil: bool = False
) -> NDArray[Any]:
    if x.ndim != 4:
        raise ValueError(f"expected x (N, H, W, C), got {x.shape}")
    if min(*kernel, stride) < 1 or padding < 0:
        raise ValueError(
            f"kernel {kernel[0]}x{kernel[1]}, stride {stride}, padding {padding}: "
            "expected a positive kernel and stride, and a padding from 0"
        )
    ends = (
        (window_count(n, k, stride, padding, ceil) - 1) * stride + k - n - padding
        for n, k in zip(x.shape[1:3], kernel, strict=True)
    )
    edges = ((0, 0), *((padding, max(padding, end)) for end in ends), (0, 0))
    padded = np.pad(x, edges, constant_values=fill)
    if padded.shape[1] < kernel[0] or padded.shape[2] < kernel[1]:
        raise ValueError(
            f"the kernel {kernel[0]}x{kernel[1]} is larger than the padded image "
            f"{padded.shape[1]}x{padded.shape[2]}; use a smaller kernel or more padding"
        )
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
    return windows[:, ::stride, ::stride]


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
