"""From a pretrained network to an integer program without training, and its accuracy on ImageNet.

The notebook calls `run`; on a machine without Jupyter run this file. A run that was interrupted goes on where it
stopped: what was evaluated lies in the output folder, a hundred images a file.
"""

import argparse
import copy
import functools
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqt_core import allocate, cost, lower, models, results, statistics
from dqt_core.data import imagenet, normalization_table
from dqt_core.data.holding import held
from dqt_core.evaluation import consistency
from dqt_core.program.storage import write_whole
from dqt_core.training import calibration
from dqt_core.training.conversion.quantization import WIDTHS, calibrate, float_logits

CHUNK = 100  # images between two files of what was evaluated
UNIFORM = (8, 6, 4, 5)  # in the order of the rows
BUDGETS = (5,)  # bits whose BitOPs a mixed allocation may spend
NETWORKS = {"resnet50": models.resnet50, "mobilenet_v2": models.mobilenet_v2}


def load_float(network: str, weights: str | Path, pads_after: bool = False) -> torch.nn.Module:
    """A float network with torchvision's names from .npz, .safetensors, .pth, or "torchvision" to download."""
    net, path = NETWORKS[network](), Path(weights)
    if str(weights) == "torchvision":
        from dqt_core.data._torchvision import import_torchvision

        state = getattr(import_torchvision().models, network)(weights="DEFAULT").state_dict()
    elif path.suffix == ".npz":
        state = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
    net.load_state_dict(state)
    if pads_after:
        models.pad_after(net)
    return net.eval()


def evaluate(
    classify: Callable[[np.ndarray], tuple[np.ndarray, dict[str, np.ndarray]]],
    files: imagenet.ImageFiles,
    folder: Path,
    go_on: bool,
) -> dict[str, Any]:
    """Run over all files in order; every `CHUNK` images are written to `folder`, and read from it if there.

    A chunk's name holds a digest of its images' names, labels and sizes, so that others are not taken for it;
    what tells networks and widths apart has to be in the folder's name.

    `classify` takes uint8 images and returns logits, and figures of each image, whose means go into the row.
    Files that cannot be decoded are named in the row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for start in range(0, len(files), CHUNK):
        part = files.part(slice(start, start + CHUNK))
        path = folder / f"{start:06}-{_digest_of_files(part)[:8]}.json"
        chunks.append(_kept(path, functools.partial(_chunk, classify, part, go_on)))
        if (without := chunks[-1]["unreadable"]) and not go_on:
            raise imagenet.DataError(
                f"{path} is without {', '.join(without)}, which could not be decoded; mend the files and remove "
                "it, or give --skip-unreadable"
            )
    hits = np.concatenate([np.asarray(chunk["hits"], bool) for chunk in chunks])
    digests = [chunk["logits"] for chunk in chunks]
    names = chunks[0].get("figures", {})
    means = {name: sum(chunk["figures"][name] for chunk in chunks) / len(hits) for name in names}
    return means | {
        "correct": int(hits.sum()),
        "images": len(hits),
        "hits": results.packed(hits),
        "logits": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "first": {str(CHUNK): {"correct": sum(chunks[0]["hits"]), "logits": digests[0]}},
        "unreadable": [name for chunk in chunks for name in chunk["unreadable"]],
        "seconds": round(sum(chunk["seconds"] for chunk in chunks), 1),
    }


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns; from its file where that is whole."""
    if path.is_file():
        try:
            found = consistency.parse(path.read_text())
            if found[consistency.DIGEST] == consistency.digest(found):
                return found
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        print(f"{path} is damaged: it is worked out again", file=sys.stderr, flush=True)
    found = consistency.signed(make())
    write_whole(path, json.dumps(found).encode())
    return found


def _chunk(classify: Callable, files: imagenet.ImageFiles, go_on: bool) -> dict[str, Any]:
    start, hits, sha = time.perf_counter(), [], hashlib.sha256()
    sums: dict[str, float] = {}
    for images, labels in files.batches(20, go_on):
        logits, figures = classify(images)
        sums |= {name: sums.get(name, 0.0) + float(values.sum()) for name, values in figures.items()}
        hits += (logits.argmax(1) == labels).tolist()
        sha.update(np.ascontiguousarray(logits).tobytes())
    unreadable = [path.name for path in files.paths if path in files.unreadable]
    seconds = time.perf_counter() - start
    found = {"hits": hits, "logits": sha.hexdigest(), "unreadable": unreadable, "seconds": seconds}
    return found | {"figures": sums}


