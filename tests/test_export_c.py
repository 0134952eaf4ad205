"""The C file of a program, compiled strictly, gives the bits of `Program.run`; nothing in it is undefined."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from interpreter import run as run_in_python
from program_checks import (
    CHOICES,
    LAYERS,
    joined_program,
    late_program,
    mixed_choices,
    saturated,
    small_images,
    small_program,
    tied,
)
from strategies import runs

from dqt_core import data, load, results
from dqt_core.export.__main__ import main
from dqt_core.export.c import sizes, to_c
from dqt_core.export.qonnx import to_qonnx
from dqt_core.program import Conv, Requantize, Scale
from reproductions.exports import c_program
from reproductions.exports.c_program import CHECKED, FAST, build, run, sections, written

RECORD = Path(__file__).parents[1] / "reproductions" / "results" / "resnet18_cifar" / "embedded.json"


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        return c_program.compiler()
    except c_program.NotThere as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("c")


def assert_same(executable, program, images, widths, backend="numpy"):
    result, expected = run(executable, program, images, widths), program.run(images, widths, backend)
    np.testing.assert_array_equal(result.logits, expected.logits)
    np.testing.assert_array_equal(result.widths, expected.widths)
    assert result.digest == expected.digest


# Random and small programs, with the sanitizers


@settings(deadline=None, derandomize=True, max_examples=20)
@given(run=runs(max_size=8))
def test_random_programs(folder, run):
    executable = build(written(run.program, folder), folder, *CHECKED)
    assert_same(executable, run.program, run.images, run.widths)


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_small_program(folder, rounding):
    program, images = small_program(rounding), small_images()
    executable = build(written(program, folder), folder, *CHECKED)
    for pair in CHOICES:
        assert_same(executable, program, images, [pair] * LAYERS)
    assert_same(executable, program, images, np.array(CHOICES)[mixed_choices()])
    assert_same(executable, program, images, "controller")


@pytest.mark.parametrize(("terms", "rounding"), [(600, "half_up"), (32_896, "floor"), (65_793, "half_up")])
def test_the_largest_sums(folder, terms, rounding):
    """Codes 255 against weights -128, as many as int32 holds."""
    program = saturated(terms, rounding)
    executable = build(written(program, folder), folder, *CHECKED)
    assert_same(executable, program, np.zeros((2, 1, 1, 3), np.uint8), 8)


def test_a_layer_can_be_left_to_the_controller(folder):
    program, images = small_program(), small_images()
    own = program.run(images, "controller").widths
    asked = np.array(CHOICES)[mixed_choices()]
    left = np.random.default_rng(0).random(asked.shape[:2]) < 0.5
    expected = program.run(images, np.where(left[..., None], own, asked), "numpy")
    stream = [
        bits.tobytes() + image.tobytes()
        for bits, image in zip(np.where(left[..., None], 0, asked).astype(np.uint8), images, strict=True)
    ]
    executable = build(written(program, folder), folder, *CHECKED)
    done = subprocess.run([executable, "-"], input=b"".join(stream), capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == expected.digest


# Refusals


@pytest.mark.parametrize(
    ("arguments", "stream", "message"),
    [
        (["1"], bytes(60), "does not hold such a width"),
        (["0"], bytes(60), "does not hold such a width"),
        (["260"], bytes(60), 'a width is "260", expected one digit from 0 to 8'),
        (["x"], bytes(60), 'a width is "x", expected one digit from 0 to 8'),
        ([""], bytes(60), 'a width is "", expected one digit from 0 to 8'),
        (["8", "8"], bytes(60), "give no width, one, one for each layer"),
        (["8"], bytes(61), "the last image is cut short"),
        (["-"], bytes(3), "the last image is cut short"),
        (["-"], bytes([8] * 8), "the last image is cut short"),
    ],
)
def test_wrong_input_is_refused(folder, arguments, stream, message):
    executable = build(written(small_program(controller=False), folder), folder, *CHECKED)
    done = subprocess.run([executable, *arguments], input=stream, capture_output=True)
    assert done.returncode == 1
    assert message in done.stderr.decode()


# What the file is


def test_the_file_stands_alone(folder):
    text = written(small_program(), folder)
    body, _, main = text.partition("#ifdef DQT_MAIN")
    assert main
    for word in ("malloc", "float", "double", "__int128", "long"):
        assert word not in body
    assert [line for line in body.splitlines() if line.startswith("#include")] == [
        "#include <stddef.h>",
        "#include <stdint.h>",
    ]
    assert max(map(len, text.splitlines())) <= 112


def test_a_small_c_library_is_enough(tmp_path):
    """Newlib's, of cross compilers, may name no format of 64 bits."""
    for name in ("inttypes", "stdlib"):
        (tmp_path / f"{name}.h").write_text("#error there is none")
    text = written(small_program(), tmp_path)
    build(text, tmp_path, f"-I{tmp_path}")
    assert not re.search(r"PRI[a-z]+\d+|%l|ato[il]", text)


