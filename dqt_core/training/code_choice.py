"""Master codes by the error of what a layer computes, summed over the widths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqt_core.nested import MASTER_WIDTH, code_range
from dqt_core.training import straight_through

SWEEPS = 2  # over all weights; a third changes few codes
BALANCE = 0.5  # of `weights_of_widths`
_BLOCK = 64  # weights of a row between two products with all moments
_LO, _HI = code_range(MASTER_WIDTH, signed=True)
_CODES = torch.arange(_LO, _HI + 1).float()


def views(codes: Tensor, width: int) -> Tensor:
    """Signed master codes as they are read at a width, in steps of the master.

    Parameters
    ----------
    codes : float32 tensor
        Integers -128..127.
    width : int
        1..8 bits.

    Returns
    -------
    float32 tensor of that shape
        Integers, multiples of ``2 ** (8 - width)``.

    Examples
    --------
    >>> views(torch.tensor([100.0, -77.0]), 4)
    tensor([ 96., -80.])
    """
    return straight_through.switch(codes, width, True) * 2.0 ** (MASTER_WIDTH - width)


def errors(
    targets: Sequence[Tensor], step: Tensor, codes: Tensor, widths: Sequence[int], moments: Sequence[Tensor]
) -> list[Tensor]:
    """Mean squared error of every row's output at every width, each (O, 1).

    Parameters
    ----------
    targets : sequence of float32 tensors, (O, K)
        The weights that are wanted, for each width.
    step : float32 tensor, (O, 1)
    codes : float32 tensor, (O, K)
        Integers -128..127.
    widths : sequence of int
        1..8 bits.
    moments : sequence of float32 tensors, (K, K) or (O, K, K)
        Of the inputs, for each width.

    Returns
    -------
    list of float32 tensors, (O, 1)

    Examples
    --------
    >>> target, codes = torch.tensor([[1.0, -0.8]]), torch.tensor([[100.0, -77.0]])
    >>> errors([target] * 2, torch.tensor([[0.01]]), codes, (8, 4), [torch.eye(2)] * 2)
    [tensor([[0.0009]]), tensor([[0.0016]])]
    """
    found = []
    for width, moment, target in zip(widths, moments, targets, strict=True):
        error = step * views(codes, width) - target
        found.append((_times(error, moment) * error).sum(1, keepdim=True))
    return found


def weights_of_widths(
    targets: Sequence[Tensor],
    step: Tensor,
    codes: Tensor,
    widths: Sequence[int],
    moments: Sequence[Tensor],
    balance: float = BALANCE,
) -> list[Tensor]:
    """What an error at each width counts, (O, 1): the error of these codes to the power of minus `balance`.

    With 1 all widths count alike, with 0 the narrowest is all that counts. An error below that of rounding at
    random counts as if it were that: weights that were published in 8 bits have none at 8 bits, and no width
    could be given anything.

    Parameters
    ----------
    targets, step, codes, widths, moments : as in `errors`
    balance : float
        0..1.

    Returns
    -------
    list of float32 tensors, (O, 1)

    Examples
    --------
    >>> target, codes = torch.tensor([[1.0, -0.8]]), torch.tensor([[100.0, -77.0]])
    >>> moments = [torch.eye(2)] * 2
    >>> found = weights_of_widths([target] * 2, torch.tensor([[0.01]]), codes, (8, 4), moments, balance=1.0)
    >>> [weight.round().item() for weight in found]
    [1111.0, 234.0]
    """
    found = []
    for width, moment, error in zip(
        widths, moments, errors(targets, step, codes, widths, moments), strict=True
    ):
        trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1).reshape(-1, 1)
        random = 4.0 ** (MASTER_WIDTH - width) / 12 * step**2 * trace
        found.append(torch.maximum(error, random).clamp_min(1e-20) ** -balance)
    return found


def chosen(
    targets: Sequence[Tensor],
    step: Tensor,
    codes: Tensor,
    widths: Sequence[int],
    moments: Sequence[Tensor],
    counts: Sequence[Tensor],
    sweeps: int = SWEEPS,
) -> Tensor:
    """Codes of less error: weight after weight takes the code that mends most of what the others err by.

    Parameters
    ----------
    targets : sequence of float32 tensors, (O, K)
        The weights that would be right at each choice, from narrow to wide.
    step : float32 tensor, (O, 1)
    codes : float32 tensor, (O, K)
        To start from.
    widths : sequence of int
        Bits of the weights, for each choice.
    moments : sequence of float32 tensors, (K, K) or (O, K, K)
        Second moments of the inputs at each choice: of all rows, or of each.
    counts : sequence of float32 tensors, (O, 1)
        What an error at each choice counts.
    sweeps : int

    Returns
    -------
    float32 tensor, (O, K)
        Integers -128..127. The sum of `errors`, each times its count, is at most that of `codes`.

    Notes
    -----
    Coordinate descent on the objective of GPTQ (arXiv 2210.17323), summed over widths as in MatGPTQ (arXiv
    2602.03537). A code may go as far from its weight as one step of the narrowest view.

    Examples
    --------
    >>> together = torch.tensor([[1.0, 0.99], [0.99, 1.0]])  # inputs that are nearly the same
    >>> chosen([torch.tensor([[40.4, 40.4]])], torch.ones(1, 1), torch.tensor([[40.0, 40.0]]), [8],
    ...        [together], [torch.ones(1, 1)])
    tensor([[41., 40.]])
    """
    codes = codes.clone()
    far = 2 ** (MASTER_WIDTH - min(widths))
    offsets = torch.arange(-far, far + 1).float()
    tables = [views(_CODES, width) for width in widths]
    slopes = [
        _times(step * views(codes, width) - target, moment)
        for width, moment, target in zip(widths, moments, targets, strict=True)
    ]
    for _ in range(sweeps):
        for start in range(0, codes.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            nearest = (targets[-1][:, block] / step).round().clamp(_LO, _HI)
            before = codes[:, block].clone()
            own = [slope[:, block].clone() for slope in slopes]
            parts = [moment[..., block, block] for moment in moments]
            for k in range(before.shape[1]):
                _choose(
                    codes[:, start + k], nearest[:, k, None] + offsets, step, tables, k, own, parts, counts
                )
            for table, slope, moment in zip(tables, slopes, moments, strict=True):
                moved = step * (table[_index(codes[:, block])] - table[_index(before)])
                slope += _times(moved, moment[..., block, :])
    return codes


def _choose(
    codes: Tensor,
    candidates: Tensor,
    step: Tensor,
    tables: Sequence[Tensor],
    k: int,
    slopes: Sequence[Tensor],
    moments: Sequence[Tensor],
    counts: Sequence[Tensor],
) -> None:
    """Let one weight of every row take its best code, in place, and the slopes of its block follow."""
    candidates = candidates.clamp(_LO, _HI)
    index, old = _index(candidates), _index(codes)
    cost = torch.zeros_like(candidates)
    for table, slope, moment, count in zip(tables, slopes, moments, counts, strict=True):
        moved = step * (table[index] - table[old][:, None])
        cost += count * moved * (2 * slope[:, k, None] + moved * moment[..., k, k].reshape(-1, 1))
    least, best = cost.min(1)
    new = torch.where(least < 0, candidates.gather(1, best[:, None])[:, 0], codes)
    for table, slope, moment in zip(tables, slopes, moments, strict=True):
        slope += step * (table[_index(new)] - table[old])[:, None] * moment[..., k, :]
    codes.copy_(new)


def _index(codes: Tensor) -> Tensor:
    return (codes - _LO).long()


def _times(rows: Tensor, moment: Tensor) -> Tensor:
    """Rows (O, K) times moments (K, J) of all, or (O, K, J) of each."""
    return rows @ moment if moment.ndim == 2 else (rows[:, None] @ moment)[:, 0]
