"""Program files, what a run accepts, and what it answers."""

import hashlib
import importlib.util
import io
import json
import multiprocessing
import pickle
import re
import shutil
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from program_checks import CHOICES, LAYERS, mixed_choices, small_images, small_program
from safetensors import safe_open
from safetensors.numpy import save_file

from dqt_core import ProgramError, load
from dqt_core.program import MaxPool, Program, Result, storage


@pytest.fixture
def saved(tmp_path):
    return small_program().save(tmp_path)


# Files


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
@pytest.mark.parametrize("controller", [False, True])
def test_round_trip(tmp_path, rounding, controller):
    program = small_program(rounding, controller)
    path = program.save(tmp_path)
    assert path.name == f"small-{program.digest[:12]}.safetensors"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = load(str(path))
    assert loaded.digest == program.digest
    assert_same_fields(loaded, program)
    pairs = np.array(CHOICES)[mixed_choices()]
    for widths in (8, pairs) + ("controller",) * controller:
        assert (
            loaded.run(small_images(), widths, "numpy").digest
            == program.run(small_images(), widths, "numpy").digest
        )


def assert_same_fields(got, expected):
    assert type(got) is type(expected)
    if is_dataclass(expected):
        for field in fields(expected):
            assert_same_fields(getattr(got, field.name), getattr(expected, field.name))
    elif isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same_fields(one, other)
    elif isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    else:
        assert got == expected


def test_equal_programs_are_equal_files(tmp_path):
    files = {small_program().save(tmp_path / str(i)).read_bytes() for i in range(8)}
    assert len(files) == 1


def test_saved_once_more_is_the_same_file(saved):
    before = saved.read_bytes()
    assert load(saved).save(saved.parent) == saved
    assert saved.read_bytes() == before


def test_a_later_field_is_written_where_it_says_something(tmp_path):
    """So that files of before it, and their digests, stay as they are."""
    program = small_program()
    ops = [replace(op, ceil=True) if isinstance(op, MaxPool) else op for op in program.ops]
    again = load(replace(program, ops=tuple(ops)).save(tmp_path))
    assert [op.ceil for op in again.ops if isinstance(op, MaxPool)] == [True]
    assert '"ceil":true' in storage.encode(again)[0]
    assert "ceil" not in storage.encode(program)[0]


def test_the_digest_is_of_contents_not_of_memory():
    program = small_program()
    ops = tuple(
        replace(op, weight=np.asfortranarray(op.weight)) if hasattr(op, "weight") else op
        for op in program.ops
    )
    assert replace(program, ops=ops).digest == program.digest


def variations(value):
    """Copies with one small change, for every number, text, array and tuple in a value."""
    if isinstance(value, np.ndarray):
        changed = value.copy()
        changed.flat[-1] ^= 1
        same_bytes = [value.reshape(-1), value.view(value.dtype.str.replace("i", "u"))]
        return [changed, value[..., :-1], value.astype(np.int16), *same_bytes]
    if is_dataclass(value):
        return [
            replace(value, **{field.name: variation})
            for field in fields(value)
            for variation in variations(getattr(value, field.name))
        ]
    if isinstance(value, tuple):
        each = [
            (*value[:i], variation, *value[i + 1 :])
            for i, item in enumerate(value)
            for variation in variations(item)
        ]
        return [value[:-1] if value else (0,), *each, *([] if value[::-1] == value else [value[::-1]])]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    return [f"{value}x"] if isinstance(value, str) else [0]


class Unchecked(Program):
    """Any fields at all, as an edited file may hold them."""

    def __post_init__(self):
        pass


def unchecked(program):
    return Unchecked(*(getattr(program, field.name) for field in fields(program)))


def test_the_digest_depends_on_everything():
    program = small_program()
    digests = [variation.digest for variation in variations(unchecked(program))]
    assert program.digest not in digests
    assert len(set(digests)) == len(digests)


