"""Layers whose weights and inputs are nested codes, read at a width that can change at every call."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core.nested import MASTER_WIDTH, Rounding, code_range, require_width
from dqt_core.training import steps, straight_through

Choice = tuple[int, int]  # bits of the weights, bits of the input
Margins = tuple[int, int, int, int]  # zeros left, right, above and below of a map


@dataclass
class Coded:
    """Activations as master codes.

    Attributes
    ----------
    codes : float tensor, (N, C, H, W) or (N, C)
        Integers; in float32, or in bfloat16 after a layer that was trained in it.
    step : float32 tensor, ()
    signed : bool

    Examples
    --------
    >>> Coded(torch.tensor([[100.0, -77.0]]), torch.tensor(0.5), signed=True).at(4, "half_up")
    tensor([[ 6., -5.]])
    """

    codes: Tensor
    step: Tensor
    signed: bool

    @property
    def value(self) -> Tensor:
        """The real numbers, step * codes."""
        return self.codes * self.step

    def sorted(self, order: Tensor) -> "Coded":
        """The images in another order."""
        return Coded(straight_through.sorted_rows(self.codes, order), self.step, self.signed)

    def split(self, counts: list[int]) -> list["Coded"]:
        """Consecutive groups of images."""
        return [Coded(codes, self.step, self.signed) for codes in self.codes.split(counts)]

    def at(self, width: int, rounding: Rounding) -> Tensor:
        """The codes at a width."""
        return straight_through.switch(self.codes, width, self.signed, rounding)


class Rounded(Coded):
    """Codes of real activations, computed at the widths that are read: one or two in a pass."""

    def __init__(self, x: Tensor, log_step: Tensor, lo: int, hi: int, limit: float | None = None) -> None:
        self.x, self.log_step, self.limits, self.limit = x, log_step, (lo, hi), limit
        self.step, self.signed = log_step.exp(), lo < 0
        self._at: dict[tuple[int, Rounding, bool], Tensor] = {}

    @property
    def codes(self) -> Tensor:  # type: ignore[override]
        """The master codes."""
        return self.at(MASTER_WIDTH, "half_up")

    def sorted(self, order: Tensor) -> Coded:
        return Rounded(straight_through.sorted_rows(self.x, order), self.log_step, *self.limits, self.limit)

    def split(self, counts: list[int]) -> list[Coded]:
        return [Rounded(x, self.log_step, *self.limits, self.limit) for x in self.x.split(counts)]

    def at(self, width: int, rounding: Rounding) -> Tensor:
        key = width, rounding, torch.is_grad_enabled()
        if key not in self._at:
            self._at[key] = straight_through.quantize_at(
                self.x, self.log_step, *self.limits, width, rounding, self.limit
            )
        return self._at[key]


# by part of the network: what it was given last, and made of it
Shared: TypeAlias = dict[Any, tuple[Any, Any]]


@dataclass
class Selection:
    """What one forward pass carries from layer to layer; a pass has one of its own.

    Attributes
    ----------
    per_layer : list of int, or tensor (N, L, K)
        An index into the network's choices for every layer, or weights that pick (or mix) them for every
        image.
    by_controller : bool
        Whether the controller fills `per_layer` in this pass.
    probabilities : tensor (N, L, K), optional
        The controller's softmax, for the cost term.
    is_calibrating : bool
        Whether every `Quantizer` takes its step from what passes through it.
    shared : dict, optional
        What passes that were given the same dict share; see `NestedNet.run`.
    """

    per_layer: list[int] | Tensor = field(default_factory=list)
    by_controller: bool = False
    probabilities: Tensor | None = None
    is_calibrating: bool = False
    shared: Shared | None = None

    def of_layer(self, layer: int) -> int | Tensor:
        """An index, or (N, K) weights, for one layer."""
        return self.per_layer[:, layer] if isinstance(self.per_layer, Tensor) else self.per_layer[layer]

    def once(self, part: Any, x: Any, compute: Callable[[Any], Any]) -> Any:
        """``compute(x)``, or what a pass that shares with this one made of this very object."""
        if self.shared is None:
            return compute(x)
        last = self.shared.get(part)
        if last is None or last[0] is not x:
            last = self.shared[part] = x, compute(x)
        return last[1]


class Quantizer(nn.Module):
    """Round real activations to master codes with a learned step.

    Parameters
    ----------
    signed : bool
        False after a ReLU: the clamp at 0 is the ReLU.
    limit : float, optional
        Upper clamp in real units: 6 after a ReLU6.
    widths : sequence of int
        The widths at which the codes are read; calibration weighs their errors.
    """

    def __init__(
        self, signed: bool, limit: float | None = None, widths: Sequence[int] = (MASTER_WIDTH,)
    ) -> None:
        super().__init__()
        self.signed, self.limit, self.widths = signed, limit, tuple(widths)
        self.log_step = nn.Parameter(torch.zeros(()))

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest code under the clamp."""
        lo, hi = code_range(MASTER_WIDTH, self.signed)
        if self.limit is not None:
            hi = min(hi, math.floor(self.limit / self.log_step.exp().item() + 0.5))
        return lo, hi

    def forward(self, x: Tensor | Coded, selection: Selection) -> Coded:
        if selection.is_calibrating:
            self._calibrate(real(x).detach())
        return selection.once(self, x, self._rounded)

    def _rounded(self, x: Tensor | Coded) -> Coded:
        x = real(x)  # a ReLU on what is codes already, after a max-pool say
        x = x if x.dtype == torch.bfloat16 else x.float()
        lo, hi = self.range
        is_limited = self.limit is not None and hi < code_range(MASTER_WIDTH, self.signed)[1]
        return Rounded(x, self.log_step, lo, hi, self.limit if is_limited else None)

    def _calibrate(self, x: Tensor) -> None:
        low, high = -math.inf if self.signed else 0.0, math.inf if self.limit is None else self.limit
        stride = x.numel() // 200_000 | 1  # odd: an even one can meet the same few columns of every image
        sample = x.flatten()[::stride].clamp(low, high)
        lo, hi = code_range(MASTER_WIDTH, self.signed)
        self.log_step.data = steps.initial_log_step(sample, lo, hi, self.widths)


