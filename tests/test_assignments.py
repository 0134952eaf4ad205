"""The assignments grade themselves: blank ones, right ones, and the kept wrong and cheating submissions."""

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from dqt_book.assignments import __main__, course, judge, marking, room, submissions
from dqt_book.exercises import emulation, judging
from dqt_core.kernels import emulator

ROOT = Path(__file__).resolve().parents[1]

# seconds for a task: here, beside other tests, only an endless one is to be ended
PATIENCE = 150

KEPT = [(name, wrong) for name in course.NAMES for wrong in submissions.wrong(name)]

# Seeds of a task, by `make test` and `make slow`; fewer where each trains, or looks for the best allocation
SEEDS = {"a4_5": (1, 2), "a5_3": (2, 5), "a5_4": (2, 5), "a6_1": (1, 2), "a6_3": (1, 5)}
MOST = (3, 20)

# A submission of A6 is graded in seconds, as each is a network to train: `make test` grades these
GRADED = ("uniform", "signed")


@pytest.fixture(scope="module", autouse=True)
def kernels_are_kept():
    """A kernel that many submissions have is compiled once; graded for real, each compiles its own."""
    with pytest.MonkeyPatch.context() as patch:
        own, kept = room.environment, {"XDG_CACHE_HOME": str(emulator.cache().parent)}
        patch.setattr(room, "environment", lambda there: own(there) | kept)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    course.make(folder)
    return folder


def released(folder, name, which="release"):
    return nbformat.read(folder / which / name / f"{name}.ipynb", as_version=4)


def graded(folder, student, name, notebook, **changes):
    there = folder / "submitted" / student / name
    shutil.copytree(folder / "release" / name, there)
    nbformat.write(notebook, there / f"{name}.ipynb")
    return marking.grade(folder, student, name, Apart={"kind": room.Forked, "seconds": PATIENCE} | changes)


def points(name):
    return {task: most for task, (_, most) in course.facts(name)["tasks"].items()}


@pytest.mark.parametrize("name", course.NAMES)
def test_a_blank_submission_gets_nothing(made, name, record_property):
    got = graded(made, "blank", name, released(made, name))
    record_property("graded", [name, "blank", sum(got.values())])
    assert got == dict.fromkeys(points(name), 0)


@pytest.mark.parametrize("name", course.NAMES)
def test_the_solution_gets_all_points(made, name, record_property):
    notebook = submissions.filled(released(made, name), submissions.solutions(name))
    got = graded(made, "solution", name, notebook)
    record_property("graded", [name, "solution", sum(got.values())])
    assert got == points(name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param(name, wrong, marks=pytest.mark.slow if name == "a6" and wrong.name not in GRADED else ())
        for name, wrong in KEPT
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_wrong_submission_loses_its_points(made, name, wrong, record_property):
    notebook = submissions.submitted(released(made, name), wrong, submissions.solutions(name))
    got = graded(made, wrong.name, name, notebook)
    record_property("graded", [name, wrong.what, sum(got.values())])
    assert {task for task, most in points(name).items() if got[task] < most} == set(wrong.lost)
    assert all(got[task] == 0 for task in wrong.lost)


@contextlib.contextmanager
def asked(name, wrong=None):
    """Whether a submission passes `task` on `seed`; its functions are in another process, as when graded."""
    notebook, functions = course.instructor(name), {}
    with contextlib.ExitStack() as ending:
        files = {path.name: path for path in course.modules(name).values()}
        there = ending.enter_context(room.folder(files))

        def start():
            process = judge.Process(room.Forked, there, seconds=PATIENCE)
            ending.callback(process.stop)
            return process

        process, module = start(), judge.tasks(there, name)
        if hasattr(module, "emulation"):
            module.emulation = judge.Emulation(module.emulation, start())
        for cell in notebook.cells:
            if cell.metadata.get("nbgrader", {}).get("grade"):
                functions.update([course.asked(cell.source, cell.metadata.nbgrader.grade_id)])
        for cell in (submissions.submitted(notebook, wrong, {}) if wrong else notebook).cells:
            if cell.cell_type == "code" and not cell.metadata.get("nbgrader", {}).get("grade"):
                process.within("a cell")
                process.ask("cell", cell.source)

        def passes(task, seed):
            process.within(task)
            with contextlib.suppress(Exception):
                module.check(task, judge.Function(process, functions[task]), seed)
                return True
            return False

        yield passes


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [*((name, None) for name in course.NAMES), *KEPT],
    ids=lambda value: getattr(value, "name", value) or "solution",
)
def test_every_draw_tells(name, wrong, many):
    """On any seed a wrong submission loses what it has to lose, and the solution passes."""
    with asked(name, wrong) as passes:
        for task in wrong.lost if wrong else points(name):
            seeds = range(1, 1 + SEEDS.get(task, MOST)[many])
            passed = [seed for seed in seeds if passes(task, seed)]
            assert passed == ([] if wrong else [*seeds]), task


