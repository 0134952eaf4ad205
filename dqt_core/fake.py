"""Nested codes that gradients pass through: the training side of `nested`.

Codes are integers held in float tensors. Steps are learned as log step, so that a step stays positive and
its gradient does not grow with the number of dropped bits.

On a CPU the time of a training step is mostly that of reading and writing activations, so the functions that
work on them keep bfloat16, and their gradients make few passes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.nested import MASTER_WIDTH, Rounding, code_range, require_rounding


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log_step: Tensor, lo: int, hi: int) -> Tensor:
        step = log_step.exp()
        scaled = x / step
        ctx.save_for_backward(scaled, step)
        ctx.range = lo, hi
        clamped = scaled.clamp(lo, hi)
        # bfloat16 holds many exact ties: rounding all of them up would shift the mean
        return clamped.round_() if x.dtype == torch.bfloat16 else clamped.add_(0.5).floor_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scaled, step = ctx.saved_tensors
        inside = torch.empty_like(scaled)  # in the layout of x, whatever that of the gradient is
        torch.ops.aten.hardtanh_backward(grad, scaled, *ctx.range, grad_input=inside)  # 0 outside the clamp
        grad_log_step = _dot(inside, scaled, step).neg() if ctx.needs_input_grad[1] else None
        return inside.div_(step), grad_log_step, None, None


def _dot(x: Tensor, y: Tensor, like: Tensor) -> Tensor:
    """Sum of products in float32, one sum for each element of `like`."""
    product = x * y
    if like.ndim == 0:
        return product.sum(dtype=like.dtype)
    return product.to(like.dtype).sum_to_size(like.shape)


def _shift(codes: Tensor, drop: int, hi: int, rounding: Rounding) -> Tensor:
    """Exact in bfloat16 too: above 256 the sum may lose its last bit, but there the clamp takes all."""
    if drop == 0:
        return codes
    if rounding == "floor":
        return (codes * 2.0**-drop).floor_()
    half = torch.full((), 0.5, dtype=codes.dtype, device=codes.device)
    return torch.add(half, codes, alpha=2.0**-drop).floor_().clamp_(max=hi)


class _Switch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, drop: int, hi: int, rounding: Rounding) -> Tensor:
        ctx.drop = drop
        return _shift(codes, drop, hi, rounding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # straight through, the shift by d bits is a division by 2**d
        return grad * 2.0**-ctx.drop, None, None, None


class _SwitchedConv(torch.autograd.Function):
    """Convolution of switched codes, with the gradient of the master codes: no pass for the shift."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, master: Tensor, drops: tuple[int, int], signed: bool, rounding: Rounding,
        geometry: tuple[int, int, int],
    ) -> Tensor:  # fmt: skip
        weight_drop, input_drop = drops
        x = _shift(codes, input_drop, code_range(MASTER_WIDTH - input_drop, signed)[1], rounding)
        weight = _shift(master, weight_drop, code_range(MASTER_WIDTH - weight_drop, True)[1], rounding)
        weight = mid_bin(weight, weight_drop) if rounding == "floor" else weight
        device = codes.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else codes.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.drops, ctx.geometry = drops, geometry
        stride, padding, groups = geometry
        return functional.conv2d(x, weight, None, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight_drop, input_drop = ctx.drops
        stride, padding, groups = ctx.geometry
        by_codes, by_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight * 2.0**-input_drop, None, (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0),
            groups, (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False),
        )  # fmt: skip
        by_master = None if by_weight is None else by_weight.float().mul_(2.0**-weight_drop)
        return by_codes, by_master, None, None, None, None


class _ScaledNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_scale: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        unused = torch.zeros_like(weight)  # its dtype makes the statistics float32
        mean, variance = torch.batch_norm_update_stats(x, unused, unused, 0.0)
        own_eps = eps * (-2 * log_scale).exp()  # eps in the units of x
        widened = variance + own_eps
        out = torch.native_batch_norm(x, weight, bias, mean, widened, False, 0.0, 0.0)[0]
        ctx.save_for_backward(x, weight, mean, widened, own_eps)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, widened, own_eps = ctx.saved_tensors
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, widened.rsqrt(), True, 0.0, (True, True, True)
        )
        # the norm takes a scale out again, all but the part of eps
        return by_x, weight * by_weight * own_eps / widened, by_weight, by_bias, None


