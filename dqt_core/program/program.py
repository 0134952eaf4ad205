"""A network as a flat list of integer operations: built by `lower`, run by any backend with the same bits."""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dqt_core.nested import MASTER_WIDTH, Rounding, require_width
from dqt_core.program import storage
from dqt_core.program.contract import Value, require_program
from dqt_core.program.operations import Choice, Choose, Op, Shape, stored
from dqt_core.program.refusal import came

Widths: TypeAlias = int | Literal["controller"] | Sequence[int | Choice] | NDArray[np.integer]
BackendName: TypeAlias = Literal["auto", "numpy", "numba", "torch", "cupy", "emulator"]

T = TypeVar("T")

DIGITS = Path(__file__).with_name("resnet18_embedded-be0bde5dba71.safetensors")
BACKENDS = {
    "numpy": "dqt_core.backends.numpy_ref",
    "numba": "dqt_core.backends.numba_cpu",
    "torch": "dqt_core.backends.torch_cpu",
    "cupy": "dqt_core.backends.cupy_gpu",
    "emulator": "dqt_core.backends.emulated",
}

_PROCESS = os.getpid()


class once(functools.cached_property[T]):
    """A property that is worked out once, without the lock of Python 3.11.

    A fork would inherit that lock from a thread that it does not have. Of two threads that work the same out,
    both go on with the value of the first.
    """

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:  # type: ignore[override]
        """Work it out; not called again, as the value then hides this."""
        if instance is None:
            return self  # type: ignore[return-value]
        value: T = instance.__dict__.setdefault(self.attrname, self.func(instance))
        return value


