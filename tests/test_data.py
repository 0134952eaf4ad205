"""Data sets: what is in them, and what is said of a missing or damaged file."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_nets import digits

from dqt_core import data
from dqt_core.data._torchvision import import_torchvision

GET = re.escape(data.DOWNLOAD)
TRAIN = "ff7f60d2696c4304c0d820eb732bc21fbd38c69122372c42aeb4ef8569a4dd60"
TEST = "1249626010949d8f448e0faf792debbc3da0c50ed31bfff3678c99c37fbc7e48"


# CIFAR-10


def test_cifar10_is_the_data_set(cifar10):
    assert cifar10.name == "cifar10"
    assert cifar10.checksums["train_images"] == TRAIN
    assert cifar10.checksums["test_images"] == TEST
    assert cifar10.train_images.shape == (50_000, 32, 32, 3)
    assert cifar10.test_images.dtype == np.uint8
    assert cifar10.test_labels.dtype == np.int64
    assert cifar10.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert cifar10.classes[3] == "cat"
    pixels = cifar10.train_images.reshape(-1, 3)
    mean = pixels.sum(0, dtype=np.int64) / len(pixels)
    square = (pixels.astype(np.uint16) ** 2).sum(0, dtype=np.int64) / len(pixels)
    np.testing.assert_allclose(mean / 255, cifar10.mean, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(square - mean**2) / 255, cifar10.std, atol=1e-4)


def test_auto_is_cifar10_where_the_variable_is_set(monkeypatch):
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, "somewhere")
    monkeypatch.setattr(data.datasets, "cifar10", lambda folder: f"CIFAR-10 from {folder}")
    assert data.load() == data.load("auto") == data.load("cifar10") == "CIFAR-10 from somewhere"


@pytest.fixture
def binary(tmp_path):
    """A folder in the binary layout: right sizes, balanced labels, pixels that tell plane, row and column."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = np.zeros((10_000, 3073), np.uint8)
    rows[:, 0] = np.arange(10_000) % 10
    rows[:, 1:] = (np.arange(3072) % 251).astype(np.uint8)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        rows.tofile(folder / name)
    return folder


def test_binary_layout_is_planes_of_red_green_and_blue(binary):
    dataset = data.cifar10(binary.parent)
    plane, row, column = 2, 3, 4
    assert dataset.test_images[7, row, column, plane] == (plane * 1024 + row * 32 + column) % 251
    assert dataset.test_labels[:12].tolist() == [*range(10), 0, 1]
    assert len(dataset.train_images) == 50_000
    assert dataset.train_images.flags.c_contiguous


def test_missing_folder(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match=f"no cifar-10-batches-bin/ or .* in {tmp_path}; run: {GET}"):
        data.cifar10(tmp_path)
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path / "absent"))
    for name in ("auto", "cifar10"):
        with pytest.raises(data.DataError, match=f"{tmp_path / 'absent'}; run: {GET}"):
            data.load(name)


def test_the_inner_folder_is_understood(binary, monkeypatch):
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(binary))
    assert data.load().checksums == data.cifar10(binary.parent).checksums
    monkeypatch.chdir(binary)
    assert data.cifar10(".").name == "cifar10"
    monkeypatch.setenv("HOME", str(binary.parent))
    assert data.cifar10("~").name == "cifar10"


@pytest.mark.parametrize(("name", "kind"), [("test_batch.bin", "bin"), ("test_batch", "py")])
def test_the_inner_folder_under_another_name(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"")
    message = (
        rf"holds {name} itself; rename it to cifar-10-batches-{kind}, and set DQT_DATA to the folder around"
    )
    with pytest.raises(data.DataError, match=message):
        data.cifar10(tmp_path)


def test_files_that_are_pipes_are_missing(binary):
    (binary / "test_batch.bin").unlink()
    os.mkfifo(binary / "test_batch.bin")
    with pytest.raises(data.DataError, match=r"test_batch\.bin is missing"):
        data.cifar10(binary.parent)


@pytest.mark.parametrize("labels", [[99] * 359, [0.5] * 359, [0] * 358, [-1] * 359])
def test_labels_of_a_data_set_are_class_numbers(labels):
    with pytest.raises(data.DataError, match=r"embedded, test: label.*give"):
        dataclasses.replace(digits(), test_labels=np.array(labels))


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_missing_file(name, binary):
    (binary / name).unlink()
    with pytest.raises(data.DataError, match=f"{binary / name} is missing; run: {GET}"):
        data.cifar10(binary.parent)


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_truncated_file(name, binary):
    with (binary / name).open("r+b") as file:
        file.truncate(30_729_999)
    message = f"{binary / name} has 30,729,999 bytes, expected 30,730,000; run: {GET}"
    with pytest.raises(data.DataError, match=message):
        data.cifar10(binary.parent)


@pytest.mark.parametrize("label", [1, 10, 255])
def test_damaged_labels(label, binary):
    path = binary / "test_batch.bin"
    rows = np.fromfile(path, np.uint8)
    rows[0] = label
    rows.tofile(path)
    with pytest.raises(data.DataError, match=rf"classes have \[999, .* expected 1000 each; run: {GET}"):
        data.cifar10(binary.parent)


