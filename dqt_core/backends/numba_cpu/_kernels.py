"""The kernels, compiled by Numba at first use and kept on disk, integers only.

One function, `run`, walks the steps of a plan; the threads share the work items of a step. Memory is by
address, as `_layout.Memory` says.
"""

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from numba import prange

from dqt_core.backends import _llvm, _processor
from dqt_core.backends._llvm import compiled
from dqt_core.backends._numba_cache import kept
from dqt_core.backends._processor import Machine
from dqt_core.backends.numba_cpu import _convolutions, _products, _sharing
from dqt_core.backends.numba_cpu import _layout as layout
from dqt_core.backends.numba_cpu import _vectors as vectors
from dqt_core.backends.numba_cpu._convolutions import conv, depthwise
from dqt_core.backends.numba_cpu._layout import LINE, Blocks, Given, Memories, Step, Steps, Terms
from dqt_core.backends.numba_cpu._sharing import add_one, wait_for
from dqt_core.backends.numba_cpu._vectors import clear, copy_bytes, put_byte, put_int, read_byte, read_long

# An edit of them is one of what is compiled.
_PARTS = layout, _llvm, _processor, _products, vectors, _convolutions, _sharing


@compiled
def look_up(given: Given, step: Step, item: int) -> None:
    """Bytes of one row by their table, or by that of their channel."""
    memory, size, rows = given.memory, step.width * step.channels, step.tables
    x, out = memory.arena + step.x + item * size, memory.arena + step.out + item * size
    for row in range(rows):
        table = memory.tables + (step.table + row) * 256
        for i in range(row, size, rows):
            put_byte(out + i, read_byte(table + read_byte(x + i)))


@compiled
def switch(given: Given, step: Step, item: int) -> None:
    """Part of an image's codes to the width that a layer reads, without a sign where a product reads them.

    A signed code q is read as q + 2**(b-1), which is the same switch of the unsigned code q + 128.
    """
    memory, size = given.memory, step.height * step.width * step.channels
    image, part = item // step.splits, item % step.splits
    lines = (size + LINE - 1) // LINE
    first, last = lines * part // step.splits * LINE, lines * (part + 1) // step.splits * LINE
    drop, flip = read_long(memory.drops + 8 * (step.images + image)), 128 * (step.x_kind == layout.SIGNED)
    lift, epsilon = 128 >> drop if step.lifted else 0, 1 if step.half_up and drop else 0
    x, out = memory.arena + step.x + image * size, memory.arena + step.out + image * size
    for line in range(first, last, LINE):
        to = out + line if line + LINE <= size else memory.spare
        vectors.switch_line(to, x + line, flip, drop, epsilon, 255 >> drop, lift)
        if line + LINE > size:
            copy_bytes(out + line, memory.spare, size - line)


@compiled
def requantize(given: Given, step: Step, item: int) -> None:
    """One row of pixels, any number of terms."""
    memory, outputs, image = given.memory, step.outputs, item // step.height
    totals, rounding = memory.totals, (step.r, step.lo, step.hi)
    for pixel in range(item * step.width, (item + 1) * step.width):
        clear(totals, 8 * (outputs + 15))
        for index in range(step.term, step.term + step.terms):
            term = given.terms[index]
            code = 4 if term.kind == layout.SUMS else 1
            row = read_long(memory.rows + 8 * (term.rows + image)) * outputs
            drop = read_long(memory.drops + 8 * (term.rows + image))
            x = memory.arena + term.x + pixel * outputs * code
            for i in range(0, outputs, 16):
                m, b = term.m + 4 * (row + i), term.b + 8 * (row + i)
                vectors.add(term.kind, totals + 8 * i, x + code * i, drop, m, b)
        for i in range(0, outputs, 16):
            out = memory.arena + step.out + pixel * outputs + i
            to = out if i + 16 <= outputs else memory.spare
            vectors.round_totals(totals + 8 * i, rounding, to)
            if i + 16 > outputs:
                copy_bytes(out, memory.spare, outputs - i)


@compiled
def max_pool(given: Given, step: Step, item: int) -> None:
    """One row of pixels."""
    memory, image, row = given.memory, item // step.out_height, item % step.out_height
    spare, flip, top = memory.spare, 128 * (step.x_kind == layout.SIGNED), row * step.stride - step.padding
    for column in range(step.out_width):
        out = memory.arena + step.out + (item * step.out_width + column) * step.channels
        left = column * step.stride - step.padding
        for first in range(0, step.channels, LINE):
            vectors.fill_line(spare, 0)
            for y in range(max(top, 0), min(top + step.kernel_height, step.height)):
                for x in range(max(left, 0), min(left + step.kernel_width, step.width)):
                    codes = ((image * step.height + y) * step.width + x) * step.channels + first
                    vectors.largest_line(spare, memory.arena + step.x + codes, flip)
            for i in range(min(LINE, step.channels - first)):
                put_byte(out + first + i, read_byte(spare + i) ^ flip)


