"""What goes into a float network before it has nested codes: images by look-up, in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dqt_core.data import Images, normalization_table

FEWEST_CODES = 8  # of a channel's bytes; mean and std of bytes up to 255 leave one to four


def normalized(images: Images, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes to a network's float input, by look-up.

    Parameters
    ----------
    images : uint8 array, (n, H, W, C)
    mean, std : C floats each
        Finite, of bytes divided by 255; std positive.

    Returns
    -------
    float32 tensor, (n, C, H, W), channels_last in memory

    Raises
    ------
    ValueError
        If there are no images, an argument is no such array or number, or mean and std are those of bytes.

    Examples
    --------
    >>> normalized(np.zeros((1, 2, 2, 3), np.uint8), (0.5,) * 3, (0.25,) * 3).shape
    torch.Size([1, 3, 2, 2])
    """
    got = f"{getattr(images, 'dtype', type(images).__name__)} {tuple(getattr(images, 'shape', ()))}"
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (N, H, W, C), got {got}; {_way_out(images)}")
    if images.size == 0:
        raise ValueError(f"there are no calibration images in {got}; give at least one")
    channels = images.shape[3]
    if not np.ndim(mean) == np.ndim(std) == 1:
        raise ValueError(f"mean={mean} and std={std}, expected a number for each channel, such as (0.5,)")
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"images {images.shape} have {channels} channels, and mean and std {len(mean)} and {len(std)} "
            "numbers; channels come last, with a number of each for every one"
        )
    numbers = np.array([mean, std], np.float64)
    if numbers.shape != (2, channels) or not np.isfinite(numbers).all() or not (numbers[1] > 0).all():
        raise ValueError(f"mean={mean} and std={std}, expected {channels} finite numbers each, std positive")
    table = normalization_table(tuple(mean), tuple(std))
    if (codes := int(127 * np.ptp(table, axis=1).min() / np.abs(table).max()) + 1) < FEWEST_CODES:
        raise ValueError(
            f"mean={mean} and std={std} leave {codes} codes for the 256 bytes of a channel; give those of "
            "bytes divided by 255"
        )
    # values would lie as their images do in memory, and be added up in that order
    pixels = np.ascontiguousarray(images)
    return torch.from_numpy(table[np.arange(channels), pixels]).permute(0, 3, 1, 2)


def _way_out(images: object) -> str:
    """What makes bytes (N, H, W, C) of what came, for each thing that it is not."""
    kind, steps = str(getattr(images, "dtype", "")), []
    if isinstance(images, Tensor):
        steps.append("give a NumPy array, images.permute(0, 2, 3, 1).numpy() of a torch tensor (N, C, H, W)")
    elif not isinstance(images, np.ndarray):
        steps.append("give a NumPy array")
    if "float" in kind:
        steps.append(
            "give the bytes from before the normalisation, or np.rint(255 * x).astype(np.uint8) of floats x "
            "between 0 and 1"
        )
    elif kind and not kind.endswith("uint8"):
        steps.append("give images.astype(np.uint8) of numbers 0..255")
    if isinstance(images, np.ndarray) and images.ndim == 3:
        steps.append("give images[..., None] of grey images, images[None] of one image")
    return "; ".join(steps) or "give one axis for each of images, rows, columns and channels"


def in_order(x: Tensor) -> Tensor:
    """A copy of images (n, C, H, W) that lies in memory in that order, as a model with `view` expects.

    One channel lies in both orders at once: `contiguous` alone would leave it, and layers would choose.

    Parameters
    ----------
    x : tensor, (n, C, H, W)

    Returns
    -------
    tensor of that shape and dtype

    Examples
    --------
    >>> x = normalized(np.zeros((1, 2, 4, 3), np.uint8), (0.5,) * 3, (0.25,) * 3)
    >>> x.stride(), in_order(x).stride()
    ((24, 1, 12, 3), (24, 8, 4, 1))
    """
    return x.clone(memory_format=torch.contiguous_format)


@contextmanager
def in_float32() -> Iterator[None]:
    """Within, arithmetic is float32 on the CPU, whatever the caller has switched on.

    Examples
    --------
    >>> with torch.autocast("cpu"), in_float32():
    ...     torch.matmul(torch.ones(2, 2), torch.ones(2, 2)).dtype
    torch.float32
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
