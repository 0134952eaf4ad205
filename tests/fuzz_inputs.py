"""What a program and its exports are run on, for `fuzz`: images, widths, arguments, bytes."""

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal  # noqa: F401 (an expression of WIDTHS names it, as the next)
from fractions import Fraction  # noqa: F401
from pathlib import Path

import numpy as np
import torch  # noqa: F401
from fuzz import Target
from fuzz_programs import BACKENDS, programs, sentence
from mutations import DTYPES
from program_checks import small_program
from test_export import session_of

from dqt_core import cascade
from dqt_core.evaluation.cascade import margins
from dqt_core.program import Result
from reproductions.exports.c_program import CHECKED, build, written

EDGES = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 255, 256, -1, -8, 2**31, 2**32 + 8, 2**62, -(2**63)]


def parted(text):
    """What stands between bars and line ends."""
    return [part for line in text.strip().splitlines() for part in line.split(" | ")]


# Images and widths

IMAGES = parted("""
{}[::-1] | {}[:, ::-1] | {}[..., ::-1] | np.asfortranarray({}) | {}[:0] | {}[0] | {}[None]
{}.astype('>u2') | {}.astype('i1') | {}.astype(bool) | {}.astype(object) | {} / 255 | {} + 0 | {}.tolist()
np.broadcast_to({}[:1], {}.shape) | np.repeat({}, 2, axis=1)[:, ::2] | {}.copy()
np.ma.masked_array({}, {} > 7) | torch.from_numpy({}.copy()) | memoryview({}) | {}.tobytes()
{}.view([('r', 'u1')]) | {}[..., :2] | {}.transpose(0, 2, 1, 3) | {}.reshape(len({}), -1) | None
readonly({}) | unaligned({}) | {}[:1] | np.concatenate([{}] * 50) | {} * 0 | {} * 0 + 255 | {}.T
{}.view(np.recarray) | {}.view(Own) | np.array(5, 'u1') | [*{}] | {}.astype('u1').view('>u1')
""")
WIDTHS = parted("""
4 | 0 | 9 | -1 | 2**40 | True | 4.0 | None | '4' | b'4' | 'controller' | b'controller' | 'auto' | '' | []
() | {4} | {} | ... | 8 | 2 | 3 | np.uint8(4) | np.int64(-4) | np.bool_(True) | np.float32(4)
np.str_('controller') | range(L) | [4] * L | (4,) * L | [4] * (L + 1) | [(4, 4)] * L | [(5, 8)] * L
[[4, 3]] * L | [(4,)] * L | [(4, 4, 4)] * L | [4.0] * L | [True] * L | [np.uint8(4)] * L | ['4'] * L
[None] * L | [[]] * L | [4, (8, 8), 2, (4, 3)] | [[4] * L] * N | iter([4] * L)
dict.fromkeys(range(L), 4) | len | [2**70] * L | [-2**70] * L | [10**400] * L | [np.array(4)] * L
[np.array([4, 3])] * L | '4' * L | np.full(L, 4) | np.array(4) | np.full((N, L), 4)
np.full((N, L, 2), 8) | np.full((1, L), 4) | mixed | np.full((N + 1, L), 4) | np.full((N, L, 3), 4)
np.full((N, L, 1), 4) | np.full((N, L, 2, 1), 4) | np.zeros((0, L), int) | np.zeros((N, 0), int)
np.broadcast_to(4, (N, L)) | mixed[::-1] | mixed[:, ::-1] | torch.full((N, L), 4) | torch.tensor(4)
mixed.astype('>i2') | mixed.astype('u8') | np.full((N, L), 2**63, 'u8') | np.full((N, L), -1, 'i1')
Fraction(4) | Decimal(4) | [Fraction(4)] * L | np.ma.masked_array(mixed, mixed > 3) | float('nan')
mixed.tolist() | np.full((L, N), 4) | np.asfortranarray(mixed) | [torch.tensor(4)] * L | mixed[0]
mixed[0].tolist() | (w for w in [4] * L) | np.array([4] * L, object) | bytes([4] * L) | bytearray([4] * L)
""")
WIDTHS += [f"np.full((N, L), 4).astype({kind!r})" for kind in DTYPES]
GOOD = parted("""
8 | 2 | np.uint8(2) | mixed | mixed.astype('>i2') | mixed.astype('u8') | mixed.astype('i1') | [8] * L
'controller' | mixed[0].tolist() | np.asfortranarray(mixed) | mixed[::-1] | readonly(mixed)
""")
OTHERS = {
    "backend": parted("'cuda' | None | 5 | ['numpy'] | b'numpy' | '' | 'NumPy'"),
    "batch_size": parted("0 | -1 | 1 | 2 | True | 2.5 | None | '3' | np.int64(2) | 2**70 | []"),
    "threshold": parted("""
0 | 2**40 | -1 | None | 1.5 | [5] | [5, 6] | '5' | float('nan') | np.int64(9) | True | 2**70 | -2**70
[None] | ['5'] | np.array([5]) | np.array(5) | {5} | [[5]] | []
"""),
    "steps": parted("{0} | ({0}, {1}) | [{0}, {1}] | ({0},) | None | np.array([{0}, {1}]) | ({0}, {1}, 8)"),
}


