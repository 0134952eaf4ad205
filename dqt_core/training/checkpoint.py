"""A run's checkpoint: it is told by all that shaped the run, and a kill leaves a whole one."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dqt_core.data import Dataset
from dqt_core.data.holding import held
from dqt_core.data.streaming import ImageStream
from dqt_core.training import distributed
from dqt_core.training.network import NestedNet
from dqt_core.training.recipe import Loss, Recipe


def description(
    net: nn.Module, recipe: Recipe, dataset: Dataset | ImageStream, loss: Loss, microbatches: int
) -> dict[str, Any]:
    """All that shapes a run: what a checkpoint must agree with to be gone on from."""
    settings: dict[str, Any] = vars(loss) if dataclasses.is_dataclass(loss) else {}  # such as an `Objective`
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    run = {**vars(recipe), **settings, "loss": f"{kind.__module__}.{kind.__qualname__}"}
    run["microbatches"] = microbatches
    del run["microbatch"]
    if isinstance(teacher := run.get("teacher"), nn.Module):
        run["teacher"] = distributed.digest(teacher)
    if isinstance(dataset, ImageStream):
        run["images"] = dataset.digest
    else:
        run |= {"images": dataset.checksums["train_images"], "labels": dataset.checksums["train_labels"]}
    run |= {"mean": dataset.mean, "std": dataset.std, "start": distributed.digest(net)}
    if isinstance(net, NestedNet):
        run |= {"choices": net.choices, "rounding": net.rounding}
    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


def _differing(run: dict[str, Any], other: dict[str, Any]) -> str:
    """The settings of one run that another does not share."""
    return ", ".join(f"{k}={v!r}" for k, v in run.items() if k not in other or other[k] != v) or "no more"


@contextmanager
def alone(accelerator: Accelerator, out: str | Path | None) -> Iterator[None]:
    """Within, no other run keeps its checkpoints in the folder.

    Raises
    ------
    DataError
        If another run does.
    NotADirectoryError
        If it is a file.
    """
    if out is None or not accelerator.is_main_process:
        yield
        return
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder for checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / "lock", f"training in {folder}"):
        yield


class Checkpoint:
    """Writes the run's state beside the last one, then swaps the two: a kill leaves a whole checkpoint.

    Tensors lie in safetensors files, all else in ``run.json`` with the digests of those files and its own:
    what is read can run no code, and a changed bit is noticed.

    Parameters
    ----------
    accelerator : Accelerator
    run : dict
        Of `description`.
    out : path, optional
        Holds the folders ``last`` and ``previous``. None: nothing is kept.
    parts : mapping of name to what has a state
        Model, optimizers, schedules: ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self, accelerator: Accelerator, run: dict[str, Any], out: str | Path | None, parts: Mapping[str, Any]
    ) -> None:
        self.accelerator, self.run, self.parts = accelerator, run, parts
        self.folder = None if out is None else Path(out)

    def restore(self) -> list[dict[str, float]]:
        """Load the last checkpoint, if there is one, and return its history."""
        if self.folder is None:
            return []
        last, previous = self.folder / "last", self.folder / "previous"
        if self.accelerator.is_main_process and not last.is_dir() and previous.is_dir():
            os.replace(previous, last)
            print(f"{last} is missing: the one before takes its place", file=sys.stderr)
        self.accelerator.wait_for_everyone()
        if not last.is_dir():
            return []
        try:
            whole = json.loads((last / "run.json").read_text())
            if not isinstance(whole, dict) or whole.pop("digest", None) != _digest(whole):
                raise ValueError("run.json is not what was written")
            made, history, states = whole["run"], whole["history"], whole["states"]
            tensors = {name: _read(last / name, digest) for name, digest in whole["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            way_out = (
                f"move it away, and the run goes on from {previous}" if previous.is_dir() else "remove it"
            )
            raise ValueError(f"{last} is damaged ({error}); {way_out}") from error
        if made != self.run:
            raise ValueError(
                f"{last} was made by another run: {_differing(made, self.run)}, this one has "
                f"{_differing(self.run, made)}; give what it was made with, or another folder"
            )
        for name, part in self.parts.items():
            part.load_state_dict(_joined(states[name], tensors.get(_file(name), {})))
        if self.accelerator.is_main_process:
            print(f"{last}: the run goes on after step {len(history)}", file=sys.stderr)
        return history

    def save(self, history: list[dict[str, float]]) -> None:
        """Write the state of all parts; every process calls it, and one writes."""
        if self.folder is None:
            return
        if self.accelerator.is_main_process:
            new, last, previous = (self.folder / name for name in ("new", "last", "previous"))
            shutil.rmtree(new, ignore_errors=True)  # what a kill left of it
            try:
                self._write(new, history)
            except OSError as error:
                shutil.rmtree(new, ignore_errors=True)
                kept = f"goes on from {last}" if last.is_dir() else "begins anew"
                raise OSError(
                    f"the checkpoint after step {len(history)} cannot be written ({error}); make room in "
                    f"{self.folder} and start the run again: it {kept}"
                ) from error
            shutil.rmtree(previous, ignore_errors=True)
            if last.is_dir():
                os.replace(last, previous)
            os.replace(new, last)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, history: list[dict[str, float]]) -> None:
        folder.mkdir(parents=True)
        states, files = {}, {}
        for name, part in self.parts.items():
            tensors: dict[str, Tensor] = {}
            states[name] = _split(part.state_dict(), "", tensors)
            if tensors:
                blob = save(tensors)
                files[_file(name)] = hashlib.sha256(blob).hexdigest()
                (folder / _file(name)).write_bytes(blob)
        whole = {"run": self.run, "history": history, "states": states, "files": files}
        (folder / "run.json").write_text(json.dumps({"digest": _digest(whole), **whole}))


def _digest(whole: dict[str, Any]) -> str:
    """sha256 of what a run.json holds beside it."""
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    blob = path.read_bytes()
    if hashlib.sha256(blob).hexdigest() != digest:
        raise ValueError(f"{path.name} is not what was written")
    return load(blob)


def _split(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON, its tensors set apart by name. Keys of a dict may be numbers, so it becomes pairs."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if isinstance(value, dict):
        # a name alone on the first level: those are the names of the network's own state
        names = [f"{key}/{name}" if key else str(name) for name in value]
        parts = zip(value.items(), names, strict=True)
        return {"pairs": [[name, _split(item, path, tensors)] for (name, item), path in parts]}
    if isinstance(value, list | tuple):
        return [_split(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_split` was given; a tuple comes back as a list."""
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {name: _joined(item, tensors) for name, item in value["pairs"]}
    if isinstance(value, list):
        return [_joined(item, tensors) for item in value]
    return value
