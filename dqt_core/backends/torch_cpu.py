"""A faster backend: torch on the CPU, int8 matrix products with int32 sums, the bits of `numpy_ref`."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core._extras import needed
from dqt_core.backends import by_choice, drops_of, rows_of
from dqt_core.program import (
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Product,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
    is_forked,
)

with needed('backend "torch"', "train"):
    import torch
    from torch import Tensor
    from torch.nn import functional

Values = dict[str, Tensor]
Picks = NDArray[np.int64]


class Backend:
    """Torch, integers only; switched weights are kept for the run.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> from dqt_core.program import execute
    >>> program, images = selftest.network(), selftest.images()
    >>> logits, _ = execute(program, Backend(program), images, None)
    >>> np.array_equal(logits, program.run(images, "controller", "numpy").logits)
    True
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._weights: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def upload(self, images: NDArray[np.uint8]) -> Tensor:
        if is_forked():
            # as in torch's own workers: OpenMP's threads did not come along, it would wait for them
            torch.set_num_threads(1)
        # a copy: torch takes neither memory that cannot be written to nor one image with negative strides
        return torch.from_numpy(images.copy())

    def download(self, logits: Tensor) -> NDArray[np.int64]:
        return logits.numpy()

    def lookup(self, op: Lookup, values: Values, choices: Picks) -> Tensor:
        return torch.from_numpy(op.table.copy())[
            torch.arange(len(op.table)), values[op.x].view(torch.uint8).int()
        ]

    def conv(self, op: Conv, values: Values, choices: Picks) -> Tensor:
        x = values[op.x]
        out: Tensor | None = None
        for widths, images in by_choice(choices, op.layer, self.program.choices):
            if images is None:
                return self._conv_at(op, x, *widths)
            index = torch.from_numpy(images)
            part = self._conv_at(op, x[index], *widths)
            out = part.new_empty((len(x), *part.shape[1:])) if out is None else out
            out[index] = part
        assert out is not None, "a batch has at least one image"
        return out

    def _conv_at(self, op: Conv, x: Tensor, weight_bits: int, input_bits: int) -> Tensor:
        codes = switch(x, input_bits, self.program.rounding)
        kernels, kernel_sums = self._kernels(op, weight_bits)
        # unsigned codes above 127 enter the int8 product as code - 128, zero padding as -128
        offset = 128 if codes.dtype == torch.uint8 and input_bits == 8 else 0
        rows, out_shape = _windows((codes ^ offset).view(torch.int8), op, fill=-offset)
        sums = _products(rows, kernels).add_(kernel_sums * offset).reshape(*out_shape, -1)
        if self.program.rounding == "half_up":
            return sums
        window_sums = rows.sum(2, dtype=torch.int32).add_(rows.shape[2] * offset).t()
        window_sums = window_sums.repeat_interleave(len(op.weight) // op.groups, 1).reshape(*out_shape, -1)
        return _mid_bin(sums, window_sums, 8 - weight_bits, 8 - input_bits)

    def _kernels(self, op: Conv, weight_bits: int) -> tuple[Tensor, Tensor]:
        """Switched weights (groups, K, O / groups) and their sums over K (O,)."""
        key = op.out, weight_bits
        if key not in self._weights:
            # a copy, as torch warns of memory that cannot be written to
            weight = switch(torch.from_numpy(op.weight.copy()), weight_bits, self.program.rounding)
            kernels = weight.reshape(op.groups, -1, op.weight[0].size).transpose(1, 2).contiguous()
            self._weights[key] = kernels, kernels.sum(1, dtype=torch.int32).flatten()
        return self._weights[key]

    def requantize(self, op: Requantize, values: Values, choices: Picks) -> Tensor:
        offset = sum(self._rows(t.offset, t, choices) for t in op.terms) + (1 << (op.r - 1))
        total: Tensor | None = None
        for term in op.terms:
            addend = values[term.x].to(torch.int64)
            drop = self._drop(term, choices)
            if drop.any():
                addend <<= drop
            addend *= self._rows(term.multiplier, term, choices)
            total = addend if total is None else total.add_(addend)
        assert total is not None, "lower makes at least one term"
        total = total.add_(offset).__irshift__(op.r).clamp_(op.lo, op.hi)
        return total.to(torch.uint8 if op.lo >= 0 else torch.int8)

    def maxpool(self, op: MaxPool, values: Values, choices: Picks) -> Tensor:
        x = values[op.x].permute(0, 3, 1, 2).to(torch.float32)  # codes are exact in float32
        pooled = functional.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=op.ceil)
        return pooled.permute(0, 2, 3, 1).to(values[op.x].dtype)

    def sumpool(self, op: SumPool, values: Values, choices: Picks) -> Tensor:
        return values[op.x].sum((1, 2), keepdim=True, dtype=torch.int32)

    def concat(self, op: Concat, values: Values, choices: Picks) -> Tensor:
        return torch.cat([values[name] for name in op.parts], -1)

    def product(self, op: Product, values: Values, choices: Picks) -> Tensor:
        return values[op.x].int() * values[op.y].int()

    def scale(self, op: Scale, values: Values, choices: Picks) -> Tensor:
        multiplier, offset = (
            torch.from_numpy(t[0].astype(np.int64)) for t in (op.term.multiplier, op.term.offset)
        )
        return values[op.term.x].to(torch.int64) * multiplier + offset

    def choose(self, op: Choose, logits: Tensor, choices: int) -> Picks:
        # torch.argmax returns the first of equal values: the narrower choice
        return logits.reshape(len(logits), op.layers, choices).argmax(-1).numpy()

    def _rows(self, table: NDArray[Any], term: Term, choices: Picks) -> Tensor:
        rows = table[rows_of(choices, term.layer, len(table))][:, None, None, :]
        return torch.from_numpy(rows.astype(np.int64))

    def _drop(self, term: Term, choices: Picks) -> Tensor:
        layer = term.layer if self.program.rounding == "half_up" else None
        return torch.from_numpy(drops_of(choices, layer, self.program.choices)[:, None, None, None])


