"""Images for long trainings: alike packed or not, and with any number of workers; damage is named."""

import dataclasses
import gc
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_nets import assert_equal_states, state
from torch import nn

from dqt_core import train
from dqt_core.data import DataError, imagenet, packing, shards, streaming

NAMES = ["n00000001", "n00000005", "n00000009"]
COUNT = 12


@pytest.fixture
def files(tmp_path):
    """Four pictures of each of three classes."""
    random = np.random.default_rng(0)
    for name in NAMES:
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(4):
            coarse = random.integers(0, 256, (5, 7, 3), np.uint8)
            suffix = "png" if i == 3 else "JPEG"
            Image.fromarray(coarse).resize((260 + 10 * i, 250)).save(folder / f"{name}_{i}.{suffix}")
    return imagenet.open_split(tmp_path, "train", class_count=3)


@pytest.fixture
def packed(files, tmp_path):
    return packing.pack(files, tmp_path / "packed", per_shard=5)


def keys(count=COUNT, size=4, epoch=0):
    order = torch.arange(count)
    return [(epoch, order[start : start + size]) for start in range(0, count, size)]


def served(stored, wanted=None, **options):
    stream = streaming.ImageStream(stored, size=32, **options)
    images, labels = zip(*stream.batches(keys() if wanted is None else wanted), strict=True)
    return torch.cat(images), torch.cat(labels)


def damage(files, i):
    """Cut a file short; returns its name."""
    files.paths[i].write_bytes(files.paths[i].read_bytes()[:300])
    return files.paths[i].name


# Packed


def test_packed_images_are_the_files(files, packed):
    assert len(packed) == COUNT
    assert sorted(path.name for path in packed.folder.iterdir()) == [
        "000000.tar", "000001.tar", "000002.tar", "index.npz",
    ]  # fmt: skip
    original = {
        path.stem: (path.read_bytes(), label) for path, label in zip(files.paths, files.labels, strict=True)
    }
    found = {
        packed.name(i).split("/")[-1].split(".")[0]: (packed.read(i), packed.labels[i]) for i in range(COUNT)
    }
    assert found == original
    assert packed.labels.tolist() == files.labels.tolist()
    assert (np.diff(packed.places[:, :2] @ [10**9, 1]) < 0).any(), "the shards hold them in random order"
    assert packed.classes == tuple(NAMES)
    assert packed.left_out == {}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them to Python
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_itself_reads_the_shards(packed):
    import webdataset

    urls = [str(path) for path in sorted(packed.folder.glob("*.tar"))]
    read = {
        sample["__key__"]: (int(sample["cls"]), sample.get("jpg") or sample["png"])
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    }
    gc.collect()
    expected = {
        packed.names[i].decode().rsplit(".", 1)[0]: (packed.labels[i], packed.read(i)) for i in range(COUNT)
    }
    assert read == expected


def test_packing_again_gives_the_same_bytes(files, packed, tmp_path):
    again = packing.pack(files, tmp_path / "again", per_shard=5, workers=2)
    for path in sorted(packed.folder.glob("*.tar")):
        assert (again.folder / path.name).read_bytes() == path.read_bytes()


def test_the_training_does_not_see_how_images_are_stored(files, packed):
    for one, other in zip(served(packed), served(files), strict=True):
        assert torch.equal(one, other)


def test_an_unreadable_image_is_left_out_of_the_shards_and_named(files, tmp_path):
    name = damage(files, 5)
    packed = packing.pack(files, tmp_path / "packed")
    assert len(packed) == COUNT - 1
    assert [path.rsplit("/", 1)[1] for path in packed.left_out] == [name]
    assert shards.open_packed(packed.folder).left_out == packed.left_out


def test_nothing_to_pack(files, tmp_path):
    for i in range(COUNT):
        damage(files, i)
    with pytest.raises(DataError, match=r"none of 12 images can be decoded: .*JPEG .*, \.\.\."):
        packing.pack(files, tmp_path / "packed")


def test_a_folder_is_not_written_over(files, packed):
    with pytest.raises(DataError, match="packed exists; give a new folder"):
        packing.pack(files, packed.folder)


def test_an_interrupted_packing_is_not_whole(files, packed, tmp_path):
    with pytest.raises(DataError, match=r"index.npz is missing: make it with: python -m repro"):
        shards.open_packed(tmp_path / "nowhere")
    packed.folder.rename(tmp_path / "other.unfinished")
    with pytest.raises(DataError, match=r"index.npz is missing: packing was interrupted; start it again"):
        shards.open_packed(tmp_path / "other")


@pytest.mark.parametrize("kept", [None, 1000])
def test_a_shard_that_is_missing_or_short_is_named(packed, kept):
    shard = packed.folder / "000001.tar"
    content = shard.read_bytes()
    shard.unlink()
    if kept:
        shard.write_bytes(content[:kept])
    with pytest.raises(
        DataError, match=rf"000001.tar has {kept or 0} bytes, its 5 images need \d+; copy it again"
    ):
        shards.open_packed(packed.folder)


# Streams


def test_crops_depend_on_seed_epoch_and_image_alone(files):
    images, labels = served(files)
    assert (images.shape, images.dtype) == ((COUNT, 32, 32, 3), torch.uint8)
    assert labels.tolist() == files.labels.tolist()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = torch.get_rng_state()
        backwards, _ = served(files, [(0, torch.arange(COUNT - 1, -1, -1))])
        assert torch.equal(torch.get_rng_state(), before), "the training's own draws are left alone"
    assert torch.equal(backwards.flip(0), images)
    for other in (served(files, keys(epoch=1))[0], served(files, seed=1)[0]):
        assert not any(torch.equal(one, two) for one, two in zip(images, other, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_serve_the_same_in_the_same_order(packed, workers):
    for one, other in zip(served(packed), served(packed, workers=workers), strict=True):
        assert torch.equal(one, other)


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3))


