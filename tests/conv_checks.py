"""What the kernels of conv.cu and depthwise.cu must do on any engine; a check raises where one does not."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from kernel_checks import equal, launch, variant

from dqt_core import integer, nested

SKIP_KINDS = {"none": 0, "uint8": 1, "int8": 2, "int32": 3}


@dataclass(frozen=True)
class Case:
    """Shapes and options of a convolution; the numbers follow from the seed."""

    size: tuple[int, int, int] = (3, 5, 6)  # images, height, width
    inputs: int = 16
    outputs: int = 24
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    signed: bool = False
    rounding: str = "half_up"
    choices: tuple[tuple[int, int], ...] = ((2, 3), (4, 4), (8, 8))
    picks: tuple[int, ...] = (0, 2, 0)
    own_rows: bool = True  # of the multipliers: one for each choice, or one for all
    skip: str = "none"
    skip_rows: bool = False
    skip_switched: bool = False
    clamp: tuple[int, int] = (0, 255)
    extreme: bool = False  # all codes at the ends of their ranges
    depthwise: bool = False
    seed: int = 0
    defines: dict[str, int] = field(default_factory=dict)

    @property
    def out_size(self) -> tuple[int, int]:
        return tuple(
            (size + 2 * self.padding - taps) // self.stride + 1
            for size, taps in zip(self.size[1:], self.kernel, strict=True)
        )

    @property
    def groups(self) -> int:
        return self.inputs if self.depthwise else 1

    @property
    def source(self) -> str:
        return "depthwise" if self.depthwise else "conv"

    @property
    def macros(self) -> dict[str, int]:
        return variant(np.int8 if self.signed else np.uint8, self.rounding) | self.defines

    @property
    def blocks(self) -> int:
        pixels = self.out_size[0] * self.out_size[1]
        if self.depthwise:
            return self.size[0] * -(-self.inputs // 64) * -(-pixels // 32)
        row_tiles = -(-self.size[0] * pixels // self.defines["TILE_M"]) + len(self.choices) - 1
        return row_tiles * -(-self.outputs // self.defines["TILE_N"])


@dataclass(frozen=True)
class Numbers:
    """What a case computes with."""

    x: np.ndarray
    weight: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray
    r: int
    skip: np.ndarray | None
    skip_multiplier: np.ndarray
    skip_offset: np.ndarray
    skip_picks: np.ndarray


def numbers(case: Case) -> Numbers:
    rng = np.random.default_rng(case.seed)
    n, height, width = case.size
    dtype = np.int8 if case.signed else np.uint8
    x = codes(rng, (n, height, width, case.inputs), dtype, case.extreme)
    weight_shape = (case.outputs, *case.kernel, case.inputs // case.groups)
    weight = codes(rng, weight_shape, np.int8, case.extreme)
    rows = len(case.choices)
    shape = (n, *case.out_size, case.outputs)
    terms = int(np.prod(weight_shape[1:]))
    spread = 128 * 255 / 8 * terms**0.5 * (2 if case.rounding == "floor" else 1)  # of the sums
    multiplier, r = integer.fixed_point(
        rng.uniform(20, 120, (rows if case.own_rows else 1, case.outputs)) / spread, r=36
    )
    offset = rng.integers(-20 << r, 200 << r, multiplier.shape)
    skip_shape = (rows if case.skip_rows else 1, case.outputs)
    skip_multiplier = integer.fixed_point(rng.uniform(-0.02, 0.02, skip_shape), r=r)[0]
    if case.skip == "int32":
        skip = rng.integers(-3000, 3000, shape, np.int32)
    else:
        skip = None if case.skip == "none" else codes(rng, shape, np.dtype(case.skip), case.extreme)
    skip_offset = rng.integers(-20 << r, 20 << r, skip_shape)
    skip_picks = rng.integers(0, rows, n, np.int32)
    return Numbers(x, weight, multiplier, offset, r, skip, skip_multiplier, skip_offset, skip_picks)


def codes(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, extreme: bool) -> np.ndarray:
    limits = np.iinfo(dtype)
    if extreme:
        return rng.choice(np.array([limits.min, limits.max], dtype), shape)
    return rng.integers(limits.min, limits.max + 1, shape, dtype)


def expected(case: Case, given: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Sums and codes by definition, image by image."""
    sums = np.concatenate([_sums(case, given, i) for i in range(len(given.x))])
    return sums, np.concatenate([_codes(case, given, sums, i) for i in range(len(given.x))])


