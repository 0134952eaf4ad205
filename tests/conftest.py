"""Fixtures and rules that all tests share."""

import functools
import os
import re
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from dqt_book.places import network
from dqt_core import data, results
from dqt_core.backends import cupy_gpu
from dqt_core.kernels.emulator import NoCompilerError
from dqt_core.program import Program, load

# The networks of the tests are too small for threads to help, and threads that wait for each other are slow
# where the machine does something else too. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
REPRODUCTIONS = ROOT / "reproductions"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cifar10" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        if item.get_closest_marker("gpu") and (reason := without_gpu()):
            item.add_marker(pytest.mark.skip(reason=reason))
    for notebook in {item.parent for item in items if item.path.suffix == ".ipynb"}:
        notebook.setup = functools.partial(without_data, notebook.setup)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (rank(item.nodeid), part(item.nodeid)))


# What only looks at the built book. One process builds it while the other runs what needs none.
OF_THE_BOOK = ("test_book.py", "test_book_notebooks.py", "test_workshop.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the suite out among processes: files stay whole, but for the pages in a browser."""
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return part(nodeid)

    return Parts(config, log)


def part(nodeid: str) -> str:
    """What of the suite a test belongs to; one process runs it all."""
    file = nodeid.split("::")[0]
    name = file.rsplit("/")[-1]
    if name in OF_THE_BOOK:
        return "book"
    return f"browser {zlib.crc32(nodeid.encode()) % 60}" if name == "test_browser.py" else file


def rank(nodeid: str) -> int:
    """The book first, as it takes longest; then a long file; last the browser, when the book is there."""
    name = part(nodeid)
    first = ("book", "tests/test_assignments.py")
    return first.index(name) if name in first else 3 if name.startswith("browser") else 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Skip what runs a kernel where nothing can compile it; CI has a compiler, and fails without one."""
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        cause: BaseException | None = error  # `pytest.raises` may have met it while it waited for another
        while cause and not isinstance(cause, NoCompilerError):
            cause = cause.__context__
        if cause is None or os.environ.get("CI"):
            raise
        pytest.skip(str(cause))


def without_data(start: Callable[[], None]) -> None:
    """Start a notebook's kernel as it was started where its outputs were stored."""
    prepared()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(data.ENVIRONMENT_VARIABLE, raising=False)
        start()


@functools.cache
def prepared() -> None:
    """Compile the kernels before a notebook runs, whose outputs are compared: that it is done is said."""
    code = "from dqt_core.backends import numba_cpu; numba_cpu.prepare()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@functools.cache
def without_gpu() -> str:
    """Why no GPU can be used; empty where one can."""
    try:
        cupy_gpu.require_gpu()
    except cupy_gpu.GpuError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def cifar10() -> data.Dataset:
    """CIFAR-10. Without it a test is skipped, or fails where DQT_REQUIRE_DATA=1 says it must be there."""
    if os.environ.get(data.ENVIRONMENT_VARIABLE):
        return data.load("cifar10")
    reason = f"needs CIFAR-10: set {data.ENVIRONMENT_VARIABLE} (get it with: {data.DOWNLOAD})"
    if os.environ.get("DQT_REQUIRE_DATA") == "1":
        pytest.fail(f"{reason}; it may not be skipped here, as DQT_REQUIRE_DATA=1", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shipped() -> Callable[..., Program]:
    """The shipped program of a data set; kind is "trained" or "cut"."""

    def program(name: str, kind: str = "trained") -> Program:
        record = results.read(REPRODUCTIONS / "results" / "resnet18_cifar" / f"{name}.json")
        return load(network(record, kind))

    return program


@pytest.fixture(scope="session")
def book() -> Path:
    """Build the book, once for all processes of this run, or fail with what it complained about."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    (ROOT / "_build").mkdir(exist_ok=True)
    with filelock.FileLock(ROOT / "_build" / "book.lock"):
        built = ROOT / "_build" / "book.run"
        if not built.is_file() or built.read_text() != run:
            _build_book()
            built.write_text(run)
    return ROOT / "_build" / "html"


def _build_book() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dqt_book.pages.build"], cwd=ROOT, capture_output=True, text=True
    )
    output = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout + result.stderr).splitlines()
    complaints = [line for line in output if re.search(r"WARNING: |ERROR: |Error: ", line)]
    if result.returncode != 0:
        pytest.fail("\n".join(["the book does not build:", *(complaints or output[-40:])]), pytrace=False)


# What is counted at the end of a run: tests whose subject is one planted error each.
PLANTED = {
    "test_a_wrong_solution_is_rejected": "wrong solutions of exercises rejected",
    "test_every_mutant_is_killed": "errors planted in kernels caught",
    "test_a_wrong_submission_loses_its_points": "wrong submissions of assignments lose their points",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for test, meaning in PLANTED.items():
        passed, failed = (
            sum(test in report.nodeid for report in terminalreporter.stats.get(outcome, ()))
            for outcome in ("passed", "failed")
        )
        if passed + failed:
            terminalreporter.write_line(f"{passed} of {passed + failed} {meaning}")
    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in getattr(report, "user_properties", ())
        if name == "graded" and report.when == "call"
    ]
    for assignment, submission, points in sorted(rows, key=lambda row: row[0]):
        terminalreporter.write_line(f"{assignment}  {points:3.0f} of 100  {submission}")
