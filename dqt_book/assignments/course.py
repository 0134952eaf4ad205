"""Make the assignments, with nbgrader.

An assignment has one source, `book/assignments/NAME/NAME.md`, with its solution inside. `make` turns the
sources into an nbgrader course: `source/` for instructors, `release/` for students. Whatever nbgrader does
with such a folder works on it too, its formgrader for one.
"""

import ast
import contextlib
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
from dqt_core.data.datasets import DataError
from dqt_core.data.holding import held

HELPERS = Path(__file__).resolve().parent
SOURCES = ROOT / "book" / "assignments"
COURSE = ROOT / "_build" / "assignments"
NAMES = tuple(sorted(path.stem for path in SOURCES.glob("*/*.md") if path.stem == path.parent.name))
SECONDS = 30  # that a student's code may take for a task, and for a cell
# nbgrader's own steps, without `Execute`
SANITIZE = ("ClearOutput", "DeduplicateIds", "OverwriteKernelspec", "OverwriteCells", "CheckCellMetadata")
AUTOGRADE = (
    "IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "LimitOutput",
    "SaveAutoGrades",
    "AssignLatePenalties",
    "CheckCellMetadata",
)
SANITIZE, AUTOGRADE = (
    [step if "." in step else f"nbgrader.preprocessors.{step}" for step in steps]
    for steps in (SANITIZE, AUTOGRADE)
)
STUB = 'raise NotImplementedError("write this function")'


def text(name):
    return (SOURCES / name / f"{name}.md").read_text(encoding="utf-8")


def modules(name):
    """{module: file} of what a notebook imports from beside it."""
    found = {
        "tasks": SOURCES / name / "tasks.py",
        "grading": HELPERS / "grading.py",
        "judging": HELPERS.parent / "exercises" / "judging.py",
    }
    if "import emulation" in found["tasks"].read_text(encoding="utf-8"):
        found["emulation"] = HELPERS.parent / "exercises" / "emulation.py"
    return found


def tasks(name, folder=None):
    """The module `tasks` of an assignment, and what it imports, from its sources or from a made `folder`."""
    for module, path in reversed(modules(name).items()):
        path = folder / path.name if folder else path
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
    """The notebook with solutions, as nbgrader reads it."""
    made = jupytext.reads(text(name), fmt="md:myst")
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
        given = cell.metadata.pop("nbgrader", None)
        cell.metadata.clear()
        if given is None:
            continue
        if "_" in name:
            raise ValueError(f"an assignment's name has no underscore, which parts it from a task's: {name}")
        if not given["grade_id"].startswith(f"{name}_"):
            raise ValueError(f"{name}.md: a cell has the grade_id {given['grade_id']}, expected {name}_...")
        standard = {"schema_version": 3, "grade": False, "solution": False, "task": False}
        cell.metadata.nbgrader = standard | {"locked": not given.get("solution", False)} | dict(given)
        if given.get("grade"):
            asked(cell.source, given["grade_id"])
    made.metadata = {"kernelspec": made.metadata["kernelspec"], "language_info": {"name": "python"}}
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def asked(source, grade_id):
    """(task, function) of a check's cell, whose last line is `check("a1_3", half_up)` for a1_3_check."""
    task = task_of(grade_id)
    if task == grade_id:
        raise ValueError(f"a check has the grade_id {grade_id}, expected {grade_id}_check")
    with contextlib.suppress(SyntaxError, ValueError, AttributeError):
        last = ast.parse(source).body[-1].value
        name, function = last.args
        if (last.func.id, name.value) == ("check", task) and not last.keywords:
            return task, function.id
    line = source.splitlines()[-1] if source else "nothing"
    raise ValueError(f"the check {grade_id} ends in {line}; expected check({task!r}, FUNCTION), with a name")


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
    judge = "dqt_book.assignments.judge."
    config.Autograde.sanitize_preprocessors = [judge + "Repair", *SANITIZE]
    config.Autograde.autograde_preprocessors = [judge + "Apart", *AUTOGRADE]
    config.Apart.seconds = SECONDS
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


def require_same_tasks(folder, name):
    """Refuse new tasks or points for an assignment that was graded: nbgrader keeps grades by them."""
    if not (folder / "gradebook.db").is_file():
        return
    with quietly(), api(folder).gradebook as book:
        known = [one for one in book.assignments if one.name == name and one.submissions]
        if not known:
            return
        then = {task_of(cell.name): cell.max_score for one in known for cell in one.notebooks[0].grade_cells}
    now = {task: points for task, (_, points) in facts(name)["tasks"].items()}
    if then != now:
        changed = sorted(task for task in {*then, *now} if then.get(task) != now.get(task))
        raise SystemExit(
            f"{name} was graded with other tasks or points ({', '.join(changed)}): nothing was made. Keep "
            f"{folder / 'gradebook.db'} with its grades elsewhere, or choose another folder with --course"
        )


@contextlib.contextmanager
def alone(folder):
    """Within, no other process makes or grades assignments in a course folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as holding:
        try:
            holding.enter_context(held(folder / "lock", f"making or grading assignments in {folder}"))
        except DataError as error:
            raise SystemExit(str(error)) from None
        yield


def whole(folder, name):
    """The file that says that an assignment was made to its end."""
    return folder / "made" / name


def stale(folder, name):
    """Whether a made assignment is missing, not whole, or another than its sources make now."""
    here = folder / "source" / name
    if not whole(folder, name).is_file():
        return True
    files = [*modules(name).values(), HELPERS / "run_tasks.py"]
    if any(
        not (here / path.name).is_file() or (here / path.name).read_bytes() != path.read_bytes()
        for path in files
    ):
        return True
    made = nbformat.read(here / f"{name}.ipynb", as_version=4)
    cells = [(cell.source, cell.metadata) for cell in made.cells]
    return cells != [(cell.source, cell.metadata) for cell in instructor(name).cells]


def make(folder=COURSE, names=NAMES):
    """Write source/ and release/ of a course, and its nbgrader_config.py."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        require_same_tasks(folder, name)
        whole(folder, name).unlink(missing_ok=True)
        here = folder / "source" / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        nbformat.write(instructor(name), here / f"{name}.ipynb")
        for path in (*modules(name).values(), HELPERS / "run_tasks.py"):
            shutil.copy(path, here)
        (here / "pytest.ini").write_text(markers(name))
        with quietly():
            require(api(folder).generate_assignment(name, force=True), f"make {name}")
        whole(folder, name).parent.mkdir(exist_ok=True)
        whole(folder, name).touch()
    lines = ["c = get_config()  # run nbgrader in this folder"]
    for section, traits in configuration(folder).items():
        for trait, value in traits.items():
            if str(folder) != value:
                lines.append(f"c.{section}.{trait} = {value!r}")
    (folder / "nbgrader_config.py").write_text("\n".join(lines) + "\n")
