"""Kept wrong submissions of A1."""

from dqt_book.assignments.submissions import Wrong, emptied, removed

ANYTHING = """
def {name}(*arguments):
    return 0
"""
PATCH = """
import grading, judging, numpy, tasks

def right(*arguments, **options):
    print("Right.")

tasks.check = tasks.grade = check = right
judging.judge = judging.first_wrong = right
"""
MEMORISED = """
# copied from the public check: input and result, which are always the same
import judging, numpy
KNOWN = {}
def collect(function, cases, right, element=None):
    KNOWN.update({(c.arguments[0].tobytes(), c.arguments[2]): c.expected for c in cases})
    return True

def quantize(x, step, signed):
    return KNOWN[x.tobytes(), signed]

kept, judging.judge = judging.judge, collect
tasks.a1_1(None, numpy.random.default_rng([0, *b"a1_1"]))
judging.judge = kept
"""

WRONG = (
    Wrong("bankers", "rounds ties to the even code, as numpy.round does", ("a1_1",), {"a1_1": """
def quantize(x, step, signed):
    lo, hi = (-128, 127) if signed else (0, 255)
    return np.clip(np.round(x / step), lo, hi).astype(np.int8 if signed else np.uint8)
"""}),
    Wrong("memorised", "has learned the results of the public check by heart", ("a1_1",), {"a1_1": MEMORISED}),
    Wrong("caller", "calls dqt_core for the answer", ("a1_2", "a1_3", "a1_4", "a1_6"), {"a1_2": """
from importlib import import_module
def drop_bits(q, b):
    return import_module("dqt_core.nested").switch(q, b, rounding="floor")
""", "a1_3": """
from dqt_core.nested import switch
def half_up(q, b):
    return switch(q, b)
"""}),
    Wrong("overflow", "adds in the type of the codes, where 127 + 1 is -128", ("a1_3", "a1_4", "a1_6"), {"a1_3": """
def half_up(q, b):
    d, signed = 8 - b, q.dtype == np.int8
    if d == 0:
        return q.copy()
    hi = 2 ** (b - 1) - 1 if signed else 2**b - 1
    return np.minimum((q + np.array(1 << (d - 1), np.uint8).astype(q.dtype)) >> d, hi).astype(q.dtype)
"""}),
    Wrong("unclamped", "forgets that epsilon is 0 at the highest code", ("a1_3", "a1_4", "a1_6"), {"a1_3": """
def half_up(q, b):
    d = 8 - b
    wide = q.astype(np.int16)
    return (wide >> d) + (wide >> (d - 1) & 1) if d else wide
"""}),
    Wrong("float", "divides and rounds in floats", ("a1_3", "a1_4", "a1_6"), {"a1_3": """
def half_up(q, b):
    hi = 2 ** (b - 1) - 1 if q.dtype == np.int8 else 2**b - 1
    return np.minimum(np.floor(q / 2 ** (8 - b) + 0.5), hi)
"""}),
    Wrong("straight", "reads the last width of a path from the master", ("a1_4",), {"a1_4": """
def walk(q, path):
    return half_up(q, path[-1])
"""}),
    Wrong("floor-only", "reads b planes and leaves epsilon out", ("a1_6",), {"a1_6": """
def from_planes(planes, b, n, signed):
    found = np.unpackbits(planes[:b], axis=1, count=n)
    shifts = np.arange(7, 7 - b, -1, dtype=np.uint8)
    top = (found << shifts[:, None]).sum(axis=0, dtype=np.uint8)
    return drop_bits(top.view(np.int8) if signed else top, b)
"""}),
    Wrong("emptied", "replaces the checks by nothing and raises their points", ("a1_3", "a1_4"),
          {"a1_3": ANYTHING.format(name="half_up"), "a1_4": ANYTHING.format(name="walk"),
           "a1_6": """
def from_planes(planes, b, n, signed):
    found = np.unpackbits(planes, axis=1, count=n)
    shifts = np.arange(7, 7 - len(planes), -1, dtype=np.uint8)
    top = (found << shifts[:, None]).sum(axis=0, dtype=np.uint8)
    wide, d = (top.view(np.int8) if signed else top).astype(int), 8 - b
    hi = 2 ** (b - 1) - 1 if signed else 2**b - 1
    return np.minimum((wide + (1 << d >> 1)) >> d, hi)
"""}, edit=emptied),
    Wrong("removed", "deletes the checks", ("a1_1",), {"a1_1": ANYTHING.format(name="quantize")}, edit=removed),
    Wrong("patched", "makes the checker say yes", ("a1_2", "a1_5"),
          {"a1_2": ANYTHING.format(name="drop_bits"), "a1_5": ANYTHING.format(name="to_planes")}, first=PATCH),
)  # fmt: skip
