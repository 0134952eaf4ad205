"""Whether this machine computes what the package promises, in one command and a few seconds.

::

    python -m dqt_core.selftest

A small network made from a formula runs on every backend there is, and as an exported file wherever something
can execute one. Each must give the digests written down here; what is missing is named with what to install.
"""

import hashlib
import importlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqt_core import __version__
from dqt_core._extras import install
from dqt_core.nested import Rounding
from dqt_core.program import (
    Choose,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Program,
    Requantize,
    Result,
    Scale,
    SumPool,
    Term,
    load,
)

Widths: TypeAlias = NDArray[np.int64] | None  # None: the controller decides
Runner: TypeAlias = Callable[[Program, NDArray[np.uint8], Widths], Result]

# sha256 of logits and widths at every width, at mixed widths and under the controller
EXPECTED: dict[Rounding, str] = {
    "half_up": "610dc86c30f827559359246c1f94ef45f7995823eace3febb14efab8b7902d14",
    "floor": "5cb73881e58321b7c112358d890aaab518a64e3fbf3fe3dd42e3e3d42519e7f9",
}
CHOICES = tuple((width, width) for width in (2, 3, 4, 6, 8))
LAYERS = ("block.conv1", "block.conv2", "block.shortcut")
IMAGES, SIZE, CHANNELS, CLASSES, R = 12, 8, 8, 5, 24
PACKAGES = ("numpy", "safetensors", "torch", "numba", "cupy-cuda13x", "cupy-cuda12x", "onnx", "onnxruntime")


class NotHereError(RuntimeError):
    """Something optional is missing; the message says what would bring it."""


def network(rounding: Rounding = "half_up") -> Program:
    """A residual network of three switchable layers and a controller, made from a formula.

    Parameters
    ----------
    rounding : {"half_up", "floor"}

    Returns
    -------
    Program
        For images of 8 by 8 pixels.

    Examples
    --------
    >>> network().has_controller
    True
    """
    stem: list[Op] = [
        Lookup(_bytes("table", (3, 256)).astype(np.int8), "input"),
        _conv("stem", "input", (CHANNELS, 3, 3, 3), padding=1),
        _codes("stem:codes", [("stem:sum", 27, CHANNELS, None)]),
    ]
    controller: list[Op] = [
        SumPool("stem:codes", "means:sum"),
        _codes("means", [("means:sum", 0, 1, None)]),
        _conv("hidden", "means", (16, 1, 1, CHANNELS)),
        _codes("hidden:codes", [("hidden:sum", CHANNELS, 16, None)]),
        _conv("scores", "hidden:codes", (len(LAYERS) * len(CHOICES), 1, 1, 16)),
        Scale(_term("scores:sum", 16, len(LAYERS) * len(CHOICES), None), R, "choice"),
        Choose(len(LAYERS), "choice"),
    ]
    body: list[Op] = [
        MaxPool(3, 1, 1, "stem:codes", "pooled"),
        _conv(LAYERS[0], "pooled", (CHANNELS, 3, 3, CHANNELS), padding=1, layer=0),
        _codes("inner", [(f"{LAYERS[0]}:sum", 72, CHANNELS, 0), ("pooled", 0, 1, None)], lo=-128),
        _conv(LAYERS[1], "inner", (16, 3, 3, CHANNELS), stride=2, padding=1, layer=1),
        _conv(LAYERS[2], "pooled", (16, 1, 1, CHANNELS), stride=2, layer=2),
        _codes("outer", [(f"{LAYERS[1]}:sum", 72, 16, 1), (f"{LAYERS[2]}:sum", 8, 16, 2)]),
        SumPool("outer", "features:sum"),
        _codes("features", [("features:sum", 0, 1, None)]),
        _conv("classifier", "features", (CLASSES, 1, 1, 16)),
        Scale(_term("classifier:sum", 16, CLASSES, None), R, "logits"),
    ]
    ops = [*stem, *(replace(op, controller=True) for op in controller), *body]
    return Program("selftest", tuple(ops), CHOICES, LAYERS, (SIZE, SIZE, 3), rounding)