def test_another_file_is_no_program(saved):
    saved.write_bytes(b"an ONNX file, or weights")
    assert_refused(
        saved, "is no program, or a damaged one .*; give one that Program.save wrote, or get the file"
    )


def test_truncated_files(saved):
    contents = saved.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(contents) - 1, *range(0, len(contents), len(contents) // 40)}
    for length in sorted(lengths):
        saved.write_bytes(contents[:length])
        assert_refused(saved, "get the file again")


def test_edited_bytes(saved):
    """Bytes all over the header and the tables."""
    contents = saved.read_bytes()
    start = 8 + int.from_bytes(contents[:8], "little")
    for offset in (*range(0, start, 20), *range(start, len(contents), 7)):
        edited = bytearray(contents)
        edited[offset] ^= 1
        saved.write_bytes(edited)
        assert_refused(saved, "get the file again|lower it again")


def test_edited_values_in_the_header(saved):
    contents = saved.read_bytes()
    for old, new in (
        (rb"\"stride\\\":2", rb"\"stride\\\":1"),
        (rb"\"half_up\\\"", rb"\"half-up\\\""),
        (rb"\"kind\\\":\\\"Scale", rb"\"kind\\\":\\\"Skale"),
        (rb"\"layer\\\":0", rb"\"layex\\\":0"),
        (rb"\"tensor\\\"", rb"\"tensoR\\\""),
    ):
        assert old in contents, old
        saved.write_bytes(contents.replace(old, new, 1))
        assert_refused(saved, "was edited: .*digest is not that of its contents.*; get the file again")


@pytest.mark.parametrize("stored", ["{", "[]", "null", '"text"', "1"])
def test_a_header_that_is_no_program(saved, stored):
    metadata, tensors = read(saved)
    save_file(tensors, saved, {storage.METADATA: stored})
    assert_refused(saved, "was edited: .*; get the file again")
    for part in ("program", "digest"):
        save_file(tensors, saved, {storage.METADATA: json.dumps({**metadata, part: stored})})
        assert_refused(saved, "was edited: .*; get the file again")
        missing = {key: value for key, value in metadata.items() if key != part}
        save_file(tensors, saved, {storage.METADATA: json.dumps(missing)})
        assert_refused(saved, "was edited: .*; get the file again")


def test_edited_with_a_digest_that_fits(saved):
    """Whoever also corrects the digest in the header meets the name."""
    program = load(saved)
    other = replace(program, ops=(*program.ops[:-1], replace(program.ops[-1], r=19)))
    other.save(saved.parent / "other")
    shutil.copy(next((saved.parent / "other").iterdir()), saved)
    assert_refused(saved, f"call it small-{other.digest[:12]}.safetensors")


def test_another_format(saved):
    metadata, tensors = read(saved)
    for other in ("dqt-program-0", "dqt-program-2", None):
        save_file(tensors, saved, {storage.METADATA: json.dumps({**metadata, "format": other})})
        assert_refused(saved, f"has format {other!r}, expected 'dqt-program-1'; lower it again")
    save_file(tensors, saved)
    assert_refused(saved, "has format None, expected 'dqt-program-1'; lower it again")


def test_renamed_files(saved):
    digest = load(saved).digest[:12]
    for name in (
        "small.safetensors",
        f"small-{digest[:-1]}.safetensors",
        f"small-{digest[::-1]}.safetensors",
    ):
        renamed = saved.rename(saved.with_name(name))
        assert_refused(renamed, f"call it small-{digest}.safetensors")
        saved = renamed
    renamed = saved.rename(saved.with_name(f"best-{digest}.safetensors"))
    assert load(renamed).digest[:12] == digest


def test_missing_files(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        assert_refused(path, r'does not exist; give the path of a program, or "digits"')


def assert_refused(path, message):
    with pytest.raises(ProgramError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def read(path):
    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return json.loads(file.metadata()[storage.METADATA]), tensors


@pytest.fixture
def full_disk(monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError("No space left on device")

    def fill():
        monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))

    return fill


def test_a_failed_write_leaves_no_file(tmp_path, full_disk):
    full_disk()
    with pytest.raises(OSError, match="No space left"):
        small_program().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_file_before(saved, full_disk):
    before = saved.read_bytes()
    full_disk()
    with pytest.raises(OSError, match="No space left"):
        small_program().save(saved.parent)
    assert saved.read_bytes() == before


def _save_for_ever(program, folder):
    while True:
        program.save(folder)


def test_a_kill_at_any_moment_of_saving_leaves_whole_files(tmp_path):
    program, random = small_program(), np.random.default_rng()
    for _ in range(10):
        child = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=[program, tmp_path])
        child.start()
        while not [*tmp_path.iterdir()]:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.01))
        child.kill()
        child.join()
        for path in tmp_path.glob("*.safetensors"):
            assert load(path).digest == program.digest
    assert program.save(tmp_path) in tmp_path.glob("*.safetensors")