class SwitchLayer(nn.Module):
    """A convolution or linear layer on codes, with its batch norm: one table for every choice of widths.

    Codes are convolved, not values: small integers are exact in bf16 and fp16, and in float32 the sum is
    exact below 2**24. The steps multiply the result; in bf16 training the batch norm takes them in.

    Parameters
    ----------
    layer : Conv2d or Linear
    norm : BatchNorm2d or BatchNorm1d, optional
        Follows the layer; absorbed.
    choices : tuple of (weight bits, input bits), from narrow to wide
    rounding : {"half_up", "floor"}
    index : int, optional
        Number among the switchable layers; None: always 8 bits, whatever the choices.
    shared_norm : bool
        One batch-norm table for all widths.
    margins : 4 ints
        Zeros left, right, above and below of the input, besides the layer's own padding.

    Attributes
    ----------
    padding : int
        Around the input of the convolution that `written_out` makes of this one.
    macs : int
        Multiply-accumulates of an image of the network's size; `convert` counts them.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        norm: nn.BatchNorm2d | nn.BatchNorm1d | None,
        choices: tuple[Choice, ...],
        rounding: Rounding,
        index: int | None,
        shared_norm: bool = False,
        margins: Margins = (0, 0, 0, 0),
    ) -> None:
        super().__init__()
        self.choices = choices if index is not None else ((MASTER_WIDTH, MASTER_WIDTH),)
        self.rounding, self.index = rounding, index
        self.weight, self.bias = layer.weight, layer.bias
        self.is_conv = isinstance(layer, nn.Conv2d)
        self.stride, self.dilation, self.groups, self.margins = _geometry(layer, margins)
        self.padding = max(self.margins)
        is_padded_out = self.is_conv and self.kernel_written_out() != self.weight.shape[2:]
        if is_padded_out and rounding == "floor" and index is not None:
            raise ValueError(
                f"{layer} is written out with zeros between or beside its weights, and floor reads a zero as "
                "the middle of its bin; convert with rounding='half_up'"
            )
        widths = [weight_bits for weight_bits, _ in self.choices]
        lo, hi = code_range(MASTER_WIDTH, signed=True)
        self.log_step = nn.Parameter(steps.initial_log_step(self.weight, lo, hi, widths, per_channel=True))
        tables = 1 if shared_norm else len(self.choices)
        self.norms = nn.ModuleList([] if norm is None else [norm_of_maps(norm) for _ in range(tables)])
        self.macs = 0

    def master(self) -> Tensor:
        """Master codes of the weights: float32 integers -128..127, the shape of `weight`."""
        return straight_through.quantize(self.weight, self.log_step, *code_range(MASTER_WIDTH, signed=True))

    def share(self, first: "SwitchLayer") -> None:
        """Be another call of a layer: the same weights and step, at widths and statistics of its own."""
        self.weight, self.bias, self.log_step = first.weight, first.bias, first.log_step

    def kernel_written_out(self) -> tuple[int, ...]:
        """Height and width of the kernel that `written_out` makes."""
        return tuple(self.written_out(self.weight.detach()[:1, :1]).shape[2:])  # () of a linear layer

    def written_out(self, weight: Tensor) -> Tensor:
        """The kernel (O, I / groups, h, w) that does the same without dilation, with one padding all around.

        Zeros stand where this layer reads nothing: between its weights, and beside them where its padding is
        less than on another side. A program's convolution is this one, and its cost counts the zeros.
        """
        if not self.is_conv:
            return weight
        (rows, columns), (left, right, above, below) = self.dilation, self.margins
        height, width = weight.shape[2:]
        out = weight.new_zeros(*weight.shape[:2], rows * (height - 1) + 1, columns * (width - 1) + 1)
        out[:, :, ::rows, ::columns] = weight
        return functional.pad(out, [self.padding - margin for margin in (left, right, above, below)])

    def norm_of(self, choice: int) -> nn.BatchNorm2d | None:
        """The batch norm of one choice of widths."""
        if not len(self.norms):
            return None
        norm = self.norms[min(choice, len(self.norms) - 1)]
        assert isinstance(norm, nn.BatchNorm2d), "made so in __init__"
        return norm

    def forward(self, x: Coded, selection: Selection) -> Tensor:
        # with gradients, before a pass that takes none: it may be the first of those that share it
        master = selection.once(self.weight, self.weight, lambda _: self.master())
        if self.index is None:
            return selection.once(self, x, lambda x: self._at(x, master, 0))
        chosen = selection.of_layer(self.index)
        if isinstance(chosen, int):
            return self._at(x, master, chosen)
        if self.training and selection.by_controller:
            return self._selected(x, master, chosen)
        outputs = torch.stack([self._at(x, master, k) for k in range(len(self.choices))])
        return (chosen.T.reshape(*outputs.shape[:2], *[1] * (outputs.ndim - 2)) * outputs).sum(0)

    def _selected(self, x: Coded, master: Tensor, weights: Tensor) -> Tensor:
        """Each image at the choice that one-hot weights pick: every choice forward, one backward."""
        picked = weights.argmax(1)
        order, counts = picked.argsort(stable=True), picked.bincount(minlength=len(self.choices)).tolist()
        with torch.no_grad():
            statistics, outputs = zip(*(self._tried(x, master, k) for k in range(len(counts))), strict=True)
        groups = x.sorted(order).split(counts)
        parts = [
            self._real(self._product(group, master, self.choices[k]), x.step, k, statistics[k])
            for k, group in enumerate(groups)
            if counts[k]
        ]
        return straight_through.selected(
            straight_through.sorted_rows(torch.cat(parts), order.argsort()), weights, outputs
        )

    def _tried(
        self, x: Coded, master: Tensor, choice: int
    ) -> tuple[straight_through.Statistics | None, Tensor]:
        """The output of all images at a choice, and the statistics that its batch norm took."""
        product, norm = self._product(x, master, self.choices[choice]), self.norm_of(choice)
        statistics = (
            straight_through.batch_statistics(product) if norm is not None and norm.training else None
        )
        return statistics, self._real(product, x.step, choice, statistics).to(product.dtype)

    def _at(self, x: Coded, master: Tensor, choice: int) -> Tensor:
        return self._real(self._product(x, master, self.choices[choice]), x.step, choice)

    def _real(
        self,
        accumulator: Tensor,
        input_step: Tensor,
        choice: int,
        statistics: straight_through.Statistics | None = None,
    ) -> Tensor:
        """Real values of an accumulator, through bias and batch norm."""
        norm, dropped = self.norm_of(choice), 2 * MASTER_WIDTH - sum(self.choices[choice])
        if norm is not None and accumulator.ndim == 2:
            return self._real(accumulator[..., None, None], input_step, choice, statistics).flatten(1)
        is_fast = self.bias is None and accumulator.dtype == torch.bfloat16
        if norm is not None and norm.training and (is_fast or statistics is not None):
            log_scale = self.log_step.flatten() + input_step.log() + dropped * math.log(2)
            return straight_through.scaled_batch_norm(accumulator, log_scale, norm, statistics)
        step = self.log_step.exp().flatten() * input_step * 2.0**dropped
        shape = [1, -1] + [1] * (accumulator.ndim - 2)
        out = accumulator.float() * step.reshape(shape)
        if self.bias is not None:
            out = out + self.bias.reshape(shape)
        return out if norm is None else norm(out)

    def _product(self, x: Coded, master: Tensor, choice: Choice) -> Tensor:
        weight_bits, input_bits = choice
        weight = straight_through.switch(master, weight_bits, True, self.rounding)
        if self.rounding == "floor":
            drop = 2.0 ** (MASTER_WIDTH - weight_bits)
            weight = weight + (drop - 1) / (2 * drop)  # the middle of the bin
        return self.convolved(x.at(input_bits, self.rounding), weight)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's sums, of an input (N, C, H, W), or (N, C), and weights of the shape of its own."""
        if not self.is_conv:
            return functional.linear(x.flatten(1), weight)
        left, right, above, below = self.margins
        padding = above, left
        if (right, below) != (left, above):
            x, padding = functional.pad(x, self.margins), (0, 0)
        return functional.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)


