"""The data of the live demo: the shipped network for digits, its test images, and what was recorded of them.

    python -m dqt_book.widgets.live_demo FILE

writes one assignment in JavaScript, so that a page opened from disk can load it, as building the book does.
Nothing of it is kept in the repository: it follows from the checkpoint and from scikit-learn's digits.
"""

import base64
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import dqt_core
from dqt_book.places import ROOT
from dqt_core import cost, data, results

RECORD = ROOT / "reproductions" / "results" / "resnet18_cifar" / "embedded.json"
NAME = "live-demo-data.js"


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
    """The 8x8 bytes that each 32x32 RGB picture of the embedded set repeats."""
    return np.ascontiguousarray(images[:, ::4, ::4, 0])


def demo_data():
    """Everything the page needs."""
    digits, record = data.embedded(), results.read(RECORD)
    return {
        "program": program_data(dqt_core.load("digits")),
        "images": base64.b64encode(grey(digits.test_images).tobytes()).decode(),
        "labels": digits.test_labels.tolist(),
        "digests": {row["widths"]: row["logits"] for row in record["rows"]},
        "bitops": {row["widths"]: row["bitops"] for row in record["rows"]},
    }


def as_script(record):
    return f"var liveDemoData = {json.dumps(record, separators=(',', ':'))};\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(as_script(demo_data()))
    print(f"{path}: {path.stat().st_size:,} bytes")