# Results


def test_result():
    logits = np.array([[1, 3, 3], [-(2**40), -(2**41), -(2**40)]])
    result = Result(logits, np.zeros((2, 1), np.int64), np.full((2, 1), 8), "numpy")
    assert result.classes.tolist() == [1, 0]  # ties to the lower class
    little_endian = b"".join(n.to_bytes(8, "little", signed=True) for n in logits.ravel().tolist())
    assert result.digest == hashlib.sha256(little_endian).hexdigest()
    for same in (np.asfortranarray(logits), logits.astype(">i8"), logits[::-1].copy()[::-1]):
        assert replace(result, logits=same).digest == result.digest
    assert replace(result, logits=logits + 1).digest != result.digest


@pytest.mark.parametrize("backend", ["numpy", "torch", "auto"])
def test_types_and_shapes_of_a_result(backend):
    result = small_program().run(small_images(3), "controller", backend)
    assert (result.logits.dtype, result.logits.shape) == (np.int64, (3, 5))
    assert (result.choices.dtype, result.choices.shape) == (np.int64, (3, LAYERS))
    assert (result.widths.dtype, result.widths.shape) == (np.int64, (3, LAYERS, 2))
    np.testing.assert_array_equal(result.widths, np.array(CHOICES)[result.choices])
    assert result.backend == ("numba" if backend == "auto" else backend)


def test_widths_of_a_result_are_single_where_weights_and_inputs_agree():
    result = of_single_widths().run(small_images(2), [2, 4, 3, 8], "numpy")
    assert result.widths.tolist() == [[2, 4, 3, 8]] * 2


def of_single_widths() -> Program:
    return replace(small_program(), choices=((2, 2), (3, 3), (4, 4), (6, 6), (8, 8)))


# What a run refuses


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (0, "width 0 is outside 1..8"),
        (9, "width 9 is outside 1..8"),
        (-2, "width -2 is outside 1..8"),
        (True, "width True is outside 1..8"),
        ([2, 4, 8, 9], "width 9 is outside 1..8"),
        (np.full((6, LAYERS), 0), "width 0 is outside 1..8"),
        (5, r"width 5 is not in this program; it holds 2, \(4, 3\), \(3, 6\), \(5, 8\), 8"),
        ([(2, 2), (6, 3), 8, 8], r"width \(6, 3\) is not in this program"),
        ([8] * 3, "got widths for 3 layers; the program has 4"),
        ([], "widths .* do not fit; give an int"),
        (np.full((6, 5), 8), "got widths for 5 layers; the program has 4"),
        (np.full((6, 5, 2), 8), "got widths for 5 layers; the program has 4"),
        (np.full((5, LAYERS), 8), "widths are for 5 images, got 6 images"),
        (np.full((6, LAYERS, 3), 8), "do not fit; give an int"),
        (np.full((6, LAYERS), 8.0), "widths float64 (6, 4) do not fit; give an int"),
        (np.array(8), "do not fit; give an int"),
        (8.0, "widths 8.0 do not fit; give an int"),
        (np.ma.masked_array(np.full((6, LAYERS), 9), True), "width 9 is outside 1..8"),
        ("8" * 1000, r"widths='8+\.\.\.8+' is not possible"),
        (None, "widths None do not fit; give an int"),
        ([8.0] * LAYERS, "do not fit; give an int"),
        ([(8, 8), (8,), 8, 8], "do not fit; give an int"),
        (["8"] * LAYERS, "do not fit; give an int"),
        (
            "auto",
            "widths='auto' is not possible with this program; give an int, a list or an array, or 'contr",
        ),
    ],
    ids=str,
)
def test_widths_that_do_not_fit(widths, message):
    with pytest.raises(ValueError, match=re.escape(message) if "6, 4" in message else message) as error:
        small_program().run(small_images(), widths, "numpy")
    assert "\n" not in str(error.value)


