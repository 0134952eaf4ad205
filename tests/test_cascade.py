"""Looking twice: which images go on, what it costs, and that every way of running says the same."""

import ctypes
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import programs

import dqt_core
from dqt_core import cost
from dqt_core.evaluation.cascade import cascade, margins, thresholds_for
from dqt_core.export.c import TEMPLATES
from reproductions.exports import c_program

WAYS = ("numpy", "torch", "numba")


@pytest.fixture(scope="module")
def digits(shipped):
    return shipped("embedded")


@pytest.fixture(scope="module")
def images():
    return dqt_core.data.load("embedded").test_images


def by_hand(program, images, steps, thresholds):
    """Classes and passes of every image alone, in plain Python."""
    answers = []
    for image in images:
        for number, step in enumerate(steps):
            logits = program.run(image[None], step, "numpy").logits[0].tolist()
            *_, second, first = sorted(logits)
            if number == len(thresholds) or first - second >= thresholds[number]:
                break
        answers.append((logits, number + 1))
    return answers


@pytest.mark.parametrize("steps", [(2, 4), (2, 3, 8), ([2] * 19, [8] * 9 + [4] * 10)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_cascade_is_its_definition(digits, images, steps, way):
    some = images[:40]
    thresholds = thresholds_for(digits, images, steps, [0.5, 0.2][: len(steps) - 1])
    found = cascade(digits, some, steps, thresholds, way)
    expected = by_hand(digits, some, steps, thresholds)
    assert [(row.tolist(), count) for row, count in zip(found.logits, found.passes, strict=True)] == expected
    assert set(found.passes) == set(range(1, len(steps) + 1))
    last = [digits._choices_of(step, 1)[0] for step in steps]
    np.testing.assert_array_equal(found.choices, np.array(last)[found.passes - 1])


def test_both_passes_are_counted(digits, images):
    found = cascade(digits, images, (2, 4), *thresholds_for(digits, images, (2, 4), 0.25))
    narrow, wide = cost.bitops(digits, 2)[0], cost.bitops(digits, 4)[0]
    twice = found.passes == 2
    assert 0.15 < twice.mean() <= 0.25
    np.testing.assert_array_equal(found.bitops, narrow + twice * wide)
    shifts = cost.transitions(digits, 2)[0] + twice * cost.transitions(digits, 4)[0]
    np.testing.assert_array_equal(found.transitions, shifts)


def test_an_answer_does_not_depend_on_its_batch_mates(digits, images):
    (threshold,) = thresholds_for(digits, images, (2, 4), 0.3)
    together = cascade(digits, images[:60], (2, 4), threshold)
    order = np.random.default_rng(0).permutation(60)
    for batch in (1, 7):
        shuffled = cascade(digits, images[order], (2, 4), threshold, batch_size=batch)
        np.testing.assert_array_equal(shuffled.logits, together.logits[order])
        np.testing.assert_array_equal(shuffled.passes, together.passes[order])


@pytest.mark.parametrize(("share", "width", "passes"), [(0, 2, 1), (1, 8, 2)])
def test_none_or_all_go_on(digits, images, share, width, passes):
    found = cascade(digits, images, (2, 8), thresholds_for(digits, images, (2, 8), share))
    assert found.digest == digits.run(images, width).digest
    assert (found.passes == passes).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=2, max_size=6))
def test_margins_are_those_of_python_integers(logits):
    *_, second, first = sorted(logits)
    assert margins(np.array([logits])).tolist() == [first - second]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_shares_are_upper_bounds_met_but_for_ties(data):
    program = data.draw(programs())
    if program.ops[-1].term.multiplier.shape[1] < 2:
        return
    n = data.draw(st.integers(1, 9))
    images = np.random.default_rng(n).integers(0, 256, (n, *program.image_shape), np.uint8)
    steps = ([program.choices[0]] * len(program.layers), [program.choices[-1]] * len(program.layers))
    share = data.draw(st.floats(0, 1))
    (threshold,) = thresholds_for(program, images, steps, share, "numpy")
    seen = margins(program.run(images, steps[0], "numpy").logits)
    went, wanted = (seen < threshold).sum(), int(share * n)
    assert went <= wanted
    assert (seen <= threshold).sum() >= wanted
    found = cascade(program, images, steps, threshold, "numpy")
    assert (found.passes == 2).sum() == went


def test_the_onnx_file_and_the_c_file_look_twice_too(digits, images, tmp_path):
    """By the host's two calls, as the page of exports has them."""
    (threshold,) = thresholds_for(digits, images, (2, 4), 0.3)
    expected = cascade(digits, images[:24], (2, 4), threshold)
    source = TEMPLATES / "look_twice.c"
    text = c_program.written(digits, tmp_path) + source.read_text()
    (tmp_path / "p.c").write_text(text)
    library = tmp_path / "p.so"
    command = [c_program.compiler(), *c_program.STRICT, "-O2", "-shared", "-fPIC"]
    subprocess.run([*command, tmp_path / "p.c", "-o", library], check=True)
    look_twice = ctypes.CDLL(library).look_twice
    logits = (ctypes.c_int64 * 10)()
    for image, row, passes in zip(images, expected.logits, expected.passes, strict=False):
        assert look_twice(image.tobytes(), 2, 4, ctypes.c_int64(threshold), logits) == passes
        assert list(logits) == row.tolist()
    assert look_twice(images[0].tobytes(), 5, 4, ctypes.c_int64(threshold), logits) == 0


@pytest.mark.parametrize(
    ("steps", "thresholds", "said"),
    [
        ((2,), (), r"steps are \(2,\), thresholds or shares \(\); expected two steps or more"),
        ((2, 4), (1, 2), "one threshold or share for each but the last"),
        (None, 5, "steps are None, thresholds or shares 5"),
        ((2, 4), (), "one threshold or share for each but the last"),
        ((2, 4), None, "a threshold is None, expected an int"),
        ((2, 4), float("nan"), "a threshold is nan, expected an int"),
        ((2, 4), [[5]], r"a threshold is \[5\], expected an int"),
        ((2, 3, 4), [5, [6, 7]], "one threshold or share for each but the last"),
        ((2, "controller"), 5, "a step of a cascade is 'controller'; give one width"),
        ((2, np.full((3, 19), 4)), 5, r"a step of a cascade is int64 \(3, 19\); give one width"),
        ((2, 5), 5, "width 5 is not in this program"),
    ],
)
def test_what_does_not_fit_is_refused(digits, images, steps, thresholds, said):
    with pytest.raises(ValueError, match=f"^.*{said}.*$"):  # one line
        cascade(digits, images[:3], steps, thresholds)


@pytest.mark.parametrize("shares", [1.5, -0.1, (0.2, 0.4), (None, 0.1)])
def test_shares_that_are_none_are_refused(digits, images, shares):
    steps = (2, 4) if isinstance(shares, float) else (2, 3, 4)
    with pytest.raises(ValueError, match=r"give fractions 0\.\.1 of all images, none above the one before"):
        thresholds_for(digits, images[:3], steps, shares)


def test_one_class_has_no_margin():
    with pytest.raises(ValueError, match="a margin needs"):
        margins(np.zeros((3, 1), np.int64))


def test_the_surface_has_it(digits, images):
    found = dqt_core.cascade(digits, images[:2], (2, 4), 0)
    assert found.passes.tolist() == [1, 1]
