"""Checkers for the exercises of chapter 6, post-training quantization."""

import numpy as np

from dqt_book.exercises.judging import SIGNED, judge, judge_reals


def tie_count(function):
    """function(codes, drop): how many int8 master codes the switch rounds up by exactly half of its step."""
    rng = np.random.default_rng(31)
    cases = []
    for drop in range(1, 8):
        for codes in (SIGNED, np.sort(rng.integers(-60, 90, 500).astype(np.int8))):
            ties = sum(int(q) % 2**drop * 2 == 2**drop for q in codes)
            cases.append((f"tie_count(codes, {drop})", (codes, drop), ties, 10))
    return judge(function, cases, f"{len(cases)} sets of codes")


def single_rounding(function):
    """function(x, drop): codes whose view is x rounded directly; next to x or one lower."""
    rng = np.random.default_rng(32)
    x = np.concatenate([np.arange(-400, 401) / 4, rng.uniform(-100, 100, 600)])
    for drop in (1, 2, 3, 5):
        nearest = np.floor(x + 0.5).astype(int)
        lower = np.floor(np.floor(2 * x / 2**drop + 1) / 2).astype(int) < (nearest + 2 ** (drop - 1)) >> drop
        case = (f"single_rounding(x, {drop})", (x, drop), nearest - lower, 8)
        verdict = judge(function, [case], f"{len(x)} weights at 4 widths", lambda i: f"x = {x[i]:.4f}")
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

    return judge_reals(flat, cases, "7 channels", name)
