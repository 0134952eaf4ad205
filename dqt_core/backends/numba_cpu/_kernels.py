"""The kernels, compiled by Numba at first use and kept on disk, integers only.

One function, `run`, walks the steps of a plan; the threads share the work items of a step. Memory is by
address, as `_layout.Memory` says.
"""

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from numba import prange

from dqt_core.backends._numba_cache import kept
from dqt_core.backends.numba_cpu import _convolutions, _layout, _lines, _llvm, _products, _sharing
from dqt_core.backends.numba_cpu._convolutions import conv, depthwise
from dqt_core.backends.numba_cpu._layout import (
    CONV,
    COPY,
    DEPTHWISE,
    LINE,
    LOOKUP,
    MAX_POOL,
    REQUANTIZE,
    SIGNED,
    SUM_POOL,
    SUMS,
    SWITCH,
    Blocks,
    Machine,
    Memories,
    Memory,
    Step,
    Steps,
    Terms,
)
from dqt_core.backends.numba_cpu._lines import (
    add_signed,
    add_sums,
    add_unsigned,
    clear,
    compiled,
    copy_line,
    copy_rest,
    fence,
    fill_line,
    largest_line,
    multiply_signed,
    multiply_unsigned,
    put_byte,
    put_int,
    read_byte,
    read_long,
    round_line,
    switch_line,
    switch_line_past_the_cache,
)
from dqt_core.backends.numba_cpu._sharing import add_one, wait_for

# An edit of them is one of what is compiled.
_PARTS = _layout, _llvm, _products, _lines, _convolutions, _sharing


@compiled
def look_up(memory: Memory, step: Step, item: int) -> None:
    """Bytes of one row by their table, or by that of their channel."""
    size, rows = step.width * step.channels, step.tables
    x, out = memory.arena + step.x + item * size, memory.arena + step.out + item * size
    for row in range(rows):
        table = memory.tables + (step.table + row) * 256
        for i in range(row, size, rows):
            put_byte(out + i, read_byte(table + read_byte(x + i)))


@compiled
def switch(memory: Memory, step: Step, item: int) -> None:
    """Part of an image's codes to the width that a layer reads, without a sign where a product reads them.

    A signed code q is read as q + 2**(b-1), which is the same switch of the unsigned code q + 128.
    """
    size = step.height * step.width * step.channels
    image, part = item // step.splits, item % step.splits
    lines = (size + LINE - 1) // LINE
    first, last = lines * part // step.splits * LINE, lines * (part + 1) // step.splits * LINE
    drop = read_long(memory.drops + 8 * (step.drops + image))
    flip = 128 if step.x_kind == SIGNED else 0
    lift = 128 >> drop if step.lifted else 0
    epsilon = 1 if step.half_up and drop else 0
    x, out = memory.arena + step.x + image * size, memory.arena + step.out + image * size
    for line in range(first, last, LINE):
        whole = line + LINE <= size
        switch_line(out + line if whole else memory.spare, x + line, flip, drop, epsilon, 255 >> drop, lift)
        if not whole:
            copy_rest(out + line, memory.spare, size - line)


@compiled
def requantize(memory: Memory, terms: Terms, step: Step, item: int) -> None:
    """One row of pixels, any number of terms."""
    image, outputs = item // step.height, step.outputs
    totals, spare = memory.totals, memory.spare
    for pixel in range(item * step.width, (item + 1) * step.width):
        clear(totals, 8 * (outputs + 15))
        for index in range(step.term, step.term + step.terms):
            term = terms[index]
            code = 4 if term.kind == SUMS else 1
            row = read_long(memory.rows + 8 * (term.rows + image)) * outputs
            drop = read_long(memory.drops + 8 * (term.rows + image))
            x = memory.arena + term.x + pixel * outputs * code
            for i in range(0, outputs, 16):
                at, m, b = totals + 8 * i, term.m + 4 * (row + i), term.b + 8 * (row + i)
                if term.kind == SUMS:
                    add_sums(at, x + 4 * i, drop, m, b)
                elif term.kind == SIGNED:
                    add_signed(at, x + i, drop, m, b)
                else:
                    add_unsigned(at, x + i, drop, m, b)
        out = memory.arena + step.out + pixel * outputs
        for i in range(0, outputs, 16):
            whole = i + 16 <= outputs
            round_line(totals + 8 * i, step.r, step.lo, step.hi, out + i if whole else spare)
            if not whole:
                copy_rest(out + i, spare, outputs - i)


