"""A program as a file that something else runs, with the bits of `Program.run`.

========== ==================================================================================
`onnx`     one ONNX model of integer operators, whose widths are an input
`c`        one C99 file, put together from the functions in ``templates/``
`qdq`      one width as a QDQ model, for tools that know nothing else; close, and not exact
========== ==================================================================================

``python -m dqt_core.export PROGRAM.safetensors --onnx OUT.onnx --c OUT.c`` writes the first two.
"""

from dqt_core.export.c import Sizes, sizes, to_c
from dqt_core.export.onnx import to_onnx
from dqt_core.export.qdq import to_qdq

__all__ = ["Sizes", "sizes", "to_c", "to_onnx", "to_qdq"]
