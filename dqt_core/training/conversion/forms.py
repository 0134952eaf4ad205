"""The ways in which published models write one thing: a function becomes the module that does the same."""

import itertools
import operator
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional

from dqt_core.program.contract import LARGEST_KERNEL

Form: TypeAlias = tuple[type[nn.Module], tuple[str, ...]]

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")
EXPANSIONS = ("expand", "expand_as")
MEANS = (torch.mean, "mean")
# what may turn a map into a row of numbers, in the order of memory
RESHAPES = (torch.flatten, "flatten", torch.reshape, "reshape", "view", torch.squeeze, "squeeze")
COPIES = ("contiguous", "clone", "detach", "float", torch.clone)
IN_PLACE = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.relu_, "relu_", "add_", "sub_", "mul_", "div_"),
)

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
    **dict.fromkeys(
        (functional.leaky_relu, functional.leaky_relu_), (nn.LeakyReLU, ("negative_slope", "inplace"))
    ),
    **dict.fromkeys((functional.elu, functional.elu_), (nn.ELU, ("alpha", "inplace"))),
    **dict.fromkeys(
        (functional.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), (nn.Sigmoid, ())
    ),
    **dict.fromkeys((functional.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), (nn.Tanh, ())),
    functional.celu: (nn.CELU, ("alpha", "inplace")),
    functional.selu: (nn.SELU, ("inplace",)),
    functional.gelu: (nn.GELU, ("approximate",)),
    functional.silu: (nn.SiLU, ("inplace",)),
    functional.mish: (nn.Mish, ("inplace",)),
    functional.softplus: (nn.Softplus, ("beta", "threshold")),
    functional.softsign: (nn.Softsign, ()),
    functional.hardswish: (nn.Hardswish, ("inplace",)),
    functional.hardsigmoid: (nn.Hardsigmoid, ("inplace",)),
    functional.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    **dict.fromkeys((functional.dropout, functional.dropout1d, functional.dropout2d), _DROPOUT),
}


def function_of(node: fx.Node) -> Any:
    """The function, or the name of the method, that a node calls; None where it calls a module.

    Examples
    --------
    >>> function_of(fx.Graph().call_method("relu", ("x",)))
    'relu'
    """
    return node.target if node.op in ("call_function", "call_method") else None


def is_skipped(node: fx.Node) -> bool:
    """Whether a node is torchvision's stochastic depth, which evaluation switches off.

    Examples
    --------
    >>> is_skipped(fx.Graph().call_function(torch.relu, ("x",)))
    False
    """
    given = dict(zip(("p", "mode", "training"), node.args[1:], strict=False)) | node.kwargs
    is_named = getattr(function_of(node), "__name__", "") == "stochastic_depth"
    return is_named and given.get("training", True) is False


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


def max_pool_sizes(pool: nn.MaxPool2d) -> tuple[int, int, int] | None:
    """Kernel, stride and padding of a max-pool; None where a program's has no such windows.

    Examples
    --------
    >>> max_pool_sizes(nn.MaxPool2d((2, 2), ceil_mode=True))
    (2, 2, 0)
    """
    sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    pairs = {size if isinstance(size, tuple) else (size, size) for size in sizes}
    if any(rows != columns for rows, columns in pairs) or pool.return_indices:
        return None
    kernel, stride, padding, dilation = (size[0] if isinstance(size, tuple) else size for size in sizes)
    return (kernel, stride, padding) if dilation == 1 else None


def mean_pool_sizes(
    pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[tuple[int, int], int, int] | None:
    """Kernel, stride and padding of a mean of windows; None where they are not equal windows.

    Examples
    --------
    >>> mean_pool_sizes(nn.AdaptiveAvgPool2d(3), (1, 8, 6, 6), (1, 8, 3, 3))
    ((2, 2), 2, 0)
    >>> mean_pool_sizes(nn.AdaptiveAvgPool2d(3), (1, 8, 7, 7), (1, 8, 3, 3))  # windows may share rows
    ((3, 3), 2, 0)
    """
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return _adaptive_sizes(before[2:], after[2:])
    kernel, stride, padding = (
        size if isinstance(size, tuple) else (size, size)
        for size in (pool.kernel_size, pool.stride, pool.padding)
    )
    is_counted = pool.count_include_pad or padding == (0, 0)
    is_whole = all(
        (after[i + 2] - 1) * stride[i] + kernel[i] <= before[i + 2] + 2 * padding[i] for i in (0, 1)
    )
    is_plain = stride[0] == stride[1] and padding[0] == padding[1] and pool.divisor_override is None
    fits = is_counted and is_whole and is_plain and max(kernel) <= LARGEST_KERNEL
    return ((kernel[0], kernel[1]), stride[0], padding[0]) if fits else None


def _adaptive_sizes(
    before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[tuple[int, int], int, int] | None:
    """As `mean_pool_sizes`: of n results, result i is the mean from i * size // n up to a last pixel."""
    kernels, strides = [], set()
    for size, count in zip(before, after, strict=True):
        starts = [i * size // count for i in range(count)]
        kernels.append({-(-(i + 1) * size // count) - starts[i] for i in range(count)})
        strides |= {later - start for start, later in itertools.pairwise(starts)}
    stride = strides.pop() if strides else max(before)
    is_equal = not strides and stride > 0 and all(len(kernel) == 1 for kernel in kernels)
    rows, columns = (kernel.pop() for kernel in kernels)
    return ((rows, columns), stride, 0) if is_equal and max(rows, columns) <= LARGEST_KERNEL else None
