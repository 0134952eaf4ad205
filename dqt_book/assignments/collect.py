"""Find the notebooks in a folder of submissions, however they came, and say of each what it is."""

import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat

from dqt_book.assignments import course
from dqt_book.assignments.repair import grade_id

# "Anna Muster_123456_assignsubmission_file_", as Moodle names a participant's folder
MOODLE = re.compile(r"_\d+_assignsubmission_\w+$")
IGNORED = {"__pycache__", "__MACOSX"}
PACKED = {".zip", ".gz", ".7z", ".rar", ".tar", ".tgz"}


@dataclass
class Found:
    """A notebook, or a folder without one; `reason` says why it cannot be graded."""

    student: str
    path: Path
    name: str = ""
    notebook: nbformat.NotebookNode | None = None
    reason: str = ""


def everything(folder):
    """A `Found` for each notebook and each folder without one, students in order."""
    rows, taken = [], set()
    for entry in sorted(folder.iterdir()):
        if hidden(entry):
            continue
        if entry.is_dir():
            rows += of_student(entry, unique(MOODLE.sub("", entry.name), taken))
        elif entry.suffix == ".ipynb":
            rows.append(Found(entry.stem, entry, reason="it lies in no student's folder: put it into one"))
        elif entry.suffix in PACKED:
            rows.append(Found(entry.stem, entry, reason="it is an archive, expected a folder: unpack it"))
    return rows


def hidden(path):
    return path.name.startswith(".") or path.name in IGNORED


def unique(name, taken):
    """A student's name as nbgrader takes it in paths and patterns, another for each folder."""
    plain = re.sub(r"[^\w .,'@-]", "_", name).strip() or "_"
    made, number = plain, 1
    while made in taken:
        number += 1
        made = f"{plain} ({number})".replace("(", "").replace(")", "")
    taken.add(made)
    return made


def of_student(folder, student):
    paths = [
        path
        for path in sorted(folder.rglob("*.ipynb"))
        if not any(hidden(part) for part in (path, *path.relative_to(folder).parents) if part.name)
    ]
    if not paths:
        return [Found(student, folder, reason="there is no notebook in it")]
    rows = [read(student, path) for path in paths]
    for name in {row.name for row in rows if row.notebook}:
        # the name that was asked for first, then as sorted
        same = [row for row in rows if row.notebook and row.name == name]
        first = min(same, key=lambda row: row.path.name != f"{name}.ipynb")
        for row in same:
            if row is not first:
                row.notebook = None
                which = first.path.relative_to(folder)
                row.reason = f"it is a second {name}, beside {which}: leave the one that counts"
    return rows


def read(student, path):
    """A notebook and its assignment: by its tasks, or where it has none by its file's name."""
    row = Found(student, path, by_name(path))
    try:
        if path.is_symlink() or not path.is_file():
            row.reason = "it is a link or a folder, expected a file"
            return row
        text = path.read_text(encoding="utf-8")
        if re.search(r"^\s*<<<<<<< ", text, re.MULTILINE):
            row.reason = "it has the marks of a merge conflict (<<<<<<<) in it"
            return row
        json.loads(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cells with one id, which are given new ones
            notebook = nbformat.reads(text, as_version=4)
        marks = Counter((grade_id(cell) or "").partition("_")[0] for cell in notebook.cells)
        for number, cell in enumerate(notebook.cells, 1):
            if not isinstance(cell.source, str) or not isinstance(cell.cell_type, str):
                raise ValueError(f"the source of cell {number} is no text")
        nbformat.writes(notebook).encode()  # half a character, as JSON can hold it, cannot be written again
    except json.JSONDecodeError as error:
        row.reason = f"it is cut off or edited by hand (line {error.lineno}: {error.msg}): ask for it again"
        return row
    except Exception as error:
        told = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        row.reason = f"it cannot be read as a notebook ({told}): ask for it again"
        return row
    known = [name for name, _ in marks.most_common() if name in course.NAMES]
    row.name = known[0] if known else row.name
    if not row.name:
        row.reason = f"it has no task of {', '.join(course.NAMES)}, and none of these names"
    else:
        row.notebook = notebook
    return row


def by_name(path):
    """The assignment that a file's name begins with: `A1.ipynb`, `a1 (1).ipynb`, `a1-late.ipynb`."""
    return next(
        (name for name in course.NAMES if re.match(rf"{name}(?![a-z0-9])", path.stem, re.IGNORECASE)), ""
    )
