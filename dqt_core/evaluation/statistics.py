"""What a count of test images says: an interval for one network, a paired test for two, also over seeds."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def interval(correct: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's confidence interval of an accuracy.

    Parameters
    ----------
    correct, images : int
    z : float
        Standard normal quantile; 1.96 for 95 %.

    Returns
    -------
    tuple of two floats
        In 0..1.

    Raises
    ------
    ValueError
        If `images` is not positive.

    Examples
    --------
    >>> [round(bound, 3) for bound in interval(90, 100)]
    [0.826, 0.945]
    """
    if images < 1:
        raise ValueError(f"an accuracy needs at least one image, got {images}")
    p, spread = correct / images, z * z / images
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / images + spread / (4 * images)) / (1 + spread)
    return centre - half, centre + half


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_], z: float = 1.96) -> dict[str, Any]:
    """Compare two classifiers on the same images, or two methods by several classifiers of each.

    Parameters
    ----------
    first, second : bool array, (N,) or (S, N)
        Which images are right, as `results.hits` returns them; a row for each of S seeds.
    z : float
        Standard normal quantile; 1.96 for 95 %.

    Returns
    -------
    dict
        "difference" (accuracy of the first minus that of the second, in -1..1), "low", "high" (its interval),
        "only_first", "only_second" (answers that one alone has right), "p" (two-sided).

    Raises
    ------
    ValueError
        If the two are not about equally many images and seeds.

    Notes
    -----
    Of one seed p is the exact McNemar test. The seeds of one method see the same images, so their answers are
    not independent: with more than one, an image is the unit, its answers are summed over the seeds, and p is
    that of McNemar's test for clustered pairs (Durkalski et al. 2003). Interval and p speak of other images,
    for the networks at hand; what another training would give, only the spread over seeds can say.

    Examples
    --------
    >>> paired(np.array([True, True, False]), np.array([True, False, False]))["only_first"]
    1
    """
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.size:
        raise ValueError(
            f"got {first.shape} and {second.shape}; both must be of the same images, (N,) or (seeds, N)"
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    by_image = np.atleast_2d(first).sum(0, dtype=np.int64) - np.atleast_2d(second).sum(0, dtype=np.int64)
    seeds, images = np.atleast_2d(first).shape
    net, squares = int(by_image.sum()), int((by_image**2).sum())
    difference = net / first.size
    half = z * math.sqrt(max(squares / images - (net / images) ** 2, 0.0) / images) / seeds
    if seeds == 1:
        p = _two_sided(min(only_first, only_second), only_first + only_second)
    else:
        p = math.erfc(abs(net) / math.sqrt(2 * squares)) if squares else 1.0
    return {
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "only_first": only_first,
        "only_second": only_second,
        "p": p,
    }


def _two_sided(smaller: int, total: int) -> float:
    """Probability of a split at least as uneven among `total` fair coins."""
    tail = sum(math.comb(total, k) for k in range(smaller + 1))
    return min(1.0, 2 * tail / 2**total)  # of integers: exact to the last bit, however many
