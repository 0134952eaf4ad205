"""One row of the CIFAR-10 table: train a method from the float network, evaluate it, record it.

    python -m reproductions.cifar10.compare --list
    python -m reproductions.cifar10.compare --row dqt-static --seed 0 --epochs 4
    python -m reproductions.cifar10.compare --all

Every row of a seed starts from the same float network and takes the same number of steps of the same recipe. A
run that was interrupted goes on from its last checkpoint; `--all` leaves out the rows whose record exists.

On another processor a row becomes another program, `--row cut` too: training and conversion run in float32, whose last
bits depend on the machine. Its counts then lie near the recorded ones, its digests differ. The recorded program itself
has the recorded digests everywhere.
"""

import argparse
import dataclasses
import functools
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dqt_book.places import network
from dqt_core import allocate, convert, cost, data, lower, models, results, train
from dqt_core.evaluation.cascade import thresholds_for
from dqt_core.program import Program
from dqt_core.training import agreement
from dqt_core.training.layers import Coded
from dqt_core.training.network import NestedNet
from dqt_core.training.objective import Objective
from reproductions.cifar10.baselines import BaselineLoss, BaselineNet
from reproductions.cifar10.side_by_side import SideBySide
from reproductions.cifar10.train import load_float, save_float

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "reproductions" / "results" / "resnet18_cifar"
WIDTHS, BUDGETS = (2, 3, 4, 6, 8), (3, 4, 5)
CALIBRATION = 5120  # training images behind batch-norm statistics, and the controller's budget
SENSITIVITY = 512  # training images behind the sensitivities
REFERENCES = (8, 4)  # widths of the other layers while one is measured
LOOKING = 5120  # training images behind a cascade's thresholds
PAIRS = ((2, 4), (3, 4), (3, 6))  # steps of the cascades along whose shares a curve is drawn
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
RESERVE = 0.9  # of the share that a budget allows: unseen images have smaller margins than those of training
SAMPLED = 3  # widths in a step of the consistency term: the narrowest, the widest, one more
BETA = 4.0  # of the cost term, which is zero below the target
CONSISTENCY_ONLY = 2.0  # a controller that would join after the end never does


@dataclass(frozen=True)
class Settings:
    """What a row is trained with, apart from its method."""

    seed: int = 0
    channels: int = 16
    epochs: float = 4
    float_epochs: float = 60
    float_lr: float = 0.2
    lr: float = 0.02
    compiled: bool = True
    dataset: str = "cifar10"
    limit: int | None = None
    float_path: Path | None = None
    out: Path = ROOT / "runs" / "resnet18_compare"
    records: Path = RECORDS

    def name(self, row: str) -> str:
        prefix = "" if self.dataset == "cifar10" else f"{self.dataset}_"
        return f"{prefix}{row}_c{self.channels}_e{self.epochs:g}_s{self.seed}"

    def record(self, row: str) -> Path:
        return self.records / f"{self.name(row)}.json"


class Blind(nn.Module):
    """In place of the controller's pool: it says the same of every image."""

    def forward(self, x: Coded) -> Tensor:
        return x.codes.new_zeros(x.codes.shape[:2], dtype=torch.float32)


def static_objective(**options: Any) -> Objective:
    """The consistency term alone."""
    return Objective(controller_from=CONSISTENCY_ONLY, sampled_widths=SAMPLED, **options)


