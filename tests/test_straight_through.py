"""Codes in floats: the forward is `nested`, the gradient the method's rule written out in plain autograd."""

import numpy as np
import pytest
import torch
from small_nets import tensors
from torch import nn

from dqt_core import nested
from dqt_core.training import straight_through

SIGNS = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
ROUNDINGS = pytest.mark.parametrize("rounding", ["half_up", "floor"])
WIDTHS = range(1, 9)


def every_code(signed):
    lo, hi = nested.code_range(8, signed)
    return torch.arange(lo, hi + 1, dtype=torch.float32)


def stored(codes, signed):
    return codes.numpy().astype(np.int8 if signed else np.uint8)


def dequantized(w, log_step, width, signed, rounding="half_up"):
    codes = straight_through.quantize(w, log_step, *nested.code_range(8, signed))
    return straight_through.switch(codes, width, signed, rounding) * log_step.exp() * 2.0 ** (8 - width)


def plain_dequantized(w, log_step, width, signed, rounding="half_up"):
    """The same in plain autograd: what rounding adds is detached, the second clamp with it."""
    step = log_step.exp()
    clamped = (w / step).clamp(*nested.code_range(8, signed))
    codes = clamped + ((clamped + 0.5).floor() - clamped).detach()
    view = codes / 2 ** (8 - width)
    exact = nested.switch(stored(codes.detach(), signed), width, rounding=rounding).astype(np.float32)
    view = view + (torch.from_numpy(exact) - view).detach()
    return view * step * 2.0 ** (8 - width)


# Forward


@SIGNS
def test_quantize_is_nested_quantize_ties_and_clamp_included(signed):
    x = torch.arange(-300, 600, 0.125)
    codes = straight_through.quantize(x, torch.zeros(()), *nested.code_range(8, signed))
    expected, _ = nested.quantize(x.numpy(), signed=signed, step=1.0)
    np.testing.assert_array_equal(codes.numpy(), expected.astype(np.float32))


def test_quantize_takes_a_single_number():
    x = torch.tensor(0.3, requires_grad=True)
    code = straight_through.quantize(x, torch.tensor(0.25).log(), -128, 127)
    code.backward()
    assert (code.shape, code.item(), x.grad.item()) == ((), 1.0, 4.0)


@SIGNS
def test_quantize_has_a_step_for_each_channel(signed):
    x, log_step = tensors(4).flatten(1) * 3, torch.tensor([[-3.0], [-1.1], [0.7], [-6.0]])
    step = log_step.exp().double().numpy()
    scaled = x.double().numpy() / step
    clear = np.abs(scaled % 1 - 0.5) > 1e-3  # a tie in float64 may be none in float32
    codes = straight_through.quantize(x, log_step, *nested.code_range(8, signed)).numpy()
    expected, _ = nested.quantize(x.numpy(), signed=signed, axis=0, step=step)
    np.testing.assert_array_equal(codes[clear], expected.astype(np.float32)[clear])


@SIGNS
@ROUNDINGS
@pytest.mark.parametrize("width", WIDTHS)
def test_switch_is_nested_switch_on_every_code(width, signed, rounding):
    codes = every_code(signed)
    switched = straight_through.switch(codes, width, signed, rounding)
    expected = nested.switch(stored(codes, signed), width, rounding=rounding)
    assert switched.dtype == torch.float32
    np.testing.assert_array_equal(switched.numpy(), expected.astype(np.float32))
    assert torch.equal(codes, every_code(signed)), "the master is read by every width and may not change"


@pytest.mark.parametrize("width", [0, 9, 4.0])
def test_switch_refuses_widths(width):
    with pytest.raises(ValueError, match=r"outside 1\.\.8"):
        straight_through.switch(every_code(True), width, True)


def test_switch_refuses_unknown_rounding():
    with pytest.raises(ValueError, match="choose 'half_up' or 'floor'"):
        straight_through.switch(every_code(True), 4, True, "nearest")


