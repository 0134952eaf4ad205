"""Compile every kernel for every generation of GPU, and tabulate what it needs there.

``python tests/kernel_resources.py`` writes the table anew, with the nvcc on the PATH.
"""

import functools
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from dqt_core import kernels
from dqt_core.kernels.emulator import cache

FOLDER = Path(kernels.__file__).parent
TABLE = Path(__file__).resolve().parents[1] / "reproductions" / "kernel_resources.json"
COLUMNS = ["source", "variant", "kernel", "sm", "registers", "shared_bytes", "stack_bytes", "spilled_bytes"]

# generation of GPU: the instructions its code is made from; the sources ask only whether they are sm_80's
GENERATIONS = {75: 75, 80: 80, 86: 80, 89: 80, 90: 80}
FLAGS = ("-std=c++17", "-fatbin", "--threads=2", "-Xptxas", "-v,-Werror", "--Werror", "all-warnings")
FLAGS += tuple(
    part
    for sm, instructions in GENERATIONS.items()
    for part in ("-gencode", f"arch=compute_{instructions},code=sm_{sm}")
)
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<sm>\d+)'\n"
    r".*\n\s+(?P<stack>\d+) bytes stack frame, (?P<spilled>\d+) bytes spill stores.*\n"
    r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)


class CompilationError(RuntimeError):
    """The compiler refuses a kernel, or warns of something."""


def sources():
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def words(defines):
    return " ".join(f"{name}={value}" for name, value in defines.items())


@functools.cache
def nvcc_release():
    """Like 13.0.88; None where there is no nvcc."""
    if shutil.which("nvcc") is None:
        return None
    return re.search(r"release .* V(\S+)", subprocess.check_output(["nvcc", "--version"], text=True)).group(1)


def rows(source, defines, folder=FOLDER):
    """What every kernel of a variant needs on every generation, from nvcc or from an earlier run of it."""
    texts = [(folder / name).read_text() for name in ("common.cuh", f"{source}.cu")]
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in defines.items())]
    key = hashlib.sha256(repr((nvcc_release(), flags, texts)).encode()).hexdigest()
    kept = cache() / f"{key}.json"
    if not kept.exists():
        made = compiled(folder / f"{source}.cu", flags)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{id(made)}")
        partial.write_text(json.dumps(made))
        partial.replace(kept)
    return [[source, words(defines), *row] for row in json.loads(kept.read_text())]


def compiled(path, flags):
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *flags, "-o", f"{folder}/out", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    report = result.stdout + result.stderr
    if result.returncode:
        raise CompilationError(report)
    columns = ("kernel", "sm", "registers", "shared", "stack", "spilled")
    found = [[match[column] or 0 for column in columns] for match in ENTRY.finditer(report)]
    return sorted([name, *map(int, numbers)] for name, *numbers in found)


def write(path=TABLE):
    """Write the table, one row a line."""
    variants = [(source, defines) for source in sources() for defines in kernels.VARIANTS[source]]
    table = itertools.chain.from_iterable(rows(*variant) for variant in variants)
    lines = ",\n".join(f"    {json.dumps(row)}" for row in table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{{\n  "compiler": "nvcc {nvcc_release()}",\n  "columns": {json.dumps(COLUMNS)},\n'
        f'  "rows": [\n{lines}\n  ]\n}}\n'
    )


if __name__ == "__main__":
    write()