def fitted(stored, out=None, steps=6, every=2, **options):
    stream = streaming.ImageStream(stored, size=32, **options)
    recipe = train.Recipe(steps / 3, lr=0.1, batch_size=4, microbatch=2, precision="no")
    net = tiny()
    return net, train.fit(net, stream, recipe, out=out, checkpoint_every=every)


def test_a_stream_trains_resumes_and_repeats(packed, tmp_path):
    net, history = fitted(packed)
    folder, seen = tmp_path / "run", []

    class Stopping(shards.Packed):
        def read(self, i):
            seen.append(i)
            if len(seen) == 4 * 5 + 1:
                raise KeyboardInterrupt
            return super().read(i)

    with pytest.raises(KeyboardInterrupt):
        fitted(Stopping(**vars(packed)), folder)
    assert (folder / "last").is_dir()
    again, history_again = fitted(packed, folder, workers=2)
    assert history_again == history
    assert_equal_states(state(again), state(net))


def train_until_a_worker_dies(stored, folder):
    """The only worker is killed at the first image of the last batch, while the run waits for it."""

    def steps():
        try:
            return len(json.loads((folder / "run" / "last" / "run.json").read_text())["history"])
        except (OSError, ValueError):  # the two folders are just being swapped
            return 0

    class Mortal(shards.Packed):
        def read(self, i):
            seen.append(i)
            if len(seen) == 4 * 5 + 1:
                # until then the run takes what was read before, of a worker that has to be there
                while steps() < 5:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(i)

    seen = []
    fitted(Mortal(**vars(stored)), folder / "run", every=1, workers=1)


def test_a_killed_worker_stops_the_run_which_goes_on_from_its_checkpoint(packed, tmp_path):
    """In a process of its own: torch raises wherever the signal finds it, in pytest too."""
    net, _ = fitted(packed)
    (tmp_path / "packed.pickle").write_bytes(pickle.dumps(packed))
    code = (
        "import pathlib, pickle\nimport test_streaming\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "stored = pickle.loads((folder / 'packed.pickle').read_bytes())\n"
        "test_streaming.train_until_a_worker_dies(stored, folder)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert re.search(
        r"RuntimeError: DataLoader worker .* (killed by signal|exited unexpectedly)", done.stderr
    )
    again, history = fitted(packed, tmp_path / "run")
    assert len(history) == 6
    assert_equal_states(state(again), state(net))


def test_an_unreadable_image_is_replaced_and_named(files, tmp_path, capsys):
    whole, labels = served(files)
    name = damage(files, 5)
    log = tmp_path / "logs" / "unreadable.txt"
    images, other = served(files, log=log)
    assert other.tolist() == labels.tolist()  # image 6 has the class of image 5
    kept = [i for i in range(COUNT) if i != 5]
    assert torch.equal(images[kept], whole[kept])
    assert torch.equal(images[5], whole[6])
    line = log.read_text()
    assert re.fullmatch(rf"unreadable, replaced by the next image: .*{name}: .+\n", line)
    assert line in capsys.readouterr().out
    served(files, keys() * 3, unreadable_limit=1)  # one file counts once


def test_a_name_that_no_terminal_shows_is_named_in_one_line(files, tmp_path, monkeypatch):
    damage(files, 5)
    odd = os.fsdecode(b"two\nlines \xff.jpg")
    path = files.paths[5].rename(files.paths[5].with_name(odd))
    odd_files = dataclasses.replace(files, paths=(*files.paths[:5], path, *files.paths[6:]))
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", strict)
    served(odd_files, log=tmp_path / "log")
    assert "/two_lines _.jpg: " in (tmp_path / "log").read_text(encoding="utf-8")
    with pytest.raises(DataError, match=r"two_lines _\.jpg \(.*; get them again"):
        served(odd_files, unreadable_limit=0)


def test_too_many_unreadable_images_stop_the_run(files):
    damage(files, 3)
    name = damage(files, 8)
    message = (
        rf"2 images cannot be decoded, at most 1 were allowed: .*{name} .* goes on from its last checkpoint"
    )
    with pytest.raises(DataError, match=message):
        served(files, unreadable_limit=1)


def test_no_image_can_be_decoded(files):
    for i in range(COUNT):
        damage(files, i)
    with pytest.raises(DataError, match="none of 12 images can be decoded"):
        served(files)


def test_labels_of_a_stream_are_class_numbers(files):
    object.__setattr__(files, "labels", files.labels + 0.5)
    with pytest.raises(DataError, match="/train: labels are float64"):
        streaming.ImageStream(files)


# What calibration takes


def test_central_images_are_those_of_evaluation(files):
    found = np.concatenate(list(streaming.central(files, COUNT, batch_size=5)))
    order = np.random.default_rng(0).permutation(COUNT)
    expected, _ = next(files.part(order).batches(COUNT))
    np.testing.assert_array_equal(found, expected)
    assert [len(part) for part in streaming.central(files, 7, batch_size=5)] == [5, 2]


def test_too_few_or_damaged_images_for_calibration(files):
    with pytest.raises(DataError, match=r"13 images were asked for, .*/train has 12; ask for fewer"):
        list(streaming.central(files, 13))
    name = damage(files, 2)
    with pytest.raises(DataError, match=rf"{name} cannot be decoded: .* get the file again"):
        list(streaming.central(files, COUNT))
    assert sum(map(len, streaming.central(files, 11, go_on=True))) == 11
    with pytest.raises(DataError, match=r"1 images are missing: .*/train has 12, and too many"):
        list(streaming.central(files, COUNT, go_on=True))
