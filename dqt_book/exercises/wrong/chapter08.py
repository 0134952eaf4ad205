"""Wrong answers to the exercises of chapter 8 and of its appendix: each checker must reject its own."""

import re

import numpy as np

from dqt_book.places import ROOT

# The kernels that the exercises ask to mend.
CHAPTER = (ROOT / "book" / "08-kernels.md").read_text()
BROKEN = dict(re.findall(r'^(broken_\w+) = r"""(.*?)"""', CHAPTER, re.S | re.M))


def kernel(text, *replacements):
    """A solution that returns a kernel's text with some words replaced."""
    for old, new in replacements:
        assert text.count(old) == 1, (old, text)
        text = text.replace(old, new)
    return lambda: text


FLOOR_SWITCH = r"""
extern "C" __global__ void floor_switch(const unsigned char* codes, unsigned char* out, int n, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = codes[i] >> (8 - width);
}
"""


ADDITION, BARRIER, ROUND = "parts[i] += parts[i + apart];", "__syncthreads();", "if (i < apart)"


WRONG = {
    "floor_kernel": {
        "half up": kernel(FLOOR_SWITCH, ("codes[i] >>", "(codes[i] + (1 << (8 - width) >> 1)) >>")),
        "shifts by the width": kernel(FLOOR_SWITCH, ("(8 - width)", "width")),
        "no end": kernel(FLOOR_SWITCH, ("if (i < n) ", "")),
        "one too many": kernel(FLOOR_SWITCH, ("i < n", "i <= n")),
        "one block": kernel(FLOOR_SWITCH, ("blockIdx.x * blockDim.x + ", "")),
        "another name": kernel(FLOOR_SWITCH, ("floor_switch", "floor")),
        "not C": kernel(FLOOR_SWITCH, ("int i =", "i =")),
        "signed codes": kernel(FLOOR_SWITCH, ("codes[i] >>", "(signed char)codes[i] >>")),
    },
    "tail_kernel": {
        "as it was": kernel(BROKEN["broken_tail"]),
        "too early": kernel(BROKEN["broken_tail"], ("first + 3 <= n", "first + 2 <= n")),
        "one behind the end": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), ("i < n", "i <= n")),
        "no rest": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), ("i < n", "i < n - 1")),
        "half the threads": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), ("4 * (", "8 * (")),
        "neighbours' bits": kernel(BROKEN["broken_tail"], ("first + 3", "first + 4"), (" & 0x01010101", "")),
    },
    "barrier_kernel": {
        "as it was": kernel(BROKEN["broken_sum"]),
        "at the start of a round": kernel(BROKEN["broken_sum"], (ROUND, BARRIER + ROUND)),
        "not for all": kernel(BROKEN["broken_sum"], (ADDITION, f"{{ {ADDITION} {BARRIER} }}")),
        "after the rounds": kernel(BROKEN["broken_sum"], ("out[i] =", BARRIER + "out[i] =")),
        "moved": kernel(BROKEN["broken_sum"], (BARRIER, ""), (ADDITION, ADDITION + BARRIER)),
    },
    "gemv_bytes": {
        "rows not whole": lambda outputs, length, vectors, b: (
            b * outputs * length // 8 + vectors * (length + 4 * outputs)
        ),
        "planes alone": lambda outputs, length, vectors, b: b * outputs * -(-length // 8),
        "results of a byte": lambda outputs, length, vectors, b: (
            b * outputs * -(-length // 8) + vectors * (length + outputs)
        ),
        "planes for every vector": lambda outputs, length, vectors, b: (
            vectors * (b * outputs * -(-length // 8) + length + 4 * outputs)
        ),
        "all planes": lambda outputs, length, vectors, b: (
            8 * outputs * -(-length // 8) + vectors * (length + 4 * outputs)
        ),
    },
    "bank_passes": {
        "rows alone": lambda stride: np.bincount(np.arange(8) * stride // 4 % 32).max(),
        "same words queue": lambda stride: np.bincount(
            (np.arange(32) // 4 * stride // 4 + np.arange(32) % 4) % 32
        ).max(),
        "banks of bytes": lambda stride: np.bincount(
            np.unique(np.arange(32) // 4 * stride + np.arange(32) % 4) % 32
        ).max(),
        "banks in use": lambda stride: len(
            np.unique((np.arange(32) // 4 * stride // 4 + np.arange(32) % 4) % 32)
        ),
        "always one": lambda stride: 1,
    },
    "owner": {
        "lanes along columns": lambda row, term: np.stack(
            [row % 8 + term % 16 // 4 * 8, row // 8 + 2 * (term // 16), term % 4]
        ),
        "registers exchanged": lambda row, term: np.stack(
            [4 * (row % 8) + term % 16 // 4, 2 * (row // 8) + term // 16, term % 4]
        ),
        "eight terms a lane": lambda row, term: np.stack(
            [4 * (row % 8) + term // 8, row // 8 + 2 * (term % 8 // 4), term % 4]
        ),
        "bytes in reverse": lambda row, term: np.stack(
            [4 * (row % 8) + term % 16 // 4, row // 8 + 2 * (term // 16), 3 - term % 4]
        ),
        "no byte": lambda row, term: np.stack(
            [4 * (row % 8) + term % 16 // 4, row // 8 + 2 * (term // 16), 0 * term]
        ),
    },
}
