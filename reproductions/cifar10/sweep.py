"""What of a recipe matters: one thing changed at a time, three seeds, judged on held-out training images.

    python -m reproductions.cifar10.sweep --out runs/sweep --record reproductions/results/recipe_sweep.json

Trains a float ResNet-18 of 16 channels on the first 45,000 training images of CIFAR-10, and counts on the other
5,000; no test image is seen. Every finished run is in the record at once, and is not run again.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dqt_core import data, models, results, train
from reproductions.cifar10.side_by_side import SideBySide

RECORD = Path(__file__).parents[1] / "results" / "recipe_sweep.json"
HELD_OUT = 5000
CHANNELS, EPOCHS, SEEDS = 16, 4.0, (0, 1, 2)
BASE = train.Recipe(epochs=EPOCHS, lr=0.2, clip=1.0, compiled=True)


def whitened(net: nn.Module, images: data.Dataset) -> None:
    """The stem's filters as the principal directions of 3x3 patches, each scaled to unit variance, and their
    negatives: what follows a ReLU keeps both signs."""
    table = torch.from_numpy(data.normalization_table(images.mean, images.std))
    x = train.normalize(torch.from_numpy(images.train_images[:5000]), table)
    patches = nn.functional.unfold(x, 3).transpose(1, 2).reshape(-1, 27)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    pairs = min(len(net.conv1.weight) // 2, 27)
    filters = (vectors / (values + 0.01).sqrt()).T.flip(0)[:pairs].reshape(-1, 3, 3, 3)
    net.conv1.weight.data[: 2 * pairs] = torch.cat([filters, -filters])


@dataclass(frozen=True)
class Variant:
    """One thing that differs from the base."""

    recipe: dict[str, Any] = field(default_factory=dict)
    smoothing: float = 0.0
    prepare: Callable[[nn.Module, data.Dataset], None] | None = None


VARIANTS = {
    "as it was": Variant(),
    "no clipping": Variant({"clip": None}),
    "labels smoothed by 0.1": Variant(smoothing=0.1),
    "small crops in the first third": Variant({"small_crops": 1 / 3}),
    "batch-norm biases 16 times as fast": Variant({"bias_rate": 16.0}),
    "whitened stem": Variant(prepare=whitened),
    "batch 256, peak rate 0.4": Variant({"batch_size": 256, "lr": 0.4}),
    "peak rate 0.1": Variant({"lr": 0.1}),
    "average of the weights, decay 0.995": Variant({"average": 0.995}),
}


def held_out(images: data.Dataset) -> data.Dataset:
    """The training images alone, the last of them as test images."""
    kept = len(images.train_labels) - HELD_OUT
    return dataclasses.replace(
        images,
        train_images=images.train_images[:kept],
        train_labels=images.train_labels[:kept],
        test_images=images.train_images[kept:],
        test_labels=images.train_labels[kept:],
    )


def run(name: str, seed: int, images: data.Dataset, out: Path) -> results.Record:
    """Train one variant with one seed and count."""
    variant = VARIANTS[name]
    torch.manual_seed(seed)
    net = models.resnet18(len(images.classes), CHANNELS, small_images=True)
    if variant.prepare:
        variant.prepare(net, images)
    recipe = dataclasses.replace(BASE, seed=seed, **variant.recipe)
    folder = out / f"{name.replace(' ', '-')}_s{seed}"
    began = time.process_time()
    with SideBySide():
        history = train.fit(net, images, recipe, train.CrossEntropy(variant.smoothing), folder)
    seconds = round(time.process_time() - began)
    accuracy = train.evaluate(net, images)
    return {
        "variant": name,
        "seed": seed,
        "correct": round(accuracy * HELD_OUT),
        "images": HELD_OUT,
        "loss": round(float(np.mean([entry["loss"] for entry in history[-100:]])), 4),
        "CPU seconds of the last call": seconds,
        "recipe": dataclasses.asdict(recipe),
        "smoothing": variant.smoothing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="for checkpoints")
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    images = held_out(data.load("cifar10"))
    rows = results.read(options.record)["rows"] if options.record.exists() else []
    finished = {(row["variant"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for name in VARIANTS:
            if (name, seed) in finished:
                continue
            print(f"{name}, seed {seed}", flush=True)
            rows.append(run(name, seed, images, options.out))
            record = {
                "name": "recipe_sweep",
                "dataset": {"name": images.name, "split": "last 5,000 training images"},
                "channels": CHANNELS,
                "programs": {},
                "rows": rows,
                "provenance": results.provenance(),
            }
            print(
                f"{rows[-1]['correct'] / HELD_OUT:.2%}: {results.write(record, options.record)}", flush=True
            )


if __name__ == "__main__":
    main()
