"""Structs that kernels are given are filled by the names of their fields, and lie where C has them."""

import re
import types

import numpy as np
import pytest

from dqt_core import kernels
from dqt_core.backends import cupy_gpu
from dqt_core.kernels import structs
from dqt_core.kernels.emulator import Emulator, EmulatorError
from dqt_core.kernels.structs import Struct

ONE = (1, 1, 1)
HEAD = '#include "common.cuh"\nextern "C" __global__ void '
ADDED = """kernel(const Term term, int* out, const Convolution c) {
    out[threadIdx.x] = static_cast<const int*>(term.x)[threadIdx.x] * term.rows
                       + static_cast<const int*>(c.skip.x)[threadIdx.x] + c.hi;
}"""


def kernel(text, checked=False):
    return Emulator(checked=checked, sources={"test.cu": HEAD + text}).kernel("test", "kernel")


def int32(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize("checked", [False, True])
def test_structs_are_filled_by_name(checked):
    x, more, out = int32(1, 2, 3), int32(10, 20, 30), int32(0, 0, 0)
    convolution = Struct("Convolution", hi=1000, skip=Struct("Term", x=more))
    kernel(ADDED, checked)(ONE, (3, 1, 1), (Struct("Term", rows=7, x=x), out, convolution))
    assert out.tolist() == [1017, 1034, 1051]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multiplier": np.zeros(3)}, "c.own.multiplier is an array of float64, expected int32"),
        ({"picks": 3}, "c.own.picks is 3 (int), expected an array of int32 or None"),
        ({"offset": np.zeros((4, 4), np.int64)[:, ::2]}, "c.own.offset is an array of strides (32, 16)"),
    ],
)
def test_fields_are_compared_with_the_declaration(fields, message):
    call = kernel("kernel(const Convolution c) {}")
    call(ONE, ONE, (Struct("Convolution"),))
    with pytest.raises(EmulatorError, match=re.escape(message)):
        call(ONE, ONE, (Struct("Convolution", own=Struct("Term", **fields)),))


def test_a_struct_has_the_fields_of_its_declaration():
    with pytest.raises(
        TypeError, match="Term has no field 'width'; it has x, multiplier, offset, picks, bits"
    ):
        Struct("Term", width=3)
    with pytest.raises(TypeError, match=r"got 3 for a Term, expected Struct\('Term', ...\)"):
        Struct("Convolution", own=3)
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        Struct("Term", rows=1.5)
    with pytest.raises(OverflowError):
        Struct("Term", rows=2**31)


def test_a_struct_that_the_host_lays_out_otherwise_does_not_compile():
    text = kernels.source("common.cuh")
    changed = {"common.cuh": text.replace("int rows; ", "int rows, more, others; ")}
    assert changed["common.cuh"] != text
    changed["test.cu"] = HEAD + "kernel(const Term term) {}"
    with pytest.raises(EmulatorError, match="the host lays out Term otherwise"):
        Emulator(sources=changed).kernel("test", "kernel")


def test_a_struct_with_a_gap_is_refused(monkeypatch):
    monkeypatch.setattr(structs, "fields", lambda: {"Gap": {"a": "int", "b": "*"}})
    with pytest.raises(TypeError, match="Gap of common"):
        structs.layout("Gap")


def test_cupy_is_given_the_bytes():
    def array(address):
        return types.SimpleNamespace(data=types.SimpleNamespace(ptr=address))

    given = []
    skip = Struct("Term", x=array(0x1000), rows=2)
    args = Struct("Convolution", sums=array(0x2000), skip=skip, hi=255), None
    cupy_gpu._call(lambda grid, block, args: given.extend(args), ONE, ONE, args)
    convolution, null = given
    assert (null, convolution.shape) == (0, (1,))  # an array of one element, which CuPy passes by value
    words = np.frombuffer(convolution.tobytes(), np.uint64)
    assert (words[5], words[13]) == (0x2000, 0x1000)  # where C has them
    assert np.count_nonzero(words) == 4
