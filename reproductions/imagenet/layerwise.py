"""A network without training, its codes and tables fitted layer by layer: what each part is worth.

    python -m reproductions.imagenet.layerwise --imagenet-root DIR --sample --weights FILE --pads-after
    python -m reproductions.imagenet.layerwise --network resnet50 --imagenet-root DIR --sample --weights FILE

Every part is measured by its divergence from the float network on training images that set nothing, and some by
accuracy on the validation images. A run that was interrupted goes on where it stopped.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqt_core import convert, lower, results
from dqt_core.data import imagenet
from dqt_core.data.holding import held
from dqt_core.training import calibration
from dqt_core.training.conversion.quantization import float_logits
from dqt_core.training.layerwise import fit_layers
from dqt_core.training.network import NestedNet
from reproductions.imagenet import evaluate

RESULTS = Path(__file__).parents[1] / "results" / "layerwise"
WIDTHS = (4, 6, 8)
# by the record's name of a part: whether its accuracy is measured too, and how layers are fitted, if they are
PARTS: dict[str, tuple[bool, dict[str, Any] | None]] = {
    "rounded once, tables corrected": (True, None),
    "tables layer by layer": (True, {"codes": False}),
    "and codes chosen": (True, {"mend_inputs": False}),
    "and inputs mended": (True, {}),
    "codes chosen, widths alike": (False, {"mend_inputs": False, "balance": 1.0}),
}


def fitted(net: NestedNet, original: NestedNet, batches: list[np.ndarray], part: str) -> NestedNet:
    """A copy of the network, with one part of the work done."""
    _, options = PARTS[part]
    net = copy.deepcopy(net)
    if options is None:
        calibration.correct_norms(net, batches)
    else:
        fit_layers(net, original, np.concatenate(batches), **options)
    return net


def run(options: argparse.Namespace) -> Path:
    """Every part; returns the path of the record, which is written after each."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with held(out / "lock", f"evaluating into {out}"):
        return _parts(evaluate.Run(options), options)


def _parts(one: evaluate.Run, options: argparse.Namespace) -> Path:
    mean, std = imagenet.MEAN, imagenet.STD
    original = convert(one.float_net, one.calibration[0], mean, std, WIDTHS, controller=False)
    wanted = float_logits(one.float_net, original, one.held_out)
    net = copy.deepcopy(original)
    calibration.round_once(net)
    calibration.set_steps(net, one.calibration, "error")
    record: dict[str, Any] = {
        "name": f"{options.network}_layerwise",
        "title": options.title,
        "network": {"name": options.network, "weights": options.origin, "pads_after": options.pads_after},
        "dataset": evaluate.described(one.files, options.limit),
        "images": {"fitted": sum(map(len, one.calibration)), "held out": sum(map(len, one.held_out))},
        "programs": {},
        "parts": [],
        "rows": [],
    }
    for part, (is_evaluated, _) in PARTS.items():
        start = time.process_time()
        own = fitted(net, original, one.calibration, part)
        spent = round(time.process_time() - start, 1)
        far = {str(width): calibration.divergence(own, one.held_out, wanted, width) for width in WIDTHS}
        record["parts"].append({"part": part, "divergence": far, "cpu_seconds": spent})
        print(part, {width: round(value, 4) for width, value in far.items()}, spent, flush=True)
        if is_evaluated:
            program = lower(own, options.network)
            record["programs"][part] = program.digest
            for width in reversed(WIDTHS):
                row = evaluate.integer_row(program, width, f"{width} bits, {part}", one.files, options)
                record["rows"].append({"part": part, **row})
                print(part, width, row["correct"], "of", row["images"], flush=True)
        record["threads"], record["provenance"] = torch.get_num_threads(), results.provenance()
        results.write(record, RESULTS / f"{options.network}.json")
    return RESULTS / f"{options.network}.json"


if __name__ == "__main__":
    print(run(evaluate.options()))