def images() -> NDArray[np.uint8]:
    """Pictures of noise on a brightness of their own, (12, 8, 8, 3), so that the controller's choices differ.

    Examples
    --------
    >>> images().shape
    (12, 8, 8, 3)
    """
    noise = _bytes("noise", (IMAGES, SIZE, SIZE, 3))
    brightness = np.arange(IMAGES).reshape(-1, 1, 1, 1) * 16
    return (brightness + noise * np.arange(IMAGES).reshape(-1, 1, 1, 1) // 144 + 40).astype(np.uint8)


def digest(run: Runner, rounding: Rounding) -> str:
    """What a backend says of the network, in one digest.

    Parameters
    ----------
    run : callable (program, images, widths) -> Result
        Widths are (N, L), or None for the controller's.
    rounding : {"half_up", "floor"}

    Returns
    -------
    str
        To be compared with `EXPECTED`.

    Examples
    --------
    >>> def reference(program, images, widths):
    ...     return program.run(images, "controller" if widths is None else widths, "numpy")
    >>> digest(reference, "half_up") == EXPECTED["half_up"]
    True
    """
    program, pictures = network(rounding), images()
    mixed = np.array(CHOICES)[_bytes("mixed", (IMAGES, len(LAYERS))) % len(CHOICES), 0]
    same = [np.full((IMAGES, len(LAYERS)), width) for width, _ in CHOICES]
    sha = hashlib.sha256()
    for widths in (*same, mixed, None):
        result = run(program, pictures, widths)
        for numbers in (result.logits, result.widths):
            sha.update(np.ascontiguousarray(numbers, "<i8").tobytes())
    return sha.hexdigest()


def _bytes(name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Numbers 0..255 that depend on the name alone, on every machine and with every version of NumPy."""
    count = int(np.prod(shape))
    blocks = (hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(-(-count // 32)))
    return np.frombuffer(b"".join(blocks), np.uint8)[:count].astype(np.int64).reshape(shape)


def _conv(
    name: str,
    x: str,
    shape: tuple[int, int, int, int],
    stride: int = 1,
    padding: int = 0,
    layer: int | None = None,
) -> Conv:
    weight = _bytes(name, shape).astype(np.uint8).view(np.int8)
    return Conv(name, weight, stride, padding, 1, layer, x, f"{name}:sum")


def _term(x: str, products: int, channels: int, layer: int | None) -> Term:
    """Gains of either sign that bring random sums to codes; 0 products: codes, or their sum over an image."""
    rows = 1 if layer is None else len(CHOICES)
    parts = _bytes(f"gain {x}", (rows, channels)) + 128
    signs = 1 - 2 * (_bytes(f"sign {x}", (1, channels)) & 1) if products else np.ones((1, 1), np.int64)
    unit = (1 << R) // (256 * 64 * max(1, products // 4)) if products else (1 << R) // 512
    unit = unit // (SIZE * SIZE // 2) if x.endswith(":sum") and not products else unit
    offsets = (_bytes(f"offset {x}", (rows, channels)) - 100) << (R - 3)
    return Term(x, (parts * signs * unit).astype(np.int32), offsets, layer)


def _codes(out: str, terms: list[tuple[str, int, int, int | None]], lo: int = 0) -> Requantize:
    return Requantize(tuple(_term(*term) for term in terms), R, lo, 255 if lo == 0 else 127, out)


# Whatever can run a program


def _backend(name: str) -> Runner:
    def run(program: Program, pictures: NDArray[np.uint8], widths: Widths) -> Result:
        return program.run(pictures, "controller" if widths is None else widths, name)  # type: ignore[arg-type]

    return run


def _torch(folder: Path) -> Runner:
    if not importlib.util.find_spec("torch"):
        raise NotHereError(install("train"))
    return _backend("torch")


def _numba(folder: Path) -> Runner:
    if not importlib.util.find_spec("numba"):
        raise NotHereError(install("fast"))
    return _backend("numba")


def _cupy(folder: Path) -> Runner:
    if not importlib.util.find_spec("cupy"):
        raise NotHereError(f"on a machine with an NVIDIA GPU: {install('gpu')}")
    gpu = importlib.import_module("dqt_core.backends.cupy_gpu")
    try:
        gpu.require_gpu()
    except gpu.GpuError as error:
        raise NotHereError(str(error)) from error
    return _backend("cupy")


def _onnx(folder: Path) -> Runner:
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise NotHereError(install("export"))
    runtime, export = importlib.import_module("onnxruntime"), importlib.import_module("dqt_core.export")

    def run(program: Program, pictures: NDArray[np.uint8], widths: Widths) -> Result:
        asked = np.zeros((len(pictures), len(LAYERS)), np.int64) if widths is None else widths
        session = runtime.InferenceSession(export.to_onnx(program, folder / f"{program.rounding}.onnx"))
        logits, chosen = session.run(None, {"images": pictures, "widths": asked})
        return Result(logits, np.searchsorted([w for w, _ in CHOICES], chosen), chosen, "onnx")

    return run


def _c(folder: Path) -> Runner:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise NotHereError("install a C compiler, or set CC")
    to_c = importlib.import_module("dqt_core.export.c").to_c

    def executable(program: Program) -> Path:
        made = folder / program.rounding
        if not made.exists():
            source = to_c(program, folder / f"{program.rounding}.c")
            command = [compiler, "-std=c99", "-O1", "-DDQT_MAIN", source, "-o", made]
            subprocess.run(command, check=True, capture_output=True)
        return made

    def run(program: Program, pictures: NDArray[np.uint8], widths: Widths) -> Result:
        asked = np.zeros((len(pictures), len(LAYERS)), np.int64) if widths is None else widths
        stream = b"".join(
            bits.tobytes() + picture.tobytes()
            for bits, picture in zip(asked.astype(np.uint8), pictures, strict=True)
        )
        done = subprocess.run([executable(program), "-"], input=stream, capture_output=True, check=True)
        rows = [line.split("|") for line in done.stdout.decode().splitlines()[:-1]]
        logits, chosen = (np.array([row[i].split() for row in rows], np.int64) for i in (2, 1))
        return Result(logits, np.searchsorted([w for w, _ in CHOICES], chosen), chosen, "c")

    return run


def _file(folder: Path) -> Runner:
    def run(program: Program, pictures: NDArray[np.uint8], widths: Widths) -> Result:
        return _backend("numpy")(load(program.save(folder)), pictures, widths)

    return run


CHECKS: dict[str, Callable[[Path], Runner]] = {
    "numpy, the definition": lambda folder: _backend("numpy"),
    "numpy, from a file": _file,
    "torch, on the CPU": _torch,
    "numba, on the CPU": _numba,
    "cupy, on a GPU": _cupy,
    "ONNX Runtime": _onnx,
    "C, compiled here": _c,
}
REMEDIES = {
    "numpy": 'pip install --upgrade "numpy>=2.0", then report this output: the definition itself differs',
    "torch": "install the version of torch in requirements.txt, and report this output",
    "numba": "install the version of numba in requirements.txt, and report this output",
    "cupy": "update the driver and CuPy, and report this output",
    "ONNX": "install the version of onnxruntime in requirements.txt, and report this output",
    "C,": "try another compiler (CC=clang), and report this output",
}


def check(name: str) -> tuple[bool | None, str]:
    """One line of the table.

    Parameters
    ----------
    name : str
        Of `CHECKS`.

    Returns
    -------
    passed : bool or None
        None: not here.
    words : str
        The digests, what is missing, or what to do.

    Examples
    --------
    >>> check("numpy, the definition")[0]
    True
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = CHECKS[name](Path(folder))
            found = {rounding: digest(run, rounding) for rounding in EXPECTED}
    except NotHereError as missing:
        return None, f"not here: {missing}"
    except Exception as error:  # whatever goes wrong on a strange machine is the result
        last = (str(error).strip().splitlines() or [""])[-1]
        return False, f"FAILED, {type(error).__name__}: {last}; {_remedy(name)}"
    wrong = [
        f"{r} is {found[r][:12]}, expected {EXPECTED[r][:12]}" for r in EXPECTED if found[r] != EXPECTED[r]
    ]
    if wrong:
        return False, f"FAILED, {'; '.join(wrong)}; {_remedy(name)}"
    return True, "exact: " + ", ".join(f"{rounding} {found[rounding][:12]}" for rounding in found)


def _remedy(name: str) -> str:
    return next(words for start, words in REMEDIES.items() if name.startswith(start))


def versions() -> str:
    """Versions of everything involved, in one line.

    Examples
    --------
    >>> versions().startswith("dqt_core ")
    True
    """
    return ", ".join(
        [
            f"dqt_core {__version__}",
            f"Python {platform.python_version()}",
            *itertools.chain(*(_installed(name) for name in PACKAGES)),
            f"{platform.system()} {platform.machine()}",
            f"{os.cpu_count()} cores",
        ]
    )


def _installed(name: str) -> Iterator[str]:
    try:
        yield f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return


def main() -> int:
    """Print the table; the exit code is 1 where something is here and inexact."""
    start, outcomes = time.perf_counter(), []
    print(versions())
    for name in CHECKS:
        passed, words = check(name)
        outcomes.append(passed)
        print(f"{name:<22} {words}", flush=True)
    seconds = time.perf_counter() - start
    if False in outcomes:
        print(f"{outcomes.count(False)} of {len(outcomes)} are not exact here ({seconds:.1f} s).")
        return 1
    print(f"All that is here is exact: {outcomes.count(True)} ways, one digest ({seconds:.1f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