@dataclass(frozen=True, eq=False)
class Result:
    """What a program says of some images.

    Attributes
    ----------
    logits : int64 array, (N, classes)
    choices : int64 array, (N, L)
        Index into the program's choices for every image and switchable layer.
    widths : int64 array, (N, L), or (N, L, 2) where weights and input differ
        Bits.
    backend : str
        That ran, one of `BACKENDS`.
    """

    logits: NDArray[np.int64]
    choices: NDArray[np.int64]
    widths: NDArray[np.int64]
    backend: str

    @property
    def classes(self) -> NDArray[np.int64]:
        """The largest logit's class, ties to the lower class; int64 (N,)."""
        return self.logits.argmax(axis=1)

    @property
    def digest(self) -> str:
        """sha256 of the logits as little-endian int64 in C order."""
        return hashlib.sha256(np.ascontiguousarray(self.logits, "<i8").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Program:
    """An integer-only network.

    Attributes
    ----------
    name : str
    ops : tuple of operations
        In the order they run; each reads values by name and writes one.
    choices : tuple of (weight bits, input bits)
        From narrow to wide; rows of every table.
    layers : tuple of str
        Names of the L switchable layers.
    image_shape : tuple (H, W, C)
        One channel for grey images, three for colour; any number.
    rounding : {"half_up", "floor"}

    Raises
    ------
    ProgramError
        If it is not as `contract` says: whoever has a program has a valid one.

    Examples
    --------
    >>> program, images = load("digits"), np.zeros((2, 32, 32, 3), np.uint8)
    >>> result = program.run(images, 4, "numpy")
    >>> result.logits.shape, result.classes.tolist(), result.digest[:12], len(program.layers)
    ((2, 10), [1, 1], '5704f67f5f2a', 19)
    """

    name: str
    ops: tuple[Op, ...]
    choices: tuple[Choice, ...]
    layers: tuple[str, ...]
    image_shape: Shape
    rounding: Rounding = "half_up"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", stored(self.ops))
        self.values  # noqa: B018 (it is worked out here, and with it all is checked)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy and what comes out of a pickle are checked too, and hold no backend.
        return Program, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @once
    def values(self) -> Mapping[str, Value]:
        """What is known of every value by name, the image included."""
        fields = self.name, self.ops, self.choices, self.layers, self.image_shape, self.rounding
        return require_program(*fields)

    @property
    def has_controller(self) -> bool:
        """Whether ``widths="controller"`` is possible."""
        return any(isinstance(op, Choose) for op in self.ops)

    @once
    def digest(self) -> str:
        """sha256 of everything the program is: the list of operations and every table."""
        return storage.digest_of(*storage.encode(self))

    @once
    def _executors(self) -> dict[str, Any]:
        """Backends that hold this program: its weights are switched and laid out once, not at every run."""
        return {}

    def run(
        self,
        images: NDArray[np.uint8],
        widths: Widths = MASTER_WIDTH,
        backend: BackendName = "auto",
        batch_size: int = 64,
    ) -> Result:
        """Classify images with integers alone.

        Parameters
        ----------
        images : uint8 array, (N, H, W, C)
            Bytes as they come from the file.
        widths : int, list of L, array (N, L) or (N, L, 2), or "controller"
            One width for all switchable layers; one (or a pair of weight and input bits) for each; one for
            each image and layer; or the controller's choice for each image.
        backend : {"auto", "numpy", "numba", "torch", "cupy", "emulator"}
            "numba" compiles for this processor, once, at its first use. "cupy" runs on an NVIDIA GPU,
            "emulator" the same kernels on the CPU, slowly. "auto" is cupy where a GPU answers it, else numba
            where it may compile, else torch where it is installed, else numpy. All return the same bits.
        batch_size : int
            Images at a time; the result does not depend on it.

        Returns
        -------
        Result

        Raises
        ------
        TypeError, ValueError
            If the images or the widths do not fit the program.
        ImportError
            If the backend is not installed, or there is no GPU for it.

        Notes
        -----
        Any number of threads may run one program; runs that are under way at the same time each have memory
        of their own. A forked process runs on one thread, and not on a GPU that it was forked from.
        """
        self._require_images(images)
        images = np.asarray(images)  # of no class of its own, such as a masked array
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size is {came(batch_size)}, expected an int: 1 or more images at a time")
        chosen = self._choices_of(widths, len(images))
        backend_name = _resolve(backend)
        module = importlib.import_module(BACKENDS[backend_name])
        executor = self._executors.get(backend_name)
        if executor is None:  # two threads that come here go on with the same one
            executor = self._executors.setdefault(backend_name, module.Backend(self))
        # A backend that plans the whole program runs it; others are led through it operation by operation.
        run_batch = getattr(executor, "run", None) or functools.partial(execute, self, executor)
        logits, picks = [], []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            out = run_batch(images[part], None if chosen is None else chosen[part])
            logits.append(out[0])
            picks.append(out[1])
        all_picks = np.concatenate(picks)
        return Result(np.concatenate(logits), all_picks, self._widths_of(all_picks), backend_name)

    def save(self, folder: str | Path) -> Path:
        """Write ``<name>-<digest>.safetensors`` into a folder, atomically.

        Parameters
        ----------
        folder : str or Path
            Created if missing.

        Returns
        -------
        Path
            Of the file.
        """
        path = Path(folder) / f"{self.name}-{self.digest[:12]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, self, self.digest)
        return path

    def _require_images(self, images: NDArray[np.uint8]) -> None:
        if getattr(images, "dtype", None) != np.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            way_out = "do not normalise them" if "float" in str(kind) else "give a NumPy array of them"
            raise TypeError(f"images must be uint8 bytes 0..255, got {kind}; {way_out}")
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            given, expected = images.shape, ", ".join(map(str, self.image_shape))
            ways_out = {
                (*given[1:], 1): "; give them their channel, images[..., None]",
                given: "; give one image an axis of its own, images[None]",
                (*given[2:], *given[1:2]): "; channels come last: images.transpose(0, 2, 3, 1)",
            }
            way_out = ways_out.get(self.image_shape, "")
            raise ValueError(f"images must be (N, {expected}), got {given}{way_out}")

    def _choices_of(self, widths: Widths, n: int) -> NDArray[np.int64] | None:
        if isinstance(widths, str):
            if widths != "controller" or not self.has_controller:
                known = "an int, a list or an array" + (", or 'controller'" if self.has_controller else "")
                raise ValueError(f"widths={came(widths)} is not possible with this program; give {known}")
            return None
        if type(widths) is int and (widths, widths) in self.choices:  # soon answered, as a single image is
            return np.full((n, len(self.layers)), self.choices.index((widths, widths)), np.int64)
        pairs = _as_pairs(widths, len(self.layers))
        if pairs.ndim == 3 and len(pairs) != n:
            raise ValueError(f"widths are for {len(pairs)} images, got {n} images")
        if pairs.shape[-2] != len(self.layers):
            raise ValueError(f"got widths for {pairs.shape[-2]} layers; the program has {len(self.layers)}")
        matches = (pairs[..., None, :] == np.asarray(self.choices)).all(-1)
        if not matches.any(-1).all():
            missing = pairs[~matches.any(-1)][0]
            raise ValueError(f"width {_as_text(missing)} is not in this program; it holds {self._known()}")
        return np.broadcast_to(matches.argmax(-1), (n, len(self.layers))).astype(np.int64)

    def _widths_of(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        table = np.asarray(self.choices, np.int64)
        return table[choices][..., 0] if all(w == x for w, x in self.choices) else table[choices]

    def _known(self) -> str:
        return ", ".join(_as_text(pair) for pair in self.choices)


def load(path: str | Path) -> Program:
    """Read a program and check its digest.

    Parameters
    ----------
    path : str or Path
        As `Program.save` returns it; or "digits", a small ResNet-18 for scikit-learn's handwritten digits,
        which comes with the package.

    Returns
    -------
    Program

    Raises
    ------
    ProgramError
        If the file is missing, truncated, edited, of another format version, or holds no valid program.

    Examples
    --------
    >>> one = np.zeros((1, 32, 32, 3), np.uint8)
    >>> one[:, :, 12:20] = one[:, 4:8, 8:12] = one[:, 28:, 8:24] = 255
    >>> [load("digits").run(one, width, "numpy").classes.item() for width in (8, 4, "controller")]
    [1, 1, 1]
    """
    return storage.read(DIGITS if path == "digits" else Path(path), Program)


def step_by_step(program: Program, backend: BackendName) -> Any:
    """A backend that is led through a program operation by operation: a method for every kind.

    "auto" is the fastest of those: torch where it is installed, else numpy.

    Raises
    ------
    ValueError
        If the backend plans whole programs.
    """
    if backend == "auto":
        backend = "torch" if importlib.util.find_spec("torch") else "numpy"
    name = _resolve(backend)
    executor = importlib.import_module(BACKENDS[name]).Backend(program)
    if hasattr(executor, "run"):
        raise ValueError(f"backend {name!r} plans whole programs; choose 'numpy' or 'torch' for this")
    return executor


def execute(
    program: Program, backend: Any, images: NDArray[np.uint8], choices: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run the operations on one batch.

    Parameters
    ----------
    program : Program
    backend : Backend
        Of one of `BACKENDS`: a method for every kind of operation.
    images : uint8 array, (N, H, W, C)
    choices : int64 array (N, L), or None
        None: the controller decides.

    Returns
    -------
    logits : int64 array, (N, classes)
    choices : int64 array, (N, L)
    """
    stepwise = importlib.import_module("dqt_core.backends.stepwise")
    result: tuple[NDArray[np.int64], NDArray[np.int64]]
    result = stepwise.execute(program.ops, len(program.choices), backend, images, choices)
    return result


def _resolve(backend: str) -> str:
    if backend == "auto":
        if importlib.util.find_spec("cupy") and importlib.import_module(BACKENDS["cupy"]).available():
            return "cupy"
        return "numba" if _compiles() else "torch" if importlib.util.find_spec("torch") else "numpy"
    if not isinstance(backend, str) or backend not in BACKENDS:
        known = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"backend {came(backend)} is unknown; choose 'auto', {known}")
    return backend


def _compiles() -> bool:
    """Whether Numba is there and may compile; it reads its variables again when it begins to."""
    if importlib.util.find_spec("numba") is None or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return False
    return not importlib.import_module("numba").config.DISABLE_JIT


def is_forked() -> bool:
    """Whether this process is a fork of the one that imported this module: it has none of its threads."""
    return os.getpid() != _PROCESS


def _as_pairs(widths: int | Sequence[int | Choice] | NDArray[np.integer], layers: int) -> NDArray[np.int64]:
    """Widths as (L, 2), or (N, L, 2) where they were an array with one row per image."""
    if isinstance(widths, int | np.integer):
        return np.full((layers, 2), require_width(widths), np.int64)
    if layers == 0 and isinstance(widths, list | tuple) and not widths:
        return np.empty((0, 2), np.int64)
    if isinstance(widths, np.ndarray):
        pairs = np.asarray(widths if widths.ndim == 3 else np.repeat(widths[..., None], 2, axis=-1))
    else:
        pairs = _listed_pairs(widths)
    if pairs.dtype.kind not in "iu" or pairs.ndim not in (2, 3) or pairs.shape[-1] != 2:
        raise ValueError(
            f"widths {came(widths)} do not fit; give an int, a list of one width or (weight bits, input "
            "bits) a layer, or an integer array (images, layers)"
        )
    for width in np.unique(pairs):
        require_width(int(width))
    return pairs.astype(np.int64)


def _listed_pairs(widths: Sequence[int | Choice]) -> NDArray[Any]:
    """Widths of a list as an array; an empty one where they make none."""
    try:
        return np.asarray([(w, w) if isinstance(w, int | np.integer) else tuple(w) for w in widths])
    except (TypeError, ValueError):
        return np.empty(0)


def _as_text(pair: Sequence[int] | NDArray[np.int64]) -> str:
    return str(int(pair[0])) if pair[0] == pair[1] else f"({int(pair[0])}, {int(pair[1])})"
