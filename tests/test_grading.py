"""Grading a class: a row for every folder, accidents, cheats, and what a student's process can reach."""

import copy
import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pytest

from dqt_book.assignments import collect, course, judge, marking, room, submissions, wire
from dqt_book.assignments.__main__ import main
from dqt_book.assignments.repair import grade_id, repaired

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="graded on Linux")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    course.make(folder, ["a1"])
    return folder


@pytest.fixture(scope="module")
def right(made):
    released = nbformat.read(made / "release" / "a1" / "a1.ipynb", as_version=4)
    return submissions.filled(released, submissions.solutions("a1"))


def saved(notebook, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook if isinstance(notebook, str) else json.dumps(notebook))


def table(folder):
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def changed(notebook, name, change):
    made = copy.deepcopy(notebook)
    change(made, next(i for i, cell in enumerate(made.cells) if grade_id(cell) == name))
    return made


def twice(made, at):
    made.cells.insert(at + 2, copy.deepcopy(made.cells[at]))


def without_id(made, at):
    pasted = copy.deepcopy(made.cells[at + 1])
    del pasted.metadata.nbgrader["grade_id"]
    made.cells.append(pasted)


def edited_id(made, at):
    made.cells[at].metadata.nbgrader.grade_id = "a1_33"


def answer(source):
    return lambda made, at: made.cells[at].update(source=source)


FROM_TWO = "a1_2 a1_3 a1_4 a1_5 a1_6"
LOOP = "def half_up(q, b):\n    while True:\n        pass"
DROP = "def drop_bits(q, b):\n    "
# {path: (what is done to the right notebook, its points, the tasks it loses, what is said of it)}
ACCIDENTS = {
    "pasted/a1/a1.ipynb": (("a1_3", twice), 100, "", "a cell has the name a1_3 a second time"),
    "pasted without a name/a1/a1.ipynb": (("a1_3", without_id), 100, "", ""),
    "edited/a1/a1.ipynb": (
        ("a1_3", edited_id),
        100,
        "",
        "a cell is named a1_33, as none is; a1_3 was missing",
    ),
    "ended/a1/a1.ipynb": (
        ("a1_2", answer("import os; os._exit(0)")),
        10,
        FROM_TWO,
        "a1_2 ended the notebook's",
    ),
    "left/a1/a1.ipynb": (("a1_2", answer("exit()\nimport sys\nsys.exit(3)")), 90, "a1_2", ""),
    "endless/a1/a1.ipynb": (("a1_3", answer(LOOP)), 20, "a1_3 a1_4 a1_5 a1_6", "a1_3 took more than 8 s"),
    "prints/a1/a1.ipynb": (
        ("a1_2", answer(f"print('x' * 10**8)\n%matplotlib inline\n{DROP}return q >> 8 - b")),
        100,
        "",
        "",
    ),
    "object/a1/a1.ipynb": (("a1_2", answer(f"{DROP}return object()")), 90, "a1_2", ""),
    "raises/a1/a1.ipynb": (("a1_2", answer(f"{DROP}raise SystemExit")), 90, "a1_2", ""),
    "half a character said/a1/a1.ipynb": (
        ("a1_2", answer(f"import sys; sys.stdout.write('\\ud800')\n{DROP}raise ValueError('\\ud800')")),
        90,
        "a1_2",
        "",
    ),
    "download/a1/a1 (1).ipynb": (None, 100, "", ""),
    "Capitals/A1/A1.ipynb": (None, 100, "", ""),
    "flat/a1.ipynb": (None, 100, "", ""),
    "nested/hw1/a1.ipynb": (None, 100, "", ""),
    "Anna Müster_123456_assignsubmission_file_/a1.ipynb": (None, 100, "", ""),
    "with [signs]*+/a1/a1.ipynb": (None, 100, "", ""),
    "late/a1/a1.ipynb": (None, 100, "", ""),
}
# {path: (text of the file, what is said of it)}
UNREADABLE = {
    "late/a1/a1-late.ipynb": ("right", "it is a second a1, beside a1/a1.ipynb"),
    "cut/a1/a1.ipynb": ("half", "it is cut off or edited by hand (line "),
    "merged/a1/a1.ipynb": ("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> b\n", "merge conflict"),
    "zero/a1/a1.ipynb": ("", "it is cut off or edited by hand (line 1"),
    "a list/a1/a1.ipynb": ("[]", "cannot be read as a notebook"),
    "a number/a1/a1.ipynb": (
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "raw", "id": "a",'
        ' "metadata": {}, "source": 5}]}',
        "the source of cell 1 is no text",
    ),
    "no cells/a1/a1.ipynb": ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "cannot be read"),
    "text cells/a1/a1.ipynb": (
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": ["a"]}',
        "cannot",
    ),
    "half a character/a1/a1.ipynb": (
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "markdown", "id": "a", '
        '"metadata": {}, "source": "\\ud800"}]}',
        "surrogates not allowed",
    ),
    "other/essay.ipynb": (
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}',
        "has no task of a1",
    ),
    "hw.ipynb": ("right", "it lies in no student's folder"),
}


