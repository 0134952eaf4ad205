"""The tasks of assignment A3: kernels, run by the emulator and checked against `dqt_core.integer`."""

import numpy as np
from grading import Launch, among, bits, checkers, close, judging, oracles, pristine, steps

import dqt_core.kernels  # the emulator reads its header there

with pristine():
    import emulation
integer, nested = oracles("integer", "nested")
HEADER = "cuda_cpu.hpp"  # CUDA's words for a CPU, and none of the package's functions
THREADS = 128
assert dqt_core.kernels


def begin():
    """Close what the kernels are compared with."""
    close("A3 writes kernels; what they are compared with is out of reach", "nested", "integer", "backends")


def _blocks(n):
    return (-(-n // THREADS), 1, 1)


def _judge(function, name, kernel, launches, right):
    return judging.judge_kernel(emulation, function, name, kernel, launches, right, HEADER)


def a3_1(view_kernel, rng):
    launches = []
    for n in (int(rng.integers(1, 127)), 128, int(rng.integers(257, 500))):
        # the longest has every code
        telling = np.arange(-128, 128) if n > 256 else [127]
        codes = among(rng, telling, rng.integers(-128, 128, n - len(telling))).astype(np.int8)
        for width in range(1, 9):
            expected = nested.switch(codes, width) << (8 - width)

            def explain(i, got, codes=codes, width=width):
                q, d = int(codes[i]), 8 - width
                up = nested.switch(codes[i : i + 1], width).item()
                rows = [(f"q >> {d}", q >> d, width), ("half up, clamped", up, width)]
                half = (1 << d) >> 1
                slips = {
                    "if epsilon is left out": q >> d << d,
                    "if the view stays at the bottom of its byte": up,
                    "if the sum is not clamped": ((q + half) >> d << d) % 256
                    - 256 * (((q + half) >> d << d) > 127),
                    "if nothing was written": 0x5A,
                }
                return steps([*rows, (f"<< {d}, at the master's scale", up << d, 8)], got, slips)

            launches.append(
                Launch(
                    f"{n} codes at width {width}",
                    _blocks(n),
                    (codes, np.full(n, 0x5A, np.int8), np.int32(n), np.int32(width)),
                    expected,
                    8,
                    lambda i, codes=codes: f"element {i}, of code {codes[i]} ({bits(codes[i], 8)})",
                    explain=explain,
                )
            )
    return _judge(view_kernel, "view_kernel", "view", launches, "3 lengths at 8 widths")


def _layers(rng):
    """(x, weight, stride, padding) of a few layers whose sizes fit no tile, and of which no two are equal."""
    for size, stride, padding in ((1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 0)):
        height, width, inputs, outputs = *(5 + rng.permutation(3)[:2]), *(1 + rng.permutation(5)[:2])
        x = rng.integers(0, 256, (2, height, width, inputs)).astype(np.uint8)
        weight = rng.integers(-128, 128, (outputs, size, size, inputs)).astype(np.int8)
        # the highest codes, which a switch clamps, on what no width rounds to 0; and the lowest beside them
        x[..., 0] |= 128
        x[:, 0, 0], weight[0, ..., 0], weight[0, 0, 0, 0] = 255, 127, -128
        yield x, weight, stride, padding


def _sizes(x, weight, stride, padding):
    n, h, w, c = x.shape
    return tuple(map(np.int32, (n, h, w, c, len(weight), weight.shape[1], stride, padding)))


def _place(shape):
    def element(i):
        n, y, x, o = np.unravel_index(i, shape)
        return f"image {n}, row {y}, column {x}, output {o}"

    return element


def _taps(x, weight, stride, padding, shape, products):
    """Explain a sum by the rows of its window; `products` turns codes into what is multiplied."""

    def explain(i, got):
        n, row, column, o = np.unravel_index(i, shape)
        left, right = products(x[n], n), products(weight[o], n)
        size, rows, total, inside = weight.shape[1], [], 0, 0
        for ky in range(size):
            part = 0
            for kx in range(size):
                y, at = row * stride + ky - padding, column * stride + kx - padding
                if 0 <= y < x.shape[1] and 0 <= at < x.shape[2]:
                    inside += 1
                    part += int(left[y, at].astype(int) @ right[ky, kx].astype(int))
            total += part
            rows.append((f"row {ky} of the kernel", part, 24))
        rows.append((f"the sum, {inside} of {size * size} places inside", total, 24))
        slips = {"if nothing was written": int.from_bytes(b"\x5a" * 4, "little")}
        return steps(rows, got, slips)

    return explain


def a3_2(conv_kernel, rng):
    launches = []
    for x, weight, stride, padding in _layers(rng):
        expected = integer.conv2d(x, weight, stride, padding)
        out = np.full(expected.shape, 0x5A5A5A5A, np.int32)
        explain = _taps(x, weight, stride, padding, expected.shape, lambda codes, _: codes)
        sizes = _sizes(x, weight, stride, padding)
        what = f"x {x.shape}, weight {weight.shape}, stride {stride}, padding {padding}"
        launches.append(
            Launch(
                what,
                _blocks(out.size),
                (x, weight, out, *sizes),
                expected,
                24,
                _place(out.shape),
                2,
                explain=explain,
            )
        )
    return _judge(conv_kernel, "conv_kernel", "conv", launches, f"{len(launches)} layers")


def a3_3(mixed_kernel, rng):
    launches = []
    for x, weight, stride, padding in _layers(rng):
        widths = rng.permutation(8)[: len(x)].astype(np.int32) + 1
        drops = 8 - widths
        expected = np.stack(
            [
                integer.conv2d(nested.switch(x[n : n + 1], b), nested.switch(weight, b), stride, padding)[0]
                << 2 * (8 - b)
                for n, b in enumerate(widths.tolist())
            ]
        )

        def products(codes, n, widths=widths, drops=drops):
            return nested.switch(codes, int(widths[n])).astype(int) << int(drops[n])

        out = np.full(expected.shape, 0x5A5A5A5A, np.int32)
        explain = _taps(x, weight, stride, padding, expected.shape, products)
        sizes = _sizes(x, weight, stride, padding)
        what = f"x {x.shape} at widths {widths.tolist()}, weight {weight.shape}, "
        what += f"stride {stride}, padding {padding}"
        arguments = x, weight, widths, out, *sizes
        launches.append(
            Launch(what, _blocks(out.size), arguments, expected, 24, _place(out.shape), 3, explain=explain)
        )
    return _judge(
        mixed_kernel, "mixed_kernel", "mixed_conv", launches, f"{len(launches)} layers of mixed widths"
    )


def a3_4(codes_kernel, rng):
    launches = []
    for r, lo, hi in ((int(rng.integers(50, 54)), 0, 255), (40, 0, 6), (1, 0, 255)):
        pixels, outputs = 40, int(rng.integers(3, 8))
        acc = rng.integers(-(2**22), 2**22, (pixels, outputs)).astype(np.int32)
        by = rng.integers(-(2**30), 2**31 - 1, outputs).astype(np.int32)
        offset = rng.integers(-(2**r), 2**r, outputs) + ((2 * rng.integers(0, 90, outputs) + 1) << (r - 1))
        # where the accumulator is 0: ties, and what lies just below one, which a double takes for it
        offset[:3] = 5 << (r - 1), 179 << (r - 1), (179 << (r - 1)) - 1
        acc[::3] = 0
        acc[1], by[0] = -(2**22), 2**31 - 1  # a product of the most bits
        expected = integer.requantize([(acc, 0, by)], offset, r, lo, hi)

        def explain(i, got, acc=acc, by=by, offset=offset, r=r, lo=lo, hi=hi):
            pixel, o = divmod(i, acc.shape[1])
            total, half = int(acc[pixel, o]) * int(by[o]) + int(offset[o]), 1 << (r - 1)
            rows = [("acc * M", int(acc[pixel, o]) * int(by[o]), 64), ("plus B", total, 64)]
            rows += [(f"plus 2**{r - 1}, >> {r}", (total + half) >> r, 24)]
            narrow = (int(acc[pixel, o]) * int(by[o]) + 2**31) % 2**32 - 2**31 + int(offset[o])

            def clamped(value):
                return min(max(value, lo), hi)

            slips = {
                "if the product is formed in 32 bits": clamped((narrow + half) >> r),
                "if the half is not added": clamped(total >> r),
                "if the code wraps around": ((total + half) >> r) % 256,
                "if nothing was written": 0x5A,
            }
            return steps([*rows, (f"clamped to {lo}..{hi}", clamped((total + half) >> r), 8)], got, slips)

        def element(i, outputs=outputs):
            return f"pixel {i // outputs}, output {i % outputs}"

        numbers = (np.int32(acc.size), np.int32(outputs), np.int32(r), np.int32(lo), np.int32(hi))
        arguments = acc, by, offset.astype(np.int64), np.full(acc.shape, 0x5A, np.uint8), *numbers
        what = f"{acc.shape} accumulators, r = {r}, {lo}..{hi}"
        launches.append(Launch(what, _blocks(acc.size), arguments, expected, 8, element, 3, explain=explain))
    return _judge(codes_kernel, "codes_kernel", "to_codes", launches, f"{len(launches)} layers")


def a3_5(sums_kernel, rng):
    launches = []
    for pixels, channels in ((1, 3), (128, 2), (int(rng.integers(129, 900)), 3)):
        x = rng.integers(1, 256, (2, pixels, channels)).astype(np.uint8)  # no pixel is left out unseen
        expected = x.sum(1, dtype=np.int32)

        def explain(i, got, x=x):
            n, c = divmod(i, x.shape[2])
            mine = x[n, :, c].astype(int)
            rows = [("what thread 0 adds up", int(mine[::THREADS].sum()), 24)]
            slips = {
                "if only thread 0's own part arrives": int(mine[::THREADS].sum()),
                "if only the first 128 pixels are read": int(mine[:THREADS].sum()),
            }
            return steps([*rows, (f"the sum of {len(mine)} codes", int(mine.sum()), 24)], got, slips)

        def element(i, channels=channels):
            return f"image {i // channels}, channel {i % channels}"

        arguments = x, np.full(expected.shape, -1, np.int32), np.int32(pixels), np.int32(channels)
        launches.append(
            Launch(f"x {x.shape}", (expected.size, 1, 1), arguments, expected, 24, element, explain=explain)
        )
    return _judge(sums_kernel, "sums_kernel", "channel_sums", launches, f"{len(launches)} sizes")


TASKS = {"a3_1": a3_1, "a3_2": a3_2, "a3_3": a3_3, "a3_4": a3_4, "a3_5": a3_5}
check, grade = checkers(TASKS)
