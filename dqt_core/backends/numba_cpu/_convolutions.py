"""A convolution: windows are found, multiplied, and requantized while their sums are in the cache.

A product is one of matrices, of 32 pixels by 32 channels. The window of a pixel is a list of addresses: its
rows lie in the image, and are copied only where a part of one is outside. AMX has whole windows copied.
"""

from dqt_core.backends.numba_cpu._layout import (
    CHANNELS,
    LINE,
    NOTHING,
    PIXELS,
    SIGNED,
    SUMS,
    UNSIGNED,
    Block,
    Blocks,
    Machine,
    Memory,
    Step,
    Sums,
    Terms,
)
from dqt_core.backends.numba_cpu._lines import (
    clear,
    compiled,
    copy_line,
    copy_rest,
    fill_line,
    fill_wide_line,
    finish_alone,
    finish_signed,
    finish_sums,
    finish_unsigned,
    multiply_signed,
    multiply_unsigned,
    put_int,
    put_long,
    read_byte,
    read_long,
    read_short,
    store_sums,
    widen_line,
)
from dqt_core.backends.numba_cpu._products import configure, product


@compiled
def conv(machine: Machine, memory: Memory, blocks: Blocks, terms: Terms, step: Step, item: int) -> None:
    """A block of pixels against a part of the channels."""
    block = blocks[step.block + item // step.splits]
    part = item % step.splits
    outputs = step.outputs // step.groups
    parts = (outputs + CHANNELS - 1) // CHANNELS
    row, lines = step.lines * machine.line, step.lines // step.pieces
    span = 8 * whole_tiles(machine, block.pixels)
    size = step.out_height * step.out_width
    configure(machine, memory.config)
    for group in range(step.groups):
        gather(machine, memory, step, block, group)
        if block.middle:
            add_windows(machine, memory, step, block)
        for channels in range(parts * part // step.splits, parts * (part + 1) // step.splits):
            first = channels * CHANNELS
            count = min(CHANNELS, outputs - first)
            weights = block.weights + (group * parts + channels) * CHANNELS * row
            slot, place = block.first // size, block.first % size
            for pixel in range(0, block.pixels, PIXELS):
                windows, last = memory.windows + 8 * pixel, min(block.pixels, pixel + PIXELS)
                product(machine, windows, span, row, weights, step.pieces, lines, last - pixel, memory.sums)
                done = pixel
                while done < last:  # the pixels of one image
                    image = read_long(memory.order + 8 * (step.order + slot))
                    pixels = min(last - done, size - place)
                    channel = group * outputs + first
                    where = (image * size + place) * step.outputs + channel
                    at = memory.sums + 4 * CHANNELS * (done - pixel)
                    middles = memory.middles + 4 * done if block.middle else memory.zeros
                    sums = Sums(at, middles, image, where, channel, count, pixels)
                    finish(memory, terms, step, block, sums)
                    done, place = done + pixels, place + pixels
                    if place == size:
                        slot, place = slot + 1, 0
    configure(machine, 0)


@compiled
def gather(machine: Machine, memory: Memory, step: Step, block: Block, group: int) -> None:
    """Where the pieces of every pixel's window are: in the image, or copied to `panel` one after the other.

    Copied are pieces that are not all in the image, and pixels that do not fill a tile: AMX would read on
    beyond them, up to 31 times all their channels beyond the value.
    """
    inputs, rows = step.channels // step.groups, step.kernel_height // step.pieces
    length, stride = step.lines // step.pieces * machine.line, step.stride * step.channels
    direct = block.pixels // machine.tile * machine.tile if step.direct else 0
    size, span = step.out_height * step.out_width, whole_tiles(machine, block.pixels)
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
        image = read_long(memory.order + 8 * (step.order + slot))
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
                    copy_piece(machine, step, block.zero, out, x + i * stride, y, left + i * step.stride)
                    out += length
        pixel += count
    for piece in range(step.pieces):
        for i in range(block.pixels, span):  # whose sums nobody reads
            put_long(memory.windows + 8 * (piece * span + i), memory.panel)


@compiled
def whole_tiles(machine: Machine, pixels: int) -> int:
    """Entries of `Memory.windows` for a piece of so many pixels."""
    return (pixels + machine.tile - 1) // machine.tile * machine.tile


@compiled
def copy_piece(machine: Machine, step: Step, zero: int, out: int, x: int, top: int, left: int) -> None:
    """Rows of a window, with `zero` for what is outside of the image.

    Whole lines are copied. What is beyond a part is covered by the next, or it meets weights of 0.
    """
    inputs, columns, code = step.channels // step.groups, step.kernel_width, machine.code
    for y in range(top, top + step.kernel_height // step.pieces):
        first, last = max(-left, 0), min(step.width - left, columns)
        if not 0 <= y < step.height or last <= first:
            first, last = columns, columns
        run = max(1, last - first) if step.groups == 1 else 1  # columns whose codes lie beside each other
        fill_codes(machine, out, zero, first * inputs)
        for column in range(first, last, run):
            copy_codes(machine, out + column * inputs * code, x + column * step.channels, run * inputs)
        fill_codes(machine, out + last * inputs * code, zero, (columns - last) * inputs)
        out += columns * inputs * code
        x += step.width * step.channels


@compiled
def copy_codes(machine: Machine, out: int, x: int, count: int) -> None:
    """Codes without a sign, as wide as products read them."""
    if machine.code == 1:
        for i in range(0, count, LINE):
            copy_line(out + i, x + i)
    else:
        for i in range(0, count, LINE // 2):
            widen_line(out + 2 * i, x + i)


@compiled
def fill_codes(machine: Machine, out: int, code: int, count: int) -> None:
    """One code, as wide as products read it."""
    if machine.code == 1:
        for i in range(0, count, LINE):
            fill_line(out + i, code)
    else:
        for i in range(0, count, LINE // 2):
            fill_wide_line(out + 2 * i, code)


@compiled
def add_windows(machine: Machine, memory: Memory, step: Step, block: Block) -> None:
    """What floor's middle of a bin adds to every sum of a pixel: a multiple of the sum of its window."""
    codes = step.kernel_height * step.kernel_width * (step.channels // step.groups)
    span = whole_tiles(machine, block.pixels)
    for pixel in range(block.pixels):
        total = -block.zero * codes
        for piece in range(step.pieces):
            x = read_long(memory.windows + 8 * (piece * span + pixel))
            for i in range(0, codes // step.pieces * machine.code, machine.code):
                total += read_byte(x + i) if machine.code == 1 else read_short(x + i)
        put_int(memory.middles + 4 * pixel, total * block.middle)


@compiled
def finish(memory: Memory, terms: Terms, step: Step, block: Block, sums: Sums) -> None:
    """Sums as they are, or requantized with the other term where there is one."""
    x, drop, other_m, other_b, kind, code = 0, 0, 0, 0, NOTHING, 0
    if step.terms:
        term = terms[step.term]
        kind, code = term.kind, 4 if term.kind == SUMS else 1
        row = read_long(memory.rows + 8 * (term.rows + sums.image)) * step.outputs + sums.channel
        drop = read_long(memory.drops + 8 * (term.rows + sums.image))
        x, other_m, other_b = memory.arena + term.x + sums.place * code, term.m + 4 * row, term.b + 8 * row
    size = 4 if step.out_kind == SUMS else 1
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
        if step.out_kind == SUMS:
            store_sums(sums.pixels, own, other, strides, shifts, rounding)
        elif kind == NOTHING:
            finish_alone(sums.pixels, own, other, strides, shifts, rounding)
        elif kind == UNSIGNED:
            finish_unsigned(sums.pixels, own, other, strides, shifts, rounding)
        elif kind == SIGNED:
            finish_signed(sums.pixels, own, other, strides, shifts, rounding)
        else:
            finish_sums(sums.pixels, own, other, strides, shifts, rounding)
        if not whole:
            for pixel in range(sums.pixels):
                to = out + pixel * step.outputs * size
                copy_rest(to, memory.spare + pixel * 16 * size, (sums.channels - i) * size)


@compiled
def depthwise(memory: Memory, blocks: Blocks, terms: Terms, step: Step, item: int) -> None:
    """One row of pixels, every channel with its own kernel."""
    image, row = item // step.out_height, item % step.out_height
    block, sums = blocks[step.block + image], memory.sums
    for column in range(step.out_width):
        clear(sums, 4 * (step.outputs + 15))
        weights = block.weights - 4 * step.outputs
        for y in range(
            row * step.stride - step.padding, row * step.stride - step.padding + step.kernel_height
        ):
            left = column * step.stride - step.padding
            for x in range(left, left + step.kernel_width):
                weights += 4 * step.outputs
                if not (0 <= y < step.height and 0 <= x < step.width):
                    continue
                codes = memory.arena + step.x + ((image * step.height + y) * step.width + x) * step.channels
                for i in range(0, step.outputs, 16):
                    if step.x_kind == SIGNED:
                        multiply_signed(sums + 4 * i, codes + i, weights + 4 * i)
                    else:
                        multiply_unsigned(sums + 4 * i, codes + i, weights + 4 * i)
        place = ((image * step.out_height + row) * step.out_width + column) * step.outputs
        made = Sums(sums, memory.zeros, image, place, 0, step.outputs, 1)
        finish(memory, terms, step, block, made)
