"""ImageNet from class folders: what is read, and what is said of folders, maps and files that are wrong."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from dqt_core.data import DataError, imagenet
from dqt_core.data._torchvision import import_torchvision

NAMES = ["n00000001", "n00000005", "n00000009"]


def picture(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def tree(tmp_path):
    """Three classes of two images each, as ImageNet is unpacked."""
    for number, name in enumerate(NAMES):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        for i in range(2):
            picture(300 + 40 * i, 260, 10 * number + i).save(folder / f"{name}_{i}.JPEG")
    return tmp_path


def opened(tree, **options):
    return imagenet.open_split(tree, "val", class_count=3, **options)


def test_a_tree_is_read_in_order(tree):
    files = opened(tree)
    assert files.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert files.classes == tuple(NAMES)
    assert files.resize == 256
    batches = list(files.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert all(pixels.shape[1:] == (224, 224, 3) and pixels.dtype == np.uint8 for pixels, _ in batches)


@pytest.mark.parametrize("size", [(300, 260), (260, 301), (500, 375), (257, 256), (100, 130), (333, 500)])
def test_pixels_are_torchvisions(tmp_path, size):
    (tmp_path / "val" / "n00000001").mkdir(parents=True)
    path = tmp_path / "val" / "n00000001" / "a.png"
    picture(*size).save(path)
    transforms = import_torchvision().transforms
    expected = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.open(path))
    (found, _), *_ = imagenet.open_split(tmp_path, class_count=1, resize=256).batches()
    np.testing.assert_array_equal(found[0], np.asarray(expected))


def test_images_that_were_cut_before_are_not_resized(tmp_path):
    (tmp_path / "val" / "n00000001").mkdir(parents=True)
    picture(227, 227).save(tmp_path / "val" / "n00000001" / "a.png")
    files = imagenet.open_split(tmp_path, class_count=1)
    assert files.resize is None
    (found, _), *_ = files.batches()
    # (227 - 224) / 2 = 1.5 goes to the even neighbour, as in torchvision
    np.testing.assert_array_equal(found[0], np.asarray(picture(227, 227))[2:226, 2:226])


def test_a_grey_image_has_three_channels(tree):
    picture(300, 300).convert("L").save(tree / "val" / NAMES[0] / "a.png")
    (found, _), *_ = opened(tree).batches(1)
    assert (found[..., 0] == found[..., 2]).all()


def test_a_root_that_holds_imagenet_is_understood(tree):
    (tree / "imagenet").mkdir()
    (tree / "val").rename(tree / "imagenet" / "val")
    assert len(opened(tree)) == 6


def test_a_sample_is_drawn_by_seed(tree):
    files = opened(tree)
    first, again, other = (files.sample(6, seed).paths for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(files.paths)
    for path, label in zip(first, files.sample(6).labels, strict=True):
        assert path.parent.name == NAMES[label]


# What is refused


def refuses(message, *arguments, **options):
    with pytest.raises(DataError, match=re.sub(r"([()\[\]<>])", r"\\\1", message)):
        imagenet.open_split(*arguments, **options)


def test_a_missing_split(tree):
    refuses(f"{tree}/train is missing; expected train/<WordNet id>/<image> in {tree}", tree, "train")


def test_too_few_folders_without_a_map(tree):
    refuses("val has 3 class folders, the network knows 1000 classes; .*synsets.txt must number them", tree)


def listing(tree, names):
    (tree / "synsets.txt").write_text("".join(f"{name} a thing\n" for name in names))


def test_missing_class_folders(tree):
    listing(tree, [*NAMES, "n00000010", "n00000011"])
    message = "val lacks 2 of 5 class folders: n00000010, n00000011; get them, or say that this is a sample"
    refuses(message, tree, class_count=5)
    files = imagenet.open_split(tree, class_count=5, is_sample=True)
    assert files.missing == ("n00000010", "n00000011")


def test_the_map_numbers_the_classes(tree):
    listing(tree, ["n00000000", *NAMES])
    files = imagenet.open_split(tree, class_count=4, is_sample=True)
    assert files.labels.tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        (NAMES[:2], 3, "synsets.txt names 2 classes, 3 are expected"),
        (["tench", *NAMES[:2]], 3, "names 3 classes, 1 are no WordNet ids: tench"),
        (NAMES[::-1], 3, "synsets.txt, line 2: n00000005 follows n00000009; .* by sorted id"),
        ([NAMES[0], *NAMES], 4, "synsets.txt, line 2: n00000001 follows n00000001"),
        ([*NAMES[:2], "n00000007"], 3, "val has 1 folders that .*synsets.txt lacks: n00000009"),
    ],
)
def test_a_wrong_label_map(tree, names, count, message):
    listing(tree, names)
    refuses(message, tree, class_count=count)


MAP = "".join(f"{name} café, Ärger\n" for name in NAMES)
MAPS = {
    "UTF-8": MAP.encode(),
    "UTF-8 with a mark": MAP.encode("utf-8-sig"),
    "Latin-1": MAP.encode("latin-1"),
    "Windows": MAP.replace("\n", "\r\n").encode("cp1252"),
    "Latin-1 with a byte that ends lines elsewhere": MAP.replace("é", "\x85").encode("latin-1"),
    "UTF-8 with a letter that ends lines elsewhere": MAP.replace("é", "\u2028").encode(),
    "UTF-16": MAP.encode("utf-16"),
    "UTF-16, other end first": b"\xfe\xff" + MAP.encode("utf-16-be"),
    "old Macintosh": MAP.replace("\n", "\r").encode("mac-roman"),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_is_read_in_any_usual_encoding(tree, kind):
    (tree / "synsets.txt").write_bytes(MAPS[kind])
    assert opened(tree).classes == tuple(NAMES)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32"])
def test_a_map_in_no_usual_encoding_is_refused(tree, encoding):
    (tree / "synsets.txt").write_bytes(MAP.encode(encoding))
    refuses("synsets.txt is no text in UTF-8; save it as UTF-8", tree, class_count=3)


def test_both_splits_have_the_same_classes(tree):
    """Each is numbered by its own folders: 0 to 2 beside ids would be other classes."""
    for split in ("train", "val"):
        shutil.rmtree(tree / split, ignore_errors=True)
        names = NAMES if split == "train" else ["0", "1", "2"]
        for name in names:
            (tree / split / name).mkdir(parents=True)
            picture(300, 260).save(tree / split / name / "a.png")
    message = "class 0 is '0' in .*/val and 'n00000001' in .*/train; name the folders alike"
    refuses(message, tree, class_count=3)
    refuses("class 0 is 'n00000001' in .*/train and '0' in .*/val", tree, "train", class_count=3)


@pytest.mark.parametrize("change", ["one more", "one less", "another", "a sample"])
def test_splits_that_differ_in_one_class(tree, change):
    shutil.copytree(tree / "val", tree / "train")
    options = {"class_count": 3, "is_sample": change == "a sample"}
    assert len(imagenet.open_split(tree, "train", **options)) == 6
    if change in ("one more", "another"):
        shutil.copytree(tree / "val" / NAMES[0], tree / "train" / "n00000002")
    if change != "one more":
        shutil.rmtree(tree / "train" / NAMES[1])
    message = "val has 3 classes, .*/train .; n0000000. in one of them alone"
    if change == "another":
        message = "class 1 is 'n00000005' in .*/val and 'n00000002' in .*/train"
    refuses(message, tree, **options)
    listing(tree, [*NAMES[:1], "n00000002", *NAMES[1:]])  # a map numbers both splits
    for split in ("train", "val"):
        assert len(imagenet.open_split(tree, split, class_count=4, is_sample=True)) >= 4


def test_an_empty_folder_is_no_other_split(tree):
    (tree / "train").mkdir()
    assert len(opened(tree)) == 6


def test_folders_named_by_number_in_another_order(tmp_path):
    for i in range(11):
        (tmp_path / "val" / str(i)).mkdir(parents=True)
    message = "val has folders named by number, and '2' comes after '10'; name them by WordNet id"
    refuses(message, tmp_path, class_count=11)


def test_the_split_itself_given_as_root(tree):
    refuses(f"val/val is missing; expected .*; give its parent, {tree}$", tree / "val")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 99]), r"label 99 of image 3, expected 0\.\.2"),
        (np.array([0, -1, 1]), r"label -1 of image 2, expected 0\.\.2"),
        (np.array([0.0, 1.0, 2.0]), r"labels are float64 of shape \(3,\), expected integers of shape \(3,\)"),
        (
            np.array([0, 1]),
            r"int64 of shape \(2,\), expected integers of shape \(3,\); give one class number",
        ),
        (np.array([[0, 1, 2]]), r"int64 of shape \(1, 3\)"),
        (np.array([True, False, True]), "labels are bool"),
        ([0, 1, 2], "labels are list"),
    ],
)
def test_labels_are_one_class_number_for_each_image(tree, labels, message):
    files = opened(tree)
    with pytest.raises(DataError, match=message):
        imagenet.ImageFiles(files.paths[:3], labels, files.classes, None)


def test_a_class_without_images(tree):
    for path in (tree / "val" / NAMES[1]).iterdir():
        path.unlink()
    refuses("val has 1 class folders without an image: n00000005", tree, class_count=3)


def test_too_few_images_for_calibration(tree):
    with pytest.raises(DataError, match=f"7 images were asked for, {tree}/val has 6; ask for fewer"):
        opened(tree).sample(7)


@pytest.mark.parametrize("kind", ["empty", "text", "cut short"])
def test_an_unreadable_image_is_named(tree, kind):
    path = tree / "val" / NAMES[1] / f"{NAMES[1]}_0.JPEG"
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "cut short": whole[: len(whole) // 2]}[kind])
    with pytest.raises(DataError, match=rf"{path} \(image 3 of 6\) cannot be decoded"):
        list(opened(tree).batches())
    files = opened(tree)
    labels = np.concatenate([labels for _, labels in files.batches(2, go_on=True)])
    assert labels.tolist() == [0, 0, 1, 2, 2]
    assert list(files.unreadable) == [path]


def test_an_image_that_is_too_small_is_unreadable(tree):
    picture(200, 300).save(tree / "val" / NAMES[0] / "a.png")
    with pytest.raises(DataError, match="it is 200 x 300, at least 224 are needed"):
        list(opened(tree, resize=None).batches())
