"""A trace of a float model: the graph of its calls, by the names that it has for its modules."""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dqt_core.training.conversion.ordinary import KNOWN, is_plain


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
        self.entered = module_qualified_name.removeprefix("net").removeprefix(".")
        for kind in (*KNOWN, nn.Identity, nn.Flatten):
            if isinstance(m, kind):
                return is_plain(m, kind)
        return super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        """Its name in the model."""
        return super().path_of_module(mod).removeprefix("net.")

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, and whether the model would compute it in a lower precision."""
        self.is_autocast |= any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
        if kind == "placeholder":
            target = self.argument
        elif kind == "get_attr":
            target = target.removeprefix("net.")
        return super().create_node(kind, target, *args, **kwargs)


def first_line(error: Exception) -> str:
    r"""What an error says, in one line.

    Examples
    --------
    >>> first_line(ValueError("too wide\nsee above")), first_line(KeyError())
    ('too wide', 'KeyError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def trace(net: nn.Module) -> fx.Graph:
    """The graph of a model's calls.

    Raises
    ------
    ValueError
        If its forward cannot be traced, takes more than images, or computes in a lower precision.

    Parameters
    ----------
    net : Module
        Its forward takes images alone.

    Returns
    -------
    fx.Graph

    Examples
    --------
    >>> [node.op for node in trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
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
        where = f"in or after `{tracer.entered}`" if tracer.entered else "before the first layer"
        raise ValueError(
            f"the model's forward cannot be traced ({first_line(error)}; {where}); "
            "convert needs one without branches on values and shapes"
        ) from error
    if tracer.is_autocast:
        raise ValueError("the model's forward switches autocast on; convert needs one in float32: remove it")
    return graph


def without_log_softmax(net: nn.Module) -> nn.Module:
    """The model without a log_softmax at its end, which changes no class and no difference of logits.

    Parameters
    ----------
    net : Module

    Returns
    -------
    Module
        The same one where it ends otherwise.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> without_log_softmax(nn.Sequential(nn.ReLU(), nn.LogSoftmax(1)))(x)
    tensor([[1., 2.]])
    """
    graph = trace(net)
    last = next(iter(reversed(graph.nodes))).args[0]
    if not isinstance(last, fx.Node) or _log_softmax_axis(net, last) not in (1, -1):
        return net
    last.replace_all_uses_with(last.all_input_nodes[0])
    graph.erase_node(last)
    return fx.GraphModule(net, graph).train(net.training)


def _log_softmax_axis(net: nn.Module, node: fx.Node) -> Any:
    """The axis of a node that is a log_softmax; None of another."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return module.dim if isinstance(module, nn.LogSoftmax) else None
    if node.target not in (functional.log_softmax, torch.log_softmax, "log_softmax"):
        return None
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