def test_no_controller():
    with pytest.raises(
        ValueError, match=r"'controller' is not possible .*; give an int, a list or an array$"
    ):
        small_program(controller=False).run(small_images(), "controller")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x / 255,
            TypeError,
            "images must be uint8 bytes 0..255, got float64; do not normalise them",
        ),
        (lambda x: x.astype(np.int8), TypeError, "must be uint8 bytes 0..255, got int8"),
        (lambda x: x.tolist(), TypeError, "must be uint8 bytes 0..255, got list; give a NumPy array"),
        (
            lambda x: x.transpose(0, 3, 1, 2),
            ValueError,
            r"must be \(N, 5, 4, 3\), got \(6, 3, 5, 4\); channels come last: images.transpose\(0, 2, 3",
        ),
        (
            lambda x: x[0],
            ValueError,
            r"must be \(N, 5, 4, 3\), got \(5, 4, 3\); give one image an axis of its own, images\[None\]$",
        ),
        (lambda x: x[:, :4], ValueError, r"must be \(N, 5, 4, 3\), got \(6, 4, 4, 3\)$"),
        (lambda x: x[..., :1], ValueError, r"must be \(N, 5, 4, 3\), got \(6, 5, 4, 1\)"),
        (lambda x: x[:0], ValueError, r"must be \(N, 5, 4, 3\), got \(0, 5, 4, 3\)"),
    ],
)
def test_images_that_do_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        small_program().run(change(small_images()), 8, "numpy")


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", None])
def test_batch_size(size):
    with pytest.raises(ValueError, match=f"batch_size is {size!r}, expected an int"):
        small_program().run(small_images(), 8, "numpy", batch_size=size)


@pytest.mark.parametrize("name", ["cuda", None, ["numpy"]])
def test_unknown_backend(name):
    message = re.escape(f"backend {name!r} is unknown; choose 'auto', 'numpy', 'numba', 'torch'")
    with pytest.raises(ValueError, match=message):
        small_program().run(small_images(), 8, name)


ARRAYS = {
    "masked": lambda x: np.ma.masked_array(x, x > 7),
    "backwards": lambda x: x[::-1].copy()[::-1],  # a batch of one counts as contiguous in it
    "in columns": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("backend", ["numpy", "torch", "numba"])
def test_any_array_is_its_bytes(backend, kind):
    given, expected = ARRAYS[kind](small_images()), small_program().run(small_images(), 8, "numpy").digest
    for size in (1, 64):
        assert small_program().run(given, 8, backend, size).digest == expected


@pytest.mark.parametrize(
    ("missing", "runs"), [(("numba",), "torch"), (("numba", "torch"), "numpy")], ids=lambda x: str(x)
)
def test_what_is_missing_does_not_run(monkeypatch, missing, runs):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    assert small_program().run(small_images(), 8).backend == runs


def test_a_program_that_has_run_can_be_sent_to_another_process():
    program, images = small_program(), small_images()
    result = program.run(images, 8)
    assert pickle.loads(pickle.dumps(program)).run(images, 8).digest == result.digest
