"""Rows whose widths do not depend on the image."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dqt_core import allocate, lower, results, train
from dqt_core.program import Program
from dqt_core.training.network import NestedNet
from dqt_core.training.objective import Objective
from reproductions.cifar10.baselines import BaselineLoss, BaselineNet
from reproductions.cifar10.run import WIDTHS, Run, batches_of, estimate_norms, static_objective

REFERENCES = (8, 4)  # widths of the other layers while one is measured


@dataclass
class Allocated:
    """The mean task at static allocations, beside the same consistency term as the controller's objective."""

    allocations: tuple[tuple[int, ...], ...]
    alpha: float = 1.0

    def __call__(
        self, net: NestedNet, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        consistency = static_objective(alpha=self.alpha)
        loss, figures = consistency(net, images, labels, progress)
        tasks = [functional.cross_entropy(net(images, list(w)).float(), labels) for w in self.allocations]
        task = torch.stack(tasks).mean()
        return loss + task, figures | {"task": round(task.item(), 4)}


def float_row(run: Run) -> list[results.Record]:
    row = run.simulated(run.float_net, "float", None)
    return [row | {"bitops": None}]


def float_further(run: Run) -> list[results.Record]:
    """The control for what the further training does alone."""
    net = run.float_net
    run.fit(net, train.CrossEntropy())
    estimate_norms(net, [net], batches_of(run.images, run.images.train_images[: run.settings.calibration]))
    return [run.simulated(net, "float, trained further", None)]


def single(run: Run, width: int) -> list[results.Record]:
    net = run.nested((width,), controller=False)
    run.fit(net, Objective())
    train.recalibrate(net, run.images, run.settings.calibration)
    return [run.integer(run.lower(net), width, str(width))]


def baseline(run: Run, method: str, widths: Sequence[int]) -> list[results.Record]:
    net = BaselineNet(run.float_net, method, widths)
    net.calibrate(batches_of(run.images, run.images.train_images[:512], 512)[0])
    run.fit(net, BaselineLoss(method))
    batches = batches_of(run.images, run.images.train_images[: run.settings.calibration])
    for width in widths:
        estimate_norms(net, [functools.partial(net, width=width)], batches)
    return [run.simulated(net, str(width), width) for width in widths]


def cut(run: Run) -> list[results.Record]:
    net = run.nested()
    program = run.lower(net, "cut")
    rows = [run.integer(program, width, f"cut {width}") for width in WIDTHS]
    train.recalibrate(net, run.images, run.settings.calibration)
    program = run.lower(net, "recalibrated")
    return rows + [run.integer(program, width, f"cut {width}, recalibrated") for width in WIDTHS]


def switchable(run: Run, **options: Any) -> list[results.Record]:
    """Consistency alone, every width; with the statistics of training, and re-estimated."""
    net = run.nested(**options)
    run.fit(net, static_objective())
    program = run.lower(net, "statistics of training")
    rows = [run.integer(program, width, f"{width}, statistics of training") for width in WIDTHS]
    train.recalibrate(net, run.images, run.settings.calibration)
    program = run.lower(net)
    twins = {width: run.twin(net, program, width) for width in WIDTHS}
    return [run.integer(program, width, str(width), twin=twins[width]) for width in WIDTHS] + rows


def mixed(run: Run, bits: int, uniform: bool = False) -> list[results.Record]:
    """The best static allocation at the BitOPs of a uniform width, or that width, trained further."""
    net = run.static()
    program = lower(net, "static")
    budget = allocate.uniform_bitops(program, bits)
    widths = [bits] * len(program.layers) if uniform else best_allocation(run, program, budget)
    label = "uniform" if uniform else "mixed"
    before = run.integer(program, widths, f"{label}, before its training")
    run.fit(net, Allocated((tuple(widths),)))
    batches = batches_of(run.images, run.images.train_images[: run.settings.calibration])
    estimate_norms(net, [lambda x: net(x, widths)], batches)
    program = run.lower(net)
    run.training["allocation"] = dict(zip(program.layers, widths, strict=True))
    return [run.integer(program, widths, label, budget=budget), before]


def best_allocation(run: Run, program: Program, budget: float) -> list[int]:
    """Of the allocations from each reference and the uniform ones, the one with the least loss."""
    images = run.images.train_images[-run.settings.sensitivity :]
    labels = run.images.train_labels[-run.settings.sensitivity :]
    costs, widths = allocate.layer_bitops(program), [width for width, _ in program.choices]
    left = budget - allocate.fixed_bitops(program)
    candidates = {f"uniform {w}": [w] * len(costs) for w in widths if costs[:, widths.index(w)].sum() <= left}
    for reference, measured in sensitivities(run, program, images, labels).items():
        picks = allocate.allocate(costs, np.asarray(measured), left)
        candidates[f"sensitivities at {reference}"] = [widths[k] for k in picks]
    losses = {name: allocate.loss(program, images, labels, c) for name, c in candidates.items()}
    best = min(losses, key=lambda name: losses[name])
    run.training |= {"candidates": losses, "chosen": best}
    return candidates[best]


def sensitivities(run: Run, program: Program, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """At each reference, measured once for a program and kept beside its checkpoint."""
    path = run.settings.out / f"sensitivities-{program.digest[:12]}.json"
    if not path.exists():
        measured = {
            str(reference): allocate.sensitivities(program, images, labels, reference).tolist()
            for reference in REFERENCES
        }
        path.write_text(json.dumps(measured))
    return json.loads(path.read_text())
