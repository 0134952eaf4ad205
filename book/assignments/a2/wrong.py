"""Kept wrong submissions of A2."""

from dqt_book.assignments.submissions import Wrong

REQUANTIZE = """
def requantize(a, d, M, B, r, lo, hi):
    total = (a.astype(np.int64) << d) * M + B
    return ({rounded}).clip(lo, hi).astype(np.uint8 if lo == 0 else np.int8)
"""
BLOCK = """
def block_end(a, d, M, skip, d_skip, M_skip, B, r):
    main, side = (a.astype(np.int64) << d) * M, (skip.astype(np.int64) << d_skip) * M_skip
    half = 1 << (r - 1)
    return ({rounded}).clip(0, 255).astype(np.uint8)
"""
# A checker that is lied to: the oracle's own modules are read anew, so that nothing comes of it.
REPLACED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "closes")]
import dqt_core.integer
dqt_core.integer.matmul = lambda x, w: np.zeros((len(x), len(w)), np.int32)
tasks.integer.matmul = dqt_core.integer.matmul

def dot(x, w):
    return np.zeros((len(x), len(w)), np.int32)
"""

WRONG = (
    Wrong("unsigned", "forgets the bit of the sign", ("a2_1",), {"a2_1": """
def register_bits(terms, b_w, b_a):
    return (terms * 2 ** (b_w - 1) * (2**b_a - 1) - 1).bit_length()
"""}),
    Wrong("symmetric", "takes the register for symmetric: one bit too many where the lowest sum just fits", ("a2_1",),
          {"a2_1": """
def register_bits(terms, b_w, b_a):
    return (terms * 2 ** (b_w - 1) * (2**b_a - 1)).bit_length() + 1
"""}),
    Wrong("float32", "adds in float32, which holds 24 bits", ("a2_2",), {"a2_2": """
def dot(x, w):
    sums = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        sums += x[:, k, None].astype(np.float32) * w[:, k].astype(np.float32)
    return sums.astype(np.int32)
"""}),
    Wrong("off-by-one", "leaves out the half before the shift", ("a2_4",),
          {"a2_4": REQUANTIZE.format(rounded="total >> r")}),
    Wrong("ties-down", "rounds ties down", ("a2_4",),
          {"a2_4": REQUANTIZE.format(rounded="(total + (1 << (r - 1)) - 1) >> r")}),
    Wrong("float64", "divides and rounds in float64, which cannot tell a tie from its neighbour", ("a2_3", "a2_4", "a2_5"),
          {"a2_3": """
import math
def fixed_point(numerator, denominator, r):
    return math.floor(numerator / denominator * 2.0**r + 0.5)
""", "a2_4": REQUANTIZE.format(rounded="np.floor(total / 2.0**r + 0.5)"),
           "a2_5": BLOCK.format(rounded="np.floor((main + side + B) / 2.0**r + 0.5)")}),
    Wrong("twice", "rounds both terms of a sum", ("a2_5",),
          {"a2_5": BLOCK.format(rounded="((main + B + half) >> r) + ((side + half) >> r)")}),
    Wrong("caller", "calls dqt_core for the answer", ("a2_4",), {"a2_4": """
from dqt_core import integer
def requantize(a, d, M, B, r, lo, hi):
    return integer.requantize([(a, d, M)], B, r, lo, hi)
"""}),
    Wrong("replaced", "replaces the oracle by what it returns itself", ("a2_2",), {"a2_2": REPLACED}),
)  # fmt: skip
