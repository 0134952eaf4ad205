"""Codes of codes, without any arithmetic: the largest of every window, and a table of any function."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.nested import Codes, require_codes


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
    return windows(x, (kernel, kernel), stride, padding, fill=lowest, ceil=ceil).max(axis=(-2, -1))


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


def window_count(size: int, kernel: int, stride: int, padding: int, ceil: bool = False) -> int:
    """Windows along an axis that end within its padding; with `ceil` one more, if it begins inside.

    Parameters
    ----------
    size, kernel, stride : int
        Pixels, 1 or more.
    padding : int
        Pixels on both sides, from 0.
    ceil : bool

    Returns
    -------
    int
        0 or less where the kernel is larger than the padded axis.

    Examples
    --------
    >>> window_count(8, kernel=3, stride=2, padding=0), window_count(8, 3, 2, 0, ceil=True)
    (3, 4)
    """
    whole = (size + 2 * padding - kernel) // stride + 1
    is_more = ceil and (whole - 1) * stride + kernel < size + 2 * padding
    return whole + int(is_more and whole * stride < size + padding)


def windows(
    x: Codes, kernel: tuple[int, int], stride: int, padding: int, fill: int, ceil: bool = False
) -> NDArray[Any]:
    """Every window of an image, a view (N, H', W', C, height, width); beyond the image stands `fill`.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, C)
    kernel : (height, width)
    stride, padding : int
        Pixels; from 1, from 0.
    fill : int
        A code.
    ceil : bool
        See `window_count`.

    Returns
    -------
    array of the dtype of `x`, (N, H', W', C, height, width)

    Raises
    ------
    ValueError
        If there is no such window.

    Examples
    --------
    >>> windows(np.ones((1, 4, 4, 2), np.uint8), (3, 3), stride=1, padding=1, fill=0).shape
    (1, 4, 4, 2, 3, 3)
    """
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
    every = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
    return every[:, ::stride, ::stride]
