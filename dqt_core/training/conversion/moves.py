"""Calls of a model that move numbers and compute nothing: slices, paddings, shuffles of channels."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dqt_core.training.conversion.forms import COPIES, RESHAPES, function_of
from dqt_core.training.parts import Pick, taken

MOVES = (
    *(operator.getitem, functional.pad, torch.chunk, "chunk", torch.split, "split"),
    *(torch.transpose, "transpose", torch.permute, "permute", *RESHAPES, *COPIES),
)
Shapes = Mapping[fx.Node, tuple[int, ...]]


def is_move(node: fx.Node) -> bool:
    """Whether a node moves numbers.

    Examples
    --------
    >>> [is_move(fx.Graph().call_method(name, ("x",))) for name in ("contiguous", "relu")]
    [True, False]
    """
    return function_of(node) in MOVES


def adds_axes(node: fx.Node) -> bool:
    """Whether a node only adds axes of one: ``y[:, :, None, None]``, or one by `unsqueeze`.

    Examples
    --------
    >>> x = fx.Graph().placeholder("x")
    >>> adds_axes(x.graph.call_function(operator.getitem, (x, (slice(None), slice(None), None, None))))
    True
    """
    if function_of(node) is not operator.getitem:
        return function_of(node) in (torch.unsqueeze, "unsqueeze")
    given = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(index is None or index is ... or index == slice(None) for index in given)


def source(node: fx.Node) -> fx.Node:
    """The value whose numbers a chain of moves moves.

    Examples
    --------
    >>> x = fx.Graph().placeholder("x")
    >>> source(x.graph.call_method("contiguous", (x.graph.call_method("detach", (x,)),)))
    x
    """
    while is_move(node):
        node = node.all_input_nodes[0]
    return node


def pick(node: fx.Node, shapes: Shapes) -> Pick | None:
    """What a chain of moves takes of its source; None where no 1x1 convolution of 0 and 1 does the same.

    Parameters
    ----------
    node : Node
        The last of the chain.
    shapes : mapping of Node to tuple of int
        Of one image.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> every_other = slice(None), slice(2, None), ..., slice(None, None, 2)
    >>> pick(graph.call_function(operator.getitem, (x, every_other)), {x: (1, 4, 1, 6)})
    Pick(channels=(2, 3), stride=2)
    """
    base = source(node)
    if len(shapes[base]) != 4:
        return None
    numbers = torch.arange(1.0, torch.Size(shapes[base]).numel() + 1, dtype=torch.float64)
    numbers = numbers.reshape(shapes[base])
    moved = _moved(node, base, numbers)
    if not isinstance(moved, Tensor) or moved.ndim != 4 or 0 in moved.shape:
        return None
    height, width = shapes[base][2:]
    corner = moved[0, :, 0, 0].long()
    channels = torch.where(corner > 0, (corner - 1) // (height * width), -1)
    stride = max(-(-height // moved.shape[2]), -(-width // moved.shape[3]))
    if not torch.equal(moved, taken(numbers, channels, stride)):
        return None
    return Pick(tuple(channels.tolist()), stride)


def _moved(node: fx.Node, base: fx.Node, numbers: Tensor) -> Any:
    if node is base:
        return numbers

    def of(argument: fx.Node) -> Any:
        return _moved(argument, base, numbers)

    x, *arguments = fx.map_arg(node.args, of)
    options = fx.map_arg(node.kwargs, of)
    if node.op == "call_method":
        return getattr(x, str(node.target))(*arguments, **options)
    assert callable(node.target)
    return node.target(x, *arguments, **options)


def margins(node: fx.Node, module: nn.Module | None, dimensions: int) -> tuple[int, int, int, int] | None:
    """Zeros that a node puts left, right, above and below of a map; None where it does anything else.

    Examples
    --------
    >>> margins(fx.Graph().call_function(functional.pad, ("x", (1, 2))), None, 4)
    (1, 2, 0, 0)
    """
    if isinstance(module, nn.ZeroPad2d):
        given: dict[str, Any] = {"pad": module.padding}
    elif function_of(node) is functional.pad:
        given = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)) | node.kwargs
    else:
        return None
    pads: tuple[int, ...] = tuple(given["pad"])
    is_zero = given.get("mode", "constant") == "constant" and not given.get("value")
    if not is_zero or len(pads) > 4 or dimensions != 4 or min(pads, default=0) < 0:
        return None
    left, right, above, below = (*pads, 0, 0, 0, 0)[:4]
    return left, right, above, below
