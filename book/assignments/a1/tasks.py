"""The tasks of assignment A1: what is asked, checked against `dqt_core.nested`."""

import numpy as np
from grading import Case, among, bits, checkers, close, judge, oracles, steps

(nested,) = oracles("nested")
ALL = np.arange(256, dtype=np.int64).astype(np.uint8)
KINDS = (("unsigned", np.uint8), ("signed", np.int8))


def begin():
    """Close the package: this assignment writes what it has."""
    close("A1 writes nested codes from scratch, with NumPy alone")


def _master(codes):
    return lambda i: f"element {i}, master {codes[i]} ({bits(codes[i], 8)})"


def a1_1(quantize, rng):
    cases = []
    for signed in (True, False):
        # in eighths of a step: ties of both signs, below even and odd codes, and what the clamp meets
        telling = [*(8 * np.arange(-20, 20) + 4), -1200, -1028, -1024, 1012, 1016, 2036, 2040, 2400]
        eighths = among(rng, telling, rng.integers(-1200, 2400, 192))
        step = 2.0 ** rng.integers(-9, 3)
        x = eighths / 8 * step
        expected = nested.quantize(x, signed=signed, step=step)[0]

        def explain(i, got, eighths=eighths, signed=signed):
            whole = int(eighths[i] + 4) // 8
            lo, hi = nested.code_range(8, signed)
            rows = [("x / step, in eighths", int(eighths[i]), 13), ("plus a half, floor", whole, 10)]
            slips = {
                "if ties go to the even code": round(eighths[i] / 8),
                "if ties go away from zero": int(np.trunc(eighths[i] / 8 + np.sign(eighths[i]) / 2)),
                "if the half is cut off instead of rounded": int(eighths[i]) // 8,
                f"if the range {lo}..{hi} is forgotten": whole,
            }
            return steps([*rows, (f"clamped to {lo}..{hi}", min(max(whole, lo), hi), 8)], got, slips)

        call = f"quantize(x, {step}, signed={signed})"
        cases.append(
            Case(call, (x, step, signed), expected, 8, lambda i, x=x: f"element {i}, x = {x[i]}", explain)
        )
    return judge(quantize, cases, "480 numbers, ties among them")


def a1_2(drop_bits, rng):
    return judge(drop_bits, _views("drop_bits", "floor", rng), "256 codes of each kind at 8 widths")


def a1_3(half_up, rng):
    return judge(half_up, _views("half_up", "half_up", rng), "256 codes of each kind at 8 widths")


def _views(name, rounding, rng):
    for kind, dtype in KINDS:
        codes = rng.permutation(ALL).view(dtype)
        for width in rng.permutation(range(1, 9)).tolist():
            expected = nested.switch(codes, width, rounding=rounding)

            def explain(i, got, codes=codes, width=width):
                return _how(int(codes[i]), width, codes.dtype == np.int8, rounding, got)

            yield Case(f"{name}({kind}, {width})", (codes, width), expected, width, _master(codes), explain)


def _how(q, b, signed, rounding, got):
    """The steps of a switch, and the known slips."""
    d, (lo, hi) = 8 - b, nested.code_range(b, signed)
    rows, kept = [(f"q >> {d}", q >> d, b)], q >> d
    if rounding == "floor" or d == 0:
        slips = {
            "if the highest bits are dropped instead of the lowest": q & ((1 << b) - 1),
            "if b bits are dropped instead of 8 - b": q >> b,
            "if the sign is lost": (q & 255) >> d,
            "if it is rounded towards zero": int(q / 2**d),
            "if it is rounded up": -(-q >> d),
        }
        return steps(rows, got, slips)
    epsilon = q >> (d - 1) & 1
    rows.append((f"epsilon, bit {d - 1} of q", epsilon, 1))
    total = kept + epsilon
    rows.append((f"clamped to {hi}, the highest code", min(total, hi), b))
    slips = {
        "if epsilon is left out": kept,
        "if the sum is not clamped": total,
        "if the sum wraps around in b bits": (total - lo) % (1 << b) + lo,
        "if ties go to the even code": min(round(q / 2**d), hi),
        "if the lowest dropped bit is taken for epsilon": min(kept + (q & 1), hi),
        "if bit d is taken for epsilon": min(kept + (q >> d & 1), hi),
        "if the sum is made in 8 bits and wraps there": ((q + (1 << (d - 1)) + 128) % 256 - 128) >> d
        if signed
        else ((q + (1 << (d - 1))) % 256) >> d,
    }
    return steps(rows, got, slips)


