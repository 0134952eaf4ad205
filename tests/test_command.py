"""`python -m dqt_core`: what a shell gives it, what it writes, and one sentence for what cannot be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_nets import images

import dqt_core
from dqt_core import __main__ as command
from dqt_core.training.conversion import from_files

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "reproductions" / "results" / "resnet18_cifar" / "embedded.json"
MODEL = """
from parts import Net

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)

def make():
    return Net()

def number():
    return 3

def broken():
    raise KeyError("no such part")
"""
PARTS = """
from small_nets import CourseNet as Net
"""


@pytest.fixture
def place(tmp_path):
    """A model's file with what it imports beside it, its weights, and a folder of images."""
    (tmp_path / "own.py").write_text(MODEL)
    (tmp_path / "parts.py").write_text(PARTS)
    for i, pixels in enumerate(images(9)):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    yield tmp_path
    sys.modules.pop("parts", None)


@pytest.fixture
def model(place):
    return from_files.load_model(f"{place / 'own.py'}:make")[0]


def told(capsys, *arguments):
    """Exit code, and what is said on both outputs."""
    code = command.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_a_model_becomes_a_program_and_a_report(place, model, capsys):
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, place / "w.pth")
    out = place / "new" / "out"
    given = [
        "quantize",
        f"{place / 'own.py'}:make",
        "--weights",
        place / "w.pth",
        "--images",
        place / "images",
    ]
    code, said, _ = told(capsys, *given, "--out", out, "--widths", 4, 8)
    assert code == 0
    program, report = sorted(out.iterdir(), key=lambda path: path.suffix, reverse=True)
    found, figures = dqt_core.load(program), json.loads(report.read_text())
    assert (found.name, found.image_shape) == ("own", (16, 16, 3))
    assert figures["program"] == program.stem
    assert figures["widths"] == ["4", "8"]
    assert figures["images"] == 3
    assert f"{program}: {program.stat().st_size:,} bytes" in said
    assert f"{report}: {report.stat().st_size:,} bytes" in said
    assert "the MEAN and STD of" in said
    assert "9 images of 16 x 16" in said
    own, _ = dqt_core.quantize(
        model, from_files.load_images(place / "images", 9), (0.3, 0.4, 0.5), (0.2, 0.3, 0.4), (4, 8), "own"
    )
    assert own.digest == found.digest


def test_layers_are_fitted_where_it_is_asked_for(place, capsys):
    given = ["quantize", f"{place / 'own.py'}:make", "--images", place / "images", "--widths", 4, 8]
    for more, expected in ([], "rounded once"), (["--layerwise"], "chosen"):
        out = place / f"layerwise{len(more)}"
        assert told(capsys, *given, "--out", out, *more)[0] == 0
        figures = json.loads(next(out.glob("*.json")).read_text())
        assert figures["calibration"]["tried"][-1]["weights"] == expected


def test_what_is_assumed_is_said(place, capsys):
    (place / "own.py").write_text(MODEL.replace("MEAN, STD", "A, B"))
    given = [
        "quantize",
        f"{place / 'own.py'}:make",
        "--images",
        place / "images",
        "--out",
        place,
        "--widths",
        8,
    ]
    code, said, _ = told(capsys, *given)
    assert code == 0
    assert "no --weights: the model is taken with the weights that its function gives it" in said
    assert "ImageNet's; give --mean and --std" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "own.py"}, "names no model; give FILE.py:function"),
        ({"model": "{}/absent.py:make"}, "absent.py does not exist; give the Python file"),
        ({"model": "{}/own.py:absent"}, "has no function absent"),
        ({"model": "{}/own.py:number"}, "returns int, expected a torch.nn.Module"),
        ({"model": "{}/own.py:broken"}, "failed with KeyError: 'no such part'"),
        ({"--weights": "{}/absent.pth"}, "absent.pth does not exist; give a file of weights"),
        ({"--images": "{}/absent"}, "absent is no folder; give one with images"),
        ({"--images": "{}/empty"}, "empty holds no images; they end with .png"),
        ({"--mean": "0.5"}, "--mean and --std belong together"),
        ({"--widths": "9"}, "width"),
        ({"--out": "{}/own.py"}, "File exists"),
    ],
    ids=lambda value: " ".join(*value.items()) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_sentence(place, capsys, change, message):
    (place / "empty").mkdir()
    given = {"model": "{}/own.py:make", "--images": "{}/images", "--out": "{}/out"} | change
    named = [part for name, value in given.items() if name != "model" for part in (name, value.format(place))]
    code, _, said = told(capsys, "quantize", given["model"].format(place), *named)
    assert code == 1
    sentence = said.rpartition("it/s]\n")[2]  # after the bar, where it was begun
    assert message in sentence
    assert sentence.count("\n") == 1
    assert not list(place.rglob("*.safetensors"))


# Weights


