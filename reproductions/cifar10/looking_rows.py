"""Rows that look at the image: cascades, controllers, and the controls beside them."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_core import allocate, cost, lower, results, train
from dqt_core.evaluation.cascade import thresholds_for
from dqt_core.program import Program
from dqt_core.training.controller import Controller
from dqt_core.training.layers import Coded
from dqt_core.training.network import NestedNet
from dqt_core.training.objective import Objective
from reproductions.cifar10.decisions import (
    Allocation,
    Decision,
    Target,
    prices_for,
    train_only_the_controller,
)
from reproductions.cifar10.later import place_controller
from reproductions.cifar10.run import SAMPLED, WIDTHS, Run, batches_of, estimate_norms, static_objective
from reproductions.cifar10.static_rows import Allocated, best_allocation

PAIRS = ((2, 4), (3, 4), (3, 6))  # steps of the cascades along whose shares a curve is drawn
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
RESERVE = 0.9  # of the share that a budget allows: unseen images have smaller margins than those of training
BETA = 4.0  # of the cost term, which is zero below the target
RATES_WEIGHT = 2.0  # of the cost term that asks for rates, as in convnet-aig
WIDEST_FIRST = 3.0  # the widest choice's lead in every layer's logits at the start of a quiet training


class Blind(nn.Module):
    """In place of the controller's pool: it says the same of every image."""

    def forward(self, x: Coded) -> Tensor:
        return x.codes.new_zeros(x.codes.shape[:2], dtype=torch.float32)


