"""Small nets whose every number is perturbed, and checks of a lowering module against them.

A check takes the module it judges as its argument.
The twin of a program is the fake-quantized torch net that it was lowered from.
"""

import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dqt_core import convert
from dqt_core.backends import numpy_ref
from dqt_core.program import Choose, Concat, Conv, Lookup, MaxPool, ProgramError, Requantize, Scale, SumPool
from dqt_core.training import agreement

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)
CHOICES = ((2, 2), (4, 3), (4, 4), (8, 8))
# The twin errs by some 1e-7 of some thousand codes: real values closer to a tie may round either way.
NEAR_TIE = 2e-3


class Block(nn.Module):
    """What the models have: stem, max-pool, both kinds of shortcut, a layer with a bias, ReLU and ReLU6."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0, self.relu0 = (
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, 2, 1, groups=2), nn.BatchNorm2d(8)
        self.shortcut, self.norm2 = nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU6()
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.conv4, self.norm4 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 1)
        self.mean, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.relu0(self.norm0(self.stem(x))))
        x = self.relu1(self.norm1(self.conv1(x)) + self.norm2(self.shortcut(x)))
        x = x + self.norm4(self.conv4(self.relu2(self.norm3(self.conv3(x)))))
        return self.last(self.mean(self.plain(x)).flatten(1))


def images(n=4, size=12):
    """Blurred noise: neighbouring pixels are alike, as in photographs."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (n, size // 2, size // 2, 3))
    fine = np.repeat(np.repeat(coarse, 2, 1), 2, 2) + rng.integers(-20, 21, (n, size, size, 3))
    return fine.clip(0, 255).astype(np.uint8)


def perturb(norms, amount, seed):
    """Statistics and affine parameters that differ between channels and norms; some gains are negative."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms:
        for tensor in (norm.weight.data, norm.running_var):
            tensor *= 1 + amount * (torch.rand(tensor.shape, generator=generator) - 0.5)
        for tensor in (norm.bias.data, norm.running_mean):
            tensor += amount * (torch.rand(tensor.shape, generator=generator) - 0.5)
    return norms


def nested(net, rounding="half_up", batch_norm="per_width", choices=CHOICES, pictures=None, controller=True):
    """A converted net, every width's batch norm different."""
    torch.manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in perturb(norms, 1.0, seed=1):
        norm.weight.data[::3] *= -1
    pictures = images() if pictures is None else pictures
    result = convert(net, pictures, MEAN, STD, choices, rounding, batch_norm, controller)
    perturb([m for m in result.modules() if isinstance(m, nn.BatchNorm2d)], 0.3, seed=2)
    return result.eval()


@functools.cache
def block(rounding="half_up", batch_norm="per_width"):
    torch.manual_seed(0)
    net = nested(Block(), rounding, batch_norm)
    # a step so large that the clamp of ReLU6 lies below 255
    net.graph.get_submodule("relu2_codes").log_step.data.fill_(math.log(0.05))
    return net


def check_tables(lowering):
    """M, B and r are those of the real gains and biases, row by row."""
    for rounding in ("half_up", "floor"):
        net = block(rounding)
        program = lowering.lower(net)
        for op in program.ops:
            if isinstance(op, Requantize):
                assert_fixed_point(net, program, op.terms, op.r, step_of(net, program, op.out))
            elif isinstance(op, Scale):
                assert_fixed_point(net, program, (op.term,), op.r, 1.0)


def assert_fixed_point(net, program, terms, r, out_step):
    bounds = []
    for term in terms:
        gains, biases = (numbers / out_step for numbers in real_term(net, program, term))
        assert term.multiplier.shape == term.offset.shape == gains.shape, term.x
        # half of the last bit, and what float64 loses on the way
        assert (np.abs(term.multiplier - gains * 2.0**r) <= 0.5 + 1e-3).all(), term.x
        assert (np.abs(term.offset - biases * 2.0**r) <= 0.5 + 1e-3).all(), term.x
        bounds.append((np.abs(gains).max(), np.abs(biases).max(), largest_of(program, term.x)))
    assert fits(bounds, r)
    assert not fits(bounds, r + 1), "r is not the largest"


def fits(bounds, r):
    total = sum(gain * limit + bias for gain, bias, limit in bounds) * 2.0**r
    return r <= 61 and max(gain for gain, _, _ in bounds) * 2.0**r < 2**31 and total + 2.0 ** (r - 1) < 2**62


