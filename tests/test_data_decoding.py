"""Files from the world: every kind of picture is read right or refused by name, and none ends a run."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from dqt_core.data import DataError, decoding, imagenet

GREY = np.linspace(0, 65535, 300 * 260).astype(np.uint16).reshape(260, 300)
COLOUR = np.random.default_rng(0).integers(0, 256, (260, 300, 3), np.uint8)


def encoded(picture, kind, **options):
    into = io.BytesIO()
    picture.save(into, kind, **options)
    return into.getvalue()


def png(width, height, depth=1, colour=0, rows=None):
    """A PNG file by hand: its header may state any size."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = rows if rows is not None else bytes((width * depth + 15) // 8) * height
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


# Modes


def test_sixteen_bit_grey_has_its_upper_byte():
    found = np.asarray(decoding.decode(encoded(Image.fromarray(GREY), "PNG")))
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], GREY >> 8)


def test_sixteen_bit_colour_and_grey_are_read_alike():
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in GREY)
    colour = decoding.decode(png(300, 260, 16, 2, rows))
    grey = decoding.decode(encoded(Image.fromarray(GREY), "PNG"))
    np.testing.assert_array_equal(np.asarray(colour), np.asarray(grey))


@pytest.mark.parametrize("most", [255, 1023, 65535])
def test_a_portable_grey_map_is_read_at_its_own_depth(most):
    values = np.linspace(0, most, 256 * 256).round().astype(">u2" if most > 255 else ">u1")
    found = np.asarray(decoding.decode(b"P5 256 256 %d\n" % most + values.tobytes()))
    expected = values.astype(int) * 255 / most
    assert np.abs(found[..., 1].ravel() - expected).max() <= 1


# What Pillow writes of a picture in each mode: the bytes that come back, or the reason why not.
def in_mode(mode):
    if mode in ("I", "I;16", "I;16B", "F"):
        return Image.fromarray(GREY.astype({"I": "i4", "F": "f4", "I;16": "<u2", "I;16B": ">u2"}[mode]))
    if mode == "LAB":
        return Image.frombytes("LAB", (300, 260), COLOUR.tobytes())
    if mode == "PA":
        return Image.fromarray(COLOUR).convert("P").convert("PA")
    return (
        Image.fromarray(COLOUR).convert("RGBA").convert(mode)
        if mode == "LA"
        else Image.fromarray(COLOUR).convert(mode)
    )


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F")
REFUSED = {"TIFF": {"I", "I;16", "I;16B", "F"}, "PPM": {"F"}}  # as stored


def written(kind):
    """What Pillow writes in this format, of all modes."""
    for mode in MODES:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            yield encoded(in_mode(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "PPM", "BMP", "WEBP", "AVIF", "JPEG2000", "GIF"])
def test_every_mode_is_read_right_or_refused(kind):
    count, refused = 0, set()
    for content in written(kind):
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            mode, count = opened.mode, count + 1
            if mode in REFUSED.get(kind, ()):
                expected = None
            elif mode[0] == "I":
                expected = np.asarray(opened)[..., None].repeat(3, -1) >> 8
            else:
                expected = np.asarray(opened.convert("RGBA" if mode == "P" else "RGB"))[..., :3]
        try:
            found = np.asarray(decoding.decode(content))
        except decoding.DecodingError:
            refused.add(mode)
        else:
            assert expected is not None, mode
            np.testing.assert_array_equal(found, expected, err_msg=mode)
    assert count >= 4
    assert refused == REFUSED.get(kind, set())


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_grey_of_no_known_range_is_refused(mode):
    with pytest.raises(
        decoding.DecodingError, match=f"its TIFF file holds grey of mode '{mode}'.*store it as a PNG"
    ):
        decoding.decode(encoded(in_mode(mode), "TIFF"))


