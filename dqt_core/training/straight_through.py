"""Nested codes that gradients pass through: the training side of `nested`.

Codes are integers held in float tensors. Steps are learned as log step, so that a step stays positive and
its gradient does not grow with the number of dropped bits.

On a CPU the time of a training step is mostly that of reading and writing activations, so the functions that
work on them keep bfloat16, and their gradients make few passes. `torch.compile` fuses passes by itself: while
it reads a function, the plain formula stands in for it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dqt_core.nested import MASTER_WIDTH, Rounding, code_range, require_rounding, require_width

Statistics = tuple[Tensor, Tensor]  # mean and variance of every channel
_BLOCK = 1 << 17  # elements: half a MB in float32


class _Quantize(torch.autograd.Function):
    """Codes of x at a width, in the type of x; the arithmetic is float32, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_step: Tensor,
        lo: int,
        hi: int,
        drop: int,
        rounding: Rounding,
        limit: float | None,
    ) -> Tensor:
        step = log_step.exp()
        ctx.save_for_backward(x, step)
        # a limit stands still when the step moves, and the clamp in codes moves
        ctx.range, ctx.drop = (lo, hi if limit is None else limit / step.item()), drop
        ctx.has_limit = limit is not None
        limits = _limits(lo, hi, drop, rounding)
        codes = torch.empty_like(x)
        for (part, out), (work,) in _blocks(step, (x, codes), buffers=1):
            rounded = work.copy_(part).div_(step).add_(0.5).floor_()
            torch.clamp(_shift_(rounded, drop, rounding), *limits, out=work)
            out.copy_(work)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        by_x, by_log_step = torch.empty_like(x), torch.zeros_like(step)
        shift = 2.0**-ctx.drop  # straight through: the shift is a division
        factor = shift / step
        for (part, arriving, out), (scaled, inside) in _blocks(step, (x, grad, by_x), buffers=2):
            scaled.copy_(part).div_(step)
            inside.copy_(arriving)
            if ctx.has_limit:
                by_log_step -= inside[scaled >= ctx.range[1]].sum() * (ctx.range[1] * shift)
            torch.ops.aten.hardtanh_backward(inside, scaled, *ctx.range, grad_input=inside)  # 0 outside
            if ctx.needs_input_grad[1]:
                by_log_step -= scaled.mul_(inside).sum_to_size(step.shape) * shift
            out.copy_(inside.mul_(factor))
        return by_x, by_log_step if ctx.needs_input_grad[1] else None, *[None] * 5


def _blocks(
    step: Tensor, tensors: tuple[Tensor, ...], buffers: int
) -> Iterator[tuple[tuple[Tensor, ...], list[Tensor]]]:
    """Parts along the first axis with float32 buffers of their size, such that a CPU's cache holds them.

    All at once on other devices, or where there are many steps.
    """
    x = tensors[0]
    if x.device.type != "cpu" or step.ndim > 0 or x.numel() <= _BLOCK:
        yield tensors, [torch.empty_like(x, dtype=torch.float32) for _ in range(buffers)]
        return
    rows = max(1, _BLOCK * len(x) // x.numel())
    work = [torch.empty_like(x[:rows], dtype=torch.float32) for _ in range(buffers)]
    for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
        yield parts, [buffer[: len(parts[0])] for buffer in work]


def _shift_(codes: Tensor, drop: int, rounding: Rounding) -> Tensor:
    """Drop bits in place; the clamp is the caller's."""
    if drop == 0:
        return codes
    codes.mul_(2.0**-drop)
    return codes.floor_() if rounding == "floor" else codes.add_(0.5).floor_()


def _limits(lo: int, hi: int, drop: int, rounding: Rounding) -> tuple[int, int]:
    """The lowest and highest code after `drop` bits are dropped."""
    half = 1 << drop >> 1 if rounding == "half_up" else 0
    largest = code_range(MASTER_WIDTH - drop, signed=lo < 0)[1]
    return (lo + half) >> drop, min((hi + half) >> drop, largest)


class _Switch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, drop: int, hi: int, rounding: Rounding) -> Tensor:
        ctx.drop = drop
        return _shift_(codes.clone(), drop, rounding).clamp_(max=hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # straight through, the shift by d bits is a division by 2**d
        return grad * 2.0**-ctx.drop, None, None, None


class _ScaledNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_scale: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        statistics: Statistics,
    ) -> Tensor:
        mean, variance = statistics
        own_eps = eps * (-2 * log_scale).exp()  # eps in the units of x
        widened = variance + own_eps
        ctx.save_for_backward(x, weight, mean, widened, own_eps)
        return torch.native_batch_norm(x, weight, bias, mean, widened, False, 0.0, 0.0)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, widened, own_eps = ctx.saved_tensors
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, widened.rsqrt(), True, 0.0, (True, True, True)
        )
        # the norm takes a scale out again, all but the part of eps
        return by_x, weight * by_weight * own_eps / widened, by_weight, by_bias, None, None


