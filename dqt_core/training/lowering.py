"""Lower a trained network of nested codes to an integer `Program`: the last place where floats exist."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from dqt_core import integer
from dqt_core.data import normalization_table
from dqt_core.program import (
    IMAGE,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Product,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
)
from dqt_core.program.operations import Shape, inputs, out_shape
from dqt_core.training import straight_through
from dqt_core.training.controller import SPREAD_GAIN, Controller, squared
from dqt_core.training.inputs import in_float32
from dqt_core.training.layers import Quantizer, SwitchLayer
from dqt_core.training.network import NestedNet
from dqt_core.training.parts import (
    Addition,
    Affine,
    CodedMaxPool,
    Concatenation,
    MeanPool,
    Multiplication,
    Picked,
    Pointwise,
    Scaled,
    WindowMean,
)

Reals = NDArray[np.float64]


@dataclass
class _RealTerm:
    """``ratio * integer + bias`` in real units: what becomes a `Term` once the output's step is known."""

    x: str
    ratio: Reals  # (K, C) or (1, 1)
    bias: Reals
    limit: int  # largest magnitude of the integer
    layer: int | None = None


@dataclass
class _CodedValue:
    """A value of the program that holds master codes."""

    name: str
    step: float
    signed: bool
    shape: tuple[int, int]  # H, W

    @property
    def largest(self) -> int:
        return 128 if self.signed else 255


@dataclass
class _Curve:
    """A function of codes, not rounded yet."""

    x: _CodedValue
    function: Pointwise


@dataclass
class _Joined:
    """Values side by side in the channels, not rounded yet."""

    parts: list[list[_RealTerm]]


_Value = _CodedValue | list[_RealTerm] | _Curve | _Joined | None


@in_float32()
def lower(net: NestedNet, name: str = "program") -> Program:
    """Turn a trained network into an integer program.

    Parameters
    ----------
    net : NestedNet
        Trained; left unchanged.
    name : str
        Of the program, and of its file.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If the network is none that `convert` made, or a parameter is NaN or infinite.
    OverflowError
        If a step or a batch-norm gain is degenerate: no multiplier can express it.
    ProgramError
        If an accumulator could overflow, or the network is beyond what a program can be.

    Notes
    -----
    The multipliers, offsets and shifts do not depend on the widths, apart from the per-width batch norm.

    This is the last time that floats are computed, some of them in torch's float32, whose last bits depend on
    the machine. From here on nothing does: to have the same bits elsewhere, pass on the program's file.

    Examples
    --------
    >>> from dqt_core import models, convert
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    >>> float_net = models.resnet18(classes=10, channels=8, small_images=True)
    >>> program = lower(convert(float_net, images, (0.5,) * 3, (0.25,) * 3))
    >>> program.run(images, widths=4).logits.dtype
    dtype('int64')
    """
    if not isinstance(net, NestedNet):
        raise ValueError(f"the network is a {type(net).__name__}, expected what convert returns")
    _require_finite(net)
    with torch.no_grad():
        return _Lowering(net).run(name)


def _require_finite(net: NestedNet) -> None:
    for name, tensor in net.state_dict().items():
        if name.endswith("log_step"):
            tensor = tensor.exp().log()  # a step of 0 or beyond float32 counts as infinite too
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{name} holds {bad} NaN or infinite of {tensor.numel()} numbers; "
                "the training diverged: go back to an earlier checkpoint or lower the learning rate"
            )


