"""Turn an ordinary float torch model into one of nested codes."""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dqt_core.nested import MASTER_WIDTH, Rounding, require_rounding
from dqt_core.training.controller import Controller
from dqt_core.training.conversion import comparison, moves
from dqt_core.training.conversion.float_graph import FloatGraph
from dqt_core.training.conversion.forms import ADDITIONS, function_of
from dqt_core.training.conversion.joints import (
    Joint,
    bends_later,
    is_concatenation,
    is_signed,
    joint_of,
    scaled_of,
    sources,
    waits,
)
from dqt_core.training.conversion.ordinary import require_ordinary
from dqt_core.training.conversion.tracing import without_log_softmax
from dqt_core.training.inputs import in_float32, in_order, normalized
from dqt_core.training.layers import (
    Choice,
    Margins,
    Quantizer,
    Selection,
    SwitchLayer,
    as_choice,
)
from dqt_core.training.network import NestedNet
from dqt_core.training.parts import Affine, CodedMaxPool, Concatenation, Pick, Picked, Pointwise

_MASTER: Choice = (MASTER_WIDTH, MASTER_WIDTH)


@in_float32()
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
        Convolutions, linear layers, batch norms, ReLU, ReLU6, additions, max-pools, a global mean, flatten,
        and slices or zero channels of a map; left unchanged. It is converted as it is in evaluation mode and
        float32.
    images : uint8 array, (N, H, W, C)
        A few hundred training images, for the steps and for the comparison.
    mean, std : C floats each
        The normalisation the float model was trained with.
    widths : sequence of int or (weight bits, input bits)
        The choices of every switchable layer. The first and last layers stay at 8 bits, so a model of one or
        two layers has no other, and no controller.
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
        If the model holds an operation that has no integer form here, is not what a trace of its forward
        shows, or makes NaN of the images; or an argument is out of range.

    Warns
    -----
    ConversionWarning
        If the converted model, at 8 bits, is not the float model; it names the layer where they part, see
        `comparison`. `NestedNet.differences` holds the figures.

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
    choices, x = choices_of(widths), normalized(images, mean, std)
    require_ordinary(net)
    float_net = without_log_softmax(copy.deepcopy(net).to("cpu", torch.float32).eval())
    plain = in_order(x)

    def converted(choices: tuple[Choice, ...], controller: bool) -> tuple[NestedNet, _Conversion]:
        conversion = _Conversion(float_net, choices, rounding, batch_norm == "shared", controller)
        graph = conversion.run(plain[:1])
        return NestedNet(graph, choices, rounding, mean, std, images.shape[1:]).eval(), conversion

    nested, conversion = converted(choices, controller)
    every = comparison.distance(len(x))
    expected = comparison.outputs_of(float_net, conversion.float_layers, plain[::every].clone())
    found = _calibrated(nested, conversion, x, every)
    if choices[-1] != _MASTER:  # steps for narrow codes clip what codes of 8 bits would hold
        found = _calibrated(*converted((_MASTER,), False), x, every)
    nested.differences = comparison.differences(expected, found)
    return nested


@torch.no_grad()
def _calibrated(nested: NestedNet, conversion: "_Conversion", x: Tensor, every: int) -> dict[str, Tensor]:
    """Take the steps from a pass of the images at the widest choice; a sample of what its layers make."""
    widest = [len(nested.choices) - 1] * len(nested.switch_layers)
    handles = [layer.register_forward_hook(_count) for layer in nested.switch_layers + nested.fixed_layers]
    try:
        calibrating = Selection(widest, is_calibrating=True)
        return comparison.outputs_of(nested.graph, conversion.nested_layers, x, calibrating, every=every)
    finally:
        for handle in handles:
            handle.remove()