def switch(codes: Tensor, width: int, rounding: str) -> Tensor:
    """`nested.switch` on int8 or uint8 tensors, in Eq. 4's form, which never leaves eight bits.

    Parameters
    ----------
    codes : int8 or uint8 tensor
        Master codes.
    width : int
        1..8 bits.
    rounding : {"half_up", "floor"}

    Returns
    -------
    tensor of that dtype and shape
        Those of `nested.switch`.

    Examples
    --------
    >>> switch(torch.tensor([100, -77, 127], dtype=torch.int8), 4, "half_up")
    tensor([ 6, -5,  7], dtype=torch.int8)
    """
    drop = 8 - width
    if drop == 0:
        return codes
    floor = codes >> drop
    if rounding == "floor":
        return floor
    highest = (1 << (width - 1)) - 1 if codes.dtype == torch.int8 else (1 << width) - 1
    return floor.add_((codes >> (drop - 1)) & 1).clamp_(max=highest)


def _windows(codes: Tensor, op: Conv, fill: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Rows of the matrix product (groups, pixels, K), and (N, H', W')."""
    _, height, width, inputs = op.weight.shape
    if op.padding:
        codes = functional.pad(codes, (0, 0, *[op.padding] * 4), value=fill)
    codes = codes.contiguous()
    n, rows, columns, channels = codes.shape
    out_shape = n, (rows - height) // op.stride + 1, (columns - width) // op.stride + 1
    along = (rows * columns * channels, op.stride * columns * channels, op.stride * channels)
    inside = (columns * channels, channels, inputs, 1)
    windows = codes.as_strided((*out_shape, height, width, op.groups, inputs), along + inside)
    return windows.permute(5, 0, 1, 2, 3, 4, 6).reshape(op.groups, -1, height * width * inputs), out_shape


def _products(rows: Tensor, kernels: Tensor) -> Tensor:
    """Exact int32 (pixels, groups * O)."""
    if rows.shape[0] > 1 or not int8_product_is_exact():
        return _double_products(rows, kernels)
    return torch._int_mm(_row_major(rows[0]), _row_major(kernels[0]))


def _row_major(matrix: Tensor) -> Tensor:
    # _int_mm reads outside a matrix of one row or column whose stride there is not this, pytorch issue 195066
    matrix = matrix.contiguous()
    return matrix.as_strided(matrix.shape, (matrix.shape[1], 1))


@functools.cache
def int8_product_is_exact() -> bool:
    """Whether `torch._int_mm` keeps 32-bit sums on this processor.

    Without 8-bit dot-product instructions (VNNI) oneDNN adds pairs of products in 16 bits, which saturate;
    pytorch issue 136746.
    """
    rows = torch.tensor([[127], [-128]], dtype=torch.int8).repeat(32, 64)
    kernels = rows.t().contiguous()
    return torch.equal(torch._int_mm(rows, kernels).double(), rows.double() @ kernels.double())


def _double_products(rows: Tensor, kernels: Tensor) -> Tensor:
    # float64 holds integers below 2**53 exactly; _int_mm has no batched form
    sums = torch.bmm(rows.double(), kernels.double())
    return sums.permute(1, 0, 2).reshape(rows.shape[1], -1).to(torch.int32)


def _mid_bin(sums: Tensor, window_sums: Tensor, weight_drop: int, input_drop: int) -> Tensor:
    """`integer.conv2d_mid_bin` from the plain sums and the sums of the codes in every window."""
    return (sums << (1 + weight_drop + input_drop)) + (((1 << weight_drop) - 1) * window_sums << input_drop)
