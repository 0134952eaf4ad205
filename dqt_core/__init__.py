"""Nested-integer quantization: codes, integer arithmetic, training, and programs that run on integers alone.

``import dqt_core`` needs numpy and safetensors. Training needs torch, which is imported at the first use of
`convert`, `lower`, `models` or `train`.
"""

import importlib
from typing import Any

from dqt_core import allocate, cost, data, integer, nested, program, results
from dqt_core.evaluation.cascade import cascade
from dqt_core.program import Program, ProgramError, load

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
    "results",
    "train",
]

_NEED_TORCH = {
    "convert": ("dqt_core.conversion", "convert"),
    "lower": ("dqt_core.lowering", "lower"),
    "models": ("dqt_core.models", None),
    "objective": ("dqt_core.objective", None),
    "train": ("dqt_core.train", None),
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module 'dqt_core' has no attribute {name!r}")
    module_name, attribute = _NEED_TORCH[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        message = f'dqt_core.{name} needs {error.name}: pip install "dqt_core[train]"'
        raise ImportError(message) from error
    return module if attribute is None else getattr(module, attribute)