def _count(layer: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
    assert isinstance(layer, SwitchLayer)
    terms = layer.weight.shape[1] * math.prod(layer.kernel_written_out())
    layer.macs = layer.weight.shape[0] * terms * out[0, 0].numel()


def choices_of(widths: Iterable[int | Choice]) -> tuple[Choice, ...]:
    """Widths as pairs, each once, from narrow to wide."""
    try:
        choices = {as_choice(width) for width in widths}
    except TypeError:
        choices = set()
    if not choices:
        raise ValueError(f"widths must be one or more ints or (weight bits, input bits), got {widths}")
    return tuple(sorted(choices, key=lambda pair: (pair[0] * pair[1], pair)))


class _Conversion:
    """Walks the float model's graph and builds the graph of nested codes.

    A value is either codes or real ("wide": what an accumulator becomes after its batch norm). A wide value
    that a layer or pool reads, or that has several readers, is rounded to codes where it arises.
    """

    def __init__(
        self,
        net: nn.Module,
        choices: tuple[Choice, ...],
        rounding: Rounding,
        shared_norm: bool,
        controller: bool,
    ) -> None:
        self.old = FloatGraph(net)
        self.choices, self.rounding = choices, rounding
        self.shared_norm, self.wants_controller = shared_norm, controller
        self.root, self.graph = nn.Module(), fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.signed: dict[fx.Node, bool] = {}  # of the new nodes that hold codes
        self.made: dict[str, SwitchLayer] = {}  # by the name of the float layer
        # by the layer's name, in the order of the calls: the float module whose output a layer makes, and it
        self.float_layers: list[tuple[str, nn.Module]] = []
        self.nested_layers: list[tuple[str, nn.Module]] = []

    def run(self, image: Tensor) -> fx.GraphModule:
        if not self.old.layers:
            raise ValueError("the model has no convolution or linear layer; convert needs at least one")
        self._require_channels(self.old.layers[0], image)
        for node in filter(self.old.is_norm, self.old.nodes):
            self._norm(node)
        self.old.run(image)
        layers = self.old.layers
        steps = [(self._step_for(node), node) for node in self.old.nodes]
        self.indices = {node: i for i, node in enumerate(layers[1:-1])}
        self.stem, self.behind_stem = layers[0], self.old.behind(layers[0])
        self.wants_controller &= bool(self.indices)
        if self.wants_controller:
            self._require_name()
        for step, node in steps:
            step(node)
        return fx.GraphModule(self.root, self.graph)

    def _step_for(self, node: fx.Node) -> Callable[[fx.Node], None]:
        """What converts a node, or a refusal."""
        if node.op in ("placeholder", "output"):
            return self._input if node.op == "placeholder" else self._output
        if self.old.is_layer(node):
            return self._layer
        if self.old.is_relu(node):
            return self._relu
        if (joint := joint_of(node, self.old)) is not None:
            return functools.partial(self._joint, joint=joint)
        if self.old.is_absorbed(node):
            return lambda node: None  # converted together with the layer before it
        if self.old.is_norm(node):
            return self._affine
        if self.old.is_passed(node):
            return self._pass
        if moves.is_move(node) and self._pick(node) is not None:
            return self._move
        raise ValueError(
            f"convert has no integer form for {self.old.describe(node)}; it knows Conv2d, Linear, batch "
            "norm, pointwise activations, sums, products, concatenations, pools, flatten, slices of channels "
            "and dropout"
        )

    def _require_channels(self, first: fx.Node, image: Tensor) -> None:
        stem = self.old.module_of(first)
        is_first = first.all_input_nodes[0].op == "placeholder"
        if isinstance(stem, nn.Conv2d) and is_first and stem.in_channels != image.shape[1]:
            raise ValueError(
                f"`{first.target}` reads {stem.in_channels} channels, and the images have "
                f"{image.shape[1]}; give images of {stem.in_channels}, and a mean and a std for each"
            )

    def _require_name(self) -> None:
        if "controller" in self.old.modules:
            raise ValueError(
                "the model has a module `controller`, as convert calls its own; rename it, or convert with "
                "controller=False"
            )

    def _input(self, node: fx.Node) -> None:
        images, self.selection = (self.graph.placeholder(name) for name in (node.name, "selection"))
        self._wide(node, images)

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or self.new[result] in self.signed:
            came = self.old.describe(result) if isinstance(result, fx.Node) else result
            raise ValueError(
                f"the model returns {came}, expected one tensor, of one layer or global mean; leave off what "
                "comes after it"
            )
        self._require_flat(result, "the model returns")
        self.graph.output(self.new[result])

    def _require_flat(self, node: fx.Node, what: str) -> None:
        """A value that nested codes hold as (N, C) is that in the float model too."""
        shape = self.old.shapes[node]
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(
                f"{what} {shape} for one image, expected (1, C); put a global mean, such as "
                "AdaptiveAvgPool2d(1), and flatten(1) before it"
            )

    def _layer(self, node: fx.Node) -> None:
        layer = self.old.module_of(node)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        norm_node = self.old.absorbed_norm(node)
        norm = None if norm_node is None else self._norm(norm_node)
        source = node.all_input_nodes[0]
        if isinstance(layer, nn.Linear):
            self._require_flat(source, f"`{node.target}` reads")
        options = self.indices.get(node), self.shared_norm, self._margins(source)
        try:
            switch_layer = SwitchLayer(layer, norm, self.choices, self.rounding, *options)
        except ValueError as error:
            raise ValueError(f"`{node.target}`: {error}") from error
        if str(node.target) in self.made:  # called again
            switch_layer.share(self.made[str(node.target)])
        self.made.setdefault(str(node.target), switch_layer)
        out = self._module(node, switch_layer, self.new[source])
        # where its norm's output is compared, the layer's own call is not
        self.float_layers.append(("" if norm else str(out.target), layer))
        self.float_layers += [(str(out.target), norm)] if norm else []
        self.nested_layers.append((str(out.target), switch_layer))
        self._wide(node if norm_node is None else norm_node, out)

    def _margins(self, source: fx.Node) -> Margins:
        """Zeros around a layer's input that calls before it make."""
        left = right = above = below = 0
        while self.old.is_passed(source):
            own = self.old.margins(source) or (0, 0, 0, 0)
            left, right, above, below = left + own[0], right + own[1], above + own[2], below + own[3]
            source = source.all_input_nodes[0]
        return left, right, above, below

    def _affine(self, node: fx.Node) -> None:
        source, norm = node.all_input_nodes[0], self._norm(node)
        if self.old.shapes[source][1] != self.old.shapes[moves.source(source)][1]:
            raise ValueError(f"{self.old.describe(node)} reads flattened pixels; put it before the flatten")
        self.float_layers.append(("", norm))
        self._wide(node, self._module(node, Affine(norm), self.new[source]))

    def _pick(self, node: fx.Node) -> Pick | None:
        """What a chain of moves takes, or that it goes on: then its last has the answer."""
        if all(moves.is_move(user) and not self.old.is_passed(user) for user in node.users):
            return Pick((), 1)
        return moves.pick(node, self.old.shapes)

    def _move(self, node: fx.Node) -> None:
        pick = self._pick(node)
        assert pick is not None, "what cannot be picked is refused"
        if not pick.channels:
            return
        base = self.new[moves.source(node)]
        inputs = self.old.shapes[moves.source(node)][1]
        out = self._module(node, Picked(inputs, pick), base)
        self._wide(node, out, self.signed[base])

    def _norm(self, node: fx.Node) -> nn.BatchNorm1d | nn.BatchNorm2d:
        norm = self.old.module_of(node)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if not (norm.affine and norm.track_running_stats and norm.running_var is not None):
            raise ValueError(
                f"{self.old.describe(node)}: convert needs batch norm with affine and track_running_stats"
            )
        return norm

    def _relu(self, node: fx.Node) -> None:
        if waits(node, self.old):
            self.new[node] = self._source(node)
            return
        is_six = isinstance(self.old.module_of(node), nn.ReLU6)
        self._codes(node, self._source(node), signed=False, limit=6.0 if is_six else None)

    def _joint(self, node: fx.Node, joint: Joint) -> None:
        parts = sources(node)
        x = [self.new[part] for part in parts]
        bent = [waits(part, self.old) for part in parts]
        signed = is_signed(joint, [self.signed.get(y, True) and not b for y, b in zip(x, bent, strict=True)])
        out = self.new[node] = self._module(node, joint, *x)
        if isinstance(joint, CodedMaxPool):
            self.signed[out] = signed
        elif isinstance(joint, Pointwise | Concatenation):  # of them sums are no terms
            if isinstance(joint, Pointwise) or not bends_later(node, self.old):
                self._codes(node, out, signed)
        else:
            self._wide(node, out, signed)

    def _pass(self, node: fx.Node) -> None:
        if len(self.old.shapes[node]) < 4 and not self.old.is_spread(node):
            self._require_flat(node, f"`{node.name}` makes")
        self.new[node] = self._source(node)

    def _wide(self, node: fx.Node, out: fx.Node, signed: bool = True) -> None:
        self.new[node] = out
        readers = self.old.readers(node)
        is_image = node.op == "placeholder"  # a program looks its bytes up, as signed codes
        if is_image or len(readers) > 1 or not all(map(self._takes_wide, readers)):
            self._codes(node, out, signed)

    def _takes_wide(self, reader: fx.Node) -> bool:
        is_sum = function_of(reader) in ADDITIONS or is_concatenation(reader)
        is_norm = self.old.is_norm(reader) and not self.old.is_absorbed(reader)
        is_affine = is_norm or scaled_of(reader) is not None
        return is_sum or is_affine or self.old.is_relu(reader) or reader.op == "output"

    def _codes(self, node: fx.Node, x: fx.Node, signed: bool, limit: float | None = None) -> None:
        is_switched = any(reader in self.indices for reader in self.old.reading_layers(node))
        widths = tuple(bits for _, bits in self.choices) if is_switched else (MASTER_WIDTH,)
        self.new[node] = self._module(node, Quantizer(signed, limit, widths), x, suffix="codes")
        self.signed[self.new[node]] = signed
        if self.wants_controller and node in self.behind_stem:
            self._insert_controller(node, signed)

    def _insert_controller(self, node: fx.Node, signed: bool) -> None:
        self.wants_controller = False
        channels, layers = self.old.shapes[node][1], len(self.indices)
        controller = Controller(channels, layers, self.choices, self.rounding, signed=signed)
        self.root.add_module("controller", controller)
        self.new[node] = self.graph.call_module("controller", (self.new[node], self.selection))
        self.signed[self.new[node]] = signed

    def _module(self, node: fx.Node, module: nn.Module, *x: fx.Node, suffix: str = "") -> fx.Node:
        name = str(node.target)
        if not isinstance(module, SwitchLayer) or self.made[name] is not module:  # may be called again
            name = f"{node.name}_{suffix}" if suffix else node.name
            while isinstance(self.old.modules.get(name), nn.Conv2d | nn.Linear):
                name += "_"
        *parents, leaf = name.split(".")
        holder = self.root
        for parent in parents:
            if not hasattr(holder, parent):
                holder.add_module(parent, nn.Module())
            holder = getattr(holder, parent)
        holder.add_module(leaf, module)
        takes_selection = isinstance(module, Quantizer | SwitchLayer)
        return self.graph.call_module(name, (*x, self.selection) if takes_selection else x)

    def _source(self, node: fx.Node) -> fx.Node:
        return self.new[node.all_input_nodes[0]]