def test_equal_programs_make_equal_files(folder):
    first, second = (to_c(small_program(), folder / name).read_bytes() for name in ("a.c", "b.c"))
    assert first == second


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_the_sizes_are_those_of_the_compiled_file(folder, rounding):
    """Alignment may add a little to the buffers, and the constants have the steps beside the tables."""
    program = small_program(rounding)
    own, found = sizes(program), sections(written(program, folder), folder)
    written_memory = sum(size for name, size in found.items() if name.startswith((".bss", ".data")))
    written_memory -= found.get(".data.rel.ro.local", 0)
    assert own.ram <= written_memory <= own.ram + 64
    constant = sum(size for name, size in found.items() if name.startswith(".rodata"))
    assert own.weights + own.tables <= constant <= own.weights + own.tables + 1024
    assert own.weights == sum(op.weight.nbytes for op in program.ops if isinstance(op, Conv))
    terms = [t for op in program.ops if isinstance(op, Requantize) for t in op.terms]
    terms += [op.term for op in program.ops if isinstance(op, Scale)]
    assert own.tables == 3 * 256 + sum(t.multiplier.nbytes + t.offset.nbytes for t in terms)


# Shipped programs


def mixed_widths(program, n):
    picks = np.random.default_rng(5).integers(0, len(program.choices), (n, len(program.layers)))
    return np.array(program.choices)[picks][..., 0]


def every_widths(program, n):
    return [*(width for width, _ in program.choices), "controller", mixed_widths(program, n)]


def test_shipped_embedded_program(shipped, folder):
    """All test images: the recorded digests at all widths, and widths of each image's own."""
    program, images = shipped("embedded"), data.load("embedded").test_images
    executable = build(written(program, folder), folder, *FAST)
    record = results.read(RECORD)
    assert len(record["rows"]) == len(program.choices) + 1
    for row in record["rows"]:
        widths = row["widths"] if row["widths"] == "controller" else int(row["widths"])
        assert run(executable, program, images, widths).digest == row["logits"]
    assert_same(executable, program, images, mixed_widths(program, len(images)), "auto")


def test_shipped_embedded_program_with_the_sanitizers(shipped, folder):
    program, images = shipped("embedded"), data.load("embedded").test_images[:6]
    executable = build(written(program, folder), folder, *CHECKED)
    for widths in ("controller", mixed_widths(program, len(images))):
        assert_same(executable, program, images, widths, "auto")


def test_shipped_cifar_program_on_cifar_images(shipped, folder, cifar10):
    program, images = shipped("cifar10"), cifar10.test_images[:15]
    executable = build(written(program, folder), folder, *FAST)
    for widths in every_widths(program, len(images)):
        assert_same(executable, program, images, widths, "auto")


# Planted errors

