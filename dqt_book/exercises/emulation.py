"""Kernels in the book's cells: compiled from a text and run on the CPU; where that cannot be, a sentence."""

import os
import shutil
import sys

import numpy as np

from dqt_core.backends import cupy_gpu
from dqt_core.kernels.emulator import Emulator, EmulatorError

__all__ = ["EmulatorError", "compiled", "cpu", "missing", "on_gpu"]


def missing():
    """What the emulator lacks on this computer; empty if it can run. Any other failure is an error."""
    compiler = os.environ.get("CXX") or "g++"
    if sys.platform != "linux":
        return f"the emulator needs Linux, this is {sys.platform}"
    if shutil.which(compiler) is None:
        return f"the emulator needs a C++ compiler, {compiler} was not found; install g++ or set CXX"
    return ""


def cpu():
    """Whether kernels can run on this CPU; where they cannot, a sentence says why."""
    if lacks := missing():
        print(f"This cell was not run: {lacks}.")
    return not lacks


def compiled(text, name, header="common.cuh", **options):
    """A kernel from its text, behind the header that all kernels share; options: `backwards`, `checked`."""
    return Emulator(sources={"mine.cu": f'#include "{header}"\n{text}'}, **options).kernel("mine", name)


def on_gpu(text, name):
    """The same text for a GPU, called with NumPy arrays as `compiled` is; None where no GPU answers."""
    if not cupy_gpu.available():
        return None
    cupy = cupy_gpu.require_gpu()
    kernel = cupy.RawModule(code=text, options=("--std=c++17",)).get_function(name)

    def run(grid, block, arguments):
        there = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kernel(grid, block, tuple(there))
        for here, result in zip(arguments, there, strict=True):
            if isinstance(here, np.ndarray):
                here[...] = result.get()

    return run
