"""The GPU's backend on the emulator: its plans, calls and shipped programs; what it says without a GPU."""

import os
import sys
import types
import warnings
from importlib import machinery, metadata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_checks import PLAN_CHECKS
from program_checks import CHOICES, LAYERS, mixed_choices, small_images, small_program
from small_nets import MEAN, STD, WIDTHS, seeded
from strategies import runs

from dqt_core import convert, integer, lower, models, nested
from dqt_core.backends import analysis, cupy_gpu, emulated, gpu_calls, gpu_plan, numba_cpu
from dqt_core.backends.analysis import FusedConv
from dqt_core.backends.gpu_launches import Launch, Series
from dqt_core.program import Conv, Requantize, inputs

ENGINE = emulated.engine()
few = settings(deadline=None, derandomize=True, max_examples=200)


# The plan


@pytest.mark.parametrize("module", [emulated, numba_cpu], ids=["emulator", "numba"])
@pytest.mark.parametrize("check", PLAN_CHECKS, ids=lambda check: check.__name__)
def test_plan(module, check):
    check(module)


def test_a_convolution_joins_the_requantize_that_alone_reads_it():
    steps = analysis.fused(small_program().ops)
    joined = {
        step.out: (step.conv.name, step.skip and step.skip.x) for step in steps if isinstance(step, FusedConv)
    }
    assert joined["a"] == ("grouped", "shortcut:sum")  # the first of two
    assert joined["b"] == ("plain", "a")  # codes are the other term
    assert joined["stem:codes"] == ("stem", None)
    assert [step.name for step in steps if isinstance(step, Conv)] == ["choice", "shortcut", "classifier"]


@few
@given(run=runs())
def test_steps_say_what_the_program_says(run):
    """Every operation once, every value made before it is read, nothing fused that something else reads."""
    steps = analysis.fused(run.program.ops)
    parts = [
        part
        for step in steps
        for part in ([step.conv, step.requantize] if isinstance(step, FusedConv) else [step])
    ]
    assert sorted(map(id, parts)) == sorted(map(id, run.program.ops))
    made = {"image"}
    for step in steps:
        assert set(analysis.reads(step)) <= made
        made.add(getattr(step, "out", None))
    readers = [name for op in run.program.ops for name in inputs(op)]
    for step in steps:
        if isinstance(step, FusedConv):
            assert readers.count(step.conv.out) == 1
            assert step.requantize.terms == tuple(
                sorted(filter(None, (step.term, step.skip)), key=step.requantize.terms.index)
            )


def test_all_that_can_be_fused_is():
    program = small_program()
    left = {id(step) for step in analysis.fused(program.ops)}
    for op in program.ops:
        if isinstance(op, Requantize) and id(op) in left:
            assert not any(term.x.endswith(":sum") and term.x != "means:sum" for term in op.terms), op.out


@few
@given(data=st.data())
def test_values_that_live_together_lie_apart(data):
    count = data.draw(st.integers(1, 12))
    names = [f"v{i}" for i in range(count)]
    sizes = {name: data.draw(st.integers(1, 2000)) for name in names}
    lives = {name: tuple(sorted(data.draw(st.tuples(*[st.integers(0, 8)] * 2)))) for name in names}
    offsets, total = analysis.places(sizes, lives)
    spans = {name: range(offsets[name], offsets[name] + sizes[name]) for name in names}
    assert all(offset % analysis.ALIGNMENT == 0 for offset in offsets.values())
    assert max(span.stop for span in spans.values()) <= total
    for name in names:
        for other in names[: names.index(name)]:
            if lives[name][0] <= lives[other][1] and lives[other][0] <= lives[name][1]:
                assert spans[name].stop <= spans[other].start or spans[other].stop <= spans[name].start


def test_memory_is_used_again():
    backend = emulated.Backend(small_program())
    plan, apart = (
        gpu_plan.Plan(backend.program, backend._launches, 4, given=True, keep=keep) for keep in (False, True)
    )
    assert len(plan._memory) < len(apart._memory) / 2