class Own(np.ndarray):
    """An array of a class that the package does not know."""


def readonly(x):
    x = np.array(x)
    x.flags.writeable = False
    return x


def unaligned(x):
    memory = np.zeros(np.asarray(x).size + 3, np.uint8)[3:]
    memory[:] = np.ravel(x)
    return memory.reshape(np.shape(x))


def draw_run(rng):
    case = {"base": rng.randrange(6), "images": rng.choices(IMAGES, k=rng.choice([0, 0, 1, 1, 2]))}
    case["widths"] = rng.choice(rng.choice([WIDTHS, GOOD, GOOD]))
    names = rng.choices(list(OTHERS), k=rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.3:
        case |= {"steps": "({0}, {1})", "second": rng.choice(rng.choice([WIDTHS, GOOD, GOOD]))}
    return case | {name: rng.choice(OTHERS[name]) for name in names}


def judge_run(case, folder):
    program = [small_program(), one_width(), *(program for program, _ in programs()[1:])][case.get("base", 0)]
    layers, count = len(program.layers), 3
    images = np.random.default_rng(0).integers(0, 256, (count, *program.image_shape)).astype(np.uint8)
    picks = np.random.default_rng(1).integers(0, len(program.choices), (count, layers))
    mixed = np.array(program.choices)[picks].reshape(count, layers, 2)
    mixed = mixed if case.get("base", 0) != 1 else mixed[..., 0]

    def value(text):
        space = globals() | {"x": images, "N": count, "L": layers, "mixed": mixed}
        try:
            return eval(text, space)
        except Exception:  # an expression that NumPy itself refuses is no input
            raise NoInputError from None

    text = "x"
    for change in case.get("images", ()):
        text = change.replace("{}", f"({text})")
    widths = case.get("widths", "8")
    steps = case.get("steps", "").replace("{0}", f"({widths})").replace("{1}", f"({case.get('second', '8')})")

    def answer(backend):
        """What one backend says, or why it refuses."""
        backend, batch = value(case.get("backend", repr(backend))), value(case.get("batch_size", "64"))
        given = value(text)
        try:
            if not steps:
                return program.run(given, value(widths), backend, batch)
            threshold = value(case.get("threshold", "30"))
            return cascade(program, given, value(steps), threshold, backend, batch)
        except (TypeError, ValueError) as error:
            return re.sub("x[0-9a-f]{8,}", "x", f"{type(error).__name__}: {sentence(error)}")  # addresses

    try:
        answers = [answer(backend) for backend in BACKENDS]
        given = np.array(value(text))
        asked = value(widths)
        asked = list(asked) if isinstance(asked, Iterator | bytes | bytearray) else asked
    except NoInputError:
        return "no input"
    said = [one if isinstance(one, str) else (one.digest, one.widths.tolist()) for one in answers]
    assert said == [said[0]] * len(said), f"backends differ: {said}"
    if isinstance(said[0], str):
        return "refused"
    result = answers[0]
    plain = np.ascontiguousarray(given)
    if steps:
        require_cascade(program, plain, result, value(steps), value(case.get("threshold", "30")))
        return "cascaded"
    assert program.run(plain, result.widths, "numpy").digest == result.digest, "not the plain images' answer"
    if not isinstance(asked, str) and layers:
        got = result.widths if result.widths.ndim == 3 else np.repeat(result.widths[..., None], 2, -1)
        assert (got == pairs_of(asked)).all(), "not the widths that were asked for"
    return "run"


def pairs_of(widths):
    """(Weight bits, input bits) of one width, of an array for each image, or of a list for each layer."""
    if np.ndim(widths) == 0:
        return widths
    if isinstance(widths, np.ndarray):
        return widths if widths.ndim == 3 else widths[..., None]
    return np.array([(width, width) if np.ndim(width) == 0 else tuple(width) for width in widths])


def require_cascade(program, images, result, steps, threshold):
    """Image by image, by the definition."""
    limits = [threshold] if np.ndim(threshold) == 0 else list(threshold)
    for i, image in enumerate(images):
        passes = 0
        for step in steps:
            one = program.run(image[None], step, "numpy")
            passes += 1
            if passes == len(steps) or not margins(one.logits)[0] < limits[passes - 1]:
                break
        assert one.logits.tolist() == [result.logits[i].tolist()], "logits of the last pass"
        assert passes == result.passes[i], "passes"


class NoInputError(Exception):
    """What was drawn cannot be made."""


def one_width():
    return replace(small_program(), choices=((1, 1), (2, 2), (4, 4), (6, 6), (8, 8)))


# Inputs of what was exported


@functools.cache
def exported():
    """[(program, ONNX session, C program)]: pairs of widths with a controller, single ones without."""
    made = []
    single = replace(one_width(), ops=small_program("floor", False).ops, rounding="floor")
    for program in (small_program(), single):
        folder = Path(tempfile.mkdtemp())
        executable = build(written(program, folder), folder, *CHECKED)
        made.append((program, session_of(program, folder), executable))
    return made


def draw_export(rng):
    case = {"base": rng.randrange(2), "seed": rng.randrange(1000)}
    case["fill"] = rng.choice([None, None, 0, 255, 1, 128])
    case["count"] = rng.choice([1, 2, 3, 5, 0])
    spots = rng.choice([0, 0, 1, 1, 2, 8])
    case["widths"] = [[rng.randrange(40), rng.choice(EDGES)] for _ in range(spots)]
    if rng.random() < 0.5:
        case["onnx"] = rng.choice(["", "", "", *FEEDS])
        return case
    case["arguments"] = rng.choice([["-"], ["-"], ["-"], [], [rng.choice(ARGUMENTS)], [*"22884433"]])
    if rng.random() < 0.2:
        case["arguments"] = rng.choices(ARGUMENTS, k=rng.choice([2, 4, 7, 8, 9, 100]))
    if rng.random() < 0.4:
        case["cut"] = rng.choice([0, 1, 4, 8, 59, 60, 61, 64, 68, 69, 127, 128, 136, rng.randrange(400)])
    return case


ARGUMENTS = ["8", "2", "4", "0", "1", "9", "-1", "", "08", "8 ", "+8", "é", "-", "--", "8" * 11]
FEEDS = {
    "widths of one": lambda images, widths: {"widths": widths[:1]},
    "one more": lambda images, widths: {"widths": np.concatenate([widths, widths[:1]])},
    "int32": lambda images, widths: {"widths": widths.astype(np.int32)},
    "float": lambda images, widths: {"images": images / 255},
    "i1": lambda images, widths: {"images": images.view(np.int8)},
    "flat": lambda images, widths: {"images": images[..., 0]},
    "strided": lambda images, widths: {"images": np.repeat(images, 2, axis=2)[:, :, ::2]},
}


def judge_export(case, folder):
    program, session, executable = exported()[case.get("base", 0)]
    count, rng = case.get("count", 1), np.random.default_rng(case.get("seed", 0))
    images = rng.integers(0, 256, (count, *program.image_shape)).astype(np.uint8)
    if case.get("fill") is not None:
        images[:] = case["fill"]
    pairs = np.array(program.choices)[rng.integers(0, len(program.choices), (count, len(program.layers)))]
    widths = pairs if case.get("base", 0) == 0 else pairs[..., 0].copy()
    for at, value in case.get("widths", ()):
        if count:
            widths.flat[at % widths.size] = value
    if "arguments" in case or "cut" in case:
        return judge_c(program, executable, images, widths, case)
    return judge_onnx(program, session, images, widths, case.get("onnx", ""))


def expected_of(program, images, widths):
    """NumPy's result for widths that may leave a layer to the controller; None where they do not fit."""
    if not len(images):
        return None
    pairs = widths if widths.ndim == 3 else np.repeat(widths[..., None], 2, axis=-1)
    left = (pairs == 0).all(axis=-1)
    if left.any():
        if not program.has_controller:
            return None
        own = program.run(images, "controller", "numpy").choices
        pairs = np.where(left[..., None], np.array(program.choices)[own], pairs)
    try:
        return program.run(images, pairs, "numpy")
    except ValueError:
        return None


def judge_onnx(program, session, images, widths, change):
    expected, feed = expected_of(program, images, widths), {"images": images, "widths": widths}
    if change:
        feed |= FEEDS[change](images, widths)
    if change == "widths of one" and len(images):
        expected = expected_of(program, images, np.repeat(widths[:1], len(images), axis=0))
    elif change not in ("", "strided"):
        expected = None
    try:
        logits, chosen = session.run(None, feed)
    except Exception:  # whichever ONNX Runtime has for it
        assert expected is None or change == "widths of one", "ONNX Runtime refuses what NumPy runs"
        return "refused"
    if not len(images) and change in ("", "strided", "widths of one", "one more"):
        assert not len(logits), "logits of no image"
        return "nothing"
    assert expected is not None, "ONNX Runtime runs what NumPy refuses"
    assert logits.tolist() == expected.logits.tolist(), "logits"
    assert chosen.tolist() == expected.widths.tolist(), "widths"
    return "run"


def judge_c(program, executable, images, widths, case):
    """One line of refusal, or the very lines that NumPy's result makes."""
    arguments = case.get("arguments", ["-"])
    each = int(np.prod(program.image_shape))
    if arguments == ["-"]:
        widths = widths & 255
        rows = zip(widths.astype(np.uint8), images, strict=True)
        stream = b"".join(row.tobytes() + image.tobytes() for row, image in rows)
        each += int(np.prod(widths.shape[1:]))
    else:
        stream = images.tobytes()
        widths = from_arguments(program, arguments, widths.shape)
    stream = stream[: case.get("cut", len(stream))]
    whole, rest = divmod(len(stream), each)
    if widths is None or rest:
        expected = None
    elif whole:
        expected = expected_of(program, images[:whole], widths[:whole])
    else:
        expected = Result(np.zeros((0, 1), np.int64), None, widths[:0], "")
    done = subprocess.run([executable, *arguments], input=stream, capture_output=True, timeout=60)
    said, lines = done.stderr.decode(), done.stdout.decode().splitlines()
    if done.returncode == 1 and said.count("\n") == 1:
        assert expected is None, f"refused: {said}"
        return "refused"
    assert done.returncode == 0, f"it ended with {done.returncode}: {said}"
    assert expected is not None, "the C program runs what NumPy refuses"
    rows = zip(expected.logits, expected.widths, strict=True)
    told = [f"{row.argmax()} | {plain(bits)} | {plain(row)}" for row, bits in rows]
    assert lines == [*told, expected.digest], "lines"
    return "run"


def plain(numbers):
    return " ".join(map(str, numbers.ravel()))


def from_arguments(program, arguments, shape):
    """The widths that arguments stand for, or None."""
    if any(len(text.encode()) != 1 or text not in "012345678" for text in arguments):
        return None
    bits = [int(text) for text in arguments] or [0 if program.has_controller else 8]
    number = int(np.prod(shape[1:]))
    if len(bits) not in (1, number):
        return None
    return np.resize(np.array(bits if len(bits) > 1 else bits * number), shape)


TARGETS = {
    "widths": Target(draw_run, judge_run, share=3),
    "exports": Target(draw_export, judge_export, share=2),
}