def _sums(case: Case, given: Numbers, i: int) -> np.ndarray:
    bits = case.choices[case.picks[i]]
    weight = nested.switch(given.weight, bits[0], rounding=case.rounding)
    x = nested.switch(given.x[i : i + 1], bits[1], rounding=case.rounding)
    shape = case.stride, case.padding, case.groups
    if case.rounding == "half_up":
        return integer.conv2d(x, weight, *shape)
    return integer.conv2d_mid_bin(x, weight, 8 - bits[0], 8 - bits[1], *shape)


def _codes(case: Case, given: Numbers, sums: np.ndarray, i: int) -> np.ndarray:
    drop = 16 - sum(case.choices[case.picks[i]]) if case.rounding == "half_up" else 0
    row = case.picks[i] if case.own_rows else 0
    terms = [(sums[i : i + 1], drop, given.multiplier[row])]
    offset = given.offset[row]
    if given.skip is not None:
        pick = given.skip_picks[i]
        row = pick if case.skip_rows else 0
        drop = 16 - sum(case.choices[pick]) if case.skip_switched else 0
        terms.append((given.skip[i : i + 1], drop, given.skip_multiplier[row]))
        offset = offset + given.skip_offset[row]
    return integer.requantize(terms, offset, given.r, *case.clamp)


def run(engine: Any, case: Case, given: Numbers, outputs: str = "both") -> tuple[Any, Any]:
    """The kernel's sums and codes; `outputs` is "sums", "codes" or "both"."""
    shape = (case.size[0], *case.out_size, case.outputs)
    sums = None if outputs == "codes" else np.full(shape, -7, np.int32)
    made = None if outputs == "sums" else np.full(shape, 77, np.uint8 if case.clamp[0] >= 0 else np.int8)
    choices, picks = np.array(case.choices, np.int32), np.array(case.picks, np.int32)
    order, starts = grouped(picks, len(choices))
    own = {"multiplier": given.multiplier, "offset": given.offset, "rows": len(given.multiplier)}
    skip = {"x": given.skip, "kind": SKIP_KINDS[case.skip], "picks": given.skip_picks}
    skip |= {"multiplier": given.skip_multiplier, "offset": given.skip_offset}
    skip |= {"rows": len(given.skip_multiplier), "bits": choices if case.skip_switched else None}
    names = ("N", "H", "W", "C", "O", "kh", "kw", "stride", "padding", "OH", "OW", "groups")
    sizes = *case.size, case.inputs, case.outputs, *case.kernel, case.stride, case.padding, *case.out_size
    fields = dict(zip(names, (*sizes, case.groups), strict=True))
    fields |= {"x": given.x, "weight": given.weight, "sums": sums, "codes": made}
    fields |= {"order": order, "starts": starts, "bits": choices, "choices": len(choices)}
    fields |= {"own": ("Term", own), "skip": ("Term", skip)}
    fields |= dict(zip(("r", "lo", "hi"), (given.r, *case.clamp), strict=True))
    kernel = engine.kernel(case.source, case.source, **case.macros)
    launch(engine, kernel, case.blocks, 128, ("Convolution", fields))
    return sums, made


def grouped(picks: np.ndarray, choices: int) -> tuple[np.ndarray, np.ndarray]:
    """Images sorted by choice, and where each choice's begin."""
    order = np.argsort(picks, kind="stable").astype(np.int32)
    return order, np.searchsorted(picks[order], np.arange(choices + 1)).astype(np.int32)


def check(engine: Any, case: Case, given: Numbers | None = None) -> None:
    """Sums and codes at once, and each alone."""
    given = numbers(case) if given is None else given
    sums, made = expected(case, given)
    both = run(engine, case, given)
    equal(both[0], sums, "sums of", case)
    equal(both[1], made, "codes of", case)
    equal(run(engine, case, given, "sums")[0], sums, "sums alone of", case)
    equal(run(engine, case, given, "codes")[1], made, "codes alone of", case)


