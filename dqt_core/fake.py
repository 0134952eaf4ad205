"""Nested codes that gradients pass through: the training side of `nested`.

Codes are integers held in float tensors. Steps are learned as log step, so that a step stays positive and
its gradient does not grow with the number of dropped bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqt_core.nested import MASTER_WIDTH, Rounding, code_range, require_rounding


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log_step: Tensor, lo: int, hi: int) -> Tensor:
        step = log_step.exp()
        scaled = x / step
        ctx.save_for_backward(scaled, step)
        ctx.range = lo, hi
        return scaled.clamp(lo, hi).add_(0.5).floor_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scaled, step = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, scaled, *ctx.range)  # 0 outside the clamp
        grad_log_step = (inside * scaled).sum_to_size(step.shape).neg() if ctx.needs_input_grad[1] else None
        return inside.div_(step), grad_log_step, None, None


class _Switch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, drop: int, hi: int, rounding: Rounding) -> Tensor:
        ctx.drop = drop
        shifted = codes * 2.0**-drop
        if rounding == "floor":
            return shifted.floor_()
        return shifted.add_(0.5).floor_().clamp_(max=hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # straight through, the shift by d bits is a division by 2**d
        return grad * 2.0**-ctx.drop, None, None, None


def quantize(x: Tensor, log_step: Tensor, lo: int, hi: int) -> Tensor:
    """Master codes of real numbers, straight-through inside the clamp.

    Parameters
    ----------
    x : float32 tensor
    log_step : float32 tensor
        Natural logarithm of the step, broadcastable to `x`.
    lo, hi : int
        Clamp in codes.

    Returns
    -------
    float32 tensor
        Integers lo..hi, the shape of `x`.

    Notes
    -----
    With q the result and step = exp(log_step): dq/dx = 1/step and dq/dlog_step = -x/step inside the clamp, 0
    outside. Times step (see `switch`) this is LSQ's rule, arXiv 1902.08153.

    Examples
    --------
    >>> quantize(torch.tensor([0.26, -9.0]), torch.tensor(0.1).log(), -8, 7)
    tensor([ 3., -8.])
    """
    codes: Tensor = _Quantize.apply(x.float(), log_step, lo, hi)  # type: ignore[no-untyped-call]
    return codes


def switch(codes: Tensor, width: int, signed: bool, rounding: Rounding = "half_up") -> Tensor:
    """The `width`-bit codes of master codes held in floats; `nested.switch` with a gradient.

    Parameters
    ----------
    codes : float32 tensor
        Master codes.
    width : int
        Bits, 1..8.
    signed : bool
    rounding : {"half_up", "floor"}

    Returns
    -------
    float32 tensor
        Integers in ``code_range(width, signed)``.

    Examples
    --------
    >>> switch(torch.tensor([88.0, 255.0]), 4, signed=False)
    tensor([ 6., 15.])
    """
    require_rounding(rounding)
    hi = code_range(width, signed)[1]
    drop = MASTER_WIDTH - width
    if drop == 0:
        return codes
    switched: Tensor = _Switch.apply(codes, drop, hi, rounding)  # type: ignore[no-untyped-call]
    return switched


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

    Examples
    --------
    >>> initial_log_step(torch.linspace(0, 1, 256), 0, 255, widths=(8,)).exp().mul(255).round()
    tensor(1.)
    """
    rows = x.detach().float().flatten(1) if per_channel else x.detach().float().reshape(1, -1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(1e-8) / hi
    factors = torch.linspace(0.1, 1.0, 46, device=x.device)
    errors = torch.stack([_log_error(rows, largest * factor, lo, hi, widths) for factor in factors])
    best = largest.squeeze(1) * factors[errors.argmin(0)]
    return best.log().reshape([-1] + [1] * (x.ndim - 1) if per_channel else [])


def _log_error(rows: Tensor, step: Tensor, lo: int, hi: int, widths: Sequence[int]) -> Tensor:
    codes = quantize(rows, step.log(), lo, hi)
    total = torch.zeros(len(rows), device=rows.device)
    for width in sorted(set(widths)):
        view = switch(codes, width, signed=lo < 0) * 2.0 ** (MASTER_WIDTH - width)
        total += ((view * step - rows) ** 2).mean(1).clamp_min(1e-20).log()
    return total
