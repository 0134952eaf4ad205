"""The tasks of assignment A2: what is asked, checked against `dqt_core.integer`."""

import math
from fractions import Fraction

import numpy as np
from grading import Case, checkers, close, judge, oracles, steps

integer, nested = oracles("integer", "nested")


def begin():
    """Close the package: this assignment writes what it has."""
    close("A2 writes integer arithmetic from scratch, with NumPy alone")


def a2_1(register_bits, rng):
    cases = []
    # activations of one bit and a power of two of terms: the lowest sum is the register's lowest number
    layers = [(terms, int(rng.integers(1, 9)), 1) for terms in (1, 2, 512)]
    layers += [(65_793, 8, 8), (65_794, 8, 8)]
    for terms in (1, 2, 9, 576, *rng.integers(1, 10**6, 28).tolist()):
        layers.append((terms, *rng.integers(1, 9, 2).tolist()))
    for terms, b_w, b_a in layers:
        # the largest magnitudes are of -2**(b_w - 1), and of the highest activation
        lowest = terms * nested.code_range(b_w, True)[0] * nested.code_range(b_a, False)[1]
        highest = terms * nested.code_range(b_w, True)[1] * nested.code_range(b_a, False)[1]
        needed = next(n for n in range(1, 65) if -(1 << (n - 1)) <= lowest <= highest < 1 << (n - 1))

        def explain(i, got, lowest=lowest, highest=highest, needed=needed):
            rows = [("the lowest sum", lowest, 40), ("the highest sum", highest, 40)]
            rows.append((f"lowest of {needed} bits", -(1 << (needed - 1)), needed))
            slips = {
                "if the sign has no bit": needed - 1,
                "if a register must also hold the lowest sum with its sign turned": (-lowest).bit_length()
                + 1,
            }
            return steps(rows, got, slips)

        call = f"register_bits({terms}, {b_w}, {b_a})"
        cases.append(Case(call, (terms, b_w, b_a), needed, 7, None, explain))
    return judge(register_bits, cases, f"{len(cases)} sums")


