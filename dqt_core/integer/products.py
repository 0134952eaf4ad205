"""Sums of products of codes, exact in int32, and the bound that keeps them there.

Tensors are NHWC, weights OHWI.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core.integer.codes import windows
from dqt_core.nested import MASTER_WIDTH, Codes, require_codes, require_view

Accumulators: TypeAlias = NDArray[np.int32]

LARGEST_PRODUCT = 128 * 255
ACCUMULATOR_LIMIT = 2**31


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
    require_operands(x, weight, "matmul")
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
    require_operands(x, weight, "conv2d")
    outputs, height, width, inputs = require_fit(x, weight, groups)
    require_accumulator(height * width * inputs)
    found = windows(x, (height, width), stride, padding, fill=0)
    out_shape = (*found.shape[:3], outputs)
    # (pixels, groups, terms) against (groups, outputs, terms): plain sums of products along the last axis
    rows = found.reshape(*found.shape[:3], groups, inputs, height, width)
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
    require_operands(x, weight, "conv2d_mid_bin")
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


def require_operands(x: Codes, weight: Codes, caller: str) -> None:
    """Raise TypeError unless x holds codes, and the weight signed ones; the message names the caller.

    Parameters
    ----------
    x : int8 or uint8 array
    weight : int8 array
    caller : str
        Who asks, for the message.

    Examples
    --------
    >>> require_operands(np.ones((1, 4), np.uint8), np.ones((1, 4), np.uint8), "linear")
    Traceback (most recent call last):
    TypeError: linear needs int8 weights, got uint8; quantize them with signed=True
    """
    require_codes(x, caller)
    if not require_codes(weight, caller):
        raise TypeError(f"{caller} needs int8 weights, got uint8; quantize them with signed=True")


def require_fit(x: Codes, weight: Codes, groups: int) -> tuple[int, int, int, int]:
    """The weight's shape; ValueError unless a convolution of x can have it.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, I)
    weight : int8 array, (O, height, width, I / groups)
    groups : int
        1 or more.

    Returns
    -------
    tuple of 4 ints
        (O, height, width, I / groups).

    Examples
    --------
    >>> require_fit(np.ones((1, 5, 5, 6), np.uint8), np.ones((4, 3, 3, 3), np.int8), groups=2)
    (4, 3, 3, 3)
    """
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