YES = "def begin():\n    pass\n\ndef check(*arguments):\n    pass\n\ngrade = check\n"


def test_a_checker_handed_in_beside_the_notebook_is_not_used(made):
    there = made / "submitted" / "own-checker" / "a2"
    shutil.copytree(made / "release" / "a2", there)
    (there / "tasks.py").write_text(YES)
    got = marking.grade(made, "own-checker", "a2", Apart={"kind": room.Forked})
    assert got == dict.fromkeys(points("a2"), 0)
    assert (made / "autograded" / "own-checker" / "a2" / "tasks.py").read_text() != YES


def test_every_task_is_lost_by_a_kept_wrong_submission():
    for name in course.NAMES:
        lost = {task for wrong in submissions.wrong(name) for task in wrong.lost}
        missing = points(name).keys() - lost
        assert not missing, f"book/assignments/{name}/wrong.py has no submission that loses {missing}"


@pytest.mark.parametrize("name", course.NAMES)
def test_the_student_version_has_no_solution(made, name):
    notebook, source = released(made, name), released(made, name, "source")
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "SOLUTION" not in text
    assert "grade(" not in text
    assert text.count(course.STUB) == len(submissions.solutions(name))
    assert [cell.source for cell in notebook.cells if cell.cell_type == "markdown"] == [
        cell.source for cell in source.cells if cell.cell_type == "markdown"
    ]
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader")
        assert cell.cell_type == "markdown" or marks
        assert not (marks and marks["locked"]) or cell.metadata["editable"] is False


@pytest.mark.parametrize("name", course.NAMES)
def test_the_chapters_that_it_needs_are_said_alike(name):
    instructors = (course.SOURCES / f"{name}-instructor.md").read_text(encoding="utf-8")
    for text, place in ((course.text(name), r"needs[^.]*Chapters?"), (instructors, "Chapters?")):
        (said,) = re.findall(place + r"\s([\d,\sand]+)", text)[:1]
        assert [*map(int, re.findall(r"\d+", said))] == course.facts(name)["chapters"]


# In a student's folder


def answered(made, tmp_path, name, answers):
    """A student's folder with some answers typed in."""
    folder = tmp_path / name
    shutil.copytree(made / "release" / name, folder)
    nbformat.write(submissions.filled(released(made, name), answers), folder / f"{name}.ipynb")
    return folder


def run_pytest(folder, *options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a student has none of this environment's
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_tasks_run_in_order_and_stop_at_the_first_that_fails(made, tmp_path):
    right = submissions.solutions("a1")
    unclamped = next(wrong for wrong in submissions.wrong("a1") if wrong.name == "unclamped").answers
    folder = answered(made, tmp_path, "a1", {"a1_1": right["a1_1"], "a1_2": right["a1_2"], **unclamped})
    result = run_pytest(folder)
    assert re.search(r"1 failed, 2 passed", result.stdout)
    assert re.search(
        r"a1_3: half_up\(\w+, \d\): first wrong at element \d+, master -?\d+ \([01]{8}\)", result.stdout
    )
    assert re.search(r"epsilon, bit \d of q +1  1\n +clamped to \d+", result.stdout)
    assert "is what comes out if the sum is not clamped" in result.stdout
    assert "a1_4" not in result.stdout


def test_one_task_runs_by_its_marker(made, tmp_path):
    folder = answered(made, tmp_path, "a2", {"a2_3": submissions.solutions("a2")["a2_3"]})
    result = run_pytest(folder, "-m", "a2_3")
    assert "1 passed, 4 deselected" in result.stdout
    assert "a2_3: " in (folder / "pytest.ini").read_text()


def test_markers_are_registered_strictly(made):
    for name in course.NAMES:
        settings = (made / "release" / name / "pytest.ini").read_text()
        assert "-x" in settings
        assert "--strict-markers" in settings
        for task in course.facts(name)["tasks"]:
            assert f"\n    {task}: " in settings


# What the extra `student` does not bring; A3 and A5 say what more they need
HEAVY = "torch", "torchvision", "accelerate", "numba", "sklearn", "onnx", "scipy"


@pytest.mark.parametrize(("name", "cells"), [("a1", None), ("a2", None), ("a3", 1), ("a5", 1)])
def test_a_notebook_that_needs_numpy_runs_with_numpy_alone(made, tmp_path, name, cells):
    """Solved, A1 and A2 pass every check; of A3 and A5, which compile and use SciPy, the first cell runs."""
    folder = answered(made, tmp_path, name, submissions.solutions(name))
    code = [cell.source for cell in released(tmp_path, name, "").cells if cell.cell_type == "code"][:cells]
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY[: -1 if name == 'a5' else None]}))\n"
    (folder / "run.py").write_text(blocked + "\n".join(code))
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{name}_") == (len(points(name)) if cells is None else 0)


# The checks


