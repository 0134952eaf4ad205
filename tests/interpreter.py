"""Programs in Python integers, one image at a time: the rules of method.md section 2, written a second time.

Nothing of `dqt_core` runs here: an operation is recognised by the name of its class. Slow, so for images of a
few pixels; integers have no bounds, and that a sum fits its 32 or 64 bits is asserted.
"""

import itertools

from oracle_checks import ROUNDINGS, clamp, convolved


def run(program, image, choices=None):
    """Every value by name, and the choices, of an image (H, W, C); without choices the controller decides."""
    values = {"image": image.tolist()}
    by_controller = choices is None
    if by_controller:  # those of the layers before its decision
        choices = next((op.before for op in program.ops if type(op).__name__ == "Choose"), None)
    for op in program.ops:
        kind = type(op).__name__
        if op.controller and not by_controller:
            continue
        if kind == "Choose":
            choices = [*op.before, *chosen(values[op.x][0][0], op.layers, len(program.choices))]
        else:
            values[op.out] = OPERATIONS[kind](program, op, values, choices)
    return values, list(choices)


def chosen(logits, layers, choices):
    rows = [logits[layer * choices : (layer + 1) * choices] for layer in range(layers)]
    return [max(range(choices), key=lambda k: (row[k], -k)) for row in rows]


def lookup(program, op, values, choices):
    table = op.table.tolist()
    rows = [table[0]] * size(values[op.x])[2] if len(table) == 1 else table
    return [[[rows[c][q % 256] for c, q in enumerate(pixel)] for pixel in row] for row in values[op.x]]


def conv(program, op, values, choices):
    weight_bits, input_bits = (8, 8) if op.layer is None else program.choices[choices[op.layer]]
    is_signed = value_is_signed(program, op.x)
    weight = mapped(lambda q: weight_view(q, weight_bits, program.rounding), op.weight.tolist())
    x = mapped(lambda q: input_view(q, input_bits, is_signed, program.rounding), values[op.x])
    height = (len(x) + 2 * op.padding - len(weight[0])) // op.stride + 1
    width = (len(x[0]) + 2 * op.padding - len(weight[0][0])) // op.stride + 1
    outputs = len(weight) // op.groups

    def accumulator(i, j, o):
        top, left = i * op.stride - op.padding, j * op.stride - op.padding
        return within(convolved(x, weight[o], top, left, o // outputs), 2**31)

    return [[[accumulator(i, j, o) for o in range(len(weight))] for j in range(width)] for i in range(height)]


def weight_view(code, width, rounding):
    """What a product reads: the b-bit code, or with floor the middle of its bin in half master steps."""
    view = ROUNDINGS[rounding](code, width, True)
    drop = 8 - width
    return view if rounding == "half_up" else 2 * view * 2**drop + 2**drop - 1


def input_view(code, width, is_signed, rounding):
    """What a product reads: the b-bit code, or with floor the same in master steps."""
    view = ROUNDINGS[rounding](code, width, is_signed)
    return view if rounding == "half_up" else view * 2 ** (8 - width)


def value_is_signed(program, name):
    maker = next(op for op in program.ops if getattr(op, "out", None) == name)
    match type(maker).__name__:
        case "MaxPool":
            return value_is_signed(program, maker.x)
        case "Concat":
            return value_is_signed(program, maker.parts[0])
        case "Lookup":
            return str(maker.table.dtype) == "int8"
    return maker.lo < 0


def requantize(program, op, values, choices):
    shape = [range(n) for n in size(values[op.terms[0].x])]
    terms = [(values[term.x], *read_term(program, term, choices)) for term in op.terms]

    def code(i, j, c):
        total = sum((a[i][j][c] << d) * at(m, c) + at(b, c) for a, d, m, b in terms)
        magnitude = sum(abs((a[i][j][c] << d) * at(m, c)) for a, d, m, b in terms)
        within(magnitude + abs(sum(at(b, c) for *_, b in terms)) + 2 ** (op.r - 1), 2**62)
        return clamp((total + 2 ** (op.r - 1)) >> op.r, op.lo, op.hi)

    return [[[code(i, j, c) for c in shape[2]] for j in shape[1]] for i in shape[0]]


def read_term(program, term, choices):
    """Dropped bits to put back, and the rows of M and B, at a choice."""
    if term.layer is None:
        return 0, term.multiplier[0].tolist(), term.offset[0].tolist()
    choice = choices[term.layer]
    weight_bits, input_bits = program.choices[choice]
    drop = (8 - weight_bits) + (8 - input_bits) if program.rounding == "half_up" else 0
    return drop, *(
        table[choice if len(table) > 1 else 0].tolist() for table in (term.multiplier, term.offset)
    )


def at(row, channel):
    return row[channel] if len(row) > 1 else row[0]


def max_pool(program, op, values, choices):
    x = values[op.x]

    def starts(n):
        """Of the windows that end inside; with `ceil` of those that begin inside and hold something new."""
        last = n + op.padding - op.kernel
        inside = [i for i in range(-op.padding, n, op.stride) if i <= last]
        new = [i for i in range(-op.padding, n, op.stride) if last < i < last + op.stride]
        return inside + new * op.ceil

    rows, columns = starts(len(x)), starts(len(x[0]))

    def largest(top, left, c):
        window = itertools.product(range(top, top + op.kernel), range(left, left + op.kernel))
        return max(x[i][j][c] for i, j in window if 0 <= i < len(x) and 0 <= j < len(x[0]))

    return [[[largest(i, j, c) for c in range(len(x[0][0]))] for j in columns] for i in rows]


def sum_pool(program, op, values, choices):
    pixels = [pixel for row in values[op.x] for pixel in row]
    return [[[within(sum(column), 2**31) for column in zip(*pixels, strict=True)]]]


def concat(program, op, values, choices):
    parts = [values[name] for name in op.parts]
    return [
        [list(itertools.chain(*pixels)) for pixels in zip(*rows, strict=True)]
        for rows in zip(*parts, strict=True)
    ]


def product(program, op, values, choices):
    x, y = values[op.x], values[op.y]
    is_one = size(y)[:2] == (1, 1)
    return [
        [
            [within(a * b, 2**31) for a, b in zip(pixel, y[0][0] if is_one else y[i][j], strict=True)]
            for j, pixel in enumerate(row)
        ]
        for i, row in enumerate(x)
    ]


def scale(program, op, values, choices):
    multiplier, offset = op.term.multiplier[0].tolist(), op.term.offset[0].tolist()
    pixel = values[op.term.x][0][0]
    return [[[within(a * at(multiplier, c) + at(offset, c), 2**62) for c, a in enumerate(pixel)]]]


OPERATIONS = {
    "Lookup": lookup,
    "Conv": conv,
    "Requantize": requantize,
    "MaxPool": max_pool,
    "SumPool": sum_pool,
    "Concat": concat,
    "Product": product,
    "Scale": scale,
}


def mapped(function, nested):
    return [mapped(function, item) for item in nested] if isinstance(nested, list) else function(nested)


def size(value):
    return len(value), len(value[0]), len(value[0][0])


def within(integer, limit):
    assert -limit <= integer < limit, f"{integer} overflows: the program itself is wrong"
    return integer
