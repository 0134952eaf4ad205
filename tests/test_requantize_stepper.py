"""The requantize stepper computes with `integer.requantize`'s rule: both sides are given the same inputs."""

import json

import numpy as np
import pytest
import test_widgets
from test_widgets import needs_node

from dqt_core import integer

FIELDS = ("a", "d", "M", "B", "r", "lo", "hi", "s")
CLAMPS = ((-128, 127), (0, 255), (0, 127), (-3, 5), (-1, 200), (7, 6))
# BigInts are written with the n that JSON does not have, and come back as text.
PRINT = "(name, value) => typeof value === 'bigint' ? value.toString() : value"


def stepper(function, inputs):
    """function(v) of the widget for every input, BigInts as Python integers."""
    rows = ",".join("{" + ",".join(f"{k}:{v}n" for k, v in row.items()) + "}" for row in inputs)
    expression = f"JSON.stringify([{rows}].map(v => {function}), {PRINT})"
    return json.loads(test_widgets.run_script(expression, "requantize-stepper.js"))


def magnitude(rng, bits):
    """An integer of either sign whose size in bits is uniform."""
    size = int(rng.integers(0, bits + 1))
    return int(rng.integers(-(2**size), 2**size + 1))


def random_inputs(count=4000):
    """Inputs of all sizes, some refused; half of them aimed so that the result lies among the codes."""
    rng = np.random.default_rng(11)
    rows = []
    for i in range(count):
        a = min(max(magnitude(rng, 31), -(2**31)), 2**31 - 1)
        d, multiplier, offset = int(rng.integers(0, 16)), magnitude(rng, 31), magnitude(rng, 62)
        r = int(rng.integers(0, 63))
        if i % 2:
            r = min(max(((abs(a) << d) * abs(multiplier)).bit_length() - 6, 1), 61)
            offset = magnitude(rng, min(r + 5, 62))
        lo, hi = CLAMPS[i % len(CLAMPS)]
        s = int(rng.integers(1, max(r, 1) + 1))
        rows.append(dict(zip(FIELDS, (a, d, multiplier, offset, r, lo, hi, s), strict=True)))
    return [*rows, *ties()]


def ties():
    for sign in (-1, 1):
        for beside in (-1, 0, 1):
            for r in (1, 31, 40, 61):
                offset = sign * (3 << (r - 1) if r < 60 else 1 << (r - 1)) + beside
                yield dict(zip(FIELDS, (0, 0, 1, offset, r, -128, 127, 1), strict=True))


def by_package(v):
    try:
        term = (np.array([v["a"]]), v["d"], v["M"])
        return int(integer.requantize([term], v["B"], v["r"], v["lo"], v["hi"])[0])
    except (ValueError, OverflowError):
        return None


def accepted():
    return [v for v in random_inputs() if by_package(v) is not None]


def clamped(v, code):
    return min(max(code, v["lo"]), v["hi"])


def rounded(total, r):
    return (total + (1 << (r - 1))) >> r


def by_float32(v):
    scale = np.float32(np.ldexp(float(v["M"]), v["d"] - v["r"]))
    with np.errstate(over="ignore"):
        value = np.float32(v["a"]) * scale + np.float32(float(v["B"]) / 2.0 ** v["r"])
    return clamped(v, int(np.rint(value)))


def by_two_roundings(v):
    total = (v["a"] << v["d"]) * v["M"] + v["B"]
    if v["s"] >= v["r"]:
        return clamped(v, rounded(total, v["r"]))
    return clamped(v, rounded(rounded(total, v["s"]), v["r"] - v["s"]))


def by_late_shift(v):
    return clamped(v, rounded(v["a"] * v["M"] + v["B"], v["r"]) << v["d"])


@needs_node
def test_the_stepper_rounds_and_refuses_as_the_package():
    inputs = random_inputs()
    expected = [by_package(v) for v in inputs]
    got = stepper("widget.refusal(v) ? null : Number(widget.requantize(v).y)", inputs)
    assert got == expected
    assert 500 < sum(code is None for code in expected) < 3500
    assert (
        sum(code is not None and v["lo"] < code < v["hi"] for v, code in zip(inputs, expected, strict=True))
        > 500
    )


