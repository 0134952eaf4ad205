"""Image files of any kind as RGB pictures: a picture comes out, or a `DecodingError` that says why not."""

import io
import stat
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dqt_core._extras import needed
from dqt_core.data.datasets import Images

CROP, RESIZED = 224, 256
MOST_PIXELS = 89_478_485  # of one picture: where Pillow begins to warn of a bomb; 256 MiB as RGB
MOST_BYTES = 2**28  # of one file
MOST_ELONGATED = 100  # one of 1 x 5,000 would take a gigabyte when resized, for a crop from one of its pixels
# Pillow scales the deep grey of these to 0..65535, whatever its depth is
SCALED_TO_SIXTEEN = ("PNG", "PPM", "JPEG2000")


class DecodingError(ValueError):
    """A file holds no picture that can be used; the message says why, whoever catches it names the file."""


UNREADABLE = (OSError, DecodingError)  # what reading and decoding one image raises


def read_file(path: Path) -> bytes:
    """The bytes of an image's file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bytes

    Raises
    ------
    DecodingError
        If it is no ordinary file (a pipe would wait for ever, a device never end), has more than 256 MiB, or
        cannot be read.

    Examples
    --------
    >>> read_file(Path("/dev/null"))
    Traceback (most recent call last):
    dqt_core.data.decoding.DecodingError: it is no ordinary file
    """
    with _as_decoding_error():
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DecodingError("it is no ordinary file")
        if found.st_size > MOST_BYTES:
            raise DecodingError(f"it has {found.st_size:,} bytes, an image has at most {MOST_BYTES:,}")
        return path.read_bytes()


def decode(content: bytes) -> Any:
    """The RGB picture that a file holds; the first one, of several.

    Parameters
    ----------
    content : bytes
        Of a file in any format that Pillow reads.

    Returns
    -------
    PIL.Image.Image
        Mode "RGB". Of sixteen bits a channel, the upper eight; transparency is left out.

    Raises
    ------
    DecodingError
        If the file is damaged, has more than 89,478,485 pixels or sides beyond 1 to 100, or its values have
        no known range: floats, integers of 32 bits, grey of a TIFF above 8 bits.

    Examples
    --------
    >>> decode(b"no image")
    Traceback (most recent call last):
    dqt_core.data.decoding.DecodingError: Pillow knows no such format
    """
    image = pillow()
    with _as_decoding_error(), image.open(io.BytesIO(content)) as opened:
        _require_size(*opened.size)
        if opened.mode in ("I", "F") or opened.mode.startswith("I;"):
            return image.fromarray(_upper_bits(opened)).convert("RGB")
        if isinstance(opened.info.get("transparency"), bytes):  # of a palette: Pillow asks for this way round
            return opened.convert("RGBA").convert("RGB")
        return opened.convert("RGB")


def stated_size(path: Path) -> tuple[int, int] | None:
    """Width and height that a file states; None where it cannot be read.

    Parameters
    ----------
    path : Path

    Returns
    -------
    pair of int, or None

    Examples
    --------
    >>> stated_size(Path("absent.png")) is None
    True
    """
    image = pillow()
    try:
        with _as_decoding_error(), image.open(io.BytesIO(read_file(path))) as opened:
            width, height = opened.size
            return width, height
    except DecodingError:
        return None


def cut(picture: Any, resize: int | None) -> Images:
    """The central square of a picture, as torchvision's Resize and CenterCrop give it.

    Parameters
    ----------
    picture : PIL.Image.Image
    resize : int or None
        Length that the short side gets before; None: as it is.

    Returns
    -------
    uint8 array, (224, 224, 3)

    Raises
    ------
    DecodingError
        If a side has less than 224 pixels then.

    Examples
    --------
    >>> cut(pillow().new("RGB", (300, 400)), 256).shape
    (224, 224, 3)
    """
    with _as_decoding_error():
        if resize is not None:
            wanted = [resize * side // min(picture.size) for side in picture.size]
            picture = picture.resize(wanted, pillow().Resampling.BILINEAR)
        pixels = np.asarray(picture, np.uint8)
        if min(pixels.shape[:2]) < CROP:
            raise DecodingError(f"it is {pixels.shape[1]} x {pixels.shape[0]}, at least {CROP} are needed")
        top, left = (round((side - CROP) / 2) for side in pixels.shape[:2])  # half to even
        return pixels[top : top + CROP, left : left + CROP]


def pillow() -> Any:
    """Pillow's `Image`.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If Pillow is not installed; it names the extra.

    Examples
    --------
    >>> pillow().__name__
    'PIL.Image'
    """
    with needed("reading images", "train"):
        from PIL import Image
    return Image


def printable(name: str) -> str:
    """A name that any terminal and any tar file can hold: without line ends, and bytes that are no UTF-8.

    Examples
    --------
    >>> printable(f"two{chr(10)}lines")
    'two_lines'
    """
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def some_reasons(reasons: Mapping[str, str]) -> str:
    """The first three names with their reasons, for a message.

    Parameters
    ----------
    reasons : mapping of str to str

    Returns
    -------
    str

    Examples
    --------
    >>> some_reasons({"a.jpg": "cut short"})
    'a.jpg (cut short)'
    """
    shown = [f"{name} ({reason})" for name, reason in list(reasons.items())[:3]]
    return ", ".join(shown) + (", ..." if len(reasons) > 3 else "")


@contextmanager
def _as_decoding_error() -> Iterator[None]:
    """Decoders raise what they like of damaged files: a bomb, an AVIF and a DDS share no class of errors."""
    try:
        yield
    except DecodingError:
        raise
    except Exception as error:
        unknown = type(error).__name__ == "UnidentifiedImageError"  # its text is an address in memory
        reason = "Pillow knows no such format" if unknown else textwrap.shorten(str(error), 200)
        raise DecodingError(reason or type(error).__name__) from error


def _require_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DecodingError(f"it is {width:,} x {height:,}, more than {MOST_PIXELS:,} pixels")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise DecodingError(
            f"it is {width:,} x {height:,}, more than {MOST_ELONGATED} times longer than wide"
        )


def _upper_bits(opened: Any) -> Images:
    """Deep grey as bytes, as Pillow itself reads the channels of sixteen-bit colour."""
    values = np.asarray(opened)
    if (
        opened.mode == "F"
        or opened.format not in SCALED_TO_SIXTEEN
        or values.min() < 0
        or values.max() > 65535
    ):
        raise DecodingError(
            f"its {opened.format} file holds grey of mode {opened.mode!r}, whose range is not known; store "
            "it as a PNG file of 8 or 16 bits"
        )
    return (values >> 8).astype(np.uint8)
