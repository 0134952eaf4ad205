"""A network as a flat list of integer operations: built by `lower`, run by any backend with the same bits.

`operations`  what a program is made of: frozen dataclasses, and the shape that each makes
`contract`    what a program must be, checked where one is made or loaded; `header`, before its operations;
              `bounds` are those of its sums, `refusal` is how an error says it
`program`     `Program` itself: it runs, it is saved
`storage`     the file
"""

from dqt_core.program.operations import (
    IMAGE,
    Choice,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Op,
    Product,
    Requantize,
    Scale,
    SumPool,
    Term,
    inputs,
)
from dqt_core.program.program import (
    BACKENDS,
    BackendName,
    Program,
    Result,
    Widths,
    execute,
    is_forked,
    load,
    once,
    step_by_step,
)
from dqt_core.program.refusal import ProgramError

__all__ = [
    "BACKENDS",
    "IMAGE",
    "BackendName",
    "Choice",
    "Choose",
    "Concat",
    "Conv",
    "Lookup",
    "MaxPool",
    "Op",
    "Product",
    "Program",
    "ProgramError",
    "Requantize",
    "Result",
    "Scale",
    "SumPool",
    "Term",
    "Widths",
    "execute",
    "inputs",
    "is_forked",
    "load",
    "once",
    "step_by_step",
]
