"""The step of nested codes from data: the one with the least error over all widths in use."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqt_core.nested import MASTER_WIDTH, code_range

Floats = NDArray[np.float32]

_FACTORS = torch.linspace(0.1, 1.0, 46).numpy()[::-1]  # of the step that clips nothing
_SURE = 1.0  # a sum of log errors so much above the least: more clipping will not lower it again
_BLOCK = 1 << 16  # elements: what is computed of them stays in a core's cache


def initial_log_step(x: Tensor, lo: int, hi: int, widths: Sequence[int], per_channel: bool = False) -> Tensor:
    """The log step from data: the one with the least sum over widths of log mean squared error.

    The logarithm lets every width count alike, although a 2-bit view errs by orders of magnitude more.

    Parameters
    ----------
    x : float tensor
        Weights (O, ...) or a sample of activations.
    lo, hi : int
        Range of the master code.
    widths : sequence of int
        The widths in use.
    per_channel : bool
        One step for every index of the first axis.

    Returns
    -------
    float32 tensor
        Shape (O, 1, ..., 1), or () for one step.

    Notes
    -----
    The steps tried are 1.00, 0.98, ..., 0.10 of the one that clips nothing, until the sum is far above its
    least: from there on clipping only adds to it.

    Examples
    --------
    >>> initial_log_step(torch.linspace(0, 1, 256), 0, 255, widths=(8,)).exp().mul(255).round()
    tensor(1.)
    """
    values = x.detach().float()
    rows = (values.flatten(1) if per_channel else values.reshape(1, -1)).cpu().numpy()
    count = max(1, _BLOCK // rows.shape[1])
    blocks = [rows[i : i + count] for i in range(0, len(rows), count)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(lambda block: _best_step(block, lo, hi, widths), blocks))
    log_step = torch.from_numpy(np.concatenate(found)).to(x.device).log()
    return log_step.reshape([-1] + [1] * (x.ndim - 1) if per_channel else [])


def _best_step(rows: Floats, lo: int, hi: int, widths: Sequence[int]) -> Floats:
    """Of every row (O, K), (O,)."""
    largest = np.maximum(np.abs(rows).max(1), np.float32(1e-8)) / np.float32(hi)
    best, least = largest, np.full(len(rows), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite weights: whoever runs them tells
        for factor in _FACTORS:
            step = largest * factor
            error = _log_error(rows, step, lo, hi, widths)
            best, least = np.where(error <= least, step, best), np.fmin(error, least)
            if (error > least + _SURE).all():
                break
    return best


def _log_error(rows: Floats, step: Floats, lo: int, hi: int, widths: Sequence[int]) -> NDArray[np.float64]:
    """The sum over widths of the log mean squared error of every row's views."""
    x = rows / step[:, None]
    codes = x + np.float32(0.5)
    np.clip(np.floor(codes, out=codes), lo, hi, out=codes)
    view, total = np.empty_like(x), np.zeros(len(rows))
    for width in set(widths):
        _view(codes, width, lo < 0, out=view)
        np.subtract(view, x, out=view)
        squares = np.einsum("ok,ok->o", view, view) * np.float64(step) ** 2
        total += np.log(np.maximum(squares / rows.shape[1], 1e-20))
    return total


def _view(codes: Floats, width: int, signed: bool, out: Floats) -> None:
    """The codes at a width, in steps of the master."""
    drop = MASTER_WIDTH - width
    # added and taken away, 1.5 * 2**(23 + drop) leaves multiples of 2**drop; a quarter sends ties upwards
    magic = np.float32(1.5 * 2.0 ** (23 + drop))
    np.add(codes, np.float32(0.25), out=out)
    out += magic
    out -= magic
    np.minimum(out, code_range(width, signed)[1] << drop, out=out)
