"""Turn an ordinary float torch model into one of nested codes."""

import copy
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

from dqt_core.data import normalization_table
from dqt_core.nested import MASTER_WIDTH, Rounding, require_rounding, require_width
from dqt_core.training.controller import Controller
from dqt_core.training.layers import (
    Choice,
    CodedMaxPool,
    MeanPool,
    Quantizer,
    Selection,
    SwitchLayer,
    add,
)
from dqt_core.training.network import NestedNet

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_FLATTEN = (torch.flatten, "flatten")
_MEANS = (torch.mean, "mean")


def convert(
    net: nn.Module,
    images: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    widths: Sequence[int | Choice] = (2, 3, 4, 6, 8),
    rounding: Rounding = "half_up",
    batch_norm: str = "per_width",
    controller: bool = True,
) -> NestedNet:
    """Turn a trained float model into a network of nested codes, with steps initialised from data.

    Parameters
    ----------
    net : Module
        Conv2d, BatchNorm2d, Linear, ReLU, ReLU6, additions, max-pools and a global mean; left unchanged.
    images : uint8 array, (N, H, W, 3)
        A few hundred training images, for the steps.
    mean, std : 3 floats each
        The normalisation the float model was trained with.
    widths : sequence of int or (weight bits, input bits)
        The choices of every switchable layer. The first and last layers stay at 8 bits.
    rounding : {"half_up", "floor"}
    batch_norm : {"per_width", "shared"}
    controller : bool
        Whether to add a controller.

    Returns
    -------
    NestedNet

    Raises
    ------
    ValueError
        If the model holds an operation that has no integer form here, or an argument is out of range.

    Examples
    --------
    >>> from dqt_core import models
    >>> net = models.resnet18(classes=10, channels=8, small_images=True)
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    >>> nested = convert(net, images, (0.5,) * 3, (0.25,) * 3)
    >>> nested(torch.zeros(1, 3, 32, 32), widths=4).shape, len(nested.switch_layers)
    (torch.Size([1, 10]), 19)
    """
    require_rounding(rounding)
    if batch_norm not in ("per_width", "shared"):
        raise ValueError(f"batch_norm={batch_norm!r} is unknown; choose 'per_width' or 'shared'")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    choices = _choices(widths)
    graph = _Conversion(net, choices, rounding, batch_norm == "shared").run(controller)
    nested = NestedNet(graph, choices, rounding, mean, std, images.shape[1:])
    _calibrate(nested, images)
    return nested


def _choices(widths: Sequence[int | Choice]) -> tuple[Choice, ...]:
    pairs = [width if isinstance(width, tuple | list) else (width, width) for width in widths]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"widths must be one or more ints or (weight bits, input bits), got {widths}")
    choices = {(require_width(weight_bits), require_width(input_bits)) for weight_bits, input_bits in pairs}
    return tuple(sorted(choices, key=lambda pair: (pair[0] * pair[1], pair)))


@torch.no_grad()
def _calibrate(nested: NestedNet, images: NDArray[np.uint8]) -> None:
    table = torch.from_numpy(normalization_table(nested.mean, nested.std))
    x = table[torch.arange(3), torch.from_numpy(images).long()].permute(0, 3, 1, 2)
    widest = [len(nested.choices) - 1] * len(nested.switch_layers)
    layers = nested.switch_layers + nested.fixed_layers
    handles = [layer.register_forward_hook(_count) for layer in layers]
    nested.eval().graph(x, Selection(widest, is_calibrating=True))
    for handle in handles:
        handle.remove()


def _count(layer: nn.Module, arguments: tuple[Any, ...], out: torch.Tensor) -> None:
    assert isinstance(layer, SwitchLayer)
    layer.macs = layer.weight.numel() * out[0, 0].numel()


