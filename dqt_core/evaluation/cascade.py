"""Look twice: all images at a narrow width, the doubtful ones again, wider, by the same stored program.

The logits of a program have one scale at all widths, so the margin of a narrow pass, its largest logit minus
its second largest, is an int64 that a threshold judges exactly. An image's answer never depends on its batch
mates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.evaluation import cost
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import BackendName, Choice, Program, Result
from dqt_core.program.refusal import came

Step = int | Sequence[int | Choice]  # one width for all layers, or one for each


@dataclass(frozen=True, eq=False)
class Cascaded(Result):
    """What a program says of images that it looked at once or more; each image's last pass answers.

    Attributes
    ----------
    passes : int64 array, (N,)
        How many passes each image took, from 1.
    bitops : float64 array, (N,)
        Of all its passes together.
    transitions : int64 array, (N,)
        Of all its passes together, see `cost.transitions`.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> found = cascade(selftest.network(), selftest.images(), (2, 8), 2**60, "numpy")  # all look twice
    >>> set(found.passes.tolist()), set(found.bitops.tolist())
    ({2}, {5679104.0})
    """

    passes: NDArray[np.int64]
    bitops: NDArray[np.float64]
    transitions: NDArray[np.int64]


def margins(logits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest logit of each image minus its second largest.

    Parameters
    ----------
    logits : int64 array, (N, classes)
        Of a program, whose sums stay below 2**62 in magnitude.

    Returns
    -------
    int64 array, (N,)
        0 where two classes share the largest.

    Raises
    ------
    ValueError
        If there are fewer than two classes.

    Examples
    --------
    >>> margins(np.array([[3, 10, -2], [5, 5, 1]]))
    array([7, 0])
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits are {logits.shape}; a margin needs (images, two or more classes)")
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    return first - second


def cascade(
    program: Program,
    images: NDArray[np.uint8],
    steps: Sequence[Step],
    thresholds: int | Sequence[int],
    backend: BackendName = "auto",
    batch_size: int = 64,
) -> Cascaded:
    """Classify images at the first of some widths, and those of small margin again at the next.

    Parameters
    ----------
    program : Program
    images : uint8 array, (N, H, W, C)
    steps : sequence of widths
        From cheap to dear: for each pass one width, or one for every switchable layer.
    thresholds : int, or one for every step but the last
        An image goes on to the next step where its margin is below. See `thresholds_for`.
    backend, batch_size : as in `Program.run`

    Returns
    -------
    Cascaded
        The answers of each image's last pass, with the cost of all its passes.

    Raises
    ------
    ValueError, TypeError
        If the widths, the images or the number of thresholds do not fit.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> program, images = selftest.network(), selftest.images()
    >>> limits = thresholds_for(program, images, (2, 8), 0.5, "numpy")
    >>> cascade(program, images, (2, 8), limits, "numpy").passes
    array([2, 2, 2, 2, 1, 2, 1, 1, 1, 1, 1, 2])
    """
    steps, limits = _listed(steps, thresholds)
    if wrong := [limit for limit in limits if not isinstance(limit, int | np.integer)]:
        raise ValueError(f"a threshold is {came(wrong[0])}, expected an int: margins are integers")
    first = program.run(images, _step(steps[0]), backend, batch_size)
    going = np.arange(len(images))
    passes = np.ones(len(images), np.int64)
    logits, choices = first.logits.copy(), first.choices.copy()
    widths = first.widths.copy()
    for limit, step in zip(limits, steps[1:], strict=True):
        going = going[margins(logits[going]) < limit]
        if not len(going):
            break
        again = program.run(images[going], _step(step), backend, batch_size)
        logits[going], choices[going], widths[going] = again.logits, again.choices, again.widths
        passes[going] += 1
    costs = np.cumsum([cost.bitops(program, _step(step))[0] for step in steps])
    shifts = np.cumsum([cost.transitions(program, _step(step))[0] for step in steps])
    return Cascaded(
        logits, choices, widths, first.backend, passes, costs[passes - 1], shifts[passes - 1].astype(np.int64)
    )


def thresholds_for(
    program: Program,
    images: NDArray[np.uint8],
    steps: Sequence[Step],
    shares: float | Sequence[float],
    backend: BackendName = "auto",
) -> tuple[int, ...]:
    """The thresholds with which given shares of some images go on: take training images for it.

    Parameters
    ----------
    program : Program
    images : uint8 array, (N, H, W, C)
    steps : as in `cascade`
    shares : float, or one for every step but the last
        Of all images, 0..1, that are to reach the next step; none larger than the one before.

    Returns
    -------
    tuple of int
        For `cascade`. Of equal margins at the brink none goes on, so the shares are upper bounds.

    Raises
    ------
    ValueError
        If the shares are not fractions that fall.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> program, images = selftest.network(), selftest.images()
    >>> thresholds_for(program, images, (2, 4, 8), (0.5, 0.25), "numpy")
    (261056000, 55575552)
    """
    steps, wanted = _listed(steps, shares)
    fit = all(isinstance(share, int | float | np.number) and 0 <= share <= 1 for share in wanted)
    if not fit or sorted(wanted, reverse=True) != wanted:
        raise ValueError(f"shares are {wanted}; give fractions 0..1 of all images, none above the one before")
    found: list[int] = []
    going = np.arange(len(images))
    for share, step in zip(wanted, steps[:-1], strict=True):
        found.append(0)
        if not len(going):
            continue
        seen = margins(program.run(images[going], _step(step), backend).logits)
        count, ranked = min(int(share * len(images)), len(going)), np.sort(seen)
        found[-1] = int(ranked[-1]) + 1 if count == len(going) else int(ranked[count])
        going = going[seen < found[-1]]
    return tuple(found)


def _step(step: Any) -> int | Sequence[int | Choice]:
    """A step as it is, if `Program.run` takes it for all images alike."""
    if isinstance(step, str) or (isinstance(step, np.ndarray) and step.ndim > 1):
        raise ValueError(
            f"a step of a cascade is {came(step)}; give one width 1..{MASTER_WIDTH} for all images, or one "
            "for every switchable layer"
        )
    return step


def _listed(steps: Any, given: Any) -> tuple[list[Any], list[Any]]:
    """Steps, and thresholds or shares, as lists that go together."""
    try:
        listed = list(steps), list(given if np.ndim(given) else [given])
    except (TypeError, ValueError):
        listed = [], []
    if len(listed[0]) < 2 or len(listed[1]) != len(listed[0]) - 1:
        raise ValueError(
            f"steps are {came(steps)}, thresholds or shares {came(given)}; expected two steps or more, and "
            "one threshold or share for each but the last"
        )
    return listed
