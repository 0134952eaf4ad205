"""The best static allocation: one width for every layer, chosen on measured sensitivities under a budget."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core._extras import needed
from dqt_core.backends.stepwise import Executor, walk
from dqt_core.evaluation import cost
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import IMAGE, BackendName, Choice, Conv, Op, Program, Scale, Widths, step_by_step

Reals = NDArray[np.float64]


def layer_bitops(program: Program) -> NDArray[np.int64]:
    """BitOPs of every switchable layer at every choice of widths, for one image.

    Parameters
    ----------
    program : Program

    Returns
    -------
    int64 array, (L, K)
        Its sum over layers and `fixed_bitops` together are `cost.bitops`.

    Examples
    --------
    >>> from dqt_core import load
    >>> program = load("digits")
    >>> layer_bitops(program)[0].tolist()  # at 2, 3, 4, 6 and 8 bits
    [2359296, 5308416, 9437184, 21233664, 37748736]
    >>> int(layer_bitops(program)[:, 2].sum()) + fixed_bitops(program) == cost.bitops(program, 4).item()
    True
    """
    macs = {size.layer: size.macs for size in cost.layer_sizes(program) if size.layer is not None}
    products = np.asarray(program.choices, np.int64).prod(axis=1)
    return np.asarray([macs[layer] for layer in range(len(macs))], np.int64)[:, None] * products


def fixed_bitops(program: Program) -> int:
    """BitOPs of the first and last layers, which stay at 8 bits; the controller's are not among them.

    Parameters
    ----------
    program : Program

    Returns
    -------
    int

    Examples
    --------
    >>> from dqt_core import load
    >>> fixed_bitops(load("digits"))
    14196736
    """
    sizes = cost.layer_sizes(program)
    return sum(s.macs for s in sizes if s.layer is None and not s.controller) * MASTER_WIDTH**2


def uniform_bitops(program: Program, width: float) -> float:
    """BitOPs of the whole network with its switchable layers at one width, which need not be a choice.

    Parameters
    ----------
    program : Program
    width : float
        Bits of weights and input.

    Returns
    -------
    float
        Equal to `cost.bitops` where the width is a choice.

    Examples
    --------
    >>> from dqt_core import load
    >>> [uniform_bitops(load("digits"), width) / 1e6 for width in (4, 4.5)]
    [152.608768, 189.374464]
    """
    sizes = cost.layer_sizes(program)
    return sum(size.macs for size in sizes if size.layer is not None) * width**2 + fixed_bitops(program)


def logit_shift(program: Program) -> int:
    """The r of a program's logits: 2**-r times the integers are real logits.

    Parameters
    ----------
    program : Program

    Returns
    -------
    int

    Examples
    --------
    >>> from dqt_core import load
    >>> logit_shift(load("digits"))
    43
    """
    return next(op.r for op in program.ops if isinstance(op, Scale) and not op.controller)


def loss(
    program: Program,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    widths: Widths,
    backend: BackendName = "auto",
) -> float:
    """Mean cross-entropy of a program's integer logits, brought to real units by their scale 2**-r.

    Parameters
    ----------
    program : Program
    images : uint8 array, (N, H, W, C)
    labels : int64 array, (N,)
    widths : as in `Program.run`
    backend : as in `Program.run`

    Returns
    -------
    float
        In nats.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> program, images = selftest.network(), selftest.images()
    >>> labels = program.run(images, 8, "numpy").classes
    >>> [round(loss(program, images, labels, widths, "numpy"), 3) for widths in (8, 2, [8, 8, 4])]
    [0.0, 0.002, 3.897]
    """
    found = log_probabilities(program, program.run(images, widths, backend).logits)
    return float(-found[np.arange(len(labels)), labels].mean())


def log_probabilities(program: Program, logits: NDArray[np.int64]) -> Reals:
    """Of the classes, from a program's integer logits brought to real units.

    Parameters
    ----------
    program : Program
    logits : int64 array, (N, classes)

    Returns
    -------
    float64 array, (N, classes)

    Examples
    --------
    >>> from dqt_core import load
    >>> program = load("digits")
    >>> np.exp(log_probabilities(program, np.array([[1 << logit_shift(program), 0]]))).round(3)
    array([[0.731, 0.269]])
    """
    real = np.ldexp(logits.astype(np.float64), -logit_shift(program))
    shifted = real - real.max(axis=1, keepdims=True)
    result: Reals = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def sensitivities(
    program: Program,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    reference: int | Sequence[int | Choice] = MASTER_WIDTH,
    backend: BackendName = "auto",
) -> Reals:
    """How much the loss grows when one layer alone is at a choice of widths, the rest at a reference.

    Measured on the integer program: it is what runs, and its result is the same on every machine.

    Parameters
    ----------
    program : Program
    images : uint8 array, (N, H, W, C)
        For calibration, of the training set.
    labels : int64 array, (N,)
    reference : int, or list of L
        Width of the other layers, or of each.
    backend : as in `Program.run`

    Returns
    -------
    float64 array, (L, K)
        Nats; 0 where the choice is the reference.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> program, images = selftest.network(), selftest.images()
    >>> labels = program.run(images, 8, "numpy").classes
    >>> sensitivities(program, images, labels, backend="numpy")[2].round(3)  # at 2, 3, 4, 6, 8 bits
    array([0.   , 0.018, 3.897, 0.   , 0.   ])
    """
    layers = len(program.layers)
    base: list[int | Choice]
    base = [reference] * layers if isinstance(reference, int | np.integer) else list(reference)
    start = loss(program, images, labels, base, backend)
    result = np.zeros((layers, len(program.choices)))
    for layer in range(layers):
        for k, choice in enumerate(program.choices):
            if choice not in (base[layer], (base[layer], base[layer])):
                changed = [*base[:layer], choice, *base[layer + 1 :]]
                result[layer, k] = loss(program, images, labels, changed, backend) - start
    return result


def divergences(
    program: Program,
    images: NDArray[np.uint8],
    reference: int | Sequence[int | Choice] = MASTER_WIDTH,
    backend: BackendName = "auto",
) -> Reals:
    """How far one layer at a choice of widths moves the classes' probabilities, the rest at a reference.

    The mean Kullback-Leibler divergence from the reference's probabilities. Unlike `sensitivities` it needs
    no labels, and it is much less noisy on few images: most of what it compares is equal.

    Parameters
    ----------
    program : Program
    images : uint8 array, (N, H, W, C)
        For calibration. What every operation gives for them is held in memory at once.
    reference : int, or list of L
        Width of the other layers, or of each.
    backend : {"auto", "numpy", "torch"}
        One that runs operation by operation.

    Returns
    -------
    float64 array, (L, K)
        Nats; 0 where the choice is the reference.

    Notes
    -----
    Only what comes after a layer is computed anew for it.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> divergences(selftest.network(), selftest.images(), backend="numpy")[2].round(3)  # of the last layer
    array([0.   , 0.018, 3.897, 0.   , 0.   ])
    """
    executor, count = step_by_step(program, backend), len(program.choices)
    ops = [op for op in program.ops if not op.controller]
    base = program._choices_of(reference, len(images))
    assert base is not None, "a number is no controller"
    values: dict[str, Any] = {IMAGE: executor.upload(images)}
    wanted = log_probabilities(program, _continued(executor, ops, values, base, count))
    result = np.zeros((len(program.layers), count))
    for start, op in enumerate(ops):
        layer = op.layer if isinstance(op, Conv) else None
        for k in range(count):
            if layer is not None and k != base[0, layer]:
                picks = base.copy()
                picks[:, layer] = k
                found = log_probabilities(
                    program, _continued(executor, ops[start:], dict(values), picks, count)
                )
                result[layer, k] = (np.exp(wanted) * (wanted - found)).sum(1).mean()
    return result


def _continued(
    executor: Executor, ops: Sequence[Op], values: dict[str, Any], picks: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    ((_, logits),) = deque(walk(executor, ops, values, picks, count, keep=True), maxlen=1)
    return executor.download(logits).reshape(len(picks), -1)


def allocate(
    costs: NDArray[np.integer], sensitivities: NDArray[np.floating], budget: float
) -> NDArray[np.int64]:
    """The choice for every layer with the least summed sensitivity whose summed cost is within the budget.

    A multiple-choice knapsack, solved exactly as a mixed-integer linear program.

    Parameters
    ----------
    costs : int array, (L, K)
        Such as `layer_bitops`.
    sensitivities : float array, (L, K)
    budget : float
        Upper bound of the summed cost, in the unit of `costs`.

    Returns
    -------
    int64 array, (L,)
        Index of the choice of every layer.

    Raises
    ------
    ValueError
        If the shapes differ, a sensitivity is not finite, costs are not integers, or not even the cheapest
        choices fit the budget.
    ImportError
        If scipy is not installed.

    Examples
    --------
    >>> allocate(np.array([[4, 16, 64], [4, 16, 64]]), np.array([[9.0, 1, 0], [2.0, 1, 0]]), budget=68)
    array([2, 0])
    """
    costs = np.asarray(costs)
    losses: Reals = np.asarray(sensitivities, np.float64)
    _require(costs, losses, budget)
    optimize = _scipy_optimize()
    layers, choices = costs.shape
    unit = max(int(np.gcd.reduce(costs, axis=None)), 1)  # small integers: the solver's sums are exact
    one_each = np.kron(np.eye(layers), np.ones(choices))
    constraints = [
        optimize.LinearConstraint(one_each, 1, 1),
        optimize.LinearConstraint((costs // unit).reshape(1, -1).astype(float), -np.inf, budget // unit),
    ]
    spread = np.ptp(losses) or 1.0
    solution = optimize.milp(
        (losses / spread).ravel(),
        constraints=constraints,
        integrality=np.ones(costs.size),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise RuntimeError(f"the solver stopped without an allocation: {solution.message}")
    picks: NDArray[np.int64] = solution.x.reshape(layers, choices).argmax(axis=1).astype(np.int64)
    assert costs[np.arange(layers), picks].sum() <= budget, "the solver went over the budget"
    return picks


def _require(costs: NDArray[Any], sensitivities: Reals, budget: float) -> None:
    if costs.ndim != 2 or costs.shape != sensitivities.shape:
        raise ValueError(
            f"costs are {costs.shape} and sensitivities {sensitivities.shape}; both must be (layers, choices)"
        )
    if costs.dtype.kind not in "iu":
        raise ValueError(f"costs are {costs.dtype}, expected integers, such as `layer_bitops` returns")
    if not np.isfinite(sensitivities).all():
        raise ValueError("a sensitivity is NaN or infinite; measure it again")
    cheapest = int(costs.min(axis=1).sum())
    if cheapest > budget:
        raise ValueError(
            f"the budget is {budget:g}, and the cheapest choices cost {cheapest}: raise the budget or add "
            "narrower widths"
        )


def _scipy_optimize() -> Any:
    with needed("allocate", "train"):
        from scipy import optimize
    return optimize
