"""Autograding with two processes: the student's runs the cells, this one keeps what is expected of them.

`Apart` stands where nbgrader has `Execute`. For a check it calls the student's function with fresh inputs and
compares the results here, so that nothing in the notebook can see an expected value or change a checker.
"""

import contextlib
import functools
import io
import json
import keyword
import os
import sys
import time
import traceback
from pathlib import Path

import nbformat
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Any, Integer

from dqt_book.assignments import course, room, wire
from dqt_book.assignments.repair import repaired

STARTING = 120  # seconds that an interpreter may take to start on a busy computer


class Stopped(BaseException):
    """The student's process is gone; no check may take it for a mistake in a result."""


class Process:
    """A student's process, asked within limits."""

    def __init__(self, kind, folder, hidden=(), seconds=course.SECONDS):
        self.process, self.seconds, self.gone = kind(folder, hidden), seconds, ""
        self.what = "the notebook's start"
        os.set_blocking(self.process.writing, False)
        self.until = time.monotonic() + STARTING
        self.ask("cell", "")

    def within(self, what):
        """Begin a task or a cell: its time counts from here."""
        self.what, self.until = what, time.monotonic() + self.seconds

    def ask(self, *request):
        if self.gone:
            raise Stopped(f"not asked: {self.gone}")
        try:
            wire.send(self.process.writing, request, self.until)
            answer = wire.receive(self.process.reading, self.until)
            if not isinstance(answer, dict):
                raise ValueError
            return answer
        except wire.LateError:
            self.gone = f"{self.what} took more than {self.seconds} s"
        except wire.ClosedError:
            self.gone = f"{self.what} ended the notebook's process"
        except (ValueError, RecursionError):
            self.gone = f"{self.what} wrote into what its process says to the judge"
        self.stop()
        raise Stopped(self.gone)

    def stop(self):
        if self.process:
            self.process.stop()
        self.process = None

    def value(self, *request):
        """The value of an answer; an error of the student's is raised here, by its name."""
        answer = self.ask(*request)
        if "error" in answer:
            name, message = map(str, answer["error"])
            usable = name.isidentifier() and not keyword.iskeyword(name)
            raise type(name[:80] if usable else "Error", (Exception,), {})(message)
        return answer, wire.unpack(answer.get("value"))


class Function:
    """A student's function, called as if it were here."""

    def __init__(self, process, name):
        self.process, self.__name__ = process, name

    def __call__(self, *arguments):
        answer, value = self.process.value("call", self.__name__, wire.pack(arguments))
        return self._with_gradient(answer["graph"], value, arguments) if "graph" in answer else value

    def _with_gradient(self, graph, value, arguments):
        import torch

        process = self.process

        class Through(torch.autograd.Function):
            @staticmethod
            def forward(context, *leaves):
                return value

            @staticmethod
            def backward(context, upstream):
                return tuple(process.value("gradient", graph, wire.pack(upstream))[1])

        return Through.apply(*[leaf for leaf in arguments if getattr(leaf, "requires_grad", False)])


class Emulation:
    """`dqt_book.exercises.emulation` for a student's kernels, in a process that no cell has run in."""

    def __init__(self, real, process):
        self.missing, self.EmulatorError, self.process = real.missing, real.EmulatorError, process

    def compiled(self, text, name, header, **options):
        def run(grid, block, arguments):
            request = [text, name, header, options, *map(wire.pack, (grid, block, arguments))]
            try:
                _, got = self.process.value("kernel", *request)
            except Exception as error:
                raise self.EmulatorError(str(error)) from None
            for here, there in zip(arguments, got, strict=True):
                if hasattr(here, "shape") and here.shape:
                    here[...] = there

        return run

    def on_gpu(self, text, name):
        return None


@functools.lru_cache(maxsize=16)
def _loaded(folder, name, stamps):
    """The module `tasks` of a made assignment, apart from what else goes by its name here."""
    kept, finders = dict(sys.modules), sys.meta_path[:]
    try:
        return course.tasks(name, folder)
    finally:
        for module in (*course.modules(name), "emulation"):
            sys.modules.pop(module, None)
            if module in kept:
                sys.modules[module] = kept[module]
        sys.meta_path[:] = finders


