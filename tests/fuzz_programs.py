"""Files of programs for `fuzz`, and what all targets share: edits of bytes and of JSON, what a refusal is."""

import functools
import json
import linecache
import re
import struct
import tempfile
import traceback

import numpy as np
from fuzz import ROOT, Target
from hypothesis import HealthCheck, given, seed, settings
from mutations import DTYPES, INTEGERS, NAMES, bases
from program_checks import small_program
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save

from dqt_core import ProgramError, load
from dqt_core.program.storage import METADATA, digest_of

BACKENDS = "numpy", "torch", "numba"
LARGEST = 2**18  # numbers of all values: larger programs are not run


def sentence(error):
    """The words of a refusal: one line, which the package itself raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error)
    assert frame.filename.startswith(str(ROOT / "dqt_")), f"not refused by the package: {error!r}"
    assert linecache.getline(frame.filename, frame.lineno).strip().startswith("raise "), f"raw {error!r}"
    assert "\n" not in said, f"more than a line: {said!r}"
    own = re.sub(r"/[^\s()]+", "", said)  # paths are as long as their folders' names
    assert 0 < len(own) < 700, f"no sentence: {said!r}"
    return said


# Program files


@functools.cache
def programs():
    """Valid programs, always the same ones, with their files."""
    found = [small_program(), small_program("floor", False)]
    quiet = settings(max_examples=30, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    seed(0)(quiet(given(bases())(lambda program: found.append(program))))()
    folder = tempfile.mkdtemp()
    return [(program, program.save(folder).read_bytes()) for program in found[:32]]


RAW = ["1e400", "NaN", "-0", "1E2", "true", "null", "[]", "{}", '"\\ud800"', '{"kind":"Conv"}', "1" * 5000]
RAW += ['{"tensor":"absent"}', '{"tensor":5}', '{"tensor":["a"]}', "[" * 3000 + "]" * 3000, '{"a":1,"a":2}']
RAW += ['{"kind":"Program"}', '{"kind":["Conv"]}', '{"kind":null}']
RAW += [*map(str, INTEGERS), *map(json.dumps, NAMES)]
METADATA_TEXTS = ["", "[]", "{}", "null", "5", '{"format":[]}', "[" * 5000, '{"format":{}}']
EDITS = ["put", "near", "near", "leave out", "double", "swap", "rename"]


def parts(tree, path=()):
    """(path, value) of everything in a JSON tree but itself."""
    if path:
        yield path, tree
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from parts(value, (*path, key))


def draw_file(rng):
    base = rng.randrange(len(programs()))
    blob = programs()[base][1]
    case = {"base": base}
    if rng.random() < 0.4:  # mistakes that leave many a program valid
        header, keys = json.loads(header_of(blob)), sorted(tensors_of(blob))
        numbers = [path for path, value in parts(header) if type(value) is int]
        case["fields"] = [["near", [*rng.choice(numbers)], rng.choice(["", "1"])]] * rng.choice([0, 1, 1])
        kinds = ["halved", "turned", "zeros", "largest"]
        return case | {
            "tensors": [[rng.choice(keys), rng.choice(kinds)] for _ in range(rng.choice([0, 1, 2]))]
        }
    if rng.random() < 0.5:
        header = json.loads(header_of(blob))
        case["fields"] = [
            [rng.choice(EDITS), [*path], rng.choice(RAW)]
            for path, _ in rng.choices(list(parts(header)), k=rng.choice([1, 1, 2, 3]))
        ]
    if rng.random() < 0.4:
        keys = sorted(tensors_of(blob))
        kinds = ["absent", "more", "zeros", "largest", "lowest", "shorter", "halved", "turned", *DTYPES[:8]]
        case["tensors"] = [[rng.choice(keys), rng.choice(kinds)] for _ in range(rng.choice([1, 2]))]
    if rng.random() < 0.1:
        case["metadata"] = rng.choice(METADATA_TEXTS)
    if len(case) == 1 or rng.random() < 0.1:
        case["bytes"] = [draw_bytes(rng, len(blob)) for _ in range(rng.choice([1, 1, 2, 8]))]
    return case


def draw_bytes(rng, length):
    at = rng.choice([rng.randrange(length), rng.randrange(min(length, 64)), rng.randrange(min(length, 4000))])
    kind = rng.choice(["flip", "flip", "cut", "put", "insert", "splice", "leave out"])
    if kind == "splice":
        return [kind, at, rng.randrange(32), rng.randrange(1000), rng.choice([1, 8, 100, 10_000])]
    return [kind, at, rng.choice([rng.randrange(8), 255, 0, 2**31])]


def spoiled(blob, edits, others=()):
    """Bytes with edits done to them."""
    blob = bytearray(blob)
    for kind, at, value, *more in edits:
        at = min(at, len(blob))
        if kind == "flip" and at < len(blob):
            blob[at] ^= 1 << value % 8
        elif kind == "cut":
            del blob[at:]
        elif kind == "put":
            blob[at : at + 1] = bytes([value % 256])
        elif kind == "insert":
            blob[at:at] = bytes(value % 300)
        elif kind == "leave out":
            del blob[at : at + 1 + value % 300]
        elif kind == "splice":
            other = others[value % len(others)] if others else bytes(blob)
            blob[at : at + more[1]] = other[more[0] : more[0] + more[1]]
    return bytes(blob)


def header_of(blob):
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(json.loads(blob[8 : 8 + length])["__metadata__"][METADATA])["program"]


def edited(header, edits):
    """A header with fields changed; what an edit does not find any more it leaves."""
    tree, texts = json.loads(header), {}
    for number, (kind, path, raw) in enumerate(edits):
        try:
            *way, last = path
            place = functools.reduce(lambda inner, key: inner[key], way, tree)
            place[last]
        except (KeyError, IndexError, TypeError):
            continue
        if isinstance(place, str):  # what an edit before has put there
            continue
        if kind == "leave out":
            del place[last]
        elif kind == "near":
            place[last] = place[last] + (-1) ** len(raw) if type(place[last]) is int else place[last]
        elif kind == "double" and isinstance(place, list):
            place.insert(last, place[last])
        elif kind == "swap" and isinstance(place, list):
            place[last], place[-1] = place[-1], place[last]
        elif kind == "rename" and isinstance(place, dict):
            place[raw[:20]] = place.pop(last)
        else:
            place[last] = f"fuzz{number}"
            texts[f'"fuzz{number}"'] = raw
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    for name, raw in texts.items():
        text = text.replace(name, raw)
    return text


def other_tensors(tensors, edits):
    for key, kind in edits:
        if key not in tensors:
            continue
        old = tensors[key]
        if kind == "absent":
            del tensors[key]
        elif kind == "more":
            tensors["more"] = old
        elif kind == "shorter":
            tensors[key] = old[:-1]
        elif kind == "halved":
            tensors[key] = old // 2
        elif kind == "turned":
            tensors[key] = np.ascontiguousarray(old[::-1])
        elif kind in DTYPES:
            tensors[key] = old.astype(kind)
        else:
            info = np.iinfo(old.dtype) if old.dtype.kind in "iu" else np.iinfo("i1")
            tensors[key] = np.full_like(old, {"zeros": 0, "largest": info.max, "lowest": info.min}[kind])
    return tensors


def file_of(case, folder):
    blob = programs()[case.get("base", 0)][1]
    name = "p-" + programs()[case.get("base", 0)][0].digest[:12]
    if case.keys() & {"fields", "tensors", "metadata"}:
        header = edited(header_of(blob), case.get("fields", ()))
        tensors = other_tensors(tensors_of(blob), case.get("tensors", ()))
        digest = digest_of(header, tensors)
        made = json.dumps({"format": "dqt-program-1", "digest": digest, "program": header})
        blob, name = save(tensors, {METADATA: case.get("metadata", made)}), f"p-{digest[:12]}"
    path = folder / f"{name}.safetensors"
    path.write_bytes(spoiled(blob, case.get("bytes", ()), [other for _, other in programs()]))
    return path


def judge_file(case, folder):
    try:
        program = load(file_of(case, folder))
    except ProgramError as error:
        sentence(error)
        return "refused"
    if sum(np.prod(value.shape) for value in program.values.values()) > LARGEST:
        return "too large to run"
    images = np.random.default_rng(0).integers(0, 256, (3, *program.image_shape)).astype(np.uint8)
    picks = np.random.default_rng(1).integers(0, len(program.choices), (3, len(program.layers)))
    mixed = np.array(program.choices)[picks].reshape(3, len(program.layers), 2)
    asked = [mixed, "controller" if program.has_controller else mixed[::-1]]
    for backend in BACKENDS:
        first = [program.run(images, widths, backend).digest for widths in asked]
        assert first == [program.run(images, widths, "numpy").digest for widths in asked], backend
        assert first == [program.run(images, widths, backend, 1).digest for widths in asked], "a second run"
    saved = program.save(folder / "again")
    again = load(saved)
    assert again.digest == program.digest, "saved and loaded"
    assert again.save(folder / "a third time").read_bytes() == saved.read_bytes(), "saved twice"
    return "run"


TARGETS = {"programs": Target(draw_file, judge_file, share=4)}