@compiled
def max_pool(memory: Memory, step: Step, item: int) -> None:
    """One row of pixels."""
    image, row = item // step.out_height, item % step.out_height
    spare = memory.spare
    flip = 128 if step.x_kind == SIGNED else 0
    top = row * step.stride - step.padding
    for column in range(step.out_width):
        out = memory.arena + step.out + (item * step.out_width + column) * step.channels
        left = column * step.stride - step.padding
        for first in range(0, step.channels, LINE):
            fill_line(spare, 0)
            for y in range(max(top, 0), min(top + step.kernel_height, step.height)):
                for x in range(max(left, 0), min(left + step.kernel_width, step.width)):
                    codes = ((image * step.height + y) * step.width + x) * step.channels + first
                    largest_line(spare, memory.arena + step.x + codes, flip)
            for i in range(min(LINE, step.channels - first)):
                put_byte(out + first + i, read_byte(spare + i) ^ flip)


@compiled
def sum_pool(memory: Memory, step: Step, image: int) -> None:
    """One image."""
    sums, size = memory.sums, step.height * step.width
    clear(sums, 4 * (step.channels + 15))
    for pixel in range(image * size, (image + 1) * size):
        x = memory.arena + step.x + pixel * step.channels
        for i in range(0, step.channels, 16):
            if step.x_kind == SIGNED:
                multiply_signed(sums + 4 * i, x + i, memory.ones)
            else:
                multiply_unsigned(sums + 4 * i, x + i, memory.ones)
    copy_rest(memory.arena + step.out + 4 * image * step.channels, sums, 4 * step.channels)


@compiled
def copy(memory: Memory, step: Step, item: int) -> None:
    """One row of a value to its channels of a concatenation."""
    for pixel in range(item * step.width, (item + 1) * step.width):
        x, out = memory.arena + step.x + pixel * step.channels, memory.arena + step.out + pixel * step.outputs
        whole = step.channels // LINE * LINE
        for line in range(0, whole, LINE):
            copy_line(out + line, x + line)
        copy_rest(out + whole, x + whole, step.channels - whole)


@compiled
def multiply(memory: Memory, step: Step, item: int) -> None:
    """One row of pixels."""
    image, flip_x, flip_y = item // step.height, 128 * (step.x_kind == SIGNED), 128 * (step.y_kind == SIGNED)
    for pixel in range(item * step.width, (item + 1) * step.width):
        x, out = memory.arena + step.x + pixel * step.channels, step.out + 4 * pixel * step.channels
        y = memory.arena + step.y + (image if step.y_pixels == 1 else pixel) * step.channels
        for i in range(step.channels):
            a, b = (read_byte(x + i) ^ flip_x) - flip_x, (read_byte(y + i) ^ flip_y) - flip_y
            put_int(memory.arena + out + 4 * i, a * b)


@compiled
def work(machine: Machine, memory: Memory, blocks: Blocks, terms: Terms, step: Step, item: int) -> None:
    """One work item of a step."""
    if step.kind == CONV:
        conv(machine, memory, blocks, terms, step, item)
    elif step.kind == SWITCH:
        switch(memory, step, item)
    elif step.kind == LOOKUP:
        look_up(memory, step, item)
    elif step.kind == DEPTHWISE:
        depthwise(memory, blocks, terms, step, item)
    elif step.kind == REQUANTIZE:
        requantize(memory, terms, step, item)
    elif step.kind == MAX_POOL:
        max_pool(memory, step, item)
    elif step.kind == SUM_POOL:
        sum_pool(memory, step, item)
    elif step.kind == COPY:
        copy(memory, step, item)
    else:
        multiply(memory, step, item)


@compiled
def walk(machine: Machine, memory: Memory, blocks: Blocks, terms: Terms, steps: Steps) -> None:
    """The steps one after another: items of each that no thread has taken yet, then a wait for the others."""
    for i in range(len(steps)):
        taken = memory.counts + 2 * LINE * i
        done, items = taken + LINE, steps[i].items
        item = add_one(taken)
        while item < items:
            work(machine, memory, blocks, terms, steps[i], item)
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
        walk(machine, memory[thread], blocks, terms, steps)


@kept(*_PARTS)
def run_alone(machine: Machine, memory: Memories, blocks: Blocks, terms: Terms, steps: Steps) -> None:
    """All steps on one thread, which wakes no other."""
    for i in range(len(steps)):
        for item in range(steps[i].items):
            work(machine, memory[0], blocks, terms, steps[i], item)


@kept(*_PARTS)
def switch_weights(out: int, codes: int, count: int, drop: int, epsilon: int) -> None:
    """Signed codes at an address to another width, whole lines of them to whole lines of the cache."""
    for line in range(0, count, LINE):
        switch_line_past_the_cache(out + line, codes + line, 128, drop, epsilon, 255 >> drop, 128 >> drop)
    fence()
