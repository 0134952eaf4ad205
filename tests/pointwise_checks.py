"""What the kernels of pointwise.cu must do on any engine; a check raises where one does not."""

import itertools

import numpy as np
from conv_checks import codes, grouped
from kernel_checks import DTYPES, equal, launch

from dqt_core import integer

THREADS = 256
KINDS = {np.dtype(np.uint8): 1, np.dtype(np.int8): 2, np.dtype(np.int32): 3}


def run(engine, name, threads, *args, **defines):
    launch(engine, engine.kernel("pointwise", name, **defines), -(-threads // THREADS), THREADS, *args)


def vectors(channels):
    return (1, 4) if channels % 4 == 0 else (1,)


def check_lookup(engine):
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1, 3), (2, 5, 7, 3), (3, 17, 19, 3), (3, 17, 19, 1), (2, 9, 9, 4), (1, 2, 3, 300)):
        for rows, dtype, out_dtype in itertools.product({1, shape[3]}, DTYPES, DTYPES):
            table = rng.integers(0, 256, (rows, 256), np.uint8).view(out_dtype)
            x = rng.integers(0, 256, shape, np.uint8).view(dtype)
            out = np.zeros(shape, out_dtype)
            run(engine, "lookup", out.size, x, table, out, np.int64(out.size), np.int32(rows))
            equal(out, integer.lookup(x, table), shape, rows)


def check_copy_channels(engine):
    rng = np.random.default_rng(7)
    for shape, counts in (((2, 3, 5), (4, 3, 70)), ((1, 1, 1), (1, 1)), ((3, 9, 7), (16, 300))):
        parts = [rng.integers(0, 256, (*shape, count), np.uint8) for count in counts]
        out, first = np.full((*shape, sum(counts)), 77, np.uint8), 0
        for part in parts:
            sizes = np.int64(part.size), part.shape[3], out.shape[3], first
            run(engine, "copy_channels", part.size, part, out, *sizes)
            first += part.shape[3]
        equal(out, np.concatenate(parts, axis=3), shape, counts)


def check_product(engine):
    rng = np.random.default_rng(8)
    for x_dtype, y_dtype, shape in itertools.product(
        DTYPES, DTYPES, ((2, 3, 5, 8), (3, 1, 1, 67), (2, 9, 9, 3))
    ):
        x = codes(rng, shape, x_dtype, extreme=shape[3] == 3)
        for y in (
            codes(rng, shape, y_dtype, extreme=False),
            codes(rng, (shape[0], 1, 1, shape[3]), y_dtype, True),
        ):
            out = np.full(shape, -7, np.int32)
            sizes = np.int64(x.size), x[0].size, shape[3], y[0].size
            run(engine, "product", x.size, x, KINDS[x.dtype], y, KINDS[y.dtype], out, *sizes)
            equal(out, integer.product(x, y), x_dtype, y_dtype, shape, y.shape)


