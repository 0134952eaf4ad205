"""The GPU: kernels compiled by CuPy, whole programs from image bytes to logits on the device.

Nothing here runs at import: CuPy is imported when a GPU is first asked for, see `require_gpu`.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from dqt_core import kernels
from dqt_core.backends import gpu_plan
from dqt_core.kernels import structs
from dqt_core.kernels.engine import Sizes
from dqt_core.program import Program

INSTALL = "pip install cupy-cuda13x for CUDA 13, or cupy-cuda12x for CUDA 12"
PROBE = 'extern "C" __global__ void probe(int* x) { x[threadIdx.x] = 7 * threadIdx.x + PROBE; }'
NULL = np.uintp(0)


class GpuError(ImportError):
    """No GPU can be used; the message says what is missing and what to do."""


def require_gpu() -> Any:
    """Return the module cupy, once a kernel was compiled, run and read back.

    Returns
    -------
    module

    Raises
    ------
    GpuError
        If CuPy is missing or installed twice, if the driver is missing or too old for this CuPy, or if the
        kernel cannot be compiled, does not run, or answers wrongly.
    """
    cupy = _the_one_cupy()
    _require_driver(cupy.cuda.runtime)
    if _first_asked() != os.getpid():
        raise GpuError(
            "a GPU was asked for before this process was forked, which CUDA does not survive; start workers "
            "with multiprocessing.get_context('spawn')"
        )
    try:
        kernel = cupy.RawModule(code=PROBE, options=("--std=c++17", "-DPROBE=3")).get_function("probe")
        answer = cupy.zeros(32, np.int32)
        kernel((1,), (32,), (answer,))
        answer = answer.get()
    except Exception as error:  # CuPy, NVRTC and the driver each have their own exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GpuError(
            f"CuPy {cupy.__version__} could not run a kernel ({type(error).__name__}: {reason}); see that "
            "nvidia-smi lists a free GPU, and that the CUDA compiler library is there: "
            f'pip install "{_wheel(cupy.cuda.runtime.runtimeGetVersion())}[ctk]"'
        ) from error
    if answer.tolist() != [7 * i + 3 for i in range(32)]:
        raise GpuError(f"the GPU wrote {answer[:4]} instead of 3, 10, 17, 24; update its driver")
    return cupy


@functools.cache
def _first_asked() -> int:
    """The process in which a GPU was asked for first."""
    return os.getpid()


def _the_one_cupy() -> Any:
    """The module; CuPy warns where several of its wheels overwrite each other, here that is an error."""
    wheels = sorted({name for name in map(_name, metadata.distributions()) if name.split("-")[0] == "cupy"})
    if len(wheels) > 1:
        raise GpuError(
            f"{len(wheels)} builds of CuPy overwrite each other ({', '.join(wheels)}); pip uninstall all of "
            f"them, then {INSTALL}"
        )
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise GpuError(f'backend "cupy" needs CuPy: {INSTALL}') from error
    except ImportError as error:
        raise GpuError(
            f"{', '.join(wheels) or 'CuPy'} cannot be imported; it needs a CUDA of its own number: {INSTALL}"
        ) from error
    return cupy


def _name(distribution: metadata.Distribution) -> str:
    return (distribution.metadata["Name"] or "").lower()


def _require_driver(runtime: Any) -> None:
    driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        raise GpuError(
            "no NVIDIA driver answers: this machine has no GPU, or its driver is not installed (nvidia-smi "
            'lists GPUs); use backend="torch" or "numpy" here, they return the same bits'
        )
    if driver // 1000 < built // 1000:
        raise GpuError(
            f"the NVIDIA driver serves CUDA {_dotted(driver)}, this CuPy wants CUDA {_dotted(built)}; "
            f"install {_wheel(driver)} instead of {_wheel(built)}, or a newer driver"
        )


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _wheel(version: int) -> str:
    return f"cupy-cuda{version // 1000}x"


def available() -> bool:
    """Whether a GPU can be used; looked at once a process."""
    return _available(os.getpid())


@functools.cache
def _available(process: int) -> bool:
    try:
        require_gpu()
    except GpuError:
        return False
    return True


class CupyEngine:
    """Kernels on a GPU, see `dqt_core.kernels.engine`; they run on CuPy's current stream."""

    def __init__(self) -> None:
        self.xp = require_gpu()
        self._kernels: dict[tuple[Any, ...], Callable[[Sizes, Sizes, tuple[Any, ...]], None]] = {}

    def kernel(
        self, source: str, name: str, **defines: int
    ) -> Callable[[Sizes, Sizes, tuple[Any, ...]], None]:
        """See `dqt_core.kernels.engine.Engine.kernel`."""
        key = source, name, *sorted(defines.items())
        if key not in self._kernels:
            options = "--std=c++17", *(f"-D{macro}={value}" for macro, value in sorted(defines.items()))
            # One text, headers pasted in: CuPy's cache of compiled kernels does not look into headers.
            code = flat(f"{source}.cu") + structs.sizes_in_c()
            module = self.xp.RawModule(code=code, options=options)
            self._kernels[key] = functools.partial(_call, module.get_function(name))
        return self._kernels[key]

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """What `run` starts, as one CUDA graph: a function that starts it again on the current stream.

        Kernels must have run once before, so that none is compiled or loaded during the capture.
        """
        stream = self.xp.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with stream:
            stream.begin_capture()
            try:
                run()
            finally:
                graph = stream.end_capture()
        launch: Callable[[], None] = graph.launch
        return launch

    def stream_of(self, tensor: Any) -> contextlib.AbstractContextManager[Any]:
        """Make torch's current stream CuPy's too, on the tensor's device."""
        import torch

        stack = contextlib.ExitStack()
        stack.enter_context(self.xp.cuda.Device(tensor.device.index))
        stream = torch.cuda.current_stream(tensor.device).cuda_stream
        stack.enter_context(self.xp.cuda.ExternalStream(stream, tensor.device.index))
        return stack


