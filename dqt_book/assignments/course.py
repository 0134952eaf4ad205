"""Make and grade the assignments, with nbgrader: python -m dqt_book.assignments.course --help.

An assignment has one source, `book/assignments/aN/aN.md`, with its solution inside. `make` turns the sources
into an nbgrader course: `source/` for instructors, `release/` for students. `grade` grades submissions with
nbgrader's own autograder. Whatever nbgrader does with such a folder works on it too, its formgrader for one.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

import jupytext
import nbformat
from traitlets.config import Config

from dqt_book.places import ROOT

HELPERS = Path(__file__).resolve().parent
SOURCES = ROOT / "book" / "assignments"
COURSE = ROOT / "_build" / "assignments"
NAMES = tuple(sorted(path.parent.name for path in SOURCES.glob("*/a[0-9].md")))
STUB = 'raise NotImplementedError("write this function")'
HIDDEN = """
### BEGIN HIDDEN TESTS
import hashlib, importlib, pathlib, sys
for module in {digests}:
    sys.modules.pop(module, None)
for module, digest in {digests}.items():
    file = pathlib.Path(importlib.import_module(module).__file__)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, f"{{file}} was changed"
sys.modules["tasks"].grade({call}
### END HIDDEN TESTS"""


def text(name):
    return (SOURCES / name / f"{name}.md").read_text(encoding="utf-8")


def modules(name):
    """{module: file} of what a notebook imports from beside it; its hidden tests hold their digests."""
    found = {
        "tasks": SOURCES / name / "tasks.py",
        "grading": HELPERS / "grading.py",
        "judging": HELPERS.parent / "exercises" / "judging.py",
    }
    if "import emulation" in found["tasks"].read_text(encoding="utf-8"):
        found["emulation"] = HELPERS.parent / "exercises" / "emulation.py"
    return found


def tasks(name):
    """The module `tasks` of an assignment, and what it imports, as they are beside its notebook."""
    for module, path in reversed(modules(name).items()):
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return sys.modules["tasks"]


def facts(name):
    """Title, minutes and chapters of an assignment, and its tasks: {grade_id: (title, points)}."""
    source = jupytext.reads(text(name), fmt="md:myst")
    found, heading = {}, ""
    for cell in source.cells:
        titles = [line[3:] for line in cell.source.splitlines() if line.startswith("## ")]
        heading = titles[-1] if titles and cell.cell_type == "markdown" else heading
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("grade"):
            found[task_of(marks["grade_id"])] = heading.partition(": ")[2], marks["points"]
    return {**source.metadata["assignment"], "tasks": found}


def task_of(grade_id):
    return grade_id.removesuffix("_check")


def instructor(name):
    """The notebook with solutions and hidden tests, as nbgrader reads it."""
    made = jupytext.reads(text(name), fmt="md:myst")
    digests = {
        module: hashlib.sha256(path.read_bytes()).hexdigest() for module, path in modules(name).items()
    }
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
        given = cell.metadata.pop("nbgrader", None)
        cell.metadata.clear()
        if given is None:
            continue
        standard = {"schema_version": 3, "grade": False, "solution": False, "task": False}
        cell.metadata.nbgrader = standard | {"locked": not given.get("solution", False)} | dict(given)
        if given.get("grade"):
            call = cell.source.splitlines()[-1].removeprefix("check(")
            cell.source += HIDDEN.format(digests=digests, call=call)
    made.metadata = {"kernelspec": made.metadata["kernelspec"], "language_info": {"name": "python"}}
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def markers(name):
    """The pytest.ini beside a notebook: its tasks are markers, and the first failure stops the run."""
    tasks = facts(name)["tasks"]
    lines = [f"    {task}: {title}, {points} points" for task, (title, points) in tasks.items()]
    head = [
        "[pytest]",
        "addopts = -x -q --strict-markers --strict-config --no-header",
        "python_files = run_tasks.py",
    ]
    return "\n".join([*head, "markers =", f"    {name}: all tasks, in order", *lines]) + "\n"


def configuration(folder):
    config = Config()
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.course_id = "nested-integers"
    config.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", ".pytest_cache"]
    config.ClearSolutions.code_stub = {"python": STUB}
    config.OverwriteCells.add_missing_cells = True
    config.Execute.timeout = 300
    return config


def api(folder, **changes):
    """nbgrader on a course folder; changes are {class: {trait: value}}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own imports'
        from nbgrader.apps import NbGraderAPI
    config = configuration(folder)
    for name, traits in changes.items():
        config[name].update(traits)
    return NbGraderAPI(config=config, log_level=logging.WARNING)


@contextlib.contextmanager
def quietly():
    """nbgrader tells its every step; what goes wrong comes back in its result."""
    path = os.environ["PATH"]
    # nbgrader calls alembic by its name, which is where this interpreter is
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ["PATH"] = path


def require(result, what):
    if not result["success"]:
        raise RuntimeError(f"nbgrader could not {what}:\n{result.get('log') or result.get('error')}")


def make(folder=COURSE, names=NAMES):
    """Write source/ and release/ of a course, and its nbgrader_config.py."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        here = folder / "source" / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        nbformat.write(instructor(name), here / f"{name}.ipynb")
        for path in (*modules(name).values(), HELPERS / "run_tasks.py"):
            shutil.copy(path, here)
        (here / "pytest.ini").write_text(markers(name))
        with quietly():
            require(api(folder).generate_assignment(name, force=True), f"make {name}")
    lines = ["c = get_config()  # run nbgrader in this folder"]
    for section, traits in configuration(folder).items():
        for trait, value in traits.items():
            if str(folder) != value:
                lines.append(f"c.{section}.{trait} = {value!r}")
    (folder / "nbgrader_config.py").write_text("\n".join(lines) + "\n")


def grade(folder, student, name, **changes):
    """Autograde one submission in submitted/; return {task: points}."""
    with quietly():
        nbgrader = api(folder, **changes)
        require(nbgrader.autograde(name, student, force=True, create=True), f"grade {name} of {student}")
        with nbgrader.gradebook as book:
            grades = book.find_submission(name, student).notebooks[0].grades
            return {task_of(grade.name): grade.score for grade in grades}


def submissions(folder):
    """(student, assignment) of every notebook in DIR/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb."""
    found = [(path.parts[-3], path.stem) for path in sorted(Path(folder).glob("*/*/*.ipynb"))]
    found = [(student, name) for student, name in found if name in NAMES]
    if not found:
        raise SystemExit(f"{folder} has no submission: expected {folder}/STUDENT/{NAMES[0]}/{NAMES[0]}.ipynb")
    return found


def grade_all(folder, submitted):
    found = submissions(submitted)
    if not (folder / "source").is_dir():
        make(folder)
    for student, name in found:
        there = folder / "submitted" / student / name
        if there.resolve() != (Path(submitted) / student / name).resolve():
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(Path(submitted) / student / name, there)
    print(f"{'student':20} {'':4} {'points':>6}")
    for student, name in found:
        points = grade(folder, student, name)
        lost = [task for task, (_, most) in facts(name)["tasks"].items() if points[task] < most]
        print(
            f"{student:20} {name:4} {sum(points.values()):6.0f}  {'lost: ' + ', '.join(lost) if lost else ''}"
        )
    print(f"what their cells said: {folder / 'autograded'}; points: {folder / 'gradebook.db'}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("make", "grade"))
    parser.add_argument("submissions", nargs="?", type=Path, help="grade: STUDENT/a1/a1.ipynb are below it")
    parser.add_argument("--course", type=Path, default=COURSE, help="the course folder (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.command == "make":
        make(chosen.course)
        print(f"for students: {chosen.course / 'release'}\nfor instructors: {chosen.course / 'source'}")
    elif chosen.submissions is None or not chosen.submissions.is_dir():
        raise SystemExit(f"grade needs a folder of submissions, got {chosen.submissions}")
    else:
        grade_all(chosen.course.resolve(), chosen.submissions)


if __name__ == "__main__":
    sys.exit(main())