def check_max_pool(engine):
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        for shape, window in (
            ((2, 7, 6, 8), (3, 2, 1)),
            ((1, 5, 5, 3), (2, 2, 0)),
            ((3, 4, 9, 4), (3, 1, 2)),
            ((2, 6, 7, 4), (3, 2, 0, True)),
        ):
            x = codes(rng, shape, dtype, extreme=False)
            expected = integer.max_pool(x, *window)
            for vector in vectors(shape[3]):
                out = np.full(expected.shape, 77, dtype)
                sizes = *shape, *window[:3], *expected.shape[1:3]
                variant = {"X_SIGNED": int(dtype == np.int8), "VECTOR": vector}
                run(engine, "max_pool", out.size // vector, x, out, *sizes, **variant)
                equal(out, expected, dtype, shape, window, vector)


def check_max_of_every_pair(engine):
    first, second = np.divmod(np.arange(1 << 16, dtype=np.uint32), 256)
    pairs = np.stack([first, second], axis=-1).astype(np.uint8)  # the two pixels of 65,536 images
    for dtype in DTYPES:
        # every pair in every byte of a word, beside three other pairs
        x = np.stack([np.roll(pairs, shift, axis=0) for shift in (0, 1, 257, 30_000)], axis=-1).view(dtype)
        out = np.full((1 << 16, 4), 77, dtype)
        sizes = 1 << 16, 1, 2, 4, 2, 1, 0, 1, 1
        variant = {"X_SIGNED": int(dtype == np.int8), "VECTOR": 4}
        run(engine, "max_pool", 1 << 16, np.ascontiguousarray(x), out, *sizes, **variant)
        equal(out, x.max(axis=1), dtype)


def check_sum_pool(engine):
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        for shape in ((2, 3, 5, 8), (3, 1, 1, 67), (1, 9, 9, 132), (2, 7, 7, 3)):
            x = codes(rng, shape, dtype, extreme=shape[3] == 3)
            for vector in vectors(shape[3]):
                out = np.full((shape[0], shape[3]), -7, np.int32)
                kernel = engine.kernel("pointwise", "sum_pool", X_SIGNED=int(dtype == np.int8), VECTOR=vector)
                blocks = shape[0] * -(-shape[3] // 64)
                launch(engine, kernel, blocks, THREADS, x, out, shape[0], shape[1] * shape[2], shape[3])
                equal(out, integer.sum_pool(x)[:, 0, 0], dtype, shape, vector)


def term(rng, x, rows, layer, choices):
    """An addend with its tables; layer: whether images choose, and the shift follows."""
    n, channels = x.shape[0], x.shape[3]
    multiplier = rng.integers(-(2**31) + 1, 2**31, (rows, channels)).astype(np.int32)
    offset = rng.integers(-(2**40), 2**40, (rows, channels))
    picks = rng.integers(0, len(choices), n, np.int32) if layer else None
    return x, multiplier, offset, picks, choices if layer else None


def by_definition(terms, r, lo, hi):
    made, offset = [], 0
    for x, multiplier, offsets, picks, bits in terms:
        chosen = np.zeros(len(x), int) if picks is None else picks
        row = chosen if len(multiplier) > 1 else np.zeros(len(x), int)
        drop = np.zeros(len(x), int) if bits is None else 16 - bits[chosen].sum(axis=1)
        made.append((x, drop[:, None, None, None], multiplier[row][:, None, None]))
        offset = offset + offsets[row][:, None, None]
    return integer.requantize(made, offset, r, lo, hi)


def requantized(engine, terms, r, lo, hi):
    args = [("Term", {})] * 3
    for i, (x, multiplier, offset, picks, bits) in enumerate(terms):
        tables = {"multiplier": multiplier, "offset": offset, "rows": len(multiplier)}
        args[i] = "Term", {"x": x, "kind": KINDS[x.dtype], "picks": picks, "bits": bits} | tables
    x = terms[0][0]
    out = np.full(x.shape, 77, np.uint8 if lo >= 0 else np.int8)
    sizes = np.int64(out.size), x.shape[1] * x.shape[2], x.shape[3]
    run(engine, "requantize", out.size, *args, r, lo, hi, out, *sizes)
    return out


def check_requantize(engine):
    rng = np.random.default_rng(3)
    choices = np.array([(2, 3), (8, 8), (4, 6)], np.int32)
    shape = (4, 3, 5, 7)
    sums = rng.integers(-(2**12), 2**12, shape).astype(np.int32)
    unsigned, signed = (codes(rng, shape, dtype, extreme=False) for dtype in DTYPES)
    for terms in (
        [term(rng, sums, 3, True, choices)],
        [term(rng, unsigned, 1, False, choices), term(rng, sums, 1, True, choices)],
        [
            term(rng, sums, 3, True, choices),
            term(rng, signed, 1, False, choices),
            term(rng, sums, 1, False, choices),
        ],
        [term(rng, signed, 3, True, choices), term(rng, sums, 3, True, choices)],
    ):
        for r, lo, hi in ((33, 0, 255), (46, -128, 127), (1, 3, 200), (51, 0, 255)):
            equal(requantized(engine, terms, r, lo, hi), by_definition(terms, r, lo, hi), r, lo, hi)


def check_requantize_ties_and_wide_sums(engine):
    sums = np.array([-3, -2, -1, 0, 1, 2, 3, 2**31 - 1, -(2**31)], np.int32).reshape(1, 1, 9, 1)
    for multiplier, offset, r in ((1, 0, 1), (3, 0, 2), (2**30, 2**59, 61), (-(2**30), -(2**59), 60)):
        tables = np.array([[multiplier]], np.int32), np.array([[offset]], np.int64)
        terms = [(sums, *tables, None, None)]
        for lo, hi in ((-128, 127), (0, 255)):
            equal(requantized(engine, terms, r, lo, hi), by_definition(terms, r, lo, hi), multiplier, r)


def check_scale(engine):
    rng = np.random.default_rng(4)
    x = rng.integers(-(2**31), 2**31, (29, 10)).astype(np.int32)
    multiplier = rng.integers(-(2**30), 2**30, 10).astype(np.int32)
    offset = rng.integers(-(2**60), 2**60, 10)
    out = np.zeros(x.shape, np.int64)
    run(engine, "scale", out.size, x, multiplier, offset, out, np.int64(out.size), 10)
    equal(out, integer.scale(x, multiplier, offset))


def check_choose(engine):
    rng = np.random.default_rng(5)
    for n, layers, choices, before in ((7, 5, 4, 0), (40, 9, 1, 2), (3, 2, 33, 1)):
        logits = (
            rng.integers(-3, 3, (n, layers, choices)) * 2**40
        )  # many ties; they differ in the high word alone
        logits[0] = np.iinfo(np.int64).min
        picks = np.full((n, before + layers), -7, np.int32)
        run(engine, "choose", n * layers, logits, picks, n, layers, choices, before + layers)
        equal(picks[:, before:], logits.argmax(axis=-1), n, layers, choices)
        assert (picks[:, :before] == -7).all()


def check_group_images(engine):
    rng = np.random.default_rng(6)
    for n, layers, choices in ((1, 1, 1), (50, 3, 5), (33, 2, 40), (20, 1, 64)):
        picks = rng.integers(0, choices, (n, layers)).astype(np.int32)
        columns, order = np.full((2, layers, n), -7, np.int32)
        starts = np.full((layers, choices + 1), -7, np.int32)
        kernel = engine.kernel("pointwise", "group_images")
        launch(engine, kernel, layers, 32, picks, n, layers, choices, columns, order, starts)
        equal(columns, picks.T, n, layers, choices)
        for layer in range(layers):
            equal(order[layer], grouped(picks[:, layer], choices)[0], n, layers, choices)
            equal(starts[layer], grouped(picks[:, layer], choices)[1], n, layers, choices)


POINTWISE_CHECKS = (
    check_requantize,
    check_requantize_ties_and_wide_sums,
    check_lookup,
    check_copy_channels,
    check_product,
    check_max_pool,
    check_sum_pool,
    check_scale,
    check_choose,
    check_group_images,
    check_max_of_every_pair,
)