SMALL = {"TILE_M": 64, "TILE_N": 32}
LEAST = {"TILE_M": 32, "TILE_N": 32}
WIDE = {"TILE_M": 64, "TILE_N": 64}
TALL = {"TILE_M": 128, "TILE_N": 64}
FLAT = {"TILE_M": 32, "TILE_N": 64}
NARROW = {"TILE_M": 128, "TILE_N": 32}
LARGE = {"TILE_M": 128, "TILE_N": 128}
BYTES = {"VECTOR": 1}
WORDS = {"VECTOR": 4}


def check_three_by_three_with_mixed_widths(engine):
    check(engine, Case(defines=SMALL))
    check(engine, Case(size=(2, 7, 5), inputs=80, outputs=33, picks=(1, 0), own_rows=False, defines=SMALL))
    check(engine, Case(size=(2, 5, 6), padding=2, stride=2, picks=(2, 1), outputs=20, defines=SMALL))


def check_every_code_at_every_width(engine):
    widths = range(1, 9)
    picks = tuple(range(8))
    for rounding in ("half_up", "floor"):
        for signed in (False, True):
            options = {"picks": picks, "kernel": (1, 1), "padding": 0, "inputs": 4, "defines": SMALL | WORDS}
            options |= {"rounding": rounding, "signed": signed}
            case = Case((8, 16, 16), outputs=4, choices=tuple((8, b) for b in widths), **options)
            given = numbers(case)
            every = np.arange(256, dtype=np.uint8)
            four = np.stack([np.roll(every, shift) for shift in (0, 1, 37, 128)], axis=-1)
            x = np.broadcast_to(four.reshape(1, 16, 16, 4), given.x.shape).view(given.x.dtype)
            one = np.eye(4, dtype=np.int8).reshape(4, 1, 1, 4)
            check(engine, case, replace(given, x=np.ascontiguousarray(x), weight=one))
            case = Case((8, 2, 2), outputs=256, choices=tuple((b, 8) for b in widths), **options)
            x = np.broadcast_to(np.eye(4, dtype=np.uint8).reshape(1, 2, 2, 4), (8, 2, 2, 4)).view(
                given.x.dtype
            )
            weight = four.view(np.int8).reshape(256, 1, 1, 4)
            check(engine, case, replace(numbers(case), x=np.ascontiguousarray(x), weight=weight))


def check_one_by_one(engine):
    options = {"kernel": (1, 1), "padding": 0}
    check(engine, Case((3, 5, 7), 48, 40, stride=2, signed=True, defines=SMALL, **options))
    check(engine, Case((70, 1, 1), 144, 10, picks=(0, 1, 1, 2, 0, 2, 1) * 10, defines=SMALL, **options))
    check(engine, Case((5, 1, 1), 144, 10, picks=(1, 1, 1, 1, 1), defines=LEAST, **options))


def check_stems(engine):
    options = {"choices": ((8, 8),), "picks": (0, 0, 0), "kernel": (7, 7), "stride": 2, "padding": 3}
    check(engine, Case((3, 13, 11), 3, 18, signed=True, defines=SMALL | BYTES, **options))
    check(engine, Case((3, 13, 11), 4, 18, signed=True, defines=SMALL | WORDS, **options))
    check(engine, Case((3, 6, 5), 3, 17, signed=True, defines=SMALL | BYTES))
    check(engine, Case((3, 6, 5), 1, 5, kernel=(1, 3), defines=SMALL | BYTES))
    check(engine, Case((3, 6, 5), 20, 5, defines=SMALL | WORDS))


def check_floor(engine):
    for signed in (False, True):
        check(engine, Case(inputs=48, signed=signed, rounding="floor", skip="uint8", defines=SMALL))
    check(engine, Case(inputs=5, rounding="floor", extreme=True, own_rows=False, defines=SMALL | BYTES))


def check_skips(engine):
    signed_codes = {"clamp": (-128, 127)}
    check(engine, Case(skip="uint8", defines=SMALL))
    check(engine, Case(skip="int8", outputs=32, skip_rows=True, defines=SMALL, **signed_codes))
    check(engine, Case(skip="uint8", outputs=18, skip_rows=True, skip_switched=True, defines=SMALL))
    for outputs in (32, 18):
        check(engine, Case(outputs=outputs, skip="int32", skip_switched=True, defines=SMALL, **signed_codes))
    check(engine, Case(skip="int32", skip_rows=True, skip_switched=True, own_rows=False, defines=SMALL))


