"""A program as a file that something else runs, with the bits of `Program.run`.

========== ==================================================================================
`onnx`     one ONNX model of integer operators, whose widths are an input
`c`        one C99 file, put together from the functions in ``templates/``
`qonnx`    some widths as a QONNX model, whose operator `Trunc` is a switch
`qdq`      one width as a QDQ model, for tools that know nothing else; close, and not exact
========== ==================================================================================

``python -m dqt_core.export PROGRAM.safetensors --onnx OUT.onnx --c OUT.c`` writes the first two,
``--qonnx OUT.onnx --widths 4`` the third.
"""

from dqt_core.export.c import Sizes, sizes, to_c
from dqt_core.export.onnx import to_onnx
from dqt_core.export.qdq import to_qdq
from dqt_core.export.qonnx import to_qonnx

__all__ = ["Sizes", "sizes", "to_c", "to_onnx", "to_qdq", "to_qonnx"]
