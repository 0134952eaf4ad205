"""Programs with a mistake in them: every field of every operation, and of the program, changed in some way.

`mutant_of` makes the fields of a program that may or may not be one. What `dqt_core.program.contract` lets
through must have one answer, whoever runs it; what it refuses, it refuses with ProgramError.
"""

from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
from hypothesis import strategies as st
from program_checks import joined_program, small_program
from strategies import programs

from dqt_core.program import Program
from dqt_core.program.operations import KINDS

INTEGERS = [0, 1, -1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 61, 62, 63, 64, 127, 128, 255, 256, 1000]
INTEGERS += [2**12 + 1, 2**15, 2**24, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63, -128, -129]
NO_INTEGERS = [True, False, 1.0, 2.5, None, "3", np.int64(1), (1,), float("nan")]
NAMES = [
    "",
    "image",
    "images",
    "logits",
    "x",
    "a/b",
    "*/ int x; /*",
    "\\",
    "x\ny",
    "\x00",
    "../x",
    "..",
    "a" * 181,
]
NAMES += [
    "constant0",
    "Conv0",
    "Cast1",
    "depthwise:sum:switched",
    "__proto__",
    "constructor",
    "größe",
    "\u202e",
    "%d",
]
NO_NAMES = [None, 5, b"x", True, ("x",), np.str_("x")]
DTYPES = ["i1", "u1", "i2", "i4", "i8", "u4", ">i4", ">i8", "f4", "f8", "?", "O", "u8"]


@dataclass(frozen=True)
class Mutant:
    """Fields of a program, and what was done to them."""

    fields: dict
    changes: tuple[str, ...]

    def program(self):
        return Program(**self.fields)


def bases():
    """Valid programs to change."""
    hand_made = st.builds(small_program, st.sampled_from(["half_up", "floor"]), st.booleans())
    joined = st.builds(joined_program, st.sampled_from(["half_up", "floor"]))
    return programs(max_size=5, max_blocks=2) | hand_made | joined


def mutant_of(program, rng, most=2):
    """One change in most cases; two sometimes make what one alone could not.

    `rng` is a `random.Random` and not drawn by hypothesis, which would repeat itself: what is changed is as
    likely to be any field as any other.
    """
    made = {field.name: getattr(program, field.name) for field in fields(program)}
    changes = []
    for _ in range(rng.choice([1, 1, 1, most])):
        made, change = rng.choice([one_field, one_field, one_field, structure, renamed])(rng, made)
        changes.append(change)
    return Mutant(made, tuple(changes))


def one_field(rng, made):
    """Any field of anything."""
    path = rng.choice(list(paths(made)))
    old = at(made, path)
    new = other_than(rng, old, names_of(made))
    return put(made, path, new), f"{path}: {told(old)} -> {told(new)}"


def structure(rng, made):
    """Operations moved, left out, doubled; one in the place of another."""
    ops = list(made["ops"]) if isinstance(made["ops"], tuple) else []
    if len(ops) < 2:
        return one_field(rng, made)
    i, j = rng.randrange(len(ops)), rng.randrange(len(ops))
    kind, op = rng.choice(["move", "leave out", "double", "double anew", "swap", "flag", "bypass"]), ops[i]
    if kind == "move":
        ops.insert(j, ops.pop(i))
    elif kind == "leave out":
        ops.pop(i)
    elif kind == "double":
        ops.insert(j, op)
    elif kind == "double anew" and hasattr(op, "out"):
        ops.insert(i + 1, replace(op, out="doubled"))
        reads = [k for k in range(i + 2, len(ops)) if getattr(ops[k], "x", None) == op.out]
        if reads:
            ops[reads[0]] = replace(ops[reads[0]], x="doubled")
    elif kind == "swap":
        ops[i], ops[j] = ops[j], ops[i]
    elif kind == "flag":
        ops[i : j + 1] = [replace(o, controller=not o.controller) for o in ops[i : j + 1] if is_operation(o)]
    elif kind == "bypass" and hasattr(op, "x") and hasattr(op, "out"):
        ops = [
            replace(o, x=op.x) if getattr(o, "x", None) == op.out else o for k, o in enumerate(ops) if k != i
        ]
    return {**made, "ops": tuple(ops)}, f"{kind} {i} {j}"


def renamed(rng, made):
    """One name for another, everywhere: valid as long as the name is."""
    old = rng.choice(sorted(names_of(made)) or ["x"])
    new = rng.choice([*NAMES, "input", "a"])

    def walk(value):
        if isinstance(value, str):
            return new if value == old else value
        if isinstance(value, tuple):
            return tuple(map(walk, value))
        if is_operation(value):
            return replace(value, **{field.name: walk(getattr(value, field.name)) for field in fields(value)})
        return value

    return {key: walk(value) for key, value in made.items()}, f"{old!r} everywhere -> {new!r}"