# torchvision's layout


@pytest.fixture
def pickles(tmp_path, monkeypatch):
    """torchvision's download in little, ten images a file, taken for the official one."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    pixels = {name: rng.integers(0, 256, (10, 3072), np.uint8) for name in files}
    for name in files:
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(data.CIFAR10_CLASSES)}))
    monkeypatch.setattr(import_torchvision().datasets.cifar, "check_integrity", lambda path, md5: True)
    monkeypatch.setattr(data.datasets, "_check_balance", lambda labels, expected, folder: None)
    return tmp_path, pixels


def test_torchvision_layout(pickles):
    folder, pixels = pickles
    dataset = data.cifar10(folder)
    assert data.cifar10(folder / "cifar-10-batches-py").checksums == dataset.checksums
    expected = np.concatenate([pixels[f"data_batch_{i}"] for i in range(1, 6)]).reshape(50, 3, 32, 32)
    np.testing.assert_array_equal(dataset.train_images, expected.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(
        dataset.test_images.transpose(0, 3, 1, 2).ravel(), pixels["test_batch"].ravel()
    )
    assert dataset.train_labels.tolist() == [*range(10)] * 5
    assert dataset.train_labels.dtype == np.int64
    assert dataset.test_images.flags.c_contiguous


def test_torchvision_layout_is_balanced_or_refused(pickles, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(import_torchvision().datasets.cifar, "check_integrity", lambda path, md5: True)
    with pytest.raises(data.DataError, match=f"expected 5000 each; run: {GET}"):
        data.cifar10(pickles[0])


def test_torchvision_checks_md5(pickles, monkeypatch):
    monkeypatch.undo()
    message = f"{pickles[0] / 'cifar-10-batches-py'} is damaged .*; run: {GET}"
    with pytest.raises(data.DataError, match=message):
        data.cifar10(pickles[0])


# Names and the embedded set


def test_unknown_name():
    with pytest.raises(ValueError, match="'mnist' is unknown; choose 'auto', 'cifar10' or 'embedded'"):
        data.load("mnist")


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable(value, monkeypatch):
    monkeypatch.delenv(data.ENVIRONMENT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, value)
    with pytest.raises(data.DataError, match=f"CIFAR-10 was asked for and DQT_DATA is not set; run: {GET}"):
        data.load("cifar10")
    assert data.load("auto").name == data.load().name == "embedded"


def test_embedded_needs_no_variable(monkeypatch, tmp_path):
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert data.load("embedded").name == "embedded"


def test_embedded_is_scikit_learns_digits():
    from sklearn.datasets import load_digits

    dataset, source = digits(), load_digits()
    assert (len(dataset.train_images), len(dataset.test_images)) == (1438, 359)
    assert dataset.classes == tuple("0123456789")
    np.testing.assert_array_equal(dataset.test_labels, source.target[4::5])
    np.testing.assert_array_equal(dataset.train_labels[:5], source.target[[0, 1, 2, 3, 5]])
    levels = [(255 * level + 8) // 16 for level in range(17)]
    for channel in range(3):
        corner = dataset.test_images[:, ::4, ::4, channel]
        np.testing.assert_array_equal(corner, np.array(levels)[source.images[4::5].astype(int)])
    blocks = dataset.test_images.reshape(-1, 8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()


def test_embedded_normalisation_is_that_of_its_training_images():
    dataset = data.load("embedded")
    pixels = dataset.train_images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), atol=1e-4)


def test_checksums_are_of_the_bytes_in_c_order():
    dataset = digits()
    assert dataset.checksums.keys() == {"train_images", "train_labels", "test_images", "test_labels"}
    for name, digest in dataset.checksums.items():
        assert digest == hashlib.sha256(np.ascontiguousarray(getattr(dataset, name))).hexdigest()


def test_normalization_table_is_the_formula():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    table = data.normalization_table(mean, std)
    assert (table.shape, table.dtype) == ((3, 256), np.float32)
    for channel in range(3):
        for byte in range(256):
            assert table[channel, byte] == np.float32((byte / 255 - mean[channel]) / std[channel])


def test_one_changed_byte_among_files_of_the_recorded_copy_is_found(cifar10, tmp_path):
    source = Path(os.environ[data.ENVIRONMENT_VARIABLE]) / "cifar-10-batches-bin"
    if not source.is_dir():
        pytest.skip("needs the binary layout of CIFAR-10, DQT_DATA has torchvision's")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    assert data.cifar10(tmp_path).checksums == cifar10.checksums
    changed = bytearray((folder / "data_batch_3.bin").read_bytes())
    changed[5000] ^= 1
    (folder / "data_batch_3.bin").write_bytes(changed)
    with pytest.raises(data.DataError, match=r"data_batch_3\.bin is damaged: its sha256 .* run: python -m"):
        data.cifar10(tmp_path)
