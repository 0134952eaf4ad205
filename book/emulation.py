"""Kernels in the book's cells: compiled from a text and run on the CPU; where that cannot be, a sentence."""

import os
import shutil
import sys

from dqt_core.kernels.emulator import Emulator, EmulatorError

__all__ = ["EmulatorError", "compiled", "cpu", "missing"]


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


def compiled(text, name, **options):
    """A kernel from its text, behind the header that all kernels share; options: `backwards`, `checked`."""
    return Emulator(sources={"mine.cu": f'#include "common.cuh"\n{text}'}, **options).kernel("mine", name)