def flat(file: str) -> str:
    """A file of `dqt_core.kernels` with the headers it includes written out."""
    text = kernels.source(file).replace("#pragma once\n", "")
    return re.sub(r'^#include "(\w+\.cuh)"$', lambda found: flat(found[1]), text, flags=re.MULTILINE)


def _call(function: Any, grid: Sizes, block: Sizes, args: tuple[Any, ...]) -> None:
    function(grid, block, tuple(map(_by_value, args)))


def _by_value(argument: Any) -> Any:
    """What CuPy copies to the kernel: of a NumPy array of one element its bytes, whatever they are."""
    if isinstance(argument, structs.Struct):
        return argument.packed(lambda array: int(array.data.ptr))
    # CuPy before version 14 takes None for an argument that is missing, not for a null pointer.
    return NULL if argument is None else argument


def engine() -> CupyEngine:
    """The engine of the current process; compiled kernels are kept in it.

    Raises
    ------
    GpuError
        As `require_gpu`; one that a process was forked with is not its own.
    """
    return _engine(os.getpid())


@functools.cache
def _engine(process: int) -> CupyEngine:
    return CupyEngine()


class Backend(gpu_plan.Backend):
    """A program on a GPU.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program, engine())

    def _taken(self, images: int, given: bool) -> gpu_plan.Plan:
        """One whose last run, on whatever stream, is over before this stream goes on."""
        xp, plan = engine().xp, super()._taken(images, given)
        if plan.done is not None:
            xp.cuda.get_current_stream().wait_event(plan.done)
        return plan

    def _give_back(self, plan: gpu_plan.Plan) -> None:
        xp = self.engine.xp
        plan.done = xp.cuda.get_current_stream().record(xp.cuda.Event(disable_timing=True))
        super()._give_back(plan)