def handed_in(right, submitted):
    """A folder of all of these."""
    for path, (change, *_) in ACCIDENTS.items():
        saved(changed(right, *change) if change else right, submitted / path)
    text = json.dumps(right, indent=1)
    for path, (content, _) in UNREADABLE.items():
        saved({"right": text, "half": text[: len(text) // 2]}.get(content, content), submitted / path)
    (submitted / "nothing").mkdir()
    (submitted / "packed.zip").write_bytes(b"")
    (submitted / "linked").mkdir()
    (submitted / "linked" / "a1.ipynb").symlink_to(submitted / "flat" / "a1.ipynb")
    (submitted / ".ipynb_checkpoints").mkdir()


def test_every_folder_has_its_row(made, right, tmp_path, capsys):
    handed_in(right, tmp_path / "my class")
    code = marking.grade_all(made, tmp_path / "my class", kind=room.Forked, seconds=8)
    assert_every_row(table(made), capsys.readouterr().out)
    assert code == 1


@pytest.mark.slow
def test_a_class_is_graded_in_six_minutes(made, right, tmp_path, capsys):
    """As a lecturer does it, each notebook in a process of its own."""
    handed_in(right, tmp_path / "my class")
    start = time.monotonic()
    assert main(["grade", str(tmp_path / "my class"), "--course", str(made), "--seconds", "8"]) == 1
    assert time.monotonic() - start < 360
    assert_every_row(table(made), capsys.readouterr().out)


def assert_every_row(rows, said):
    rows = {row["file"]: row for row in rows}
    for path, (_, points, lost, reason) in ACCIDENTS.items():
        assert (rows[path]["points"], rows[path]["maximum"]) == (str(points), "100"), rows[path]
        assert rows[path]["lost"] == lost
        assert rows[path]["reason"].startswith(reason)
        assert bool(rows[path]["reason"]) == bool(reason)
    reasons = {path: reason for path, (_, reason) in UNREADABLE.items()}
    reasons |= {"nothing": "no notebook", "packed.zip": "unpack", "linked/a1.ipynb": "a link"}
    for path, reason in reasons.items():
        assert rows[path]["points"] == ""
        assert reason in rows[path]["reason"]
        assert f"  {path}: {rows[path]['reason']}" in said.splitlines()
    assert rows.keys() == ACCIDENTS.keys() | reasons.keys()
    assert f"not graded, {len(reasons)} of {len(rows)}:" in said
    assert rows["Anna Müster_123456_assignsubmission_file_/a1.ipynb"]["student"] == "Anna Müster"


KILLED = """
import sys, test_grading
from pathlib import Path
from dqt_book.assignments import marking
marking.grade_all(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def alive(mark):
    """Processes whose command line or environment has this in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_grading_that_is_killed_leaves_the_points_before_it_and_no_process(made, right, tmp_path, capsys):
    """An endless loop of a student's too is ended; the next grading says what it found."""
    first, then = tmp_path / "first", tmp_path / "then"
    saved(right, first / "ann" / "a1.ipynb")
    saved(changed(right, "a1_2", answer(f"{DROP}return 0")), then / "ann" / "a1.ipynb")
    looping = LOOP.replace("while", "open('looping', 'w')\n    while")
    saved(changed(right, "a1_3", answer(looping)), then / "bob" / "a1.ipynb")
    assert marking.grade_all(made, first, kind=room.Forked) == 0
    before = table(made)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(made), str(then)],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    ) as grading:
        assert any(line.startswith("ann ") for line in grading.stdout)
        while not [*temporary.glob("graded-*/looping")]:
            time.sleep(0.05)
        assert alive(f"{temporary}/graded-")
        grading.kill()
    assert table(made) == before
    if room.rights()[0]:
        end = time.monotonic() + 30
        while (left := alive(f"{temporary}/graded-")) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left
    capsys.readouterr()
    assert marking.grade_all(made, first, kind=room.Forked) == 0
    assert "a grading was interrupted" in capsys.readouterr().err
    assert table(made) == before
    assert not (made / "points-so-far.csv").exists()


def test_an_assignment_that_was_not_made_to_its_end_is_made_again(made, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(course, "require", killed)  # after nbgrader, which wrote all or a part
        with pytest.raises(KeyboardInterrupt):
            course.make(tmp_path, ["a1"])
    (tmp_path / "release" / "a1" / "a1.ipynb").unlink()
    assert course.stale(tmp_path, "a1")
    course.make(tmp_path, ["a1"])
    assert not course.stale(tmp_path, "a1")


def test_two_gradings_of_one_course(made, tmp_path):
    (tmp_path / "ann").mkdir()
    with (
        course.alone(made),
        pytest.raises(SystemExit, match=rf"process {os.getpid()} on .* is making or grading"),
    ):
        main(["grade", str(tmp_path), "--course", str(made)])


@pytest.mark.parametrize("kind", [room.Forked, room.Started])
def test_a_submission_writes_into_no_file_of_the_grader(made, right, tmp_path, kind):
    everywhere = (
        "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'x' * 50)\n    except OSError: pass"
    )
    saved(changed(right, "a1_1", answer(everywhere)), tmp_path / "ann" / "a1.ipynb")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    os.set_blocking(reading, False)
    try:
        marking.grade_all(made, tmp_path, kind=kind)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_full_disk_leaves_the_points_before(made, right, tmp_path, monkeypatch):
    saved(right, tmp_path / "ann" / "a1.ipynb")
    assert marking.grade_all(made, tmp_path, kind=room.Forked) == 0
    before = table(made)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(csv.DictWriter, "writerow", mock.Mock(side_effect=full))
    with pytest.raises(SystemExit, match=r"so-far.csv cannot be written \(No space left on device\)"):
        marking.grade_all(made, tmp_path, kind=room.Forked)
    assert table(made) == before


def test_a_file_that_may_not_be_read_has_its_row(right, tmp_path, monkeypatch):
    saved(right, tmp_path / "ann" / "a1.ipynb")
    monkeypatch.setattr(Path, "is_symlink", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    (row,) = collect.everything(tmp_path)
    assert "cannot be read as a notebook ([Errno 13] Permission denied)" in row.reason


LOG = """[ERROR] There was an error processing assignment: /course/feedback/bert/a1
Traceback (most recent call last):
      File "files.py", line 153, in write
        f.write(output)
    OSError: [Errno 28] No space left on device

[ERROR] Please see the the above traceback for details on the specific errors on the above failures.
"""


def test_what_nbgrader_failed_of_is_said_and_the_others_have_their_points_and_pages(
    made, right, tmp_path, monkeypatch, capsys
):
    for student in ("ann", "bob"):
        saved(right, tmp_path / student / "a1.ipynb")
    real = course.api

    def full(*arguments, **options):
        nbgrader = real(*arguments, **options)
        for step in ("autograde", "generate_feedback"):
            does, left = getattr(nbgrader, step), {"autograde": "ann", "generate_feedback": "bob"}[step]
            setattr(
                nbgrader,
                step,
                lambda name, student, does=does, left=left, **more: (
                    {"success": False, "log": LOG} if student == left else does(name, student, **more)
                ),
            )
        return nbgrader

    monkeypatch.setattr(course, "api", full)
    assert marking.grade_all(made, tmp_path, pages=True, kind=room.Forked) == 1
    said = capsys.readouterr().out
    assert "not graded, 1 of 2:\n  ann/a1.ipynb: nbgrader failed: OSError: [Errno 28] No space left" in said
    assert "without a page of feedback, 1 of 2:\n  bob/a1.ipynb: OSError: [Errno 28] No space left" in said
    assert [row["points"] for row in table(made)] == ["", "100"]


def test_a_cheat_gets_nothing_for_what_it_cheats_at(made, tmp_path, capsys, request):
    kept = submissions.cheats()
    released = nbformat.read(made / "release" / "a1" / "a1.ipynb", as_version=4)
    # another course's solutions, left where one of the cheats looks
    elsewhere = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(elsewhere))
    shutil.copytree(made / "source", elsewhere / "source")
    elsewhere.chmod(0o755)
    for wrong in kept:
        notebook = submissions.submitted(released, wrong, submissions.solutions("a1"))
        saved(notebook, tmp_path / wrong.name / "a1" / "a1.ipynb")
    assert marking.grade_all(made, tmp_path) == 0
    capsys.readouterr()
    lost = {row["student"]: tuple(row["lost"].split()) for row in table(made)}
    if not room.rights()[0]:
        del lost["walks"]  # without namespaces nothing hides the solutions, and the grader says so
        assert "all files that this user can read" in room.said()
    assert lost == {wrong.name: wrong.lost for wrong in kept if wrong.name in lost}
    assert len(lost) >= 8


LOOK = """
import os, pathlib, socket
def tried(path):
    try:
        pathlib.Path(path, "x").write_text("")
        return True
    except OSError:
        return False
def net():
    try:
        socket.create_connection(("127.0.0.1", {port}), 2)
        return True
    except OSError:
        return False
def look(root, hidden):
    home = os.environ["HOME"] == os.getcwd() == str(pathlib.Path.home())
    return [os.getuid(), home, tried(root), tried("."), net(), *map(seen, hidden)]
def seen(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
"""


def test_a_students_process_sees_its_folder_alone(tmp_path, monkeypatch):
    import socket

    for name in ("secret", "home"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    hidden = ROOT / "book", tmp_path / "secret", tmp_path / "home", tempfile.gettempdir()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        room.folder({}) as there,
        tempfile.TemporaryDirectory() as beside,
    ):
        assert not there.is_relative_to(ROOT)
        process = judge.Process(room.Started, there, [tmp_path / "secret"])
        try:
            process.within("look")
            assert process.ask("cell", LOOK.format(port=server.getsockname()[1]))["outputs"][1:] == []
            look = judge.Function(process, "look")
            user, home, root, own, net, *seen, temporary = look(str(ROOT), [*map(str, hidden)])
        finally:
            process.stop()
    apart, another = room.rights()
    assert (home, own) == (True, True)
    if another and os.geteuid() == 0:
        assert user != os.getuid()
        assert not root
    if apart:
        assert (root, net, *seen) == (False, False, [], [], [])
        assert there.name in temporary
        assert Path(beside).name not in temporary
    assert not there.exists()


def test_what_an_interpreter_is_made_of_stays_in_sight(tmp_path, monkeypatch):
    """Links to it, link by link, and folders of packages: also where they lie in a folder that is hidden."""
    (tmp_path / "pythons" / "3.11.7" / "bin").mkdir(parents=True)
    (tmp_path / "pythons" / "3.11.7" / "bin" / "python").touch()
    (tmp_path / "pythons" / "3.11").symlink_to("3.11.7")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(tmp_path / "pythons" / "3.11" / "bin" / "python")
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}{os.pathsep}{tmp_path / 'missing'}")
    arguments = room.hiding(hidden=[tmp_path])
    at = len(arguments) - arguments[::-1].index(str(tmp_path))
    assert {*arguments[at:-2]} == {"pythons/3.11", "pythons/3.11.7", "packages"}


def test_what_stands_on_the_way_is_named(monkeypatch):
    monkeypatch.setattr(room, "rights", lambda: ((), ()))
    assert "as you" in room.said()
    assert "grade in a container" in room.said()
    monkeypatch.setattr(room, "rights", lambda: (("unshare",), ("setpriv", room.READING[0])))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "nobody, who may read all files" in room.said()
    assert "without a network, the solutions" in room.said()


def test_after_a_graded_class_new_tasks_are_refused_and_nothing_is_lost(
    made, right, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "course"
    course.make(folder, ["a1"])
    saved(right, tmp_path / "class" / "ann" / "a1" / "a1.ipynb")
    assert marking.grade_all(folder, tmp_path / "class", kind=room.Forked) == 0
    original = course.text
    more = original("a1").replace(
        "grade_id: a1_6_check, grade: true, points: 25", "grade_id: a1_6_check, grade: true, points: 30"
    )
    monkeypatch.setattr(course, "text", lambda name: more)
    for again in (lambda: course.make(folder, ["a1"]), lambda: marking.grade_all(folder, tmp_path / "class")):
        with pytest.raises(
            SystemExit, match=r"a1 was graded with other tasks or points \(a1_6\): nothing was made"
        ):
            again()
    assert (folder / "release" / "a1" / "a1.ipynb").is_file()
    # words may change: what is graded is made anew
    monkeypatch.setattr(
        course, "text", lambda name: original(name).replace("Keep the sign", "Do keep the sign")
    )
    assert course.stale(folder, "a1")
    assert marking.grade_all(folder, tmp_path / "class", kind=room.Forked) == 0
    assert not course.stale(folder, "a1")
    assert "Do keep the sign" in (folder / "release" / "a1" / "a1.ipynb").read_text()
    capsys.readouterr()


def test_a_notebook_is_put_back_but_for_its_answers(right):
    handed_in = copy.deepcopy(right)
    names = [grade_id(cell) for cell in right.cells if grade_id(cell)]
    handed_in.cells = [
        cell for cell in handed_in.cells if grade_id(cell) not in ("a1_begin", "a1_4_check", "a1_6")
    ]
    for cell in handed_in.cells:
        if grade_id(cell) == "a1_2_check":
            cell.source, cell.metadata.nbgrader.points = "pass", 1000
    made, notes = repaired(right, handed_in)
    assert [grade_id(cell) for cell in made.cells if grade_id(cell)] == names
    assert notes == ["a1_begin was missing", "a1_4_check was missing", "a1_6 was missing"]
    points = {grade_id(cell): cell.metadata.nbgrader.get("points") for cell in made.cells if grade_id(cell)}
    assert points["a1_2_check"] == 10
    assert repaired(right, right)[1] == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a1.ipynb", "a1"),
        ("A1 (2).ipynb", "a1"),
        ("a1-late.ipynb", "a1"),
        ("a2_Anna.ipynb", "a2"),
        ("a12.ipynb", ""),
        ("ba1.ipynb", ""),
    ],
)
def test_an_assignment_is_known_by_its_files_name(file, name):
    assert collect.by_name(Path(file)) == name