def tasks(folder, name):
    stamps = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(Path(folder).glob("*.py")))
    return _loaded(folder, name, stamps)


def judged(process, kernels, module, task, function):
    """What a check's cell says: the outputs of `grade` on a student's function."""
    printed, outputs = io.StringIO(), []
    started = {}
    if hasattr(module, "emulation"):
        started["kernels"] = kernels()
        started["kernels"].within(task)
        real, module.emulation = module.emulation, Emulation(module.emulation, started["kernels"])
    try:
        process.within(task)
        with contextlib.redirect_stdout(printed):
            module.grade(task, Function(process, function))
    except (Exception, Stopped) as error:
        told = "" if isinstance(error, AssertionError | Stopped) else traceback.format_exc()
        named = {"ename": type(error).__name__, "evalue": str(error)}
        outputs = [{"output_type": "error", **named, "traceback": [told or str(error)]}]
    finally:
        if started:
            module.emulation = real
            started["kernels"].stop()
    return [{"output_type": "stream", "name": "stdout", "text": printed.getvalue()}, *outputs]


def checked(outputs):
    """Outputs of a student's cell, whatever its process wrote."""
    made = []
    for output in outputs if isinstance(outputs, list) else ():
        kind = output.get("output_type") if isinstance(output, dict) else None
        fields = {"stream": ("text",), "error": ("ename", "evalue")}.get(kind)
        if fields is None:
            continue
        given = {field: str(output.get(field, ""))[: 2 * 10**4] for field in fields}
        if kind == "error":
            made.append({"output_type": kind, **given, "traceback": [str(output.get("traceback", [""])[0])]})
        elif given["text"]:
            made.append({"output_type": kind, "name": "stdout", **given})
    return made


def writable(outputs):
    """Outputs with ? for half a character, which no file takes: a student's cell or error may say one."""
    return json.loads(json.dumps(outputs, ensure_ascii=False).encode(errors="replace"))


def usable(path):
    """Whether a file goes with a notebook: a link may lead anywhere."""
    return path.is_file() and not path.is_symlink() and path.suffix != ".ipynb"


class Repair(NbGraderPreprocessor):
    """Put the checks, their points and the given cells back, before nbgrader looks at them."""

    def preprocess(self, nb, resources):
        name, root = resources["nbgrader"]["assignment"], self.config.CourseDirectory.get("root", ".")
        released = nbformat.read(Path(root) / "release" / name / f"{name}.ipynb", as_version=4)
        return repaired(released, nb)[0], resources


class Apart(NbGraderPreprocessor):
    """Run a notebook in a process of its own, and its checks in this one."""

    seconds = Integer(course.SECONDS, help="for a task, and for a cell").tag(config=True)
    kind = Any(room.Started).tag(config=True)
    hidden = Any((), help="folders that a student must not see").tag(config=True)

    def preprocess(self, nb, resources):
        name, root = resources["nbgrader"]["assignment"], Path(self.config.CourseDirectory.get("root", "."))
        made = root.resolve() / "source" / name
        module = tasks(made, name)
        beside = Path(resources["metadata"]["path"])
        files = {path.name: path for here in (beside, made) for path in here.iterdir() if usable(path)}
        with room.folder(files) as there, contextlib.ExitStack() as ending:
            hidden = (root, *map(Path, self.hidden))

            def start():
                process = Process(self.kind, there, hidden, self.seconds)
                ending.callback(process.stop)
                return process

            self._run(nb, start(), start, module)
        return nb, resources

    def _run(self, nb, process, kernels, module):
        for number, cell in enumerate(nb.cells):
            if cell.cell_type != "code":
                continue
            marks = cell.metadata.get("nbgrader", {})
            if marks.get("grade"):
                outputs = judged(process, kernels, module, *course.asked(cell.source, marks.grade_id))
            else:
                outputs = self._ran(process, cell.source, marks.get("grade_id") or f"cell {number + 1}")
            cell.outputs = [nbformat.from_dict(output) for output in writable(outputs)]

    def _ran(self, process, source, what):
        try:
            process.within(what)
            return checked(process.ask("cell", source).get("outputs"))
        except Stopped as error:
            named = {"ename": "Stopped", "evalue": str(error), "traceback": [str(error)]}
            return [{"output_type": "error", **named}]
