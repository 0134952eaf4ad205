"""A convolution: windows are collected, multiplied, and requantized while their sums are in the cache.

A product is one of matrices, of 32 pixels by 32 channels.
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
    x, row = memory.arena + step.x + block.first * step.channels, step.lines * LINE
    offsets, panel = memory.offsets + 8 * step.offsets, memory.panel
    size = step.out_height * step.out_width
    # So many pixels are read where they are. A last product of fewer than 32 would read on beyond them: up to
    # 31 times all their channels beyond the value.
    direct = block.pixels // PIXELS * PIXELS if step.direct else 0
    configure(machine, memory.config)
    for group in range(step.groups):
        if machine.unit == LINE:
            gather(memory, step, block, group, direct)
        else:
            gather_wide(memory, step, block, group, direct)
        if block.middle:
            add_windows(machine, step, block, direct, x, memory.middles)
            rest = block.pixels - direct
            add_windows(machine, step, block, rest, panel, memory.middles + 4 * direct)
        for channels in range(parts * part // step.splits, parts * (part + 1) // step.splits):
            first = channels * CHANNELS
            count = min(CHANNELS, outputs - first)
            weights = block.weights + (group * parts + channels) * step.lines * 32 * LINE
            slot, place = block.first // size, block.first % size
            for pixel in range(0, block.pixels, PIXELS):
                windows = x + pixel * row if pixel < direct else panel + (pixel - direct) * row
                product(machine, windows, row, offsets, weights, step.lines, memory.sums)
                last = min(block.pixels, pixel + PIXELS)
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
def gather(memory: Memory, step: Step, block: Block, group: int, skip: int) -> None:
    """The codes of every pixel's window to `panel`, a pixel after the other from the block's pixel `skip` on.

    Whole lines are copied. What is beyond a part of a window is covered by its next part; what is beyond the
    window, by the next pixel, or it meets weights of 0.
    """
    inputs, panel, row = step.channels // step.groups, memory.panel, step.lines * LINE
    size = step.out_height * step.out_width
    slot, place = (block.first + skip) // size, (block.first + skip) % size
    top, left = place // step.out_width, place % step.out_width - 1
    top, left = top * step.stride - step.padding, left * step.stride - step.padding
    right, bottom = step.out_width * step.stride - step.padding, step.out_height * step.stride - step.padding
    for pixel in range(block.pixels - skip):
        left += step.stride
        if left == right:
            left, top = -step.padding, top + step.stride
            if top == bottom:
                top, slot = -step.padding, slot + 1
        image = read_long(memory.order + 8 * (step.order + slot))
        inside = step.groups == 1 and left >= 0 and left + step.kernel_width <= step.width
        out = panel + pixel * row
        for y in range(top, top + step.kernel_height):
            x = ((image * step.height + y) * step.width + left) * step.channels + group * inputs
            x += memory.arena + step.x
            if inside and 0 <= y < step.height:
                for line in range(0, step.kernel_width * inputs, LINE):
                    copy_line(out + line, x + line)
                out += step.kernel_width * inputs
                continue
            for column in range(left, left + step.kernel_width):
                if 0 <= y < step.height and 0 <= column < step.width:
                    for line in range(0, inputs, LINE):
                        copy_line(out + line, x + line)
                else:
                    for line in range(0, inputs, LINE):
                        fill_line(out + line, block.zero)
                out += inputs
                x += step.channels


@compiled
def gather_wide(memory: Memory, step: Step, block: Block, group: int, skip: int) -> None:
    """`gather` to 16-bit integers."""
    inputs, panel, row = step.channels // step.groups, memory.panel, step.lines * LINE
    size = step.out_height * step.out_width
    for pixel in range(block.pixels - skip):
        place = block.first + skip + pixel
        image, place = read_long(memory.order + 8 * (step.order + place // size)), place % size
        top = place // step.out_width * step.stride - step.padding
        left = place % step.out_width * step.stride - step.padding
        out = panel + pixel * row
        for y in range(top, top + step.kernel_height):
            for column in range(left, left + step.kernel_width):
                x = ((image * step.height + y) * step.width + column) * step.channels + group * inputs
                x += memory.arena + step.x
                inside = 0 <= y < step.height and 0 <= column < step.width
                for i in range(0, inputs, 32):
                    if inside:
                        widen_line(out + 2 * i, x + i)
                    else:
                        fill_wide_line(out + 2 * i, block.zero)
                out += 2 * inputs


@compiled
def add_windows(machine: Machine, step: Step, block: Block, pixels: int, windows: int, out: int) -> None:
    """What floor's middle of a bin adds to every sum of a pixel: a multiple of the sum of its window."""
    count, row = step.kernel_height * step.kernel_width * (step.channels // step.groups), step.lines * LINE
    for pixel in range(pixels):
        total, window = 0, windows + pixel * row
        for i in range(count):
            total += read_byte(window + i) if machine.unit == LINE else read_short(window + 2 * i)
        put_int(out + 4 * pixel, (total - block.zero * count) * block.middle)


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
