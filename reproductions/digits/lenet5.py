"""Train LeNet-5 on the embedded digits in grey: float, then nested codes; lower it to integers and record it.

    python -m reproductions.digits.lenet5

It takes minutes on a CPU and no download, and writes the program beside the other networks, and its record.
"""

from pathlib import Path

import torch

from dqt_book.networks import LeNet5
from dqt_book.places import CHECKPOINTS, ROOT
from dqt_core import convert, data, lower, results, train
from dqt_core.evaluation.cascade import thresholds_for
from dqt_core.training.objective import Objective

RECORD = ROOT / "reproductions" / "results" / "lenet5_digits" / "embedded.json"
WIDTHS, SEED = (2, 3, 4, 6, 8), 0
FLOAT_EPOCHS, NESTED_EPOCHS = 30, 20
STEPS, SHARE = (2, 4), 0.2  # of a cascade, and of the training images that may look twice


def trained(
    out: Path | None = None, float_epochs: float = FLOAT_EPOCHS, nested_epochs: float = NESTED_EPOCHS
):
    """The program; checkpoints of its training go to `out`."""
    digits = data.embedded(channels=1)
    torch.manual_seed(SEED)
    net, usual = LeNet5(), {"seed": SEED, "flip": False, "precision": "no", "batch_size": 64}
    train.fit(net, digits, train.Recipe(float_epochs, 0.05, **usual), out=out and out / "float")
    nested = convert(net, digits.train_images[:512], digits.mean, digits.std, WIDTHS, controller=False)
    train.fit(nested, digits, train.Recipe(nested_epochs, 0.02, **usual), Objective(), out and out / "nested")
    return lower(nested, "lenet5_embedded")


def record(program):
    """What the program answers on the test images: at each width, and looking twice."""
    digits = data.embedded(channels=1)
    thresholds = thresholds_for(program, digits.train_images, STEPS, SHARE)
    return {
        "name": program.name,
        "title": "LeNet-5 on scikit-learn's digits, in grey",
        "dataset": {"name": "embedded", "split": "test", "limit": None, "checksums": digits.checksums},
        "training": f"{FLOAT_EPOCHS} float epochs, then {NESTED_EPOCHS} of nested codes; seed {SEED}",
        "programs": {"trained": program.digest},
        "rows": [
            *(results.evaluate(program, digits, width) for width in WIDTHS[::-1]),
            results.evaluate_cascade(program, digits, STEPS, thresholds, label="2, then 4"),
        ],
        "provenance": results.provenance(),
    }


def main():
    program = trained(ROOT / "runs" / "lenet5_digits")
    print(program.save(CHECKPOINTS).name)
    written = results.write(record(program), RECORD)
    for row in results.read(written)["rows"]:
        print(f"{row['widths']:>9}: {row['correct']} of {row['images']}")


if __name__ == "__main__":
    main()
