"""The live demo: its JavaScript runs programs with the bits of the package; drawings become digits' grey."""

import base64
import json
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from program_checks import (
    CHOICES,
    LAYERS,
    joined_program,
    late_program,
    mixed_choices,
    small_images,
    small_program,
    tied,
)
from strategies import runs

import dqt_core
from dqt_book.places import network
from dqt_book.widgets import controller_explorer, live_demo
from dqt_core import cascade, cost, data
from dqt_core.evaluation.cascade import margins, thresholds_for
from dqt_core.program import Result
from reproductions.exports import record as exports

STATIC = exports.SCRIPT.parent
DRAWING = STATIC / "digit-picture.js"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="needs node on the PATH to run the widgets' JavaScript"
)


@pytest.fixture(scope="module")
def demo_network():
    """A network of the demo by the folder of its record, and the digits as it takes them."""

    def found(folder):
        record = exports.results.read(STATIC.parents[1] / f"reproductions/results/{folder}/embedded.json")
        program = dqt_core.load(network(record, "trained"))
        return program, data.embedded(channels=program.image_shape[2])

    return found


def javascript_widths(program, images, widths):
    """Widths in any form of `Program.run` as the script takes them: pairs, or zeros for the controller."""
    if isinstance(widths, str):
        return [[0] * len(program.layers)] * len(images)
    return np.array(program.choices)[program._choices_of(widths, len(images))].tolist()


def answer(program, images, widths, script=exports.SCRIPT):
    return exports.by_node(program, script)(images, javascript_widths(program, images, widths))


def is_same(program, images, widths, script=exports.SCRIPT):
    logits, used = answer(program, images, widths, script)
    expected = program.run(images, widths, "numpy")
    pairs = np.array(program.choices)[expected.choices]
    return np.array_equal(logits, expected.logits) and np.array_equal(used.reshape(pairs.shape), pairs)


# Programs


@needs_node
@settings(deadline=None, derandomize=True, max_examples=25)
@given(run=runs(max_size=8))
def test_random_programs(run):
    assert is_same(run.program, run.images, run.widths)


@needs_node
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_small_program(rounding):
    program, images = small_program(rounding), small_images()
    for widths in ([CHOICES[1]] * LAYERS, np.array(CHOICES)[mixed_choices()], "controller"):
        assert is_same(program, images, widths)
        assert is_same(late_program(rounding), images, widths)
    assert is_same(joined_program(rounding), images, np.array(CHOICES)[mixed_choices()[:, :2]])


@needs_node
@pytest.mark.parametrize("setting", ["mixed", "controller"])
def test_shipped_program_on_all_test_images(shipped, setting):
    program, images = shipped("embedded"), data.embedded().test_images
    widths = exports.settings(program, len(images))[setting]
    logits, _ = answer(program, images, widths)
    recorded = {row["widths"]: row for row in exports.results.read(exports.FOLDER / "embedded.json")["rows"]}
    assert exports.digest(logits) == recorded[setting]["browser"] == recorded[setting]["numpy"]


@needs_node
def test_shipped_program_at_every_width(shipped):
    program, images = shipped("embedded"), data.embedded().test_images[::20]
    for width, _ in program.choices:
        assert is_same(program, images, width)


# Looking twice

CASCADE = "runner.cascade(Uint8Array.from(image), given.steps, given.thresholds.map(BigInt))"


def looked_twice(program, images, steps, thresholds, script=exports.SCRIPT):
    """Logits of the last pass, and the passes, of every image, by the script."""
    given = {
        "program": live_demo.program_data(program),
        "steps": steps,
        "thresholds": list(map(str, thresholds)),
    }
    given["images"] = images.reshape(len(images), -1).tolist()
    passes = f"(runner => given.images.map(image => {CASCADE}))(new widget.Runner(given.program))"
    found = node(f"{passes}.map(p => [p.length, p.at(-1).logits.map(String)])", script, given)
    return [([int(logit) for logit in logits], count) for count, logits in found]


def is_cascade(program, images, steps, thresholds, script=exports.SCRIPT):
    expected = cascade(program, images, steps, thresholds, "numpy")
    rows = zip(expected.logits.tolist(), expected.passes.tolist(), strict=True)
    return looked_twice(program, images, steps, thresholds, script) == list(rows)


