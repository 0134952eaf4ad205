"""Record what the shipped controller says of pictures made by rule: the data of the controller explorer.

    python -m dqt_book.widgets.controller_explorer

writes book/_static/controller-explorer-data.js: a JSON object in one assignment, so that a page opened from
disk can load it. A test runs this again and compares.
"""

import json

import numpy as np

import dqt_core
from dqt_book.places import ROOT
from dqt_core import cost, data

PATH = ROOT / "book" / "_static" / "controller-explorer-data.js"
BRIGHTNESS = (25, 50, 75, 100, 150, 200)  # percent
NOISE = (0, 32, 96)  # largest change of a pixel


def pictures():
    """Name to 8x8 bytes: the first test image of every digit, and patterns made by a formula."""
    digits = data.embedded()
    first = [int(np.flatnonzero(digits.test_labels == digit)[0]) for digit in range(10)]
    grey = digits.test_images[first][:, ::4, ::4, 0].astype(int)
    y, x = np.mgrid[:8, :8]
    patterns = {
        "flat": 0 * x + 128,
        "ramp": x * 36,
        "columns": x % 2 * 255,
        "rows": y // 2 % 2 * 255,
        "checks": (x // 2 + y // 2) % 2 * 255,
        "disc": ((2 * x - 7) ** 2 + (2 * y - 7) ** 2 < 36) * 255,
    }
    return {f"digit {digit}": image for digit, image in enumerate(grey)} | patterns


def pixels(picture, noise_field, brightness, noise):
    """The picture at a brightness in percent, with noise of a given strength: 8x8 bytes."""
    return np.clip((picture * brightness + 50) // 100 + (noise_field * noise >> 7), 0, 255)


def as_images(grey):
    """8x8 bytes as the network's 32x32 RGB: each pixel a block of 4x4."""
    large = np.repeat(np.repeat(grey, 4, axis=-2), 4, axis=-1)
    return np.repeat(large[..., None], 3, axis=-1).astype(np.uint8)


def explorer_data():
    """Everything the widget shows: layers, pictures, and the run of every picture at every setting."""
    program, base = dqt_core.load("digits"), pictures()
    noise_field = np.random.default_rng(9).integers(-128, 128, (8, 8))
    settings = [(name, b, n) for name in base for b in BRIGHTNESS for n in NOISE]
    images = as_images(np.stack([pixels(base[name], noise_field, b, n) for name, b, n in settings]))
    chosen, at_8 = program.run(images, "controller"), program.run(images, 8)
    layers = cost.layer_sizes(program)
    return {
        "program": program.digest,
        "layers": [{"name": s.name, "macs": s.macs} for s in layers if s.layer is not None],
        "fixedMacs": sum(s.macs for s in layers if s.layer is None and not s.controller),
        "controllerMacs": sum(s.macs for s in layers if s.controller),
        "static": {str(b): int(cost.bitops(program, b)[0]) for b, _ in program.choices},
        "brightness": BRIGHTNESS,
        "noise": NOISE,
        "noiseField": noise_field.ravel().tolist(),
        "pictures": [{"name": name, "pixels": image.ravel().tolist()} for name, image in base.items()],
        "widths": ["".join(map(str, row)) for row in chosen.widths.tolist()],
        "classes": chosen.classes.tolist(),
        "classesAt8": at_8.classes.tolist(),
        "bitops": cost.bitops(program, chosen.widths).astype(int).tolist(),
    }


def as_script(record):
    return f"var controllerExplorerData = {json.dumps(record, separators=(',', ':'))};\n"


if __name__ == "__main__":
    PATH.write_text(as_script(explorer_data()))
    print(f"{PATH.relative_to(ROOT)}: {PATH.stat().st_size:,} bytes")