def test_a_palette_with_transparent_colours_is_read_without_a_warning():
    palette = Image.fromarray(COLOUR).quantize(16)
    content = encoded(palette, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(np.asarray(decoding.decode(content)), np.asarray(palette.convert("RGB")))


# Damage of all kinds, in a folder


def raising(error):
    def open_(*_):
        raise error

    return open_


HUGE = "it is 20,000 x 20,000, more than 89,478,485 pixels|exceeds limit"
DAMAGED = {
    "huge": (png(20_000, 20_000, rows=b""), HUGE),
    "large": (png(10_000, 9_000, rows=b""), "89,478,485 pixels|exceeds limit"),
    "thin": (png(1, 5_000), "it is 1 x 5,000, more than 100 times longer than wide"),
    "flat": (png(20_000, 1), "it is 20,000 x 1, more than 100 times"),
    "dds": (b"DDS " + struct.pack("<31I", 124, 0x1007, 4, 4, *[0] * 14, 32, 4, 0x39393939, *[0] * 10), "."),
    "avif": (encoded(Image.fromarray(COLOUR), "AVIF")[:-400], "."),
    "webp": (encoded(Image.fromarray(COLOUR), "WEBP")[:-400], "."),
    "jpeg2000": (encoded(Image.fromarray(COLOUR), "JPEG2000")[:-400], "."),
    "chunk": (png(300, 300)[:40] + b"\xff" * 40, "."),
    "nothing": (b"", "Pillow knows no such format"),
    "page": (b"<!DOCTYPE html><title>404</title>", "Pillow knows no such format"),
}


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "val" / "n00000001"
    folder.mkdir(parents=True)
    Image.fromarray(COLOUR).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_image_is_named_and_left_out(place, kind):
    content, reason = DAMAGED[kind]
    (place / "b.jpg").write_bytes(content)
    files = imagenet.open_split(place.parents[1], class_count=1)
    with pytest.raises(DataError, match=rf"b\.jpg \(image 2 of 2\) cannot be decoded: .*({reason})"):
        list(files.batches())
    assert sum(len(labels) for _, labels in files.batches(go_on=True)) == 1
    assert list(files.unreadable) == [place / "b.jpg"]


RAISED = [RuntimeError("of AVIF"), NotImplementedError("of DDS"), MemoryError(), struct.error("short")]
RAISED += [IndexError(), Image.DecompressionBombError("exceeds limit")]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_whatever_a_decoder_raises_is_damage(monkeypatch, error):
    monkeypatch.setattr(Image, "open", raising(error))
    with pytest.raises(decoding.DecodingError, match=str(error) or type(error).__name__):
        decoding.decode(b"")
    monkeypatch.setattr(Image, "open", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        decoding.decode(b"")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "loop"])
def test_what_is_no_ordinary_file_does_not_hang(place, kind):
    path = place / "b.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "absent", "loop": path.name}[kind])
    files = imagenet.open_split(place.parents[1], class_count=1)
    reason = "no ordinary file" if kind in ("pipe", "folder", "device") else "b.jpg"
    with pytest.raises(DataError, match=rf"b\.jpg \(image 2 of 2\) cannot be decoded: .*{reason}"):
        list(files.batches())


def test_a_file_that_is_too_large_is_not_read(place):
    with (place / "b.jpg").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(
        decoding.DecodingError, match="it has 268,435,457 bytes, an image has at most 268,435,456"
    ):
        decoding.read_file(place / "b.jpg")


@pytest.mark.parametrize("size", [(1, 100), (100, 1), (3, 300), (299, 3)])
def test_an_elongated_picture_takes_little_memory(tmp_path, size):
    """In a process that may hold no more than 400 MB above what the libraries take."""
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", size, (1, 2, 3)), "PNG"))
    code = (
        "import resource, sys, pathlib\nfrom dqt_core.data import decoding\ndecoding.pillow().init()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)\n"
        "content = decoding.read_file(pathlib.Path(sys.argv[1]))\n"
        "print(decoding.cut(decoding.decode(content), 256).reshape(-1, 3).mean(0).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True)
    assert done.stdout == "[1.0, 2.0, 3.0]\n", done.stderr