class _Conversion:
    """Walks the float model's graph and builds the graph of nested codes.

    A value is either codes or real ("wide": what an accumulator becomes after its batch norm). A wide value
    that a layer or pool reads, or that has several readers, is rounded to codes where it arises.
    """

    def __init__(
        self, net: nn.Module, choices: tuple[Choice, ...], rounding: Rounding, shared_norm: bool
    ) -> None:
        self.old = _trace(copy.deepcopy(net))
        self.modules = dict(self.old.named_modules())
        self.choices, self.rounding, self.shared_norm = choices, rounding, shared_norm
        layers = [node for node in self.old.graph.nodes if self._is_layer(node)]
        if len(layers) < 3:
            raise ValueError(
                f"the model has {len(layers)} convolution or linear layers; convert needs at least 3"
            )
        self.first, self.indices = layers[0], {node: i for i, node in enumerate(layers[1:-1])}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.signed: dict[fx.Node, bool] = {}  # of the new nodes that hold codes

    def run(self, controller: bool) -> fx.GraphModule:
        self.wants_controller = controller
        for node in self.old.graph.nodes:
            self._convert_node(node)
        return fx.GraphModule(self.root, self.graph)

    def _convert_node(self, node: fx.Node) -> None:
        module, function = self._module_of(node), _function(node)
        if node.op == "placeholder":
            images, self.selection = (self.graph.placeholder(name) for name in (node.name, "selection"))
            self._wide(node, images)
        elif node.op == "output":
            self._output(node)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            self._layer(node, module)
        elif isinstance(module, nn.ReLU | nn.ReLU6) or function in (*_RELUS, functional.relu6):
            is_six = isinstance(module, nn.ReLU6) or function is functional.relu6
            self._codes(node, self._input(node), signed=False, limit=6.0 if is_six else None)
        elif function in _ADDITIONS:
            terms = tuple(self.new[term] for term in node.all_input_nodes)
            if len(terms) != 2 or node.kwargs:
                raise ValueError(
                    f"{node.format_node()}: convert can add two tensors, not a tensor and a constant, "
                    "itself or a multiple"
                )
            self._wide(node, self.graph.call_function(add, terms))
        elif isinstance(module, nn.MaxPool2d):
            self._max_pool(node, module)
        elif self._is_global_mean(node):
            self._mean_pool(node)
        elif isinstance(module, nn.BatchNorm2d) and self._absorbing_layer(node) is not None:
            pass  # converted together with the layer before it
        elif self._is_passed(node):
            self._pass(node)
        else:
            what = node.format_node() if module is None else f"{node.target}: {module}"
            raise ValueError(
                f"convert has no integer form for `{what}`; it knows Conv2d, Linear, "
                "BatchNorm2d after Conv2d, ReLU, ReLU6, addition, MaxPool2d, global mean, flatten and dropout"
            )

    def _output(self, node: fx.Node) -> None:
        results = node.all_input_nodes
        if len(results) != 1 or self.new[results[0]] in self.signed:
            raise ValueError(
                f"the model returns {node.args[0]}; it must end with one linear layer or global mean"
            )
        self.graph.output(self.new[results[0]])

    def _layer(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        norm_node = self._absorbed_norm(node)
        norm = None if norm_node is None else self.modules[str(norm_node.target)]
        if norm is not None and not (norm.affine and norm.track_running_stats):
            raise ValueError(f"{norm}: convert needs batch norm with affine and track_running_stats")
        if isinstance(layer, nn.Linear) != self._is_flat(node.all_input_nodes[0]):
            raise ValueError(
                f"`{node.target}` ({layer}): convert needs linear layers after a global mean, such as "
                "AdaptiveAvgPool2d(1), and convolutions before it"
            )
        index = self.indices.get(node)
        switch_layer = SwitchLayer(layer, norm, self.choices, self.rounding, index, self.shared_norm)
        out = self._module(node, switch_layer, self._input(node))
        self._wide(node if norm_node is None else norm_node, out)

    def _max_pool(self, node: fx.Node, pool: nn.MaxPool2d) -> None:
        sizes = [size for size in (pool.kernel_size, pool.stride, pool.padding) if isinstance(size, int)]
        if len(sizes) != 3 or pool.dilation != 1 or pool.ceil_mode or pool.return_indices:
            raise ValueError(
                f"{pool}: convert knows MaxPool2d with one size for both axes, dilation 1, no ceil_mode "
                "and no return_indices"
            )
        x = self._input(node)
        self.new[node] = self._module(node, CodedMaxPool(*sizes), x)
        self.signed[self.new[node]] = self.signed[x]

    def _mean_pool(self, node: fx.Node) -> None:
        x = self._input(node)
        self._wide(node, self._module(node, MeanPool(), x), signed=self.signed[x])

    def _pass(self, node: fx.Node) -> None:
        is_flatten = isinstance(self._module_of(node), nn.Flatten) or _function(node) in _FLATTEN
        if is_flatten and not self._is_flat(node):
            raise ValueError(
                f"`{node.name}` flattens height and width; convert needs a global mean, such as "
                "AdaptiveAvgPool2d(1), before it"
            )
        self.new[node] = self._input(node)

    def _wide(self, node: fx.Node, out: fx.Node, signed: bool = True) -> None:
        self.new[node] = out
        readers = list(self._readers(node))
        if any(not self._takes_wide(reader) for reader in readers) or len(readers) > 1:
            self._codes(node, out, signed)

    def _codes(self, node: fx.Node, x: fx.Node, signed: bool, limit: float | None = None) -> None:
        is_switched = any(reader in self.indices for reader in self._reading_layers(node))
        widths = tuple(bits for _, bits in self.choices) if is_switched else (MASTER_WIDTH,)
        self.new[node] = self._module(node, Quantizer(signed, limit, widths), x, suffix="codes")
        self.signed[self.new[node]] = signed
        is_stem = sum(isinstance(module, Quantizer) for module in self.root.modules()) == 2
        if self.wants_controller and is_stem:
            self._insert_controller(node, signed)

    def _insert_controller(self, node: fx.Node, signed: bool) -> None:
        channels = len(self.modules[str(self.first.target)].weight)
        controller = Controller(channels, len(self.indices), self.choices, self.rounding, signed=signed)
        self.root.add_module("controller", controller)
        stem = self.new[node]
        self.new[node] = self.graph.call_module("controller", (stem, self.selection))
        self.signed[self.new[node]] = signed

    def _module(self, node: fx.Node, module: nn.Module, x: fx.Node, suffix: str = "") -> fx.Node:
        name = (
            str(node.target)
            if isinstance(module, SwitchLayer)
            else f"{node.name}_{suffix}".rstrip("_")  # a pool or ReLU may be called twice
        )
        *parents, leaf = name.split(".")
        holder = self.root
        for parent in parents:
            if not hasattr(holder, parent):
                holder.add_module(parent, nn.Module())
            holder = getattr(holder, parent)
        if hasattr(holder, leaf):
            raise ValueError(
                f"module `{name}` is called twice; convert needs a module of its own for every call"
            )
        holder.add_module(leaf, module)
        takes_selection = isinstance(module, Quantizer | SwitchLayer)
        return self.graph.call_module(name, (x, self.selection) if takes_selection else (x,))

    def _input(self, node: fx.Node) -> fx.Node:
        return self.new[node.all_input_nodes[0]]

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Conv2d | nn.Linear)

    def _absorbed_norm(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        is_norm = len(users) == 1 and users[0].op == "call_module"
        return (
            users[0] if is_norm and isinstance(self.modules[str(users[0].target)], nn.BatchNorm2d) else None
        )

    def _absorbing_layer(self, norm: fx.Node) -> fx.Node | None:
        before = norm.all_input_nodes[0]
        return before if self._is_layer(before) and self._absorbed_norm(before) is norm else None

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a value, seen through flatten, dropout and identity."""
        readers = []
        for user in node.users:
            readers += self._readers(user) if self._is_passed(user) else [user]
        return readers

    def _reading_layers(self, node: fx.Node) -> list[fx.Node]:
        """The layers that read a value's codes, seen through max-pools too."""
        layers = []
        for reader in self._readers(node):
            is_pool = isinstance(self._module_of(reader), nn.MaxPool2d)
            layers += self._reading_layers(reader) if is_pool else [reader] * self._is_layer(reader)
        return layers

    def _takes_wide(self, reader: fx.Node) -> bool:
        is_relu = isinstance(self._module_of(reader), nn.ReLU | nn.ReLU6)
        functions = (*_RELUS, functional.relu6, *_ADDITIONS)
        return is_relu or reader.op == "output" or _function(reader) in functions

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _is_passed(self, node: fx.Node) -> bool:
        is_module = isinstance(self._module_of(node), nn.Identity | nn.Dropout | nn.Flatten)
        return is_module or _function(node) in _FLATTEN

    def _is_flat(self, node: fx.Node) -> bool:
        """Whether a value is (N, C), without height and width."""
        if node.op == "placeholder" or self._is_layer(node):
            return isinstance(self._module_of(node), nn.Linear)
        inputs = node.all_input_nodes
        return self._is_global_mean(node) or (bool(inputs) and self._is_flat(inputs[0]))

    def _is_global_mean(self, node: fx.Node) -> bool:
        module, function = self._module_of(node), _function(node)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return module.output_size in (1, (1, 1))
        argument = node.args[1] if len(node.args) > 1 else None
        if function is functional.adaptive_avg_pool2d:
            return node.kwargs.get("output_size", argument) in (1, (1, 1), [1, 1])
        axes = node.kwargs.get("dim", argument)
        is_plane = isinstance(axes, tuple | list) and {
            -2 if a == 2 else -1 if a == 3 else a for a in axes
        } == {-2, -1}
        return function in _MEANS and is_plane


def _function(node: fx.Node) -> Any:
    """The function, or the name of the method, that a node calls; None where it calls a module."""
    return node.target if node.op in ("call_function", "call_method") else None


def _trace(net: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(net)
    except fx.proxy.TraceError as error:
        raise ValueError(
            f"the model's forward cannot be traced ({error}); convert needs one without branches on values"
        ) from error
