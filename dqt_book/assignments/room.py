"""Where students' code runs: a temporary folder outside the course, with the fewest rights to be had here."""

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dqt_book.places import ROOT

HERE = Path(__file__).resolve().parent
# its own /proc too: in the other one are the memory and the files of this process
# an endless loop of a student's ends with the process that judges it, however that one ends: see `HIDE` too
WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
NAMESPACES = ("--mount", "--mount-proc", "--pid", "--net", "--fork", "--kill-child")
# for an interpreter in a folder that root alone may enter, as /root is: nobody may read everything then
READING = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
# CHECKOUT [FOLDER KEPT... --]... -- COMMAND: makes the checkout read-only, lays an empty folder over each
# FOLDER, and puts KEPT of it back in its place
HIDE = """
set -e
own=$PWD
mount --make-rprivate /
mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift
while [ "$1" != -- ]; do
    folder=$1; shift
    cd "$folder" || { while [ "$1" != -- ]; do shift; done; shift; continue; }
    mount -t tmpfs -o mode=1777 none "$folder"
    while [ "$1" != -- ]; do
        mkdir -p "$folder/$1"; mount --no-canonicalize --rbind "./$1" "$folder/$1"; shift
    done
    shift
done
shift
cd "$own"
"$@"; exit  # not `exec`: with this shell, whose rights do not change, its namespace ends
"""


def tried(*command):
    """Whether a command can be run, in the root folder, which nothing hides."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60, cwd="/").returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def rights():
    """(namespaces, another user): what of it this computer has, as the beginnings of commands."""
    user = ()
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        plain = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
        same = f"import sys; sys.exit(sys.base_prefix != {sys.base_prefix!r})"
        for more in ((), READING):
            command = (*plain, "--no-new-privs", *more, "--")
            if tried(*command, sys.executable, "-c", same):
                user = command
                break
        apart = (*WITH_US, "unshare", *NAMESPACES)
    else:
        # who is root in a namespace of users could take the mounts away again
        apart = (*WITH_US, "unshare", "--user", "--map-root-user", *NAMESPACES)
        user = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--")
    if tried(*apart, *hiding(), *user, sys.executable, "-c", ""):
        return apart, user
    return (), user if os.geteuid() == 0 else ()


def said():
    """One sentence for whoever grades: what keeps students' code apart."""
    apart, user = rights()
    have = ["as the user nobody" if user and os.geteuid() == 0 else "as you"]
    if READING[0] in user:
        have.append("who may read all files, as this interpreter lies where root alone can")
    have.append(
        "without a network, the solutions, the other submissions and your home folder out of its sight"
        if apart
        else "with the network and all files that this user can read: grade in a container"
    )
    return f"students' code runs in a temporary folder {', '.join(have)}"


def needed():
    """The folders that an interpreter and its packages are read from."""
    step, found = Path(sys.executable), [ROOT, Path(sys.prefix), Path(sys.base_prefix)]
    while step.is_symlink():
        step = step.parent / step.readlink()
        found.append(step.parent.parent)
    return found + [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def hiding(own=(), hidden=()):
    """`HIDE` and its arguments: of a hidden folder a process sees `own`, and what it is run from."""
    kept = [path for path in (*needed(), *own) if path.is_dir()]
    kept = dict.fromkeys([*map(Path, map(os.path.abspath, kept)), *(path.resolve() for path in kept)])
    # the interpreter may belong to another checkout
    above = {folder for path in kept for folder in (path, *path.parents)}
    checkouts = sorted(folder for folder in above if (folder / "book" / "assignments").is_dir())
    solved = [folder / part for folder in checkouts for part in ("book", ".git", "_build")]
    arguments = [ROOT]
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", os.path.expanduser("~"), *solved, *hidden):
        folder = Path(folder).resolve()
        if folder.is_dir() and folder not in (Path("/"), *kept):
            back = [path.relative_to(folder) for path in kept if path.is_relative_to(folder)]
            arguments += [folder, *back, "--"]
    return ["sh", "-c", HIDE, "sh", *map(str, arguments), "--"]


def command(there, hidden=()):
    """How a student's process is started in its folder; it does not see the `hidden` folders."""
    apart, user = rights()
    return [*apart, *(hiding([there], hidden) if apart else ()), *user, sys.executable, "student.py"]


@contextlib.contextmanager
def folder(files):
    """A temporary folder with these files, {name: path}, that belongs to the student's user."""
    made = Path(tempfile.mkdtemp(prefix="graded-"))
    try:
        for name, path in files.items():
            shutil.copyfile(path, made / name)
        for name in ("wire.py", "student.py"):
            shutil.copyfile(HERE / name, made / name)
        if rights()[1] and os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (made, *made.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def environment(there):
    """Little of one's own: no tokens and no home folder."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "CXX") if name in os.environ}
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
    own = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "IPYTHONDIR"), str(there))
    # `NUMBA_...`: the kernels of programs would be compiled for each notebook anew, which takes a task's time
    ready = {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    return kept | own | ready | {"PYTHONDONTWRITEBYTECODE": "1"}


class Started:
    """A student's process of its own interpreter."""

    def __init__(self, there, hidden=()):
        self.process = subprocess.Popen(
            command(there, hidden),
            cwd=there,
            env=environment(there),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.writing, self.reading = self.process.stdin.fileno(), self.process.stdout.fileno()

    def stop(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class Forked:
    """A student's process that is a fork of this one: quick, and not safe. For the project's own tests."""

    def __init__(self, there, hidden=()):
        from dqt_book.assignments import student

        theirs, self.writing = os.pipe()
        self.reading, answers = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            with contextlib.suppress(BaseException):
                os.setsid()
                low, high = sorted((theirs, answers))
                for first, behind in ((3, low), (low + 1, high), (high + 1, 4096)):
                    os.closerange(first, behind)  # a submission may write into any file that is open
                own = environment(there)
                os.environ.clear()
                os.environ.update(own)
                student.serve(theirs, answers, there)
            os._exit(0)
        os.close(theirs)
        os.close(answers)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.writing)
        os.close(self.reading)
