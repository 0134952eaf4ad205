"""Backends: each runs every operation of a `Program` with the same bits.

A backend module holds one class, ``Backend(program)``. `numpy_ref` is the definition; it and `torch_cpu`
have ``upload``, ``download`` and a method for every operation, and `stepwise` leads them through a program.
The others plan the whole program and have one method, ``run(images, choices)``: `numba_cpu`, compiled for
the processor at hand, `cupy_gpu` on a GPU, and `emulated`, the GPU's kernels on a CPU. For these two
`gpu_plan` says which steps there are and where values lie, and `gpu_launches` makes each step the launch
of a kernel; `gpu_calls` calls single kernels. `analysis` works out once what all of them ask of a program:
who reads a value last, which operations become one step, where in memory a value lies. `bit_planes` runs
no program: it multiplies a matrix in bit planes with a vector, in time that falls with the width.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dqt_core.program.operations import Choice


def by_choice(
    choices: NDArray[np.int64], layer: int | None, table: tuple[Choice, ...]
) -> Iterator[tuple[Choice, NDArray[np.int64] | None]]:
    """The widths in use at one layer, each with the images that use it.

    Parameters
    ----------
    choices : int64 array, (N, L)
    layer : int or None
        None: every image at 8 bits.
    table : tuple of (weight bits, input bits)

    Yields
    ------
    widths : (weight bits, input bits)
    images : int64 array of indices, or None for all

    Examples
    --------
    >>> picks = np.array([[0], [1], [0]])
    >>> [(w, i.tolist()) for w, i in by_choice(picks, 0, ((2, 2), (8, 8)))]
    [((2, 2), [0, 2]), ((8, 8), [1])]
    """
    if layer is None:
        yield (8, 8), None
        return
    column = choices[:, layer]
    used = np.unique(column)
    for choice in used:
        yield table[choice], None if len(used) == 1 else np.flatnonzero(column == choice)


def rows_of(choices: NDArray[np.int64] | None, layer: int | None, rows: int) -> NDArray[np.int64]:
    """The table row of every image at one layer, or one row for all.

    Parameters
    ----------
    choices : int64 array, (N, L), or None
    layer : int or None
    rows : int
        Rows of the table; 1: shared by all choices.

    Returns
    -------
    int64 array, (N,) or (1,)

    Examples
    --------
    >>> rows_of(np.array([[0], [1]]), 0, rows=2), rows_of(np.array([[1], [1]]), 0, rows=2)
    (array([0, 1]), array([1]))
    """
    if layer is None or rows == 1 or choices is None:
        return np.zeros(1, np.int64)
    column = choices[:, layer]
    return column[:1] if (column == column[0]).all() else column


def drops_of(
    choices: NDArray[np.int64] | None, layer: int | None, table: tuple[Choice, ...]
) -> NDArray[np.int64]:
    """Dropped bits d_w + d_a of every image at one layer, or one number for all.

    Parameters
    ----------
    choices : int64 array, (N, L), or None
    layer : int or None
    table : tuple of (weight bits, input bits)

    Returns
    -------
    int64 array, (N,) or (1,)

    Examples
    --------
    >>> drops_of(np.array([[0], [1]]), 0, ((2, 4), (8, 8)))
    array([10,  0])
    """
    if layer is None or choices is None:
        return np.zeros(1, np.int64)
    drops = np.asarray([16 - weight - x for weight, x in table])[choices[:, layer]]
    return drops[:1] if (drops == drops[0]).all() else drops