@dataclass
class Quiet(Objective):
    """The choice without noise, and a cost term whose weight grows from 0 to `beta` (CADyQ, arXiv 2207.10345)."""

    def __call__(
        self, net: NestedNet, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        assert net.controller is not None
        net.controller.is_noisy = False
        now = Objective(**vars(self) | {"beta": progress * self.beta})
        return now(net, images, labels, progress)


def looking_twice(run: Run, only: tuple[int, ...] | None = None) -> list[results.Record]:
    """DQT static, trained as long as its opponents at a budget, and cascades on that one stored program.

    Thresholds come from augmented training images. At the budget of 3 bits 2 -> 4 is the comparison that was
    fixed beforehand; the curves and three steps stand beside it. With `only` the further training is at these
    widths alone, those of one cascade, as a static opponent's is at the widths that it runs.
    """
    net = run.static()
    run.fit(net, static_objective(consistency_widths=only))
    train.recalibrate(net, run.images, run.settings.calibration)
    program, widths = run.lower(net), only or WIDTHS
    rows = [run.integer(program, width, str(width)) for width in widths]
    looked = functools.partial(looked_twice, run, program)
    spent = {width: float(cost.bitops(program, width)[0]) for width in WIDTHS}
    for steps, bits in (((2, 4), 3), ((3, 6), 4)):
        if not set(steps) <= set(widths):
            continue
        share = RESERVE * (spent[bits] - spent[steps[0]]) / spent[steps[1]]
        row = looked(f"cascade at {bits} bits", steps, [share]) | {"budget": spent[bits]}
        rows += [row, dealt(run, program, row)]
    if only:
        return rows
    half = RESERVE * (spent[3] - spent[2]) / 2
    rows.append(looked("cascade of three steps at 3 bits", (2, 3, 8), [half / spent[3], half / spent[8]]))
    for steps in PAIRS:
        rows += [looked(f"{steps[0]} -> {steps[1]}, {share:.0%}", steps, [share]) for share in SHARES]
    return rows


def looking_twice_chosen(run: Run, bits: int, around: tuple[float, float]) -> list[results.Record]:
    """A cascade between two static allocations at the BitOPs of a uniform width.

    Each is the best one at the BitOPs of its (possibly fractional) width of `around`; the network is trained
    further at both, and each is recorded alone.
    """
    net = run.static()
    program = lower(net, "static")
    budgets = [allocate.uniform_bitops(program, width) for width in around]
    steps = [best_allocation(run, program, budget) for budget in budgets]
    run.fit(net, Allocated(tuple(map(tuple, steps))))
    batches = batches_of(run.images, run.images.train_images[: run.settings.calibration])
    estimate_norms(net, [lambda x: [net(x, widths) for widths in steps]], batches)
    program = run.lower(net)
    run.training["allocations"] = steps
    spent = [float(cost.bitops(program, widths)[0]) for widths in steps]
    budget = allocate.uniform_bitops(program, bits)
    share = RESERVE * (budget - spent[0]) / spent[1]
    row = looked_twice(run, program, f"cascade at {bits} bits", steps, [share]) | {"budget": budget}
    alone = [run.integer(program, widths, f"step {i}") for i, widths in enumerate(steps)]
    return [row, dealt(run, program, row), *alone]


def looked_twice(
    run: Run, program: Program, label: str, steps: Sequence[Any], shares: Sequence[float]
) -> results.Record:
    """A cascade on the test images, its thresholds from augmented training images."""
    torch.manual_seed(run.settings.seed)
    seen = train.augment(torch.from_numpy(run.images.train_images[-run.settings.looking :]), run.flip).numpy()
    found = thresholds_for(program, seen, steps, shares)
    row = results.evaluate_cascade(program, run.images, steps, found, run.settings.limit, label=label)
    return row | {"kind": "integer", "program": program.digest, "shares": list(shares)}


def dealt(run: Run, program: Program, row: results.Record) -> results.Record:
    """A cascade's control: as many images take the second pass, drawn without looking."""
    images = run.images.test_images[: run.settings.limit]
    taken = np.repeat([0, 1], row["passes"])
    np.random.default_rng(run.settings.seed).shuffle(taken)
    layers = len(program.layers)
    widths = np.array([np.broadcast_to(step, layers) for step in row["steps"]])[taken]
    label = f"{row['widths']}, dealt to other images"
    assert len(widths) == len(images), "every image is dealt a number of passes"
    return run.integer(program, widths, label) | {"bitops": row["bitops"], "passes": row["passes"]}


def dynamic(
    run: Run,
    bits: int,
    is_blind: bool = False,
    is_quiet: bool = False,
    mixed_paths: int = 0,
    around: tuple[int, int] | None = None,
) -> list[results.Record]:
    """The controller at the BitOPs of a uniform width, from the same network as `mixed` starts from.

    A blind one is trained in the same way and sees no image: it learns one static choice of widths. A quiet one
    chooses without noise, at first the widest. With two widths `around` that of the budget, the cost term asks
    each layer for a rate of both instead of for the budget.
    """
    net = run.static()
    if is_blind:
        net.controller.pool = Blind()
    if is_quiet:
        widest_first(net.controller)
    budget = allocate.uniform_bitops(lower(net), bits)
    kind = Quiet if is_quiet else Objective
    objective = kind(beta=BETA, sampled_widths=SAMPLED, mixed_paths=mixed_paths)
    if around is None:
        objective = dataclasses.replace(objective, target_bitops=budget)
    else:
        objective = dataclasses.replace(objective, beta=RATES_WEIGHT, target_rates=rates(bits, around))
    run.fit(net, objective)
    train.recalibrate(net, run.images, run.settings.calibration)
    batches = batches_of(run.images, run.images.train_images[: run.settings.calibration])
    run.training["bias for the budget"] = meet_budget(net, batches, budget)
    picks = [_picks(net, x)[1] for x in batches]
    estimate_norms(net, [functools.partial(net, widths=pick) for pick in picks], batches)
    program, usual = run.lower(net), torch.cat(picks).sum(0).argmax(1).tolist()
    if is_blind:
        return [run.integer(program, [program.choices[k][0] for k in usual], "blind", budget=budget)]
    return opponents(run, program, usual, budget)


def widest_first(controller: Controller) -> None:
    """Before its training, a controller gives every layer its widest choice."""
    controller.fc2.bias.data.unflatten(0, controller.shape)[:, -1] += WIDEST_FIRST


def rates(bits: int, around: tuple[int, int]) -> tuple[float, ...]:
    """Of each width: how often, so that a narrow and a wide one cost as much as one between them."""
    narrow, wide = around
    share = (bits**2 - narrow**2) / (wide**2 - narrow**2)
    return tuple({narrow: 1 - share, wide: share}.get(width, 0.0) for width in WIDTHS)


def looking(
    run: Run, bits: int, target: Target, uniform: tuple[int, ...] | None = None
) -> list[results.Record]:
    """A controller that decides once for an image, trained by itself on a finished network.

    It chooses among uniform widths, or, without them, among the static widths that a blind controller learned for
    the same budget and what lies one choice below and above.
    """
    net = run.static()
    if uniform is None:
        allocations = neighbours(results.read(run.settings.record(f"blind-{bits}")), WIDTHS)
    else:
        allocations = tuple((width,) * len(net.switch_layers) for width in uniform)
    return _decided(run, net, bits, target, allocations)


def later(run: Run, bits: int, stages: int) -> list[results.Record]:
    """A controller behind the first stages, which run at a uniform width: one decision for the layers that follow.

    Weights stay as they are. The statistics of batch norms are taken anew, as the layers that follow read what a
    stage at that width makes.
    """
    net = run.static()
    batches = batches_of(run.images, run.images.train_images[: run.settings.calibration])
    place_controller(net, f"layer{stages}_1_relu2_codes", bits, batches[0])
    first = len(net.controller.before)
    rest = len(net.switch_layers) - first
    allocations = tuple((bits,) * first + (width,) * rest for width in WIDTHS)
    estimate_norms(net, [lambda x: [net(x, list(widths)) for widths in allocations]], batches)
    return _decided(run, net, bits, "losses", allocations)


def _decided(
    run: Run, net: NestedNet, bits: int, target: Target, allocations: tuple[Allocation, ...]
) -> list[results.Record]:
    """The decision among allocations, trained by itself at the BitOPs of a uniform width, with its controls."""
    program = lower(net, "static")
    spent = [float(cost.bitops(program, list(widths))[0]) for widths in allocations]
    budget = allocate.uniform_bitops(program, bits)
    share = (budget - spent[0]) / (spent[-1] - spent[0])
    train_only_the_controller(net)
    decision = Decision(allocations, target, share if target == "margin" else 0.0)
    run.fit(net, decision)
    torch.manual_seed(run.settings.seed)
    seen = train.augment(torch.from_numpy(run.images.train_images[-run.settings.looking :]), run.flip).numpy()
    prices = prices_for(decision.scores, net, batches_of(run.images, seen), torch.tensor(spent), budget)
    decision.scores.settle(net, prices)
    program = run.lower(net)
    run.training |= {"allocations": allocations, "prices": prices.tolist()}
    counts = results.evaluate(program, run.images, "controller", run.settings.limit)["layers"]
    usual = [int(np.argmax(layer["counts"])) for layer in counts]
    alone = [run.integer(program, list(widths), f"allocation {i}") for i, widths in enumerate(allocations)]
    return opponents(run, program, usual, budget) + alone


def neighbours(blind: results.Record, widths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The widths that a blind controller learned, between those one choice below and one above."""
    learned = next(row["run"] for row in blind["rows"] if row["widths"] == "blind")
    ranks = [widths.index(width) for width in learned]
    shifted = ([min(max(rank + by, 0), len(widths) - 1) for rank in ranks] for by in (-1, 0, 1))
    return tuple(tuple(widths[rank] for rank in row) for row in shifted)


def joint(run: Run, alpha: float) -> list[results.Record]:
    """Controller and codes trained together from the float network, with or without the consistency term."""
    net = run.nested()
    budget = allocate.uniform_bitops(run.sizes, 4)
    run.fit(net, Objective(alpha=alpha, beta=BETA, target_bitops=budget, sampled_widths=SAMPLED))
    train.recalibrate(net, run.images, run.settings.calibration)
    program = run.lower(net)
    return [run.integer(program, widths, str(widths)) for widths in (*WIDTHS, "controller")]


def opponents(run: Run, program: Program, usual: list[int], budget: float) -> list[results.Record]:
    """The controller, and the same network with widths that do not look at the image."""
    test_images = run.images.test_images[: run.settings.limit]
    widths = program.run(test_images, "controller").widths
    order = np.random.default_rng(run.settings.seed).permutation(len(widths))
    frozen = [program.choices[k][0] for k in usual]
    spent = cost.bitops(program, widths)
    ranked = np.argsort(spent, kind="stable")
    more = {
        "patterns": len(np.unique(widths, axis=0)),
        "bitops_deviation": float(spent.std()),
        "fewest": ranked[:12].tolist(),
        "most": ranked[::-1][:12].tolist(),
    }
    return [
        run.integer(program, "controller", "controller", budget=budget, **more),
        run.integer(program, widths[order], "another image's widths"),
        run.integer(program, frozen, "each layer's usual width"),
    ]


@torch.no_grad()
def _picks(net: NestedNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """The controller's logits and decisions (N, L, K)."""
    _, selection = net.eval().run(x, "controller")
    probabilities, picks = selection.probabilities, selection.per_layer
    assert probabilities is not None
    assert isinstance(picks, Tensor)
    return probabilities.log(), picks


def meet_budget(net: NestedNet, batches: list[Tensor], budget: float) -> float:
    """Shift the controller's biases by a multiple of each choice's cost, so that its decisions cost the budget.

    The multiple is found by bisection on training images; it can be negative, to spend what is left.
    """
    controller = net.controller
    assert controller is not None
    logits = torch.cat([_picks(net, x)[0] for x in batches])
    macs = torch.tensor([float(layer.macs) for layer in net.switch_layers])
    costs = macs[:, None] * torch.tensor([float(w * a) for w, a in net.choices])
    costs = costs / costs.max()

    def spent(multiple: float) -> float:
        picks = functional.one_hot((logits - multiple * costs).argmax(-1), costs.shape[1]).float()
        return net.bitops(picks).mean().item()

    low, high = -64.0, 64.0
    for _ in range(20):  # finer, it would end on the brink of one image's decision, where rounding decides
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > budget else (low, middle)
    controller.fc2.bias.data -= (high * costs).flatten()
    return high