def test_two_folders_are_two_students():
    taken = set()
    assert [collect.unique(name, taken) for name in ("a*b", "a?b", "a*b", "+")] == [
        "a_b",
        "a_b 2",
        "a_b 3",
        "_",
    ]


@pytest.mark.parametrize(
    "value", [None, ..., True, 2**80, -3, 0.5, "ä", [1, (2, "x")], np.uint8(3), np.float64(0.5)]
)
def test_values_cross_as_they_are(value):
    got = wire.unpack(wire.pack(value))
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "bool", "<U3"])
def test_arrays_cross_as_they_are(dtype):
    array = np.arange(6).reshape(3, 2)[::-1].astype(dtype)
    got = wire.unpack(wire.pack(array))
    assert got.dtype == array.dtype
    assert (got == array).all()
    with pytest.raises(TypeError, match="an array of object cannot be judged"):
        wire.pack(np.array([object()]))


def test_who_does_not_read_is_late():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(wire.LateError):
        wire.send(writing, "x" * 2**20, time.monotonic() + 0.1)
    os.close(writing)
    os.close(reading)


def test_a_frame_that_is_none_is_noticed():
    reading, writing = os.pipe()
    os.write(writing, b"100 points of 100 for everybody")
    with pytest.raises(wire.ClosedError):
        wire.receive(reading)
    os.close(writing)
    os.close(reading)


def test_a_file_that_a_student_links_to_is_not_handed_in(made, right, tmp_path):
    there = tmp_path / "ann" / "a1"
    saved(right, there / "a1.ipynb")
    (there / "stolen.txt").symlink_to(ROOT / "README.md")
    (there / "helper.py").write_text("")
    (row,) = collect.everything(tmp_path)
    marking.hand_in(made, row)
    assert {path.name for path in (made / "submitted" / "ann" / "a1").iterdir()} == {"a1.ipynb", "helper.py"}
    shutil.rmtree(made / "submitted" / "ann")