class _Lowering:
    def __init__(self, net: NestedNet) -> None:
        self.net, self.ops = net, list[Op]()
        self.names: dict[int, str] = {}
        height, width, channels = net.image_shape
        self.shapes: dict[str, Shape] = {IMAGE: (int(height), int(width), int(channels))}
        self.values: dict[fx.Node, _Value] = {}

    def run(self, name: str) -> Program:
        for node in self.net.graph.graph.nodes:
            self.values[node] = self._lower_node(node)
        layers = tuple(self.names[i] for i in range(len(self.names)))
        shape = self.shapes[IMAGE]
        return Program(name, tuple(self.ops), self.net.choices, layers, shape, self.net.rounding)

    def _append(self, op: Op) -> None:
        self.ops.append(op)
        if not isinstance(op, Choose):
            self.shapes[op.out] = out_shape(op, *(self.shapes[name] for name in inputs(op)))

    def _lower_node(self, node: fx.Node) -> _Value:
        arguments = [self.values[n] for n in node.args if isinstance(n, fx.Node)]
        if node.op == "placeholder":
            return None
        if node.op == "output":
            self._logits(_terms(arguments[0]), "logits")
            return None
        module = self.net.graph.get_submodule(str(node.target))
        if isinstance(module, Addition):
            return _terms(arguments[0]) + _terms(arguments[1])
        if isinstance(module, Affine):
            table = _folded(module.norm, np.zeros(module.norm.num_features))
            return self._affine(*table, arguments[0])
        if isinstance(module, Scaled):
            gain, bias = np.full((1, 1), module.gain), np.full((1, 1), module.bias)
            return _affine_terms(gain, bias, _terms(arguments[0]))
        if isinstance(module, Concatenation):
            return _Joined([_terms(part) for part in arguments[:]])
        if isinstance(module, Multiplication):
            return [self._product(str(node.target), *arguments[:2])]
        return self._lower_module(str(node.target), module, arguments[0])

    def _lower_module(self, name: str, module: torch.nn.Module, x: _Value) -> _Value:
        if isinstance(module, Quantizer):
            return self._quantized(name, module, x)
        assert isinstance(x, _CodedValue), f"{name} reads codes; convert inserts them"
        if isinstance(module, SwitchLayer):
            return [self._conv(name, module, x)]
        if isinstance(module, CodedMaxPool):
            return self._max_pool(name, module, x)
        if isinstance(module, MeanPool):
            return [self._sum_pool(name, x)]
        if isinstance(module, Picked):
            weight = _kernel(module.weight, x)
            return [self._moved(name, weight, module.stride, 0, 1, x)]
        if isinstance(module, WindowMean):
            weight = np.ones((self.shapes[x.name][2], *module.kernel, 1), np.int8)
            return [self._moved(name, weight, module.stride, module.padding, len(weight), x)]
        if isinstance(module, Pointwise):
            return _Curve(x, module)
        assert isinstance(module, Controller), f"convert makes no {type(module).__name__}"
        return self._controller(name, module, x)

    def _quantized(self, name: str, module: Quantizer, x: _Value) -> _CodedValue:
        match x:
            case None:
                return self._input_codes(name, module)
            case _Curve():
                return self._curve(name, module, x)
            case _Joined():
                return self._joined(name, module, x)
            case _:
                return self._codes(name, module, _terms(x))

    def _curve(self, name: str, module: Quantizer, x: _Curve) -> _CodedValue:
        """The function of every code, rounded once: a table."""
        codes = torch.arange(256).to(torch.int8 if x.x.signed else torch.uint8).float()
        real = x.function.of((codes * x.x.step)[:, None].expand(-1, x.function.channels))
        table = straight_through.quantize(real.T.contiguous(), module.log_step, *module.range)
        self._append(Lookup(table.numpy().astype(np.int8 if module.signed else np.uint8), name, x.x.name))
        return _CodedValue(name, _step(module.log_step).item(), module.signed, x.x.shape)

    def _joined(self, name: str, module: Quantizer, x: _Joined, controller: bool = False) -> _CodedValue:
        """Each part rounded to the common step, then side by side."""
        if len(x.parts) == 1:
            return self._codes(name, module, x.parts[0], controller)
        parts = [self._codes(f"{name}:{i}", module, terms, controller) for i, terms in enumerate(x.parts)]
        self._append(Concat(tuple(part.name for part in parts), name, controller))
        return replace(parts[0], name=name)

    def _affine(self, gain: Reals, bias: Reals, x: _Value) -> _Value:
        if not isinstance(x, _Joined):
            return _affine_terms(gain, bias, _terms(x))
        ends = np.cumsum([self.shapes[terms[0].x][2] for terms in x.parts])[:-1]
        tables = zip(np.split(gain, ends), np.split(bias, ends), x.parts, strict=True)
        return _Joined([_affine_terms(*table) for table in tables])

    def _product(self, name: str, x: _Value, y: _Value) -> _RealTerm:
        assert isinstance(x, _CodedValue), f"{name} reads codes; convert inserts them"
        assert isinstance(y, _CodedValue)
        out = f"{name}:product"
        self._append(Product(x.name, y.name, out))
        return _RealTerm(out, np.full((1, 1), x.step * y.step), np.zeros((1, 1)), x.largest * y.largest)

    def _input_codes(self, name: str, module: Quantizer) -> _CodedValue:
        table = torch.from_numpy(normalization_table(self.net.mean, self.net.std))
        codes = straight_through.quantize(table, module.log_step, *module.range).numpy().astype(np.int8)
        self._append(Lookup(codes, name, IMAGE))
        height, width, _ = self.net.image_shape
        return _CodedValue(name, _step(module.log_step).item(), module.signed, (height, width))

    def _codes(
        self, name: str, module: Quantizer, terms: list[_RealTerm], controller: bool = False
    ) -> _CodedValue:
        step = _step(module.log_step).item()
        r, lowered = _fixed_point(terms, step)
        lo, hi = module.range
        self._append(Requantize(lowered, r, lo, hi, name, controller))
        return _CodedValue(name, step, module.signed, self._shape_of(terms[0].x))

    def _conv(self, name: str, layer: SwitchLayer, x: _CodedValue, controller: bool = False) -> _RealTerm:
        weight = _kernel(layer.written_out(layer.master()), x)
        is_floor = self.net.rounding == "floor"
        terms = int(np.prod(weight.shape[1:]))
        largest_weight = 256 if is_floor else 128  # floor counts half steps, see integer.conv2d_mid_bin
        out = f"{name}:sum"
        stride, padding, groups = layer.stride, layer.padding, layer.groups
        self._append(Conv(name, weight, stride, padding, groups, layer.index, x.name, out, controller))
        if layer.index is not None:
            self.names[layer.index] = name
        gain, bias = _affine(layer)
        ratio = gain * _step(layer.log_step).reshape(1, -1) * x.step / (2 if is_floor else 1)
        return _RealTerm(out, ratio, bias, terms * largest_weight * x.largest, layer.index)

    def _moved(
        self, name: str, weight: NDArray[np.int8], stride: int, padding: int, groups: int, x: _CodedValue
    ) -> _RealTerm:
        """Codes as they are, or the mean of those under a window: a convolution of 0 and 1."""
        out = f"{name}:sum"
        self._append(Conv(name, weight, stride, padding, groups, None, x.name, out))
        units = (2 if self.net.rounding == "floor" else 1) * max(1, int(weight[0].sum()))
        return _RealTerm(out, np.full((1, 1), x.step / units), np.zeros((1, 1)), units * x.largest)

    def _max_pool(self, name: str, module: CodedMaxPool, x: _CodedValue) -> _CodedValue:
        sizes = module.kernel, module.stride, module.padding
        self._append(MaxPool(*sizes, x.name, name, ceil=module.ceil))
        return _CodedValue(name, x.step, x.signed, self._shape_of(name))

    def _sum_pool(self, name: str, x: _CodedValue, controller: bool = False) -> _RealTerm:
        out = f"{name}:sum"
        self._append(SumPool(x.name, out, controller))
        pixels = x.shape[0] * x.shape[1]
        ratio = np.full((1, 1), x.step / pixels)
        return _RealTerm(out, ratio, np.zeros((1, 1)), pixels * x.largest)

    def _controller(self, name: str, module: Controller, stem: _CodedValue) -> _CodedValue:
        features = [[self._sum_pool(f"{name}.pool", stem, True)]]
        if module.spread:
            features.append([self._sum_pool(f"{name}.squares:pool", self._squares(name, stem), True)])
        x = self._joined(f"{name}.input", module.input, _Joined(features), True)
        hidden = self._conv(f"{name}.fc1", module.fc1, x, True)
        x = self._codes(f"{name}.hidden", module.hidden, [hidden], True)
        self._logits([self._conv(f"{name}.fc2", module.fc2, x, True)], f"{name}.logits", True)
        self._append(Choose(module.shape[0], f"{name}.logits", before=module.before))
        return stem

    def _squares(self, name: str, x: _CodedValue) -> _CodedValue:
        codes = torch.arange(256).to(torch.int8 if x.signed else torch.uint8)
        table = squared(codes).numpy().astype(np.uint8)[None]
        self._append(Lookup(table, f"{name}.squares", x.name, True))
        return _CodedValue(f"{name}.squares", SPREAD_GAIN * x.step, False, x.shape)

    def _logits(self, terms: list[_RealTerm], name: str, controller: bool = False) -> None:
        if len(terms) != 1:
            raise ValueError(f"the output is a sum of {len(terms)} terms; end the model with a linear layer")
        r, (term,) = _fixed_point(terms, step=1.0)
        self._append(Scale(term, r, name, controller))

    def _shape_of(self, name: str) -> tuple[int, int]:
        return self.shapes[name][:2]