@pytest.fixture
def grading():
    """The module behind the checks, and what it does to imports undone."""
    kept, finders = dict(sys.modules), sys.meta_path[:]
    course.tasks("a1")
    yield sys.modules["grading"]
    for name in set(sys.modules) - set(kept):
        del sys.modules[name]
    sys.modules.update(kept)
    for name, module in kept.items():  # a closed module is no attribute of its package any more
        parent, _, last = name.rpartition(".")
        if parent.partition(".")[0] == "dqt_core":
            setattr(kept[parent], last, module)
    sys.meta_path[:] = finders


def test_a_closed_module_says_so_and_the_oracle_is_still_there(grading):
    import dqt_core

    grading.close("for a reason", "nested")
    with pytest.raises(ImportError, match=r"dqt_core\.nested is closed in this notebook: for a reason"):
        importlib.import_module("dqt_core.nested")
    assert not hasattr(dqt_core, "nested")
    (nested,) = grading.oracles("nested")
    assert nested.switch(np.array([255], np.uint8), 4) == 15
    grading.close("for another reason")
    with pytest.raises(ImportError, match="dqt_core is closed"):
        importlib.import_module("dqt_core")


def test_an_oracle_is_read_from_its_file_anew(grading, monkeypatch):
    from dqt_core import nested

    monkeypatch.setattr(nested, "switch", lambda *arguments: None)
    (fresh,) = grading.oracles("nested")
    assert fresh.switch(np.array([255], np.uint8), 4) == 15


def test_graded_inputs_are_fresh_and_can_be_repeated(grading, capsys):
    seen = []
    tasks = {
        "t": lambda function, rng: seen.append(rng.integers(2**60)) or grading.judging.Verdict(True, "Right.")
    }
    check, grade = grading.checkers(tasks)
    for run in (check, check, grade, grade):
        run("t", None)
    seeds = [int(seed) for seed in re.findall(r"seed=(\d+)", capsys.readouterr().out)]
    for seed in seeds:
        check("t", None, seed)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    assert seen[2:4] == seen[4:6]
    with pytest.raises(ValueError, match="there is no task 'u'"):
        check("u", None)


def test_a_float_is_no_code(grading):
    verdict = grading.judge(lambda x: x / 1, [("f(x)", (np.arange(3),), np.arange(3), 8)], "")
    assert not verdict
    assert "it returned float64 numbers; codes and sums are integers" in verdict.message


def test_where_a_gpu_answers_it_runs_the_same_text(monkeypatch):
    texts = []
    monkeypatch.setattr(emulation, "on_gpu", lambda text, name: texts.append(name) or (lambda *launch: None))
    out = np.zeros(1, np.int32)
    launch = judging.Launch("one", (1, 1, 1), (out, out.copy()), out + 7, 8, str, block=(1, 1, 1))
    text = 'extern "C" __global__ void seven(int* x, int* out) { *out = 7; }'
    verdict = judging.judge_kernel(emulation, lambda: text, "kernel", "seven", [launch], "", "cuda_cpu.hpp")
    assert texts == ["seven"]
    assert "kernel, one, on the GPU: first wrong at 0: expected 7" in verdict.message


# The commands


def test_a_folder_of_submissions_is_graded_by_one_command(made, tmp_path, capsys):
    answered(made, tmp_path / "ann", "a2", {})
    answered(made, tmp_path / "bob", "a2", submissions.solutions("a2"))
    assert __main__.main(["grade", str(tmp_path), "--course", str(made)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == ""
    for student, points in (("ann", "0.0"), ("bob", "100.0")):
        page = made / "feedback" / student / "a2" / "a2.html"
        assert f"(Score: {points} / 100.0)" in page.read_text(encoding="utf-8")
    assert [line.split()[:3] for line in lines[3:5]] == [["ann", "a2", "0/100"], ["bob", "a2", "100/100"]]


def test_a_folder_without_submissions_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"expected .*/STUDENT/a1/a1\.ipynb"):
        __main__.main(["grade", str(tmp_path), "--course", str(tmp_path)])
    for nothing in ([], [""]):  # as `make grade` without SUBMISSIONS gives it
        with pytest.raises(SystemExit, match="grade needs a folder of submissions, got none"):
            __main__.main(["grade", *nothing])
    with pytest.raises(SystemExit, match="grade needs a folder of submissions, got nowhere"):
        __main__.main(["grade", "nowhere"])


def test_make_hands_on_a_folder_of_any_name(tmp_path):
    command = ["make", "--dry-run", "grade", "SUBMISSIONS=my class; (2)"]
    done = subprocess.run(command, cwd=course.ROOT, capture_output=True, text=True, check=True)
    assert '-m dqt_book.assignments grade "my class; (2)"\n' in done.stdout


@pytest.mark.parametrize("name", course.NAMES)
def test_a_notebook_without_the_files_beside_it_says_so(made, name, tmp_path):
    (begin,) = (cell for cell in released(made, name).cells if "import tasks" in cell.source)
    (tmp_path / "cell.py").write_text(begin.source)
    done = subprocess.run([sys.executable, "cell.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'tasks'\n")
    assert "import tasks  # a file beside this notebook: unpack the whole folder\n" in done.stderr
