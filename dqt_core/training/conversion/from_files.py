"""A float model, its weights and images from files, as a command line names them."""

import importlib.util
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dqt_core.data import Images, decoding

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError)
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class FileError(ValueError):
    """A file or folder holds not what it was given for; the message names it."""


def load_model(place: str) -> tuple[nn.Module, ModuleType]:
    """Call a function of a Python file that returns a model.

    Parameters
    ----------
    place : str
        "FILE.py:function"; the file is run.

    Returns
    -------
    model : Module
    module : module
        Of the file.

    Raises
    ------
    FileError
        If there is no such file or function, either fails, or what comes back is no Module.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mine.py"
    ...     _ = path.write_text("from torch import nn; net = lambda: nn.Linear(2, 1)")
    ...     load_model(f"{path}:net")[0]
    Linear(in_features=2, out_features=1, bias=True)
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise FileError(f"{place!r} names no model; give FILE.py:function, a function that returns it")
    if not path.is_file():
        raise FileError(f"{path} does not exist; give the Python file that has {name}()")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileError(f"{path} is no Python file; give FILE.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # what lies beside it can be imported, as if it were run
    try:
        spec.loader.exec_module(module)
        make = getattr(module, name, None)
        if not callable(make):
            raise FileError(f"{path} has no function {name}; give the name of one that returns the model")
        model = make()
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{place} failed with {type(error).__name__}: {_line(error)}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(model, nn.Module):
        raise FileError(f"{place} returns {type(model).__name__}, expected a torch.nn.Module")
    return model, module


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Give a model the weights of a file, in place; no pickled object is ever made.

    Parameters
    ----------
    model : Module
    path : str or Path
        .safetensors, .npz, or a file of ``torch.save``: a state dict, or one under "state_dict", with the
        names as the model has them or behind "module.".

    Raises
    ------
    FileError
        If the file holds no state dict, or another model's.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> net = nn.Linear(2, 1)
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(Path(folder) / "w.npz", weight=np.ones((1, 2), np.float32), bias=np.zeros(1, np.float32))
    ...     load_weights(net, Path(folder) / "w.npz")
    >>> net.weight.tolist()
    [[1.0, 1.0]]
    """
    path, own = Path(path), model.state_dict()
    state = _unwrapped(_read(path), path)
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    strange = [name for name in state if name not in own]
    if missing or strange:
        lacks = f"it lacks {_some(missing)}" if missing else ""
        holds = f"it holds {_some(strange)}, which the model has not" if strange else ""
        told = " and ".join(filter(None, (lacks, holds)))
        raise FileError(f"{path} does not fit the model: {told}{_way_out(missing, strange)}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise FileError(
                f"{path} does not fit the model: {name} is {tuple(value.shape)}, the model's is "
                f"{tuple(own[name].shape)}"
            )
    model.load_state_dict(state, strict=False)


def _way_out(missing: list[str], strange: list[str]) -> str:
    """What to do where the names differ by what stands before them, and by nothing else."""
    for longer, shorter, change in (
        (strange, missing, "take `{}` off the names of the file"),
        (missing, strange, "put `{}` before the names of the file"),
    ):
        before = longer[0].removesuffix(shorter[0]) if missing and strange else ""
        if before and {before + name for name in shorter} <= set(longer):
            return f"; {change.format(before)}"
    return ""


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileError(f"{path} does not exist; give a file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} holds more than tensors, and objects are not loaded; save model.state_dict() alone"
        ) from error
    except (*_DAMAGED, SafetensorError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} cannot be read as weights: {_line(error)}") from error


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found:
        raise FileError(f"{path} holds {type(found).__name__}, expected the tensors of a state dict")
    other = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if other:
        raise FileError(f"{path} is no state dict: {_some(list(map(str, other)))} is no tensor")
    state = dict(found)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_images(folder: str | Path, count: int, size: int | None = None, grey: bool = False) -> Images:
    """Images of a folder and the folders in it, evenly picked from the sorted names.

    Parameters
    ----------
    folder : str or Path
    count : int
        At most so many.
    size : int, optional
        The short side becomes 8/7 of it, and the central square of it is cut; None: images as they are.
    grey : bool
        One channel in place of three.

    Returns
    -------
    uint8 array, (N, H, W, C)

    Raises
    ------
    FileError
        If there are no images, one is damaged, or they differ in size.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in "abc":
    ...         decoding.pillow().new("RGB", (40, 32), "grey").save(Path(folder) / f"{name}.png")
    ...     load_images(folder, count=2, size=28, grey=True).shape
    (2, 28, 28, 1)
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder; give one with images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileError(f"{folder} holds no images; they end with {', '.join(SUFFIXES)}")
    picked = [paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)]
    images = [_image(path, size, grey) for path in picked]
    for path, image in zip(picked, images, strict=True):
        if image.shape != images[0].shape:
            raise FileError(
                f"{picked[0]} is {_size(images[0])} and {path} is {_size(image)}; give --size, to which all "
                "are brought"
            )
    return np.stack(images)


def _image(path: Path, size: int | None, grey: bool) -> Images:
    try:
        picture = decoding.decode(decoding.read_file(path))
    except decoding.UNREADABLE as error:
        raise FileError(f"{path} cannot be read: {_line(error)}; take it out of the folder") from error
    picture = picture.convert("L") if grey else picture
    if size is not None:
        short = -(-size * 8 // 7)
        wide, high = (max(size, round(short * side / min(picture.size))) for side in picture.size)
        left, top = (wide - size) // 2, (high - size) // 2
        picture = picture.resize((wide, high)).crop((left, top, left + size, top + size))
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., None] if grey else pixels


def _size(image: Images) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
