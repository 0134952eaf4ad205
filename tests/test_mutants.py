"""The checks kill every mutant: the module with one small, plausible mistake."""

import types
from pathlib import Path

import oracle_checks
import pytest
from oracle_checks import INTEGER_CHECKS, NESTED_CHECKS

from dqt_core import ProgramError, integer, nested

NESTED_MUTANTS = {
    # name: (text of nested.py, its replacement)
    "no epsilon": ('    if rounding == "half_up":\n', "    if False:\n"),
    "epsilon in floor too": ('    if rounding == "half_up":\n', "    if True:\n"),
    "switch from switched codes": (
        "    wide = codes.astype(np.int16)\n",
        '    if width < 4 and rounding == "half_up":\n'
        "        codes = switch(codes, 4) << 4\n"
        "    wide = codes.astype(np.int16)\n",
    ),
    "half to even": (
        "wide + (1 << (drop - 1)), code",
        "np.rint(wide / 2**drop).astype(np.int16) << drop, code",
    ),
    "ties down": ("wide + (1 << (drop - 1)), code", "wide + (1 << (drop - 1)) - 1, code"),
    "round up": ("wide + (1 << (drop - 1)), code", "wide + (1 << drop) - 1, code"),
    "epsilon overflows": (
        "code_range(width, is_signed)[1] << drop",
        "(code_range(width, is_signed)[1] + 1) << drop",
    ),
    "saturates one early": (
        "code_range(width, is_signed)[1] << drop",
        "(code_range(width, is_signed)[1] - 1) << drop",
    ),
    "logical shift": ("codes.astype(np.int16)", "codes.view(np.uint8).astype(np.int16)"),
    "towards zero": ("_as_codes(wide >> drop, is_signed)", "_as_codes(np.trunc(wide / 2**drop), is_signed)"),
    "signed hi off by one": ("(1 << (width - 1)) - 1) if signed", "(1 << (width - 1)) - 2) if signed"),
    "symmetric range": ("return (-(1 << (width - 1)), ", "return (1 - (1 << (width - 1)), "),
    "no middle of the bin": ('if rounding == "floor" and is_signed', "if False"),
    "half a bin": ("(scale - 1) / 2", "scale / 2"),
    "middle for unsigned too": ('if rounding == "floor" and is_signed', 'if rounding == "floor"'),
    "quantize half to even": ("np.floor(x / step + 0.5)", "np.rint(x / step)"),
    "step of the other axes": ("if i != axis % x.ndim", "if i == axis % x.ndim"),
    "planes in reverse": (
        "np.arange(7, 7 - planes, -1, dtype=np.uint8)",
        "np.arange(planes, dtype=np.uint8)",
    ),
    "first code in the low bit": (
        "np.packbits(bits, axis=-1)",
        'np.packbits(bits, axis=-1, bitorder="little")',
    ),
    "no extra plane for half_up": ('width + (rounding == "half_up")', "width"),
    "a plane too many for floor": ('width + (rounding == "half_up")', "width + 1"),
    "fill read as codes": ("count=length", "count=None"),
}

