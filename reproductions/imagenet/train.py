"""Train nested codes on ImageNet from a float network, on one process or many; lower and evaluate by integers.

    python -m reproductions.imagenet.train --imagenet-root DIR
    torchrun --nproc-per-node 8 -m reproductions.imagenet.train --imagenet-root DIR --packed SHARDS

`accelerate launch -m` takes the same arguments. A run that was interrupted goes on from its last checkpoint, with the
same number of processes or another. The recipe is that of LSQ (arXiv 1902.08153) for 2 to 4 bits: 90 epochs from a
float network, momentum 0.9, learning rate 0.01 falling as a cosine, weight decay 1e-4, half of the loss from the
float network; and for batches above 256 images that of arXiv 1706.02677: the learning rate grows with the batch, and
is reached over the first 5 epochs. Not yet run on a GPU.
"""

import argparse
import copy
import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqt_core import convert, cost, lower, results, train
from dqt_core.data import imagenet, shards, streaming
from dqt_core.training import calibration, distributed
from dqt_core.training.inputs import normalized
from dqt_core.training.objective import Objective
from reproductions.imagenet.evaluate import add_common, described, integer_row, load_float

MEAN, STD = imagenet.MEAN, imagenet.STD
WARMUP_EPOCHS, EPOCHS = 5, 90  # arXiv 1706.02677


def recipe_of(options: argparse.Namespace) -> train.Recipe:
    """The learning rate grows with the batch; a shorter run warms up for the same part of it."""
    lr = options.lr if options.lr is not None else 0.01 * options.batch_size / 256
    return train.Recipe(
        epochs=options.epochs,
        lr=lr,
        batch_size=options.batch_size,
        microbatch=options.microbatch,
        seed=options.seed,
        precision=options.precision,
        warmup=WARMUP_EPOCHS / EPOCHS,
        weight_decay=1e-4,
    )


def _stored(options: argparse.Namespace) -> imagenet.ImageFiles | shards.Packed:
    if options.packed:
        return shards.open_packed(options.packed)
    return imagenet.open_split(options.imagenet_root, "train", is_sample=options.sample)


def _start(options: argparse.Namespace, stored: streaming.Stored) -> tuple[Any, torch.nn.Module]:
    """The float network as nested codes, and itself as the teacher."""
    float_net = load_float(options.network, options.weights, options.pads_after)
    drawn = streaming.central(stored, options.calibration, options.seed, go_on=options.unreadable_limit > 0)
    images = list(drawn)
    if options.restore_statistics:
        inputs = (normalized(part, MEAN, STD) for part in images)
        calibration.restore_statistics(float_net, inputs)
    torch.manual_seed(options.seed)
    has_controller = options.target_width is not None
    net = convert(float_net, images[0], MEAN, STD, tuple(options.widths), controller=has_controller)
    return net, copy.deepcopy(float_net).requires_grad_(False)


def _objective(options: argparse.Namespace, net: Any, teacher: torch.nn.Module) -> Objective:
    taught = {"teacher": teacher, "distillation": options.distillation} if options.distillation else {}
    if options.target_width is None:
        return Objective(**taught)
    target = float(cost.bitops(lower(net.eval(), "cost"), options.target_width)[0])
    return Objective(controller_from=0.6, beta=1.0, target_bitops=target, **taught)


