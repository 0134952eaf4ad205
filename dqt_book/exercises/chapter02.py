"""Checkers for the exercises of chapter 2, nested codes."""

import numpy as np

from dqt_book.exercises.judging import SIGNED, UNSIGNED, Verdict, bits, judge
from dqt_core import nested


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
    return judge(function, cases, "7 widths, unsigned and signed", lambda i: f"entry {i}")


def path_differs(function):
    """function(middle, last): unsigned masters whose half_up view depends on a stop at `middle` bits."""
    cases = []
    for middle in range(2, 8):
        for last in range(1, middle):
            stop = nested.switch(UNSIGNED, middle) << (8 - middle)
            expected = UNSIGNED[nested.switch(stop, last) != nested.switch(UNSIGNED, last)].astype(np.int64)
            cases.append((f"path_differs({middle}, {last})", (middle, last), expected, 8))
    return judge(function, cases, f"{len(cases)} paths", lambda i: f"entry {i}")


def read_half_up(function):
    """function(read_plane, width): half_up views of unsigned masters, reading as few planes as possible."""
    codes = np.random.default_rng(5).permutation(UNSIGNED)
    for width in range(1, 9):
        touched = set()

        def read_plane(plane, touched=touched):
            touched.add(int(plane))
            return (codes.astype(np.int64) >> (7 - plane)) & 1

        case = (f"read_half_up(read_plane, {width})", (read_plane, width), nested.switch(codes, width), width)
        verdict = judge(function, [case], "", lambda i: f"master {codes[i]} ({bits(codes[i], 8)})")
        needed = min(width + 1, 8)
        if verdict and len(touched) > needed:
            message = f"{case[0]} read {len(touched)} planes {sorted(touched)}; {needed} hold all it needs."
            return Verdict(False, message)
        if not verdict:
            return verdict
    return Verdict(True, "Right: 256 codes at 8 widths, and no plane too many.")


def _judge_views(function, name, expected):
    cases = [
        (f"{name}({kind}, {width})", (codes, width), expected(codes, width), width)
        for kind, codes in (("unsigned", UNSIGNED), ("signed", SIGNED))
        for width in range(8, 0, -1)
    ]
    for case in cases:
        codes = case[1][0]
        verdict = judge(
            function, [case], "", lambda i, codes=codes: f"master {codes[i]} ({bits(codes[i], 8)})"
        )
        if not verdict:
            return verdict
    return Verdict(True, "Right: 512 codes at 8 widths.")