@compiled
def sum_pool(given: Given, step: Step, image: int) -> None:
    """One image."""
    memory, row = given.memory, step.width * step.channels
    x = memory.arena + step.x + image * step.height * row, row, step.channels
    ones, taps = (memory.ones, 0, 0), (step.height, step.width)
    vectors.multiply(step.x_kind, memory.sums, x, ones, taps, step.channels)
    copy_bytes(memory.arena + step.out + 4 * image * step.channels, memory.sums, 4 * step.channels)


@compiled
def copy(given: Given, step: Step, item: int) -> None:
    """One row of a value to its channels of a concatenation."""
    x, out = given.memory.arena + step.x, given.memory.arena + step.out
    for pixel in range(item * step.width, (item + 1) * step.width):
        copy_bytes(out + pixel * step.outputs, x + pixel * step.channels, step.channels)


@compiled
def multiply(given: Given, step: Step, item: int) -> None:
    """One row of pixels."""
    arena = given.memory.arena
    flip_x, flip_y = 128 * (step.x_kind == layout.SIGNED), 128 * (step.y_kind == layout.SIGNED)
    for pixel in range(item * step.width, (item + 1) * step.width):
        x, out = arena + step.x + pixel * step.channels, arena + step.out + 4 * pixel * step.channels
        y = arena + step.y + (item // step.height if step.y_pixels == 1 else pixel) * step.channels
        for i in range(step.channels):
            a, b = (read_byte(x + i) ^ flip_x) - flip_x, (read_byte(y + i) ^ flip_y) - flip_y
            put_int(out + 4 * i, a * b)


@compiled
def work(given: Given, step: Step, item: int) -> None:
    """One work item of a step."""
    if step.kind == layout.CONV:
        conv(given, step, item)
    elif step.kind == layout.SWITCH:
        switch(given, step, item)
    elif step.kind == layout.LOOKUP:
        look_up(given, step, item)
    elif step.kind == layout.DEPTHWISE:
        depthwise(given, step, item)
    elif step.kind == layout.REQUANTIZE:
        requantize(given, step, item)
    elif step.kind == layout.MAX_POOL:
        max_pool(given, step, item)
    elif step.kind == layout.SUM_POOL:
        sum_pool(given, step, item)
    elif step.kind == layout.COPY:
        copy(given, step, item)
    else:
        multiply(given, step, item)


@compiled
def walk(given: Given, steps: Steps) -> None:
    """The steps one after another: items of each that no thread has taken yet, then a wait for the others."""
    for i in range(len(steps)):
        taken = given.memory.counts + 2 * LINE * i
        done, items = taken + LINE, steps[i].items
        item = add_one(taken)
        while item < items:
            work(given, steps[i], item)
            add_one(done)
            item = add_one(taken)
        wait_for(done, items)


@kept(*_PARTS, parallel=True)
def run(machine: Machine, memory: Memories, blocks: Blocks, terms: Terms, steps: Steps, workers: int) -> None:
    """All steps, by so many threads, each of which walks them.

    Items are taken, not assigned: a thread that something else on the machine keeps from its processor holds
    up the one item that it has.
    """
    clear(memory[0].counts, 2 * LINE * len(steps))
    for thread in prange(workers):
        walk(Given(machine, memory[thread], blocks, terms), steps)


@kept(*_PARTS)
def run_alone(machine: Machine, memory: Memories, blocks: Blocks, terms: Terms, steps: Steps) -> None:
    """All steps on one thread, which wakes no other."""
    given = Given(machine, memory[0], blocks, terms)
    for i in range(len(steps)):
        for item in range(steps[i].items):
            work(given, steps[i], item)


@kept(*_PARTS)
def switch_weights(out: int, codes: int, count: int, drop: int, epsilon: int) -> None:
    """Signed codes at an address to another width, whole lines of them to whole lines of the cache."""
    rest = 128, drop, epsilon, 255 >> drop, 128 >> drop
    for line in range(0, count, LINE):
        vectors.switch_line_past_the_cache(out + line, codes + line, *rest)
    vectors.fence()
