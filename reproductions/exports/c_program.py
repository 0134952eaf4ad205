"""A program's C file compiled and run: what the tests and the record of digests share."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from dqt_core.export.c import to_c
from dqt_core.program import Result

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
CHECKED = ("-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
FAST = ("-O3",)


class NotThere(RuntimeError):
    """No C compiler."""


def compiler():
    found = shutil.which(os.environ.get("CC", "gcc"))
    if found is None:
        raise NotThere("needs a C compiler: install gcc or set CC")
    return found


def build(text, folder, *flags, main=True):
    """Compile C text; warnings are errors."""
    source, out = Path(folder) / "program.c", Path(folder) / "program"
    source.write_text(text)
    define = ["-DDQT_MAIN"] if main else ["-c"]
    subprocess.run([compiler(), *STRICT, *flags, *define, source, "-o", out], check=True)
    return out


def sections(text, folder):
    """Bytes of the sections of a file compiled for size."""
    made = build(text, folder, "-Os", main=False)
    listing = subprocess.run(["size", "-A", made], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listing.splitlines() if line.startswith(".")]
    return {name: int(number) for name, number, _ in found}


def run(executable, program, images, widths):
    """What the C program says, as the result of a run; its own digest is compared with that of its logits."""
    arguments, stream = as_input(program, images, widths)
    done = subprocess.run([executable, *arguments], input=stream, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    *lines, digest = done.stdout.decode().splitlines()
    classes, chosen, logits = zip(*(line.split("|") for line in lines), strict=True)
    shape = (len(images), len(program.layers), *((2,) if has_pairs(program) else ()))
    bits = np.array([row.split() for row in chosen], np.int64).reshape(shape)
    logits = np.array([row.split() for row in logits], np.int64)
    result = Result(logits, program._choices_of(bits, len(images)), bits, "c")
    assert result.digest == digest, "the sha256 in C is not that of the logits it printed"
    assert result.classes.tolist() == [int(name) for name in classes]
    return result


def has_pairs(program):
    return any(weight != x for weight, x in program.choices)


def as_input(program, images, widths):
    """Arguments and standard input of an executable, for widths in any form of `Program.run`."""
    if isinstance(widths, str):
        return ["0"], images.tobytes()
    if isinstance(widths, int):
        return [str(widths)], images.tobytes()
    pairs = np.array(program.choices)[program._choices_of(widths, len(images))]
    bits = (pairs if has_pairs(program) else pairs[..., 0]).astype(np.uint8)
    rows = zip(bits.reshape(len(images), -1), images.reshape(len(images), -1), strict=True)
    return ["-"], b"".join(row.tobytes() + image.tobytes() for row, image in rows)


def written(program, folder):
    return to_c(program, Path(folder) / "written.c").read_text()