SAVED = {
    "plain.pth": lambda state, path: torch.save(state, path),
    "wrapped.pt": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "parallel.pth": lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
    "compiled.bin": lambda state, path: torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, path),
    "safe.safetensors": lambda state, path: save_file(state, path),
    "arrays.npz": lambda state, path: np.savez(path, **{k: v.numpy() for k, v in state.items()}),
    "older.pth": lambda state, path: torch.save(
        {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_weights_are_understood_as_they_are_saved(name, model, tmp_path):
    state = {k: torch.full_like(v, 2) for k, v in model.state_dict().items()}
    SAVED[name](state, tmp_path / name)
    from_files.load_weights(model, tmp_path / name)
    assert all((v == 2).all() for k, v in model.state_dict().items() if "tracked" not in k)


class Payload:
    """What a file of weights must not be able to do."""

    def __reduce__(self):
        return os.mkdir, ("/tmp/dqt_core-executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda state: {"state_dict": {"a": Payload()}},
            "holds more than tensors, and objects are not loaded",
        ),
        (lambda state: [1], "holds list, expected the tensors of a state dict"),
        (lambda state: {}, "holds dict, expected the tensors"),
        (lambda state: {"epoch": 3}, "is no state dict: epoch is no tensor"),
        (
            lambda state: {"a": torch.zeros(1)},
            "it lacks fc.weight, fc.bias, conv1.weight and",
        ),
        (
            lambda state: {f"net.{k}": v for k, v in state.items()},
            "which the model has not; take `net.` off the names of the file",
        ),
        (lambda state: state | {"fc.bias": torch.zeros(3)}, "fc.bias is (3,), the model's is (10,)"),
    ],
)
def test_weights_that_do_not_fit(content, message, model, tmp_path):
    torch.save(content(model.state_dict()), tmp_path / "w.pth")
    with pytest.raises(from_files.FileError) as caught:
        from_files.load_weights(model, tmp_path / "w.pth")
    assert message in str(caught.value)
    assert not Path("/tmp/dqt_core-executed").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half an archive"])
def test_a_damaged_file_of_weights_is_one_sentence(name, content, model, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(from_files.FileError, match=f"{name} (cannot be read|holds)") as caught:
        from_files.load_weights(model, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_array_of_objects_is_not_loaded(model, tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{}], object))
    with pytest.raises(from_files.FileError, match="cannot be read as weights"):
        from_files.load_weights(model, tmp_path / "w.npz")


def test_names_that_lack_what_stands_before_them(tmp_path):
    own = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(own[0].state_dict(), tmp_path / "w.pth")
    with pytest.raises(from_files.FileError, match=r"; put `0\.` before the names of the file$"):
        from_files.load_weights(own, tmp_path / "w.pth")


# Images


def test_images_are_picked_evenly(place):
    every = from_files.load_images(place / "images", 100)
    some = from_files.load_images(place / "images", 3)
    assert every.shape == (9, 16, 16, 3)
    np.testing.assert_array_equal(some, every[[0, 4, 8]])
    np.testing.assert_array_equal(every[:5], images(9)[::2])  # class0, in the order of names


def test_images_of_several_sizes_need_one(place):
    Image.new("RGB", (40, 20), (9, 9, 9)).save(place / "images" / "wide.png")
    with pytest.raises(from_files.FileError, match=r"is 16 x 16 and .*wide.png is 40 x 20; give --size"):
        from_files.load_images(place / "images", 100)
    assert from_files.load_images(place / "images", 100, 24).shape == (10, 24, 24, 3)


def test_the_centre_is_cut(tmp_path):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = from_files.load_images(tmp_path, 1, 28)
    assert found.shape == (1, 28, 28, 3)
    assert (found == 200).all()


def test_grey_images_have_one_channel(place):
    assert from_files.load_images(place / "images", 2, grey=True).shape == (2, 16, 16, 1)


def test_a_damaged_image_is_named(place):
    (place / "images" / "class0" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(from_files.FileError, match=r"bad.jpg cannot be read: .*; take it out of the folder"):
        from_files.load_images(place / "images", 100)


# Verify


def test_the_shipped_program_is_verified(capsys):
    code, said, wrong = told(capsys, "verify", "digits", RECORD)
    assert (code, wrong) == (0, "")
    assert "is a program of record 'resnet18_embedded', by its digest" in said
    assert "logits made again on 100 images: widths 8, 6, 4, 3, 2, controller" in said
    assert said.endswith("all of it is as recorded\n")


def test_costs_alone(capsys):
    code, said, _ = told(capsys, "verify", "digits", RECORD, "--costs-alone")
    assert code == 0
    assert "no logits were compared" in said


def test_a_difference_is_told_and_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr(command.verification.cost, "bitops", lambda *given: np.ones(1))
    code, said, wrong = told(capsys, "verify", "digits", RECORD, "--costs-alone")
    assert code == 1
    assert "as recorded" not in said
    assert wrong.splitlines()[0] == "widths 8: bitops is 1, recorded 567844864"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("absent.safetensors", RECORD), "absent.safetensors does not exist"),
        (("digits", "absent.json"), "absent.json is not a readable record"),
        (("digits", ROOT / "tests" / "mutants.json"), "(the report of `quantize` is none)"),
        (("digits", RECORD.with_name("cifar10.json")), "is of others (cut ad7486fbc218"),
    ],
    ids=lambda value: None if isinstance(value, str) else Path(value[0]).stem + "-" + Path(value[1]).stem,
)
def test_what_cannot_be_verified_is_one_sentence(capsys, given, message):
    code, said, wrong = told(capsys, "verify", *given)
    assert (code, said) == (1, "")
    assert message in wrong
    assert wrong.count("\n") == 1


def test_it_is_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "dqt_core", "verify", "digits", RECORD, "--costs-alone"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "all of it is as recorded" in result.stdout
