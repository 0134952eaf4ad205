"""Post-training quantization in one call, and its report."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import MEAN, STD, CourseNet, digits, images, model, seeded

from dqt_core import allocate, convert, cost, lower, models, quantize
from dqt_core.evaluation import report
from dqt_core.training import calibration
from reproductions.cifar10.train import load_float

ROOT = Path(__file__).resolve().parents[1]

WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def course():
    return seeded(CourseNet)


@pytest.fixture(scope="module")
def made(course):
    return quantize(course, images(12), MEAN, STD, WIDTHS, "course", progress=False)


def test_it_is_the_five_calls(course, made):
    """The chapter's: convert, round once, steps, statistics, lower; here with what was taken."""
    program, told = made
    own = [images(12)[np.arange(12) % 4 != 0]]
    net = convert(course, own[0], MEAN, STD, WIDTHS, controller=False)
    calibration.round_once(net)
    calibration.set_steps(net, own, told.calibration["rule"])
    corrected = copy.deepcopy(net)
    calibration.correct_norms(corrected, own)
    for layer, other in zip(net.switch_layers, corrected.switch_layers, strict=True):
        for k, kind in enumerate(told.calibration["tables"].values()):
            if kind == "corrected" and len(layer.norms):
                layer.norms[k] = other.norms[k]
    assert lower(net, "course").digest == program.digest


def test_every_way_is_tried_and_the_best_is_taken(made):
    _, told = made
    tried = told.calibration["tried"]
    assert [(t["weights"], t["rule"], t["tables"]) for t in tried] == [
        ("rounded twice", "error", "kept"),
        *(("rounded once", rule, tables) for rule in calibration.RULES for tables in ("kept", "corrected")),
    ]
    scores = {}
    for rule in calibration.RULES:
        kept, moved = (t["divergence"].values() for t in tried[1:] if t["rule"] == rule)
        scores[rule] = np.log(np.minimum(list(kept), list(moved))).mean()
    assert told.calibration["rule"] == min(scores, key=scores.get)
    kept, moved = (t["divergence"] for t in tried[1:] if t["rule"] == told.calibration["rule"])
    for width, kind in told.calibration["tables"].items():
        assert kind == ("corrected" if moved[width] < kept[width] else "kept")


def test_the_report_is_of_the_program_on_held_out_images(course, made):
    program, told = made
    held_out = images(12)[::4]
    assert (told.images, told.widths, told.layers) == (3, ("2", "4", "8"), program.layers)
    with torch.no_grad():
        net = convert(course, held_out, MEAN, STD, WIDTHS, controller=False)
        expected = course(calibration.inputs(net, held_out)).numpy()
    for k, width in enumerate(WIDTHS):
        found = program.run(held_out, width)
        assert told.agreement[k] == (found.classes == expected.argmax(1)).mean()
        assert told.bitops[k] == cost.bitops(program, width)[0]
        assert told.weight_bytes[k] == cost.weight_bytes(program, width)[0]
    np.testing.assert_allclose(told.by_layer, allocate.divergences(program, held_out), rtol=1e-9)
    assert told.divergence[0] > told.divergence[2] >= 0
    assert max(map(max, told.by_layer)) > 0


def test_the_text_names_each_width_and_the_layer_that_hurts_most(made):
    _, told = made
    first, second = told.worst()
    assert told.by_layer[told.layers.index(first)][0] >= told.by_layer[told.layers.index(second)][0]
    lines = str(told).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["8", "4", "2"]
    assert lines[-2].split()[0] == first
    assert json.loads(json.dumps(told.as_dict()))["by_layer"] == [list(row) for row in told.by_layer]


def test_a_long_network_shows_its_worst_layers_alone():
    program = lower(
        convert(models.resnet18(10, 8, small_images=True).eval(), images(2, 32), MEAN, STD, (4, 8))
    )
    told = report.report(program, images(2, 32), np.zeros((2, 10)), 1)
    assert "(the first 10 of 19; `by_layer` holds all)" in str(told)
    assert len(str(told).splitlines()) == 2 + 2 + 1 + 1 + 2 + 1 + 10


def test_pairs_of_widths(course):
    program, told = quantize(
        course, images(4), MEAN, STD, [(4, 8), (6, 6)], rules=["largest"], progress=False
    )
    assert told.widths == ("4/8", "6") == report.labels(program.choices)
    assert len(told.calibration["tried"]) == 3


def test_the_bar_ends_where_it_says(course, capsys):
    quantize(course, images(12), MEAN, STD, WIDTHS)
    assert "8/8" in capsys.readouterr().err


def test_digits_keep_their_classes():
    data = digits()
    path = next((ROOT / "reproductions" / "checkpoints").glob("resnet18_embedded_float-*"))
    net = load_float(path, len(data.classes))
    _, told = quantize(net, data.train_images[:128], data.mean, data.std, (4, 8), progress=False)
    assert told.agreement[-1] > 0.95
    assert told.divergence[0] > 10 * told.divergence[1]


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": images(1)}, "quantize needs 2 images or more"),
        (
            {"images": images(4).astype(np.float32)},
            r"^images must be uint8 .*, got float32 [^;]*; give the bytes from before the normalisation, or "
            r"np.rint\(255 \* x\).astype\(np.uint8\) of floats x between 0 and 1$",
        ),
        (
            {"images": images(4).astype(int)},
            r"got int64 [^;]*; give images.astype\(np.uint8\) of numbers 0..255$",
        ),
        (
            {"images": torch.from_numpy(images(4)).permute(0, 3, 1, 2)},
            r"got torch.uint8 [^;]*; give a NumPy array, images.permute\(0, 2, 3, 1\).numpy\(\) of a torch",
        ),
        (
            {"images": images(4)[..., 0]},
            r"got uint8 [^;]*; give images\[..., None\] of grey images, images\[None\] of one image$",
        ),
        ({"images": images(4)[..., None]}, "; give one axis for each of images, rows, columns and channels$"),
        ({"images": [1, 2]}, "images must be uint8 .*; give a NumPy array$"),
        ({"images": images(4)[:0]}, "there are no calibration images"),
        ({"std": (0, 1, 1)}, "std positive"),
        ({"widths": ()}, "widths must be one or more"),
        ({"widths": 4}, "widths must be one or more"),
        ({"rules": ()}, "there is no rule of steps; give one or more of"),
        ({"rules": ("best",)}, "rule 'best' is unknown"),
        ({"model": model(lambda net, x: net.tail(net.head(x)).softmax(1))()}, "no integer form"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_sentence(course, change, message):
    given = {"model": course, "images": images(4), "mean": MEAN, "std": STD, "progress": False} | change
    with pytest.raises(ValueError, match=message) as caught:
        quantize(**given)
    assert "\n" not in str(caught.value)


def test_a_width_that_the_report_lacks(made):
    with pytest.raises(ValueError, match="width 3 is not in the report; it holds 2, 4, 8"):
        made[1].worst(3)


def test_logits_of_other_images_are_refused(made):
    with pytest.raises(ValueError, match=r"logits are \(3, 10\), the program makes \(4, 10\)"):
        report.report(made[0], images(4), np.zeros((3, 10)))