def a1_4(walk, rng):
    cases = []
    for kind, dtype in KINDS:
        codes = rng.permutation(ALL).view(dtype)
        paths = [(8,), (4, 2), (7, 6, 5, 4, 3, 2, 1)]
        paths += [tuple(sorted(rng.choice(8, 3, replace=False) + 1)[::-1]) for _ in range(3)]
        for path in [tuple(map(int, path)) for path in paths]:
            stops = [codes]
            for width in path:
                stops.append(nested.switch(stops[-1], width) << (8 - width))
            expected = stops[-1] >> (8 - path[-1])

            def explain(i, got, codes=codes, path=path, stops=stops):
                rows = [
                    (f"at {width} bits, back at the top", int(stop[i]), 8)
                    for width, stop in zip(path, stops[1:], strict=True)
                ]
                direct = int(nested.switch(codes, path[-1])[i])
                floors = int(nested.switch(codes, path[-1], rounding="floor")[i])
                return steps(
                    rows,
                    got,
                    {
                        "if the last width is read from the master": direct,
                        "if every stop rounds down": floors,
                        "if the last code stays at the top of its byte": int(stops[-1][i]),
                    },
                )

            call = f"walk({kind}, {list(path)})"
            cases.append(Case(call, (codes, list(path)), expected, path[-1], _master(codes), explain))
    return judge(walk, cases, f"{len(cases)} paths of 256 codes")


def a1_5(to_planes, rng):
    cases = []
    for _, dtype in KINDS:
        for count in (8, 1, int(rng.integers(9, 200)) | 1):
            codes = rng.integers(0, 256, count).astype(np.uint8).view(dtype)
            expected = nested.to_planes(codes)

            def element(i, bytes_each=expected.shape[1]):
                return f"byte {i % bytes_each} of plane {i // bytes_each}"

            def explain(i, got, codes=codes, expected=expected):
                plane, byte = divmod(i, expected.shape[1])
                there = codes.view(np.uint8)[8 * byte : 8 * byte + 8]
                rows = [(f"bit {7 - plane} of code {k + 8 * byte}", int(q), 8) for k, q in enumerate(there)]
                other = nested.to_planes(codes)[::-1]
                reversed_byte = int(bits(expected[plane, byte], 8)[::-1], 2)
                slips = {
                    "if plane 0 holds the lowest bits": int(other[plane, byte]),
                    "if the first code is in the lowest bit": reversed_byte,
                }
                return steps(rows, got, slips)

            call = f"to_planes({count} codes of {codes.dtype})"
            cases.append(Case(call, (codes,), expected, 8, element, explain))
    return judge(to_planes, cases, f"{len(cases)} arrays")


def a1_6(from_planes, rng):
    cases = []
    for kind, dtype in KINDS:
        for width in rng.permutation(range(1, 9)).tolist():
            # every code, and not a whole number of bytes in a plane
            codes = among(rng, ALL, rng.choice(ALL, rng.integers(1, 8))).view(dtype)
            count = len(codes)
            planes = nested.to_planes(codes)[: min(width + 1, 8)].copy()
            expected = nested.switch(codes, width)
            arguments = planes, width, count, dtype == np.int8
            call = f"from_planes({len(planes)} planes of {kind} codes, {width}, {count}, {arguments[3]})"

            def explain(i, got, codes=codes, width=width):
                return _how(int(codes[i]), width, codes.dtype == np.int8, "half_up", got)

            cases.append(Case(call, arguments, expected, width, _master(codes), explain))
    return judge(from_planes, cases, f"{len(cases)} views from as few planes as hold them")


TASKS = {"a1_1": a1_1, "a1_2": a1_2, "a1_3": a1_3, "a1_4": a1_4, "a1_5": a1_5, "a1_6": a1_6}
check, grade = checkers(TASKS)