@needs_node
def test_every_step_is_shown():
    inputs = accepted()
    names = ("shifted", "product", "sum", "half", "rounded", "y")
    for v, got in zip(inputs, stepper("widget.requantize(v)", inputs), strict=True):
        shifted = v["a"] << v["d"]
        total = shifted * v["M"] + v["B"]
        half = total + (1 << (v["r"] - 1))
        steps = (shifted, shifted * v["M"], total, half, half >> v["r"], by_package(v))
        assert {name: int(got[name]) for name in names} == dict(zip(names, steps, strict=True))


@needs_node
@pytest.mark.parametrize(
    ("function", "reference"),
    [("float32(v)", by_float32), ("twice(v, v.s)", by_two_roundings), ("late(v)", by_late_shift)],
    ids=["float32", "twice", "late"],
)
def test_the_other_ways_to_round(function, reference):
    inputs = accepted()
    expected = [reference(v) for v in inputs]
    assert stepper(f"Number(widget.{function})", inputs) == expected
    assert expected != [by_package(v) for v in inputs]


@needs_node
def test_numbers_and_bits_are_shown():
    inputs = [v for v in accepted() if v["B"] not in (-1, 0)][:500]
    bits = stepper("[widget.bitLength(v.B), widget.bitString(v.B, 64)]", inputs)
    for v, (length, text) in zip(inputs, bits, strict=True):
        assert text == format(v["B"] & (2**64 - 1), "064b")
        assert -(2 ** (length - 1)) <= v["B"] < 2 ** (length - 1)
        assert not -(2 ** (length - 2)) <= v["B"] < 2 ** (length - 2)
    for v, text in zip(inputs, stepper("widget.decimal(v.B, v.r)", inputs), strict=True):
        whole, fraction = text.replace("\N{MINUS SIGN}", "-").split(".")
        assert len(fraction) == 6
        assert int(whole + fraction) == v["B"] * 10**6 >> v["r"]


@needs_node
def test_the_examples_show_what_they_say():
    presets = json.loads(
        test_widgets.run_script(f"JSON.stringify(widget.PRESETS, {PRINT})", "requantize-stepper.js")
    )
    found = {name: {k: int(v) for k, v in values.items()} for name, values in presets}
    differs = {
        name: [
            way.__name__ for way in (by_float32, by_two_roundings, by_late_shift) if way(v) != by_package(v)
        ]
        for name, v in found.items()
    }
    assert differs == {
        "reported in 2019": ["by_two_roundings"],
        "first rounded twice": ["by_two_roundings"],
        "first in float32": ["by_float32"],
        "negative tie": [],
        "views of 4 bits": ["by_late_shift"],
    }
    for name, way in (("first rounded twice", by_two_roundings), ("first in float32", by_float32)):
        first = found[name]
        agree = ({**first, "a": a} for a in range(first["a"]))
        assert all(way(v) == min(rounded(v["a"] * v["M"], v["r"]), v["hi"]) for v in agree)


@needs_node
@pytest.mark.parametrize(
    "mutant",
    [
        ("(1n << (v.r - 1n));\n    var rounded", "(1n << (v.r - 1n)) - 1n;\n    var rounded"),
        ("half >> v.r", "half / (1n << v.r)"),
        ("v.a << v.d, product", "v.a, product"),
        ("bound >= SUM_LIMIT", "bound > 2n * SUM_LIMIT"),
        ("v.r > 61n", "v.r > 62n"),
        ("v.lo > v.hi || ", ""),
    ],
    ids=["ties down", "towards zero", "no shift", "wide sums", "wide shift", "empty clamp"],
)
def test_a_wrong_stepper_is_caught(mutant, tmp_path, monkeypatch):
    source = (test_widgets.STATIC / "requantize-stepper.js").read_text()
    assert mutant[0] in source
    (tmp_path / "requantize-stepper.js").write_text(source.replace(*mutant))
    monkeypatch.setattr(test_widgets, "STATIC", tmp_path)
    with pytest.raises(AssertionError):
        test_the_stepper_rounds_and_refuses_as_the_package()
