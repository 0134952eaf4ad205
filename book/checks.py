"""Checkers for the exercises: each compares a function of yours with the package, and names the first wrong
element with its bits.

    >>> checks.drop_bits(my_function)
    Right: 512 codes at 8 widths.
"""

import math
from fractions import Fraction

import numpy as np
from judging import Verdict, bits
from judging import judge as _judge
from judging import judge_kernel as _judge_kernel

from dqt_core import data, integer, nested, results

UNSIGNED = np.arange(256).astype(np.uint8)
SIGNED = UNSIGNED.view(np.int8)


# Chapter 1


def bytes_at(function):
    """function(count, width): whole bytes that hold `count` codes of `width` bits, packed without gaps."""
    cases = [
        (f"bytes_at({count}, {width})", (count, width), -(-count * width // 8), 32)
        for count in (1, 3, 8, 1000, 11_164_352)
        for width in range(1, 9)
    ]
    return _judge(function, cases, f"{len(cases)} sizes")


def layer_bitops(function):
    """function(size, kernel, inputs, outputs, b_w, b_a): BitOPs of a convolution with size x size outputs."""
    layers = [(1, 1, 512, 10), (32, 3, 3, 64), (8, 1, 64, 256), (7, 3, 512, 512)]
    widths = [(8, 8), (4, 4), (2, 8), (1, 1)]
    cases = []
    for size, kernel, inputs, outputs in layers:
        for b_w, b_a in widths:
            macs = size**2 * kernel**2 * inputs * outputs
            arguments = (size, kernel, inputs, outputs, b_w, b_a)
            cases.append((f"layer_bitops{arguments}", arguments, macs * b_w * b_a, 48))
    return _judge(function, cases, f"{len(cases)} layers and widths")


def multiply_bits(function):
    """function(x, y, width): product of two unsigned `width`-bit codes, one bit at a time."""
    cases = [
        (f"multiply_bits({x:#0{width + 2}b}, {y:#0{width + 2}b}, {width})", (x, y, width), x * y, 2 * width)
        for width in (1, 2, 4, 6)
        for x in range(1 << width)
        for y in range(1 << width)
    ]
    return _judge(function, cases, f"{len(cases):,} products")


def quantize_at(function):
    """function(x, width): codes of a signed width whose own step sends the largest magnitude to hi_b."""
    x = np.random.default_rng(3).normal(size=200)
    cases = []
    for width in range(2, 9):
        step = np.abs(x).max() / nested.code_range(width, signed=True)[1]
        expected, _ = nested.quantize(x, step=step)
        cases.append((f"quantize_at(x, {width})", (x, width), expected, width))
    return _judge(
        function, cases, f"{len(x)} numbers at {len(cases)} widths", lambda i: f"x[{i}] = {x[i]:.4f}"
    )


def lowest_sufficient(function):
    """function(classes): for each column, an image, the first row whose class is the last row's."""
    rng = np.random.default_rng(4)
    classes = np.where(rng.random((5, 60)) < 0.5, rng.integers(0, 10, (5, 60)), rng.integers(0, 10, 60))
    expected = np.array([min(np.flatnonzero(column == column[-1])) for column in classes.T])
    cases = [("lowest_sufficient(classes)", (classes,), expected, 3)]
    return _judge(
        function, cases, f"{len(expected)} images", lambda i: f"image {i}, classes {classes[:, i].tolist()}"
    )


# Chapter 2


def drop_bits(function):
    """function(codes, width): floor views of signed and unsigned master codes."""
    return _judge_views(
        function, "drop_bits", lambda codes, width: nested.switch(codes, width, rounding="floor")
    )


def half_up(function):
    """function(codes, width): half_up views of signed and unsigned master codes."""
    return _judge_views(function, "half_up", nested.switch)


def half_even(function):
    """function(codes, width): views of master codes rounded to nearest, ties to the even code."""

    def expected(codes, width):
        hi = nested.code_range(width, codes.dtype == np.int8)[1]
        return np.minimum(np.rint(codes / 2.0 ** (8 - width)), hi).astype(np.int64)

    return _judge_views(function, "half_even", expected)


def epsilon_zero(function):
    """function(width, signed): the masters whose top dropped bit is 1 and whose epsilon is nevertheless 0."""
    cases = []
    for signed in (False, True):
        codes = np.sort(SIGNED if signed else UNSIGNED)
        for width in range(1, 8):
            top_dropped = (codes.astype(np.int64) >> (7 - width)) & 1
            added = nested.switch(codes, width) != nested.switch(codes, width, rounding="floor")
            expected = codes[(top_dropped == 1) & ~added].astype(np.int64)
            cases.append((f"epsilon_zero({width}, signed={signed})", (width, signed), expected, 8))
    return _judge(function, cases, "7 widths, unsigned and signed", lambda i: f"entry {i}")


def path_differs(function):
    """function(middle, last): unsigned masters whose half_up view depends on a stop at `middle` bits."""
    cases = []
    for middle in range(2, 8):
        for last in range(1, middle):
            stop = nested.switch(UNSIGNED, middle) << (8 - middle)
            expected = UNSIGNED[nested.switch(stop, last) != nested.switch(UNSIGNED, last)].astype(np.int64)
            cases.append((f"path_differs({middle}, {last})", (middle, last), expected, 8))
    return _judge(function, cases, f"{len(cases)} paths", lambda i: f"entry {i}")


def read_half_up(function):
    """function(read_plane, width): half_up views of unsigned masters, reading as few planes as possible."""
    codes = np.random.default_rng(5).permutation(UNSIGNED)
    for width in range(1, 9):
        touched = set()

        def read_plane(plane, touched=touched):
            touched.add(int(plane))
            return (codes.astype(np.int64) >> (7 - plane)) & 1

        case = (f"read_half_up(read_plane, {width})", (read_plane, width), nested.switch(codes, width), width)
        verdict = _judge(function, [case], "", lambda i: f"master {codes[i]} ({bits(codes[i], 8)})")
        needed = min(width + 1, 8)
        if verdict and len(touched) > needed:
            message = f"{case[0]} read {len(touched)} planes {sorted(touched)}; {needed} hold all it needs."
            return Verdict(False, message)
        if not verdict:
            return verdict
    return Verdict(True, "Right: 256 codes at 8 widths, and no plane too many.")


# Chapter 3


def wrap(function):
    """function(totals, width): what a signed register of `width` bits holds of each total."""
    totals = np.random.default_rng(6).integers(-(2**40), 2**40, 60)
    cases = []
    for width in (4, 8, 16, 32):
        edges = [
            sign * 2**power + near for power in (width - 1, width) for sign in (-1, 1) for near in (-1, 0, 1)
        ]
        given = np.concatenate([np.arange(-9, 10), edges, totals])
        half = 1 << (width - 1)
        expected = ((given & (2 * half - 1)) ^ half) - half
        cases.append((f"wrap(totals, {width})", (given, width), expected, width))
    return _judge_each(function, cases, f"{len(cases[0][2])} totals in {len(cases)} registers", "total")


def longest_sum(function):
    """function(accumulator, b_w, b_a): products that surely fit a signed register of `accumulator` bits."""
    cases = []
    for accumulator in (16, 24, 32):
        for b_w in range(1, 9):
            for b_a in range(1, 9):
                largest = max(
                    abs(w * a) for w in nested.code_range(b_w, True) for a in nested.code_range(b_a, False)
                )
                call = f"longest_sum({accumulator}, {b_w}, {b_a})"
                most = (2 ** (accumulator - 1) - 1) // largest
                cases.append((call, (accumulator, b_w, b_a), most, accumulator))
    return _judge(function, cases, f"{len(cases)} registers and widths")


def im2col_strided(function):
    """function(x, size, stride, padding): rows of codes, one for each output pixel of a convolution."""
    x = np.random.default_rng(7).integers(0, 256, (2, 6, 5, 3)).astype(np.uint8)
    cases = []
    for size, stride, padding in ((1, 1, 0), (3, 1, 1), (1, 2, 0), (3, 2, 1), (3, 2, 0), (5, 3, 2)):
        # a kernel of ones and zeros reads one entry of the row
        kernels = np.eye(size * size * 3, dtype=np.int8).reshape(-1, size, size, 3)
        expected = integer.conv2d(x, kernels, stride, padding)
        call = f"im2col_strided(x, {size}, stride={stride}, padding={padding})"
        cases.append((call, (x, size, stride, padding), expected, 8))
    return _judge(function, cases, f"{len(cases)} kernels, strides and paddings", lambda i: f"entry {i}")


def unsigned_bytes_only(function):
    """function(x, w, product): x @ w.T for uint8 and int8, by a product of uint8 and uint8."""

    def product(x, w):
        if x.dtype != np.uint8 or w.dtype != np.uint8:
            raise TypeError(f"this machine multiplies uint8 by uint8, got {x.dtype} and {w.dtype}")
        return x.astype(np.int32) @ w.T.astype(np.int32)

    rng = np.random.default_rng(8)
    x = rng.integers(0, 256, (6, 300)).astype(np.uint8)
    w = rng.integers(-128, 128, (5, 300)).astype(np.int8)
    case = ("unsigned_bytes_only(x, w, product)", (x, w, product), integer.matmul(x, w), 24)
    return _judge(function, [case], "30 accumulators", lambda i: f"row {i // 5}, output {i % 5}")


def first_inexact(function):
    """function(products): how many were added when float32 first differs from the exact sum; 0 if never."""
    rng = np.random.default_rng(9)
    given = {
        "largest odd": np.full(2000, 255 * 127),
        "even": np.full(1000, 255 * 64),
        "random": rng.integers(0, 32_386, 5000),
        "both signs": rng.integers(-32_640, 32_386, 3000),
        "right again": np.array([2**24, 1, 1, 2]),
        "wrong at once": np.array([2**24 + 1, 1]),
        "huge": np.array([2**31 - 1, 2**31 - 1, 5]),
        "short": np.arange(10),
    }
    cases = []
    for name, products in given.items():
        exact, counted, expected = 0, np.float32(0), 0
        for added, product in enumerate(products.tolist(), 1):
            exact, counted = exact + product, counted + np.float32(product)
            if int(counted) != exact:
                expected = added
                break
        cases.append((f'first_inexact(products), products "{name}"', (products,), expected, 16))
    return _judge(function, cases, f"{len(cases)} lists of products")


def significant(function):
    """function(numbers, kept): integers of at most `kept` significant bits, ties to even."""
    rng = np.random.default_rng(10)
    numbers = np.concatenate([np.arange(600), rng.integers(0, 2**31, 200), 2 ** np.arange(31), [2**31 - 1]])
    float32 = numbers.astype(np.float32).astype(np.int64)
    upper = numbers.astype(np.float64).view(np.uint64)
    cases = [("significant(numbers, 24)", (numbers, 24), float32, 32)]
    for kept in (2, 4, 8):
        # a float64 holds each number exactly; its mantissa is rounded where `kept` bits end
        drop = 53 - kept
        up = (1 << (drop - 1)) - 1 + (upper >> drop & 1)
        rounded = ((upper + up) >> drop << drop).view(np.float64).astype(np.int64)
        cases.append(
            (f"significant(numbers, {kept})", (numbers, kept), np.where(numbers == 0, 0, rounded), 32)
        )
    return _judge_each(function, cases, f"{len(numbers)} numbers at {len(cases)} precisions", "number")


# Chapter 4


def ties_down(function):
    """function(totals, r): totals / 2**r to the nearest integer, ties down."""
    cases = []
    for r in (1, 2, 5, 8):
        totals = np.arange(-(5 << r) // 2, (5 << r) // 2 + 1)
        # ties down are ties up, seen from the other side
        cases.append((f"ties_down(totals, {r})", (totals, r), -((-totals + (1 << (r - 1))) >> r), 16))
    return _judge_each(function, cases, f"{sum(len(c[2]) for c in cases)} totals and shifts", "total")


def rational_multiplier(function):
    """function(numerator, denominator, r): floor(numerator / denominator * 2**r + 1/2)."""
    cases = []
    ratios = [
        (3, 10),
        (-3, 10),
        (1, 3),
        (1, 8),
        (-1, 8),
        (5, 8),
        (10**18 + 1, 10**19),
        (3 * 2**60 - 1, 2**62),
    ]
    for numerator, denominator in ratios:
        for r in (1, 2, 20, 31):
            expected = math.floor(Fraction(numerator, denominator) * 2**r + Fraction(1, 2))
            call = f"rational_multiplier({numerator}, {denominator}, {r})"
            cases.append((call, (numerator, denominator, r), expected, 32))
    return _judge(function, cases, f"{len(cases)} ratios and shifts")


def requantize_array(function):
    """function(a, d, M, B, r, lo, hi): one term, for int32 arrays of shape (images, channels)."""
    rng = np.random.default_rng(12)
    d = np.array([[0], [4], [8], [12]])
    a = (rng.integers(-(2**21), 2**21, (4, 50)) >> d).astype(np.int32)
    multiplier = rng.integers(-(2**30), 2**31 - 1, 50).astype(np.int32)
    cases = []
    for r, lo, hi in ((44, -128, 127), (44, 0, 255), (43, 0, 6)):
        # half of the offsets make ties of accumulators that are 0
        offset = np.where(
            np.arange(50) % 2, rng.integers(-(2**r), 2**r, 50), (2 * rng.integers(-3, 3, 50) + 1) << (r - 1)
        )
        given = np.where(np.arange(50) % 2, a, a * (rng.random((4, 50)) < 0.5)).astype(np.int32)
        expected = integer.requantize([(given, d, multiplier)], offset, r, lo, hi)
        call = f"requantize_array(a, d, M, B, {r}, {lo}, {hi})"
        cases.append((call, (given, d, multiplier, offset, r, lo, hi), expected, 8))
    return _judge(function, cases, f"{3 * a.size} codes", lambda i: f"image {i // 50}, channel {i % 50}")


def threshold(function):
    """function(y, M, B, r): smallest accumulator whose code is at least y; M > 0."""
    cases = []
    for multiplier, offset, r in (
        (1, 0, 1),
        (5, 0, 4),
        (5, -37, 4),
        (1_583_594_044, 0, 40),
        (12_345, 10**9, 31),
    ):
        for y in (-128, -1, 0, 1, 2, 255):
            expected = math.ceil((Fraction(2 * y - 1, 2) * 2**r - offset) / multiplier)
            call = f"threshold({y}, {multiplier}, {offset}, {r})"
            cases.append((call, (y, multiplier, offset, r), expected, 32))
    return _judge(function, cases, f"{len(cases)} thresholds")


def first_twice(function):
    """function(M, r, s): smallest accumulator from 0 on whose code changes if s bits go first."""
    cases = []
    for multiplier, r, s in (
        (19, 6, 3),
        (1, 4, 2),
        (1_583_594_044, 40, 31),
        (1_319_413_953, 40, 32),
        (777, 20, 10),
    ):
        accumulator = 0
        while not _rounded_twice_differs(accumulator * multiplier, r, s):
            accumulator += 1
        cases.append((f"first_twice({multiplier}, {r}, {s})", (multiplier, r, s), accumulator, 20))
    return _judge(function, cases, f"{len(cases)} multipliers")


def _rounded_twice_differs(total, r, s):
    once = (total + (1 << (r - 1))) >> r
    first = (total + (1 << (s - 1))) >> s
    return (first + (1 << (r - s - 1))) >> (r - s) != once


# Chapter 5


def input_table(function):
    """function(table, step): signed 8-bit codes of a table of real numbers, ties up."""
    ties = np.stack([(np.arange(256) - 128) / 16] * 3)
    usual = data.normalization_table((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)).astype(np.float64)
    cases = []
    for table, step in ((usual, 0.017), (ties, 0.125), (8 * ties, 0.25)):
        expected = nested.quantize(table, step=step)[0]
        cases.append((f"input_table(table, {step})", (table, step), expected, 8))
    return _judge(function, cases, f"{len(cases)} tables", lambda i: f"byte {i % 256} of colour {i // 256}")


def fold_layer(function):
    """function(gain, bias, step_x, step_w, step_y, r): M and B of every channel, as two rows."""
    rng = np.random.default_rng(6)
    cases = []
    for r in (16, 24):
        gain, bias = rng.normal(1, 0.5, 12), rng.normal(0, 1, 12)
        step_w, step_x, step_y = np.exp(rng.normal(-4, 0.5, 12)), 0.021, 0.037
        multiplier, _ = integer.fixed_point(gain * step_x * step_w / step_y, r)
        offset = np.floor(bias / step_y * 2**r + 0.5).astype(np.int64)
        arguments = (gain, bias, step_x, step_w, step_y, r)
        cases.append((f"fold_layer(..., r={r})", arguments, np.stack([multiplier, offset]), 32))
    return _judge(
        function, cases, "12 channels at 2 shifts", lambda i: f"{'MB'[i // 12]} of channel {i % 12}"
    )


def mean_pool(function):
    """function(codes, r): rounded means over height and width, by one integer multiplier."""
    rng = np.random.default_rng(7)
    cases = []
    for height, width, r in ((4, 4, 20), (1, 2, 20), (7, 7, 24), (3, 5, 16), (1, 1, 16)):
        codes = rng.integers(0, 256, (3, height, width, 40)).astype(np.uint8)
        codes[0] = 255
        multiplier, _ = integer.fixed_point(1 / (height * width), r)
        expected = integer.requantize([(integer.sum_pool(codes), 0, multiplier)], 0, r, 0, 255)
        name = f"mean_pool({height} x {width} codes, r={r})"
        cases.append((name, (codes, r), expected.reshape(3, 40), 8))
    return _judge(function, cases, f"{len(cases)} sizes", lambda i: f"image {i // 40}, channel {i % 40}")


def residual(function):
    """function(acc, d, M, q, M_q, B, r): the end of a block, rounded once."""
    rng = np.random.default_rng(8)
    cases = []
    for d in (0, 4, 8, 12):
        acc = rng.integers(-(2**21) >> d, 2**21 >> d, (2, 3, 3, 4)).astype(np.int32)
        q = rng.integers(0, 256, acc.shape).astype(np.uint8)
        multiplier = rng.integers(-(2**20), 2**20, 4).astype(np.int32)
        offset = rng.integers(-(2**39), 2**39, 4)
        arguments = (acc, d, multiplier, q, 2**31 - 2**20, offset, 32)
        terms = [(acc, d, multiplier), (q, 0, arguments[4])]
        expected = integer.requantize(terms, offset, 32, 0, 255)
        cases.append((f"residual(acc, {d}, ...)", arguments, expected, 8))
    return _judge(function, cases, "288 sums at 4 shifts", lambda i: f"pixel {i // 4}, channel {i % 4}")


def largest_r(function):
    """function(terms, offset): the largest shift that keeps every multiplier and every sum in range."""
    accumulator = np.array([3e-4, 1.7e-3, 9e-4]), 9 * 64 * 128 * 255
    settings = {
        "one term": ([accumulator], np.array([3.0, -4.0, 0.5])),
        "with a shortcut": ([accumulator, (np.full(3, 0.8), 255)], np.array([3.0, -4.0, 0.5])),
        "a large multiplier": ([(np.array([700.0, -900.0]), 255)], np.zeros(2)),
        "a large offset": ([(np.array([1e-6]), 255)], np.array([-3e5])),
        "tiny ratios": ([(np.array([1e-12, 1e-13]), 2**20)], np.zeros(2)),
        "channels apart": ([(np.array([1e-9, 1.0]), 2**31)], np.array([3e9, 0.0])),
    }
    cases = [
        (f"largest_r({name})", arguments, integer.largest_shift(*arguments), 6)
        for name, arguments in settings.items()
    ]
    return _judge(function, cases, f"{len(cases)} layers")


# Chapter 7


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
    return _judge_kernel(function, "floor_kernel", "floor_switch", cases, "3 lengths at 8 widths")


def tail_kernel(function):
    """function(): text of a kernel top_bits(codes, out, n), four uint8 codes a thread."""
    rng = np.random.default_rng(19)
    cases = []
    for n in (*range(1, 9), 509, 510, 511, 512, 513, 1027):
        codes = rng.integers(0, 256, n).astype(np.uint8)
        arguments = codes, np.full(n, 0x5A, np.uint8), np.int32(n)
        cases.append((f"{n} codes", -(-n // 512), arguments, codes >> 7, 1))
    return _judge_kernel(function, "tail_kernel", "top_bits", cases, f"{len(cases)} lengths")


def barrier_kernel(function):
    """function(): text of a kernel share_sum(x, out): every thread receives the sum of 128 codes."""
    codes = np.random.default_rng(20).integers(0, 256, 128).astype(np.uint8)
    expected = np.full(128, codes.sum(dtype=np.int32))
    cases = [("128 codes", 1, (codes, np.zeros(128, np.int32)), expected, 16)]
    return _judge_kernel(function, "barrier_kernel", "share_sum", cases, "128 threads")


def gemv_bytes(function):
    """function(outputs, length, vectors, b): bytes of planes, inputs and results of gemv_planes."""
    cases = []
    for outputs, length, vectors in ((1, 8, 1), (3, 9, 1), (40, 1000, 2), (64, 33, 8)):
        planes = nested.to_planes(np.zeros((outputs, length), np.int8))
        for b in range(1, 9):
            moved = planes[:b].nbytes + vectors * (length + outputs * np.int32().nbytes)
            arguments = outputs, length, vectors, b
            cases.append((f"gemv_bytes{arguments}", arguments, moved, 24))
    return _judge(function, cases, f"{len(cases)} products")


def bank_passes(function):
    """function(stride): passes in which a warp reads four words of each of eight rows of shared memory."""
    cases = []
    for stride in range(4, 260, 4):
        banks = {}
        for lane in range(32):
            word = (lane // 4 * stride + lane % 4 * 4) // 4
            banks.setdefault(word % 32, set()).add(word)
        cases.append((f"bank_passes({stride})", (stride,), max(map(len, banks.values())), 6))
    return _judge(function, cases, f"{len(cases)} strides")


def owner(function):
    """function(row, term): lane, register and byte that hold elements of the left operand of an mma."""
    place = np.arange(512)
    lane, register, byte = place // 16, place // 4 % 4, place % 4
    row, term = lane // 4 + 8 * (register % 2), 4 * (lane % 4) + 16 * (register // 2) + byte
    order = np.random.default_rng(21).permutation(512)
    row, term, expected = row[order], term[order], np.stack([lane, register, byte])[:, order]
    return _judge(
        function,
        [("owner(row, term)", (row, term), expected, 5)],
        "512 elements",
        lambda i: f"{('lane', 'register', 'byte')[i // 512]} of row {row[i % 512]}, term {term[i % 512]}",
    )


# Chapter 8


def gradient_mask(function):
    """function(w, step, lo, hi): 1 where the straight-through gradient reaches a weight, else 0."""
    cases = []
    for step, lo, hi in ((0.25, -128, 127), (0.01, -128, 127), (0.02, 0, 255), (0.5, -8, 7)):
        w = np.random.default_rng(10).uniform(1.5 * lo - 9, 1.5 * hi, 60) * step
        expected, _ = _gradients(w, step, lo, hi)
        cases.append((f"gradient_mask(w, {step}, {lo}, {hi})", (w, step, lo, hi), expected != 0, 1))
    return _judge(function, cases, "60 weights in 4 ranges", lambda i: f"weight {i}")


def updates_until_jump(function):
    """function(q, rate, width): updates until the view of a latent weight changes; 0 if it never does."""
    cases = []
    for width in (2, 3, 4, 6, 8):
        for rate in (1, 3, 10):
            for q in range(-128, 128):
                path = np.minimum(q + rate * np.arange(257), 127).astype(np.int8)
                views = nested.switch(path, width)
                call = f"updates_until_jump({q} ({bits(q, 8)}), {rate}, {width})"
                cases.append((call, (q, rate, width), int((views != views[0]).argmax()), 8))
    return _judge(function, cases, f"{len(cases):,} starts")


def exact_terms(function):
    """function(b_w, b_a, significant): products that surely add up exactly in a float."""
    cases = []
    for significant in (8, 11, 24, 53):
        for b_w, b_a in ((8, 8), (4, 4), (2, 2), (4, 8), (1, 1)):
            largest = -nested.code_range(b_w, True)[0] * nested.code_range(b_a, False)[1]
            arguments = (b_w, b_a, significant)
            cases.append((f"exact_terms{arguments}", arguments, 2**significant // largest, 54))
    return _judge(function, cases, f"{len(cases)} pairs of widths and floats")


def step_pull(function):
    """function(w, step, width): derivative of a view's value by the master step, straight-through."""
    cases = []
    for step in (0.25, 0.03):
        w = np.random.default_rng(11).uniform(-170, 170, 40) * step
        for width in range(1, 9):
            expected = _gradients(w, step, -128, 127, width)[1]
            cases.append((f"step_pull(w, {step}, {width})", (w, step, width), expected))
    masters = nested.quantize(w / step, step=1.0)[0]
    return _judge_reals(
        function, cases, "40 weights at 8 widths", lambda i: f"master {masters[i]} ({bits(masters[i], 8)})"
    )


def common_statistics(function):
    """function(means, variances): mean and variance of equally many values from each width."""
    rng = np.random.default_rng(12)
    cases = []
    for count in (2, 5):
        means, variances = rng.normal(size=count), rng.uniform(0.5, 2, count)
        square = (variances + means**2).mean()
        expected = np.array([means.mean(), square - means.mean() ** 2])
        cases.append((f"common_statistics of {count} widths", (means, variances), expected))
    return _judge_reals(function, cases, "2 channels", lambda i: ("the mean", "the variance")[i])


def _gradients(w, step, lo, hi, width=8):
    """Derivatives of a view's value by the weight and by the step, as the package's training has them."""
    import torch  # chapters 1 to 7 do without

    from dqt_core.training import straight_through

    steps = torch.full(w.shape, step, requires_grad=True)
    leaf = torch.tensor(w, dtype=torch.float32, requires_grad=True)
    codes = straight_through.switch(
        straight_through.quantize(leaf, steps.log(), lo, hi), width, signed=lo < 0
    )
    gradients = torch.autograd.grad((codes * 2.0 ** (8 - width) * steps).sum(), (leaf, steps))
    return [gradient.numpy() for gradient in gradients]


# Chapter 9


def channel_sums(function):
    """function(codes): sums of codes (N, H, W, C) over height and width, (N, C)."""
    rng = np.random.default_rng(13)
    cases = []
    for dtype, size in ((np.uint8, 32), (np.int8, 8), (np.uint8, 1)):
        codes = rng.integers(0, 256, (3, size, size, 5)).astype(np.uint8).view(dtype)
        name = f"channel_sums({np.dtype(dtype)} codes, {size} x {size})"
        cases.append((name, (codes,), codes.sum((1, 2), dtype=np.int64), 20))
    return _judge(function, cases, "3 kinds of codes", lambda i: f"image {i // 5}, channel {i % 5}")


def choose(function):
    """function(logits, layers): index of the chosen width, (N, layers), ties to the narrower."""
    rng = np.random.default_rng(14)
    cases = []
    for layers, choices in ((4, 5), (3, 3), (19, 5)):
        tied = rng.integers(-3, 4, (20, layers, choices))
        for name, logits in (("small", tied), ("large", 2**50 + tied)):
            call = f"choose({name} logits, {layers})"
            arguments = logits.reshape(20, -1), layers
            cases.append((call, arguments, (logits == logits.max(-1, keepdims=True)).argmax(-1), 3))
    return _judge(function, cases, f"20 images, {len(cases)} networks", lambda i: f"entry {i}")


def image_bitops(function):
    """function(macs, widths, fixed_macs): BitOPs of each image, fixed layers at 8 bits."""
    rng = np.random.default_rng(15)
    cases = []
    for layers in (2, 19):
        macs = rng.integers(10**6, 10**9, layers)
        widths = rng.choice([2, 3, 4, 6, 8], (6, layers))
        expected = (macs * widths**2).sum(1) + 64 * 12_345
        call = f"image_bitops(macs of {layers} layers, widths, 12345)"
        cases.append((call, (macs, widths, 12_345), expected, 48))
    return _judge(function, cases, "6 images of 2 networks", lambda i: f"image {i}")


def not_dominated(function):
    """function(cost, correct): ascending indices of the settings that no other setting beats."""
    rng = np.random.default_rng(16)
    cases = [("not_dominated(two equal settings)", (np.array([3, 3]), np.array([5, 5])), np.arange(2), 5)]
    for count in (6, 30):
        cost, correct = rng.integers(1, 12, count), rng.integers(300, 309, count)
        no_worse = (cost[:, None] <= cost) & (correct[:, None] >= correct)
        better = (cost[:, None] < cost) | (correct[:, None] > correct)
        expected = np.flatnonzero(~(no_worse & better).any(0))
        cases.append((f"not_dominated({count} settings)", (cost, correct), expected, 5))
    return _judge(function, cases, f"{len(cases)} sets of settings", lambda i: f"entry {i}")


def best_static(function):
    """function(loss, cost, budget): the choice of every layer with the least loss within the budget."""
    rng = np.random.default_rng(17)
    cases = []
    for layers, budget in ((3, 90), (4, 90), (4, 60), (5, 150)):
        loss = -np.sort(-rng.choice(1000, (layers, 3), replace=False), axis=1)
        cost = rng.integers(1, 4, (layers, 1)) * np.array([4, 16, 64]) // 4
        picks = np.stack(np.meshgrid(*[range(3)] * layers, indexing="ij"), -1).reshape(-1, layers)
        totals = [table[np.arange(layers), picks].sum(1) for table in (loss, cost)]
        expected = picks[np.where(totals[1] <= budget, totals[0], 10**6).argmin()]
        cases.append((f"best_static({layers} layers, budget {budget})", (loss, cost, budget), expected, 2))
    return _judge(function, cases, f"{len(cases)} networks", lambda i: f"layer {i}")


# Chapter 6


def network_bitops(function):
    """function(macs, width): BitOPs with the first and last layer at 8 bits."""
    cases = []
    for macs in ([1000, 20_000, 30_000, 50], [7, 11, 13], [118_013_952, 12_845_056, 2_048_000]):
        for width in (8, 4, 3, 2):
            expected = 64 * macs[0] + width * width * sum(macs[1:-1]) + 64 * macs[-1]
            cases.append((f"network_bitops({macs}, {width})", (macs, width), expected, 48))
    return _judge(function, cases, f"{len(cases)} networks and widths")


def switched_elements(function):
    """function(layers, widths): weights and inputs that are read below 8 bits."""
    layers = [(36_864, 65_536), (576, 1000), (10_240, 1)]
    settings = [
        [(4, 4), (4, 4), (4, 4)],
        [(8, 8), (8, 8), (8, 8)],
        [(8, 4), (2, 8), (4, 2)],
        [(7, 8), (8, 1), (8, 8)],
    ]
    cases = []
    for widths in settings:
        expected = sum(
            count
            for layer, bits in zip(layers, widths, strict=True)
            for count, b in zip(layer, bits, strict=True)
            if b != 8
        )
        cases.append((f"switched_elements(layers, {widths})", (layers, widths), expected, 24))
    return _judge(function, cases, f"{len(cases)} choices of widths")


def plane_bytes(function):
    """function(count, width, rounding): bytes of the planes that a view reads."""
    cases = []
    for count in (1, 8, 9, 1000, 36_864):
        packed = nested.to_planes(np.zeros(count, np.int8))
        for width in range(1, 9):
            for rounding, planes in (("floor", width), ("half_up", min(width + 1, 8))):
                call = f"plane_bytes({count}, {width}, {rounding!r})"
                cases.append((call, (count, width, rounding), packed[:planes].nbytes, 24))
    return _judge(function, cases, f"{len(cases)} views")


def rescale(function):
    """function(codes, M, r, width): int8 codes times M / 2**r, rounded to signed codes of a width."""
    codes = np.sort(SIGNED)
    cases = []
    for width in range(2, 9):
        lo, hi = nested.code_range(width, signed=True)
        for ratio in (2.0 ** (width - 8), 1.1 * 2.0 ** (width - 8), 0.37):
            multiplier, r = integer.fixed_point(ratio, limit=128)
            expected = integer.requantize([(codes, 0, multiplier)], 0, r, lo, hi)
            arguments = (codes, int(multiplier), r, width)
            cases.append((f"rescale(codes, {int(multiplier)}, {r}, {width})", arguments, expected, width))
    return _judge(
        function,
        cases,
        f"256 codes at {len(cases)} ratios",
        lambda i: f"master {codes[i]} ({bits(codes[i], 8)})",
    )


def bit_serial(function):
    """function(x_planes, w_planes): the sum of products of floor views, from their bit planes."""
    rng = np.random.default_rng(9)
    x, w = rng.integers(0, 256, 504).astype(np.uint8), rng.integers(-128, 128, 504).astype(np.int8)
    cases = []
    for b_a, b_w in ((1, 1), (8, 8), (4, 4), (2, 8), (8, 2), (3, 1)):
        views = (nested.switch(codes, b, rounding="floor").astype(int) for codes, b in ((x, b_a), (w, b_w)))
        expected = int(np.multiply(*views).sum())
        planes = nested.to_planes(x)[:b_a], nested.to_planes(w)[:b_w]
        cases.append((f"bit_serial({b_a} planes, {b_w} planes)", planes, expected, 32))
    return _judge(function, cases, f"504 products at {len(cases)} pairs of widths")


# Chapter 10


def count_hits(function):
    """function(text, n): how many of the first n bits of a base64 text are 1."""
    rng = np.random.default_rng(10)
    cases = []
    for n in (1, 7, 8, 100, 1001):
        hits = rng.random(n + 5) < 0.8
        cases.append((f"count_hits(text, {n})", (results.packed(hits), n), int(hits[:n].sum()), 16))
    return _judge(function, cases, f"{len(cases)} texts")


def images_needed(function):
    """function(p, points): fewest images so that two standard deviations are at most that many points."""
    cases = []
    for p in (0.5, 0.77, 0.93, 0.995):
        for points in (0.13, 0.7, 3.1):
            share = Fraction(points) / 100
            fewest = math.ceil(4 * Fraction(p) * (1 - Fraction(p)) / share**2)
            cases.append((f"images_needed({p}, {points})", (p, points), fewest, 24))
    return _judge(function, cases, f"{len(cases)} accuracies and precisions")


def dividing_images(function):
    """function(first, second): images that the first alone, and the second alone, gets right."""
    rng = np.random.default_rng(11)
    cases = []
    for n, a, b in ((1, 0.9, 0.1), (50, 0.5, 0.5), (1000, 0.9, 0.88), (1000, 0.6, 0.95)):
        first, second = rng.random(n) < a, rng.random(n) < b
        test = results.paired(first, second)
        expected = np.array([test["only_first"], test["only_second"]])
        cases.append((f"dividing_images({n} images)", (first, second), expected, 12))
    return _judge(function, cases, f"{len(cases)} pairs of networks")


def tail_count(function):
    """function(a, n): outcomes of n fair coins at least as uneven as a heads, on either side."""
    cases = []
    for a, n in ((0, 1), (1, 2), (3, 7), (5, 10), (4, 10), (9, 10), (20, 50), (31, 60)):
        uneven = (k for k in range(n + 1) if abs(2 * k - n) >= abs(2 * a - n))
        cases.append((f"tail_count({a}, {n})", (a, n), sum(math.comb(n, k) for k in uneven), 62))
    return _judge(function, cases, f"{len(cases)} counts")


# Chapter 11


def tie_count(function):
    """function(codes, drop): how many int8 master codes the switch rounds up by exactly half of its step."""
    rng = np.random.default_rng(31)
    cases = []
    for drop in range(1, 8):
        for codes in (SIGNED, np.sort(rng.integers(-60, 90, 500).astype(np.int8))):
            ties = sum(int(q) % 2**drop * 2 == 2**drop for q in codes)
            cases.append((f"tie_count(codes, {drop})", (codes, drop), ties, 10))
    return _judge(function, cases, f"{len(cases)} sets of codes")


def single_rounding(function):
    """function(x, drop): codes whose view is x rounded directly; next to x or one lower."""
    rng = np.random.default_rng(32)
    x = np.concatenate([np.arange(-400, 401) / 4, rng.uniform(-100, 100, 600)])
    for drop in (1, 2, 3, 5):
        nearest = np.floor(x + 0.5).astype(int)
        lower = np.floor(np.floor(2 * x / 2**drop + 1) / 2).astype(int) < (nearest + 2 ** (drop - 1)) >> drop
        case = (f"single_rounding(x, {drop})", (x, drop), nearest - lower, 8)
        verdict = _judge(function, [case], f"{len(x)} weights at 4 widths", lambda i: f"x = {x[i]:.4f}")
        if not verdict:
            return verdict
    return verdict


def corrected_table(function):
    """function(old, wide, own): mean and variance under which `own` leaves as `wide` does under `old`."""
    rng = np.random.default_rng(33)
    cases = []
    for channels in (1, 6):
        old, wide, own = (
            np.stack([rng.normal(0, 3, channels), rng.uniform(0.2, 5, channels)]) for _ in range(3)
        )
        gain = np.sqrt(own[1] / wide[1])
        expected = np.stack([own[0] - (wide[0] - old[0]) * gain, old[1] * gain * gain])
        cases.append((f"corrected_table of {channels} channels", (old, wide, own), expected.ravel()))

    def flat(*tables):
        got = function(*tables)
        return got if got is None or got is Ellipsis else np.concatenate([np.ravel(row) for row in got])

    def name(i):
        half = len(cases[-1][2]) // 2
        return f"the {('mean', 'variance')[i // half]} of channel {i % half}" if i >= 2 else "channel 0"

    return _judge_reals(flat, cases, "7 channels", name)


def one_sided_kernel(function):
    """function(weight): 3x3 weights as 4x4 ones that, with padding 1 on all sides, pad below and right."""
    rng = np.random.default_rng(34)
    cases = []
    for outputs, inputs in ((1, 1), (4, 3)):
        weight = rng.integers(-128, 128, (outputs, 3, 3, inputs)).astype(np.int8)
        expected = np.zeros((outputs, 4, 4, inputs), np.int8)
        expected[:, 1:, 1:] = weight
        cases.append((f"one_sided_kernel({outputs} x 3 x 3 x {inputs})", (weight,), expected, 8))
    return _judge(function, cases, f"{len(cases)} layers", lambda i: f"element {i}")


# Chapter 12


def tool_bias(function):
    """function(B, M, drop): offsets rounded to whole accumulator units, M << drop, ties to even."""
    rng = np.random.default_rng(20)
    cases = []
    for drop in (0, 8, 12):
        multipliers = 2 * rng.integers(2**28, 2**30, 40)  # even: half a unit is an integer
        units = [int(m) << drop for m in multipliers]
        whole = rng.integers(-(2**14), 2**14, 40)
        beyond = [0, 1, -1, *rng.integers(-(2**27), 2**27, 17)] + [0] * 20
        half = [0] * 20 + [1] * 20  # ties, even and odd
        offsets = [
            int(w) * u + h * u // 2 + int(b) for w, u, h, b in zip(whole, units, half, beyond, strict=True)
        ]
        expected = [round(Fraction(b, u)) * u for b, u in zip(offsets, units, strict=True)]
        arguments = np.array(offsets), multipliers, drop
        cases.append((f"tool_bias(B, M, {drop})", arguments, np.array(expected), 64))
    return _judge_each(function, cases, f"40 offsets, ties among them, at {len(cases)} widths", "B =")


def float32_multiplier(function):
    """function(M): positive integers below 2**31 rounded to 24 significant bits, ties to even."""
    rng = np.random.default_rng(21)
    edges = [
        1,
        2**24 - 1,
        2**24,
        2**24 + 1,
        2**24 + 3,
        2**25 + 2,
        2**25 + 6,
        2**31 - 1,
        2**31 - 65,
        2**31 - 64,
    ]
    sizes = rng.integers(1, 31, 100)
    given = np.concatenate([edges, rng.integers(2**sizes, 2 ** (sizes + 1))])
    expected = given.astype(np.float32).astype(np.int64)
    return _judge_each(
        function, [("float32_multiplier(M)", (given,), expected, 32)], f"{len(given)} multipliers", "M ="
    )


def unsigned_shift(function):
    """function(t, r): t >> r of int64, of magnitude below 2**62."""
    rng = np.random.default_rng(22)
    edges = [0, 1, -1, 2**61, -(2**61), 2**62 - 1, 1 - 2**62, 2**53 + 1, -(2**53) - 1]
    given = np.concatenate([np.arange(-20, 20), edges, rng.integers(-(2**62) + 1, 2**62, 60)])
    cases = [(f"unsigned_shift(t, {r})", (given, r), given >> r, 64) for r in (1, 2, 8, 31, 40, 61)]
    return _judge_each(function, cases, f"{len(given)} numbers at {len(cases)} shifts", "t =")


def spread(function):
    """function(wrong, kernel, stride, padding): output pixels whose window holds a wrong pixel."""
    rng = np.random.default_rng(23)
    cases = []
    for kernel, stride, padding in ((1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (3, 1, 0), (5, 2, 2)):
        wrong = rng.random((9, 12)) < 0.04
        ones = np.ones((1, kernel, kernel, 1), np.int8)
        sums = integer.conv2d(wrong.astype(np.uint8)[None, ..., None], ones, stride, padding)
        expected = sums[0, :, :, 0] > 0
        call = f"spread(wrong, kernel={kernel}, stride={stride}, padding={padding})"
        cases.append((call, (wrong, kernel, stride, padding), expected, 1))
    return _judge(
        function, cases, f"{len(cases)} convolutions", lambda i: f"element {i} of the flattened output"
    )


def first_disagreement(function):
    """function(ours, theirs): for each image the first layer that differs, or the number of layers."""
    rng = np.random.default_rng(24)
    shapes = [(40, 6, 6, 3), (40, 3, 3, 5), (40, 10)]
    cases = []
    for rate in (0.002, 0.02, 0.0):
        ours = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
        moved = [rng.random(shape) < rate for shape in shapes]
        theirs = [np.where(m, codes ^ 128, codes) for m, codes in zip(moved, ours, strict=True)]
        hit = [[bool(m[i].any()) for m in moved] + [True] for i in range(40)]
        expected = np.array([layers.index(True) for layers in hit])
        cases.append(("first_disagreement(ours, theirs)", (ours, theirs), expected, 3))
    return _judge(function, cases, f"40 images in {len(cases)} pairs of runs", lambda i: f"image {i}")


def _judge_views(function, name, expected):
    cases = [
        (f"{name}({kind}, {width})", (codes, width), expected(codes, width), width)
        for kind, codes in (("unsigned", UNSIGNED), ("signed", SIGNED))
        for width in range(8, 0, -1)
    ]
    for case in cases:
        codes = case[1][0]
        verdict = _judge(
            function, [case], "", lambda i, codes=codes: f"master {codes[i]} ({bits(codes[i], 8)})"
        )
        if not verdict:
            return verdict
    return Verdict(True, "Right: 512 codes at 8 widths.")


def _judge_each(function, cases, right, noun):
    """As `_judge`; the first argument of every case is an array, whose elements are named."""
    for case in cases:
        given, width = case[1][0], case[3]
        verdict = _judge(
            function, [case], right, lambda i, g=given, w=width: f"{noun} {g[i]} ({bits(g[i], w)})"
        )
        if not verdict:
            return verdict
    return verdict


def _judge_reals(function, cases, right, element):
    """As `_judge` for real numbers, equal to five digits; cases are (call, arguments, expected)."""
    for call, arguments, expected in cases:
        try:
            got = function(*[a.copy() if isinstance(a, np.ndarray) else a for a in arguments])
        except Exception as error:
            return Verdict(False, f"{call} raised {type(error).__name__}: {error}")
        if got is None or got is Ellipsis:
            return Verdict(False, f"Not solved yet: {call.partition('(')[0].split()[0]} returned {got}.")
        got = np.asarray(got, float)
        if got.shape != expected.shape:
            return Verdict(False, f"{call}: expected shape {expected.shape}, got {got.shape}")
        wrong = np.flatnonzero(~np.isclose(got, expected, rtol=1e-5, atol=1e-4))
        if wrong.size:
            i = wrong[0]
            values = f"expected {expected[i]:.6g}, got {got[i]:.6g}"
            return Verdict(False, f"{call}: first wrong at {element(i)}: {values}")
    return Verdict(True, f"Right: {right}.")
