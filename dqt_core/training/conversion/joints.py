"""Where values of a float model meet, or change as no layer changes them: what each such call becomes."""

import operator
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import fx, nn

from dqt_core.training.conversion.float_graph import FloatGraph
from dqt_core.training.conversion.forms import (
    ADDITIONS,
    PRODUCTS,
    function_of,
    max_pool_sizes,
    mean_pool_sizes,
)
from dqt_core.training.parts import (
    Addition,
    CodedMaxPool,
    Concatenation,
    MeanPool,
    Multiplication,
    Pointwise,
    Scaled,
    WindowMean,
)

Joint: TypeAlias = (
    Addition | CodedMaxPool | Concatenation | MeanPool | Multiplication | Pointwise | Scaled | WindowMean
)

CONCATENATIONS = torch.cat, torch.concat, torch.concatenate
_DIFFERENCES = operator.sub, operator.isub, torch.sub, "sub", "sub_"
_QUOTIENTS = operator.truediv, operator.itruediv, torch.div, "div", "div_"
# of torch's, those that compute every number from one number alone, in training as in evaluation
POINTWISE = (
    *(nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Tanhshrink),
)


def joint_of(node: fx.Node, graph: FloatGraph) -> Joint | None:
    """What a node of a float model becomes; None where it is nothing of this kind.

    Raises
    ------
    ValueError
        If it is, and has no integer form.

    Examples
    --------
    >>> graph = FloatGraph(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Hardswish()))
    >>> joint_of(graph.nodes[2], graph)
    Pointwise(
      (function): Hardswish()
    )
    """
    module = graph.module_of(node)
    if (scaled := scaled_of(node)) is not None:
        return scaled
    if function_of(node) in ADDITIONS:
        return _addition(node, graph)
    if function_of(node) in PRODUCTS:
        return _multiplication(node, graph)
    if is_concatenation(node):
        return _concatenation(node, graph)
    if isinstance(module, nn.MaxPool2d):
        return _max_pool(node, module, graph)
    if graph.is_global_mean(node):
        return MeanPool(keep=len(graph.shapes[node]) == 4)
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d) and not graph.is_passed(node):
        return _window_mean(node, module, graph)
    return Pointwise(module) if isinstance(module, POINTWISE) else None


def scaled_of(node: fx.Node) -> Scaled | None:
    """The gain and the bias of a sum, difference, product or quotient of a value and a number.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> scaled = scaled_of(graph.call_function(operator.sub, (1, graph.placeholder("x"))))
    >>> scaled.gain, scaled.bias
    (-1.0, 1.0)
    """
    numbers = [float(given) for given in node.args if isinstance(given, int | float)]
    if len(node.args) != 2 or len(numbers) != 1 or node.kwargs:
        return None
    (number,), is_first = numbers, isinstance(node.args[1], fx.Node)
    if function_of(node) in ADDITIONS:
        return Scaled(1.0, number)
    if function_of(node) in PRODUCTS:
        return Scaled(number, 0.0)
    if function_of(node) in _DIFFERENCES:
        return Scaled(-1.0, number) if is_first else Scaled(1.0, -number)
    is_quotient = function_of(node) in _QUOTIENTS and not is_first and number != 0
    return Scaled(1 / number, 0.0) if is_quotient else None


def is_concatenation(node: fx.Node) -> bool:
    """Whether a node puts values side by side.

    Examples
    --------
    >>> is_concatenation(fx.Graph().call_function(torch.cat, ((), 1)))
    True
    """
    return function_of(node) in CONCATENATIONS


def sources(node: fx.Node) -> list[fx.Node]:
    """What a node reads, in the order of its arguments.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> x, y = graph.placeholder("x"), graph.placeholder("y")
    >>> sources(graph.call_function(torch.cat, ([y, x], 1)))
    [y, x]
    """
    if is_concatenation(node):
        return list(node.args[0] if node.args else node.kwargs["tensors"])  # type: ignore[arg-type]
    return [given for given in node.args if isinstance(given, fx.Node)] or list(node.all_input_nodes)