def paths(value, path=()):
    """Where something stands that can be changed."""
    if path:
        yield path
    if isinstance(value, dict):
        parts = value
    elif is_operation(value):
        parts = [field.name for field in fields(value)]
    else:
        parts = range(len(value)) if isinstance(value, tuple) else ()
    for part in parts:
        yield from paths(at(value, (part,)), (*path, part))


def is_operation(value):
    return is_dataclass(value) and not isinstance(value, type)


def at(value, path):
    for part in path:
        value = value[part] if isinstance(value, dict | tuple) else getattr(value, part)
    return value


def put(value, path, new):
    if not path:
        return new
    part, *rest = path
    inner = put(at(value, (part,)), rest, new)
    if isinstance(value, dict):
        return {**value, part: inner}
    if isinstance(value, tuple):
        return (*value[:part], inner, *value[part + 1 :])
    return replace(value, **{part: inner})


def names_of(value):
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = tuple(value.values())
    if is_operation(value):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return set().union(*map(names_of, value)) if isinstance(value, tuple) else set()


def other_than(rng, value, names):
    """A value of the same kind, or of another."""
    if isinstance(value, np.ndarray):
        return other_array(rng, value)
    if isinstance(value, bool):
        return rng.choice([not value, not value, 0, 1, None, "true"])
    if isinstance(value, int):
        near = [value + 1, value - 1, 2 * value, value // 2, value + 7]
        return rng.choice(rng.choice([near, near, INTEGERS, [*NO_INTEGERS, float(value)]]))
    if isinstance(value, str):
        return rng.choice(rng.choice([sorted(names), NAMES, NO_NAMES]))
    if value is None:
        return rng.choice([0, 1, 2, -1, 5, True, "0"])
    if isinstance(value, tuple):
        return rng.choice(other_tuples(value))
    return rng.choice([None, 0, "op", (value,), *KINDS])


def other_tuples(value):
    parts = [(), list(value), None]
    if value:
        parts += [value[:-1], value[1:], value[::-1], (*value, value[-1]), (*value, value[0])]
    return [*parts, (value[1], value[0], *value[2:])] if len(value) > 1 else parts


def other_array(rng, old):
    """Another type, another shape, other memory, other numbers."""
    kind = rng.choice(["numbers", "extremes", "shape", "dtype", "memory"])
    if kind == "dtype" or not old.size:
        return old.astype(rng.choice(DTYPES))
    if kind == "memory":
        spread = np.repeat(old, 2, axis=-1)[..., ::2], np.repeat(old, 2, axis=0)[::2]
        return rng.choice([*spread, np.asfortranarray(old), old[::-1].copy()[::-1], old.copy()])
    if kind == "shape":
        axis = rng.randrange(old.ndim) if old.ndim else None
        forms = [
            np.repeat(old, 2, axis=axis),
            old.ravel(),
            old[None],
            old[..., None],
            old.T,
            old.reshape(-1, 1),
        ]
        forms += [np.array(old.flat[0]), old.tolist(), None, np.take(old, [0], axis=axis)]
        if old.ndim:
            shorter = np.take(old, range(old.shape[axis] - 1), axis=axis)
            forms += [shorter, np.concatenate([old, old[:1]]), old[:0], old.swapaxes(0, -1)]
        return rng.choice(forms)
    info = np.iinfo(old.dtype) if old.dtype.kind in "iu" else np.iinfo(np.int8)
    if kind == "extremes":
        numbers = [info.min, info.min + 1, info.max, info.max // 2, info.min // 2, 0, 1, -1, info.max >> 8]
        new = old.copy()
        new.flat[slice(None) if rng.random() < 0.5 else rng.randrange(old.size)] = rng.choice(numbers)
        return new
    span = rng.choice([7, 15, 23, 31, 47, 61]) if info.bits > 8 else 7
    low, high = max(info.min, -(2**span)), min(info.max, 2**span)
    numbers = np.random.default_rng(rng.getrandbits(32)).integers(low, high, old.shape, dtype=np.int64)
    return numbers.astype(old.dtype)


def told(value):
    if isinstance(value, np.ndarray):
        return f"{value.dtype.str} {value.shape} {'C' if value.flags.c_contiguous else 'strided'}"
    return " ".join(repr(value).split())[:60]
