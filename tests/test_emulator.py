"""The emulator runs kernels as a GPU would, and says what is wrong with a kernel or a call."""

import re
from pathlib import Path

import numpy as np
import pytest

from dqt_core import kernels
from dqt_core.kernels import emulator
from dqt_core.kernels.emulator import Emulator, EmulatorError

BOTH_ORDERS = pytest.mark.parametrize("backwards", [False, True], ids=["forward", "backward"])
HEAD = '#include "common.cuh"\nextern "C" __global__ void '


def kernel(text, name="kernel", backwards=False, checked=False, **defines):
    return Emulator(backwards, checked, {"test.cu": HEAD + text}).kernel("test", name, **defines)


def int32(*values):
    return np.array(values, np.int32)


@BOTH_ORDERS
def test_every_thread_of_every_block_runs_once(backwards):
    count = kernel(
        """kernel(int* out) {
            int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
            int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
            out[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread;
        }""",
        backwards=backwards,
    )
    out = np.zeros((24, 30), np.int32)
    count((2, 3, 4), (5, 3, 2), (out,))
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 1000 + np.arange(30))


REVERSE = """kernel(const int* x, int* out) {
    __shared__ int tile[96];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[95 - threadIdx.x];
}"""


@BOTH_ORDERS
def test_barrier(backwards):
    x, out = np.arange(96, dtype=np.int32), np.zeros(96, np.int32)
    kernel(REVERSE, backwards=backwards)((1, 1, 1), (96, 1, 1), (x, out))
    np.testing.assert_array_equal(out, x[::-1])


@BOTH_ORDERS
def test_missing_barrier_reads_poison(backwards):
    x, out = np.arange(96, dtype=np.int32), np.zeros(96, np.int32)
    broken = kernel(REVERSE.replace("__syncthreads();", ""), backwards=backwards)
    broken((1, 1, 1), (96, 1, 1), (x, out))
    assert np.count_nonzero(out.view(np.uint32) == 0xA5A5A5A5) == 48


def test_shared_memory_is_new_in_every_block():
    fresh = kernel("kernel(int* out) { __shared__ int kept; out[blockIdx.x] = kept; kept = 1; }")
    out = int32(0, 0, 0)
    fresh((3, 1, 1), (1, 1, 1), (out,))
    assert (out.view(np.uint32) == 0xA5A5A5A5).all()


@BOTH_ORDERS
def test_shuffles(backwards):
    shuffle = kernel(
        """kernel(const int* x, int* out) {
            int i = threadIdx.x, v = x[i];
            out[i] = __shfl_sync(~0u, v, 3);
            out[64 + i] = __shfl_xor_sync(~0u, v, 5);
            out[128 + i] = __shfl_down_sync(~0u, v, 4);
            out[192 + i] = __shfl_up_sync(~0u, v, 4);
        }""",
        backwards=backwards,
    )
    x, out = np.arange(100, 164, dtype=np.int32), np.zeros((4, 64), np.int32)
    shuffle((1, 1, 1), (64, 1, 1), (x, out))
    lane = np.arange(64) % 32
    warp = np.arange(64) - lane
    sources = [
        np.full(64, 3), lane ^ 5, np.where(lane + 4 < 32, lane + 4, lane), np.where(lane < 4, lane, lane - 4)
    ]  # fmt: skip
    for row, source in zip(out, sources, strict=True):
        np.testing.assert_array_equal(row, x[warp + source])


MMA = """kernel(const Code* a, const signed char* b, int* c) {
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned A[4] = {}, B[2] = {};
    for (int byte = 0; byte < 4; byte++) {
        for (int i = 0; i < 4; i++)
            A[i] |= (a[(group + 8 * (i % 2)) * 32 + 16 * (i / 2) + 4 * t + byte] & 255u) << 8 * byte;
        for (int i = 0; i < 2; i++)
            B[i] |= (b[(16 * i + 4 * t + byte) * 8 + group] & 255u) << 8 * byte;
    }
    int C[4];
    for (int i = 0; i < 4; i++) C[i] = c[(group + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    mma_16x8x32<x_signed>(C, A, B);
    for (int i = 0; i < 4; i++) c[(group + 8 * (i / 2)) * 8 + 2 * t + i % 2] = C[i];
}"""


@BOTH_ORDERS
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_matrix_product(dtype, backwards):
    rng = np.random.default_rng(0)
    a = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (16, 32), dtype, endpoint=True)
    b = rng.integers(-128, 127, (32, 8), np.int8, endpoint=True)
    c = rng.integers(-(2**20), 2**20, (16, 8)).astype(np.int32)
    expected = c + a.astype(np.int32) @ b.astype(np.int32)
    product = kernel(MMA, backwards=backwards, X_SIGNED=int(dtype == np.int8))
    product((1, 1, 1), (32, 1, 1), (a, b, c))
    np.testing.assert_array_equal(c, expected)


