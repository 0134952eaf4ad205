"""The GPU's backend without a GPU: its plans and its kernels, on the emulator of `dqt_core.kernels`.

For checking and for looking inside, not for speed: every thread of the GPU is run one after another.
"""

import functools

from dqt_core.backends import gpu_plan
from dqt_core.kernels.emulator import Emulator
from dqt_core.program import Program


@functools.cache
def engine() -> Emulator:
    """The engine of the current process; compiled kernels are kept in it."""
    return Emulator()


class Backend(gpu_plan.Backend):
    """A program on the emulator.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program, engine())