@needs_node
@pytest.mark.parametrize("folder", ["resnet18_cifar", "lenet5_digits"])
def test_a_cascade_is_that_of_the_package(demo_network, folder):
    program, digits = demo_network(folder)
    images = digits.test_images[:40]
    gap = int(margins(program.run(images[:1], 2).logits)[0])
    for thresholds in (
        (gap,),
        (gap + 1,),
    ):  # the first image is at the brink: it is not looked at again, then it is
        assert is_cascade(program, images, (2, 4), thresholds)
    thresholds = thresholds_for(program, images, (2, 3, 8), (0.5, 0.2))
    assert set(cascade(program, images, (2, 3, 8), thresholds).passes) == {1, 2, 3}
    assert is_cascade(program, images, (2, 3, 8), thresholds)


CASCADE_MUTANTS = {
    "at the brink again": (
        "margin(passes[passes.length - 1].logits) < thresholds",
        "margin(passes[passes.length - 1].logits) <= thresholds",
    ),
    "the first threshold for all": ("< thresholds[passes.length - 1])", "< thresholds[0])"),
    "the last width first": ("steps[passes.length]", "steps[steps.length - 1 - passes.length]"),
    "ahead of the last": ("behind < least) ? behind", "behind > least) ? behind"),
    "a class behind itself": ("return i !== best && ", "return "),
}


@needs_node
@pytest.mark.parametrize("name", CASCADE_MUTANTS)
def test_a_planted_error_of_the_cascade_is_seen(demo_network, name, tmp_path):
    old, new = CASCADE_MUTANTS[name]
    source = exports.SCRIPT.read_text()
    assert source.count(old) == 1
    (tmp_path / "wrong.js").write_text(source.replace(old, new))
    program, digits = demo_network("lenet5_digits")
    images = digits.test_images[:40]
    first, second = thresholds_for(program, images, (2, 3, 8), (0.5, 0.2))
    brink = int(margins(program.run(images[:1], 2).logits)[0])
    runs = ((first, second), (brink, second))
    assert not all(is_cascade(program, images, (2, 3, 8), run, tmp_path / "wrong.js") for run in runs)


@needs_node
def test_wrong_widths_are_refused():
    program, images = small_program(controller=False), small_images(1)
    for widths, words in ([[0] * LAYERS], "has no controller"), ([[1] * LAYERS], "width 1 is not in"):
        with pytest.raises(RuntimeError, match=words):
            exports.by_node(program)(images, widths)


# Planted errors

MUTANTS = {
    # name: (text of the script, its replacement)
    "no epsilon": (
        "return isFloor ? q >> d :",
        "return true ? q >> d :",
    ),
    "epsilon overflows": ("Math.min((q + (1 << (d - 1))) >> d, highest)", "(q + (1 << (d - 1))) >> d"),
    "no middle of the bin": ("2 * view * (1 << d) + (1 << d) - 1", "2 * view * (1 << d)"),
    "inputs of floor not put back": ("isFloor ? view * (1 << d) : view", "view"),
    "widths of the weights for the input": ("op.padding, bits[1])", "op.padding, bits[0])"),
    "first width kept": ("op.views[bits]", "op.views[0]"),
    "first row for all": ("shape[0] > 1 ? choice * shape[1] : 0", "0"),
    "no shift": ("shifts ? Math.pow(2, 2 * MASTER - bits[0] - bits[1]) : 1", "1"),
    "low half dropped": ("lo += a * (m & 65535) + t.lo[b];", "lo += t.lo[b];"),
    "no carry": ("      hi += carry;\n", ""),
    "rounds down": ("var hi = halfHi, lo = halfLo,", "var hi = 0, lo = 0,"),
    "towards zero": ("Math.floor(hi / down)", "Math.trunc(hi / down)"),
    "no clamp from below": ("y < op.lo ? op.lo : ", ""),
    "padding wins a max-pool": ("largest = -129", "largest = 99"),
    "last of equal scores": (
        "if (scores[layer * count + k] > scores[layer * count + best])",
        "if (scores[layer * count + k] >= scores[layer * count + best])",
    ),
    "the first early choice for all": ("choices[layer] = choice;", "choices[layer] = decision.before[0];"),
    "scores of other layers": ("choices.length - op.layers", "0"),
    "logits as doubles": ("BigInt(a) * BigInt(m)", "BigInt(Math.fround(a * m))"),
    "first group for all": ("+ group * inputs;", ";"),
    "first table for all": ("256 * (i % rows)", "0"),
    "negative codes by other entries": ("x.values[i] & 255", "Math.max(0, x.values[i])"),
    "parts of a concatenation in one place": ("start += own;", ""),
    "the first pixel's factor": ("y[i % y.length]", "y[i % x.shape[2]]"),
}
MIXED = np.array(CHOICES)[mixed_choices()]