MUTANT = (*CHECKED, "-O0", "-w")  # a warning shall not be what is seen
MUTANTS = {
    # name: (text of the C file, its replacement)
    "no epsilon": ("half = DQT_FLOOR || d == 0 ?", "half = 1 ?"),
    "epsilon in floor too": ("half = DQT_FLOOR || d == 0 ?", "half = d == 0 ?"),
    "epsilon overflows": ("return view < highest ? view : highest;", "return view;"),
    "signed highest for unsigned": ("(is_signed ? 127 : 255) >> d", "127 >> d"),
    "towards zero": ("t >= 0 ? t >> r : ~(~t >> r)", "t / ((int64_t)1 << r)"),
    "signed codes read as unsigned": ("is_signed && byte > 127 ?", "0 ?"),
    "no middle of the bin": ("2 * view * unit + unit - 1", "2 * view * unit"),
    "inputs of floor not put back": ("view * ((int32_t)1 << d) : view", "view : view"),
    "padding of ones": ("input_factor(x[c], d, t->is_signed) : 0", "input_factor(x[c], d, t->is_signed) : 1"),
    "rows one too low": ("row * t->stride - t->padding + k", "row * t->stride - t->padding + k + 1"),
    "no stride along a row": ("(column * t->stride + l)", "(column + l)"),
    "first group for all": ("+ group * inputs", "+ 0 * group"),
    "widths of the weights for the input": (
        "dropped(s->terms[j].conv_layer, choice, 1)",
        "dropped(s->terms[j].conv_layer, choice, 0)",
    ),
    "master weights": ("dropped(s->terms[j].conv_layer, choice, 0)", "0"),
    "first row for all": ("t->rows > 1 && t->layer >= 0 ? choice[t->layer] : 0", "0"),
    "first channel for all": ("(t->channels > 1 ? output : 0)", "0"),
    "shift in floor too": ("int32_t d = DQT_FLOOR ? 0 :", "int32_t d ="),
    "no shift": ("int32_t d = DQT_FLOOR ? 0 :", "int32_t d = 1 ? 0 :"),
    "shift of the input alone": ("dropped(t->layer, choice, 0) + dropped", "dropped"),
    "rounds down": ("int64_t total = (int64_t)1 << (s->r - 1);", "int64_t total = 0;"),
    "no lower clamp": ("total < s->lo ? s->lo : ", ""),
    "no upper clamp": ("total > s->hi ? s->hi : total", "total"),
    "pool of the first channel": ("t->x[i * t->depth + channel]", "t->x[i * t->depth + 0 * channel]"),
    "padding wins a max-pool": ("int32_t largest = -129;", "int32_t largest = 99;"),
    "max-pool without its stride": ("left += stride", "left += stride + 1"),
    "last of equal scores": ("if (row[k] > row[best])", "if (row[k] >= row[best])"),
    "one layer's scores for all": ("scores + layer * DQT_CHOICES", "scores + 0 * layer"),
    "the first early choice for all": ("early[layer]", "early[0]"),
    "given early widths overruled": ("choice[layer] == UNDECIDED && layer <", "layer <"),
    "given widths overruled": ("if (choice[layer] == UNDECIDED)\n            choice", "choice"),
    "tables of the colours mixed up": ("256 * (i % rows)", "256 * (rows - 1 - i % rows)"),
    "pixels of a part's channels": ("out[i * depth + c]", "out[i * channels + c]"),
    "the first pixel's factor": ("t->y_pixels > 1 ?", "0 ?"),
    "a factor's sign from the other": ("t->y_is_signed)", "t->is_signed)"),
    "sum in 32 bits": (
        "return a * ((int64_t)1 << d) * t->multiplier[entry]",
        "return (int32_t)(a * ((int64_t)1 << d) * t->multiplier[entry])",
    ),
    "a shift of negative numbers": (
        "return a * ((int64_t)1 << d) * t",
        "return (a << (d - 0 * d)) * t",
    ),  # the same bits, but not C99: the sanitizer's
    "chosen widths of the weights twice": ("[i % DQT_WIDTHS];", "[0];"),
}


def finer(program):
    """The same numbers at a finer scale, so that sums need more than 32 bits."""

    def fine(term):
        return replace(term, multiplier=term.multiplier << 6, offset=term.offset << 6)

    ops = [
        replace(op, terms=tuple(map(fine, op.terms)), r=op.r + 6) if isinstance(op, Requantize) else op
        for op in program.ops
    ]
    return replace(program, ops=tuple(ops))


def case(program, images, asked):
    """Program, arguments, standard input; logits and widths by Python integers. Width 0: the controller's."""
    own = program.run(images, "controller", "numpy").widths if program.has_controller else asked
    bits = np.where(asked == 0, own, asked)
    rows = zip(program._choices_of(bits, len(images)).tolist(), images, strict=True)
    logits = [run_in_python(program, image, choices)[0]["logits"][0][0] for choices, image in rows]
    stream = [b.tobytes() + i.tobytes() for b, i in zip(asked.astype(np.uint8), images, strict=True)]
    return program, b"".join(stream), logits, bits.reshape(len(images), -1).tolist()


