"""A QONNX file executed by the package qonnx: what the tests and the record of digests share."""

import functools
from unittest import mock

from dqt_core.export._onnx_graph import IR_VERSION


def execute(path, images):
    """The logits of all images; ImportError without qonnx."""
    from qonnx.core import onnx_exec
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(str(path)).transform(ChangeBatchSize(len(images))).transform(InferShapes())
    # qonnx makes a model of every node, in onnx's newest format, which ONNX Runtime may not read yet
    make_model = functools.partial(onnx_exec.qonnx_make_model, ir_version=IR_VERSION)
    with mock.patch.object(onnx_exec, "qonnx_make_model", make_model):
        return onnx_exec.execute_onnx(model, {"images": images})["logits"]
