"""A convolution: windows are found, multiplied, and requantized while their sums are in the cache.

A product is one of matrices, of 32 pixels by 32 channels. The window of a pixel is a list of addresses: its
rows lie in the image, and are copied only where a part of one is outside. AMX has whole windows copied.
"""

from dqt_core.backends._llvm import compiled
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.backends.numba_cpu import _vectors as vectors
from dqt_core.backends.numba_cpu._layout import CHANNELS, LINE, PIXELS, Block, Given, Step, Sums
from dqt_core.backends.numba_cpu._products import configure, product
from dqt_core.backends.numba_cpu._vectors import put_int, put_long, read_byte, read_long


@compiled
def conv(given: Given, step: Step, item: int) -> None:
    """A block of pixels against a part of the channels."""
    machine, memory = given.machine, given.memory
    block, part = given.blocks[step.block + item // step.splits], item % step.splits
    outputs = step.outputs // step.groups
    parts = (outputs + CHANNELS - 1) // CHANNELS
    row, window = step.lines * machine.line, (step.pieces, step.lines // step.pieces)
    steps = 8 * whole_tiles(given, block), row
    size = step.out_height * step.out_width
    configure(machine, memory.config)
    for group in range(step.groups):
        gather(given, step, block, group)
        if block.middle:
            add_windows(given, step, block)
        for channels in range(parts * part // step.splits, parts * (part + 1) // step.splits):
            first = channels * CHANNELS
            channel, count = group * outputs + first, min(CHANNELS, outputs - first)
            weights = block.weights + (group * parts + channels) * CHANNELS * row * machine.weight
            slot, place = block.first // size, block.first % size
            for pixel in range(0, block.pixels, PIXELS):
                windows, last = memory.windows + 8 * pixel, min(block.pixels, pixel + PIXELS)
                product(machine, windows, steps, weights, window, last - pixel, memory.sums)
                done = pixel
                while done < last:  # the pixels of one image
                    image = read_long(memory.order + 8 * (step.images + slot))
                    pixels = min(last - done, size - place)
                    where = (image * size + place) * step.outputs + channel
                    at = memory.sums + 4 * CHANNELS * (done - pixel)
                    middles = memory.middles + 4 * done if block.middle else memory.zeros
                    sums = Sums(at, middles, image, where, channel, count, pixels)
                    finish(given, step, block, sums)
                    done, place = done + pixels, place + pixels
                    if place == size:
                        slot, place = slot + 1, 0
    configure(machine, 0)


@compiled
def gather(given: Given, step: Step, block: Block, group: int) -> None:
    """Where the pieces of every pixel's window are: in the image, or copied to `panel` one after the other.

    Copied are pieces that are not all in the image, and pixels that do not fill a tile: AMX would read on
    beyond them, up to 31 times all their channels beyond the value.
    """
    machine, memory = given.machine, given.memory
    inputs, rows = step.channels // step.groups, step.kernel_height // step.pieces
    length, stride = step.lines // step.pieces * machine.line, step.stride * step.channels
    direct = block.pixels // machine.tile * machine.tile if step.direct else 0
    size, span = step.out_height * step.out_width, whole_tiles(given, block)
    # columns whose windows lie within the image
    begin = (step.padding + step.stride - 1) // step.stride
    end = (step.width + step.padding - step.kernel_width) // step.stride + 1
    pixel, out = 0, memory.panel
    while pixel < block.pixels:  # those of one row
        slot, place = (block.first + pixel) // size, (block.first + pixel) % size
        row, column = place // step.out_width, place % step.out_width
        count = min(step.out_width - column, block.pixels - pixel)
        first = min(max(begin - column, 0), count)
        last = max(first, min(end - column, count, direct - pixel))
        image = read_long(memory.order + 8 * (step.images + slot))
        left = column * step.stride - step.padding
        for piece in range(step.pieces):
            y = row * step.stride - step.padding + piece * rows
            x = ((image * step.height + y) * step.width + left) * step.channels + group * inputs
            x, at = memory.arena + step.x + x, memory.windows + 8 * (piece * span + pixel)
            inside = (first, last) if 0 <= y < step.height else (0, 0)
            for i in range(inside[0], inside[1]):
                put_long(at + 8 * i, x + i * stride)
            for start, stop in ((0, inside[0]), (inside[1], count)):
                for i in range(start, stop):
                    put_long(at + 8 * i, out)
                    copy_piece(step, block.zero, out, x + i * stride, y, left + i * step.stride)
                    out += length
        pixel += count
    for piece in range(step.pieces):
        for i in range(block.pixels, span):  # whose sums nobody reads
            put_long(memory.windows + 8 * (piece * span + i), memory.panel)


@compiled
def whole_tiles(given: Given, block: Block) -> int:
    """Entries of `Memory.windows` for a piece of the block's pixels."""
    return (block.pixels + given.machine.tile - 1) // given.machine.tile * given.machine.tile


@compiled
def copy_piece(step: Step, zero: int, out: int, x: int, top: int, left: int) -> None:
    """Rows of a window, with `zero` for what is outside of the image.

    Whole lines are copied. What is beyond a part is covered by the next, or it meets weights of 0.
    """
    inputs, columns = step.channels // step.groups, step.kernel_width
    for y in range(top, top + step.kernel_height // step.pieces):
        first, last = max(-left, 0), min(step.width - left, columns)
        if not 0 <= y < step.height or last <= first:
            first, last = columns, columns
        run = max(1, last - first) if step.groups == 1 else 1  # columns whose codes lie beside each other
        fill(out, zero, first * inputs)
        for column in range(first, last, run):
            for i in range(0, run * inputs, LINE):
                vectors.copy_line(out + column * inputs + i, x + column * step.channels + i)
        fill(out + last * inputs, zero, (columns - last) * inputs)
        out += columns * inputs
        x += step.width * step.channels


@compiled
def fill(out: int, code: int, count: int) -> None:
    for i in range(0, count, LINE):
        vectors.fill_line(out + i, code)


@compiled
def add_windows(given: Given, step: Step, block: Block) -> None:
    """What floor's middle of a bin adds to every sum of a pixel: a multiple of the sum of its window."""
    codes, memory = step.kernel_height * step.kernel_width * (step.channels // step.groups), given.memory
    span = whole_tiles(given, block)
    for pixel in range(block.pixels):
        total = -block.zero * codes
        for piece in range(step.pieces):
            x = read_long(memory.windows + 8 * (piece * span + pixel))
            for i in range(codes // step.pieces):
                total += read_byte(x + i)
        put_int(memory.middles + 4 * pixel, total * block.middle)


@compiled
def finish(given: Given, step: Step, block: Block, sums: Sums) -> None:
    """Sums as they are, or requantized with the other term where there is one."""
    memory, kind = given.memory, layout.RAW if step.out_kind == layout.SUMS else layout.NOTHING
    x, drop, other_m, other_b, code = 0, 0, 0, 0, 0
    if step.terms:
        term = given.terms[step.term]
        kind, code = term.kind, 4 if term.kind == layout.SUMS else 1
        row = read_long(memory.rows + 8 * (term.rows + sums.image)) * step.outputs + sums.channel
        drop = read_long(memory.drops + 8 * (term.rows + sums.image))
        x, other_m, other_b = memory.arena + term.x + sums.place * code, term.m + 4 * row, term.b + 8 * row
    size = 4 if step.out_kind == layout.SUMS else 1
    shifts, rounding = (block.shift, drop), (step.r, step.lo, step.hi)
    for i in range(0, sums.channels, 16):
        out, channel = memory.arena + step.out + (sums.place + i) * size, sums.channel + i
        # what is beyond the last channel is computed beside it, and left there
        whole = i + 16 <= sums.channels
        to, to_stride = (out, step.outputs * size) if whole else (memory.spare, 16 * size)
        correction, m, b = block.correction + 4 * channel, block.m + 4 * channel, block.b + 8 * channel
        own = (sums.at + 4 * i, correction, sums.middles, m, b, to)
        other = (x + code * i, other_m + 4 * i, other_b + 8 * i)
        strides = (4 * CHANNELS, 4 if block.middle else 0, to_stride, step.outputs * code)
        vectors.finish(kind, sums.pixels, own, other, strides, shifts, rounding)
        if not whole:
            for pixel in range(sums.pixels):
                to = out + pixel * step.outputs * size
                vectors.copy_bytes(to, memory.spare + pixel * 16 * size, (sums.channels - i) * size)


@compiled
def depthwise(given: Given, step: Step, item: int) -> None:
    """One row of pixels, every channel with its own kernel."""
    image, row, memory = item // step.out_height, item % step.out_height, given.memory
    block, top, tap = given.blocks[step.block + image], row * step.stride - step.padding, 4 * step.outputs
    first, last = max(-top, 0), min(step.height - top, step.kernel_height)
    for column in range(step.out_width):
        left = column * step.stride - step.padding
        begin, end = max(-left, 0), min(step.width - left, step.kernel_width)
        x = ((image * step.height + top + first) * step.width + left + begin) * step.channels
        codes = memory.arena + step.x + x, step.width * step.channels, step.channels
        weights = block.weights + (first * step.kernel_width + begin) * tap, step.kernel_width * tap, tap
        taps, place = (last - first, end - begin), (item * step.out_width + column) * step.outputs
        vectors.multiply(step.x_kind, memory.sums, codes, weights, taps, step.outputs)
        sums = Sums(memory.sums, memory.zeros, image, place, 0, step.outputs, 1)
        finish(given, step, block, sums)