def is_signed(joint: Joint, signs: Sequence[bool]) -> bool:
    """Whether what a joint makes can be negative, where what it reads can be as `signs` says.

    Examples
    --------
    >>> [is_signed(Pointwise(kind()), [True]) for kind in (nn.Sigmoid, nn.Tanh)]
    [False, True]
    """
    if isinstance(joint, Scaled):
        return any(signs) or joint.gain < 0 or joint.bias < 0
    if not isinstance(joint, Pointwise):
        return any(signs) or isinstance(joint, Addition)
    numbers = torch.linspace(-50.0 * signs[0], 50.0, 20_001)[:, None].expand(-1, joint.channels)
    return bool((joint.of(numbers) < 0).any())


def waits(node: fx.Node, graph: FloatGraph) -> bool:
    """Whether a ReLU can follow the concatenation that alone reads it, as all of its parts have one.

    The parts are then rounded once, to the common step.
    """
    readers = graph.readers(node)
    if len(readers) != 1 or not is_concatenation(readers[0]) or bends_later(readers[0], graph):
        return False
    parts = sources(readers[0])
    return all(type(graph.module_of(part)) is nn.ReLU and len(graph.readers(part)) == 1 for part in parts)


def bends_later(node: fx.Node, graph: FloatGraph) -> bool:
    """Whether a ReLU alone reads a concatenation, after a batch norm or at once: its parts have both then."""
    readers = graph.readers(node)
    while len(readers) == 1 and graph.is_norm(readers[0]):
        readers = graph.readers(readers[0])
    return len(readers) == 1 and graph.is_relu(readers[0])


def _addition(node: fx.Node, graph: FloatGraph) -> Addition:
    terms = node.all_input_nodes
    if len(terms) != 2 or node.kwargs.get("alpha", 1) != 1:
        raise ValueError(
            f"{graph.describe(node)}: convert can add two tensors, or a tensor and a number, not a tensor "
            "and itself or a multiple"
        )
    shapes = [graph.shapes[term][1:] for term in terms]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{graph.describe(node)} adds `{terms[0].name}` of {shapes[0]} and `{terms[1].name}` of "
            f"{shapes[1]}, expected equal shapes; let one layer make the other's shape"
        )
    return Addition()


def _multiplication(node: fx.Node, graph: FloatGraph) -> Multiplication:
    factors = sources(node)
    if len(factors) != 2:
        raise ValueError(
            f"{graph.describe(node)}: convert can multiply two tensors, or a tensor and a number"
        )
    x, y = (
        (graph.shapes[factor][1], 1, 1) if graph.is_spread(factor) else graph.shapes[factor][1:]
        for factor in factors
    )
    if x != y and set(x[1:]) == {1}:  # the one pixel comes second
        node.args, (x, y) = node.args[::-1], (y, x)
    if y not in (x, (x[0], *[1] * (len(x) - 1))):
        raise ValueError(
            f"{graph.describe(node)} multiplies {x} and {y}, expected equal shapes, or (C, H, W) "
            "and (C, 1, 1)"
        )
    return Multiplication()


def _concatenation(node: fx.Node, graph: FloatGraph) -> Concatenation:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    ranks = {len(graph.shapes[part]) for part in sources(node)}
    if axis not in (1, 1 - max(ranks)) or ranks - {2, 4}:
        raise ValueError(f"{graph.describe(node)}: convert can put channels side by side, with dim=1")
    return Concatenation()


def _max_pool(node: fx.Node, pool: nn.MaxPool2d, graph: FloatGraph) -> CodedMaxPool:
    sizes = max_pool_sizes(pool)
    if sizes is None:
        raise ValueError(
            f"{graph.describe(node)}: convert knows MaxPool2d with one size for both axes, dilation 1 and no "
            "return_indices"
        )
    return CodedMaxPool(*sizes, pool.ceil_mode)


def _window_mean(node: fx.Node, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, graph: FloatGraph) -> WindowMean:
    sizes = mean_pool_sizes(pool, graph.shapes[node.all_input_nodes[0]], graph.shapes[node])
    if sizes is None:
        raise ValueError(
            f"{graph.describe(node)}: convert knows means of equal windows of up to 16 rows and columns, "
            "with one stride and one padding for both axes, the padding counted (count_include_pad=True); an "
            "adaptive pool has them where its input is k * n or k * n + 1 rows for n of output"
        )
    return WindowMean(*sizes)
