"""Codes and batch-norm tables, layer after layer, by what the float network makes of the same images."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dqt_core.training import calibration, code_choice
from dqt_core.training.calibration import Images
from dqt_core.training.controller import Controller
from dqt_core.training.layers import Coded, Quantizer, Selection, SwitchLayer
from dqt_core.training.network import NestedNet

_Value: TypeAlias = Tensor | Coded

ROWS = 16_000  # positions, at most about, whose inputs a layer's moments are taken of
_DAMPING = 0.01  # of the mean moment, added to each weight's own: few images tell little of rare directions
# how much a layer's own weights count in `targets_of`, and how much more for each weight a position
_MENDING, _RARE = 0.03, 0.3
_FACTORS = (1.0, 0.9, 0.8, 0.7)  # of a depthwise layer's steps, tried in turn
_ONE = torch.ones(())


@torch.no_grad()
def fit_layers(
    net: NestedNet,
    original: NestedNet,
    images: Images,
    codes: bool = True,
    mend_inputs: bool = True,
    balance: float = code_choice.BALANCE,
) -> None:
    """Fit each layer, at all widths, to its output in the float network, from what reaches it at each width.

    A layer's codes are those with the least error of its output, summed over the widths (`code_choice`). Then
    its table of every width gives each channel the mean and variance that it has in the float network.

    Parameters
    ----------
    net : NestedNet
        Its steps are set, and its weights rounded or not; changed in place, ends in evaluation mode.
    original : NestedNet
        The same network as `convert` made it: its weights and norms are those of the float network.
    images : uint8 array, (N, H, W, C)
        Calibration images. What a layer reads and makes of all of them, at every width, is held in memory.
    codes : bool
        Whether to choose codes too; else tables alone.
    mend_inputs : bool
        Whether codes shall also make up for what the inputs of a layer have lost at each width, as far as one
        layer can (`targets_of`). It helps few bits most, and costs at 8.
    balance : float
        See `code_choice.weights_of_widths`.

    Raises
    ------
    ValueError
        If the network rounds by floor, or shares one table among its widths.

    Examples
    --------
    >>> import copy, numpy as np
    >>> from dqt_core import convert, models
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    >>> net = convert(models.resnet18(10, 8, small_images=True), images, (0.5,) * 3, (0.25,) * 3, (4, 8))
    >>> fit_layers(net, copy.deepcopy(net), images)
    """
    if net.rounding != "half_up":
        raise ValueError(
            f"this network rounds by {net.rounding}, and fit_layers needs half_up; "
            "convert with rounding='half_up'"
        )
    if any(0 < len(layer.norms) < len(layer.choices) for layer in net.switch_layers):
        raise ValueError("this network shares its batch norm among widths; convert with 'per_width'")
    _Walk(net.eval(), original.eval(), codes, mend_inputs, balance).run(calibration.inputs(net, images))


class _Walk:
    """One pass through the graph in which every layer is fitted when it is reached.

    A node's values are a list: the float network's, then those of each choice. Where the nested network has
    codes, the float one has real numbers as `Coded` of step 1: what stands between layers serves both.
    """

    def __init__(self, net: NestedNet, original: NestedNet, codes: bool, mends: bool, balance: float) -> None:
        self.net, self.original = net, original
        self.codes, self.mends, self.balance = codes, mends, balance
        layers = len(net.switch_layers)
        self.selections = [Selection([k] * layers) for k in range(len(net.choices))]
        self.fitted: set[Tensor] = set()  # weights of layers that may be called again

    def run(self, x: Tensor) -> None:
        values: dict[fx.Node, list[_Value]] = {}
        nodes = list(self.net.graph.graph.nodes)
        last = {read: node for node in nodes for read in node.all_input_nodes}
        for node in nodes:
            if node.op == "placeholder":
                values[node] = [x] * (1 + len(self.selections))
            elif node.op == "call_module":
                read = [values[n] for n in node.all_input_nodes if n.name != "selection"]
                values[node] = self._node(str(node.target), read)
            for done in [n for n in node.all_input_nodes if last[n] is node]:
                del values[done]

    def _node(self, name: str, read: list[list[_Value]]) -> list[_Value]:
        module = self.net.graph.get_submodule(name)
        if isinstance(module, Quantizer):
            return self._coded(module, read[0])
        if isinstance(module, SwitchLayer):
            original = self.original.graph.get_submodule(name)
            assert isinstance(original, SwitchLayer)
            return self._layer(module, original, [coded for coded in read[0] if isinstance(coded, Coded)])
        if isinstance(module, Controller):  # it looks at codes and passes them on
            return read[0]
        return [module(*own) for own in zip(*read, strict=True)]

    def _coded(self, module: Quantizer, read: list[_Value]) -> list[_Value]:
        exact = read[0].value if isinstance(read[0], Coded) else read[0]
        clamped = exact if module.signed else exact.clamp(0, module.limit)
        rounded = [module(x, selection) for x, selection in zip(read[1:], self.selections, strict=True)]
        return [Coded(clamped, _ONE, module.signed), *rounded]

    def _layer(self, layer: SwitchLayer, original: SwitchLayer, read: list[Coded]) -> list[_Value]:
        wanted = original.convolved(read[0].codes, original.weight)
        shape = [1, -1] + [1] * (wanted.ndim - 2)
        if original.bias is not None:
            wanted = wanted + original.bias.reshape(shape)
        norm = original.norm_of(0)
        if norm is not None:
            wanted = norm(wanted.reshape(*wanted.shape[:2], *wanted.shape[2:] or (1, 1))).reshape(
                wanted.shape
            )
        if layer.index is not None and self.codes and layer.weight not in self.fitted:
            self.fitted.add(layer.weight)
            self._choose(layer, original, read)
        made: list[_Value] = [wanted]
        for k, (x, selection) in enumerate(zip(read[1:], self.selections, strict=True)):
            own = layer.norm_of(k) if layer.index is not None else None
            if own is not None:
                assert norm is not None
                _become(own, torch.ones_like(own.weight), torch.zeros_like(own.bias))
                sign = torch.where(norm.weight < 0, -1.0, 1.0)
                _become(own, *_matched(layer(x, selection), wanted, sign))
            made.append(layer(x, selection))
        return made

    def _choose(self, layer: SwitchLayer, original: SwitchLayer, read: list[Coded]) -> None:
        """Codes, and of a depthwise layer steps, with the least error; tables mend what is constant."""
        has_offset = bool(len(layer.norms))
        inputs = [
            x.at(bits, self.net.rounding) * (x.step * 2.0 ** (8 - bits))
            for x, (_, bits) in zip(read[1:], layer.choices, strict=True)
        ]
        moments = [moment_of(layer, x, has_offset) for x in inputs]
        widths = [bits for bits, _ in layer.choices]
        weight, step = original.weight.flatten(1), layer.log_step.exp().flatten(1)
        targets = [weight] * len(inputs)
        if self.mends:
            targets = targets_of(original, read[0].value, inputs, has_offset)
        codes = layer.master().flatten(1)
        counts = code_choice.weights_of_widths(targets, step, codes, widths, moments, self.balance)
        least: Tensor | None = None
        for factor in _FACTORS if layer.groups > 1 else _FACTORS[:1]:
            start = codes if factor == 1 else (weight / (factor * step) + 0.5).floor().clamp(-128, 127)
            found = code_choice.chosen(targets, factor * step, start, widths, moments, counts)
            each = code_choice.errors(targets, factor * step, found, widths, moments)
            error = sum((count * e for count, e in zip(counts, each, strict=True)), torch.zeros_like(step))
            if least is None:
                least, best, best_step = error, found, step
            is_less = error < least
            least = torch.where(is_less, error, least)
            best, best_step = (
                torch.where(is_less, found, best),
                torch.where(is_less, factor * step, best_step),
            )
        layer.weight.copy_((best * best_step).reshape(layer.weight.shape))
        layer.log_step.copy_(best_step.log().reshape(layer.log_step.shape))


def moment_of(layer: SwitchLayer, x: Tensor, centred: bool) -> Tensor:
    """Second moments of what a layer's weights multiply; of all rows, or of each where it has groups.

    Parameters
    ----------
    layer : SwitchLayer
    x : float tensor, (N, C, H, W) or (N, C)
    centred : bool
        Whether to leave out the means: an offset of the layer mends what they carry.

    Returns
    -------
    float32 tensor, (K, K) or (O, K, K)
        K is the number of weights of a row. A little is added to the diagonal.

    Examples
    --------
    >>> from torch import nn
    >>> layer = SwitchLayer(nn.Linear(2, 1), None, ((8, 8),), "half_up", index=0)
    >>> moment_of(layer, torch.tensor([[1.0, 0.0], [1.0, 2.0]]), centred=False).round(decimals=1)
    tensor([[1., 1.],
            [1., 2.]])
    """
    rows = _rows(layer, x, centred)
    moment = rows.transpose(1, 2) @ rows / rows.shape[1]
    return _of_each_row(layer, moment + _ridge(moment, _DAMPING))


def targets_of(layer: SwitchLayer, exact: Tensor, inputs: Sequence[Tensor], centred: bool) -> list[Tensor]:
    """Weights that make of other inputs what a layer's weights make of exact ones, by least squares.

    Parameters
    ----------
    layer : SwitchLayer
    exact : float tensor, (N, C, H, W) or (N, C)
    inputs : sequence of float tensors of that shape
        What stands in its place, at each choice.
    centred : bool
        See `moment_of`.

    Returns
    -------
    list of float32 tensors, (O, K)
        Drawn to the layer's own weights, more so where there are few positions for the weights of a row.

    Notes
    -----
    The error that is passed on is then that of the layers before as well, as in GPTAQ (arXiv 2504.02692).

    Examples
    --------
    >>> from torch import nn
    >>> layer = SwitchLayer(nn.Linear(2, 3), None, ((8, 8),), "half_up", index=0)
    >>> x = torch.eye(2).repeat(8, 1)
    >>> (same,) = targets_of(layer, x, [x], centred=False)
    >>> torch.allclose(same, layer.weight, atol=1e-4)
    True
    """
    rows, weight, found = _rows(layer, exact, centred), layer.weight.flatten(1), []
    strength = _MENDING + _RARE * rows.shape[2] / rows.shape[1]
    for x in inputs:
        own = _rows(layer, x, centred)
        moment = own.transpose(1, 2) @ own / own.shape[1]
        ridge = _ridge(moment, strength)
        cross = _of_each_row(layer, rows.transpose(1, 2) @ own / own.shape[1] + ridge)
        moment = _of_each_row(layer, moment + ridge)
        if layer.groups == 1:
            found.append(torch.linalg.solve(moment, (weight @ cross).T).T.contiguous())
        else:
            found.append(torch.linalg.solve(moment, (weight[:, None] @ cross)[:, 0]))
    return found


def _ridge(moment: Tensor, strength: float) -> Tensor:
    """Multiples of the unit matrix, of so much of the mean of each diagonal."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-9)  # of channels that are always 0
    return strength * mean.reshape(-1, 1, 1) * torch.eye(moment.shape[-1])


