"""What the rows of the CIFAR-10 table share: settings, the float network, a run that trains, evaluates, records."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dqt_book.places import network
from dqt_core import allocate, convert, data, lower, models, results, train
from dqt_core.program import Program
from dqt_core.training import agreement
from dqt_core.training.inputs import normalized
from dqt_core.training.network import NestedNet
from dqt_core.training.objective import Objective
from reproductions.cifar10.side_by_side import SideBySide
from reproductions.cifar10.train import load_float, save_float

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "reproductions" / "results" / "resnet18_cifar"
WIDTHS = (2, 3, 4, 6, 8)
SAMPLED = 3  # widths in a step of the consistency term: the narrowest, the widest, one more
CONSISTENCY_ONLY = 2.0  # a controller that would join after the end never does


@dataclass(frozen=True)
class Settings:
    """What a row is trained with, apart from its method.

    `calibration`, `sensitivity` and `looking` count the training images behind batch-norm statistics and a
    controller's budget, behind the sensitivities of layers, and behind the thresholds of a cascade or the prices
    of a decision.
    """

    seed: int = 0
    channels: int = 16
    epochs: float = 4
    float_epochs: float = 60
    float_lr: float = 0.2
    lr: float = 0.02
    compiled: bool = True
    dataset: str = "cifar10"
    limit: int | None = None
    calibration: int = 5120
    sensitivity: int = 512
    looking: int = 5120
    float_path: Path | None = None
    out: Path = ROOT / "runs" / "resnet18_compare"
    records: Path = RECORDS

    def name(self, row: str) -> str:
        prefix = "" if self.dataset == "cifar10" else f"{self.dataset}_"
        return f"{prefix}{row}_c{self.channels}_e{self.epochs:g}_s{self.seed}"

    def record(self, row: str) -> Path:
        return self.records / f"{self.name(row)}.json"


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
        train.recalibrate(net, self.images, self.settings.calibration)
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
        right = classes_of(net, self.images, self.settings.limit, **options) == labels
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

    def write(self, rows: list[results.Record], method: str) -> Path:
        settings, images = self.settings, self.images
        record = {
            "name": settings.name(self.row),
            "row": self.row,
            "method": method,
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


def static_objective(**options: Any) -> Objective:
    """The consistency term alone."""
    return Objective(controller_from=CONSISTENCY_ONLY, sampled_widths=SAMPLED, **options)


def _shipped_float(settings: Settings) -> Path | None:
    """The committed float network, where it has the channels that are asked for."""
    if (settings.dataset, settings.channels) != ("embedded", 8):
        return None
    return network(results.read(RECORDS / f"{settings.dataset}.json"), "float")


@torch.no_grad()
def classes_of(
    net: Callable[..., Tensor], images: data.Dataset, limit: int | None, **options: Any
) -> np.ndarray:
    if isinstance(net, nn.Module):
        net.eval()
    batches = batches_of(images, images.test_images[:limit])
    return np.concatenate([net(x, **options).argmax(1).numpy() for x in batches])


def batches_of(images: data.Dataset, which: np.ndarray, size: int = 256) -> list[Tensor]:
    parts = [which[start : start + size] for start in range(0, len(which), size)]
    return [normalized(part, images.mean, images.std) for part in parts]


@torch.no_grad()
def estimate_norms(net: nn.Module, passes: Sequence[Callable[[Tensor], Any]], batches: list[Tensor]) -> None:
    """Batch-norm statistics from the passes that a row runs; a table that no pass reaches keeps its own.

    `passes` has one entry for every batch, or one for all.
    """
    with train.fresh_statistics(net):
        for i, x in enumerate(batches):
            passes[i % len(passes)](x)