def real_term(net, program, term):
    """Real gains and biases (rows, channels) of the integers that a term reads."""
    maker = maker_of(program, term.x)
    if not isinstance(maker, Conv):
        is_mean = isinstance(maker, SumPool)
        gain = step_of(net, program, maker.x) / pixels_of(program, maker.x) if is_mean else None
        return np.full((1, 1), gain or step_of(net, program, term.x)), np.zeros((1, 1))
    layer = net.graph.get_submodule(maker.name)
    half = 2 if program.rounding == "floor" else 1  # floor counts half master steps
    steps = doubles(layer.log_step.exp()).ravel() * step_of(net, program, maker.x) / half
    own = np.zeros(len(steps)) if layer.bias is None else doubles(layer.bias)
    if not layer.norms:
        return steps[None], own[None]
    gains = np.stack([doubles(n.weight) / np.sqrt(doubles(n.running_var) + n.eps) for n in layer.norms])
    means, betas = (np.stack([doubles(getattr(n, a)) for n in layer.norms]) for a in ("running_mean", "bias"))
    return gains * steps, betas + (own - means) * gains


def doubles(tensor):
    return tensor.detach().double().numpy()


def maker_of(program, name):
    return next(op for op in program.ops if getattr(op, "out", None) == name)


def pixels_of(program, name):
    return math.prod(program.values[name].shape[:2])


def step_of(net, program, name):
    maker = maker_of(program, name)
    if isinstance(maker, MaxPool):
        return step_of(net, program, maker.x)
    return doubles(net.graph.get_submodule(name).log_step.exp()).item()


def largest_of(program, name):
    """Largest magnitude of a value's integers, dropped bits put back."""
    maker = maker_of(program, name)
    if isinstance(maker, Conv):
        largest_weight = 256 if program.rounding == "floor" else 128
        return maker.weight[0].size * largest_weight * largest_of(program, maker.x)
    if isinstance(maker, SumPool):
        return pixels_of(program, maker.x) * largest_of(program, maker.x)
    if isinstance(maker, MaxPool):
        return largest_of(program, maker.x)
    return 128 if isinstance(maker, Lookup) or maker.lo < 0 else 255


def check_twin_at_every_choice(lowering):
    for rounding in ("half_up", "floor"):
        net = block(rounding)
        program = lowering.lower(net)
        for choice in range(len(CHOICES)):
            assert_equals_twin(net, program, images(2), np.full((2, len(program.layers)), choice))


def check_twin_at_mixed_choices(lowering):
    for rounding in ("half_up", "floor"):
        net = block(rounding)
        program = lowering.lower(net)
        choices = np.random.default_rng(4).integers(0, len(CHOICES), (4, len(program.layers)))
        assert_equals_twin(net, program, images(), choices)


def check_twin_with_the_controller(lowering):
    net = block()
    assert_equals_twin(net, lowering.lower(net), images(), None)


def assert_equals_twin(net, program, pictures, choices):
    """Operation by operation, every one fed with the twin's codes: equal, except beside a tie.

    Errors of one layer would otherwise be carried on by all that follow.
    """
    trace = agreement.run(net, pictures, choices)
    backend = numpy_ref.Backend(program)
    values = {"image": pictures}
    for op in program.ops:
        if op.controller and choices is not None:
            continue
        if isinstance(op, Choose):
            picks = backend.choose(op, values[op.x], len(program.choices))
            np.testing.assert_array_equal(picks, trace.choices)
            continue
        given = trace.choices if choices is None else choices
        values[op.out] = getattr(backend, type(op).__name__.lower())(op, values, given)
        is_exact = isinstance(op, MaxPool) or getattr(op, "x", None) == "image"
        if is_exact:
            np.testing.assert_array_equal(values[op.out], trace.codes[op.out], op.out)
        elif isinstance(op, Lookup | Requantize | Concat) and op.out in trace.codes:
            is_off = values[op.out] != trace.codes[op.out]
            distance = agreement.from_tie(trace.real[op.out])
            assert (distance[is_off] < NEAR_TIE).all(), f"{op.out}: {np.count_nonzero(is_off)} codes differ"
            assert is_off.mean() < 0.02, op.out
            values[op.out] = trace.codes[op.out].astype(values[op.out].dtype)
        elif isinstance(op, Scale):
            logits = np.ldexp(values[op.out].astype(np.float64), -op.r).reshape(len(pictures), -1)
            expected = trace.controller if op.controller else trace.logits
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4, err_msg=op.out)


