"""The data of the live demo: two networks for digits, their test images, and the digests of what they answer.

    python -m dqt_book.widgets.live_demo FILE

writes one assignment in JavaScript, so that a page opened from disk can load it, as building the book does.
Nothing of it is kept in the repository: it follows from the checkpoints and from scikit-learn's digits.
"""

import base64
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import dqt_core
from dqt_book.places import ROOT, network
from dqt_core import cascade, cost, data, results
from dqt_core.evaluation.cascade import thresholds_for

NAME = "live-demo-data.js"
STEPS, SHARE = (2, 4), 0.2  # of the cascade, and of the training images that may be looked at twice
# its title, and its record in `reproductions/results`
NETWORKS = (
    ("ResNet-18, 8 channels, with a controller", "resnet18_cifar"),
    ("LeNet-5, for grey images", "lenet5_digits"),
)


def program_data(program):
    """A program as the script runs it: its operations as JSON, its tables in base64."""
    sizes = cost.layer_sizes(program)
    return {
        "name": program.name,
        "digest": program.digest,
        "imageShape": program.image_shape,
        "choices": program.choices,
        "layers": program.layers,
        "rounding": program.rounding,
        "ops": [_plain(op) for op in program.ops],
        "macs": [size.macs for size in sizes if size.layer is not None],
        "fixedMacs": sum(size.macs for size in sizes if size.layer is None and not size.controller),
        "controllerMacs": sum(size.macs for size in sizes if size.controller),
    }


def _plain(value):
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        encoded = base64.b64encode(little.tobytes()).decode()
        return {"dtype": value.dtype.name, "shape": value.shape, "base64": encoded}
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def grey(images):
    """The 8x8 bytes that each 32x32 picture of the embedded set repeats."""
    return np.ascontiguousarray(images[:, ::4, ::4, 0])


def network_data(title, folder):
    """A network with the digests of its logits: at each width as recorded, looking twice as computed now."""
    record = results.read(ROOT / "reproductions" / "results" / folder / "embedded.json")
    program = dqt_core.load(network(record, "trained"))
    digits = data.embedded(channels=program.image_shape[2])
    thresholds = thresholds_for(program, digits.train_images, STEPS, SHARE)
    twice = cascade(program, digits.test_images, STEPS, thresholds)
    recorded = {row["widths"]: row["logits"] for row in record["rows"]}
    return {
        "title": title,
        "program": program_data(program),
        "digests": recorded | {"cascade": twice.digest},
        # as text: a double does not hold every int64
        "cascade": {"steps": STEPS, "thresholds": [str(threshold) for threshold in thresholds]},
    }


def demo_data():
    """Everything the page needs."""
    digits = data.embedded()
    return {
        "networks": [network_data(title, folder) for title, folder in NETWORKS],
        "images": _plain(grey(digits.test_images)),
        "labels": digits.test_labels.tolist(),
    }


def as_script(record):
    return f"var liveDemoData = {json.dumps(record, separators=(',', ':'))};\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(as_script(demo_data()))
    print(f"{path}: {path.stat().st_size:,} bytes")
