"""The ways in which published models write one thing: a function becomes the module that does the same."""

import operator
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional

Form: TypeAlias = tuple[type[nn.Module], tuple[str, ...]]

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
MEANS = (torch.mean, "mean")
# what may turn a map into a row of numbers, in the order of memory
RESHAPES = (torch.flatten, "flatten", torch.reshape, "reshape", "view", torch.squeeze, "squeeze")
COPIES = ("contiguous", "clone", "detach", "float", torch.clone)
IN_PLACE = (operator.iadd, torch.relu_, "relu_", "add_")

_RELU: Form = nn.ReLU, ("inplace",)
_MAX_POOL: Form = (
    nn.MaxPool2d,
    ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
)
_DROPOUT: Form = nn.Dropout, ("p", "training", "inplace")
# a function or method: its module, and the names of its arguments after the first
FORMS: dict[Any, Form] = {
    **dict.fromkeys((functional.relu, torch.relu, torch.relu_, "relu", "relu_"), _RELU),
    functional.relu6: (nn.ReLU6, ("inplace",)),
    **dict.fromkeys((functional.max_pool2d, torch.max_pool2d), _MAX_POOL),
    functional.avg_pool2d: (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    functional.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    **dict.fromkeys((functional.dropout, functional.dropout1d, functional.dropout2d), _DROPOUT),
}


def function_of(node: fx.Node) -> Any:
    """The function, or the name of the method, that a node calls; None where it calls a module."""
    return node.target if node.op in ("call_function", "call_method") else None


def form_of(node: fx.Node) -> nn.Module | None:
    """The module that does what a node's function does; None where there is none.

    Examples
    --------
    >>> form_of(fx.Graph().call_function(functional.max_pool2d, ("x", 3), {"stride": 2}))
    MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
    """
    if function_of(node) not in FORMS:
        return None
    kind, names = FORMS[function_of(node)]
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    given.pop("input", None)
    if given.pop("training", False):
        return None
    if given.get("stride") == ():
        del given["stride"]
    return kind(**given)


def max_pool_sizes(
    pool: nn.MaxPool2d, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """Kernel, stride and padding of a max-pool; None where a program's has no such windows.

    Parameters
    ----------
    pool : MaxPool2d
    before, after : tuple of int
        The shapes (N, C, H, W) of what it reads and makes.

    Examples
    --------
    >>> max_pool_sizes(nn.MaxPool2d(2, ceil_mode=True), (1, 8, 6, 6), (1, 8, 3, 3))
    (2, 2, 0)
    """
    sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    pairs = {size if isinstance(size, tuple) else (size, size) for size in sizes}
    if any(rows != columns for rows, columns in pairs) or pool.return_indices:
        return None
    kernel, stride, padding, dilation = (size[0] if isinstance(size, tuple) else size for size in sizes)
    is_whole = all((after[i] - 1) * stride + kernel <= before[i] + 2 * padding for i in (2, 3))
    return (kernel, stride, padding) if dilation == 1 and is_whole else None
