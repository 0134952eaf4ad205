"""Files and folders that others hand to the package, for `fuzz`: checkpoints, images, shards, submissions."""

import contextlib
import csv
import functools
import io
import json
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import torch
from fuzz import Target
from fuzz_inputs import parted
from fuzz_programs import EDITS, RAW, draw_bytes, edited, parts, sentence, spoiled
from PIL import Image
from torch import nn

from dqt_book.assignments import course, marking, room, submissions
from dqt_core import train
from dqt_core.data import DataError, Dataset, decoding, imagenet, packing, shards, streaming

# Checkpoints

STEPS = 3
RECIPE = train.Recipe(epochs=STEPS / 4, batch_size=8, lr=0.1, average=0.9)
WAYS_OUT = r"(move it away, and the run goes on from \S+/previous|remove it)"
REFUSED = re.compile(rf"\S+/last is damaged \(.+\); {WAYS_OUT}$")


class Killed(BaseException):
    """As a kill, at a step."""


def fitted(out=None, until=STEPS):
    """The weights after a run of three steps, which may end before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    rng, plain = np.random.default_rng(0), train.CrossEntropy()
    images, labels = rng.integers(0, 256, (32, 8, 8, 3), np.uint8), np.arange(32) % 3
    dataset = Dataset("fuzz", images, labels, images[:3], labels[:3], (0.5,) * 3, (0.2,) * 3, tuple("abc"))

    def loss(net, images, labels, progress):
        if progress * STEPS >= until - 0.5:
            raise Killed
        return plain(net, images, labels, progress)

    loss.__module__, loss.__qualname__ = "fuzz", "loss"
    with contextlib.suppress(Killed):
        train.fit(net, dataset, RECIPE, loss, out, checkpoint_every=1)
    return {name: value.tolist() for name, value in net.state_dict().items()}


@functools.cache
def interrupted():
    """The weights of an uninterrupted run, and the folder of one that ended after two steps."""
    folder = Path(tempfile.mkdtemp()) / "run"
    fitted(folder, until=2)
    return fitted(), folder


def draw_checkpoint(rng):
    _, folder = interrupted()
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    case = {"edits": []}
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(files)
        kind = rng.choice(["bytes", "bytes", "bytes", "remove", "swap", "folder", "json"])
        if kind == "json":
            text = (folder / "last" / "run.json").read_text()
            edit = [rng.choice(EDITS)]
            edit += [list(rng.choice(list(parts(json.loads(text))))[0]), rng.choice(RAW)]
            case["edits"].append([kind, rng.choice(["last", "last", "previous"]), edit])
        elif kind == "bytes":
            length = (folder / name).stat().st_size
            case["edits"].append([kind, name, draw_bytes(rng, length)])
        else:
            case["edits"].append([kind, name, rng.choice(files)])
    return case


def spoil_checkpoint(folder, edits):
    for kind, name, more in edits:
        path = folder / name
        if kind == "json" and (path / "run.json").is_file():
            path = path / "run.json"
            with contextlib.suppress(ValueError):  # an edit before this one left no JSON
                path.write_text(edited(path.read_text(), [more]))
        elif kind == "bytes" and path.is_file():
            others = [(interrupted()[1] / "last" / "model.safetensors").read_bytes()]
            path.write_bytes(spoiled(path.read_bytes(), [more], others))
        elif kind == "remove" and path.is_file():
            path.unlink()
        elif kind == "swap" and path.is_file() and (folder / more).is_file():
            first, second = path.read_bytes(), (folder / more).read_bytes()
            path.write_bytes(second)
            (folder / more).write_bytes(first)
        elif kind == "folder":
            shutil.rmtree(path.parent, ignore_errors=True)


def require_way_out(said):
    assert REFUSED.search(said), f"no way out: {said}"


def judge_checkpoint(case, folder):
    """Refused with the way out, which then leads there; or the very weights of the uninterrupted run."""
    expected, made = interrupted()
    shutil.copytree(made, folder / "run")
    spoil_checkpoint(folder / "run", case.get("edits", ()))
    outcome = "went on"
    for _ in range(3):
        try:
            found = fitted(folder / "run")
        except ValueError as error:
            require_way_out(sentence(error))
            outcome = "refused"
            shutil.rmtree(folder / "run" / "last")
            continue
        assert found == expected, "other weights than those of the uninterrupted run"
        return outcome
    raise AssertionError("the way out leads to no run")


# Folders of images

NAMES = ["a", "ü", "日本", "a b", "-x", "a\nb", "%d", "{0}", "..a", "a.b.c", "CON"]
NAMES += ["a" * 240, "\udcff", "e\u0301", "*"]
MODES = parted("1 | L | P | RGB | RGBA | CMYK | YCbCr | LAB | HSV | I | F | LA | La | PA | I;16 | RGBa")
FORMATS = parted("PNG | JPEG | WEBP | BMP | TIFF | GIF | PPM | TGA | ICO | JPEG2000 | MPO | AVIF")


def draw_folder(rng):
    images = []
    for number in range(rng.choice([1, 2, 3, 5])):
        sizes = rng.choice([(32, 24), (1, 1), (1, 90), (224, 224), (230, 225), (3, 200), (16, 16)])
        image = {"class": rng.randrange(2), "name": rng.choice(NAMES)}
        image |= {"ending": rng.choice([".jpg", ".PNG", ".JPEG"])}
        image |= {"mode": rng.choice(MODES), "format": rng.choice(FORMATS), "size": sizes, "seed": number}
        if rng.random() < 0.5:
            image["bytes"] = [draw_bytes(rng, 700) for _ in range(rng.choice([1, 1, 3]))]
        images.append(image)
    case = {"images": images, "classes": rng.sample(NAMES, 2)}
    if rng.random() < 0.5:
        case["shards"] = [[rng.randrange(10**6), rng.randrange(8)]]
    if rng.random() < 0.3:
        case["index"] = [draw_bytes(rng, 3000)]
    return case


def content_of(image):
    """An encoded picture; where a format does not take its mode, of RGB."""
    shape = (image["size"][1], image["size"][0])
    pixels = np.random.default_rng(image["seed"]).integers(0, 256, (*shape, 3), np.uint8)
    picture, stream = Image.fromarray(pixels), io.BytesIO()
    with contextlib.suppress(Exception):
        picture = picture.convert(image["mode"])
    try:
        picture.save(stream, image["format"])
    except Exception:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
    return spoiled(stream.getvalue(), image.get("bytes", ()), [b"\x89PNG\r\n\x1a\n" + bytes(range(256))])


def oracle(content, resize):
    """As torchvision cuts what Pillow reads, where both have no doubt; None where they have."""
    try:
        picture = Image.open(io.BytesIO(content))
        assert picture.mode in ("L", "RGB", "CMYK", "YCbCr")
        picture = picture.convert("RGB")
    except Exception:
        return None
    if resize:
        short = min(picture.size)
        picture = picture.resize([resize * side // short for side in picture.size], Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    top, left = (round((side - 224) / 2) for side in pixels.shape[:2])
    return pixels[top : top + 224, left : left + 224] if min(pixels.shape[:2]) >= 224 else None


def refusing(error, make, *arguments, **options):
    """What is made, or None where it is refused."""
    try:
        return make(*arguments, **options)
    except error as refusal:
        sentence(refusal)
        return None


def judge_folder(case, folder):
    classes, contents = case.get("classes", ["a", "b"]), {}
    for image in case.get("images", ()):
        place = folder / "root" / "train" / classes[image["class"] % len(classes)]
        path = place / f"{image['name']}{image['seed']}{image['ending']}"
        place.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(image))
        contents[path] = path.read_bytes()
    count = len({path.parent for path in contents}) or 1
    files = refusing(DataError, imagenet.open_split, folder / "root", "train", class_count=count)
    if files is None:
        assert not contents, "a folder of images is refused"
        return "refused"
    assert sorted(files.paths) == sorted(contents), "files"
    read = require_pictures(files, contents)
    if not read:
        refusal = refusing(DataError, packing.pack, files, folder / "packed")
        assert refusal is None, "packed without an image"
        return "all named as damaged"
    packed = packing.pack(files, folder / "packed", per_shard=2)
    require_packed(packed, files, contents, read)
    require_stream(files, packed, read)
    if "shards" in case:
        require_noticed(packed, case["shards"])
    if "index" in case:
        spoil(folder / "packed" / shards.INDEX, case["index"])
        again = refusing(DataError, shards.open_packed, folder / "packed")
        assert again is None or again.sums.tolist() == packed.sums.tolist(), "another index"
    return "read" if len(read) == len(files) else "read, some named as damaged"


def require_pictures(files, contents):
    """Every image is named, or read as Pillow reads it; returns the numbers of those read."""
    images = [image for batch, _ in files.batches(2, go_on=True) for image in batch]
    read = [i for i, path in enumerate(files.paths) if path not in files.unreadable]
    assert len(images) == len(read), "neither read nor named"
    for reason in files.unreadable.values():
        assert 0 < len(reason) < 1000, f"no reason: {reason!r}"
        assert "\n" not in reason, f"more than a line: {reason!r}"
    for i, image in zip(read, images, strict=True):
        expected = oracle(contents[files.paths[i]], files.resize)
        assert expected is None or (image == expected).all(), f"other pixels: {files.paths[i].name!r}"
    return read


def require_packed(packed, files, contents, read):
    """What can be decoded is packed as it is, and what cannot is named; a small one can be decoded."""
    kept = [packed.read(i) for i in range(len(packed))]
    assert len(kept) + len(packed.left_out) == len(files), "neither packed nor named"
    assert {contents[files.paths[i]] for i in read} <= set(kept) <= set(contents.values()), "other bytes"
    assert shards.verify(packed) == [], "damaged as it is packed"
    assert "".join(packed.name(i) for i in range(len(packed))).isprintable(), "names"


def require_stream(files, packed, read):
    """From both places the same crops, where no image is replaced by another."""
    for stored in (files, packed):
        stream = streaming.ImageStream(stored, size=32, log=packed.folder.parent / "log")
        ((crops, labels),) = stream.batches([(0, torch.arange(len(stored.labels)))])
        assert crops.shape == (len(stored.labels), 32, 32, 3), "crops"
        if stored is files:
            first = crops, labels
        assert len(stream.unreadable) <= len(files) - len(packed), "a packed image cannot be read"
    log = packed.folder.parent / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    assert all(line.startswith("unreadable, ") for line in lines), f"log: {lines}"
    if len(packed) == len(files):
        assert torch.equal(first[0], crops), "other crops from shards"
        assert torch.equal(first[1], labels), "other labels from shards"


def require_noticed(packed, edits):
    for at, bit in edits:
        shard = packed.folder / shards.shard_name(at % len(packed.shards))
        whole = shard.read_bytes()
        spoil(shard, [["flip", at % len(whole), bit]])
        damaged = shards.open_packed(packed.folder)
        assert shards.verify(damaged) == [shard.name], "a flipped bit"
        for i in range(len(packed)):
            content = refusing(decoding.DecodingError, damaged.read, i)
            assert content is None or shards.sum_of(content) == packed.sums[i], "a damaged image is read"
        shard.write_bytes(whole)


def spoil(path, edits):
    path.write_bytes(spoiled(path.read_bytes(), edits))


# Submissions

ANSWERS = [
    "",
    "import os; os._exit(0)",
    "raise SystemExit",
    "while True: pass",
    "exit()",
    "def half_up(q, b): return q",
    "def drop_bits(q, b):\n    return drop_bits(q, b)",
    "%%bash\nexit 1",
    "!kill -9 $PPID",
    "x = '\\x00' * 10**8",
    "import sys; sys.stdout.write('\\ud800')",
    "import os; os.close(1); os.close(2)",
    "print('\\x1b[2J' * 10**5)",
    "class A:\n    def __getattr__(self, n): return self\ndef drop_bits(q, b): return A()",
    "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()",
    "def f(:",
    "\ud800",
    "%nomagic",
    "import os\nfor fd in range(3, 50):\n    try: os.write(fd, b'x' * 50)\n    except OSError: pass",
    "import os; os.fork()",
    "import numpy as np\ndef drop_bits(q, b): return np.empty(10**7, object)",
    "del __builtins__",
    "\x00",
    "await f()",
]
JSONS = [None, 5, "", "a", [], {}, [1], {"a": None}, 1e308, True, "\ud800", [[]]]
JSONS += [{"nbgrader": []}, {"nbgrader": {}}]


@functools.cache
def assignment():
    """The folder of a course, and the right notebook."""
    folder = Path(tempfile.mkdtemp())
    course.make(folder, ["a1"])
    released = nbformat.read(folder / "release" / "a1" / "a1.ipynb", as_version=4)
    return folder, submissions.filled(released, submissions.solutions("a1"))


def draw_submission(rng):
    _, right = assignment()
    case = {"edits": []}
    for _ in range(rng.choice([1, 1, 2, 4])):
        kind = rng.choice(["leave out", "double", "swap", "answer", "answer", "put", "put", "own"])
        at = rng.randrange(len(right.cells))
        if kind == "put":
            path = list(rng.choice(list(parts(json.loads(json.dumps(right)))))[0])
            case["edits"].append([kind, path, rng.choice(JSONS)])
        else:
            case["edits"].append([kind, at, rng.choice(ANSWERS)])
    if rng.random() < 0.25:
        case["bytes"] = [draw_bytes(rng, 20_000)]
    case["name"] = rng.choice(["a1/a1.ipynb", "a1.ipynb", "x/a1 (2).ipynb", "a1/A1.ipynb", "other.ipynb"])
    return case


def handed_in(case):
    made = json.loads(json.dumps(assignment()[1]))
    for kind, at, value in case.get("edits", ()):
        with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError):
            cells = made["cells"]
            if kind == "put":
                *way, last = at
                functools.reduce(lambda inner, key: inner[key], way, made)[last] = value
            elif kind == "leave out":
                del cells[at]
            elif kind == "double":
                cells.insert(at, json.loads(json.dumps(cells[at])))
            elif kind == "swap":
                cells[at], cells[-1] = cells[-1], cells[at]
            elif kind == "answer":
                cells[at]["source"] = value
            else:
                own = {"id": "own", "cell_type": "code", "source": value, "metadata": {}, "outputs": []}
                cells.insert(at, own | {"execution_count": None})
    return spoiled(json.dumps(made).encode(), case.get("bytes", ()), [b"<<<<<<< HEAD\n"])


def judge_submission(case, folder):
    there, _ = assignment()
    path = folder / "class" / "ann" / case.get("name", "a1/a1.ipynb")
    path.parent.mkdir(parents=True)
    path.write_bytes(handed_in(case))
    (there / "points.csv").unlink(missing_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        code = marking.grade_all(there, folder / "class", kind=room.Forked, seconds=3)
    with (there / "points.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == str(path.relative_to(folder / "class")), "another row"
    assert code == int(not row["points"]), "its exit status"
    assert "nbgrader failed" not in row["reason"], row["reason"]
    assert row["points"] or row["reason"], "no points and no reason"
    return "graded" if row["points"] else "refused"


TARGETS = {
    "checkpoints": Target(draw_checkpoint, judge_checkpoint, share=2),
    "folders": Target(draw_folder, judge_folder, share=2),
    "submissions": Target(draw_submission, judge_submission, share=1, seconds=240),
}
