"""A float model as a graph that `convert` can read; what computes otherwise than it is written is refused."""

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_FLATTEN = (torch.flatten, "flatten")
_MEANS = (torch.mean, "mean")
_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d)
_IN_PLACE = (operator.iadd, torch.relu_, "relu_", "add_")
# nothing of torch's own that is derived from these is them: quantized, fake-quantized or lazy layers
_KNOWN = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AdaptiveAvgPool2d)

# modules that stand for another one, and where that is
_STAND_INS: tuple[tuple[tuple[type, ...], str, str], ...] = (
    ((torch.jit.ScriptModule,), "scripted or traced", "the Python module it was made from"),
    ((torch._dynamo.OptimizedModule,), "compiled", "the module before torch.compile, its `_orig_mod`"),
    ((nn.DataParallel, nn.parallel.DistributedDataParallel), "wrapped for several devices", "its `module`"),
)
# what makes a weight out of other tensors in a hook, and the call that makes it a parameter again
_MAKERS: tuple[tuple[type, str], ...] = (
    (WeightNorm, "torch.nn.utils.remove_weight_norm(module)"),
    (SpectralNorm, "torch.nn.utils.remove_spectral_norm(module)"),
    (BasePruningMethod, "torch.nn.utils.prune.remove(module, '{}')"),
)
# what selects channels or pixels, and what does the same
_SELECTIONS = ("getitem", "chunk", "split")
_SELECTION = (
    "; a 1x1 convolution with weights 0 and 1 selects the same channels, with stride 2 the same pixels"
)


def require_ordinary(net: nn.Module) -> None:
    """Refuse a model that a copy of its modules and a trace of its forward do not reproduce.

    Parameters
    ----------
    net : Module

    Raises
    ------
    ValueError
        If a module stands for another one, computes its weights, or has forward hooks; or if a tensor has no
        numbers, is not dense, or holds NaN or infinity.

    Examples
    --------
    >>> require_ordinary(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    Traceback (most recent call last):
    ValueError: `weight` of the model is computed from other tensors; training could not move it: call \
torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"the model is a {type(net).__name__}, expected an nn.Module")
    for name, module in net.named_modules():
        where = f"`{name}`" if name else "the model"
        for kinds, what, original in _STAND_INS:
            if isinstance(module, kinds):
                raise ValueError(f"{where} is {what}; give convert {original}")
        _require_own_weights(where, module)
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{where} has a forward hook, which convert would lose; remove it (handle.remove()) or put "
                "what it does into forward"
            )
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        _require_numbers(name, tensor)


def _require_own_weights(where: str, module: nn.Module) -> None:
    for name in ("weight", "bias"):
        tensor = getattr(module, name, None)
        if isinstance(module, _KNOWN) and isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
            way_out = f"module.{name} = nn.Parameter(module.{name}.detach())"
            if parametrize.is_parametrized(module, name):
                way_out = f"torch.nn.utils.parametrize.remove_parametrizations(module, '{name}')"
            for hook in module._forward_pre_hooks.values():
                way_out = next((call for kind, call in _MAKERS if isinstance(hook, kind)), way_out)
            raise ValueError(
                f"`{name}` of {where} is computed from other tensors; training could not move it: "
                f"call {way_out.format(name)}"
            )


def _require_numbers(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        raise ValueError(f"`{name}` has no numbers yet; load the model's weights, or run it once, first")
    if tensor.layout != torch.strided or type(tensor.data) is not Tensor or tensor.is_complex():
        kind = f"{type(tensor.data).__name__} of {tensor.dtype}, {tensor.layout}"
        raise ValueError(f"`{name}` is a {kind}, expected an ordinary dense tensor of real numbers")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(
            f"`{name}` holds NaN or infinite numbers; its training diverged: go back to an earlier checkpoint"
        )


class _Given(nn.Module):
    """Calls the model as its user does: with its hooks, its defaults, and the forward of this instance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        """What the model returns."""
        return self.net(x)


class _Tracer(fx.Tracer):
    """Names everything as a trace of the model alone would."""

    def __init__(self, argument: str) -> None:
        super().__init__()
        self.argument, self.entered, self.is_autocast = argument, "", False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A module of a known kind, or another of torch's."""
        self.entered = module_qualified_name.removeprefix("net.")
        for kind in (*_KNOWN, nn.Identity, nn.Flatten):
            if isinstance(m, kind):
                return is_plain(m, kind)
        return super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        """Its name in the model."""
        return super().path_of_module(mod).removeprefix("net.")

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, and whether the model would compute it in a lower precision."""
        self.is_autocast |= any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
        return super().create_node(kind, self.argument if kind == "placeholder" else target, *args, **kwargs)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what its kind does, and not what a class derived from it makes of it."""
    own = {name for cls in type(module).__mro__[: type(module).__mro__.index(kind)] for name in vars(cls)}
    return not (own | set(vars(module))) & {"forward", "_conv_forward", "__call__", "_call_impl"}