def _terms(value: _Value) -> list[_RealTerm]:
    if isinstance(value, _CodedValue):
        return [_RealTerm(value.name, np.full((1, 1), value.step), np.zeros((1, 1)), value.largest)]
    assert isinstance(value, list), "what is no sum is read by its codes alone"
    return value


def _fixed_point(terms: Sequence[_RealTerm], step: float) -> tuple[int, tuple[Term, ...]]:
    """Multipliers and offsets at the largest shift that fits, for a result in units of `step`."""
    ratios = [(term.ratio / step, term.limit) for term in terms]
    largest_offset = sum(np.abs(term.bias).max(axis=0) for term in terms) / step  # of every channel
    r = integer.largest_shift(ratios, largest_offset)
    lowered = []
    for term, (ratio, _) in zip(terms, ratios, strict=True):
        multiplier, _ = integer.fixed_point(ratio, r)
        offset = np.floor(np.ldexp(term.bias / step, r) + 0.5).astype(np.int64)
        lowered.append(Term(term.x, multiplier, offset, term.layer))
    return r, tuple(lowered)


def _affine_terms(gain: Reals, bias: Reals, terms: list[_RealTerm]) -> list[_RealTerm]:
    """Terms times a gain for every channel, and its bias, which goes to the first."""
    scaled = [replace(term, ratio=term.ratio * gain, bias=term.bias * gain) for term in terms]
    return [replace(scaled[0], bias=scaled[0].bias + bias), *scaled[1:]]


