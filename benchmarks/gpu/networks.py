"""Programs with the shapes of real networks and random numbers, and the same networks in fp16 for cuDNN."""

import numpy as np

from dqt_core.backends.analysis import last_reads
from dqt_core.program import (
    IMAGE,
    Conv,
    Lookup,
    MaxPool,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
)

CHOICES = ((2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
R = 24


class Builder:
    """Adds layers to a program; values keep a spread of about a third of their range."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.ops, self.layers = [], []

    def conv(self, x, inputs, outputs, kernel=1, stride=1, switchable=True):
        name = f"conv{len(self.ops)}"
        weight = self.rng.integers(-128, 128, (outputs, kernel, kernel, inputs)).astype(np.int8)
        layer = len(self.layers) if switchable else None
        self.layers += [name] if switchable else []
        self.ops.append(Conv(name, weight, stride, kernel // 2, 1, layer, x, f"{name}:sum"))
        # products of random codes: 74 and about 80 are typical magnitudes
        gain = 60 / (74 * 80 * (kernel * kernel * inputs) ** 0.5)
        rows = len(CHOICES) if switchable else 1
        gains = gain * self.rng.uniform(0.8, 1.2, (rows, outputs)) * 2**R
        return Term(f"{name}:sum", gains.astype(np.int32), np.zeros((rows, outputs), np.int64), layer)

    def codes(self, *terms):
        out = f"codes{len(self.ops)}"
        self.ops.append(Requantize(terms, R, 0, 255, out))
        return out

    def skip(self, x):
        return Term(x, np.full((1, 1), 2 ** (R - 1), np.int32), np.zeros((1, 1), np.int64), None)

    def finish(self, name, x, channels, pixels, classes, size):
        self.ops.append(SumPool(x, "sums"))
        mean = Term("sums", np.full((1, 1), 2**R // pixels, np.int32), np.zeros((1, 1), np.int64), None)
        term = self.conv(self.codes(mean), channels, classes, switchable=False)
        self.ops.append(Scale(term, R, "logits"))
        return Program(name, tuple(self.ops), CHOICES, tuple(self.layers), (size, size, 3))

    def lookup(self):
        table = np.tile(np.arange(256) - 128, (3, 1)).astype(np.int8)
        self.ops.append(Lookup(table, "input", IMAGE))
        return "input"


def resnet18(channels=64, size=32, classes=10, stages=4):
    """ResNet-18 for small images: a 3x3 stem, no max-pool."""
    b = Builder()
    x = b.codes(b.conv(b.lookup(), 3, channels, 3, switchable=False))
    inputs = channels
    for stage in range(stages):
        outputs = channels << stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            first = b.codes(b.conv(x, inputs, outputs, 3, stride))
            second = b.conv(first, outputs, outputs, 3)
            shortcut = b.skip(x) if inputs == outputs else b.conv(x, inputs, outputs, 1, stride)
            x, inputs = b.codes(second, shortcut), outputs
    return b.finish("resnet18", x, inputs, (size >> (stages - 1)) ** 2, classes, size)


def resnet50(channels=64, size=224, classes=1000, blocks=(3, 4, 6, 3)):
    """ResNet-50 v1.5: the stride is in the 3x3 convolution."""
    b = Builder()
    stem = b.codes(b.conv(b.lookup(), 3, channels, 7, 2, switchable=False))
    b.ops.append(MaxPool(3, 2, 1, stem, "pooled"))
    x, inputs = "pooled", channels
    for stage, count in enumerate(blocks):
        middle = channels << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = b.codes(b.conv(x, inputs, middle))
            y = b.codes(b.conv(y, middle, middle, 3, stride))
            last = b.conv(y, middle, 4 * middle)
            shortcut = b.skip(x) if inputs == 4 * middle else b.conv(x, inputs, 4 * middle, 1, stride)
            x, inputs = b.codes(last, shortcut), 4 * middle
    side = size // 4 // (1 << (len(blocks) - 1))
    return b.finish("resnet50", x, inputs, side * side, classes, size)


class Fp16Twin:
    """The same layers in fp16, channels last, batch norm folded into the convolutions."""

    def __init__(self, program, device):
        import torch

        self._torch, self._ops, self._weights = torch, program.ops, {}
        self._last_reads = last_reads(program.ops)
        kind = torch.float16 if device == "cuda" else torch.float32
        for op in program.ops:
            if isinstance(op, Conv):
                weight = torch.from_numpy(op.weight.astype(np.float32) / 128).permute(0, 3, 1, 2)
                weight = weight / weight[0].numel() ** 0.5
                self._weights[op.out] = (
                    weight.to(device, kind).contiguous(memory_format=torch.channels_last),
                    torch.zeros(len(op.weight), device=device, dtype=kind),
                )
        self.kind = kind

    def __call__(self, images):
        """Logits of a (N, 3, H, W) tensor."""
        functional, values = self._torch.nn.functional, {}
        for i, op in enumerate(self._ops):
            if isinstance(op, Lookup):
                values[op.out] = images
            elif isinstance(op, Conv):
                weight, bias = self._weights[op.out]
                values[op.out] = functional.conv2d(values[op.x], weight, bias, op.stride, op.padding)
            elif isinstance(op, Requantize):
                total = values[op.terms[0].x]
                for term in op.terms[1:]:
                    total = total + values[term.x]
                values[op.out] = (
                    functional.relu(total, inplace=True) if len(op.terms) > 1 else functional.relu(total)
                )
            elif isinstance(op, MaxPool):
                values[op.out] = functional.max_pool2d(values[op.x], op.kernel, op.stride, op.padding)
            elif isinstance(op, SumPool):
                values[op.out] = values[op.x].mean((2, 3), keepdim=True)
            elif isinstance(op, Scale):
                values[op.out] = values[op.term.x]
            for name in self._last_reads[i]:
                values.pop(name, None)
        return values["logits"].flatten(1)