def as_choice(width: Any) -> Choice:
    """The pair of widths that one width, or (weight bits, input bits), stands for.

    Examples
    --------
    >>> as_choice(4), as_choice([2, 4]), as_choice(torch.tensor(8))
    ((4, 4), (2, 4), (8, 8))
    """
    listed = width.tolist() if hasattr(width, "tolist") else width  # of NumPy and torch
    pair = tuple(listed) if isinstance(listed, tuple | list) else (listed, listed)
    if len(pair) != 2:
        raise ValueError(f"widths must be one or more ints or (weight bits, input bits), got {listed}")
    return require_width(pair[0]), require_width(pair[1])


def real(x: Tensor | Coded) -> Tensor:
    """The real numbers of a value, which may be codes."""
    return x.value if isinstance(x, Coded) else x


def norm_of_maps(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> nn.BatchNorm2d:
    """A copy of a batch norm, which takes maps."""
    if isinstance(norm, nn.BatchNorm2d):
        return copy.deepcopy(norm)
    own = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    own.load_state_dict(norm.state_dict())
    return own.train(norm.training)


def _geometry(layer: nn.Conv2d | nn.Linear, margins: Margins) -> tuple[int, tuple[int, int], int, Margins]:
    """Stride, dilation, groups, and the padding on every side."""
    if isinstance(layer, nn.Linear):
        return 1, (1, 1), 1, margins
    one_stride = layer.stride[0] == layer.stride[1]
    if not one_stride or layer.padding_mode != "zeros":
        needed = "padding with zeros" if one_stride else "one stride for both axes"
        raise ValueError(f"{layer}: convert needs {needed}; change that in the model and train it again")
    height, width = layer.dilation
    if layer.padding == "valid":
        own = 0, 0, 0, 0
    elif layer.padding == "same":  # torch puts the odd one below and right
        rows, columns = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        own = columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
    else:
        above, left = map(int, layer.padding)
        own = left, left, above, above
    left, right, above, below = (mine + given for mine, given in zip(own, margins, strict=True))
    return layer.stride[0], (height, width), layer.groups, (left, right, above, below)