def integer_row(
    program: Any, widths: Any, label: str, files: imagenet.ImageFiles, options: argparse.Namespace
) -> dict[str, Any]:
    """A program at given widths, or the controller's, over all files; goes on where it stopped."""

    def classify(images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        result = program.run(images, widths, options.backend, batch_size=20)
        figures = {
            "bitops": cost.bitops(program, result.widths),
            "transitions": cost.transitions(program, result.widths),
            "mean_width": result.widths.reshape(len(images), -1).mean(1),
        }
        return result.logits, figures

    asked = hashlib.sha256(json.dumps(widths).encode()).hexdigest()
    folder = Path(options.out) / f"{label.replace(' ', '-')}-{program.digest[:12]}-{asked[:8]}"
    row = evaluate(classify, files, folder, options.skip_unreadable)
    return {"widths": label, "kind": "integer", **row, "program": program.digest, "run": widths}


def _digest_of_names(files: imagenet.ImageFiles) -> str:
    return hashlib.sha256("\n".join(path.name for path in files.paths).encode()).hexdigest()


def _digest_of_files(files: imagenet.ImageFiles) -> str:
    """What tells these images from others, short of reading them: a resized copy has the same names."""

    def size(path: Path) -> int | None:
        return path.stat().st_size if path.is_file() else None

    told = [
        (path.name, int(label), size(path)) for path, label in zip(files.paths, files.labels, strict=True)
    ]
    return hashlib.sha256(json.dumps([files.resize, told]).encode()).hexdigest()


def described(files: imagenet.ImageFiles, limit: int | None) -> dict[str, Any]:
    """The validation images of a record."""
    digest = _digest_of_names(files)
    classes = len(set(files.labels.tolist()))
    counts = {"images": len(files), "classes": classes, "limit": limit}
    return {"name": "imagenet", "split": "val", "files": digest, **counts}


class Run:
    """One network on one tree of images: its rows, and the record they are written to as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        files = imagenet.open_split(options.imagenet_root, "val", is_sample=options.sample)
        self.files = files.sample(len(files)).part(slice(options.limit))
        train = imagenet.open_split(options.imagenet_root, "train", is_sample=options.sample)
        count = options.calibration
        drawn = train.sample(count + options.held_out, options.seed)
        batches = [images for images, _ in drawn.batches(16, options.skip_unreadable)]
        self.calibration, self.held_out = batches[: count // 16], batches[count // 16 :]
        self.float_net = load_float(options.network, options.weights, options.pads_after)
        self.rows: list[dict[str, Any]] = []
        self.programs: dict[str, str] = {}
        self.choice: list[dict[str, Any]] = []
        self.chosen: dict[str, Any] = {}
        self.budgets: dict[str, float] = {}

    def float_row(self) -> None:
        table = torch.from_numpy(normalization_table(imagenet.MEAN, imagenet.STD))

        def classify(images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            x = table[torch.arange(3), torch.from_numpy(images).long()].permute(0, 3, 1, 2)
            with torch.no_grad():
                return self.float_net(x.contiguous(memory_format=torch.channels_last)).numpy(), {}

        state = hashlib.sha256()
        for value in self.float_net.state_dict().values():
            state.update(value.numpy().tobytes())
        name = f"{self.options.network}{'-pads-after' if self.options.pads_after else ''}"
        folder = self.out / f"float-{name}-{state.hexdigest()[:12]}"
        row = evaluate(classify, self.files, folder, self.options.skip_unreadable)
        self.add({"widths": "float", "kind": "float", **row, "logits": None, "first": {}})

    def convert(self, widths: tuple[int, ...]) -> Any:
        """Nested codes; the rule of steps and each width's tables are those with the least divergence."""
        mean, std = imagenet.MEAN, imagenet.STD
        found = calibrate(
            self.float_net, self.calibration, self.held_out, mean, std, widths, self.options.rules
        )
        self.wanted = float_logits(self.float_net, found.net, self.held_out)
        self.choice, self.chosen = found.tried, {"rule": found.rule, "tables": found.tables}
        for tried in found.tried:
            far = {width: round(error, 4) for width, error in tried["divergence"].items()}
            print(tried["weights"], tried["rule"], tried["tables"], far, flush=True)
        return found.net

    def integer_row(self, label: str, program: Any, widths: Any, kind: str) -> None:
        if program.digest not in self.programs.values():
            self.programs[kind] = program.digest
        self.add(integer_row(program, widths, label, self.files, self.options))

    def mixed_row(self, net: Any, program: Any, bits: int) -> None:
        """The best allocation at the BitOPs of a width, its tables set for it."""
        images = np.concatenate(self.held_out)[: self.options.sensitivity]
        shown = hashlib.sha256(images.tobytes()).hexdigest()

        def work_out() -> dict[str, Any]:
            parts = [
                allocate.divergences(program, images[i : i + 8], backend=self.options.backend)
                for i in range(0, len(images), 8)
            ]
            return {"divergences": np.mean(parts, axis=0).tolist()}

        path = self.out / f"divergences-{program.digest[:12]}-{shown[:8]}.json"
        divergences = np.asarray(_kept(path, work_out)["divergences"])
        self.budgets[str(bits)] = allocate.uniform_bitops(program, bits)
        budget = self.budgets[str(bits)] - allocate.fixed_bitops(program)
        picks = allocate.allocate(allocate.layer_bitops(program), divergences, budget)
        setting = [program.choices[k] for k in picks]
        corrected = copy.deepcopy(net)
        calibration.correct_norms(corrected, self.calibration, [setting])
        nets = {"uniform tables": net, "own tables": corrected}
        far = {n: calibration.divergence(nets[n], self.held_out, self.wanted, setting) for n in nets}
        print(f"mixed {bits}", far, flush=True)
        self.chosen[f"mixed {bits}"] = far
        own = lower(nets[min(far, key=far.get)], f"{self.options.network}_mixed{bits}")
        widths = [weight_bits for weight_bits, _ in setting]
        self.integer_row(f"mixed at {bits}-bit BitOPs", own, widths, f"mixed {bits}")

    def add(self, row: dict[str, Any]) -> None:
        low, high = statistics.interval(row["correct"], row["images"])
        print(f"{row['widths']}: {row['correct']} of {row['images']}, {low:.1%} to {high:.1%}", flush=True)
        self.rows.append(row)
        self.write()

    def write(self) -> Path:
        options = self.options
        network = {"name": options.network, "weights": options.origin, "pads_after": options.pads_after}
        counts = {"steps and tables": sum(map(len, self.calibration)), "choice": sum(map(len, self.held_out))}
        counts["mixed widths"] = min(options.sensitivity, counts["choice"])
        record = {
            "name": f"{options.network}_imagenet",
            "title": options.title,
            "network": network,
            "dataset": described(self.files, options.limit),
            "calibration": {"images": counts, "tried": self.choice, "chosen": self.chosen},
            "programs": self.programs,
            "budgets": self.budgets,
            "rows": self.rows,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "provenance": results.provenance(),
        }
        return results.write(record, self.out / f"{options.network}.json")


def run(options: argparse.Namespace) -> Path:
    """All rows of one network; returns the path of the record."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with held(out / "lock", f"evaluating into {out}"):
        return _rows(Run(options), options)


def _rows(one: Run, options: argparse.Namespace) -> Path:
    one.float_row()
    net = one.convert(tuple(options.widths or WIDTHS))
    program = lower(net, options.network)
    uniform = [width for width in UNIFORM if width in (options.widths or WIDTHS)]
    for width in [width for width in uniform if width != UNIFORM[-1]]:
        one.integer_row(str(width), program, width, "uniform")
    for bits in BUDGETS:
        one.mixed_row(net, program, bits)
    for width in [width for width in uniform if width == UNIFORM[-1]]:
        one.integer_row(str(width), program, width, "uniform")
    return one.write()


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that training has too."""
    parser.add_argument("--imagenet-root", required=True, help="holds val/<WordNet id>/ and train/...")
    parser.add_argument("--network", default="resnet50", choices=list(NETWORKS))
    parser.add_argument("--weights", default="torchvision", help=".npz, .safetensors, .pth; or downloaded")
    parser.add_argument("--origin", default="torchvision", help="whose weights, for the record")
    parser.add_argument("--title", default="ImageNet validation set")
    parser.add_argument(
        "--pads-after", action="store_true", help="strided 3x3 convolutions pad as Keras does"
    )
    parser.add_argument("--sample", action="store_true", help="classes may be missing")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave damaged files out and name them"
    )
    parser.add_argument("--limit", type=int, help="validation images; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument("--calibration", type=int, default=64, help="training images for steps and tables")
    parser.add_argument("--held-out", type=int, default=32, help="training images that choose among rules")
    parser.add_argument("--sensitivity", type=int, default=16, help="of those, for the mixed allocation")
    parser.add_argument("--widths", type=int, nargs="+", help=f"{WIDTHS} if not given")
    parser.add_argument("--rules", nargs="+", default=list(calibration.RULES))
    parser.add_argument("--out", default="runs/resnet50_imagenet")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(run(options()))