def a2_2(dot, rng):
    cases = []
    for rows, outputs, terms in ((1, 1, 1), (3, 4, 27), (2, 3, 4608)):
        x = rng.integers(0, 256, (rows, terms)).astype(np.uint8)
        w = rng.integers(-128, 128, (outputs, terms)).astype(np.int8)
        if outputs > 1:
            # the highest sum, but for one code, and the lowest; the longest is odd, which no float32 holds
            x[0], w[0], w[1] = 255, 127, -128
            w[0, rng.integers(terms)] = 126
        expected = integer.matmul(x, w)

        def element(i, outputs=outputs):
            return f"row {i // outputs}, output {i % outputs}"

        def explain(i, got, x=x, w=w, outputs=outputs):
            row, column = x[i // outputs].astype(int), w[i % outputs].astype(int)
            exact = int(row @ column)
            in_float = np.float32(0)
            for product in row * column:
                in_float += np.float32(product)
            shown = [(f"x[{k}] * w[{k}]", int(row[k] * column[k]), 17) for k in range(min(3, len(row)))]
            slips = {
                "in a register of 16 bits": (exact + 2**15) % 2**16 - 2**15,
                "in a register of 8 bits": (exact + 2**7) % 2**8 - 2**7,
                "if x is read as int8": int(row.astype(np.uint8).view(np.int8).astype(int) @ column),
                "if w is read as uint8": int(row @ column.astype(np.int8).view(np.uint8).astype(int)),
                "if the products wrap in 8 bits": int((((row * column) + 128) % 256 - 128).sum()),
                "if float32 adds them": int(in_float),
            }
            return steps([*shown, (f"the sum of {len(row)} products", exact, 32)], got, slips)

        cases.append(
            Case(f"dot({rows} x {terms}, {outputs} x {terms})", (x, w), expected, 32, element, explain)
        )
    return judge(dot, cases, "19 sums of up to 4,608 products")


def a2_3(fixed_point, rng):
    cases = []
    ratios = [(3, 10), (-3, 10), (1, 8), (-1, 8), (5, 16), (-5, 16), (10**18 + 1, 10**19)]
    # at r = 2 just below a tie, which a float64 takes them for
    ratios += [(2**60 - 1, 2**63), (-(2**60) - 1, 2**63)]
    for _ in range(8):
        ratios.append((int(rng.integers(-(2**50), 2**50)), int(rng.integers(2**40, 2**48))))
    for numerator, denominator in ratios:
        for r in (2, int(rng.integers(1, 40)), *rng.integers(46, 52, 2).tolist()):
            scaled = Fraction(numerator, denominator) * 2**r
            expected = math.floor(scaled + Fraction(1, 2))
            if scaled.denominator <= 2**10 and abs(expected) < 2**31 and abs(numerator) < 2**50:
                # where a float holds the ratio, the package says the same
                assert expected == integer.fixed_point(float(Fraction(numerator, denominator)), r)[0]

            def explain(i, got, scaled=scaled, expected=expected):
                rows = [("the ratio times 2**r, rounded down", math.floor(scaled), 64)]
                rows.append(("the same, to nearest, ties up", expected, 64))
                slips = {
                    "if it is only rounded down": math.floor(scaled),
                    "if ties go to even": round(scaled),
                    "if ties go down": math.ceil(scaled - Fraction(1, 2)),
                    "from a float64": int(np.floor(np.float64(scaled) + 0.5)),
                }
                return steps(rows, got, slips)

            call = f"fixed_point({numerator}, {denominator}, {r})"
            cases.append(Case(call, (numerator, denominator, r), expected, 64, None, explain))
    return judge(fixed_point, cases, f"{len(cases)} ratios and shifts")


def _terms(rng, count, r):
    """An accumulator with its shift, multipliers and B.

    Of every four channels the first's sum is a tie and the second's lies just below one, from under -128 to
    over 255, which a float64 does not hold; the third's B is a tie too.
    """
    d = np.array([[0], [4], [8], [12]])
    a = (rng.integers(-(2**22), 2**22, (4, count)) >> d).astype(np.int32)
    multiplier = rng.integers(-(2**30), 2**31 - 1, count).astype(np.int32)
    b = rng.integers(-(2**r), 2**r, count)
    a[:, 0::4], a[:, 1::4] = 0, 0
    codes = rng.permutation(np.linspace(-150, 270, count // 4).astype(np.int64))
    b[0::4] = b[1::4] = b[2::4] = (2 * codes + 1) << (r - 1)
    b[1::4] -= 1
    return a, d, multiplier, b


def _rounded(rows, total, r, lo, hi, got):
    half = 1 << (r - 1)
    shifted = (total + half) >> r
    rows += [
        ("the sum", total, 64),
        (f"plus 2**{r - 1}", total + half, 64),
        (f">> {r}", shifted, 24),
        (f"clamped to {lo}..{hi}", min(max(shifted, lo), hi), 8),
    ]

    def clamped(value):
        return min(max(value, lo), hi)

    slips = {
        "if the half is not added": clamped(total >> r),
        "if ties go down": clamped((total + half - 1) >> r),
        "if ties go to even": clamped(round(Fraction(total, 2**r))),
        "if it is rounded towards zero": clamped(
            int(Fraction(total, 2**r) + Fraction(1 if total >= 0 else -1, 2))
        ),
        "if the clamp is forgotten": shifted,
        "if it is clamped before the shift": min(max(total + half, lo), hi) >> r,
        "if the code wraps around instead of being clamped": shifted % 256
        if lo >= 0
        else (shifted + 128) % 256 - 128,
        "if a float64 adds and divides": clamped(math.floor(float(total) / 2**r + 0.5)),
        "in a register of 32 bits": clamped((((total + half) + 2**31) % 2**32 - 2**31) >> min(r, 31)),
    }
    return steps(rows, got, slips)


def a2_4(requantize, rng):
    cases, count = [], 60
    # so large an r that a sum near a tie needs more than the 53 bits of a float64
    for r, lo, hi in ((int(rng.integers(51, 54)), -128, 127), (53, 0, 255), (52, 0, 6)):
        a, d, multiplier, b = _terms(rng, count, r)
        expected = integer.requantize([(a, d, multiplier)], b, r, lo, hi)

        def explain(i, got, a=a, d=d, m=multiplier, b=b, r=r, lo=lo, hi=hi):
            n, c = divmod(i, count)
            shifted = int(a[n, c]) << int(d[n, 0])
            rows = [("a", int(a[n, c]), 32), (f"a << {d[n, 0]}", shifted, 36)]
            rows += [(f"times M = {m[c]}", shifted * int(m[c]), 64), ("plus B", int(b[c]), 64)]
            return _rounded(rows, shifted * int(m[c]) + int(b[c]), r, lo, hi, got)

        call = f"requantize(a, d, M, B, {r}, {lo}, {hi})"
        arguments = (a, d, multiplier, b, r, lo, hi)
        cases.append(
            Case(call, arguments, expected, 8, lambda i: f"image {i // count}, channel {i % count}", explain)
        )
    return judge(requantize, cases, f"{12 * count} codes, ties among them")


def a2_5(block_end, rng):
    cases, count = [], 40
    # half a code for each of the skip connection's: with a tie of the first term it is a whole one
    for by in (2**30, *rng.integers(2**28, 2**31, 2).tolist()):
        r = int(rng.integers(51, 54))
        a, d, multiplier, b = _terms(rng, count, r)
        skip = rng.integers(0, 256, a.shape).astype(np.uint8)
        skip[:, 0::4], skip[:, 1::4] = 0, 0
        a[:, 2::4], skip[:, 2::4] = 0, skip[:, 2::4] | 1
        expected = integer.requantize([(a, d, multiplier), (skip, r - 31, by)], b, r, 0, 255)

        def explain(i, got, a=a, d=d, m=multiplier, skip=skip, by=by, b=b, r=r):
            n, c = divmod(i, count)
            main = (int(a[n, c]) << int(d[n, 0])) * int(m[c])
            side = (int(skip[n, c]) << (r - 31)) * by
            rows = [(f"(a << {d[n, 0]}) * M", main, 64), (f"(skip << {r - 31}) * M_skip", side, 64)]
            rows.append(("B", int(b[c]), 64))
            half = 1 << (r - 1)
            twice = min(max(((main + int(b[c]) + half) >> r) + ((side + half) >> r), 0), 255)
            first = min(max((main + int(b[c]) + half) >> r, 0), 255)
            relu = min(max(first + ((side + half) >> r), 0), 255)
            text = _rounded(rows, main + side + int(b[c]), r, 0, 255, got)
            for slip, value in (("if both terms are rounded", twice), ("with the ReLU before the sum", relu)):
                if value == got and "comes out" not in text:
                    text += f"\n    {got} is what comes out {slip}."
            return text

        arguments = (a, d, multiplier, skip, r - 31, by, b, r)
        call = f"block_end(a, d, M, skip, {r - 31}, {by}, B, {r})"
        cases.append(
            Case(call, arguments, expected, 8, lambda i: f"image {i // count}, channel {i % count}", explain)
        )
    return judge(block_end, cases, f"{12 * count} sums of two terms")


TASKS = {"a2_1": a2_1, "a2_2": a2_2, "a2_3": a2_3, "a2_4": a2_4, "a2_5": a2_5}
check, grade = checkers(TASKS)
