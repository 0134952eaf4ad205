"""The CUDA kernels, and an emulator that runs them without a GPU.

============= ====================================================================================
file          what is in it
============= ====================================================================================
common.cuh    what kernels share: four codes switched in a register, products of bytes on ordinary
              and on tensor cores, the one rounding; terms, and what a convolution is given
switch.cu     codes to any width, 16 bytes a thread, with a walk through the kernel; start here
planes.cu     bit planes: packing, unpacking, a matrix-vector product that reads b of 8 planes
conv.cu       convolution on tensor cores, the switch in registers, every image at its own widths
depthwise.cu  convolution of every channel by itself
grouped.cu    convolution in groups of channels
pointwise.cu  what is done value by value: look-up, pooling, requantize, logits, choices
cuda_cpu.hpp  CUDA's threads, barriers and shuffles on the CPU
`structs`     what kernels are given by name
`engine`      what runs a kernel, as the backend sees it
`emulator`    the engine without a GPU
============= ====================================================================================

A source has variants, chosen by macros when it is compiled; `VARIANTS` lists all that are in use.
"""

from importlib import resources
from itertools import product

Variants = tuple[dict[str, int], ...]


def _combined(**choices: tuple[int, ...]) -> Variants:
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


#: Every variant of every source that the backend asks for: these are compiled for every generation of GPU.
VARIANTS: dict[str, Variants] = {
    "conv": tuple(
        variant | {"TILE_M": rows, "TILE_N": columns, "VECTOR": vector}
        for variant in _combined(X_SIGNED=(0, 1), FLOOR=(0, 1))
        for rows, columns in ((128, 128), (128, 64), (64, 64), (64, 32), (32, 32))
        for vector in (16, 4, 1)
    ),
    "depthwise": _combined(X_SIGNED=(0, 1), FLOOR=(0, 1), VECTOR=(4, 1)),
    "grouped": _combined(X_SIGNED=(0, 1), FLOOR=(0, 1)),
    "pointwise": ({}, *_combined(X_SIGNED=(0, 1), VECTOR=(4, 1))),
    "switch": _combined(X_SIGNED=(0, 1), FLOOR=(0, 1)),
    "planes": _combined(X_SIGNED=(0, 1), FLOOR=(0, 1)) + _combined(X_SIGNED=(0, 1), BATCH=(1, 2, 4, 8)),
}


def source(name: str) -> str:
    """Text of a file of this package.

    Parameters
    ----------
    name : str
        With its ending.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        If there is none.

    Examples
    --------
    >>> "switch4" in source("common.cuh")
    True
    """
    return resources.files("dqt_core.kernels").joinpath(name).read_text(encoding="utf-8")