@dataclass
class Allocated:
    """The task at one static allocation, beside the same consistency term as the controller's objective."""

    widths: tuple[int, ...]
    alpha: float = 1.0

    def __call__(
        self, net: NestedNet, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        consistency = static_objective(alpha=self.alpha)
        loss, figures = consistency(net, images, labels, progress)
        task = functional.cross_entropy(net(images, list(self.widths)).float(), labels)
        return loss + task, figures | {"task": round(task.item(), 4)}


class Run:
    """A row in the making: the data, the float network, and the steps that rows share."""

    def __init__(self, settings: Settings, row: str) -> None:
        self.settings, self.row, self.images = settings, row, data.load(settings.dataset)
        self.programs: dict[str, str] = {}
        self.training: dict[str, Any] = {}
        self.float_net = self._float()

    @property
    def folder(self) -> Path:
        return self.settings.out / self.settings.name(self.row)

    @functools.cached_property
    def sizes(self) -> Program:
        """A program of this network at all widths, for its costs."""
        return lower(self.nested(), "costs")

    def fit(self, net: nn.Module, loss: Any, folder: str = "") -> None:
        recipe = self.recipe(self.settings.epochs, self.settings.lr, self.settings.seed)
        start = time.perf_counter()
        with SideBySide():
            history = train.fit(net, self.images, recipe, loss, self.folder / folder, checkpoint_every=50)
        seconds = round(time.perf_counter() - start)
        self.training |= {"steps": len(history), "batch_size": recipe.batch_size, "lr": recipe.lr}
        self.training |= {"seconds of the last call": seconds, "last": history[-1]}

    def recipe(self, epochs: float, lr: float, seed: int) -> train.Recipe:
        return train.Recipe(
            epochs=epochs, lr=lr, seed=seed, flip=self.flip, clip=1.0, compiled=self.settings.compiled
        )

    @property
    def flip(self) -> bool:
        return self.settings.dataset != "embedded"  # a mirrored digit is another sign

    def float_recipe(self) -> train.Recipe:
        settings = self.settings
        return train.Recipe(
            epochs=settings.float_epochs,
            lr=settings.float_lr,
            seed=settings.seed,
            clip=None,
            small_crops=1 / 3,
            flip=self.flip,
            compiled=settings.compiled,
        )

    def nested(self, widths: Sequence[int] = WIDTHS, **options: Any) -> NestedNet:
        torch.manual_seed(self.settings.seed)
        sample = self.images.train_images[:512]
        return convert(self.float_net, sample, self.images.mean, self.images.std, widths, **options)

    def static(self) -> NestedNet:
        """The network of the row dqt-static, trained now if it was not before."""
        run = Run(self.settings, "dqt-static")
        net = run.nested()
        run.fit(net, static_objective())
        train.recalibrate(net, self.images, CALIBRATION)
        self.training["starts from"] = lower(net, run.settings.name("dqt-static")).digest
        return net

    def lower(self, net: NestedNet, label: str = "trained") -> Program:
        ending = "" if label == "trained" else f"_{label.replace(' ', '-')}"
        program = lower(net, self.settings.name(self.row) + ending)
        program.save(self.folder.parent / "programs")
        self.programs[label] = program.digest
        return program

    def integer(self, program: Program, widths: Any, label: str, **more: Any) -> results.Record:
        """A row evaluated by integers on the test images."""
        row = results.evaluate(program, self.images, widths, self.settings.limit, label=label)
        again = {} if isinstance(widths, np.ndarray) else {"run": widths}  # what `Program.run` takes
        return row | {"kind": "integer", "program": program.digest} | again | more

    def twin(self, net: NestedNet, program: Program, width: int) -> results.Record:
        """How the integer program and the network it came from, in float32, classify the same images."""
        test_images = self.images.test_images[: self.settings.limit]
        found = agreement.differences(net, program, test_images, width)
        return {
            "same": len(test_images) - len(found),
            "images": len(test_images),
            "differing": [dataclasses.asdict(difference) for difference in found],
        }

    def simulated(self, net: Callable[..., Tensor], label: str, width: int | None) -> results.Record:
        """A row evaluated in float32; without a width, that of the float network."""
        start = time.perf_counter()
        labels = self.images.test_labels[: self.settings.limit]
        options = {} if width is None else {"width": width}
        right = _classes(net, self.images, self.settings.limit, **options) == labels
        bits = None if width is None else float(allocate.uniform_bitops(self.sizes, width))
        return {
            "widths": label,
            "correct": int(right.sum()),
            "images": len(labels),
            "bitops": bits,
            "mean_width": width,
            "logits": None,
            "hits": results.packed(right),
            "kind": "float" if width is None else "float simulation",
            "seconds": round(time.perf_counter() - start, 2),
        }

    def write(self, rows: list[results.Record]) -> Path:
        settings, images = self.settings, self.images
        record = {
            "name": settings.name(self.row),
            "row": self.row,
            "method": ROWS[self.row].method,
            "seed": settings.seed,
            "channels": settings.channels,
            "epochs": settings.epochs,
            "rows": rows,
            "programs": self.programs,
            "training": {**self.training, "threads": torch.get_num_threads(), **self.float_origin},
            "dataset": {
                "name": images.name,
                "split": "test",
                "limit": settings.limit,
                "checksums": images.checksums,
            },
            "provenance": results.provenance(),
        }
        return results.write(record, settings.record(self.row))

    def _float(self) -> nn.Module:
        settings, classes = self.settings, len(self.images.classes)
        path = settings.float_path or _shipped_float(settings)
        if path is None:
            torch.manual_seed(settings.seed)
            net = models.resnet18(classes, settings.channels, small_images=True)
            recipe = self.float_recipe()
            folder = settings.out / f"float_{settings.dataset}_c{settings.channels}_s{settings.seed}"
            start = time.perf_counter()
            with SideBySide():
                history = train.fit(net, self.images, recipe, out=folder, checkpoint_every=100)
            seconds = round(time.perf_counter() - start)
            epochs = f"{settings.float_epochs:g} epochs at batch {recipe.batch_size}, peak rate {recipe.lr:g}"
            origin = {
                "float network": f"{epochs}, seed {settings.seed}, trained by this command",
                "float epochs": settings.float_epochs,
                "float lr": settings.float_lr,
                "float recipe": dataclasses.asdict(recipe),
                "float seconds of the last call": seconds,
                "float last": history[-1],
            }
        else:
            net, origin = load_float(path, classes), {"float network": path.name}
        if len(net.conv1.weight) != settings.channels:
            raise ValueError(f"{path} has {len(net.conv1.weight)} channels, expected {settings.channels}")
        digest = save_float(net, settings.out / "programs", f"resnet18_{settings.dataset}_float")
        self.float_origin = {"float": digest, **origin}
        return net


def _shipped_float(settings: Settings) -> Path | None:
    """The committed float network, where it has the channels that are asked for."""
    if (settings.dataset, settings.channels) != ("embedded", 8):
        return None
    return network(results.read(RECORDS / f"{settings.dataset}.json"), "float")


@torch.no_grad()
def _classes(
    net: Callable[..., Tensor], images: data.Dataset, limit: int | None, **options: Any
) -> np.ndarray:
    if isinstance(net, nn.Module):
        net.eval()
    batches = _batches(images, images.test_images[:limit])
    return np.concatenate([net(x, **options).argmax(1).numpy() for x in batches])


def _batches(images: data.Dataset, which: np.ndarray, size: int = 256) -> list[Tensor]:
    table = torch.from_numpy(data.normalization_table(images.mean, images.std))
    parts = [which[start : start + size] for start in range(0, len(which), size)]
    return [train.normalize(torch.from_numpy(part), table) for part in parts]


@torch.no_grad()
def estimate_norms(net: nn.Module, passes: Sequence[Callable[[Tensor], Any]], batches: list[Tensor]) -> None:
    """Batch-norm statistics from the passes that a row runs; a table that no pass reaches keeps its own.

    `passes` has one entry for every batch, or one for all.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a plain average over the batches
    net.train()
    for i, x in enumerate(batches):
        passes[i % len(passes)](x)
    for norm, buffers in zip(norms, before, strict=True):
        norm.momentum = 0.1
        if not norm.num_batches_tracked:
            norm.load_state_dict(buffers, strict=False)
    net.eval()


# The rows


def float_row(run: Run) -> list[results.Record]:
    row = run.simulated(run.float_net, "float", None)
    return [row | {"bitops": None}]


def float_further(run: Run) -> list[results.Record]:
    """The control for what the further training does alone."""
    net = run.float_net
    run.fit(net, train.CrossEntropy())
    estimate_norms(net, [net], _batches(run.images, run.images.train_images[:CALIBRATION]))
    return [run.simulated(net, "float, trained further", None)]


def single(run: Run, width: int) -> list[results.Record]:
    net = run.nested((width,), controller=False)
    run.fit(net, Objective())
    train.recalibrate(net, run.images, CALIBRATION)
    return [run.integer(run.lower(net), width, str(width))]


def baseline(run: Run, method: str, widths: Sequence[int]) -> list[results.Record]:
    net = BaselineNet(run.float_net, method, widths)
    net.calibrate(_batches(run.images, run.images.train_images[:512], 512)[0])
    run.fit(net, BaselineLoss(method))
    batches = _batches(run.images, run.images.train_images[:CALIBRATION])
    for width in widths:
        estimate_norms(net, [functools.partial(net, width=width)], batches)
    return [run.simulated(net, str(width), width) for width in widths]


def cut(run: Run) -> list[results.Record]:
    net = run.nested()
    program = run.lower(net, "cut")
    rows = [run.integer(program, width, f"cut {width}") for width in WIDTHS]
    train.recalibrate(net, run.images, CALIBRATION)
    program = run.lower(net, "recalibrated")
    return rows + [run.integer(program, width, f"cut {width}, recalibrated") for width in WIDTHS]


def switchable(run: Run, **options: Any) -> list[results.Record]:
    """Consistency alone, every width; with the statistics of training, and re-estimated."""
    net = run.nested(**options)
    run.fit(net, static_objective())
    program = run.lower(net, "statistics of training")
    rows = [run.integer(program, width, f"{width}, statistics of training") for width in WIDTHS]
    train.recalibrate(net, run.images, CALIBRATION)
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
    run.fit(net, Allocated(tuple(widths)))
    batches = _batches(run.images, run.images.train_images[:CALIBRATION])
    estimate_norms(net, [lambda x: net(x, widths)], batches)
    program = run.lower(net)
    run.training["allocation"] = dict(zip(program.layers, widths, strict=True))
    return [run.integer(program, widths, label, budget=budget), before]


def best_allocation(run: Run, program: Program, budget: float) -> list[int]:
    """Of the allocations from each reference and the uniform ones, the one with the least loss."""
    images = run.images.train_images[-SENSITIVITY:]
    labels = run.images.train_labels[-SENSITIVITY:]
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


def dynamic(run: Run, bits: int, is_blind: bool = False) -> list[results.Record]:
    """The controller at the BitOPs of a uniform width, from the same network as `mixed` starts from.

    A blind one is trained in the same way and sees no image: it learns one static choice of widths.
    """
    net = run.static()
    if is_blind:
        net.controller.pool = Blind()
    budget = allocate.uniform_bitops(lower(net), bits)
    run.fit(net, Objective(beta=BETA, target_bitops=budget, sampled_widths=SAMPLED))
    train.recalibrate(net, run.images, CALIBRATION)
    batches = _batches(run.images, run.images.train_images[:CALIBRATION])
    run.training["bias for the budget"] = meet_budget(net, batches, budget)
    picks = [_picks(net, x)[1] for x in batches]
    estimate_norms(net, [functools.partial(net, widths=pick) for pick in picks], batches)
    program, usual = run.lower(net), torch.cat(picks).sum(0).argmax(1).tolist()
    if is_blind:
        return [run.integer(program, [program.choices[k][0] for k in usual], "blind", budget=budget)]
    return opponents(run, program, usual, budget)


def looking_twice(run: Run) -> list[results.Record]:
    """DQT static, trained as long as its opponents at a budget, and cascades on that one stored program.

    Thresholds come from augmented training images. At the budget of 3 bits 2 -> 4 is the comparison that was
    fixed beforehand; the curves and three steps stand beside it.
    """
    net = run.static()
    run.fit(net, static_objective())
    train.recalibrate(net, run.images, CALIBRATION)
    program = run.lower(net)
    rows = [run.integer(program, width, str(width)) for width in WIDTHS]
    torch.manual_seed(run.settings.seed)
    seen = train.augment(torch.from_numpy(run.images.train_images[-LOOKING:]), run.flip).numpy()

    def looked(label: str, steps: tuple[int, ...], shares: Sequence[float]) -> results.Record:
        found = thresholds_for(program, seen, steps, shares)
        row = results.evaluate_cascade(program, run.images, steps, found, run.settings.limit, label=label)
        return row | {"kind": "integer", "program": program.digest, "shares": list(shares)}

    spent = {width: float(cost.bitops(program, width)[0]) for width in WIDTHS}
    for steps, bits in (((2, 4), 3), ((3, 6), 4)):
        share = RESERVE * (spent[bits] - spent[steps[0]]) / spent[steps[1]]
        row = looked(f"cascade at {bits} bits", steps, [share]) | {"budget": spent[bits]}
        rows += [row, dealt(run, program, row)]
    half = RESERVE * (spent[3] - spent[2]) / 2
    rows.append(looked("cascade of three steps at 3 bits", (2, 3, 8), [half / spent[3], half / spent[8]]))
    for steps in PAIRS:
        rows += [looked(f"{steps[0]} -> {steps[1]}, {share:.0%}", steps, [share]) for share in SHARES]
    return rows


def dealt(run: Run, program: Program, row: results.Record) -> results.Record:
    """A cascade's control: as many images take the second pass, drawn without looking."""
    images = run.images.test_images[: run.settings.limit]
    taken = np.repeat([0, 1], row["passes"])
    np.random.default_rng(run.settings.seed).shuffle(taken)
    widths = np.array(row["steps"])[taken][:, None].repeat(len(program.layers), 1)
    label = f"{row['widths']}, dealt to other images"
    assert len(widths) == len(images), "every image is dealt a number of passes"
    return run.integer(program, widths, label) | {"bitops": row["bitops"], "passes": row["passes"]}


def joint(run: Run, alpha: float) -> list[results.Record]:
    """Controller and codes trained together from the float network, with or without the consistency term."""
    net = run.nested()
    budget = allocate.uniform_bitops(run.sizes, 4)
    run.fit(net, Objective(alpha=alpha, beta=BETA, target_bitops=budget, sampled_widths=SAMPLED))
    train.recalibrate(net, run.images, CALIBRATION)
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


@dataclass(frozen=True)
class Row:
    """How a row is made, and what it is."""

    make: Callable[..., list[results.Record]]
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    ablation: bool = False


def _rows() -> dict[str, Row]:
    nested = "nested codes, one network for all widths, consistency alone"
    rows = {
        "float": Row(float_row, "float32"),
        "float-further": Row(float_further, "float32, trained further as the other rows are"),
        "cut": Row(cut, "nested codes, not trained further"),
        "dqt-static": Row(switchable, nested),
        "cascade": Row(looking_twice, f"{nested}, trained further; cascades by margin on it"),
    }
    for bits in (4, 3, 5):
        static = f"best static widths at the BitOPs of uniform {bits} bits"
        rows[f"mixed-{bits}"] = Row(mixed, static, {"bits": bits})
        looks = f"controller at the BitOPs of uniform {bits} bits"
        rows[f"dynamic-{bits}"] = Row(dynamic, looks, {"bits": bits})
        sees = f"the same training as dynamic-{bits}, the controller sees nothing: learned static widths"
        rows[f"blind-{bits}"] = Row(dynamic, sees, {"bits": bits, "is_blind": True}, ablation=True)
    for bits in (4, 3):
        further = f"uniform {bits} bits, trained further as the best static widths are"
        rows[f"uniform-{bits}"] = Row(mixed, further, {"bits": bits, "uniform": True})
    for bits in (4, 2, 3, 8, 6):
        rows[f"lsq-{bits}"] = Row(single, f"learned step, trained for {bits} bits alone", {"width": bits})
    for bits in (4, 2, 3):
        for method, name in (("pact", "PACT"), ("dorefa", "DoReFa-Net")):
            arguments = {"method": method, "widths": (bits,)}
            rows[f"{method}-{bits}"] = Row(baseline, f"{name}, {bits} bits", arguments)
    arguments = {"method": "any-precision", "widths": WIDTHS}
    rows["any-precision"] = Row(baseline, "Any-Precision, one network for all widths", arguments)
    floor = {"rounding": "floor"}
    rows["floor"] = Row(switchable, f"{nested}, rounding floor", floor, ablation=True)
    shared = {"batch_norm": "shared"}
    rows["shared-norm"] = Row(switchable, f"{nested}, one batch norm", shared, ablation=True)
    for alpha, name in ((1.0, "joint"), (0.0, "no-consistency")):
        what = f"controller trained from the float network on, alpha = {alpha:g}"
        rows[name] = Row(joint, what, {"alpha": alpha}, ablation=True)
    return rows


ROWS = _rows()


def make(row: str, settings: Settings) -> Path:
    """Train, evaluate and record one row; its record's path."""
    run = Run(settings, row)
    return run.write(ROWS[row].make(run, **ROWS[row].arguments))


def make_all(settings: Settings, rows: Sequence[str]) -> int:
    """Every row whose record is missing, in order; how many failed. Of the others it says so."""
    failures = 0
    for row in rows:
        if (path := settings.record(row)).exists():
            print(f"recorded before: {path}; to run it again, move that file away", flush=True)
            continue
        try:
            print(f"{time.strftime('%H:%M:%S')} {settings.name(row)}", flush=True)
            path = make(row, settings)
            print(f"{time.strftime('%H:%M:%S')} {path.name}", flush=True)
        except Exception:  # one row's failure is printed, counted, and leaves the others to run
            traceback.print_exc()
            failures += 1
    return failures


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", choices=list(ROWS), nargs="+")
    what.add_argument("--all", action="store_true", help="every row without a record")
    what.add_argument("--list", action="store_true", help="the rows and their states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument(
        "--epochs", type=float, default=Settings.epochs, help="of every stage after the float network"
    )
    parser.add_argument("--float-epochs", type=float, default=Settings.float_epochs)
    parser.add_argument(
        "--float-lr", type=float, default=Settings.float_lr, help="peak rate of the float network"
    )
    parser.add_argument(
        "--eager",
        action="store_false",
        dest="compiled",
        help="without torch.compile: slower, no C++ compiler",
    )
    parser.add_argument("--float", type=Path, dest="float_path", help="a float network to start from")
    parser.add_argument("--dataset", default="cifar10", choices=["cifar10", "embedded"])
    parser.add_argument("--limit", type=int, help="first test images only")
    parser.add_argument("--out", type=Path, default=Settings.out, help="for checkpoints and programs")
    parser.add_argument("--records", type=Path, default=RECORDS)
    return parser.parse_args()


def main() -> int:
    options = vars(_arguments())
    rows, everything, listed = (options.pop(name) for name in ("row", "all", "list"))
    settings = Settings(**options)
    if listed:
        for name, row in ROWS.items():
            state = "recorded" if settings.record(name).exists() else "not yet run"
            print(f"{name:16} {state:12} {'ablation: ' if row.ablation else ''}{row.method}")
        return 0
    return make_all(settings, list(ROWS) if everything else rows)


if __name__ == "__main__":
    raise SystemExit(main())
