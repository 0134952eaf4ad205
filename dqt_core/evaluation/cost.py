"""What a run costs: bit operations, transitions and bytes, by one definition."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import Conv, Program, Widths

FixedLayers: TypeAlias = Literal["as run", "as switched", "excluded"]


@dataclass(frozen=True)
class LayerSize:
    """The sizes of one convolution or linear layer, for one image.

    Attributes
    ----------
    name : str
    layer : int or None
        Number among the switchable layers; None: always 8 bits.
    macs : int
        Multiply-accumulates.
    weights, inputs : int
        Elements of the weights and of the input activations.
    controller : bool
        Whether it belongs to the controller.

    Examples
    --------
    >>> from dqt_core import load
    >>> sum(size.weights for size in layer_sizes(load("digits")) if size.controller)
    6592
    """

    name: str
    layer: int | None
    macs: int
    weights: int
    inputs: int
    controller: bool


def layer_sizes(program: Program) -> tuple[LayerSize, ...]:
    """Sizes of every convolution and linear layer of a program, in order.

    Parameters
    ----------
    program : Program

    Returns
    -------
    tuple of LayerSize

    Examples
    --------
    >>> from dqt_core import load
    >>> layer_sizes(load("digits"))[0]
    LayerSize(name='conv1', layer=None, macs=221184, weights=216, inputs=3072, controller=False)
    """
    shapes = {name: value.shape for name, value in program.values.items()}
    return tuple(
        LayerSize(
            op.name,
            op.layer,
            shapes[op.out][0] * shapes[op.out][1] * op.weight.size,
            op.weight.size,
            int(np.prod(shapes[op.x])),
            op.controller,
        )
        for op in program.ops
        if isinstance(op, Conv)
    )


def bitops(
    program: Program, widths: Widths | NDArray[np.integer], fixed: FixedLayers = "as run"
) -> NDArray[np.float64]:
    """BitOPs of each image: the sum over layers of MACs * weight bits * input bits.

    Parameters
    ----------
    program : Program
    widths : as in `Program.run`, or ``Result.widths``
        An array has a row for every image; the controller's own cost is then counted.
    fixed : {"as run", "as switched", "excluded"}
        The first and last layers: at 8 bits as they run (this package's figure), at the widths of the
        switchable layers (needs one width), or left out, as other papers count.

    Returns
    -------
    float64 array, (N,), or (1,) for static widths

    Raises
    ------
    ValueError
        If the widths do not fit the program, or `fixed` does not fit the widths.

    Notes
    -----
    BitOPs are not time: look at measured latency and bytes beside them.

    Examples
    --------
    >>> from dqt_core import load
    >>> program = load("digits")
    >>> [bitops(program, 4, fixed).item() / 1e6 for fixed in ("as run", "as switched", "excluded")]
    [152.608768, 141.961216, 138.412032]
    """
    if fixed not in get_args(FixedLayers):
        raise ValueError(f"fixed={fixed!r} is unknown; choose one of {get_args(FixedLayers)}")
    pairs, is_per_image = _pairs(program, widths)
    total = np.zeros(len(pairs))
    for size in _counted(program, is_per_image):
        if size.layer is not None:
            total += size.macs * pairs[:, size.layer].prod(axis=-1)
        elif size.controller or fixed == "as run":
            total += size.macs * MASTER_WIDTH**2
        elif fixed == "as switched":
            total += size.macs * _one_width(pairs)
    return total


def transitions(program: Program, widths: Widths | NDArray[np.integer]) -> NDArray[np.int64]:
    """Elements of each image's run whose width differs from the master: one shift each.

    Weights plus input activations of every layer that reads them below 8 bits. A system without nested codes
    spends one dequantize and one requantize MAC in float on each.

    Parameters
    ----------
    program : Program
    widths : as in `bitops`

    Returns
    -------
    int64 array, (N,), or (1,) for static widths

    Examples
    --------
    >>> from dqt_core import load
    >>> [transitions(load("digits"), width).item() for width in (8, 6, 2)]  # one shift, however far
    [0, 257280, 257280]
    """
    pairs, _ = _pairs(program, widths)
    total = np.zeros(len(pairs), np.int64)
    for size in layer_sizes(program):
        if size.layer is not None:
            below = pairs[:, size.layer] < MASTER_WIDTH
            total += below[:, 0] * size.weights + below[:, 1] * size.inputs
    return total


def weight_bytes(
    program: Program, widths: Widths | NDArray[np.integer], storage: Literal["master", "planes"] = "planes"
) -> NDArray[np.float64]:
    """Bytes of weights that each image's run reads.

    Parameters
    ----------
    program : Program
    widths : as in `bitops`
    storage : {"master", "planes"}
        Whole master codes: one byte an element at any width. Bit planes: one bit a plane, and half_up reads
        one plane more than the width, for the top dropped bit.

    Returns
    -------
    float64 array, (N,), or (1,) for static widths

    Examples
    --------
    >>> from dqt_core import load
    >>> program = load("digits")
    >>> [weight_bytes(program, 4, storage).item() for storage in ("master", "planes")]
    [175192.0, 109816.0]
    """
    if storage not in ("master", "planes"):
        raise ValueError(f"storage={storage!r} is unknown; choose 'master' or 'planes'")
    pairs, is_per_image = _pairs(program, widths)
    extra = 1 if program.rounding == "half_up" else 0
    total = np.zeros(len(pairs))
    for size in _counted(program, is_per_image):
        if size.layer is None or storage == "master":
            total += size.weights
        else:
            total += size.weights * np.minimum(pairs[:, size.layer, 0] + extra, MASTER_WIDTH) / 8
    return total


def _counted(program: Program, is_per_image: bool) -> list[LayerSize]:
    return [size for size in layer_sizes(program) if is_per_image or not size.controller]


def _pairs(program: Program, widths: Widths | NDArray[np.integer]) -> tuple[NDArray[np.int64], bool]:
    """Widths as (N, L, 2), or (1, L, 2) for static ones, and whether they are per image."""
    if isinstance(widths, str):
        raise ValueError("the controller's widths depend on the images: give Result.widths of a run")
    is_per_image = isinstance(widths, np.ndarray) and widths.ndim > 1
    rows = len(widths) if isinstance(widths, np.ndarray) and widths.ndim > 1 else 1
    choices = program._choices_of(widths, rows)
    return np.asarray(program.choices, np.int64)[choices], is_per_image


def _one_width(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    first = pairs[:, :1]
    if not (pairs == first).all():
        raise ValueError('fixed="as switched" needs one width for all switchable layers')
    return first[:, 0].prod(axis=-1)
