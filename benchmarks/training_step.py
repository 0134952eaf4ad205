"""Time of one training step of ResNet-18: float, torchao's QAT, one width, K widths, K with the controller;
float and K widths again, compiled by torch.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step --threads 1 --channels 16 64

Rows take turns, so that what else the machine does falls on all of them; the ratios count, the seconds do
not. One pass is the forward and backward of the float network.
"""

import argparse
import statistics
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from dqt_core import convert, models, results
from dqt_core.evaluation.consistency import write_signed
from dqt_core.training.objective import Objective

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (2, 3, 4, 6, 8)
SHARE = 0.25
SAMPLED = 3


def network(channels, widths=None, controller=False):
    torch.manual_seed(0)
    net = models.resnet18(classes=10, channels=channels, small_images=True)
    if widths is not None:
        images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
        net = convert(net, images, (0.5,) * 3, (0.25,) * 3, widths, controller=controller)
    return net.to(memory_format=torch.channels_last).train()


def torchao_qat(channels, batch):
    """PyTorch's own quantization-aware training, 8 bits: exported, fake quantizers by torchao."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    exported = torch.export.export(network(channels), (example,)).module()
    rules = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    prepared = prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(rules))
    return move_exported_model_to_train(prepared)


def float_loss(net, images, labels):
    return functional.cross_entropy(net(images).float(), labels)


def nested_loss(net, images, labels, **options):
    return Objective(**options)(net, images, labels, 1.0)[0]


def step(net, loss, images, labels):
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(net, images, labels)
    value.backward()
    for parameter in net.parameters():
        parameter.grad = None


def compiled(net, stack):
    """A network of nested codes whose passes are compiled until the stack is closed."""
    return stack.enter_context(net.compiled())


def rows(channels, batch, stack):
    """Name, number of passes, network and loss of every row."""
    count = len(WIDTHS)
    dynamic = network(channels, WIDTHS, controller=True)
    fused = compiled(network(channels, WIDTHS), stack)
    sampled = partial(nested_loss, sampled_widths=SAMPLED)
    shared = partial(nested_loss, controller_share=SHARE)
    return [
        ("float", 1, network(channels), float_loss),
        ("torchao QAT, 8 bits", 1, torchao_qat(channels, batch), float_loss),
        ("one width (4)", 1, network(channels, (4,)), nested_loss),
        ("float, compiled", 1, torch.compile(network(channels), dynamic=False), float_loss),
        (f"{count} widths, compiled", count, fused, nested_loss),
        (f"{SAMPLED} sampled widths, compiled", SAMPLED, fused, sampled),
        (f"{count} widths", count, network(channels, WIDTHS), nested_loss),
        (f"{count} widths + controller", count + 1, dynamic, nested_loss),
        (f"{count} widths + controller on {SHARE:.0%} of the batch", count + SHARE, dynamic, shared),
    ]


def measure(channels, batch, repeats):
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    with ExitStack() as stack:
        table = rows(channels, batch, stack)
        seconds = [[] for _ in table]
        for turn in range(repeats + 1):
            for times, (_, _, net, loss) in zip(seconds, table, strict=True):
                start = time.process_time()
                step(net, loss, images, labels)
                if turn:  # the first one warms up, and compiles
                    times.append(time.process_time() - start)
    return [
        summary(name, passes, times, seconds[0])
        for times, (name, passes, *_) in zip(seconds, table, strict=True)
    ]


def summary(name, passes, times, float_times):
    ratios = [own / other for own, other in zip(times, float_times, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "row": name,
        "passes": passes,
        "cpu_seconds": round(statistics.median(times), 3),
        "ratio_to_float": round(ratio, 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "ratio_to_sum_of_passes": round(ratio / passes, 2),
    }


def show(table):
    print(f"{'':48}{'CPU s':>8}{'/ float':>9}{'range':>16}{'/ passes':>10}")
    for row in table:
        low, high = row["ratio_range"]
        print(
            f"{row['row']:48}{row['cpu_seconds']:8.3f}{row['ratio_to_float']:9.2f}{f'{low} to {high}':>16}"
            f"{row['ratio_to_sum_of_passes']:10.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "reproductions/results/training_step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tables = {}
    for channels in options.channels:
        tables[str(channels)] = measure(channels, options.batch, options.repeats)
        print(f"ResNet-18, {channels} channels, batch {options.batch}, bf16, {options.threads} thread(s)")
        show(tables[str(channels)])
    settings = {"batch": options.batch, "repeats": options.repeats, "threads": options.threads}
    record = {"name": "training_step", **settings, "by_channels": tables, "provenance": results.provenance()}
    write_signed(record, options.out)


if __name__ == "__main__":
    main()
