"""Integer arithmetic: exact products of codes, and the one rounding that makes them codes again.

This room is the definition that every backend equals.

`rounding` `requantize`, where a sum becomes codes, and its multipliers
`products` sums of products: `matmul`, `conv2d`, and what cannot leave int32
`codes`    what needs no arithmetic: `max_pool`, `lookup`
"""

from dqt_core.integer.codes import lookup, max_pool, window_count
from dqt_core.integer.products import (
    ACCUMULATOR_LIMIT,
    LARGEST_PRODUCT,
    conv2d,
    conv2d_mid_bin,
    matmul,
    product,
    require_accumulator,
    sum_pool,
)
from dqt_core.integer.rounding import LARGEST_SHIFT, SUM_LIMIT, fixed_point, largest_shift, requantize, scale

__all__ = [
    "ACCUMULATOR_LIMIT",
    "LARGEST_PRODUCT",
    "LARGEST_SHIFT",
    "SUM_LIMIT",
    "conv2d",
    "conv2d_mid_bin",
    "fixed_point",
    "largest_shift",
    "lookup",
    "matmul",
    "max_pool",
    "product",
    "requantize",
    "require_accumulator",
    "scale",
    "sum_pool",
    "window_count",
]