@SIGNS
@ROUNDINGS
@pytest.mark.parametrize("width", WIDTHS)
def test_bf16_autocast_convolves_exact_codes(width, signed, rounding):
    codes = straight_through.switch(every_code(signed), width, signed, rounding)
    if rounding == "floor" and signed:  # weights in the middle of their bin
        codes = codes + (1 - 2.0 ** (width - 8)) / 2
    with torch.autocast("cpu", torch.bfloat16):
        product = torch.nn.functional.conv2d(codes.reshape(256, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert product.dtype == torch.bfloat16
    assert torch.equal(product.flatten().float(), codes)


def test_bf16_values_are_rounded_to_codes_in_float32():
    x = (tensors() * 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        codes = straight_through.quantize(x, torch.tensor(-1.3), -128, 127)
    assert codes.dtype == torch.float32
    assert torch.equal(codes, straight_through.quantize(x.float(), torch.tensor(-1.3), -128, 127))


# Gradient: log steps of powers of two, and gradients that are small integers, make every sum exact.


def operands(signed, per_channel):
    """Weights below, inside and above the clamp, never on it; steps; the gradient that arrives."""
    steps = torch.tensor([[0.25], [1.0], [4.0]]) if per_channel else torch.tensor(0.25)
    log_step = steps.log()
    assert torch.equal(log_step.exp(), steps)
    scaled = torch.arange(-300.0, 600.0, 0.25).add(0.125).repeat(3, 1)
    weight = scaled * steps
    gradient = torch.randint(-4, 5, weight.shape, generator=torch.Generator().manual_seed(0)).float()
    lo, hi = nested.code_range(8, signed)
    inside = (scaled > lo) & (scaled < hi)
    assert 0 < inside.sum() < inside.numel()
    return weight.requires_grad_(), log_step.requires_grad_(), gradient, inside


EVERY_GRADIENT = [
    pytest.param(width, signed, rounding, per_channel)
    for width in WIDTHS
    for signed in (False, True)
    for rounding in ("half_up", "floor")
    for per_channel in (False, True)
]


@pytest.mark.parametrize(("width", "signed", "rounding", "per_channel"), EVERY_GRADIENT)
def test_gradient_is_plain_autograd_and_the_rule_of_the_method(width, signed, rounding, per_channel):
    weight, log_step, gradient, inside = operands(signed, per_channel)
    value = dequantized(weight, log_step, width, signed, rounding)
    plain = plain_dequantized(weight, log_step, width, signed, rounding)
    assert torch.equal(value, plain)
    by_weight, by_log_step = torch.autograd.grad(value, (weight, log_step), gradient)
    expected = torch.autograd.grad(plain, (weight, log_step), gradient)
    assert torch.equal(by_weight, expected[0])
    assert torch.equal(by_log_step, expected[1])
    # The rule itself: dL/dw, and dL/dlog_step = step * dL/dstep.
    step = log_step.exp()
    by_step = (gradient * (value - inside * weight) / step).sum_to_size(step.shape)
    assert torch.equal(by_weight, gradient * inside)
    assert torch.equal(by_log_step, step * by_step)
    assert by_log_step.abs().min() > 0


def test_gradient_at_the_clamp_is_zero_as_in_lsq():
    x = torch.tensor([-128.0, -127.0, 127.0], requires_grad=True)
    straight_through.quantize(x, torch.zeros(()), -128, 127).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_step_gradient_beyond_the_clamp_is_the_true_derivative():
    # There the value is step * lo or step * hi, and no rounding hides it from finite differences.
    w, h = torch.tensor([-900.0, 900.0]), 2.0**-7
    for width in WIDTHS:
        log_step = torch.tensor(0.0, requires_grad=True)
        for i in range(2):
            value = dequantized(w, log_step, width, True)[i]
            (gradient,) = torch.autograd.grad(value, log_step)
            above, below = (dequantized(w, torch.tensor(at), width, True)[i] for at in (h, -h))
            torch.testing.assert_close((above - below) / (2 * h), gradient, rtol=h**2, atol=0)


# 6/step: a code, between two, a code, a tie
@pytest.mark.parametrize("step", [0.25, 0.40625, 0.75, 4.0], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_above_a_limit_the_gradient_is_that_of_the_limit(step, width):
    """A ReLU6 before rounding, in plain autograd: what is cut at 6 follows no step but in its rounding."""
    x = torch.arange(-2.0, 9.0, 0.125).add(1 / 32).requires_grad_()
    log_step = torch.tensor(step).log().requires_grad_()
    hi = int(np.floor(6 / step + 0.5))
    gradient = torch.randint(-4, 5, x.shape, generator=torch.Generator().manual_seed(0)).float()

    def value(limit):
        codes = straight_through.quantize_at(x, log_step, 0, hi, width, limit=limit)
        return codes * log_step.exp() * 2.0 ** (8 - width)

    cut = x.clamp(max=6.0)
    clamped = (cut / log_step.exp()).clamp(min=0)
    codes = clamped + ((clamped + 0.5).floor() - clamped).detach()
    exact = torch.from_numpy(nested.switch(codes.detach().numpy().astype(np.uint8), width).astype(np.float32))
    view = codes / 2 ** (8 - width)
    plain = (view + (exact - view).detach()) * log_step.exp() * 2.0 ** (8 - width)
    assert torch.equal(value(6.0), plain)
    found = torch.autograd.grad(value(6.0), (x, log_step), gradient)
    expected = torch.autograd.grad(plain, (x, log_step), gradient)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)  # 6/step is no power of two
    without = torch.autograd.grad(value(None), log_step, gradient)[0]
    assert abs(without - expected[1]) > 1, "without the limit the clamp would move with the step"


def test_a_frozen_step_costs_no_gradient():
    weight = tensors().requires_grad_()
    straight_through.quantize(weight, torch.zeros(()), -128, 127).sum().backward()
    assert weight.grad is not None


# Codes at a width, block by block


@SIGNS
@ROUNDINGS
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_codes_at_a_width_are_the_switched_master_codes(width, signed, rounding, dtype, monkeypatch):
    monkeypatch.setattr(straight_through, "_BLOCK", 300)  # four images: several blocks, the last one smaller
    lo, hi = nested.code_range(8, signed)
    x = (40 * tensors(7, 5)).to(dtype)
    gradient, found = torch.randn(x.shape).to(dtype), []
    for form in ("one", "two"):
        leaf, log_step = x.float().requires_grad_(), torch.tensor(-0.7, requires_grad=True)
        if form == "one":
            out = straight_through.quantize_at(leaf.to(dtype), log_step, lo, hi, width, rounding)
            assert out.dtype == dtype
        else:
            out = straight_through.switch(
                straight_through.quantize(leaf, log_step, lo, hi), width, signed, rounding
            )
        found.append((out.float(), torch.autograd.grad(out, (leaf, log_step), gradient.to(out.dtype))))
    (one, by_one), (two, by_two) = found
    assert torch.equal(one, two), "exact in bfloat16 too: the arithmetic is float32"
    precision = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(by_one[0], by_two[0], rtol=precision, atol=0)
    torch.testing.assert_close(by_one[1], by_two[1], rtol=1e-4, atol=1e-3)


def test_a_clamp_below_the_range_is_switched_too():
    codes = straight_through.quantize_at(torch.tensor([500.0]), torch.zeros(()), 0, 120, 4)
    assert torch.equal(codes, straight_through.switch(torch.tensor([120.0]), 4, False))


# Batch norm that takes the scale in


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("scale", [1e-3, 0.5])
def test_scaled_batch_norm_is_the_batch_norm_of_the_product(scale, momentum):
    found = []
    for form in ("scaled", "plain"):
        norm = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=momentum)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
        x = (tensors(6) + 1).requires_grad_()
        log_scale = torch.tensor([1.0, 2.0, 0.5]).mul(scale).log().requires_grad_()
        for _ in range(2):
            if form == "scaled":
                out = straight_through.scaled_batch_norm(x, log_scale, norm)
            else:
                out = norm(x * log_scale.exp().reshape(1, -1, 1, 1))
        out.mul(tensors(6, seed=2)).sum().backward()
        gradients = x.grad, log_scale.grad, norm.weight.grad, norm.bias.grad
        found += [(out, *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked)]
    for scaled, plain in zip(*found, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())
    assert found[0][2].abs().max() > 1e-3, "what eps leaves of the scale's gradient"


def test_scaled_batch_norm_with_statistics_leaves_the_running_ones():
    norm, x = torch.nn.BatchNorm2d(3), tensors(6)
    whole = straight_through.scaled_batch_norm(x, torch.zeros(3), norm)
    before = norm.running_mean.clone()
    part = straight_through.scaled_batch_norm(
        x[:2], torch.zeros(3), norm, straight_through.batch_statistics(x)
    )
    torch.testing.assert_close(part, whole[:2])
    assert torch.equal(norm.running_mean, before)


# Compiled


@pytest.mark.parametrize("limit", [None, 1.2])
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
@pytest.mark.parametrize("width", [2, 5, 8])
def test_the_plain_formula_has_the_bits_and_the_gradients(width, rounding, limit, monkeypatch):
    """What `torch.compile` reads in place of the functions of few passes."""
    generator = torch.Generator().manual_seed(0)
    step = torch.tensor(0.011)
    lo, hi = (0, 255) if limit is None else (0, round(limit / step.item()))
    x = torch.randn(500, generator=generator)
    x = torch.cat([x, torch.arange(-3, 300) * step, torch.arange(-3, 300) * step + step / 2])
    weights = torch.randn(len(x), generator=generator)
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        inputs = x.clone().requires_grad_(), step.log().clone().requires_grad_()
        codes = straight_through.quantize_at(*inputs, lo, hi, width, rounding, limit)
        codes = codes if width < 8 else straight_through.switch(codes, 4, False, rounding)
        (codes * weights).sum().backward()
        found.append((codes.detach(), *(value.grad for value in inputs)))
    (codes, by_x, by_step), (plain, plain_by_x, plain_by_step) = found
    assert torch.equal(plain, codes)
    # at the very edge of the clamp a division and a product may differ on which side it is
    assert (~torch.isclose(plain_by_x, by_x, rtol=1e-5)).sum() <= 2
    torch.testing.assert_close(plain_by_step, by_step, rtol=1e-3, atol=0.5)


def test_the_plain_batch_norm_is_that_of_the_product(monkeypatch):
    x, scale = torch.randn(8, 3, 5, 5), torch.tensor([0.02, 0.5, 3.0])
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        norm, given = nn.BatchNorm2d(3), x.clone().requires_grad_()
        out = straight_through.scaled_batch_norm(given, scale.log(), norm)
        (out * out.detach().sin()).sum().backward()
        found.append([out.detach(), given.grad, norm.weight.grad, norm.running_mean, norm.running_var])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