def _affine(layer: SwitchLayer) -> tuple[Reals, Reals]:
    """Gain and bias (K, C) of batch norm and bias together; one row where all choices share them."""
    own = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias.double().numpy()
    if not len(layer.norms):
        return np.ones((1, len(layer.weight))), own[None]
    gains, biases = [], []
    for choice in range(len(layer.norms)):
        norm = layer.norm_of(choice)
        assert norm is not None
        gain, bias = _folded(norm, own)
        gains.append(gain)
        biases.append(bias)
    return np.stack(gains), np.stack(biases)


def _folded(norm: torch.nn.BatchNorm2d, own: Reals) -> tuple[Reals, Reals]:
    """Gain and bias (C,) of a batch norm of values to which a bias `own` was not added yet."""
    assert norm.running_mean is not None, "convert keeps batch norm's running statistics"
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    gain = norm.weight.double().numpy() / np.sqrt(variance + norm.eps)
    return gain, norm.bias.double().numpy() + (own - mean) * gain


def _kernel(weight: torch.Tensor, x: _CodedValue) -> NDArray[np.int8]:
    """Codes of weights (O, I / groups, h, w) as a program keeps them; a linear layer reads the whole map."""
    if weight.ndim == 2:
        weight = weight.reshape(len(weight), -1, *x.shape)
    return np.ascontiguousarray(weight.numpy().transpose(0, 2, 3, 1).astype(np.int8))


def _step(log_step: torch.Tensor) -> Reals:
    step: Reals = log_step.exp().double().numpy()  # exp in float32, as in training
    return step
