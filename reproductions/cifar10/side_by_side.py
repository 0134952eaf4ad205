"""Faster training on a CPU: convolutions of small images, computed with many images in one row.

oneDNN's matrix units take sixteen neighbouring pixels of one row at a time. A row of four fills a quarter of them,
and the gradient of a weight fares worse. With images side by side in one long row, zeros between them, every
convolution has the same products and sums in another order. The gain is that of processors with such units (AMX, in
bfloat16); others may have none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

IMAGES = 16  # in a row
WIDEST = 8  # pixels of one image; wider ones gain nothing


class SideBySide(TorchFunctionMode):
    """Within, `conv2d` lays small images side by side where it can."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    (count, channels, height, width), kernel = x.shape, weight.shape[-1]
    step, margin = _one(stride), _one(padding)
    square = weight.shape[-2] == kernel > 1 and kernel % 2 and margin == kernel // 2
    plain = square and groups == _one(dilation) == 1
    if not (x.is_cpu and plain and step and width <= WIDEST and count % IMAGES == 0):
        return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    gap = margin + -(width + margin) % step  # so that every image begins at a multiple of the stride
    rows = x.permute(0, 2, 3, 1).reshape(-1, IMAGES, height, width, channels).transpose(1, 2)
    rows = functional.pad(rows, (0, 0, 0, gap)).reshape(-1, height, IMAGES * (width + gap), channels)
    y = functional.conv2d(rows.permute(0, 3, 1, 2), weight, bias, stride, padding)
    high, wide = (height - 1) // step + 1, (width - 1) // step + 1
    parts = y.permute(0, 2, 3, 1).unflatten(2, (IMAGES, (width + gap) // step))[:, :, :, :wide]
    return parts.transpose(1, 2).reshape(count, high, wide, -1).permute(0, 3, 1, 2)


def _one(value: Any) -> int:
    """The number that stands for both axes; 0 where they differ or it is a word."""
    values = {value} if isinstance(value, int | str) else set(value)
    one = values.pop()
    return one if not values and isinstance(one, int) else 0
