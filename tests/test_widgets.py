"""The book's widgets compute with the package's rules: both sides are given the same inputs."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dqt_core import nested

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
WIDTHS = range(1, 9)
ROUNDINGS = ("half_up", "floor")

needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="needs node on the PATH to run the widgets' JavaScript"
)


def run_script(expression, script="bit-slider.js"):
    program = f"const widget = require({json.dumps(str(STATIC / script))});"
    program += f"process.stdout.write(JSON.stringify({expression}))"
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def bit_slider(function):
    """function(code or view, width, signed, rounding) of the widget, for all codes in all settings."""
    return run_script(
        "[false, true].flatMap(signed => ['half_up', 'floor'].flatMap(rounding =>"
        " [1, 2, 3, 4, 5, 6, 7, 8].map(width => Array.from({length: 256}, (_, i) => {"
        "  const code = signed ? i - 128 : i;"
        "  const view = widget.switchCode(code, width, signed, rounding);"
        f"  return {function};"
        " }))))"
    )


def switched(codes, width, rounding):
    return nested.switch(codes, width, rounding=rounding).tolist()


def by_package(function):
    """The same in the same order by the package."""
    rows = []
    for dtype in (np.uint8, np.int8):
        codes = np.sort(np.arange(256).astype(np.uint8).view(dtype))
        rows += [function(codes, width, rounding) for rounding in ROUNDINGS for width in WIDTHS]
    return rows


@needs_node
def test_bit_slider_switches_as_the_package():
    assert bit_slider("view") == by_package(switched)


@needs_node
def test_bit_slider_shows_the_value_of_the_package():
    def value(codes, width, rounding):
        view = nested.switch(codes, width, rounding=rounding)
        return nested.dequantize(view, 1, width, rounding).tolist()

    assert bit_slider("widget.viewValue(view, width, signed, rounding)") == by_package(value)


@needs_node
def test_bit_slider_shows_epsilon():
    def epsilon(codes, width, rounding):
        if rounding == "floor" or width == 8:
            return [""] * 256
        added = nested.switch(codes, width).astype(int) - (codes.astype(int) >> (8 - width))
        top = codes.astype(int) >> (7 - width) & 1
        return ["full" if t > a else str(a) for a, t in zip(added, top, strict=True)]

    assert bit_slider("widget.epsilonOf(code, width, signed, rounding)") == by_package(epsilon)


@needs_node
def test_bit_slider_shows_the_bits():
    def bits(codes, width, rounding):
        view = nested.switch(codes, width, rounding=rounding)
        return [np.binary_repr(int(code), width=8)[8 - width :] for code in view]

    assert bit_slider("widget.bitString(view, width)") == by_package(bits)


@needs_node
@pytest.mark.parametrize(
    "mutant",
    [("Math.min(", "Math.max("), ("1 << (drop - 1)", "1 << drop"), ("width - 1)) - 1", "width)) - 1")],
)
def test_a_wrong_widget_is_caught(mutant, tmp_path, monkeypatch):
    source = (STATIC / "bit-slider.js").read_text()
    assert mutant[0] in source
    (tmp_path / "bit-slider.js").write_text(source.replace(*mutant))
    monkeypatch.setattr(f"{__name__}.STATIC", tmp_path)
    assert bit_slider("view") != by_package(switched)
