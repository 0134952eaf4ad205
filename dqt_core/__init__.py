"""Nested-integer quantization: codes, integer arithmetic, training, and programs that run on integers alone.

Read three rooms and you have the idea: `nested` (a code of 8 bits holds the codes of all lower widths),
`integer` (products and sums; `integer.rounding`, where they become codes again), `program` (a network as a
list of integer operations, what makes it valid, its file). `backends/numpy_ref` then runs a program in under
a hundred lines. How a network comes to be one say `straight_through`, `layers`, `network`, `controller`,
`objective` and `lowering` of `training`. Chapters 2 to 10 of the book are about these files.

The rooms, each above those it imports: `kernels` (CUDA, and an emulator of it on the CPU), `backends` (ways
to run a program, one digest), `export` (a program as an ONNX or a C file), `data`, `evaluation` (costs,
records, the best widths), `training` (from a float network in torch, which `training.conversion` reads, to a
program). `selftest` asks every way to run. ``python -m dqt_core`` quantizes a float model, and verifies a
program against its record.

``import dqt_core`` needs numpy and safetensors. What needs more is imported at its first use.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from dqt_core import data, integer, nested, program
from dqt_core.program import Program, ProgramError, load

if TYPE_CHECKING:
    from dqt_core.evaluation import allocate, cost, results, statistics
    from dqt_core.evaluation.cascade import cascade
    from dqt_core.training import models, objective, train
    from dqt_core.training.conversion.conversion import convert
    from dqt_core.training.conversion.quantization import quantize
    from dqt_core.training.lowering import lower

__version__ = "0.1.0"
__all__ = [
    "Program",
    "ProgramError",
    "allocate",
    "cascade",
    "convert",
    "cost",
    "data",
    "integer",
    "load",
    "lower",
    "models",
    "nested",
    "objective",
    "program",
    "quantize",
    "results",
    "statistics",
    "train",
]

# name: its module, and what of the module; None: the module itself
_AT_FIRST_USE = {
    "allocate": ("dqt_core.evaluation.allocate", None),
    "cascade": ("dqt_core.evaluation.cascade", "cascade"),
    "convert": ("dqt_core.training.conversion.conversion", "convert"),
    "cost": ("dqt_core.evaluation.cost", None),
    "lower": ("dqt_core.training.lowering", "lower"),
    "models": ("dqt_core.training.models", None),
    "objective": ("dqt_core.training.objective", None),
    "quantize": ("dqt_core.training.conversion.quantization", "quantize"),
    "results": ("dqt_core.evaluation.results", None),
    "statistics": ("dqt_core.evaluation.statistics", None),
    "train": ("dqt_core.training.train", None),
}


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module 'dqt_core' has no attribute {name!r}")
    module_name, attribute = _AT_FIRST_USE[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # `from dqt_core import train` passes this error on; to `hasattr` a name that cannot be had is none.
        if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
            raise
        raise AttributeError(str(error), name=name, obj=sys.modules[__name__]) from error
    return module if attribute is None else getattr(module, attribute)
