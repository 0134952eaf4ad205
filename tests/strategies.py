"""Small random programs made directly from operations, with no torch: the shared test of every backend.

`runs` draws a `Run`: a program, images, and widths to run them at. Every backend must answer it with the same
bits. A program has what lowered networks have (and the extremes that trained ones seldom reach):

- an image of 1 to 4 channels, a fixed stem, blocks of switchable layers, a sum-pool or a layer on the
  whole map, a fixed classifier, and often a controller;
- blocks: a plain, grouped or depthwise convolution; a shortcut of codes; a shortcut with a convolution of its
  own (two layers meet in one requantize); both shortcuts; a max-pool; a table, one or one for each channel; a
  concatenation; a product with equal codes or with one pixel;
- kernels of 1 and 3, strides of 1 and 2, paddings of 0 and 1; activations of both signs, clamps anywhere;
- one table row, or one for each choice; choices with different widths of weights and input; both roundings;
- weights, multipliers and offsets from random to the largest that 32-bit sums and 62-bit sums allow.

Structure is drawn by hypothesis; tables are filled by NumPy from a drawn seed.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from dqt_core.program import (
    IMAGE,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Product,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
)
from dqt_core.program.operations import out_shape

SUM_LIMIT = 2**62
WIDTHS = st.integers(1, 8)


@dataclass(frozen=True)
class Run:
    """A program with what to run it on.

    Attributes
    ----------
    images : uint8 array, (N, H, W, C)
    widths : as `Program.run` takes them
    choices : int64 array, (N, L), or None
        The same as indices into the program's choices; None for "controller".
    """

    program: Program
    images: np.ndarray
    widths: object
    choices: np.ndarray | None


@st.composite
def runs(draw, max_size=6, max_images=4, max_blocks=3):
    """A program, images and widths; a size of 3 and one block make it fit for Python integers."""
    program = draw(programs(max_size, max_blocks))
    n = draw(st.sampled_from(range(max_images, 0, -1)))
    rng = draw(generators())
    images = rng.integers(0, 256, (n, *program.image_shape)).astype(np.uint8)
    widths, choices = draw(widths_of(program, n))
    return Run(program, images, widths, choices)


@st.composite
def programs(draw, max_size=6, max_blocks=3):
    """A small `Program`."""
    return _Builder(draw, max_size).build(max_blocks)


@st.composite
def widths_of(draw, program, n):
    """Widths for n images in one of the accepted forms, and the same as choices."""
    layers, count = len(program.layers), len(program.choices)
    same = [k for k, (weight_bits, input_bits) in enumerate(program.choices) if weight_bits == input_bits]
    forms = ["list", "array"] + ["int"] * bool(same) + ["controller"] * program.has_controller
    form = draw(st.sampled_from(forms))
    if form == "controller":
        return "controller", None
    if form == "int":
        k = draw(st.sampled_from(same))
        return program.choices[k][0], np.full((n, layers), k)
    rows = 1 if form == "list" else n
    picks = draw(st.lists(st.integers(0, count - 1), min_size=rows * layers, max_size=rows * layers))
    choices = np.array(picks).reshape(rows, layers)
    if form == "list":
        return [program.choices[k] for k in choices[0]], np.repeat(choices, n, axis=0)
    pairs = np.array(program.choices)[choices]
    return (pairs[..., 0] if len(same) == count and draw(st.booleans()) else pairs), choices


def generators():
    """NumPy generators."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@dataclass(frozen=True)
class _Value:
    """A value of the program under construction; `limit` bounds its magnitude, shifts included."""

    name: str
    shape: tuple[int, int, int]
    limit: int
    layer: int | None = None
    is_product: bool = False


