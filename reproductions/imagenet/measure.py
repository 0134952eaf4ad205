"""Measure, on this machine, what a training on ImageNet is made of: reading images, and a step.

    python -m reproductions.imagenet.measure --imagenet-root DIR --sample

Images a second from class folders and from shards, with one worker and two, on the given training images and on
full-size photographs; and the time of a step of nested codes against one of the float network. The plan
(`dqt_book.records.imagenet_plan`) is drawn from the record.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqt_core import convert, models, results, train
from dqt_core.data import imagenet, packing, streaming
from dqt_core.training.inputs import normalized
from dqt_core.training.objective import Objective

RECORD = Path(__file__).parents[1] / "results" / "imagenet_training.json"
WIDTH_SETS = ((4, 8), (2, 3, 4, 6, 8))


def reading(stored: streaming.Stored, name: str, kind: str, workers: int, repeats: int) -> dict[str, Any]:
    """Images a second of one way to store them, from the page cache, the workers' start included.

    Without workers also the CPU seconds of an image, which other work on the machine does not change.
    """
    count, rates, spent = len(stored.labels), [], []
    for repeat in range(repeats + 1):
        stream = streaming.ImageStream(stored, workers=workers)
        keys = [(repeat, torch.arange(start, min(start + 32, count))) for start in range(0, count, 32)]
        cpu, wall = time.process_time(), time.perf_counter()
        assert sum(len(labels) for _, labels in stream.batches(iter(keys))) == count
        rates.append(round(count / (time.perf_counter() - wall), 1))
        spent.append(round((time.process_time() - cpu) / count, 6))
    row = {"images": name, "stored": kind, "workers": workers, "count": count}
    row |= {"bytes_per_image": round(sum(len(stored.read(i)) for i in range(count)) / count)}
    row |= {"images_per_second": rates[1:]} | ({} if workers else {"cpu_seconds_per_image": spent[1:]})
    print(row, flush=True)
    return row


def photographs(folder: Path, copies: int) -> imagenet.ImageFiles:
    """The two JPEG files of scikit-learn, 640 x 427, so many times: as large as ImageNet's own."""
    from sklearn.datasets import load_sample_images

    place = folder / "train" / "n00000000"
    place.mkdir(parents=True)
    for i, path in enumerate(load_sample_images().filenames * copies):
        (place / f"{i:04}.jpg").write_bytes(Path(path).read_bytes())
    return imagenet.open_split(folder, "train", class_count=1)


def seconds(step: Any, repeats: int) -> list[float]:
    """CPU seconds of one call, after a first one."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return [round(value, 3) for value in found[1:]]


def steps(batch: int, repeats: int) -> dict[str, Any]:
    """A training step of ResNet-50 at 224 in bf16: the float network's, and those of nested codes."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    x, y = normalized(images, imagenet.MEAN, imagenet.STD), torch.randint(0, 1000, (batch,))

    def timed(net: torch.nn.Module, loss: Any) -> list[float]:
        net.to(memory_format=torch.channels_last).train()

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                value, _ = loss(net, x, y, 0.0)
            value.backward()

        return seconds(step, repeats)

    teacher = models.resnet50()
    found: dict[str, Any] = {"batch": batch, "float": timed(models.resnet50(), train.CrossEntropy())}
    for widths in WIDTH_SETS:
        net = convert(
            models.resnet50().eval(),
            images[:2],
            imagenet.MEAN,
            imagenet.STD,
            widths,
            controller=False,
        )
        name = " ".join(map(str, widths))
        found[name] = timed(net, Objective(teacher=teacher, distillation=0.5))
        found[f"{name} parameters"] = sum(parameter.numel() for parameter in net.parameters())
        print(name, found[name], "float", found["float"], flush=True)
    return found


def run(chosen: argparse.Namespace) -> Path:
    files = imagenet.open_split(chosen.imagenet_root, "train", is_sample=chosen.sample)
    files = files.sample(min(chosen.images, len(files)))
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        sets = {"given": files, "photographs": photographs(Path(folder) / "photographs", chosen.images // 8)}
        for name, tree in sets.items():
            packed = packing.pack(tree, Path(folder) / name / "packed", per_shard=200)
            for workers in (0, 1, 2):
                for kind, stored in (("folders", tree), ("shards", packed)):
                    rows.append(reading(stored, name, kind, workers, chosen.repeats))
    record = {
        "name": "imagenet_training",
        "dataset": {"name": "imagenet", "split": "train", "images": len(files)},
        "programs": {},
        "rows": rows,
        "steps": steps(chosen.batch, chosen.repeats),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "provenance": results.provenance(),
    }
    return results.write(record, chosen.out)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imagenet-root", required=True)
    parser.add_argument("--sample", action="store_true", help="classes may be missing")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8, help="images of a timed step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RECORD)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(run(options()))