def mid_bin(codes: Tensor, drop: int) -> Tensor:
    """Weights' codes after "floor" dropped `drop` bits, moved to the middle of their bin.

    Examples
    --------
    >>> mid_bin(torch.tensor([3.0]), 1)
    tensor([3.2500])
    """
    return codes + (2.0**drop - 1) / (2 * 2.0**drop)


def quantize(x: Tensor, log_step: Tensor, lo: int, hi: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Master codes of real numbers, straight-through inside the clamp.

    Parameters
    ----------
    x : float32 tensor
    log_step : float32 tensor
        Natural logarithm of the step, broadcastable to `x`.
    lo, hi : int
        Clamp in codes.
    dtype : torch.dtype
        Of the arithmetic and the codes. In bfloat16, `x` in steps is rounded to 8 bits first, and ties go to
        the even code; a training step in bfloat16 saves passes by it.

    Returns
    -------
    tensor of `dtype`
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
    codes: Tensor = _Quantize.apply(x.to(dtype), log_step, lo, hi)  # type: ignore[no-untyped-call]
    return codes


def switch(codes: Tensor, width: int, signed: bool, rounding: Rounding = "half_up") -> Tensor:
    """The `width`-bit codes of master codes held in floats; `nested.switch` with a gradient.

    Parameters
    ----------
    codes : float32 or bfloat16 tensor
        Master codes.
    width : int
        Bits, 1..8.
    signed : bool
    rounding : {"half_up", "floor"}

    Returns
    -------
    tensor
        Integers in ``code_range(width, signed)``, exact in both types.

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


def switched_conv2d(
    codes: Tensor,
    master: Tensor,
    choice: tuple[int, int],
    signed: bool,
    rounding: Rounding = "half_up",
    geometry: tuple[int, int, int] = (1, 0, 1),
) -> Tensor:
    """Convolution of master codes switched to a choice of widths, for training: `switch` and conv2d in one.

    Parameters
    ----------
    codes : float tensor, (N, C, H, W)
        Master codes of the input; the convolution takes place in their type.
    master : float32 tensor, (O, C / groups, kernel, kernel)
        Master codes of the weights.
    choice : (weight bits, input bits)
    signed : bool
        Whether the input's codes are.
    rounding : {"half_up", "floor"}
    geometry : (stride, padding, groups)

    Returns
    -------
    tensor of the type of `codes`
        The accumulator, in units of the two switched steps.

    Notes
    -----
    The gradients are those of `switch`: straight through, divided by 2**(dropped bits).

    Examples
    --------
    >>> switched_conv2d(torch.full((1, 1, 1, 1), 88.0), torch.full((1, 1, 1, 1), -64.0), (2, 4), False).item()
    -6.0
    """
    drops = MASTER_WIDTH - choice[0], MASTER_WIDTH - choice[1]
    out: Tensor = _SwitchedConv.apply(codes, master, drops, signed, rounding, geometry)  # type: ignore[no-untyped-call]
    return out


def scaled_batch_norm(x: Tensor, log_scale: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm of ``exp(log_scale) * x`` in training mode, without computing the product.

    Parameters
    ----------
    x : float tensor, (N, C, H, W)
        Accumulators.
    log_scale : float32 tensor, (C,)
        Natural logarithm of the real value of 1.
    norm : BatchNorm2d
        Its running statistics are updated, in real units.

    Returns
    -------
    tensor, the type and shape of `x`

    Notes
    -----
    Batch norm takes a positive scale of its input out again, apart from eps: in units of x that is
    ``eps / scale**2``.

    Examples
    --------
    >>> x, norm = torch.randn(4, 2, 3, 3), nn.BatchNorm2d(2)
    >>> expected = nn.BatchNorm2d(2)(0.01 * x)
    >>> bool(torch.allclose(scaled_batch_norm(x, torch.full((2,), 0.01).log(), norm), expected, atol=1e-5))
    True
    """
    out, mean, variance = _ScaledNorm.apply(x, log_scale, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    _update(norm, mean, variance, log_scale.detach().exp(), x.numel() // x.shape[1])
    result: Tensor = out
    return result


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, scale: Tensor, count: int) -> None:
    """Running statistics as `BatchNorm2d` keeps them."""
    assert norm.running_mean is not None, "convert keeps batch norm's running statistics"
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    factor = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean * scale, factor)
    norm.running_var.lerp_(variance * scale**2 * (count / (count - 1)), factor)


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