class FloatGraph:
    """The graph of a float model, and what `convert` asks of it.

    Parameters
    ----------
    net : Module
        Float32, on the CPU, in evaluation mode; ordinary in the sense of `require_ordinary`.

    Attributes
    ----------
    nodes : list of fx.Node
        In the order of their calls.
    shapes : dict of fx.Node to tuple of int
        Of every value, for one image; filled by `run`.

    Raises
    ------
    ValueError
        If the forward cannot be traced.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net, self.modules = net, dict(net.named_modules(remove_duplicate=False))
        self.graph = _trace(net)
        self._follow_in_place()
        self._drop_unread()
        self.nodes = list(self.graph.nodes)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.layers = [node for node in self.nodes if self.is_layer(node)]

    def run(self, image: Tensor) -> None:
        """Take every value's shape from a pass of one image (1, C, H, W)."""
        interpreter = _Shapes(self)
        interpreter.extra_traceback = False
        interpreter.run(image)

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
                if not self.is_passed(changed):
                    break
                changed = changed.all_input_nodes[0]

    def _drop_unread(self) -> None:
        """Leave out what is computed and never read; other functions may act by a side effect."""
        for node in reversed(self.graph.nodes):
            is_known = isinstance(self.module_of(node), _KNOWN) or function_of(node) in (*ADDITIONS, *RELUS)
            if is_known and not node.users:
                self.graph.erase_node(node)

    def _is_in_place(self, node: fx.Node) -> bool:
        is_asked = node.kwargs.get("inplace", len(node.args) > 1 and node.args[1] is True)
        if function_of(node) in (functional.relu, functional.relu6):
            return bool(is_asked)
        return getattr(self.module_of(node), "inplace", False) or function_of(node) in _IN_PLACE

    def describe(self, node: fx.Node) -> str:
        """A node in words: its module, or the function and the module whose forward calls it."""
        module = self.module_of(node)
        if module is not None:
            return f"`{node.target}: {' '.join(str(module).split())}`"
        called = getattr(node.target, "__name__", str(node.target).removeprefix("net."))
        (path, (_, kind)) = list(node.meta.get("nn_module_stack", {"": ("", "")}).items())[-1]
        inside = "" if path in ("", "net") else f" in `{path}` ({kind.__name__})"
        return f"`{called}`{inside}" + (_SELECTION if called in _SELECTIONS else "")

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def is_layer(self, node: fx.Node) -> bool:
        """Whether a node is a convolution or linear layer."""
        return isinstance(self.module_of(node), nn.Conv2d | nn.Linear)

    def is_relu(self, node: fx.Node) -> bool:
        """Whether a node is a ReLU or ReLU6, module or function."""
        is_module = isinstance(self.module_of(node), nn.ReLU | nn.ReLU6)
        return is_module or function_of(node) in (*RELUS, functional.relu6)

    def absorbed_norm(self, layer: fx.Node) -> fx.Node | None:
        """The batch norm that is a layer's only reader."""
        users = list(layer.users)
        is_norm = len(users) == 1 and isinstance(self.module_of(users[0]), nn.BatchNorm2d)
        return users[0] if is_norm else None

    def is_absorbed(self, norm: fx.Node) -> bool:
        """Whether a node is a batch norm that belongs to the layer before it."""
        if not isinstance(self.module_of(norm), nn.BatchNorm2d):
            return False
        before = norm.all_input_nodes[0]
        return self.is_layer(before) and self.absorbed_norm(before) is norm

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a value, seen through flatten, dropout and identity."""
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

    def is_flatten(self, node: fx.Node) -> bool:
        """Whether a node flattens, module or function."""
        return isinstance(self.module_of(node), nn.Flatten) or function_of(node) in _FLATTEN

    def is_passed(self, node: fx.Node) -> bool:
        """Whether a node hands its input on: flatten, identity, dropout that evaluation switches off."""
        is_module = isinstance(self.module_of(node), nn.Identity | _DropoutNd)
        is_dropout = function_of(node) in _DROPOUTS and node.kwargs.get("training") is False
        return is_module or is_dropout or self.is_flatten(node)

    def is_flat(self, node: fx.Node) -> bool:
        """Whether a value is (N, C) in nested codes: what comes after a global mean."""
        if node.op == "placeholder" or self.is_layer(node):
            return isinstance(self.module_of(node), nn.Linear)
        inputs = node.all_input_nodes
        return self.is_global_mean(node) or (bool(inputs) and self.is_flat(inputs[0]))

    def is_global_mean(self, node: fx.Node) -> bool:
        """Whether a node is the mean over height and width."""
        module, function = self.module_of(node), function_of(node)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return module.output_size in (1, (1, 1))
        argument = node.args[1] if len(node.args) > 1 else None
        if function is functional.adaptive_avg_pool2d:
            return node.kwargs.get("output_size", argument) in (1, (1, 1), [1, 1])
        axes = node.kwargs.get("dim", argument)
        return (
            function in _MEANS
            and isinstance(axes, tuple | list)
            and {-2 if a == 2 else -1 if a == 3 else a for a in axes} == {-2, -1}
        )


class _Shapes(fx.Interpreter):
    def __init__(self, float_graph: FloatGraph) -> None:
        super().__init__(float_graph.net, graph=float_graph.graph)
        self.float_graph = float_graph

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"the model itself fails on an image (3, H, W), at {self.float_graph.describe(n)}: "
                f"{first_line(error)}"
            ) from error
        if isinstance(value, Tensor):
            self.float_graph.shapes[n] = tuple(value.shape)
        return value


def function_of(node: fx.Node) -> Any:
    """The function, or the name of the method, that a node calls; None where it calls a module."""
    return node.target if node.op in ("call_function", "call_method") else None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _trace(net: nn.Module) -> fx.Graph:
    parameters = inspect.signature(net.forward).parameters
    try:
        inspect.signature(net.forward).bind(None)
    except TypeError as error:
        raise ValueError(
            f"the model's forward takes ({', '.join(parameters)}), expected images alone: give the others "
            "defaults"
        ) from error
    tracer = _Tracer(next(iter(parameters)))
    try:
        graph = tracer.trace(_Given(net))
    except Exception as error:  # whatever the model's own code makes of a value without numbers
        raise ValueError(
            f"the model's forward cannot be traced ({first_line(error)}; in or after `{tracer.entered}`); "
            "convert needs one without branches on values and shapes"
        ) from error
    if tracer.is_autocast:
        raise ValueError("the model's forward switches autocast on; convert needs one in float32: remove it")
    return graph
