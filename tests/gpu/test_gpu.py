"""On a GPU: kernels, whole programs, the caller's arrays and streams, graphs. Skipped where none answers."""

import kernel_checks
import numpy as np
import pointwise_checks
import pytest
from conv_checks import CONV_CHECKS, DEPTHWISE_CHECKS
from grouped_checks import GROUPED_CHECKS
from program_checks import BACKEND_CHECKS, CHOICES, mixed_choices, small_images, small_program

from dqt_core import nested
from dqt_core.backends import cupy_gpu, gpu_calls

pytestmark = pytest.mark.gpu

KERNEL_CHECKS = (
    *kernel_checks.SWITCH_CHECKS,
    *kernel_checks.PLANES_CHECKS,
    *CONV_CHECKS,
    *DEPTHWISE_CHECKS,
    *GROUPED_CHECKS,
    *pointwise_checks.POINTWISE_CHECKS,
)
SLEEP = 200_000_000  # clock cycles, about a tenth of a second


@pytest.mark.parametrize("check", KERNEL_CHECKS, ids=lambda check: check.__name__)
def test_kernel(check):
    check(cupy_gpu.engine())


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
def test_program(check):
    check(cupy_gpu)


@pytest.mark.parametrize("name", ["embedded", "cifar10"])
@pytest.mark.parametrize("widths", [8, 4, "random", "controller"])
def test_the_logits_of_shipped_networks_are_the_cpus(shipped, name, widths):
    program = shipped(name)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, *program.image_shape), np.uint8)
    if widths == "random":
        widths = np.array(program.choices)[rng.integers(0, len(program.choices), (150, len(program.layers)))]
    result, expected = (program.run(images, widths, backend) for backend in ("cupy", "torch"))
    assert result.digest == expected.digest
    np.testing.assert_array_equal(result.choices, expected.choices)


def test_a_graph_replays_the_plan():
    program, picks = small_program(), mixed_choices(5)
    backend = cupy_gpu.Backend(program)
    for seed in range(4):
        images = np.random.default_rng(seed).integers(0, 256, (5, *program.image_shape), np.uint8)
        expected = program.run(images, np.array(CHOICES)[picks], "numpy").logits
        np.testing.assert_array_equal(backend.run(images, picks)[0], expected)
    ((plan,),) = backend._idle.values()
    assert plan._replay is not None, "no graph was captured"


def test_tensors_of_torch_are_not_copied():
    import torch

    cupy = cupy_gpu.engine().xp
    tensor = torch.arange(256, dtype=torch.uint8, device="cuda")
    assert gpu_calls._own(cupy, tensor).data.ptr == tensor.data_ptr()
    out = gpu_calls.switch(tensor, 3)
    assert isinstance(out, torch.Tensor)
    assert out.is_cuda
    np.testing.assert_array_equal(out.cpu().numpy(), nested.switch(tensor.cpu().numpy(), 3))


def test_work_is_done_on_the_current_stream_of_torch():
    """The codes are written late, on a stream of its own: a call on any other stream reads zeros."""
    import torch

    codes = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    gpu_calls.switch(codes, 4)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        codes.fill_(200)
        out = gpu_calls.switch(codes, 4)
        total = out.sum(dtype=torch.int64)
    stream.synchronize()
    assert total.item() == 13 * codes.numel()  # 200 / 16 = 12.5, up


def test_work_is_done_on_the_current_stream_of_cupy():
    import torch

    cupy = cupy_gpu.engine().xp
    codes = cupy.zeros(1 << 20, np.uint8)
    gpu_calls.switch(codes, 4)
    cupy.cuda.Device().synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
        torch.cuda._sleep(SLEEP)
        codes.fill(200)
        out = gpu_calls.switch(codes, 4)
        stream.synchronize()
    assert int(out.get().astype(np.int64).sum()) == 13 * codes.size


def test_runs_on_several_streams_do_not_disturb_each_other():
    """They share the plan's buffers."""
    import torch

    program = small_program()
    backend = cupy_gpu.Backend(program)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (6, *program.image_shape), np.uint8) for _ in range(8)]
    expected = [program.run(batch, 8, "numpy").logits for batch in batches]
    tensors = [torch.from_numpy(batch).cuda() for batch in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    for _ in range(3):
        found = []
        for i, tensor in enumerate(tensors):
            with torch.cuda.stream(streams[i % 3]):
                torch.cuda._sleep(SLEEP // 100 * (3 - i % 3))
                found.append(gpu_calls.logits(backend, tensor, 8))
        torch.cuda.synchronize()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.cpu().numpy(), other)


def test_an_array_of_the_host_is_refused():
    import torch

    for array in (small_images(1), torch.zeros(3, dtype=torch.uint8)):
        with pytest.raises(TypeError, match=r"expected an array of cupy .* move it there first"):
            gpu_calls.switch(array, 4)


def test_backend_auto_is_the_gpu():
    program = small_program()
    assert program.run(small_images(1), [CHOICES[0]] * len(program.layers)).backend == "cupy"