def check_extremes(engine):
    check(engine, Case(inputs=96, extreme=True, defines=SMALL))
    check(engine, Case(inputs=96, extreme=True, signed=True, skip="int8", defines=SMALL))
    full = {"size": (1, 3, 3), "inputs": 240, "picks": (0,), "choices": ((8, 8),), "defines": SMALL}
    case = Case(outputs=2, **full)
    x, weight = np.full((1, 3, 3, 240), 255, np.uint8), np.full((2, 3, 3, 240), -128, np.int8)
    check(engine, case, replace(numbers(case), x=x, weight=weight))


def check_wide_sums(engine):
    case = Case((2, 3, 3), 16, 24, picks=(0, 2), kernel=(1, 1), padding=0, skip="int32", defines=SMALL)
    given = numbers(case)
    rng = np.random.default_rng(5)
    for r in (1, 30, 31, 32, 45, 61):
        ends = np.array([-(2**31) + 1, 2**31 - 1, 2**31 - 2])
        multiplier = rng.choice(ends, given.multiplier.shape).astype(np.int32)
        largest = min(2**61, 2 ** min(r + 8, 62))
        wide = replace(
            given,
            r=r,
            multiplier=multiplier,
            offset=rng.integers(-largest, largest, given.offset.shape),
            skip_multiplier=rng.choice(ends, given.skip_multiplier.shape).astype(np.int32),
        )
        check(engine, case, wide)


def check_large_tiles(engine):
    options = {"size": (5, 7, 8), "kernel": (1, 1), "padding": 0, "picks": (0, 2, 0, 0, 2), "skip": "uint8"}
    for tiles in (LARGE, TALL, WIDE):
        check(engine, Case(outputs=tiles["TILE_N"] + 2, defines=tiles, **options))
        check(
            engine, Case(outputs=144, rounding="floor", inputs=80, skip_rows=True, defines=tiles, **options)
        )
    for tiles in (FLAT, NARROW, LEAST):
        check(engine, Case(outputs=80, inputs=80, defines=tiles, **options))


def check_grouping_of_images(engine):
    widths = tuple((w, a) for w in (2, 5, 8) for a in (1, 3, 8))
    options = {"size": (11, 3, 3), "choices": widths, "outputs": 9, "skip": "int32", "skip_rows": True}
    for picks in ((4,) * 11, (8, 0, 8, 3, 3, 0, 8, 7, 8, 0, 1), (0,) * 10 + (8,), (8,) + (0,) * 10):
        check(engine, Case(picks=picks, skip_switched=True, defines=SMALL, **options))


def check_without_the_switch(engine):
    case = Case(skip="uint8", defines=SMALL | {"SWITCH": 0})
    given = numbers(case)
    for made, wanted in zip(
        run(engine, case, given), expected(replace(case, choices=((8, 8),) * 3), given), strict=True
    ):
        equal(made, wanted, case)


CONV_CHECKS = (
    check_three_by_three_with_mixed_widths,
    check_skips,
    check_floor,
    check_wide_sums,
    check_stems,
    check_one_by_one,
    check_grouping_of_images,
    check_every_code_at_every_width,
    check_extremes,
    check_without_the_switch,
    check_large_tiles,
)


def depthwise_cases() -> Iterator[Case]:
    options = {"depthwise": True, "defines": WORDS}
    yield Case((3, 5, 7), 68, 68, **options)
    yield Case((3, 6, 5), 20, 20, stride=2, signed=True, own_rows=False, skip="uint8", **options)
    yield Case((3, 9, 9), 4, 4, padding=0, rounding="floor", skip="int8", skip_rows=True, **options)
    yield Case((3, 4, 4), 8, 8, kernel=(5, 3), padding=2, extreme=True, clamp=(-128, 127), **options)
    options = {"depthwise": True, "defines": BYTES}
    yield Case((3, 5, 4), 67, 67, skip="int32", skip_rows=True, skip_switched=True, **options)
    yield Case((3, 5, 4), 3, 3, rounding="floor", signed=True, **options)


def check_depthwise(engine):
    for case in depthwise_cases():
        check(engine, case)


def check_depthwise_groups(engine):
    picks = (2, 0, 2, 1, 1, 0, 2)
    check(engine, Case((7, 3, 3), 12, 12, picks=picks, depthwise=True, defines=WORDS))


DEPTHWISE_CHECKS = (check_depthwise, check_depthwise_groups)
