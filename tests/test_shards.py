"""Packed images: any legal folder can be packed, once or twice, and every damage is noticed by name."""

import gc
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dqt_core.data import DataError, decoding, imagenet, packing, shards, streaming
from reproductions.imagenet import pack as command


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (230, 240, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    return path


def opened(root, names, classes=1):
    for seed, name in enumerate(names):
        picture(root / "train" / name, seed)
    return imagenet.open_split(root, "train", class_count=classes)


@pytest.fixture
def files(tmp_path):
    return opened(tmp_path, [f"n0000000{i % 3}/{i}.jpg" for i in range(9)], 3)


@pytest.fixture
def packed(files, tmp_path):
    return packing.pack(files, tmp_path / "packed", per_shard=4)


# Any legal folder


FOLDERS = {
    "one stem, two kinds": ["c/x.jpg", "c/x.png", "c/x.jpeg", "c/x.JPEG", "c/X.jpg"],
    "dots and dashes": ["c/a.b.jpg", "c/a_b.jpg", "c/a.b.png", "c/a_b-2.jpg", "c/..jpg.jpg", "c/.a.jpg"],
    "class with dots": ["c.1/a.jpg", "c.1/a.b.jpg"],
    "class as a tar's own notes": ["__c__/a.jpg", "__c__/__a__.jpg"],
    "blanks and signs": ["c d/a b.jpg", "c d/100%d.jpg", "c d/{1..3}.jpg", "c d/a;b|c.jpg", "c d/-a.jpg"],
    "other letters": ["ç/é.jpg", "ç/日本.png", "ç/e\u0301.jpg"],
    "no letters": [
        "c/a\nb.jpg",
        "c/a\tb.jpg",
        os.fsdecode(b"c/\xff\xfe.jpg"),
        os.fsdecode(b"c/\xfe\xff.jpg"),
    ],
    "long": [f"{'c' * 200}/{'a' * 240}.jpg", f"{'c' * 200}/{'a' * 240}.png"],
    "called like a label": ["c/a.cls.jpg", "c/cls.jpg", "c/a.jpg.png"],
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them to Python
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", FOLDERS)
def test_any_legal_folder_gives_shards_that_can_be_read(tmp_path, kind):
    import webdataset

    files = opened(tmp_path, FOLDERS[kind])
    packed = packing.pack(files, tmp_path / "packed 1%d.x:y", per_shard=2)
    assert [packed.read(i) for i in range(len(packed))] == [files.read(i) for i in range(len(files))]
    assert len({packed.name(i) for i in range(len(packed))}) == len(files)
    names = "".join(map(packed.name, range(len(packed))))
    assert names.isprintable()
    urls = [f"file:{path}" for path in sorted(packed.folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()
    found = sorted(sample.get("jpg") or sample["png"] for sample in samples)
    assert found == sorted(files.read(i) for i in range(len(files)))


def test_packing_twice_into_one_place_in_one_process(tmp_path):
    for seed in (0, 50):
        root = tmp_path / str(seed)
        for i in range(4):
            picture(root / "train" / "c" / f"{i}.jpg", seed + i)
        files = imagenet.open_split(root, "train", class_count=1)
        shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        packed = packing.pack(files, tmp_path / "packed")
        assert [packed.read(i) for i in range(4)] == [files.read(i) for i in range(4)]


@pytest.mark.parametrize("many", [1, 5])
def test_an_interrupted_packing_leaves_nothing_that_is_read_twice(files, tmp_path, monkeypatch, many):
    """It had other shards, more of them or larger ones, than the next one."""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            packing.pack(files, tmp_path / "packed", per_shard=many)
    with pytest.raises(DataError, match="packing was interrupted; start it again"):
        shards.open_packed(tmp_path / "packed")
    packed = packing.pack(files, tmp_path / "packed", per_shard=4)
    assert [packed.read(i) for i in range(len(packed))] == [files.read(i) for i in range(len(files))]
    assert len(list(packed.folder.glob("*.tar"))) == 3
    assert not list(tmp_path.glob("*.unfinished*"))


def _slowly(path):
    time.sleep(0.1)
    return ""


def test_a_packing_that_is_killed_leaves_no_process_and_no_shards(files, tmp_path, monkeypatch, capsys):
    expected = packing.pack(files, tmp_path / "expected", per_shard=1)
    moments = np.random.default_rng().uniform(0, 0.4, 3).round(2).tolist()
    for moment in moments:
        with monkeypatch.context() as patch:
            patch.setattr(packing, "_check", _slowly)
            killed = multiprocessing.get_context("fork").Process(
                target=packing.pack, args=[files, tmp_path / "packed", 1]
            )
            killed.start()
        listed = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
        while not (children := listed.read_text().split()):
            time.sleep(0.01)
        time.sleep(moment)
        killed.kill()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, moments
        assert not (tmp_path / "packed").exists()
        end = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{child}").exists() for child in children), "they wait for ever"
    packed = packing.pack(files, tmp_path / "packed", per_shard=1)
    assert "files of an interrupted packing are removed" in capsys.readouterr().err
    for path in expected.folder.iterdir():
        assert (packed.folder / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it to Python
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_no_shards(files, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"cannot be written to .*packed.unfinished \(File too large\); make"
        ):
            packing.pack(files, tmp_path / "packed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert not (tmp_path / "packed").exists()
    assert len(packing.pack(files, tmp_path / "packed")) == len(files)


def test_two_packings_into_one_place(files, tmp_path):
    with (
        packing._unfinished(tmp_path / "packed"),
        pytest.raises(DataError, match=r"another process is packing into .*packed\.unfinished; wait for it"),
    ):
        packing.pack(files, tmp_path / "packed")
    assert len(packing.pack(files, tmp_path / "packed")) == 9


def test_an_image_that_goes_while_packing_is_left_out(files, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_check", _is_gone_soon)
    packed = packing.pack(files, tmp_path / "packed")
    assert [name.rsplit("/")[-1] for name in packed.left_out] == ["3.jpg"]
    assert len(packed) == 8


def test_a_killed_process_ends_packing_in_one_sentence(files, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_check", _die)
    with pytest.raises(DataError, match=r"a process that decodes images was killed.* fewer workers"):
        packing.pack(files, tmp_path / "packed")


def _die(path):
    os._exit(1)


def _is_gone_soon(path):
    if path.name == "3.jpg":
        path.unlink()
    return ""


def test_a_shard_holds_at_least_one_image(files, tmp_path):
    with pytest.raises(ValueError, match="per_shard is 0, a shard holds at least 1 image"):
        packing.pack(files, tmp_path / "packed", per_shard=0)


# Damage


@pytest.mark.parametrize("part", ["first byte", "middle", "last byte"])
def test_a_flipped_bit_of_an_image_is_noticed_by_name(packed, part):
    shard, start, length = packed.places[2].tolist()
    path = packed.folder / shards.shard_name(shard)
    content = bytearray(path.read_bytes())
    content[start + {"first byte": 0, "middle": length // 2, "last byte": length - 1}[part]] ^= 4
    path.write_bytes(content)
    damaged = shards.open_packed(packed.folder)
    with pytest.raises(decoding.DecodingError, match="not those that were packed: the shard is damaged"):
        damaged.read(2)
    assert [damaged.read(i) for i in (0, 1, 3)] == [packed.read(i) for i in (0, 1, 3)]
    stream = streaming.ImageStream(damaged, size=32, unreadable_limit=0)
    with pytest.raises(DataError, match=rf"{path.name}: n\d+/\d+\.jpg \(its bytes are not those"):
        list(stream.batches([(0, torch.arange(9))]))


def test_a_flipped_bit_anywhere_is_noticed_by_a_whole_reading(packed, capsys):
    path = packed.folder / "000001.tar"
    assert shards.verify(packed) == []
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for at in random.integers(0, len(whole), 40):
        content = bytearray(whole)
        content[at] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        assert shards.verify(shards.open_packed(packed.folder)) == ["000001.tar"]
    assert command.verify(str(packed.folder)) == 1
    assert "000001.tar is not as it was written; copy it again\n2 of 3 shards" in capsys.readouterr().out
    path.write_bytes(whole)
    assert command.verify(str(packed.folder)) == 0


def what_is_said(folder):
    try:
        shards.open_packed(folder)
    except DataError as error:
        return str(error)
    return ""


def test_a_flipped_bit_anywhere_in_the_index_is_noticed(packed):
    path = packed.folder / shards.INDEX
    whole, before = path.read_bytes(), vars(packed)
    refused, random = 0, np.random.default_rng(0)
    for at in random.integers(0, len(whole), 300):
        content = bytearray(whole)
        content[at] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        said = what_is_said(packed.folder)
        refused += bool(said)
        assert not said or (str(path) in said and "\n" not in said and len(said) < 500)
        if not said:  # a bit that no reader asks for, such as a date
            found = vars(shards.open_packed(packed.folder))
            assert all(np.array_equal(found[name], before[name]) for name in before)
    assert refused > 150


@pytest.mark.parametrize("kind", ["empty", "text", "cut short", "an array", "pickled", "lacks labels"])
def test_a_file_that_is_no_index_is_refused_in_a_sentence(packed, kind):
    path = packed.folder / shards.INDEX
    whole = path.read_bytes()
    with np.load(path) as index:
        arrays = dict(index)
    if kind == "an array":
        with path.open("wb") as file:
            np.save(file, arrays["labels"])
    elif kind in ("pickled", "lacks labels"):
        labels = {"labels": np.array([print, 1], object)} if kind == "pickled" else {}
        np.savez(path, **{name: arrays[name] for name in arrays if name != "labels"}, **labels)
    else:
        path.write_bytes({"empty": b"", "text": b"no index", "cut short": whole[: len(whole) // 2]}[kind])
    with pytest.raises(
        DataError, match=r"index\.npz is damaged \(.+\); copy it again, or pack again with: python"
    ):
        shards.open_packed(packed.folder)


CHANGES = {
    "label of 99": ({"labels": [99] + [0] * 8}, r"label 99 of image 1, expected 0\.\.2"),
    "label below 0": ({"labels": [0, -1] + [0] * 7}, r"label -1 of image 2, expected 0\.\.2"),
    "floats": ({"labels": [0.0] * 9}, "is not as it was written"),
    "too few labels": ({"labels": [0] * 8}, r"labels are int64 of shape \(8,\), expected .* shape \(9,\)"),
    "too few sums": ({"sums": [b"0" * 32] * 8}, "names 9 images at 9 places in 3 shards, which do not agree"),
    "too few places": ({"places": [[0, 0, 1]] * 8}, "names 9 images at 8 places"),
    "a shard too many": ({"shards": [b"0" * 64] * 4}, "in 4 shards, which do not agree"),
    "no image": (
        {"names": np.zeros(0, "S1"), "labels": np.zeros(0, int), "places": np.zeros((0, 3), int),
         "sums": np.zeros(0, "S1"), "shards": np.zeros(0, "S1")},
        "names 0 images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_what_does_not_agree_is_refused(packed, kind):
    """Written by another program, which made the digest anew."""
    changes, message = CHANGES[kind]
    path = packed.folder / shards.INDEX
    with np.load(path) as index:
        arrays = dict(index) | {name: np.asarray(value) for name, value in changes.items()}
    arrays["digest"] = np.array(shards.digest_of_arrays(arrays))
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}.*{message}"):
        shards.open_packed(packed.folder)


def test_an_edited_index_is_refused(packed):
    path = packed.folder / shards.INDEX
    with np.load(path) as index:
        arrays = dict(index)
    arrays["labels"][[0, 8]] = arrays["labels"][[8, 0]]
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"index\.npz is not as it was written; copy it again, or pack again"):
        shards.open_packed(packed.folder)


def test_shards_stay_open_within_what_is_allowed(packed):
    """With fewer open files allowed than there are shards."""
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))\n"
        "from dqt_core.data import shards\n"
        "packed = shards.open_packed(sys.argv[1])\n"
        "for _ in range(2):\n    for i in range(len(packed)): packed.read(i)\n"
        "print(len(packed), shards._handle.cache_info().maxsize)"
    )
    many = packing.pack(
        imagenet.open_split(packed.folder.parent, "train", class_count=3).part(np.tile(np.arange(9), 4)),
        packed.folder.with_name("many"),
        per_shard=1,
    )
    done = subprocess.run([sys.executable, "-c", code, many.folder], capture_output=True, text=True)
    assert done.stdout == "36 12\n", done.stderr


def test_the_command_packs_and_verifies(capsys):
    with pytest.raises(SystemExit):
        command.options(["--out", "x"])
    assert "give --imagenet-root and --out to pack, or --verify" in capsys.readouterr().err
    assert command.options(["--verify", "x"]).verify == "x"


def test_the_folder_in_which_one_stands_is_named_like_any_other(tmp_path, monkeypatch, files):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match=r"index\.npz is missing: make it with"):
        shards.open_packed(".")
    with pytest.raises(DataError, match=r"\. exists; give a new folder"):
        packing.pack(files, ".")
    (tmp_path / "here.unfinished").mkdir()
    with pytest.raises(DataError, match="packing was interrupted"):
        shards.open_packed("")