def test_a_plan_is_launches_alone():
    """Nothing between the image bytes and the logits but kernels: no host code, no copy."""
    backend = emulated.Backend(small_program())
    for mode in (False, True):
        plan = gpu_plan.Plan(backend.program, backend._launches, 3, mode, keep=False)
        assert all(isinstance(step, Launch | Series) for step in plan._run)


def test_a_smaller_batch_is_padded():
    """What stands in the images beyond it changes nothing, and few plans serve all sizes."""
    program, images, picks = small_program(), small_images(12), mixed_choices(12)
    backend = emulated.Backend(program)
    for choices in (picks, None):
        whole, chosen = backend.run(images, choices)
        for n in (11, 9, 12, 3, 5, 6, 7, 1):
            logits, some = backend.run(images[:n], None if choices is None else choices[:n])
            np.testing.assert_array_equal(logits, whole[:n])
            np.testing.assert_array_equal(some, chosen[:n])
    assert sorted(backend._idle) == sorted((n, mode) for n in (1, 4, 8, 12) for mode in (False, True))
    other = 255 - images  # other images beyond the batch, and other choices
    backend.run(other, (picks + 1) % len(CHOICES))
    np.testing.assert_array_equal(backend.run(images[:9], picks[:9])[0], backend.run(images, picks)[0][:9])


class Replayed:
    """An engine with graphs: what is captured is replayed from a list."""

    def __init__(self):
        self.xp, self.kernel, self.captured = ENGINE.xp, ENGINE.kernel, 0

    def capture(self, run):
        self.captured += 1
        return run


def test_a_graph_is_captured_at_the_second_use():
    engine = Replayed()
    backend = gpu_plan.Backend(small_program(), engine)
    images, picks = small_images(4), mixed_choices(4)
    first = backend.run(images, picks)[0]
    assert engine.captured == 0
    for _ in range(3):
        np.testing.assert_array_equal(backend.run(images, picks)[0], first)
    assert engine.captured == 1
    backend.run(images, None)
    assert engine.captured == 1  # another plan


# Shipped programs


@pytest.mark.parametrize("name", ["embedded", "cifar10"])
@pytest.mark.parametrize("widths", [4, "random", "controller"])
def test_shipped_networks(shipped, name, widths):
    assert_same_bits(shipped(name), widths)


@pytest.mark.parametrize("widths", [2, "random"])
def test_a_network_of_depthwise_convolutions(widths):
    """MobileNetV2: signed activations, expansions, skips of signed codes."""
    net = seeded(lambda: models.mobilenet_v2(classes=5))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    assert_same_bits(lower(convert(net, images, MEAN, STD, widths=WIDTHS)), widths)


def assert_same_bits(program, widths, images=3):
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (images, *program.image_shape), np.uint8)
    if widths == "random":
        picks = rng.integers(0, len(program.choices), (images, len(program.layers)))
        widths = np.array(program.choices)[picks]
    result, expected = (program.run(given, widths, backend) for backend in ("emulator", "torch"))
    assert result.digest == expected.digest
    np.testing.assert_array_equal(result.choices, expected.choices)


# Calls on arrays