def _of_each_row(layer: SwitchLayer, moment: Tensor) -> Tensor:
    """Of (groups, K, K): (K, K) where all rows share it, else that of each row."""
    return moment[0] if layer.groups == 1 else moment.repeat_interleave(len(layer.weight) // layer.groups, 0)


def _rows(layer: SwitchLayer, x: Tensor, centred: bool) -> Tensor:
    """Inputs of a layer's weights at some positions, (groups, positions, K); centred, less their means."""
    rows = _columns(layer, x) if layer.is_conv else x.flatten(1)[None]
    return rows - rows.mean(1, keepdim=True) if centred else rows


def _columns(layer: SwitchLayer, x: Tensor) -> Tensor:
    kernel, positions = layer.weight.shape[2:], x.shape[2] * x.shape[3] // layer.stride**2
    x = x[:: max(1, len(x) // max(4, -(-ROWS // positions)))]
    padded = functional.pad(x, layer.margins)
    columns = functional.unfold(
        padded, tuple(kernel), layer.dilation, 0, layer.stride
    )  # (N, C h w, positions)
    columns = columns[:, :, :: max(1, len(x) * columns.shape[2] // ROWS)]
    split = columns.reshape(len(x), layer.groups, -1, columns.shape[2])
    return split.permute(1, 0, 3, 2).reshape(layer.groups, -1, split.shape[2])


def _matched(x: Tensor, wanted: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset that give every channel the wanted mean and variance."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    wanted_variance, wanted_mean = torch.var_mean(wanted, axes, correction=0)
    is_live = (variance > 1e-12) & (wanted_variance > 1e-12)
    ratio = torch.where(is_live, wanted_variance, _ONE) / torch.where(is_live, variance, _ONE)
    gain = sign * ratio.sqrt()
    return gain, wanted_mean - gain * mean


def _become(norm: nn.BatchNorm2d, gain: Tensor, bias: Tensor) -> None:
    """A norm that multiplies by a gain and adds a bias."""
    assert norm.running_mean is not None, "convert keeps batch norm's running statistics"
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.copy_(gain)
    norm.bias.copy_(bias)
