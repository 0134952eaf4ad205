"""PyTorch's own way to 8 bits: quantization-aware training on the exported network, by torchao (PT2E).

Its fake quantizers take ranges from moving averages of minima and maxima: of 8-bit weights for every channel, of 8-bit
activations for every tensor, with a zero point; the first and the last layer are no exception. It trains by the recipe
of all rows, in bfloat16 too, but eagerly. Afterwards torchao folds the batch norms and converts: weights are stored as
int8 and activations rounded to uint8. So it is evaluated, with all codes made real again around every convolution,
which multiplies in float32. On an x86 processor Inductor would make int8 convolutions with float32 scales of that; no
answer of either is exact in the sense of this package.

There is no row at 4 bits: torchao's quantizer for convolutions knows 8 bits alone, its layers for training at 4
bits are linear ones.
"""

import copy
import dataclasses
import importlib.metadata
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from dqt_core import results, train
from dqt_core._extras import needed
from reproductions.cifar10.run import Run, batches_of

BITS = 8
SAMPLE = 512  # training images, whose ranges the fake quantizers start from


class Prepared(nn.Module):
    """A float network with torchao's fake quantizers.

    Parameters
    ----------
    net : Module
        Left unchanged.
    sample : float32 tensor, (N, C, H, W)
    """

    def __init__(self, net: nn.Module, sample: Tensor) -> None:
        super().__init__()
        with needed("row torchao-8", "dev"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its import: what it cannot load here, what torch is to drop
            from torchao.quantization.pt2e import quantize_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
        any_number = ({0: torch.export.Dim.AUTO},)
        own = copy.deepcopy(net).eval()  # the exported network would train the given one's weights
        exported = torch.export.export(own, (sample[:4],), dynamic_shapes=any_number).module()
        rules = x86.get_default_x86_inductor_quantization_config(is_qat=True)
        self.graph = quantize_pt2e.prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(rules))
        with torch.no_grad():
            self.eval()(sample)

    def train(self, mode: bool = True) -> "Prepared":
        """An exported network is told in a way of its own."""
        from torchao.quantization import pt2e

        (pt2e.move_exported_model_to_train if mode else pt2e.move_exported_model_to_eval)(self.graph)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)

    def converted(self) -> fx.GraphModule:
        """What torchao makes of it after its training."""
        from torchao.quantization.pt2e import quantize_pt2e

        return quantize_pt2e.convert_pt2e(self.eval().graph)


def torchao(run: Run) -> list[results.Record]:
    """Trained as the rows of one width are, with the same batches; then converted."""
    run.settings = dataclasses.replace(run.settings, compiled=False)
    net = Prepared(run.float_net, batches_of(run.images, run.images.train_images[:SAMPLE], SAMPLE)[0])
    run.fit(net, train.CrossEntropy())
    converted = net.converted()
    run.training |= {"converted": contents(converted), "torchao": importlib.metadata.version("torchao")}
    return [run.simulated(lambda x, width: converted(x), str(BITS), BITS)]


def contents(converted: fx.GraphModule) -> dict[str, Any]:
    """What a converted network holds: its operations by kind, its stored tensors by type."""
    calls = Counter(str(n.target) for n in converted.graph.nodes if n.op == "call_function")
    types = Counter(str(tensor.dtype) for tensor in converted.state_dict().values())
    return {"operations": dict(sorted(calls.items())), "tensors": dict(sorted(types.items()))}