def codes(shape, dtype, seed=0):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_switch_and_planes(kind, dtype, rounding):
    give, take = (torch.from_numpy, torch.Tensor.numpy) if kind == "torch" else (np.asarray, np.asarray)
    master = codes((3, 37), dtype)
    planes = gpu_calls.to_planes(give(master), engine=ENGINE)
    assert isinstance(planes, torch.Tensor) == (kind == "torch")
    np.testing.assert_array_equal(take(planes), nested.to_planes(master))
    for width in range(1, 9):
        expected = nested.switch(master, width, rounding=rounding)
        np.testing.assert_array_equal(take(gpu_calls.switch(give(master), width, rounding, ENGINE)), expected)
        back = gpu_calls.from_planes(planes, width, dtype == np.int8, rounding, 37, ENGINE)
        np.testing.assert_array_equal(take(back), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_gemv(dtype, batch):
    weights, x = codes((19, 70), np.int8), codes((batch, 70), dtype, 1)
    planes = nested.to_planes(weights)
    for width in range(1, 9):
        expected = integer.matmul(x, nested.switch(weights, width, rounding="floor"))
        np.testing.assert_array_equal(gpu_calls.gemv(planes[:width].copy(), x, width, ENGINE), expected)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv2d(kind, rounding, groups):
    give, take = (torch.from_numpy, torch.Tensor.numpy) if kind == "torch" else (np.asarray, np.asarray)
    x, weight = codes((3, 7, 6, 6), np.uint8), codes((12, 3, 3, 6 // groups), np.int8, 1)
    widths = np.array([[2, 4], [8, 8], [3, 3]])
    found = take(gpu_calls.conv2d(give(x), give(weight), 2, 1, groups, widths, rounding, ENGINE))
    for image, (weight_bits, input_bits) in enumerate(widths):
        operands = (
            nested.switch(x[image : image + 1], input_bits, rounding=rounding),
            nested.switch(weight, weight_bits, rounding=rounding),
        )
        if rounding == "half_up":
            expected = integer.conv2d(*operands, 2, 1, groups)
        else:
            expected = integer.conv2d_mid_bin(*operands, 8 - weight_bits, 8 - input_bits, 2, 1, groups)
        np.testing.assert_array_equal(found[image : image + 1], expected)


def test_calls_read_the_callers_memory():
    tensor = torch.zeros(8, dtype=torch.uint8)
    own = gpu_calls._own(np, tensor)
    tensor[3] = 5
    assert own[3] == 5
    spread = codes((6, 8), np.int8)[::2, ::2]
    np.testing.assert_array_equal(gpu_calls.switch(spread, 3, engine=ENGINE), nested.switch(spread, 3))


def test_calls_of_nothing():
    empty = np.zeros((0, 3), np.uint8)
    assert gpu_calls.switch(empty, 4, engine=ENGINE).shape == (0, 3)
    assert gpu_calls.to_planes(empty, engine=ENGINE).shape == (8, 0, 1)


def test_logits_on_the_device():
    program, images, picks = small_program(), small_images(5), mixed_choices(5)
    backend = emulated.Backend(program)
    widths = np.array(CHOICES)[picks]
    expected = program.run(images, widths, "numpy").logits
    first = gpu_calls.logits(backend, images, widths)
    tensor = gpu_calls.logits(backend, torch.from_numpy(images), widths)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    gpu_calls.logits(backend, images, 8)
    np.testing.assert_array_equal(first, expected)  # not a view of a buffer that is used again


WRONG_CALLS = {
    "a list": (TypeError, "expected an array of numpy", lambda: gpu_calls.switch([1], 4, engine=ENGINE)),
    "floats": (TypeError, "int8 or uint8", lambda: gpu_calls.switch(np.zeros(3), 4, engine=ENGINE)),
    "width 9": (ValueError, "width 9", lambda: gpu_calls.switch(codes(3, np.int8), 9, engine=ENGINE)),
    "rounding": (ValueError, "rounding 'up'", lambda: gpu_calls.switch(codes(3, np.int8), 4, "up", ENGINE)),
    "one code": (ValueError, "single code", lambda: gpu_calls.to_planes(np.array(3, np.int8), ENGINE)),
    "few planes": (ValueError, "at least 5 planes", lambda: gpu_calls.from_planes(
        np.zeros((4, 2), np.uint8), 4, rounding="half_up", engine=ENGINE)),
    "long": (ValueError, "do not hold 17", lambda: gpu_calls.from_planes(
        np.zeros((8, 2), np.uint8), length=17, engine=ENGINE)),
    "nine vectors": (ValueError, r"1..8", lambda: gpu_calls.gemv(
        np.zeros((8, 2, 1), np.uint8), codes((9, 8), np.int8), 8, ENGINE)),
    "channels": (ValueError, "channels", lambda: gpu_calls.conv2d(
        codes((1, 3, 3, 2), np.int8), codes((1, 1, 1, 3), np.int8), engine=ENGINE)),
    "kernel": (ValueError, "no output", lambda: gpu_calls.conv2d(
        codes((1, 2, 2, 2), np.int8), codes((1, 3, 3, 2), np.int8), engine=ENGINE)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls(name):
    error, message, call = WRONG_CALLS[name]
    with pytest.raises(error, match=message):
        call()


# Without a GPU


class Runtime:
    def __init__(self, driver, built):
        self.driver, self.built = driver, built

    def driverGetVersion(self):
        return self.driver

    def runtimeGetVersion(self):
        return self.built


def machine(monkeypatch, driver=13000, built=13020, wheels=("cupy-cuda13x",), run=None, error=None):
    """A machine with some CuPy; `run` answers for its kernel."""
    monkeypatch.setattr(
        metadata, "distributions", lambda: [types.SimpleNamespace(metadata={"Name": name}) for name in wheels]
    )
    cupy = types.ModuleType("cupy")
    cupy.__version__, cupy.__spec__ = "14.2.0", machinery.ModuleSpec("cupy", None)
    cupy.cuda = types.SimpleNamespace(runtime=Runtime(driver, built))
    memory = np.zeros(32, np.int32)
    cupy.zeros = lambda *_: types.SimpleNamespace(get=lambda: memory)

    def module(code, options):
        if error:
            raise error
        return types.SimpleNamespace(get_function=lambda name: lambda grid, block, args: run and run(memory))

    cupy.RawModule = module
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def right(memory):
    memory[:] = 7 * np.arange(32) + 3


def test_a_gpu_that_answers(monkeypatch):
    cupy = machine(monkeypatch, run=right)
    assert cupy_gpu.require_gpu() is cupy


TWO_WHEELS = ("cupy-cuda12x", "cupy-cuda13x", "numpy")
NO_COMPILER = RuntimeError("libnvrtc.so.13 not found\nmore")
MACHINES = {
    "no cupy": ({"wheels": ()}, r"needs CuPy: pip install cupy-cuda13x for CUDA 13, or cupy-cuda12x"),
    "two wheels": ({"wheels": TWO_WHEELS}, r"2 builds .*cupy-cuda12x, cupy-cuda13x\); pip uninstall"),
    "no driver": ({"driver": 0}, "no NVIDIA driver answers"),
    "old driver": ({"driver": 12040}, r"serves CUDA 12\.4.* wants CUDA 13\.2; install cupy-cuda12x"),
    "no compiler": ({"error": NO_COMPILER}, r"libnvrtc.so.13 not found\).*cupy-cuda13x\[ctk\]"),
    "wrong answer": ({"run": lambda memory: None}, r"wrote \[0 0 0 0\] instead"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_one_sentence_says_what_is_missing(monkeypatch, name):
    options, message = MACHINES[name]
    machine(monkeypatch, **options)
    if name == "no cupy":
        monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=message) as caught:
        cupy_gpu.require_gpu()
    assert "\n" not in str(caught.value)


def test_a_fork_does_not_take_its_parents_gpu_along(monkeypatch):
    machine(monkeypatch, run=right)
    for asked in (cupy_gpu.engine, cupy_gpu.available):
        assert asked()
    status = {True: 0, False: 1}
    if (child := os.fork()) == 0:
        try:
            cupy_gpu.engine()
        except cupy_gpu.GpuError as error:
            os._exit(status["before this process was forked" in str(error) and not cupy_gpu.available()])
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cupy_gpu._available.cache_clear()
    cupy_gpu._engine.cache_clear()


def test_backend_auto_needs_no_gpu(monkeypatch):
    program, images = small_program(), small_images(1)
    program.run(
        images, [CHOICES[0]] * LAYERS
    )  # Numba asks for the real machine's packages when it is imported
    cupy_gpu._available.cache_clear()
    machine(monkeypatch, driver=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert program.run(images, [CHOICES[0]] * LAYERS).backend in ("numba", "torch", "numpy")
    with pytest.raises(ImportError, match="no NVIDIA driver"):
        program.run(images, [CHOICES[0]] * LAYERS, "cupy")
    cupy_gpu._available.cache_clear()


def test_headers_are_written_out():
    text = cupy_gpu.flat("conv.cu")
    assert "switch4" in text
    assert '#include "common.cuh"' not in text
    assert "#pragma once" not in text
