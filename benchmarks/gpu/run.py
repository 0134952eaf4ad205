"""Tests, measurements and sanitizer on this machine's GPU, into one record: ``make gpu``.

Everything that is done is written to reproductions/results/gpu/<device>-<date>.json as it comes, so a run
that is cut keeps what it has. With --emulated the measurements run on the emulator, with tiny sizes, and
nothing is recorded: that shows that the harness reaches its end.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NEEDED = ("numpy", "safetensors", "torch", "pytest", "hypothesis")
TESTS = ("tests/gpu", "tests/test_backends.py")
# Another pytest and other warnings than the pinned ones are no reason to stop here.
PYTEST = ("-m", "pytest", *TESTS, "-m", "gpu", "-q", "--no-header", "-p", "no:cacheprovider")
PYTEST += ("-o", "minversion=7.0", "-o", "filterwarnings=default", "-o", "addopts=--strict-markers")
TEST_SECONDS, SANITIZER_SECONDS = 210, 60


def main() -> int:
    """Run and report; 0 where nothing failed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=7.5, help="after which nothing new is started")
    options.add_argument("--out", type=Path, default=ROOT / "reproductions" / "results" / "gpu")
    options.add_argument("--emulated", action="store_true", help="tiny sizes on the CPU, nothing recorded")
    options.add_argument(
        "--only", choices=["switch", "network", "gemv", "conv"], help="measure this and print"
    )
    given = options.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        print(f"{sys.executable} lacks {names}; get it with: {sys.executable} -m pip install {names}")
        return 2
    from dqt_core.backends.cupy_gpu import GpuError

    try:
        bench = emulated_bench() if given.emulated else gpu_bench()
    except GpuError as error:
        print(error)
        return 2
    if given.emulated or given.only:
        return print_rows(bench, given.only)
    return record_all(bench, given.out, time.monotonic() + 60 * given.minutes)


def emulated_bench():
    """Tiny sizes on the CPU."""
    from benchmarks.gpu.clock import HostClock
    from benchmarks.gpu.rows import TINY, Bench
    from dqt_core.backends import emulated

    return Bench(emulated.engine(), HostClock(), TINY)


def gpu_bench():
    """Real sizes on the GPU."""
    from benchmarks.gpu.clock import GpuClock
    from benchmarks.gpu.rows import Bench, Sizes
    from dqt_core.backends import cupy_gpu

    return Bench(cupy_gpu.engine(), GpuClock(cupy_gpu.engine().xp), Sizes())


def print_rows(bench, only: str | None) -> int:
    """Measure without recording; on the emulator that shows that every measurement reaches its end."""
    from benchmarks.gpu.rows import GROUPS

    note = "" if bench.clock.meaningful else " (emulated: times mean nothing)"
    for name in [only] if only else GROUPS:
        rows = list(GROUPS[name](bench))
        print(f"{name}: {len(rows)} rows{note}")
        if bench.clock.meaningful:
            print(report({"checks": [], "rows": rows}))
    return 0


def record_all(bench, out: Path, deadline: float) -> int:
    """Tests first, then measurements, then the sanitizer."""
    from benchmarks.gpu.record import Record, machine
    from benchmarks.gpu.rows import measure

    record = Record(out, machine(bench.xp))
    command(record, "tests", [sys.executable, *PYTEST], min(TEST_SECONDS, deadline - time.monotonic()))
    reserved = 2 * SANITIZER_SECONDS if shutil.which("compute-sanitizer") else 0
    measure(bench, record, lambda: time.monotonic() > deadline - reserved)
    sanitize(record, deadline)
    record.finish()
    print(report(record.data), f"record: {record.path}", sep="\n")
    return int(any(check["passed"] is False for check in record.data["checks"]))


def sanitize(record, deadline: float) -> None:
    """memcheck and racecheck on a short script."""
    tool = shutil.which("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        if tool is None:
            record.check(check, None, 0, "not run: compute-sanitizer is not on the PATH")
            continue
        line = [
            tool,
            "--tool",
            check,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "benchmarks.gpu.sanitize",
        ]
        command(record, check, line, min(SANITIZER_SECONDS, deadline - time.monotonic()))


def command(record, name: str, line: list[str], seconds: float) -> None:
    """Run a command and record its end: what it printed last, or that time ran out."""
    start = time.monotonic()
    if seconds < 5:
        record.check(name, None, 0, "not run: no time left")
        return
    paths = [
        str(ROOT),
        str(ROOT / "tests"),
        os.environ.get("PYTHONPATH", ""),
    ]  # the sanitizer runs their checks
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        record.check(name, False, time.monotonic() - start, f"not finished after {error.timeout:.0f} s")
        return
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode:
        print("\n".join(lines[-60:]))
    record.check(name, done.returncode == 0, time.monotonic() - start, summary(lines))


def summary(lines: list[str]) -> str:
    """The line that counts: pytest's or the sanitizer's last word."""
    told = [line for line in lines if " passed" in line or " failed" in line or "SUMMARY" in line]
    return (told or lines)[-1].strip("= ")[:300]


def report(data: dict) -> str:
    """Checks and rows as text."""
    marks = {True: "ok    ", False: "FAILED", None: "-     "}
    lines = [f"{marks[check['passed']]} {check['name']}: {check['detail']}" for check in data["checks"]]
    for row in data["rows"]:
        mark = {True: "met   ", False: "missed", None: "-     "}[row["met"]]
        lines.append(f"{mark} {row['ratio']:6.2f}x {row['group']}: {row['what']}, against {row['peer']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
