"""Checkers for the exercises of chapter 8, kernels, and of its appendix."""

import numpy as np

from dqt_book.exercises import emulation
from dqt_book.exercises.judging import judge, judge_kernel
from dqt_core import nested


def floor_kernel(function):
    """function(): text of a kernel floor_switch(codes, out, n, width), one uint8 code a thread."""
    rng = np.random.default_rng(18)
    cases = []
    for n in (1, 128, 300):
        codes = rng.integers(0, 256, n).astype(np.uint8)
        for width in range(1, 9):
            expected = nested.switch(codes, width, rounding="floor")
            arguments = codes, np.full(n, 0x5A, np.uint8), np.int32(n), np.int32(width)
            cases.append((f"{n} codes at width {width}", -(-n // 128), arguments, expected, width))
    return judge_kernel(emulation, function, "floor_kernel", "floor_switch", cases, "3 lengths at 8 widths")


def tail_kernel(function):
    """function(): text of a kernel top_bits(codes, out, n), four uint8 codes a thread."""
    rng = np.random.default_rng(19)
    cases = []
    for n in (*range(1, 9), 509, 510, 511, 512, 513, 1027):
        codes = rng.integers(0, 256, n).astype(np.uint8)
        arguments = codes, np.full(n, 0x5A, np.uint8), np.int32(n)
        cases.append((f"{n} codes", -(-n // 512), arguments, codes >> 7, 1))
    return judge_kernel(emulation, function, "tail_kernel", "top_bits", cases, f"{len(cases)} lengths")


def barrier_kernel(function):
    """function(): text of a kernel share_sum(x, out): every thread receives the sum of 128 codes."""
    codes = np.random.default_rng(20).integers(0, 256, 128).astype(np.uint8)
    expected = np.full(128, codes.sum(dtype=np.int32))
    cases = [("128 codes", 1, (codes, np.zeros(128, np.int32)), expected, 16)]
    return judge_kernel(emulation, function, "barrier_kernel", "share_sum", cases, "128 threads")


def gemv_bytes(function):
    """function(outputs, length, vectors, b): bytes of planes, inputs and results of gemv_planes."""
    cases = []
    for outputs, length, vectors in ((1, 8, 1), (3, 9, 1), (40, 1000, 2), (64, 33, 8)):
        planes = nested.to_planes(np.zeros((outputs, length), np.int8))
        for b in range(1, 9):
            moved = planes[:b].nbytes + vectors * (length + outputs * np.int32().nbytes)
            arguments = outputs, length, vectors, b
            cases.append((f"gemv_bytes{arguments}", arguments, moved, 24))
    return judge(function, cases, f"{len(cases)} products")


def bank_passes(function):
    """function(stride): passes in which a warp reads four words of each of eight rows of shared memory."""
    cases = []
    for stride in range(4, 260, 4):
        banks = {}
        for lane in range(32):
            word = (lane // 4 * stride + lane % 4 * 4) // 4
            banks.setdefault(word % 32, set()).add(word)
        cases.append((f"bank_passes({stride})", (stride,), max(map(len, banks.values())), 6))
    return judge(function, cases, f"{len(cases)} strides")


def owner(function):
    """function(row, term): lane, register and byte that hold elements of the left operand of an mma."""
    place = np.arange(512)
    lane, register, byte = place // 16, place // 4 % 4, place % 4
    row, term = lane // 4 + 8 * (register % 2), 4 * (lane % 4) + 16 * (register // 2) + byte
    order = np.random.default_rng(21).permutation(512)
    row, term, expected = row[order], term[order], np.stack([lane, register, byte])[:, order]
    return judge(
        function,
        [("owner(row, term)", (row, term), expected, 5)],
        "512 elements",
        lambda i: f"{('lane', 'register', 'byte')[i // 512]} of row {row[i % 512]}, term {term[i % 512]}",
    )