@pytest.fixture(scope="module")
def cases():
    """Mixed widths, the controller's, and some of both, kept for all mutants."""
    rng = np.random.default_rng(8)
    images = np.concatenate([small_images(), rng.integers(0, 256, (4, 5, 4, 3)).astype(np.uint8)])
    mixed = np.array(CHOICES)[mixed_choices(len(images))]
    some = np.where(rng.random((*mixed.shape[:2], 1)) < 0.5, 0, mixed)
    programs = finer(small_program("half_up")), small_program("floor"), tied(small_program()), late_program()
    made = [case(program, images, asked) for program in programs for asked in (mixed, mixed * 0, some)]
    return [*made, case(joined_program(), images, mixed[:, :2])]


def is_wrong(cases, folder, change):
    """Whether a changed C file gives a wrong number, stops, or does what C leaves undefined."""
    built = {}
    for number, (program, stream, logits, bits) in enumerate(cases):
        if program.digest not in built:
            made = build(change(written(program, folder)), folder, *MUTANT)
            built[program.digest] = made.rename(folder / f"mutant-{number}")
        done = subprocess.run([built[program.digest], "-"], input=stream, capture_output=True)
        rows = [line.split("|") for line in done.stdout.decode().splitlines()[:-1]]
        found = [[list(map(int, row[i].split())) for row in rows] for i in (2, 1)]
        if done.returncode or found != [logits, bits]:
            return True
    return False


def test_no_error_is_seen_where_none_is_planted(cases, folder):
    assert not is_wrong(cases, folder, lambda text: text)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_error_is_seen(cases, folder, name):
    old, new = MUTANTS[name]
    found = []  # in some program's file: what a program does not call is left out

    def change(text):
        found.append(old in text)
        return text.replace(old, new)

    assert is_wrong(cases, folder, change)
    assert any(found)


def test_buffers_that_overlap_are_seen(cases, folder, monkeypatch):
    monkeypatch.setattr(
        "dqt_core.export.c.places", lambda sizes, lives, alignment: (dict.fromkeys(sizes, 0), 1000)
    )
    assert is_wrong(cases, folder, lambda text: text)


@pytest.mark.parametrize("kind", ["memory", "row_buffer", "filter_buffer", "scores"])
def test_a_buffer_that_is_too_small_is_seen(cases, folder, kind, monkeypatch):
    def change(text):
        def smaller(match):
            return f"{match[1]}{int(match[2]) - 1}]"

        return re.sub(rf"({kind}(?:\[\d+\])?\[)(\d+)\]", smaller, text, count=1)

    assert is_wrong(cases, folder, change)


# The command


def test_one_command_writes_all_files(folder, capsys):
    program = small_program()
    path = program.save(folder)
    outs = [folder / "new" / name for name in ("p.onnx", "p.c", "q.onnx")]
    files = "--onnx", str(outs[0]), "--c", str(outs[1]), "--qonnx", str(outs[2])
    assert main([str(path), *files, "--widths", "8"]) == 0
    assert outs[2].read_bytes() == to_qonnx(program, folder / "same.onnx").read_bytes()
    assert outs[1].read_text() == written(program, folder)
    assert outs[0].stat().st_size > 0
    assert f"ram={sizes(program).ram}" in capsys.readouterr().out


def test_the_command_writes_a_qonnx_file_of_the_widths_that_are_given(folder):
    program = load("digits")
    path, out = program.save(folder), folder / "narrow.onnx"
    assert main([str(path), "--qonnx", str(out), "--widths", "4"]) == 0
    assert out.read_bytes() == to_qonnx(program, folder / "same.onnx", 4).read_bytes()
    assert out.read_bytes() != to_qonnx(program, folder / "wide.onnx").read_bytes()


def test_the_command_says_what_is_wrong(folder, capsys):
    assert main([str(folder / "none.safetensors"), "--c", str(folder / "never.c")]) == 1
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(folder / "none.safetensors")])
    assert "give --onnx OUT, --c OUT, --qonnx OUT, or several" in capsys.readouterr().err
    out = folder / "widths.c"
    with pytest.raises(SystemExit, match="2"):
        main([str(small_program().save(folder)), "--c", str(out), "--widths", "4"])
    assert "--widths 4 came without --qonnx OUT" in capsys.readouterr().err
    assert not out.exists()