class _Builder:
    def __init__(self, draw, max_size):
        self.draw, self.max_size = draw, max_size
        self.rng = draw(generators())
        self.rounding = draw(st.sampled_from(["half_up", "floor"]))
        pairs = st.tuples(WIDTHS, WIDTHS) if draw(st.booleans()) else WIDTHS.map(lambda width: (width, width))
        choices = draw(st.lists(pairs, min_size=1, max_size=4, unique=True))
        self.choices = tuple(sorted(choices, key=lambda pair: (pair[0] * pair[1], pair)))
        self.ops, self.layers = [], 0
        self.numbers = itertools.count()

    def build(self, max_blocks):
        height, width = (self.draw(st.integers(2, self.max_size)) for _ in range(2))
        shape = height, width, self.draw(st.sampled_from([3, 1, 4, 2]))
        stem = self.codes([self.conv(self.lookup(_Value(IMAGE, shape, 255)), switchable=False)])
        places = [(len(self.ops), stem, 0)]  # of a controller: where, what it reads, layers before it
        x = stem
        for _ in range(self.draw(st.integers(1, max_blocks))):
            x = self.block(x)
            places.append((len(self.ops), x, self.layers))
        if not self.layers:
            x = self.codes([self.conv(x)])
        features = self.codes([self.draw(st.sampled_from([self.sum_pool, self.whole_map]))(x)])
        self.logits(features, self.draw(st.integers(1, 4)), "logits")
        if self.draw(st.booleans()):
            places = [place for place in places if place[2] < self.layers]
            self.insert_controller(*self.draw(st.sampled_from(places)))
        names = tuple(f"layer{i}" for i in range(self.layers))
        return Program("random", tuple(self.ops), self.choices, names, shape, self.rounding)

    def block(self, x):
        kinds = ["plain", "code shortcut", "conv shortcut", "both", "max-pool", "table", "concat", "product"]
        kind = self.draw(st.sampled_from(kinds))
        if kind == "max-pool":
            return self.max_pool(x)
        if kind == "table":
            return self.lookup(x)
        if kind == "concat":
            return self.concat(x)
        if kind == "product":
            return self.codes([self.product(x)])
        if kind == "plain":
            return self.codes([self.conv(x)])
        stride = 1 if kind in ("code shortcut", "both") else self.draw(st.sampled_from([1, 2]))
        channels = (
            x.shape[2]
            if stride == 1 and kind != "conv shortcut"
            else self.draw(st.sampled_from([4, 3, 2, 1]))
        )
        terms = [self.conv(x, kernel=3, stride=stride, padding=1, outputs=channels)]
        if kind in ("conv shortcut", "both"):
            terms.append(self.conv(x, kernel=1, stride=stride, padding=0, outputs=channels))
        if kind in ("code shortcut", "both"):
            terms.append(x)
        return self.codes(self.draw(st.permutations(terms)))

    def lookup(self, x):
        rows, dtype = self.draw(st.sampled_from([x.shape[2], 1])), self.draw(st.sampled_from(["i1", "u1"]))
        table = self.rng.integers(0, 256, (rows, 256)).astype(np.uint8).view(dtype)
        out = self.name("table")
        self.ops.append(Lookup(table, out, x.name))
        return _Value(out, x.shape, 128 if dtype == "i1" else 255)

    def concat(self, x):
        """With a layer's codes of the same type, and of any number of channels, on either side or on both."""
        part = self.codes([self.conv(x, kernel=1, stride=1, padding=0)], lo=0 if x.limit == 255 else -128)
        parts = self.draw(st.sampled_from([[x, part], [part, x], [x, part, x]]))
        out = self.name("concat")
        self.ops.append(Concat(tuple(value.name for value in parts), out))
        return _Value(out, (*x.shape[:2], sum(value.shape[2] for value in parts)), x.limit)

    def product(self, x):
        y = self.draw(st.sampled_from([x, None])) or self.codes([self.sum_pool(x)])
        out = self.name("product")
        self.ops.append(Product(x.name, y.name, out))
        return _Value(out, x.shape, x.limit * y.limit)

    def conv(self, x, kernel=None, stride=None, padding=None, outputs=None, switchable=True, groups=None):
        height, width, inputs = x.shape
        kernel = self.draw(st.sampled_from([1, 3])) if kernel is None else kernel
        if padding is None:
            padding = self.draw(st.sampled_from([0, 1])) if min(height, width) >= kernel else 1
        stride = self.draw(st.sampled_from([1, 2])) if stride is None else stride
        if groups is None:
            groups = self.draw(st.sampled_from([g for g in range(1, inputs + 1) if inputs % g == 0]))
        if outputs is None:
            outputs = groups * self.draw(st.sampled_from(range(max(1, 4 // groups), 0, -1)))
        groups = math.gcd(groups, outputs)
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight = self.weights((outputs, high, wide, inputs // groups))
        name = f"layer{self.layers}" if switchable else self.name("fixed")
        layer = self.layers if switchable else None
        self.layers += switchable
        self.ops.append(Conv(name, weight, stride, padding, groups, layer, x.name, f"{name}:sum"))
        rows, columns = ((n + 2 * padding - k) // stride + 1 for n, k in ((height, high), (width, wide)))
        largest_weight = 256 if self.rounding == "floor" else 128  # floor counts half steps
        limit = weight[0].size * largest_weight * x.limit
        return _Value(f"{name}:sum", (rows, columns, outputs), limit, layer, is_product=True)

    def whole_map(self, x):
        """A linear layer on a map: a kernel as large as it."""
        return self.conv(x, kernel=x.shape[:2], stride=1, padding=0, groups=1)

    def max_pool(self, x):
        kernel = self.draw(st.integers(1, min(3, *x.shape[:2])))
        padding = self.draw(st.integers(0, kernel // 2))
        stride = self.draw(st.sampled_from([1, 2]))
        out = self.name("pool")
        op = MaxPool(kernel, stride, padding, x.name, out, ceil=self.draw(st.booleans()))
        self.ops.append(op)
        return _Value(out, out_shape(op, x.shape), x.limit)

    def sum_pool(self, x):
        out = self.name("sums")
        self.ops.append(SumPool(x.name, out))
        return _Value(out, (1, 1, x.shape[2]), x.shape[0] * x.shape[1] * x.limit)

    def codes(self, terms, lo=None):
        """A requantize of values that agree in shape."""
        lo = self.draw(st.sampled_from([0, 0, -128])) if lo is None else lo
        largest = 255 if lo == 0 else 127
        hi = self.draw(st.sampled_from([largest, largest, largest // 3, 1]))
        r, lowered = self.fixed_point(terms, typical_result=largest)
        out = self.name("codes")
        self.ops.append(Requantize(lowered, r, lo, hi, out))
        return _Value(out, terms[0].shape, 255 if lo == 0 else 128)

    def fixed_point(self, terms, typical_result):
        """r and the terms' tables, whose sums are bounded for any choice of rows."""
        extreme = self.draw(st.sampled_from([False] * 7 + [True]))
        r = self.draw(st.integers(1, 61) if extreme else st.integers(8, 36))
        share = (SUM_LIMIT - 1 - (1 << (r - 1))) // len(terms)
        return r, tuple(self.term(value, r, share, extreme, typical_result) for value in terms)

    def term(self, value, r, share, extreme, typical_result):
        """Products have a gain of either sign for every channel; codes and their sums one positive gain."""
        largest = min(2**31 - 1, share // value.limit)
        if not extreme:  # products of random codes stay far below their limit
            typical = (16 if value.is_product else 2) * (typical_result << r) // value.limit
            largest = min(largest, max(1, typical))
        rows = 1 if value.layer is None else self.draw(st.sampled_from([len(self.choices), 1]))
        shape = rows, value.shape[2] if value.is_product else 1
        multiplier = self.numbers_up_to(largest, shape, extreme, lowest=-1 if value.is_product else 0.25)
        rest = share - abs(multiplier) * value.limit
        largest_offset = rest if extreme else np.minimum(rest, typical_result << r >> 2)
        offset = self.numbers_up_to(largest_offset, shape, extreme)
        return Term(value.name, multiplier.astype(np.int32), offset.astype(np.int64), value.layer)

    def numbers_up_to(self, largest, shape, extreme, lowest=-1):
        """Python integers in an array: parts of `largest` from `lowest` times it, or one of its two signs."""
        parts = self.rng.integers(int(64 * lowest), 65, shape)
        parts = np.where(extreme, np.where(parts < 0, -64, 64), parts).astype(object)
        return np.sign(parts) * (abs(parts) * np.broadcast_to(largest, shape).astype(object) // 64)

    def logits(self, x, classes, out):
        """Fixed layer and scale: x is (1, 1, C)."""
        sums = self.conv(x, kernel=1, stride=1, padding=0, outputs=classes, switchable=False)
        r, (term,) = self.fixed_point([sums], typical_result=100)
        self.ops.append(Scale(term, r, out))
        return _Value(out, (1, 1, classes), SUM_LIMIT)

    def insert_controller(self, at, x, layers):
        """A controller after some layers, which it does not decide."""
        body, self.ops = self.ops, []
        before = tuple(self.draw(st.integers(0, len(self.choices) - 1)) for _ in range(layers))
        x = self.codes([self.sum_pool(x)])
        x = self.codes([self.conv(x, kernel=1, stride=1, padding=0, switchable=False)])
        left = self.layers - layers
        logits = self.logits(x, left * len(self.choices), "choice-logits")
        self.ops.append(Choose(left, logits.name, before=before))
        body[at:at] = [replace(op, controller=True) for op in self.ops]
        self.ops = body

    def name(self, kind):
        return f"{kind}{next(self.numbers)}"

    def weights(self, shape):
        """Weights: random codes, extreme ones, or the lowest everywhere."""
        kind = self.draw(st.sampled_from(["random"] * 5 + ["extreme", "lowest"]))
        if kind == "lowest":
            return np.full(shape, -128, np.int8)
        codes = (
            self.rng.integers(-128, 128, shape) if kind == "random" else self.rng.choice([-128, 127], shape)
        )
        return codes.astype(np.int8)