INTEGER_MUTANTS = {
    "rounds down": ("    half = 1 << (r - 1)\n", "    half = 0\n"),
    "half of the next r": ("    half = 1 << (r - 1)\n", "    half = 1 << r\n"),
    "ties down": ("    half = 1 << (r - 1)\n", "    half = (1 << (r - 1)) - 1\n"),
    "shift by r - 1": ("total >> r", "total >> (r - 1)"),
    "shift by r + 1": ("total >> r", "total >> (r + 1)"),
    "logical shift": ("total >> r", "(total.astype(np.uint64) >> np.uint64(r)).astype(np.int64)"),
    "towards zero": ("total >> r", "np.sign(total) * (np.abs(total) >> r)"),
    "d ignored": ("total + (a << drop) * multiplier", "total + a * multiplier"),
    "B shifted too": ("total + (a << drop) * multiplier", "(total << drop) + (a << drop) * multiplier"),
    "d of the first term": ("(a << drop) * multiplier", "(a << np.asarray(terms[0][1])) * multiplier"),
    "d of the largest image": ("(a << drop) * multiplier", "(a << drop.max()) * multiplier"),
    "clamp before add": (
        "total + (a << drop) * multiplier",
        "total + np.clip((a << drop) * multiplier, lo << r, hi << r)",
    ),
    "every term rounded": (
        "total + (a << drop) * multiplier",
        "total + (((a << drop) * multiplier + half >> r) << r)",
    ),
    "32-bit sums": ("(np.asarray(values, np.int64) for", "(np.asarray(values, np.int32) for"),
    "hi off by one": ("np.clip(total >> r, lo, hi)", "np.clip(total >> r, lo, hi - 1)"),
    "lo off by one": ("np.clip(total >> r, lo, hi)", "np.clip(total >> r, lo + 1, hi)"),
    "wraps instead of clamping": ("np.clip(total >> r, lo, hi)", "(total >> r)"),
    "padding with code 1": ("stride, padding, fill=0)", "stride, padding, fill=1)"),
    "max-pool padding of 0": ("fill=np.iinfo(x.dtype).min", "fill=0"),
    "stride along one axis": ("windows[:, ::stride, ::stride]", "windows[:, ::stride]"),
    "stride starts late": ("windows[:, ::stride, ::stride]", "windows[:, stride - 1 :: stride, ::stride]"),
    "groups interleaved": (
        "groups, inputs, height, width)\n",
        "inputs, groups, height, width).swapaxes(3, 4)\n",
    ),
    "kernel transposed": (
        "transpose(0, 1, 2, 3, 5, 6, 4)",
        "swapaxes(-1, -2).transpose(0, 1, 2, 3, 5, 6, 4)",
    ),
    "no box sum": ("((1 << weight_drop) - 1) * window_sums", "0 * window_sums"),
    "box sum of a whole bin": ("((1 << weight_drop) - 1) * window_sums", "(1 << weight_drop) * window_sums"),
    "box sum of codes": ("* window_sums << input_drop", "* window_sums"),
    "whole master steps": ("sums << (1 + weight_drop + input_drop)", "sums << (weight_drop + input_drop)"),
    "box sums of other groups": (
        "np.repeat(conv2d(x, ones, stride, padding, groups), len(weight) // groups, axis=3)",
        "np.tile(conv2d(x, ones, stride, padding, groups), len(weight) // groups)",
    ),
    "mid-bin bound of 255 * 255": ("256 * 255)", "255 * 255)"),
    "16-bit sums": ("keepdims=True, dtype=np.int32", "keepdims=True, dtype=np.int16"),
    "signed reading of x": ("x.astype(np.int32), weight", "x.view(np.int8).astype(np.int32), weight"),
    "logits without B": (" + np.asarray(offset, np.int64)\n", "\n"),
    "multiplier ties down": ("scaled - whole >= 0.5", "scaled - whole > 0.5"),
    "multiplier rounded twice": ("whole + (scaled - whole >= 0.5)", "np.floor(scaled + 0.5)"),
    "multiplier truncated": ("whole + (scaled - whole >= 0.5)", "np.trunc(scaled)"),
    "r never 61": ("range(LARGEST_SHIFT, 0, -1)", "range(LARGEST_SHIFT - 1, 0, -1)"),
    "r never 1": ("range(LARGEST_SHIFT, 0, -1)", "range(LARGEST_SHIFT, 1, -1)"),
    "smallest r": ("range(LARGEST_SHIFT, 0, -1)", "range(1, LARGEST_SHIFT + 1)"),
    "multiplier with a margin": ("(np.abs(m) < ACCUMULATOR_LIMIT)", "(np.abs(m) + 1 < ACCUMULATOR_LIMIT)"),
    "multiplier of 2**31": ("(np.abs(m) < ACCUMULATOR_LIMIT)", "(np.abs(m) <= ACCUMULATOR_LIMIT)"),
    "largest_shift without half": ("_rounded(offset, r), 1 << (r - 1))", "_rounded(offset, r), 0)"),
    "largest_shift up to 2**62": (
        "_largest_rows(offset), half) < SUM",
        "_largest_rows(offset), half) <= SUM",
    ),
    "rows of tables paired": (".max(axis=rows, initial=0)", ""),
    "sum of 2**62": (">= SUM_LIMIT:", "> SUM_LIMIT:"),
    "bound without B": ("    bound = _magnitude(offset) + half\n", "    bound = half\n"),
    "bound without d": ("_magnitude(a) << _magnitude(drop)", "_magnitude(a)"),
    "bound over all channels": (
        "bound >= SUM_LIMIT and (bound := _largest_sum(terms, offset, half)) >= ",
        "bound >= ",
    ),
    "accumulator of 2**31": ("if terms * largest_product >= ACC", "if terms * largest_product > ACC"),
    "symmetric products": ("LARGEST_PRODUCT = 128 * 255", "LARGEST_PRODUCT = 127 * 255"),
}

MUTANTS = [
    pytest.param(module, checks, *texts, id=f"{module.__name__.rpartition('.')[2]}: {name}")
    for module, checks, mutants in (
        (nested, NESTED_CHECKS, NESTED_MUTANTS),
        (integer, INTEGER_CHECKS, INTEGER_MUTANTS),
    )
    for name, texts in mutants.items()
]


def mutated(module, text, replacement):
    """A copy of the module that differs in one place."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    found = source.count(text)
    assert found == 1, f"{module.__name__} holds {text!r} {found} times, expected once: adapt the mutant"
    mutant = types.ModuleType(f"mutant of {module.__name__}")
    exec(compile(source.replace(text, replacement), mutant.__name__, "exec"), vars(mutant))
    return mutant


def killer(module, checks):
    """Name of the first check that fails or whose legal call is refused; None where the module survives.

    Any other error, a NameError say, is a fault of the mutant itself and no kill.
    """
    for check in checks:
        try:
            check(module)
        except (AssertionError, OverflowError, ProgramError, ValueError):
            return check.__name__
    return None


@pytest.mark.parametrize(("module", "checks", "text", "replacement"), MUTANTS)
def test_mutant_is_killed(module, checks, text, replacement):
    assert killer(mutated(module, text, replacement), checks)


@pytest.mark.parametrize(("module", "checks"), [(nested, NESTED_CHECKS), (integer, INTEGER_CHECKS)])
def test_unmutated_copy_survives(module, checks):
    name = "MASTER_WIDTH = 8" if module is nested else "LARGEST_SHIFT = 61"
    assert killer(mutated(module, name, f"{name}  # the same"), checks) is None


def test_missing_text_is_reported():
    with pytest.raises(AssertionError, match="holds 'no such text' 0 times, expected once"):
        mutated(nested, "no such text", "")


def test_every_check_is_listed():
    listed = {check.__name__ for check in NESTED_CHECKS + INTEGER_CHECKS}
    assert {name for name in vars(oracle_checks) if name.startswith("check_")} == listed