class Joints(nn.Module):
    """Tables, of each channel too; squeeze and excitation; a shuffle, a concatenation; means of windows."""

    def __init__(self):
        super().__init__()
        self.stem, self.bent, self.swish = nn.Conv2d(3, 6, 3, padding=1), nn.PReLU(6), nn.Hardswish()
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.conv2, self.conv3, self.norm3 = nn.Conv2d(8, 5, 1), nn.Conv2d(21, 8, 1), nn.BatchNorm2d(21)
        self.mean, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.swish(self.norm1(self.conv1(self.bent(self.stem(x)))))
        x = x * torch.sigmoid(self.excite(functional.relu(self.squeeze(self.mean(x)))))
        x = torch.cat(
            [x, functional.relu(self.conv2(x)), x.view(-1, 2, 4, 12, 12).transpose(1, 2).flatten(1, 2)],
            1,
        )
        x = self.conv3(functional.avg_pool2d(functional.relu(self.norm3(x)), 3, 2, 1))
        x = functional.max_pool2d(functional.silu(x), 3, 2, ceil_mode=True)
        return self.last(self.mean(x).flatten(1))


def check_twin_of_joints(lowering):
    for rounding in ("half_up", "floor"):
        torch.manual_seed(0)
        net = nested(Joints(), rounding)
        choices = np.random.default_rng(4).integers(0, len(CHOICES), (4, len(net.switch_layers)))
        assert_equals_twin(net, lowering.lower(net), images(), choices)


class LongSums(nn.Module):
    """Two convolutions as large as the image meet in one addition."""

    def __init__(self, height, width, channels):
        super().__init__()
        self.stem, self.relu0 = nn.Conv2d(3, channels, 1), nn.ReLU()
        self.conv1, self.norm1 = nn.Conv2d(channels, 1, (height, width)), nn.BatchNorm2d(1)
        self.conv2, self.norm2 = nn.Conv2d(channels, 1, (height, width)), nn.BatchNorm2d(1)
        self.relu1, self.mean, self.last = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(1, 2)

    def forward(self, x):
        x = self.relu0(self.stem(x))
        x = self.relu1(self.norm1(self.conv1(x)) + self.norm2(self.conv2(x)))
        return self.last(self.mean(x).flatten(1))


@functools.cache
def long_sums(height, width, channels, rounding):
    torch.manual_seed(0)
    pictures = np.random.default_rng(5).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    choices = ((2, 2), (8, 8))
    net = nested(
        LongSums(height, width, channels), rounding, choices=choices, pictures=pictures, controller=False
    )
    # the large gains of the two layers are in different rows: images choose them independently
    conv1, conv2 = (net.graph.get_submodule(name) for name in ("conv1", "conv2"))
    for layer, gains in ((conv1, (1.0, 0.01)), (conv2, (0.01, 1.0))):
        layer.log_step.data.fill_(-5.0)
        for norm, gain in zip(layer.norms, gains, strict=True):
            norm.weight.data.fill_(gain)
            norm.running_var.fill_(1.0)
    return net


def check_long_sums(lowering):
    """32-bit accumulators as long as they may be; two of them bound r by the 62-bit sum."""
    for size, rounding in (((7, 13, 723), "half_up"), ((8, 16, 257), "floor")):
        net = long_sums(*size, rounding)
        program = lowering.lower(net)
        addition = maker_of(program, "relu1_codes")
        assert_fixed_point(net, program, addition.terms, addition.r, step_of(net, program, "relu1_codes"))


def refusal(function, *arguments):
    """Text of the ProgramError; nothing where there is none."""
    try:
        function(*arguments)
    except ProgramError as error:
        return str(error)
    return ""


def check_longer_sums_are_refused(lowering):
    for size, rounding, terms in (((1, 2, 32_897), "half_up", 65_794), ((1, 1, 32_897), "floor", 32_897)):
        assert f"sum at most {terms - 1} of them" in refusal(lowering.lower, long_sums(*size, rounding))


def check_clamps(lowering):
    """A ReLU is a clamp at 0, a ReLU6 one at round(6 / step), and no ReLU none."""
    clamps = {op.out: (op.lo, op.hi) for op in lowering.lower(block()).ops if isinstance(op, Requantize)}
    assert clamps["relu0_codes"] == clamps["relu1_codes"] == (0, 255)
    assert clamps["relu2_codes"] == (0, 120)
    assert clamps["add_1_codes"] == clamps["plain_codes"] == (-128, 127)


LOWERING_CHECKS = [
    check_tables,
    check_twin_at_every_choice,
    check_twin_at_mixed_choices,
    check_twin_with_the_controller,
    check_twin_of_joints,
    check_long_sums,
    check_longer_sums_are_refused,
    check_clamps,
]