@needs_node
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_error_is_seen(name, tmp_path):
    old, new = MUTANTS[name]
    source = exports.SCRIPT.read_text()
    assert old in source
    script = tmp_path / "wrong.js"
    script.write_text(source.replace(old, new))
    programs = small_program("half_up"), small_program("floor"), tied(small_program())
    runs = [(program, widths) for program in programs for widths in (MIXED, "controller")]
    runs.append((late_program(), "controller"))
    runs.append((joined_program(), MIXED[:, :2]))
    assert not all(is_same(program, small_images(), widths, script) for program, widths in runs)


# What the page shows besides


def node(expression, script, given=None):
    text = f"const widget = require({json.dumps(str(script))}), given = {json.dumps(given)};"
    text += f"process.stdout.write(JSON.stringify({expression}))"
    return json.loads(
        subprocess.run(["node", "-"], input=text, capture_output=True, text=True, check=True).stdout
    )


@needs_node
def test_the_cost_is_that_of_the_package(shipped):
    program = shipped("embedded")
    result = program.run(data.embedded().test_images[:5], "controller")
    given = {"data": live_demo.program_data(program) | {"ops": []}, "widths": result.widths.tolist()}
    pairs = "given.widths.map(w => w.map(b => [b, b]))"
    found = node(f"{pairs}.map(w => widget.bitops(given.data, w, true))", exports.SCRIPT, given)
    assert found == cost.bitops(program, result.widths).tolist()
    given["widths"] = [[width] * len(program.layers) for width, _ in program.choices]
    found = node(f"{pairs}.map(w => widget.bitops(given.data, w, false))", exports.SCRIPT, given)
    assert found == [cost.bitops(program, width)[0] for width, _ in program.choices]


@needs_node
def test_the_digest_is_that_of_the_package():
    logits = np.random.default_rng(0).integers(-(2**61), 2**61, (7, 10))
    given = [str(logit) for logit in logits.ravel()]
    expected = Result(logits, logits, logits, "").digest
    assert node("widget.digest(given.map(BigInt))", exports.SCRIPT, given) == expected
    assert node("widget.sha256(new Uint8Array(0))", exports.SCRIPT).startswith("e3b0c44298fc1c14")


@needs_node
def test_a_picture_is_the_networks_input():
    grey = live_demo.grey(data.embedded().test_images[:3])
    given = grey.reshape(3, -1).tolist()
    for channels in 1, 3:
        found = node(f"given.map(g => Array.from(widget.asImage(g, {channels})))", exports.SCRIPT, given)
        images = data.embedded(channels).test_images[:3]
        assert np.array_equal(np.reshape(found, images.shape), images)
    assert np.array_equal(controller_explorer.as_images(grey), data.embedded().test_images[:3])


