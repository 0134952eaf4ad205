"""Grade a folder of submissions: a row for each notebook and each folder, on the screen and in a CSV file."""

import csv
import os
import re
import shutil
import sys

import nbformat

from dqt_book.assignments import collect, course, judge, room
from dqt_book.assignments.repair import repaired

COLUMNS = ("student", "assignment", "points", "maximum", "lost", "reason", "file")


def grade(folder, student, name, **changes):
    """Autograde one submission in submitted/; return {task: points}."""
    with course.quietly():
        nbgrader = course.api(folder, **changes)
        result = nbgrader.autograde(name, student, force=True, create=True)
        course.require(result, f"grade {name} of {student}")
        with nbgrader.gradebook as book:
            grades = book.find_submission(name, student).notebooks[0].grades
            return {course.task_of(grade.name): grade.score for grade in grades}


def hand_in(folder, row):
    """Put a notebook and the files beside it into the course's submitted/."""
    there = folder / "submitted" / row.student / row.name
    if there.resolve() == row.path.parent.resolve() and row.path.name == f"{row.name}.ipynb":
        return
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir(parents=True)
    for path in row.path.parent.iterdir():
        if judge.usable(path):
            shutil.copyfile(path, there / path.name)
    shutil.copyfile(row.path, there / f"{row.name}.ipynb")


def graded(folder, row, submitted, **changes):
    """A row of the table: points of a maximum, or the reason why there are none."""
    line = dict.fromkeys(COLUMNS, "")
    line |= {"student": row.student, "assignment": row.name, "file": str(row.path.relative_to(submitted))}
    if row.notebook is None:
        return line | {"reason": row.reason}
    try:
        hand_in(folder, row)
        released = nbformat.read(folder / "release" / row.name / f"{row.name}.ipynb", as_version=4)
        _, notes = repaired(released, row.notebook)
        apart = {"hidden": (str(submitted),)}
        points = grade(folder, row.student, row.name, Apart=apart | changes)
    except Exception as error:
        return line | {"reason": f"nbgrader failed: {last_line(error)}"}
    most = {task: most for task, (_, most) in course.facts(row.name)["tasks"].items()}
    lost = [task for task in most if points.get(task, 0) < most[task]]
    said = stopped(folder, row)
    return line | {
        "points": f"{sum(points.values()):g}",
        "maximum": f"{sum(most.values()):g}",
        "lost": " ".join(lost),
        "reason": "; ".join([*said, *notes]),
    }


def stopped(folder, row):
    """What ended a notebook before its end, in the words of the first cell that says so."""
    there = folder / "autograded" / row.student / row.name
    notebook = nbformat.read(there / f"{row.name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.evalue for output in outputs if output.get("ename") == "Stopped"][:1]


def last_line(error):
    """What nbgrader failed of: its log ends in other words than those of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (raised or lines or [type(error).__name__])[-1][:200]


def grade_all(folder, submitted, pages=False, **changes):
    """Grade all of a folder; 1 if something in it was not graded. `changes` are traits of `judge.Apart`."""
    rows = collect.everything(submitted)
    if not rows:
        raise SystemExit(f"{submitted} has no submission: expected {submitted}/STUDENT/a1/a1.ipynb")
    with course.alone(folder):
        for name in sorted({row.name for row in rows if row.notebook}):
            if course.stale(folder, name):
                course.make(folder, [name])
        lines = table(folder, rows, submitted, **changes)
        unwritten = write_pages(folder, lines) if pages else []
    told = folder / ("feedback" if pages else "autograded")
    print(f"\nwhat their cells said: {told}; points: {folder / 'points.csv'}, gradebook.db")
    missing = [f"{line['file']}: {line['reason']}" for line in lines if not line["points"]]
    for what, which in (("not graded", missing), ("without a page of feedback", unwritten)):
        if which:
            print("\n  ".join([f"\n{what}, {len(which)} of {len(lines)}:", *which]))
    return int(bool(missing or unwritten))


def table(folder, rows, submitted, **changes):
    """Grade and print row by row; an interrupted grading leaves its rows, and the points before them."""
    so_far = folder / "points-so-far.csv"
    if so_far.is_file():
        print(f"a grading was interrupted: {so_far} had its rows, and is begun again", file=sys.stderr)
    print(f"{room.said()}\n\n{'student':24} {'':4} {'points':>9}", flush=True)
    lines = []
    for row in rows:
        line = graded(folder, row, submitted, **changes)
        lines.append(line)
        got = f"{line['points']:>5}/{line['maximum']}" if line["points"] else "-"
        lost = f"lost: {line['lost']}" if line["lost"] else ""
        told = "  ".join(part for part in (lost, line["reason"]) if part)
        print(f"{row.student[:24]:24} {row.name:4} {got:>9}  {told}", flush=True)
        try:
            write(so_far, lines)
        except OSError as error:
            told = f"{so_far} cannot be written ({error.strerror}): make room there, and grade again"
            raise SystemExit(f"{told}; points.csv is as it was") from error
    os.replace(so_far, folder / "points.csv")
    return lines


def write_pages(folder, lines):
    """A page for each graded notebook, of what its cells said, in feedback/; of those that failed, why."""
    failed = []
    with course.quietly():
        nbgrader = course.api(folder)
        for line in lines:
            if line["points"]:
                made = nbgrader.generate_feedback(line["assignment"], line["student"])
                if not made["success"]:
                    failed.append(f"{line['file']}: {last_line(made.get('log') or made.get('error'))}")
    return failed


def write(path, lines):
    """A CSV file; what a spreadsheet would take for a formula begins with an apostrophe."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for line in lines:
            table.writerow({k: f"'{v}" if v[:1] in ("=", "+", "-", "@") else v for k, v in line.items()})
