"""What `make check` runs: the doctests and the unit tests of the rooms that were touched since main.

python tests/touched.py [ROOM ...]
"""

import fnmatch
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# room: (what belongs to it, its unit tests)
ROOMS = {
    "numbers": (("dqt_core/nested.py", "dqt_core/integer/*"), "nested integer"),
    "program": (("dqt_core/program/*",), "program contract"),
    "kernels": (("dqt_core/kernels/*",), "emulator kernels_*"),
    "backends": (("dqt_core/backends/*",), "backends bit_planes gpu_backend numba_compiling"),
    "export": (("dqt_core/export/*",), "export export_c qdq qonnx"),
    "data": (("dqt_core/data/*",), "data data_decoding data_imagenet shards streaming"),
    "evaluation": (
        ("dqt_core/evaluation/*", "dqt_core/selftest.py"),
        "allocate cascade cost records results selftest statistics verification",
    ),
    "training": (
        ("dqt_core/training/*", "dqt_core/__main__.py"),
        "agreement calibration command conversion faithful layers layerwise lowering models objective "
        "quantize steps straight_through threads train",
    ),
    "exercises": (
        ("dqt_book/exercises/*", "book/[0-9]*.md", "book/kernels-in-detail.md"),
        "book_checks book_kernels",
    ),
    "assignments": (("dqt_book/assignments/*", "book/assignments/*"), "own_assignment grading"),
    "widgets": (
        ("dqt_book/widgets/*", "book/_static/*"),
        "controller_explorer cost_calculator live_demo requantize_stepper widgets",
    ),
    "records": (
        ("dqt_book/records/*", "benchmarks/*", "reproductions/*"),
        "baselines compare comparison cpu_records exports gpu_records imagenet_run parameters plan_imagenet "
        "reproducibility side_by_side",
    ),
}
# Of all rooms, or of what takes minutes: `make test` alone runs them.
LATER = (
    "assignments book book_notebooks browser contract_mutants distributed fuzz kernel_mutants networks "
    "numba_memory project reproductions workshop"
)


def tests(names):
    """The files of tests by their names."""
    return {path.stem for name in names.split() for path in HERE.glob(f"test_{name}.py")}


def rooms_of(files):
    """The rooms that files belong to; a file of tests belongs to the room that it tests."""
    return [
        room
        for room, (patterns, names) in ROOMS.items()
        if any(fnmatch.fnmatch(file, pattern) for file in files for pattern in patterns)
        or tests(names) & {Path(file).stem for file in files}
    ]


def arguments(rooms):
    """What pytest is given: the sources that have doctests, and the tests."""
    found = set()
    for room in rooms:
        patterns, names = ROOMS[room]
        found |= {pattern.removesuffix("/*") for pattern in patterns if pattern.startswith("dqt_core/")}
        found |= {f"tests/{name}.py" for name in tests(names)}
    return sorted(found) or ["dqt_core"]


def changed():
    """Files that differ from main, or from the last commit where there is no main, and new ones."""

    def git(*command):
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.split()

    base = git("merge-base", "HEAD", "main") or ["HEAD"]
    return [*git("diff", "--name-only", *base), *git("ls-files", "--others", "--exclude-standard")]


def main(*rooms):
    if unknown := set(rooms) - set(ROOMS):
        sys.exit(f"ROOM is {' '.join(sorted(unknown))}; choose of {', '.join(ROOMS)}")
    print(*arguments(rooms or rooms_of(changed())))


if __name__ == "__main__":
    main(*sys.argv[1:])
