"""Masters that are floored against masters that are rounded: what a view gains that rounds only once.

    python -m reproductions.digits.floored

A view of a rounded activation rounds a second time; of a floored one it does not. Both are read from the same
float networks, with statistics estimated anew for each width and then trained alike, on the digits at 8 x 8. It
takes minutes on a CPU and no download.
"""

import copy
import dataclasses

import torch
from torch.nn import functional

from dqt_book.places import ROOT
from dqt_core import convert, data, models, results, train
from dqt_core.evaluation.consistency import write_signed
from dqt_core.training import calibration
from dqt_core.training.layers import Quantizer
from dqt_core.training.objective import Objective

RECORD = ROOT / "reproductions" / "results" / "floored_master.json"
SCHEMA = "dqt-floored-1"
WIDTHS, SEEDS = (2, 3, 4, 6, 8), (0, 1, 2)
USUAL = train.Recipe(epochs=10, precision="no", augment=False)
FINE = dataclasses.replace(USUAL, epochs=5, lr=0.02)


def small():
    """The embedded digits at the 8 x 8 pixels that they really have."""
    digits = data.load("embedded")
    smaller = {name: getattr(digits, name)[:, ::4, ::4].copy() for name in ("train_images", "test_images")}
    return dataclasses.replace(digits, **smaller)


def floored(net):
    """A copy whose activations are floored to master codes: rounding half a step less is a floor."""
    net = copy.deepcopy(net)
    for part in net.modules():
        if isinstance(part, Quantizer) and not part.signed:
            part.register_forward_pre_hook(lambda q, given: (given[0] - q.log_step.exp() / 2, *given[1:]))
    return net


def trained(net, digits, recipe, *loss):
    """The network after a recipe."""
    train.fit(net, digits, recipe, *loss)
    return net.eval()


def measured(net, digits, wanted):
    """At each width: how many test images are right, the loss, and the divergence from the float network."""
    images, labels = digits.test_images, torch.from_numpy(digits.test_labels).long()
    with torch.no_grad():
        logits = {b: net(calibration.inputs(net, images), b) for b in WIDTHS}
    return {
        str(b): {
            "correct": int((out.argmax(1) == labels).sum()),
            "loss": float(functional.cross_entropy(out, labels)),
            "nats": calibration.divergence(net, [images], [wanted], b),
        }
        for b, out in logits.items()
    }


def rows(seed, digits, usual=USUAL, fine=FINE):
    """Both masters on the float network of a seed: with new statistics alone, and trained."""
    torch.manual_seed(seed)
    net = models.ResNet(models.BasicBlock, (1, 1, 1, 1), 10, 8, small_images=True)
    net = trained(net, digits, dataclasses.replace(usual, seed=seed))
    rounded = convert(net, digits.train_images[:512], digits.mean, digits.std, WIDTHS, controller=False)
    with torch.no_grad():
        wanted = net(calibration.inputs(rounded, digits.test_images))
    for master, start in (("rounded", rounded), ("floored", floored(rounded))):
        anew = copy.deepcopy(start)
        after = trained(
            copy.deepcopy(start), digits, dataclasses.replace(fine, seed=seed), Objective(alpha=1)
        )
        for kind, twin in (("statistics", anew), ("trained", after)):
            train.recalibrate(twin, digits)
            at = measured(twin.eval(), digits, wanted)
            yield {"seed": seed, "master": master, "kind": kind, "at": at}


def main():
    digits = small()
    record = {
        "schema": SCHEMA,
        "title": "Floored and rounded masters, the digits at 8 x 8",
        "dataset": {"name": "embedded", "split": "test", "checksums": digits.checksums},
        "images": len(digits.test_labels),
        "training": {"float": dataclasses.asdict(USUAL), "nested": dataclasses.asdict(FINE)},
        "rows": [row for seed in SEEDS for row in rows(seed, digits)],
        "provenance": results.provenance(),
    }
    write_signed(record, RECORD)


if __name__ == "__main__":
    main()
