"""Run the CUDA kernels on the CPU: the same sources, compiled as C++, bit for bit.

The emulator is for checking, not for speed. It compares the arguments with the kernel's own declaration,
which CUDA does not do, and, where `checked`, puts every array at the end of its own memory pages: an access
past the end, a misaligned vector and an operation that C++ leaves undefined then end in an `EmulatorError`.
"""

import ctypes
import functools
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import kernels
from dqt_core.kernels import structs
from dqt_core.kernels.engine import Sizes
from dqt_core.kernels.structs import Address, Struct

Array = NDArray[Any]

HEADERS = ("common.cuh", "cuda_cpu.hpp")
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')
FLAGS: tuple[str, ...] = (
    *("-std=c++17", "-O3", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wno-unused-function", "-Wno-unknown-pragmas"),
)
# Undefined behaviour becomes a trap. Shifts of negative numbers are defined in CUDA (and in C++20).
CHECKS = (
    "-O1",
    "-fsanitize=undefined",
    "-fno-sanitize=shift-base,vptr",
    "-fsanitize-undefined-trap-on-error",
)
PAGE = mmap.PAGESIZE
FILL = 0x5A


class EmulatorError(RuntimeError):
    """A kernel cannot be compiled, was called with the wrong arguments, or went wrong."""


class NoCompilerError(EmulatorError):
    """There is no C++ compiler on this machine."""


class Emulator:
    """An engine (see `engine.Engine`) on the CPU.

    Parameters
    ----------
    backwards : bool
        Warps and lanes run in descending order. A missing barrier changes the result of one of the two.
    checked : bool
        Trap undefined behaviour and accesses outside the arrays; slower.
    sources : mapping of file name to text, optional
        Stand in for files of `dqt_core.kernels`: tests plant errors so.

    Examples
    --------
    >>> switch = Emulator().kernel("switch", "switch_codes", X_SIGNED=0)
    >>> codes, out = np.array([0b01011000], np.uint8), np.zeros(1, np.uint8)
    >>> switch((1, 1, 1), (32, 1, 1), (codes, out, np.int64(1), np.int32(4)))
    >>> format(out[0], "04b")
    '0110'
    """

    xp: Any = np

    def __init__(
        self, backwards: bool = False, checked: bool = False, sources: Mapping[str, str] | None = None
    ) -> None:
        self.backwards = backwards
        self.checked = checked
        self._sources = dict(sources or {})
        self._libraries: dict[tuple[Any, ...], ctypes.PyDLL] = {}

    def kernel(self, source: str, name: str, **defines: int) -> "EmulatedKernel":
        """Return a kernel, compiled at its first use; see `engine.Engine`.

        Raises
        ------
        EmulatorError
            If there is no C++ compiler, the source does not compile or has no such kernel.
        """
        file = f"{source}.cu"
        declared = dict(KERNEL.findall(self._text(file)))
        if name not in declared:
            raise EmulatorError(f"{file} has no kernel {name!r}; it has {', '.join(declared)}")
        key = (file, *sorted(defines.items()))
        if key not in self._libraries:
            self._libraries[key] = self._compiled(file, declared, defines)
        parameters = [leaf for part in declared[name].split(",") for leaf in _leaves(part)]
        return EmulatedKernel(self._libraries[key], name, parameters, self.backwards, self.checked)

    def _text(self, name: str) -> str:
        return self._sources[name] if name in self._sources else kernels.source(name)

    def _compiled(self, file: str, declared: Mapping[str, str], defines: Mapping[str, int]) -> ctypes.PyDLL:
        texts = {name: self._text(name) for name in (*HEADERS, file)}
        given = {kind for parameters in declared.values() for kind in re.findall(r"\w+", parameters)}
        known = structs.sizes_in_c() + _field_types() if given & structs.fields().keys() else ""
        exports = "".join(f"CUDA_CPU_EXPORT({name})\n" for name in declared)
        texts["main.cpp"] = f'#include "{file}"\n' + known + exports
        flags = (*FLAGS, *(CHECKS if self.checked else ()))
        flags += tuple(f"-D{name}={value}" for name, value in sorted(defines.items()))
        return _library(tuple(texts.items()), flags)


class EmulatedKernel:
    """A kernel compiled as C++; call it as `engine.Kernel` says."""

    def __init__(
        self, library: ctypes.PyDLL, name: str, parameters: list[str], backwards: bool, checked: bool
    ) -> None:
        self.name = name
        self._parameters = parameters
        self._backwards = backwards
        self._checked = checked
        self._launch = getattr(library, f"{name}_launch")
        self._launch.restype = ctypes.c_char_p
        describe = getattr(library, f"{name}_signature")
        describe.restype = ctypes.c_char_p
        self._types = describe().decode().split(",")[:-1]

    def __call__(self, grid: Sizes, block: Sizes, args: tuple[Any, ...]) -> None:
        """Run it once.

        Raises
        ------
        EmulatorError
            If the sizes or the arguments do not fit, or the kernel goes wrong.
        """
        self._require_sizes(grid, block)
        leaves = [leaf for argument in args for leaf in _leaves_of(argument)]
        self._require_arguments(leaves)
        with _guarded(leaves) if self._checked else _as_they_are() as address:
            values = [_value(argument, address) for argument in args]
            pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            message = self._launch((ctypes.c_uint * 6)(*grid, *block), pointers, int(self._backwards))
        if message is not None:
            raise EmulatorError(f"{self.name}: {message.decode()}")

    def _require_sizes(self, grid: Sizes, block: Sizes) -> None:
        threads = block[0] * block[1] * block[2]
        fits = 1 <= grid[0] < 2**31 and all(1 <= size < 2**16 for size in grid[1:])
        if not fits or min(block) < 1 or threads > 1024 or block[2] > 64:
            raise EmulatorError(
                f"{self.name}: grid {grid}, block {block}; expected at least one block of 1..1024 threads, "
                "and at most 65535 blocks along y and z"
            )

    def _require_arguments(self, args: list[Any]) -> None:
        if len(args) != len(self._types):
            expected = ", ".join(map(" ".join, zip(self._types, self._parameters, strict=True)))
            raise EmulatorError(
                f"{self.name}: {len(args)} arguments, expected {len(self._types)}: {expected}"
            )
        for argument, kind, parameter in zip(args, self._types, self._parameters, strict=True):
            if problem := _problem(argument, kind):
                raise EmulatorError(f"{self.name}: {parameter} is {problem}")


def _leaves(parameter: str) -> list[str]:
    """Names of a kernel's parameter: its own, or those of its fields."""
    *kind, name = parameter.replace("*", " ").split()
    return [f"{name}.{leaf}" for leaf in structs.leaves(kind[-1])] if kind[-1] in structs.fields() else [name]


def _leaves_of(argument: Any) -> Iterable[Any]:
    return argument.leaves() if isinstance(argument, Struct) else (argument,)


def _field_types() -> str:
    """C++ that lets `cuda_cpu.hpp` name the types of a struct's fields."""
    types = {
        struct: ", ".join(f"decltype({struct}::{field})" for field in fields)
        for struct, fields in structs.fields().items()
    }
    line = "template <> struct cuda_cpu::Argument<{}> : cuda_cpu::Arguments<{}> {{}};\n"
    return "".join(line.format(*item) for item in types.items())


def _problem(argument: Any, kind: str) -> str:
    """What is wrong with an argument, or nothing."""
    dtype = kind.removeprefix("const ").removesuffix("*")
    if not kind.endswith("*"):
        fits = isinstance(argument, np.generic) and argument.dtype == dtype
        return "" if fits else f"{argument!r} ({type(argument).__name__}), expected a NumPy scalar of {dtype}"
    if argument is None:
        return ""
    if not isinstance(argument, np.ndarray):
        return f"{argument!r} ({type(argument).__name__}), expected an array of {dtype} or None"
    if dtype not in ("any", argument.dtype):
        return f"an array of {argument.dtype}, expected {dtype}"
    if not argument.flags.c_contiguous:
        return f"an array of strides {argument.strides}, expected C-contiguous"
    if not kind.startswith("const ") and not argument.flags.writeable:
        return "read-only, but the kernel may write it"
    return ""


def _value(argument: Any, address: Address) -> Array:
    """The argument as a one-element array, whose address the launcher takes."""
    if isinstance(argument, Struct):
        return argument.packed(address)
    if argument is None:
        return np.zeros(1, np.uintp)
    if isinstance(argument, np.ndarray):
        return np.array([address(argument)], np.uintp)
    return np.array([argument])


@contextmanager
def _as_they_are() -> Iterator[Address]:
    yield lambda array: int(array.ctypes.data)


@contextmanager
def _guarded(args: list[Any]) -> Iterator[Address]:
    """Copies of the arrays, each at the end of its own pages, before a page that may not be touched."""
    arrays = {id(argument): argument for argument in args if isinstance(argument, np.ndarray)}
    guarded = {key: _Guarded(array) for key, array in arrays.items()}
    yield lambda array: int(guarded[id(array)].array.ctypes.data)
    for key, copy in guarded.items():
        copy.require_intact()
        if arrays[key].flags.writeable:
            arrays[key][...] = copy.array


class _Guarded:
    """A copy as aligned as the array, whose end is, up to 15 bytes, the end of the readable memory."""

    def __init__(self, array: Array) -> None:
        shift = array.ctypes.data % 16
        room = -(-(shift + array.nbytes) // 16) * 16
        self._pages = -(-room // PAGE) * PAGE
        self._bytes = np.frombuffer(mmap.mmap(-1, self._pages + PAGE), np.uint8)
        self._bytes[:] = FILL
        self._start = self._pages - room + shift
        self._end = self._start + array.nbytes
        self.array = self._bytes[self._start : self._end].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        _forbid(self._bytes[self._pages :])

    def require_intact(self) -> None:
        around = (self._bytes[: self._start], self._bytes[self._end : self._pages])
        if any((part != FILL).any() for part in around):
            raise EmulatorError("a write outside an array")


def _forbid(page: Array) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page.ctypes.data), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect refuses to guard an array")


@functools.cache
def _library(texts: tuple[tuple[str, str], ...], flags: tuple[str, ...]) -> ctypes.PyDLL:
    """The compiled library, from the cache or by the compiler."""
    compiler = os.environ.get("CXX") or "g++"
    key = hashlib.sha256(repr((compiler, texts, flags)).encode()).hexdigest()
    folder = _writable_cache()
    library = None if folder is None else folder / f"{key}-whole.so"
    if library is not None and _is_whole(library):
        return ctypes.PyDLL(str(library))
    if shutil.which(compiler) is None:
        raise NoCompilerError(
            f"the emulator needs a C++17 compiler, {compiler} was not found; install g++ or set CXX"
        )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, text in texts:
            (Path(place) / name).write_text(text, encoding="utf-8")
        made = Path(place) / "library.so"
        command = [compiler, *flags, "-o", str(made), "main.cpp"]
        result = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if result.returncode:
            raise EmulatorError(f"{compiler} refuses the kernels:\n{result.stderr.strip()}")
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        if library is not None:
            made = made.replace(library)  # atomic: another process finds a whole library or none
        return ctypes.PyDLL(str(made))


def _is_whole(library: Path) -> bool:
    """Whether a library is there and ends with its digest: to load a damaged one may end the process."""
    if not library.is_file():
        return False
    content = library.read_bytes()
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


def _writable_cache() -> Path | None:
    """The cache; None, which is said once, where it cannot be written to."""
    try:
        folder = cache()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # there may be no home at all
        _say(
            f"compiled kernels are not kept ({error}): set XDG_CACHE_HOME to a folder that can be written to"
        )
        return None


@functools.cache
def _say(what: str) -> None:
    print(f"dqt_core: {what}", file=sys.stderr)


def cache() -> Path:
    """The folder of compiled kernels, ``dqt-kernels`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dqt-kernels"
