"""The shape of every value of a program, for whoever needs to know it before anything runs."""

from collections.abc import Sequence
from typing import TypeAlias

from dqt_core.program import IMAGE, Conv, MaxPool, Op, Requantize, Scale, SumPool, inputs

Shape: TypeAlias = tuple[int, int, int]


def value_shapes(ops: Sequence[Op], image_shape: Sequence[int]) -> dict[str, Shape]:
    """(H, W, C) of every value of a program.

    Parameters
    ----------
    ops : sequence of operations
    image_shape : (H, W, 3)

    Returns
    -------
    dict of name to (H, W, C)
    """
    height, width, channels = image_shape
    shapes: dict[str, Shape] = {IMAGE: (height, width, channels)}
    for op in ops:
        source = [shapes[name] for name in inputs(op)]
        if isinstance(op, Conv):
            kernel = op.weight.shape[1], op.weight.shape[2]
            shapes[op.out] = (*_window_counts(source[0], kernel, op.stride, op.padding), len(op.weight))
        elif isinstance(op, MaxPool):
            counts = _window_counts(source[0], (op.kernel, op.kernel), op.stride, op.padding)
            shapes[op.out] = (*counts, source[0][2])
        elif isinstance(op, SumPool):
            shapes[op.out] = (1, 1, source[0][2])
        elif isinstance(op, Requantize | Scale) or hasattr(op, "out"):
            shapes[op.out] = source[0]
    return shapes


def _window_counts(shape: Shape, kernel: tuple[int, int], stride: int, padding: int) -> tuple[int, int]:
    height = (shape[0] + 2 * padding - kernel[0]) // stride + 1
    return height, (shape[1] + 2 * padding - kernel[1]) // stride + 1