@needs_node
def test_a_bitmap_becomes_grey_as_the_digits_did():
    """0 to 16 pixels of a block, as scikit-learn's digits count them, then as `data.embedded` scales them."""
    bitmap = (np.random.default_rng(1).random((32, 32)) < np.linspace(0, 1, 32)).astype(int)
    counts = bitmap.reshape(8, 4, 8, 4).sum((1, 3))
    found = node("widget.greyOfBitmap(Uint8Array.from(given))", DRAWING, bitmap.ravel().tolist())
    assert found == ((counts * 255 + 8) // 16).ravel().tolist()


@needs_node
def test_a_drawing_is_fitted_to_the_square():
    strokes = [[[3, 4], [5, 20]], [[13, 7]]]
    bitmap = np.reshape(node("Array.from(widget.bitmapOf(widget.fitted(given)))", DRAWING, strokes), (32, 32))
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    assert rows[0] <= 1
    assert rows[-1] >= 30
    assert abs(columns[0] + columns[-1] - 31) <= 2  # in the middle but for half a pixel of either end
    assert node("widget.fitted([])", DRAWING) == []


@needs_node
def test_a_dark_pen_on_light_paper_is_turned_over():
    paper = np.full((32, 32, 4), 255)
    paper[8:24, 12:20, :3] = 30
    grey = np.reshape(node("widget.greyOfPixels(given)", DRAWING, paper.ravel().tolist()), (8, 8))
    assert grey[0, 0] == 0
    assert grey[3, 3] == 255
    paper[..., :3] = 255 - paper[..., :3]
    assert np.array_equal(grey.ravel(), node("widget.greyOfPixels(given)", DRAWING, paper.ravel().tolist()))
    empty = np.zeros((32, 32, 4), int)
    assert set(node("widget.greyOfPixels(given)", DRAWING, empty.ravel().tolist())) == {0}


@needs_node
@pytest.mark.parametrize("dark", [True, False])
def test_the_ink_of_a_picture_is_found(dark):
    paper = np.full((64, 64, 4), 255)
    paper[10:30, 40:48, :3] = 20
    if dark:
        paper[..., :3] = 255 - paper[..., :3]
    left, top, side = node("widget.inkOf(given, 64)", DRAWING, paper.ravel().tolist())
    assert (64 * left, 64 * top, 64 * side) == (34, 10, 20)
    paper[2:62, 40:48, :3] = 255 - paper[0, 0, :3]
    assert node("widget.inkOf(given, 64)", DRAWING, paper.ravel().tolist()) is None, "it fills the square"
    paper[...] = 200
    assert node("widget.inkOf(given, 64)", DRAWING, paper.ravel().tolist()) is None, "there is none"


# The data


@pytest.fixture(scope="module")
def demo_data():
    return live_demo.demo_data()


def test_the_data_holds_the_images_and_their_labels(demo_data):
    digits = data.embedded()
    images = np.frombuffer(base64.b64decode(demo_data["images"]["base64"]), np.uint8).reshape(-1, 8, 8)
    assert np.array_equal(controller_explorer.as_images(images), digits.test_images)
    assert demo_data["labels"] == digits.test_labels.tolist()


@pytest.mark.parametrize(
    ("number", "folder", "settings"),
    [(0, "resnet18_cifar", {"controller"}), (1, "lenet5_digits", {"2, then 4"})],
)
def test_the_data_holds_each_network_and_what_it_answers(demo_data, demo_network, number, folder, settings):
    program, digits = demo_network(folder)
    found = demo_data["networks"][number]
    assert found["program"]["digest"] == program.digest
    assert [op["kind"] for op in found["program"]["ops"]] == [type(op).__name__ for op in program.ops]
    assert set(found["digests"]) == {"2", "3", "4", "6", "8", "cascade"} | settings
    assert found["digests"]["4"] == program.run(digits.test_images, 4).digest
    (threshold,) = map(int, found["cascade"]["thresholds"])
    twice = cascade(program, digits.test_images, found["cascade"]["steps"], threshold)
    assert found["digests"]["cascade"] == twice.digest
    assert 0 < (twice.passes == 2).mean() < 0.5


def test_the_recorded_cascade_of_the_grey_network_is_the_demos(demo_data):
    digests = demo_data["networks"][1]["digests"]
    assert digests["cascade"] == digests["2, then 4"]


def test_the_page_is_light(demo_data):
    files = [
        exports.SCRIPT,
        DRAWING,
        STATIC / "drawing-pad.js",
        STATIC / "live-demo.js",
        STATIC / "live-demo.css",
    ]
    weight = sum(file.stat().st_size for file in files) + len(live_demo.as_script(demo_data))
    assert weight < 500_000
