"""Every backend returns the bits of the rules, whatever is asked of it and however it is asked."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_checks import (
    BACKEND_CHECKS,
    CHOICES,
    assert_equals_python,
    mixed_choices,
    recorded,
    saturated,
    small_images,
    small_program,
)
from strategies import programs, runs, widths_of

from dqt_core.program import BACKENDS

ON_A_GPU = {"cupy"}
PLANNED = {"cupy", "emulator"}  # these compile a plan for every program, and the emulator is slow
ALL = [pytest.param(name, marks=pytest.mark.gpu) if name in ON_A_GPU else name for name in BACKENDS]
OTHERS = [backend for backend in ALL if backend != "numpy"]


def on_backends(backends, examples=120, planned_examples=8, **strategies):
    """A test of drawn values."""

    def decorate(body):
        @pytest.mark.parametrize("backend", backends)
        def test(backend):
            count = planned_examples if backend in PLANNED else examples

            @settings(deadline=None, derandomize=True, max_examples=count)
            @given(**strategies)
            def on_one_backend(**drawn):
                body(backend, **drawn)

            on_one_backend()

        test.__name__ = body.__name__
        return test

    return decorate


@on_backends(ALL, run=runs(max_size=4, max_images=3, max_blocks=2))
def test_every_value_is_that_of_python_integers(backend, run):
    assert_equals_python(module_of(backend), run.program, run.images, run.choices)


@on_backends(OTHERS, planned_examples=25, run=runs(max_size=12, max_images=12))
def test_every_value_is_that_of_numpy(backend, run):
    values, choices = recorded(module_of(backend), run.program, run.images, run.choices)
    expected, chosen = recorded(module_of("numpy"), run.program, run.images, run.choices)
    np.testing.assert_array_equal(choices, chosen)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[name], name)
    # A plan that is looked into fuses nothing; this one fuses what it can.
    result = run.program.run(run.images, run.widths, backend)
    same_bits(result, run.program.run(run.images, run.widths, "numpy"))


@on_backends(ALL, run=runs(max_images=6), data=st.data())
def test_an_image_is_alone(backend, run, data):
    """Neither batch mates, nor their order, nor the batch size changes a bit."""
    result = run.program.run(run.images, run.widths, backend)
    n = len(run.images)
    size = data.draw(st.integers(1, n + 1))
    same_bits(result, run.program.run(run.images, run.widths, backend, batch_size=size))
    order = np.array(data.draw(st.permutations(range(n))))
    shuffled = run.widths[order] if isinstance(run.widths, np.ndarray) else run.widths
    other = run.program.run(run.images[order], shuffled, backend)
    np.testing.assert_array_equal(other.logits, result.logits[order])
    np.testing.assert_array_equal(other.choices, result.choices[order])


@on_backends(ALL, run=runs())
def test_the_controller_only_chooses(backend, run):
    """Its choices, given as widths, lead to its logits."""
    result = run.program.run(run.images, run.widths, backend)
    pairs = np.array(run.program.choices)[result.choices]
    same_bits(result, run.program.run(run.images, pairs, backend))
    if run.choices is not None:
        np.testing.assert_array_equal(result.choices, run.choices)


@on_backends(ALL, examples=40, planned_examples=4, program=programs(), data=st.data())
def test_forms_of_widths_agree(backend, program, data):
    images = np.random.default_rng(0).integers(0, 256, (3, *program.image_shape)).astype(np.uint8)
    _, choices = data.draw(widths_of(program, 1).filter(lambda drawn: drawn[1] is not None))
    pairs = [program.choices[k] for k in choices[0]]
    expected = program.run(images, pairs, backend)
    forms = [np.array([pairs] * 3), np.array([pairs] * 3, np.uint8), [list(pair) for pair in pairs]]
    if all(weight_bits == input_bits for weight_bits, input_bits in pairs):
        widths = [weight_bits for weight_bits, _ in pairs]
        forms += [widths, tuple(widths), np.array(widths), np.array([widths] * 3, np.int8)]
        forms += [widths[0], np.int64(widths[0])] if len(set(widths)) == 1 else []
    for form in forms:
        same_bits(expected, program.run(images, form, backend))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
def test_small_program(backend, check):
    check(module_of(backend))


def test_the_checks_are_telling():
    """Every value of the small program differs between images, and so do the controller's choices."""
    for rounding in ("half_up", "floor"):
        values, _ = recorded(module_of("numpy"), small_program(rounding), small_images(), mixed_choices())
        assert all((value != value[0]).any() for value in values.values())
        _, choices = recorded(module_of("numpy"), small_program(rounding), small_images(), None)
        assert len(np.unique(choices, axis=0)) > 1


@pytest.mark.parametrize("backend", ALL)
def test_images_in_any_memory(backend):
    program, images, widths = small_program(), small_images(), np.array(CHOICES)[mixed_choices()]
    expected = program.run(images, widths, backend)
    read_only = images.copy()
    read_only.flags.writeable = False
    spread = np.zeros((2 * len(images), *images.shape[1:]), np.uint8)
    spread[::2] = images
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    for same in (
        read_only,
        spread[::2],
        channels_first,
        images[::-1].copy()[::-1],
        np.asfortranarray(images),
    ):
        np.testing.assert_array_equal(same, images)
        same_bits(expected, program.run(same, widths, backend))


@pytest.mark.parametrize("backend", ALL)
def test_the_program_and_the_images_are_not_written_to(backend):
    program, images, widths = small_program(), small_images(), np.array(CHOICES)[mixed_choices()]
    before, digest = images.copy(), program.digest
    result = program.run(images, widths, backend)
    np.testing.assert_array_equal(images, before)
    assert replace(program).digest == digest  # computed anew from the tables
    same_bits(result, program.run(images, widths, backend))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize(
    ("rounding", "terms", "sum_of_all"),
    [("half_up", 65_793, -65_793 * 255 * 128), ("floor", 32_896, -32_896 * 255 * 256)],
)
def test_the_longest_sum(backend, rounding, terms, sum_of_all):
    """The most unsigned codes 255 against weights -128 that an int32 accumulator holds."""
    result = saturated(terms, rounding).run(np.zeros((2, 1, 1, 3), np.uint8), 8, backend)
    assert (
        result.logits.tolist()
        == [[sum_of_all, sum_of_all + terms * 255 * (2 if rounding == "floor" else 1)]] * 2
    )


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_bits_do_not_depend_on_the_processor(instructions, backend):
    """oneDNN's int8 products saturate on processors without 8-bit dot products, which it can imitate."""
    code = (
        "import numpy as np\n"
        "from program_checks import saturated\n"
        "images = np.zeros((2, 1, 1, 3), np.uint8)\n"
        "for terms in (1, 2, 7, 64, 576):\n"
        f"    print(saturated(terms).run(images, 8, '{backend}').logits.tolist())\n"
    )
    paths = [os.path.dirname(__file__), os.getcwd()]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    expected = [[[-terms * 255 * 128, -terms * 255 * 127]] * 2 for terms in (1, 2, 7, 64, 576)]
    assert done.stdout.splitlines() == [str(logits) for logits in expected]


def module_of(backend):
    return importlib.import_module(BACKENDS[backend])


def same_bits(result, other):
    assert result.digest == other.digest
    np.testing.assert_array_equal(result.choices, other.choices)
    np.testing.assert_array_equal(result.widths, other.widths)
