"""A float model as a graph that `convert` can read, and what it asks of it."""

from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from dqt_core.training.conversion import moves
from dqt_core.training.conversion.forms import (
    ADDITIONS,
    COPIES,
    EXPANSIONS,
    IN_PLACE,
    MEANS,
    PRODUCTS,
    RESHAPES,
    form_of,
    function_of,
    is_skipped,
)
from dqt_core.training.conversion.ordinary import KNOWN
from dqt_core.training.conversion.tracing import first_line, trace

# what selects channels or pixels, and what does the same
_SELECTION = (
    "; a 1x1 convolution with weights 0 and 1 selects the same channels, with stride 2 the same pixels"
)
_CONSTANT = ", a tensor of the model's own; what normalises the images is mean and std of convert"
_SOFTMAX = "; return the logits, or log_softmax of them, instead: the largest is the same class"
_HINTS = {
    **dict.fromkeys(("getitem", "chunk", "split", "pad"), _SELECTION),
    **dict.fromkeys(("softmax", "log_softmax"), _SOFTMAX),
    "mean": " but over height and width, x.mean((2, 3))",
}
Pads = tuple[int, int, int, int]  # left, right, above, below


class FloatGraph:
    """The graph of a float model, and what `convert` asks of it.

    Parameters
    ----------
    net : Module
        Float32, on the CPU, in evaluation mode; ordinary in the sense of `ordinary.require_ordinary`.

    Attributes
    ----------
    nodes : list of fx.Node
        In the order of their calls; after `run` those alone that make tensors.
    shapes : dict of fx.Node to tuple of int
        Of every tensor, for one image; filled by `run`.
    layers : list of fx.Node
        The convolutions and linear layers among them.

    Raises
    ------
    ValueError
        If the forward cannot be traced.

    Examples
    --------
    >>> import torch
    >>> graph = FloatGraph(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval())
    >>> graph.run(torch.zeros(1, 3, 8, 8))
    >>> layer = graph.layers[0]
    >>> graph.describe(layer), graph.shapes[layer], graph.absorbed_norm(layer).target
    ('`0: Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))`', (1, 8, 6, 6), '1')
    """

    def __init__(self, net: nn.Module) -> None:
        self.net, self.modules = net, dict(net.named_modules(remove_duplicate=False))
        self.graph = trace(net)
        self._follow_in_place()
        self._drop_unread()
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._list()

    def _list(self) -> None:
        self.nodes = list(self.graph.nodes)
        self.layers = [node for node in self.nodes if self.is_layer(node)]

    def run(self, image: Tensor) -> None:
        """Take every value's shape from a pass of one image (1, C, H, W), and write numbers for sizes."""
        interpreter = _Values(self, tuple(image.shape))
        interpreter.extra_traceback = False
        interpreter.run(image)
        self.shapes = {n: tuple(v.shape) for n, v in interpreter.env.items() if isinstance(v, Tensor)}
        self._fold(interpreter.env)
        self._list()

    def _fold(self, values: dict[fx.Node, Any]) -> None:
        """Put what is no tensor, such as a size, into the calls that read it."""
        known = {n: v for n, v in values.items() if n.op != "output" and not _holds_tensors(v)}
        for node in self.graph.nodes:
            node.args = fx.map_arg(node.args, lambda n: known.get(n, n))
            node.kwargs = fx.map_arg(node.kwargs, lambda n: known.get(n, n))
        for node in reversed(self.graph.nodes):
            if node in known:
                self.graph.erase_node(node)

    def _follow_in_place(self) -> None:
        """Let what reads a value after it was changed in place read the result of the change."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if not self._is_in_place(node):
                continue
            changed = node.all_input_nodes[0]
            while True:
                changed.replace_all_uses_with(
                    node, lambda user, change=node: order[user] > order[change], propagate_meta=False
                )
                if not self._is_view(changed):
                    break
                changed = changed.all_input_nodes[0]

    def _drop_unread(self) -> None:
        """Leave out what is computed and never read; other functions may act by a side effect."""
        for node in reversed(self.graph.nodes):
            is_known = isinstance(self.module_of(node), KNOWN) or function_of(node) in ADDITIONS
            if is_known and not node.users:
                self.graph.erase_node(node)

    def _is_in_place(self, node: fx.Node) -> bool:
        is_asked = node.kwargs.get("inplace", len(node.args) > 1 and node.args[1] is True)
        if function_of(node) in (functional.relu, functional.relu6):
            return bool(is_asked)
        is_module = node.op == "call_module" and getattr(self.module_of(node), "inplace", False)
        return is_module or function_of(node) in IN_PLACE

    def _is_view(self, node: fx.Node) -> bool:
        """Whether a node hands on its input's memory, in evaluation."""
        is_module = isinstance(self.module_of(node), nn.Identity | nn.Flatten | _DropoutNd)
        is_module |= is_skipped(node)
        return is_module or function_of(node) in (*RESHAPES, *COPIES)

    def describe(self, node: fx.Node) -> str:
        """A node in words: its module, or the function and the module whose forward calls it."""
        if node.op == "call_module":
            module = self.module_of(node)
            hint = _SOFTMAX if isinstance(module, nn.Softmax | nn.LogSoftmax) else ""
            return f"`{node.target}: {' '.join(str(module).split())}`{hint}"
        called = getattr(node.target, "__name__", str(node.target).removeprefix("net."))
        (path, (_, kind)) = list(node.meta.get("nn_module_stack", {"": ("", "")}).items())[-1]
        inside = "" if path in ("", "net") else f" in `{path}` ({kind.__name__})"
        hint = _CONSTANT if node.op == "get_attr" else _HINTS.get(called, "")
        return f"`{called}`{inside}{hint}"

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or that does what the function does that it calls; None: neither."""
        return self.modules[str(node.target)] if node.op == "call_module" else form_of(node)

    def is_layer(self, node: fx.Node) -> bool:
        """Whether a node is a convolution or linear layer."""
        return isinstance(self.module_of(node), nn.Conv2d | nn.Linear)

    def is_relu(self, node: fx.Node) -> bool:
        """Whether a node is a ReLU or ReLU6, module or function."""
        return isinstance(self.module_of(node), nn.ReLU | nn.ReLU6)

    def is_norm(self, node: fx.Node) -> bool:
        """Whether a node is a batch norm."""
        return isinstance(self.module_of(node), nn.BatchNorm1d | nn.BatchNorm2d)

    def absorbed_norm(self, layer: fx.Node) -> fx.Node | None:
        """The batch norm that is a layer's only reader."""
        users = list(layer.users)
        return users[0] if len(users) == 1 and self.is_norm(users[0]) else None

    def is_absorbed(self, norm: fx.Node) -> bool:
        """Whether a node is a batch norm that belongs to the layer before it."""
        if not self.is_norm(norm):
            return False
        before = norm.all_input_nodes[0]
        return self.is_layer(before) and self.absorbed_norm(before) is norm

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a value, seen through what hands it on."""
        readers = []
        for user in node.users:
            readers += self.readers(user) if self.is_passed(user) else [user]
        return readers

    def reading_layers(self, node: fx.Node) -> list[fx.Node]:
        """The layers that read a value's codes, seen through max-pools too."""
        layers = []
        for reader in self.readers(node):
            is_pool = isinstance(self.module_of(reader), nn.MaxPool2d)
            layers += self.reading_layers(reader) if is_pool else [reader] * self.is_layer(reader)
        return layers

    def behind(self, layer: fx.Node) -> set[fx.Node]:
        """A layer and all that its output reaches."""
        reached = {layer}
        for node in self.nodes:
            if reached & set(node.all_input_nodes):
                reached.add(node)
        return reached

    def is_passed(self, node: fx.Node) -> bool:
        """Whether a node hands its input on: flatten, identity, dropout that evaluation switches off."""
        if self.margins(node) is not None or self.is_spread(node):
            return True
        is_pool = isinstance(self.module_of(node), nn.AvgPool2d | nn.AdaptiveAvgPool2d)
        if not is_pool and not self._is_view(node):
            return False
        after, before = self.shapes[node], self.shapes[node.all_input_nodes[0]]
        if is_pool:  # of windows of one pixel
            return after == before and getattr(self.module_of(node), "kernel_size", 1) in (1, (1, 1))
        return len(before) in (2, 4) and (after == before or len(after) < 4)

    def is_spread(self, node: fx.Node) -> bool:
        """Whether a node makes one pixel of a row of numbers, or a map of one pixel, for products alone."""
        if function_of(node) not in (*RESHAPES, *EXPANSIONS) and not moves.adds_axes(node):
            return False
        before, after = self.shapes.get(node.all_input_nodes[0], ()), self.shapes[node]
        is_pixel = after[2:] in ((1,), (1, 1)) or function_of(node) in EXPANSIONS
        is_one = (
            len(after) in (3, 4) and is_pixel and before in [after[:2] + (1,) * ones for ones in range(3)]
        )
        if len(after) == 3:  # on its way to four: a product with (1, C, 1) would be one of rows
            return is_one and bool(node.users) and all(map(self.is_spread, node.users))
        return is_one and {function_of(reader) in PRODUCTS for reader in self.readers(node)} == {True}

    def margins(self, node: fx.Node) -> Pads | None:
        """The zeros that a node puts around a map that convolutions alone read; None where it is no such."""
        dimensions = [len(self.shapes.get(before, ())) for before in node.all_input_nodes]
        pads = moves.margins(node, self.module_of(node), *dimensions[:1] or [0])
        is_read = all(isinstance(self.module_of(user), nn.Conv2d) for user in node.users)
        return pads if is_read else None

    def is_global_mean(self, node: fx.Node) -> bool:
        """Whether a node is the mean over height and width."""
        module, before = self.module_of(node), [self.shapes.get(n, ()) for n in node.all_input_nodes]
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return module.output_size in (1, (1, 1), [1, 1])
        if isinstance(module, nn.AvgPool2d):
            kernel = module.kernel_size
            is_plain = module.padding in (0, (0, 0)) and module.divisor_override is None
            return is_plain and (2 * (kernel,) if isinstance(kernel, int) else tuple(kernel)) == before[0][2:]
        axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        return (
            function_of(node) in MEANS
            and len(before[0]) == 4
            and isinstance(axes, tuple | list)
            and {axis % 4 for axis in axes} == {2, 3}
        )


class _Values(fx.Interpreter):
    """Runs the model call by call, and keeps what each one makes."""

    def __init__(self, float_graph: FloatGraph, image: tuple[int, ...]) -> None:
        super().__init__(float_graph.net, garbage_collect_values=False, graph=float_graph.graph)
        self.float_graph, self.image = float_graph, image

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise ValueError(
                f"the model itself fails on an image {self.image}, at {self.float_graph.describe(n)}: "
                f"{first_line(error)}"
            ) from error


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value)
    )