class _SortedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad[order.argsort()], None  # torch's own adds rows one by one


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chosen: Tensor, weights: Tensor, *outputs: Tensor) -> Tensor:
        ctx.save_for_backward(*outputs)
        return chosen.view_as(chosen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        outputs = ctx.saved_tensors
        axes = tuple(range(1, grad.ndim))
        by_weights = torch.stack([(grad * out).sum(axes).float() for out in outputs], 1)
        return grad, by_weights, *(None for _ in outputs)


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
    return quantize_at(x.float(), log_step, lo, hi, MASTER_WIDTH)


def quantize_at(
    x: Tensor,
    log_step: Tensor,
    lo: int,
    hi: int,
    width: int,
    rounding: Rounding = "half_up",
    limit: float | None = None,
) -> Tensor:
    """The codes of real numbers at a width: `quantize`, then `switch`, in one function.

    Parameters
    ----------
    x : float32 or bfloat16 tensor
    log_step : float32 tensor
        Natural logarithm of the master code's step, broadcastable to `x`.
    lo, hi : int
        Clamp of the master code.
    width : int
        Bits, 1..8.
    rounding : {"half_up", "floor"}
    limit : float, optional
        In real units, where it sets `hi`: 6 after a ReLU6 whose ``hi`` is ``round(6 / step)``.

    Returns
    -------
    tensor of the type of `x`
        Integers, exact in both types.

    Notes
    -----
    A clamp at a fixed code moves in real units when the step changes: dq/dlog_step = 0 above it. A limit
    stands still in real units, so that all above it is as if x were the limit: dq/dlog_step = -limit/step.

    Examples
    --------
    >>> quantize_at(torch.tensor([8.8, 99.0]), torch.tensor(0.1).log(), 0, 255, width=4)
    tensor([ 6., 15.])
    """
    require_rounding(rounding)
    drop = MASTER_WIDTH - require_width(width)
    if torch.compiler.is_compiling():
        return _plain_codes(x, log_step, lo, hi, drop, rounding, limit)
    codes: Tensor = _Quantize.apply(x, log_step, lo, hi, drop, rounding, limit)  # type: ignore[no-untyped-call]
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
    if torch.compiler.is_compiling():
        exact = codes * 2.0**-drop
        return _straight_through(exact, _shift_(codes.detach().clone(), drop, rounding).clamp(max=hi))
    switched: Tensor = _Switch.apply(codes, drop, hi, rounding)  # type: ignore[no-untyped-call]
    return switched


def _plain_codes(
    x: Tensor, log_step: Tensor, lo: int, hi: int, drop: int, rounding: Rounding, limit: float | None
) -> Tensor:
    """What `_Quantize` computes, and its gradient, by torch's own operations."""
    inside = x.float() if limit is None else x.float().clamp(max=limit)
    exact = inside / log_step.exp()
    # hardtanh, as its gradient is 0 at the very edge, like that of `_Quantize`
    exact = exact.clamp(min=lo) if limit is not None else nn.functional.hardtanh(exact, lo, hi)
    master = (exact.detach() + 0.5).floor().clamp(max=hi)
    codes = _shift_(master, drop, rounding).clamp(*_limits(lo, hi, drop, rounding))
    return _straight_through(exact * 2.0**-drop, codes).to(x.dtype)


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, bit for bit, with the gradient of `exact`."""
    return exact - exact.detach() + rounded


def batch_statistics(x: Tensor) -> Statistics:
    """Mean and variance (biased) of every channel of (N, C, H, W), in float32; no gradient."""
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"batch norm has one number a channel to take statistics of, {tuple(x.shape)}; train on batches "
            "of 2 or more"
        )
    unused = torch.zeros(x.shape[1], device=x.device)  # its dtype makes the statistics float32
    mean, variance = torch.batch_norm_update_stats(x.detach(), unused, unused, 0.0)
    return mean, variance


def scaled_batch_norm(
    x: Tensor, log_scale: Tensor, norm: nn.BatchNorm2d, statistics: Statistics | None = None
) -> Tensor:
    """Batch norm of ``exp(log_scale) * x`` in training mode, without computing the product.

    Parameters
    ----------
    x : float tensor, (N, C, H, W)
        Accumulators.
    log_scale : float32 tensor, (C,)
        Natural logarithm of the real value of 1.
    norm : BatchNorm2d
        Its running statistics are updated, in real units.
    statistics : (mean, variance) of float32 tensors, (C,), optional
        Taken for those of `x`, of which `x` is a part; the running statistics stay. The gradient is that of
        a batch norm of the part.

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
    if statistics is None and torch.compiler.is_compiling():
        return norm(x.float() * log_scale.exp().reshape(1, -1, 1, 1)).to(x.dtype)
    if statistics is None:
        statistics = batch_statistics(x)
        _update(norm, statistics, log_scale.detach().exp(), x.numel() // x.shape[1])
    out: Tensor = _ScaledNorm.apply(x, log_scale, norm.weight, norm.bias, norm.eps, statistics)  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, statistics: Statistics, scale: Tensor, count: int) -> None:
    """Running statistics as `BatchNorm2d` keeps them."""
    assert norm.running_mean is not None, "convert keeps batch norm's running statistics"
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    mean, variance = statistics
    norm.num_batches_tracked.add_(1)
    factor = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean * scale, factor)
    norm.running_var.lerp_(variance * scale**2 * (count / (count - 1)), factor)


def sorted_rows(x: Tensor, order: Tensor) -> Tensor:
    """Rows of `x` in another order; `order` holds every row once.

    Examples
    --------
    >>> sorted_rows(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([2, 0, 1]))
    tensor([7., 5., 6.])
    """
    out: Tensor = _SortedRows.apply(x, order)  # type: ignore[no-untyped-call]
    return out


def selected(chosen: Tensor, weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The output of each image's choice, with the gradient of ``sum_k weights[:, k] * outputs[k]``.

    Parameters
    ----------
    chosen : float tensor, (N, ...)
        The output that `weights` picks for each image.
    weights : float32 tensor, (N, K)
        One-hot.
    outputs : K tensors of the shape of `chosen`
        What every choice would have given; without a gradient of their own.

    Returns
    -------
    tensor, `chosen`

    Examples
    --------
    >>> weights = torch.tensor([[1.0, 0.0]], requires_grad=True)
    >>> selected(torch.tensor([[2.0]]), weights, [torch.tensor([[2.0]]), torch.tensor([[5.0]])]).backward()
    >>> weights.grad
    tensor([[2., 5.]])
    """
    out: Tensor = _Selected.apply(chosen, weights, *outputs)  # type: ignore[no-untyped-call]
    return out
