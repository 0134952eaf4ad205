"""The networks of a program in floats, for torch and for ONNX Runtime: the same shapes, batch norm folded."""

import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch.nn import functional

from dqt_core.program import Conv, Lookup, MaxPool, Requantize, SumPool


def floats(op):
    """OIHW weights that keep the spread of what they convolve."""
    weight = op.weight.astype(np.float32) / 128
    return (weight / weight[0].size ** 0.5).transpose(0, 3, 1, 2).copy()


class TorchNet(torch.nn.Module):
    """The program's layers, channels last."""

    def __init__(self, program, dtype):
        super().__init__()
        self.ops = [op for op in program.ops if not op.controller]
        self.convs = torch.nn.ModuleDict()  # modules: torchao looks for them
        for op in self.ops:
            if isinstance(op, Conv):
                weight = torch.from_numpy(floats(op))
                outputs, inputs, *kernel = weight.shape
                conv = torch.nn.Conv2d(inputs, outputs, kernel, op.stride, op.padding)
                conv.weight.data, conv.bias.data = weight, torch.zeros(outputs)
                self.convs[op.out.replace(".", "_")] = conv
        self.to(dtype, memory_format=torch.channels_last)

    def forward(self, x):
        values = {}
        for op in self.ops:
            if isinstance(op, Lookup):
                out = x
            elif isinstance(op, Conv):
                out = self.convs[op.out.replace(".", "_")](values[op.x])
            elif isinstance(op, Requantize):
                out = values[op.terms[0].x]
                for term in op.terms[1:]:
                    out = out + values[term.x]
                out = functional.relu(out)
            elif isinstance(op, MaxPool):
                out = functional.max_pool2d(values[op.x], op.kernel, op.stride, op.padding)
            elif isinstance(op, SumPool):
                out = values[op.x].mean((2, 3), keepdim=True)
            else:
                out = values[op.term.x].flatten(1)
            values[op.out] = out
        return out


def torch_peer(program, images, dtype, compiled=False):
    """A function that runs the network on the images."""
    net = TorchNet(program, dtype).eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    run = torch.compile(net, dynamic=False) if compiled else net

    @torch.inference_mode()
    def peer():
        return run(x)

    peer()
    return peer


def pt2e_peer(program, images):
    """PyTorch's own int8: exported, quantized for x86 by torchao on these images, compiled by Inductor."""
    import torch._inductor.config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
    net = torch.export.export(TorchNet(program, torch.float32).eval(), (x,)).module()
    rules = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(net, rules)
    observed(x)
    quantized = convert_pt2e(observed)
    # Only frozen weights are laid out for the int8 convolutions of oneDNN.
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        run = torch.compile(quantized, dynamic=False)
        run(x)

    @torch.no_grad()
    def peer():
        return run(x)

    return peer


def onnx_file(program, path):
    """Write the network in float32."""
    nodes, constants = [], []
    for op in program.ops:
        if isinstance(op, Lookup):
            nodes.append(helper.make_node("Identity", ["image"], [op.out]))
        elif isinstance(op, Conv):
            bias = np.zeros(len(op.weight), np.float32)
            constants += [numpy_helper.from_array(floats(op), op.out + "w")]
            constants += [numpy_helper.from_array(bias, op.out + "b")]
            shape = {
                "kernel_shape": op.weight.shape[1:3],
                "strides": [op.stride] * 2,
                "pads": [op.padding] * 4,
            }
            nodes.append(helper.make_node("Conv", [op.x, op.out + "w", op.out + "b"], [op.out], **shape))
        elif isinstance(op, Requantize):
            x = op.terms[0].x
            for term in op.terms[1:]:
                nodes.append(helper.make_node("Add", [x, term.x], [op.out + "sum"]))
                x = op.out + "sum"
            nodes.append(helper.make_node("Relu", [x], [op.out]))
        elif isinstance(op, MaxPool):
            shape = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2, "pads": [op.padding] * 4}
            nodes.append(helper.make_node("MaxPool", [op.x], [op.out], **shape))
        elif isinstance(op, SumPool):
            nodes.append(helper.make_node("GlobalAveragePool", [op.x], [op.out]))
        else:
            nodes.append(helper.make_node("Flatten", [op.term.x], [op.out]))
    height, width, _ = program.image_shape
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, height, width])
    y = helper.make_tensor_value_info(program.ops[-1].out, TensorProto.FLOAT, ["n", "classes"])
    graph = helper.make_graph(nodes, program.name, [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class _Calibration(CalibrationDataReader):
    def __init__(self, images):
        self.rest = iter([{"image": images}])

    def get_next(self):
        return next(self.rest, None)


def quantized_file(source, path, images):
    """ONNX Runtime's own static quantization: uint8 activations, int8 weights, a step for every channel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(source, path, _Calibration(as_nchw(images)), per_channel=True, **kinds)
    return path


def as_nchw(images):
    return images.transpose(0, 3, 1, 2).astype(np.float32)


def onnx_peer(path, images, threads):
    """A function that runs an ONNX file on the images."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"image": as_nchw(images)}
    return lambda: session.run(None, feed)