def run(options: argparse.Namespace) -> Path | None:
    """Train, and in the first process lower, evaluate and write the record; returns its path."""
    out, stored = Path(options.out), _stored(options)
    files = imagenet.open_split(options.imagenet_root, "val", is_sample=options.sample)
    imagenet.require_same_classes(stored.classes, stored.place, files.classes, files.place)
    most = len(stored.labels)
    recalibration = min(5120, most) if options.recalibration is None else options.recalibration
    if recalibration > most:
        raise imagenet.DataError(
            f"--recalibration {recalibration}: {stored.place} has {most} images; ask for fewer"
        )
    rank = int(os.environ.get("RANK", 0))
    stream = streaming.ImageStream(
        stored,
        options.size,
        (options.least_area, 1.0),
        seed=options.seed,
        workers=options.workers,
        unreadable_limit=options.unreadable_limit,
        log=out / f"unreadable-{rank}.txt",
    )
    net, teacher = _start(options, stored)
    recipe, loss = recipe_of(options), _objective(options, net, teacher)
    history = train.fit(net, stream, recipe, loss, out, options.checkpoint_every)
    processes = distributed.processes()
    if processes > 1:
        torch.distributed.destroy_process_group()
    if rank:
        return None
    go_on = options.unreadable_limit > 0
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    train.recalibrate(net.to(device), streaming.central(stored, recalibration, options.seed + 1, 64, go_on))
    program = lower(net.cpu(), f"{options.network}_trained")
    program.save(out)
    files = files.sample(len(files)).part(slice(options.limit))
    record = {
        "name": f"{options.network}_trained",
        "title": options.title,
        "network": {
            "name": options.network,
            "weights": options.origin,
            "pads_after": options.pads_after,
        },
        "dataset": described(files, options.limit),
        "training": {
            "images": len(stored.labels),
            "labels": hashlib.sha256(stored.labels.tobytes()).hexdigest(),
            "recipe": vars(recipe),
            "steps": len(history),
            "processes": processes,
            "size": options.size,
            "least_area": options.least_area,
            "widths": options.widths,
            "target_width": options.target_width,
            "distillation": options.distillation,
            "unreadable": len(stream.unreadable),
            "loss": {"first tenth": _mean(history, 0), "last tenth": _mean(history, 9)},
        },
        "programs": {"trained": program.digest},
        "rows": [],
        "peak_bytes": 0,
        "provenance": results.provenance(),
    }
    settings = [(str(width), width) for width in sorted(options.widths, reverse=True)]
    if options.target_width is not None:
        settings.append(("controller", "controller"))
    for label, widths in settings:
        row = integer_row(program, widths, label, files, options)
        print(f"{label}: {row['correct']} of {row['images']}", flush=True)
        record["rows"].append(row)
        record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        path = results.write(record, out / f"{options.network}_trained.json")
    return path


def _mean(history: list[dict[str, float]], tenth: int) -> dict[str, float]:
    """Of the logged figures, over one tenth of the steps."""
    size = max(1, len(history) // 10)
    part = history[-size:] if tenth else history[:size]
    names = [name for name in part[-1] if name != "step"]
    return {name: round(float(np.mean([e[name] for e in part if name in e])), 4) for name in names}


def _workers() -> int:
    return max(1, min(16, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--packed", help="training images in shards, made by reproductions.imagenet.pack")
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 3, 4, 6, 8])
    parser.add_argument(
        "--target-width", type=int, help="train a controller too, for the BitOPs of this width"
    )
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--batch-size", type=int, default=256, help="over all processes")
    parser.add_argument(
        "--microbatch", type=int, default=32, help="images of one forward; batch norm's batch"
    )
    parser.add_argument("--lr", type=float, help="0.01 for each 256 images of a batch if not given")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "no"])
    parser.add_argument("--distillation", type=float, default=0.5, help="0: labels alone")
    parser.add_argument("--size", type=int, default=224, help="side of the training crops")
    parser.add_argument("--least-area", type=float, default=0.08, help="of a picture that a crop takes")
    parser.add_argument(
        "--workers",
        type=int,
        default=_workers(),
        help="that decode, for each process; its share of the cores",
    )
    parser.add_argument("--unreadable-limit", type=int, default=100, help="0: the first one stops the run")
    parser.add_argument("--calibration", type=int, default=64, help="training images for steps")
    parser.add_argument(
        "--recalibration", type=int, help="training images for the batch-norm tables at the end; 5120, or all"
    )
    parser.add_argument(
        "--restore-statistics", action="store_true", help="the weights hold batch norm's statistics folded in"
    )
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps")
    parser.add_argument("--out", default="runs/resnet50_imagenet_trained", help="seen by all processes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(run(options()))
