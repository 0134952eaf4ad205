"""The ImageNet run in little: a small network on made-up pictures, its record, damage and resumption."""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import torch
from PIL import Image
from small_nets import seeded

from dqt_book.records import imagenet as imagenet_table
from dqt_core import load, models, results
from dqt_core.data import DataError, imagenet, packing
from dqt_core.data.holding import held
from reproductions.imagenet import evaluate as imagenet_run
from reproductions.imagenet import pack as pack_imagenet
from reproductions.imagenet import train as train_imagenet

NAMES = [f"n{i:08}" for i in range(1000)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Four classes of the thousand, six pictures each in both splits, and weights of a narrow ResNet-50."""
    root, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    (root / "synsets.txt").write_text("\n".join(NAMES))
    for split in ("train", "val"):
        for name in NAMES[10:14]:
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                coarse = random.integers(0, 256, (6, 6, 3), np.uint8)
                picture = Image.fromarray(coarse).resize((227, 227))
                picture.save(root / split / name / f"{split}_{name}_{i}.JPEG")
    torch.save(seeded(lambda: models.resnet50(1000, 2)).state_dict(), root / "small.pth")
    return root


def options(tree, out, *more):
    arguments = ["--imagenet-root", str(tree), "--weights", str(tree / "small.pth"), "--out", str(out)]
    arguments += ["--calibration", "16", "--held-out", "8", "--sensitivity", "4", "--rules", "percentile"]
    return imagenet_run.options([*arguments, "--sample", *more])


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(imagenet_run, "NETWORKS", {"resnet50": lambda: models.resnet50(1000, 2)})
    monkeypatch.setattr(imagenet_run, "WIDTHS", (4, 8))
    monkeypatch.setattr(imagenet_run, "CHUNK", 10)


@pytest.fixture(scope="module")
def recorded(tree, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet_run, "NETWORKS", {"resnet50": lambda: models.resnet50(1000, 2)})
        patch.setattr(imagenet_run, "WIDTHS", (4, 8))
        patch.setattr(imagenet_run, "CHUNK", 10)
        patch.setattr(imagenet_run, "BUDGETS", (5,))
        patch.setattr(imagenet_run, "UNIFORM", (8, 4))
        out = tmp_path_factory.mktemp("run")
        return out, results.read(imagenet_run.run(options(tree, out)))


def test_the_record_has_every_row(recorded):
    _, record = recorded
    labels = [row["widths"] for row in record["rows"]]
    assert labels == ["float", "8", "mixed at 5-bit BitOPs", "4"]
    for row in record["rows"]:
        assert row["images"] == 24
        assert results.hits(row).sum() == row["correct"]
    mixed = record["rows"][2]
    assert mixed["bitops"] <= record["budgets"]["5"]
    assert set(mixed["run"]) == {4, 8}
    assert record["calibration"]["images"] == {"steps and tables": 16, "choice": 8, "mixed widths": 4}
    assert 1e8 < record["peak_bytes"] < 4e9


def test_a_row_equals_a_plain_run(recorded, tree):
    _, record = recorded
    one = imagenet_run.Run(options(tree, "unused"))
    program = imagenet_run.lower(one.convert((4, 8)), "resnet50")
    row = record["rows"][1]
    assert program.digest == row["program"]
    images, labels = next(one.files.batches(100))
    assert (program.run(images, 8).classes == labels).tolist() == results.hits(row).tolist()


def test_what_was_evaluated_is_not_run_again(recorded, tree, monkeypatch):
    out, record = recorded
    monkeypatch.setattr(imagenet_run, "UNIFORM", (8, 4))
    next(out.glob("float-*/000010-*.json")).unlink()
    ran = []
    real = imagenet_run._chunk
    monkeypatch.setattr(imagenet_run, "_chunk", lambda *a: ran.append(len(a[1])) or real(*a))
    again = results.read(imagenet_run.run(options(tree, out)))
    assert ran == [10]
    for rows in (again["rows"], record["rows"]):
        for row in rows:
            row.pop("seconds")
    apart = {"provenance": 0, "peak_bytes": 0}
    assert {**again, **apart} == {**record, **apart}


def test_one_folder_keeps_networks_and_selections_apart(tree, tmp_path, monkeypatch):
    ran = []
    real = imagenet_run._chunk
    monkeypatch.setattr(imagenet_run, "_chunk", lambda *a: ran.append(len(a[1])) or real(*a))
    one = imagenet_run.Run(options(tree, tmp_path, "--limit", "15"))
    one.float_row()
    other = imagenet_run.Run(options(tree, tmp_path))
    other.float_row()
    assert ran == [10, 5, 10, 4], "the ten images that both have are run once"
    changed = imagenet_run.Run(options(tree, tmp_path))
    with torch.no_grad():
        changed.float_net.fc.bias[3] += 1000
    changed.float_row()
    assert ran[4:] == [10, 10, 4]
    assert changed.rows[0]["correct"] == int((changed.files.labels == 3).sum())


@pytest.fixture
def evaluated(tree, tmp_path, monkeypatch):
    """A copy of the tree whose float network was evaluated, and the numbers of images of later chunks."""
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    imagenet_run.Run(options(root, tmp_path / "out")).float_row()
    ran, real = [], imagenet_run._chunk
    monkeypatch.setattr(imagenet_run, "_chunk", lambda *a: ran.append(len(a[1])) or real(*a))
    return root, tmp_path / "out", ran


def smaller_copy(root, out):
    for path in (root / "val").rglob("*.JPEG"):
        Image.open(path).resize((225, 225)).save(path)


def labelled_anew(root, out):
    (root / "synsets.txt").write_text("\n".join([*NAMES[1:], "n00001000"]))


def flipped_bit(root, out):
    path = next(out.glob("float-*/000010-*.json"))
    path.write_text(path.read_text().replace("false", "true", 1))


def cut_off(root, out):
    path = next(out.glob("float-*/000010-*.json"))
    path.write_text(path.read_text()[:-9])


@pytest.mark.parametrize(
    ("change", "more", "again"),
    [
        (smaller_copy, (), [10, 10, 4]),
        (labelled_anew, (), [10, 10, 4]),
        (lambda *_: None, ("--pads-after",), [10, 10, 4]),
        (flipped_bit, (), [10]),
        (cut_off, (), [10]),
        (lambda *_: None, (), []),
    ],
)
def test_what_was_evaluated_is_this_runs_and_whole(evaluated, change, more, again, capsys):
    root, out, ran = evaluated
    kept = {path: json.loads(path.read_text())["hits"] for path in out.rglob("float-*/*.json")}
    change(root, out)
    one = imagenet_run.Run(options(root, out, *more))
    one.float_row()
    assert ran == again
    if again == [10]:
        assert "000010-" in (said := capsys.readouterr().err)
        assert "is damaged: it is worked out again" in said
        assert {path: json.loads(path.read_text())["hits"] for path in kept} == kept


def test_chunks_without_an_image_are_refused_where_none_may_be_left_out(evaluated, tmp_path):
    root, _, _ = evaluated
    bad = imagenet_run.Run(options(root, tmp_path / "new")).files.paths[12]
    bad.write_bytes(bad.read_bytes()[:500])
    imagenet_run.Run(options(root, tmp_path / "new", "--skip-unreadable")).float_row()
    with pytest.raises(DataError, match=rf"000010-.* is without {bad.name}, which could not be decoded"):
        imagenet_run.Run(options(root, tmp_path / "new")).float_row()


def test_an_evaluation_killed_at_any_moment_ends_with_the_same_record(recorded, tree, tmp_path, monkeypatch):
    """No image that was evaluated before a kill is evaluated again, but for those of one file."""
    monkeypatch.setattr(imagenet_run, "UNIFORM", (8, 4))
    out, log = tmp_path / "out", tmp_path / "log"
    real = imagenet_run._chunk

    def logged(classify, files, go_on):
        with log.open("a") as file:
            file.write(f"{len(files)}\n")
        return real(classify, files, go_on)

    monkeypatch.setattr(imagenet_run, "_chunk", logged)
    random = np.random.default_rng()
    kills = sorted(random.integers(1, 12, 2).tolist())
    for files in kills:
        process = multiprocessing.get_context("fork").Process(
            target=imagenet_run.run, args=[options(tree, out)]
        )
        process.start()
        while process.is_alive() and len([*out.rglob("*.json")]) < files:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    again = results.read(imagenet_run.run(options(tree, out)))
    for rows in (again["rows"], recorded[1]["rows"]):
        for row in rows:
            row.pop("seconds", None)
    apart = {"provenance": 0, "peak_bytes": 0}
    assert {**again, **apart} == {**recorded[1], **apart}, kills
    evaluated = sum(map(int, log.read_text().split()))
    assert 4 * 24 <= evaluated <= 4 * 24 + 10 * len(kills), kills


def test_two_evaluations_in_one_folder(tree, tmp_path):
    with (
        held(tmp_path / "lock", "evaluating"),
        pytest.raises(DataError, match=rf"process {os.getpid()} on .* is evaluating into {tmp_path}; wait"),
    ):
        imagenet_run.run(options(tree, tmp_path))


def test_a_full_disk_leaves_what_was_evaluated(evaluated, capsys):
    root, out, ran = evaluated
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    next(out.glob("float-*/000020-*.json")).unlink()
    kept = {path: path.read_bytes() for path in out.rglob("*.json")}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            imagenet_run.Run(options(root, out)).float_row()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    imagenet_run.Run(options(root, out)).float_row()
    assert ran == [4, 4]


def test_a_damaged_image_stops_the_run_by_name_or_is_left_out_and_named(tree, tmp_path):
    one = imagenet_run.Run(options(tree, tmp_path))
    bad = one.files.paths[12]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:500])
    try:
        with pytest.raises(DataError, match=rf"{bad} .* cannot be decoded"):
            one.float_row()
        assert len(list(tmp_path.glob("float-*/000000-*.json"))) == 1
        assert not list(tmp_path.glob("float-*/000010-*"))
        one = imagenet_run.Run(options(tree, tmp_path, "--skip-unreadable"))
        one.float_row()
    finally:
        bad.write_bytes(whole)
    assert one.rows[0]["images"] == 23
    assert one.rows[0]["unreadable"] == [bad.name]


def test_too_few_calibration_images(tree, tmp_path):
    with pytest.raises(DataError, match=r"40 images were asked for, .*train has 24"):
        imagenet_run.Run(options(tree, tmp_path, "--calibration", "32"))


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_weights_of_other_files(tree, tmp_path, kind):
    from safetensors.torch import save_file

    state = torch.load(tree / "small.pth", weights_only=True)
    path = tmp_path / f"small.{kind}"
    if kind == "npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        save_file(state, path)
    one, other = (imagenet_run.load_float("resnet50", p).state_dict() for p in (path, tree / "small.pth"))
    assert all(torch.equal(one[name], other[name]) for name in state)


# What was recorded

RECORDS = Path(__file__).resolve().parents[1] / "reproductions" / "results"


@pytest.mark.parametrize("network", ["resnet50", "mobilenet_v2"])
def test_a_record_holds_together(network):
    record = results.read(RECORDS / "resnet50_imagenet" / f"{network}.json")
    assert len(record["provenance"]["commit"]) == 40, "recorded from files that no commit holds"
    labels = ["float", "8", "6", "4", "mixed at 5-bit BitOPs", "5"]
    assert [row["widths"] for row in record["rows"]] == labels[: len(record["rows"])]
    assert len(record["rows"]) > 1
    assert record["peak_bytes"] < 4e9, "lowering and evaluating stay below 4 GB"
    for row in record["rows"]:
        assert row["images"] == record["dataset"]["images"]
        assert results.hits(row).sum() == row["correct"]
        assert row["unreadable"] == []
    mixed = [row for row in record["rows"] if row["widths"].startswith("mixed")]
    assert all(row["bitops"] <= record["budgets"]["5"] for row in mixed)


def test_the_short_training_is_recorded_on_the_same_images():
    record = results.read(RECORDS / "imagenet_short" / "resnet50.json")
    other = results.read(RECORDS / "imagenet_short" / "untrained" / "resnet50.json")
    assert len(record["provenance"]["commit"]) == 40, "recorded from files that no commit holds"
    assert record["dataset"]["files"] == other["dataset"]["files"]
    whole = results.read(RECORDS / "resnet50_imagenet" / "resnet50.json")
    count = other["dataset"]["images"]
    assert count == whole["dataset"]["images"] // 2
    for row in other["rows"]:
        if not row["widths"].startswith("mixed"):  # whose widths each run finds for itself
            (same,) = (r for r in whole["rows"] if r["widths"] == row["widths"])
            assert row.get("program") == same.get("program")
            assert np.array_equal(results.hits(row), results.hits(same)[:count]), "the first half"
    assert [row["widths"] for row in record["rows"]] == ["8", "4"]
    assert all(results.hits(row).sum() == row["correct"] for row in record["rows"])


# Training


def train_options(tree, out, *more):
    arguments = ["--imagenet-root", str(tree), "--weights", str(tree / "small.pth"), "--out", str(out)]
    arguments += ["--widths", "4", "8", "--epochs", "2", "--batch-size", "8", "--microbatch", "4"]
    arguments += ["--size", "64", "--workers", "0", "--calibration", "8", "--recalibration", "24"]
    arguments += ["--precision", "no", "--checkpoint-every", "2", "--restore-statistics", "--sample"]
    return train_imagenet.options([*arguments, *more])


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet_run, "NETWORKS", {"resnet50": lambda: models.resnet50(1000, 2)})
        out = tmp_path_factory.mktemp("trained")
        return out, results.read(train_imagenet.run(train_options(tree, out)))


def test_a_trained_network_is_lowered_evaluated_and_recorded(trained, tree):
    out, record = trained
    assert [row["widths"] for row in record["rows"]] == ["8", "4"]
    assert record["training"]["steps"] == 2 * (24 // 8)
    assert record["training"]["recipe"]["lr"] == pytest.approx(0.01 * 8 / 256)
    assert record["training"]["loss"]["first tenth"].keys() == {"consistency"}
    program = load(next(out.glob("*.safetensors")))
    assert program.digest == record["programs"]["trained"]
    files = imagenet.open_split(tree, "val", is_sample=True)
    images, labels = next(files.sample(len(files)).batches(24))
    hits = program.run(images, 4).classes == labels
    assert hits.tolist() == results.hits(record["rows"][1]).tolist()
    assert record["rows"][1]["bitops"] == imagenet_run.cost.bitops(program, 4)[0]


def test_training_from_shards_is_the_same_training(trained, tree, tmp_path):
    arguments = [
        "--imagenet-root",
        str(tree),
        "--out",
        str(tmp_path / "shards"),
        "--per-shard",
        "10",
        "--sample",
    ]
    pack_imagenet.run(pack_imagenet.options(arguments))
    again = train_options(tree, tmp_path / "run", "--packed", str(tmp_path / "shards"))
    assert results.read(train_imagenet.run(again))["programs"] == trained[1]["programs"]


def notebook(folder, profile):
    """Names that the notebook's other cells give to those of the live run, and these cells."""
    cells = [
        c.source
        for c in jupytext.read(Path(train_imagenet.__file__).parents[1] / "resnet50_imagenet.py").cells
    ]
    names = {"folder": folder, "results": results, "training_facts": imagenet_table.training_facts}
    names |= {"display": print, "show": SimpleNamespace(Table=lambda head, rows: rows)}
    exec(next(cell for cell in cells if cell.startswith("profile = ")), names)
    names["profile"] = profile
    return names, [
        next(c for c in cells if c.startswith(p))
        for p in ('if profile != "embedded"', 'if profile == "train"')
    ]


def test_the_notebook_evaluates_with_its_parameters(tree, tmp_path, monkeypatch):
    seen, shown = [], []
    record = RECORDS / "resnet50_imagenet" / "resnet50.json"
    monkeypatch.setattr(imagenet_run, "run", lambda options: seen.append(options) or record)
    names, cells = notebook(tmp_path, "evaluate")
    given = {"imagenet_root": str(tree), "weights": "a.npz", "limit": 7, "skip_unreadable": True}
    names |= {**given, "shown": shown.append}
    for cell in cells:
        exec(cell, names)
    assert {key: getattr(seen[0], key) for key in given} == given
    assert (seen[0].sample, seen[0].calibration) == (False, 64)
    assert seen[0].out == str(tmp_path)
    assert shown == [results.read(record)]


def test_the_notebook_trains_with_its_parameters(tree, tmp_path, capsys):
    names, cells = notebook(tmp_path / "runs", "train")
    names |= {"imagenet_root": str(tree), "weights": str(tree / "small.pth")}
    names |= {"is_sample": True, "epochs": 1, "batch_size": 8, "trained_widths": [4], "limit": 6}
    names |= {"calibration_images": 8}
    for cell in cells:
        exec(cell, names)
    assert "4: " in capsys.readouterr().out
    assert names["live"]["training"]["steps"] == 3
    assert len(list((tmp_path / "runs").glob("*.safetensors"))) == 1


def test_too_few_images_for_recalibration_are_seen_before_training(tree, tmp_path):
    with pytest.raises(DataError, match=r"--recalibration 99: .*train has 24 images; ask for fewer"):
        train_imagenet.run(train_options(tree, tmp_path, "--recalibration", "99"))
    assert not list(tmp_path.iterdir())


def test_shards_of_other_classes_are_seen_before_training(tree, tmp_path):
    files = imagenet_run.imagenet.open_split(tree, "train", is_sample=True).part(slice(4))
    other = dataclasses.replace(files, classes=tuple(str(i) for i in range(1000)))
    packing.pack(other, tmp_path / "shards")
    arguments = train_options(tree, tmp_path / "run", "--packed", str(tmp_path / "shards"))
    with pytest.raises(
        DataError, match=r"class 0 is '0' in .*shards and 'n00000000' in .*val; name the folders"
    ):
        train_imagenet.run(arguments)
    assert not (tmp_path / "run").exists()


def test_a_controller_is_trained_for_a_budget(tree, tmp_path):
    options = train_options(tree, tmp_path, "--target-width", "4", "--distillation", "0", "--limit", "6")
    record = results.read(train_imagenet.run(options))
    row = record["rows"][-1]
    assert (row["widths"], row["images"]) == ("controller", 6)
    assert 4 <= row["mean_width"] <= 8
    assert row["bitops"] > record["rows"][1]["bitops"], "the controller costs something itself"
    assert record["training"]["loss"]["last tenth"].keys() == {"consistency", "task", "cost"}
