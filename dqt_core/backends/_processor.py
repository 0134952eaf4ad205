"""What this processor can do, and how many threads to use."""

import contextlib
import ctypes
import functools
import os
import platform
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    import numba
    from llvmlite import binding
    from numba.core.compiler_lock import global_compiler_lock

from dqt_core.program import is_forked


class Amx(NamedTuple):
    """Tiles of 16 x 64 bytes."""

    line: int = 64  # bytes of a window that are multiplied at a time
    tile: int = 32  # pixels that are multiplied together
    channels: int = 16  # whose weights lie beside each other
    weight: int = 1  # bytes of one


class Vnni512(NamedTuple):
    """Dot products of four bytes, 16 at a time."""

    line: int = 16
    tile: int = 8
    channels: int = 32
    weight: int = 1


class Vnni256(NamedTuple):
    """Dot products of four bytes, 8 at a time."""

    line: int = 16
    tile: int = 4
    channels: int = 32
    weight: int = 1


class Plain(NamedTuple):
    """Dot products of two 16-bit integers, on any processor."""

    line: int = 16
    tile: int = 4
    channels: int = 32
    weight: int = 2


Machine: TypeAlias = Amx | Vnni512 | Vnni256 | Plain

_ONE_CALLER = threading.RLock()  # some of Numba's pools of threads serve one caller

if hasattr(os, "register_at_fork"):  # a fork waits for what is being compiled, which its child cannot finish
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def machine() -> Machine:
    """The widest dot products of this processor.

    Returns
    -------
    Amx, Vnni512, Vnni256 or Plain
        ``ONEDNN_MAX_CPU_ISA`` and ``ATEN_CPU_CAPABILITY``, which hide instructions from
        torch, hide them here too.
    """
    isa, capability = (
        os.environ.get(name, "").upper() for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    )
    most = 0 if capability in ("DEFAULT", "AVX2") else _LEVELS.get(isa, 3)
    has = features()
    if most >= 3 and {"amx-int8", "amx-tile", "avx512f"} <= has and _tiles_are_allowed():
        return Amx()
    if most >= 2 and {"avx512vnni", "avx512f"} <= has:
        return Vnni512()
    if most >= 1 and ("avxvnni" in has or {"avx512vnni", "avx512vl"} <= has):
        return Vnni256()
    return Plain()


_LEVELS = {"SSE41": 0, "AVX": 0, "AVX2": 0, "AVX512_CORE": 0, "AVX2_VNNI": 1, "AVX2_VNNI_2": 1}
_LEVELS |= {"AVX512_CORE_VNNI": 2, "AVX512_CORE_BF16": 2, "AVX512_CORE_FP16": 2, "AVX10_1_512": 2}


def features() -> frozenset[str]:
    """LLVM's names of the instructions that Numba compiles for; none where it is told not to."""
    settings = numba.config
    if platform.machine() not in ("x86_64", "AMD64") or settings.CPU_NAME or not settings.ENABLE_AVX:
        return frozenset()
    return _features_of_host()


@functools.cache
def _features_of_host() -> frozenset[str]:
    return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)


def _tiles_are_allowed() -> bool:
    """Ask Linux for the tile registers, which it gives to a process on request."""
    if sys.platform != "linux":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


def threads() -> int:
    """Threads to use: as torch where it is loaded, else as OMP_NUM_THREADS says, else all; one after a fork.

    Returns
    -------
    int
    """
    if is_forked():
        return 1
    most: int = numba.config.NUMBA_NUM_THREADS
    torch = sys.modules.get("torch")
    if torch is not None:
        return min(most, torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(most, max(1, int(wanted))) if wanted.isdigit() else most


@functools.cache
def start_pool() -> None:
    """Start Numba's threads, and leave torch as many as it had.

    Both use one OpenMP where they are on GNU's, and Numba sets its number of threads, when it starts, to all.
    """
    try:
        openmp = ctypes.CDLL("libgomp.so.1")
    except OSError:  # not GNU's: nothing is shared
        numba.get_num_threads()
        return
    before = openmp.omp_get_max_threads()
    numba.get_num_threads()
    openmp.omp_set_num_threads(before)


@contextlib.contextmanager
def pool(workers: int) -> Iterator[None]:
    """Within, Numba's threads are this caller's, and so many."""
    with _ONE_CALLER:
        start_pool()
        before = numba.get_num_threads()
        numba.set_num_threads(workers)
        try:
            yield
        finally:
            numba.set_num_threads(before)