FAULTS = {
    "divergent block barrier": (
        "kernel(int* out) { if (threadIdx.x < 40) __syncthreads(); else __syncwarp(); out[0] = 1; }",
        "a divergent barrier",
    ),
    "two barriers": (
        "kernel(int* out) { if (threadIdx.x < 32) __syncthreads();\nelse\n__syncthreads(); out[0] = 1; }",
        r"a divergent barrier.*thread \(0, 0, 0\) waits at line 2, thread \(32, 0, 0\) at line 4",
    ),
    "shuffle of half a warp": (
        "kernel(int* out) { if (threadIdx.x % 2) out[0] = __shfl_xor_sync(~0u, 1, 1); }",
        "a shuffle reads lane 0, which is not there",
    ),
    "masked shuffle": ("kernel(int* out) { out[0] = __shfl_xor_sync(1u, 1, 1); }", "mask 00000001"),
    "matrix product of half a warp": (
        """kernel(int* out) {
            int c[4] = {}; unsigned a[4] = {}, b[2] = {};
            if (threadIdx.x % 32 < 16) mma_16x8x32<true>(c, a, b);
            out[0] = c[0];
        }""",
        "all 32 lanes",
    ),
    "null": (
        "kernel(int* out) { out[0] = *(volatile int*)blockIdx.y; }",
        r"outside memory, at address \(nil\)",
    ),
    "a full stack": (
        """kernel(int* out) {
            volatile char large[10 << 20];
            for (long i = sizeof large - 1; i >= 0; i -= 4096) large[i] = 1;
            out[0] = large[0];
        }""",
        "outside memory",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_that_goes_wrong_is_an_exception(name):
    text, message = FAULTS[name]
    with pytest.raises(EmulatorError, match=f"kernel: .*{message}.*, in block"):
        kernel(text)((1, 1, 1), (64, 1, 1), (int32(0),))
    out = np.zeros(64, np.int32)  # and the next launch is none the worse
    kernel("kernel(int* out) { out[threadIdx.x] = 7; }")((1, 1, 1), (64, 1, 1), (out,))
    assert (out == 7).all()


CHECKED_FAULTS = {
    "reads one too far": ("out[0] = x[16];", "outside memory"),
    "writes one too far": ("out[16] = x[0];", "outside memory"),
    "writes into the padding": ("((signed char*)out)[-1] = 1;", "a write outside an array"),
    "misaligned vector": ("out[0] = ((const int4*)(x + 1))->x;", "undefined"),
    "overflow": ("out[0] = x[0] + 2147483647;", "undefined"),
    "shift by 32": ("out[0] = x[0] << (x[0] + 31);", "undefined"),
    "outside a local array": ("int few[4] = {1, 2, 3, 4}; out[0] = few[x[0] + 3];", "undefined"),
    "division by zero": ("out[0] = 1 / (x[0] - 1);", "undefined"),
}


@pytest.mark.parametrize("name", CHECKED_FAULTS)
def test_checked(name):
    body, message = CHECKED_FAULTS[name]
    broken = kernel(f"kernel(const int* x, int* out) {{ {body} }}", checked=True)
    with pytest.raises(EmulatorError, match=message):
        broken((1, 1, 1), (1, 1, 1), (np.ones(16, np.int32), np.zeros(16, np.int32)))


def test_checked_results_come_back():
    out = int32(1, 2, 3)
    twice = kernel("kernel(const int* x, int* out) { out[threadIdx.x] = 2 * x[threadIdx.x]; }", checked=True)
    twice((1, 1, 1), (3, 1, 1), (out, out))
    assert out.tolist() == [2, 4, 6]


MANY = "kernel(const signed char* codes, int* out, int n, long long rows, const void* skip) { out[0] = n; }"
WRONG_ARGUMENTS = {
    "one too few": (
        (-1,),
        None,
        "4 arguments, expected 5: const int8* codes, int32* out, int32 n, int64 rows",
    ),
    "Python int": ((2,), 3, r"n is 3 (int), expected a NumPy scalar of int32"),
    "another scalar": ((2,), np.int64(3), "n is np.int64(3) (int64), expected a NumPy scalar of int32"),
    "another dtype": ((0,), np.zeros(3, np.uint8), "codes is an array of uint8, expected int8"),
    "a list": ((0,), [1], "codes is [1] (list), expected an array of int8 or None"),
    "not contiguous": ((0,), np.zeros((4, 4), np.int8)[:, ::2], "codes is an array of strides (4, 2)"),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_arguments_are_compared_with_the_declaration(name):
    (position,), value, message = WRONG_ARGUMENTS[name]
    args = [np.zeros(3, np.int8), int32(0), np.int32(5), np.int64(6), None]
    call = kernel(MANY)
    call((1, 1, 1), (1, 1, 1), tuple(args))
    assert args[1].tolist() == [5]
    args[position : position + 1 or None] = [] if position < 0 else [value]
    with pytest.raises(EmulatorError, match=re.escape(message)):
        call((1, 1, 1), (1, 1, 1), tuple(args))


def test_read_only_arrays_are_not_written():
    out = int32(0)
    out.flags.writeable = False
    with pytest.raises(EmulatorError, match="out is read-only"):
        kernel("kernel(int* out) { out[0] = 1; }")((1, 1, 1), (1, 1, 1), (out,))


@pytest.mark.parametrize(
    ("grid", "block"), [((0, 1, 1), (1, 1, 1)), ((1, 1, 1), (1025, 1, 1)), ((1, 65536, 1), (1, 1, 1))]
)
def test_sizes(grid, block):
    with pytest.raises(EmulatorError, match=re.escape(f"grid {grid}, block {block}")):
        kernel("kernel(int* out) {}")(grid, block, (int32(0),))


def test_what_does_not_compile():
    with pytest.raises(EmulatorError, match=r"refuses the kernels:\n(.*\n)*test\.cu"):
        kernel("kernel(int* out) { out[0] = nonsense; }")
    with pytest.raises(EmulatorError, match="no kernel 'other'; it has kernel"):
        kernel("kernel(int* out) {}", "other")


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EmulatorError, match="no-such-compiler was not found; install g"):
        kernel("kernel(int* out) { /* never compiled */ }")


def test_the_cache_is_keyed_by_the_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    emulator._library.cache_clear()
    out = int32(0)
    for text in ("out[0] = 11;", "out[0] = 22;", "out[0] = VALUE;"):
        kernel(f"kernel(int* out) {{ {text} }}", VALUE=33)((1, 1, 1), (1, 1, 1), (out,))
        assert out[0] % 11 == 0
    assert out[0] == 33
    assert len(list((tmp_path / "dqt-kernels").iterdir())) == 3


def test_a_damaged_library_is_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = int32(0)
    for damage in (
        None,
        lambda whole: whole[:-40],
        lambda whole: b"",
        lambda whole: whole[:900] + b"x" + whole[901:],
    ):
        for library in (tmp_path / "dqt-kernels").glob("*.so"):
            whole = library.read_bytes()
            library.unlink()  # this process has it open
            library.write_bytes(damage(whole))
        emulator._library.cache_clear()
        out[0] = 0
        kernel("kernel(int* out) { out[0] = 7; }")((1, 1, 1), (1, 1, 1), (out,))
        assert out[0] == 7
    (library,) = (tmp_path / "dqt-kernels").iterdir()
    assert library.read_bytes() == whole


def test_without_a_folder_to_write_to(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    out = int32(0)
    for value in (3, 4):
        kernel(f"kernel(int* out) {{ out[0] = {value}; }}")((1, 1, 1), (1, 1, 1), (out,))
        assert out[0] == value
    said = capsys.readouterr().err
    assert (
        said.count("not kept ([Errno 20] Not a directory:")
        == said.count("set XDG_CACHE_HOME to a folder")
        == 1
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    kernel("kernel(int* out) { out[0] = 5; }")((1, 1, 1), (1, 1, 1), (out,))
    assert out[0] == 5


@BOTH_ORDERS
def test_portable_fibers(backwards, monkeypatch):
    monkeypatch.setattr(emulator, "FLAGS", (*emulator.FLAGS, "-DCUDA_CPU_UCONTEXT"))
    test_barrier(backwards)
    test_matrix_product(np.int8, backwards)
    with pytest.raises(EmulatorError, match="outside memory"):
        kernel(FAULTS["null"][0])((1, 1, 1), (64, 1, 1), (int32(0),))


@pytest.mark.parametrize("source", kernels.VARIANTS)
def test_no_warnings(source, monkeypatch):
    monkeypatch.setattr(emulator, "FLAGS", (*emulator.FLAGS, "-Wextra", "-Werror", "-Wno-unused-parameter"))
    name, _ = emulator.KERNEL.findall(kernels.source(f"{source}.cu"))[0]
    Emulator().kernel(source, name, **kernels.VARIANTS[source][0])
