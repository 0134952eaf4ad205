"""The student's process: it runs the cells of a notebook, and calls its functions when the judge asks.

The file is copied into a temporary folder, is run there, and imports no module of this package. What is
expected of a function never comes here.
"""

import builtins
import contextlib
import importlib
import io
import os
import sys
import traceback

LONGEST = 20_000  # characters that a cell may print
BESIDE = ("tasks", "grading", "judging", "emulation")


class Short(io.StringIO):
    """Text that ends where nobody would read on."""

    def write(self, text):
        left = LONGEST - self.tell()
        if left > 0:
            super().write(text[:left])
        return len(text)


class Student:
    def __init__(self):
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        InteractiveShell.clear_instance()
        self.shell = InteractiveShell.instance(config=config, colors="nocolor")
        self.shell.enable_gui = lambda gui=None: None  # what `%matplotlib inline` asks for
        self.shell.showtraceback = self.shell.showsyntaxerror = lambda *arguments, **options: None
        self.graphs, self.kernels = [], {}

    def cell(self, source):
        """Run a cell; say what it printed, and what it raised."""
        printed, error = Short(), None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                result = self.shell.run_cell(source)
                error = result.error_before_exec or result.error_in_exec
            except BaseException as raised:
                error = raised
        outputs = [{"output_type": "stream", "name": "stdout", "text": printed.getvalue()}]
        if error is not None:
            told = traceback.format_exception(error)
            named = {"ename": type(error).__name__, "evalue": str(error)[:LONGEST]}
            outputs.append({"output_type": "error", **named, "traceback": ["".join(told)[-LONGEST:]]})
        return outputs

    def call(self, name, arguments):
        if name not in self.shell.user_ns:
            raise NameError(f"name {name!r} is not defined")
        leaves = [value for value in arguments if getattr(value, "requires_grad", False)]
        got = self.shell.user_ns[name](*arguments)
        if leaves and getattr(got, "requires_grad", False):
            self.graphs.append((got, leaves))
            return {"value": wire.pack(got), "graph": len(self.graphs) - 1}
        return {"value": wire.pack(got.detach() if getattr(got, "requires_grad", False) else got)}

    def gradient(self, graph, upstream):
        import torch

        got, leaves = self.graphs[graph]
        found = torch.autograd.grad(got, leaves, upstream, retain_graph=True, allow_unused=True)
        return {"value": wire.pack([*found])}

    def kernel(self, text, name, header, options, grid, block, arguments):
        """Compile a kernel and run it once; the arguments come back as it left them."""
        which = text, name, header, tuple(sorted(options.items()))
        if which not in self.kernels:
            self.kernels[which] = importlib.import_module("emulation").compiled(text, name, header, **options)
        self.kernels[which](grid, block, arguments)
        return {"value": wire.pack(arguments)}

    def answer(self, request):
        kind, *rest = request
        if kind == "cell":
            return {"outputs": self.cell(*rest)}
        try:
            with contextlib.redirect_stdout(Short()), contextlib.redirect_stderr(Short()):
                if kind == "kernel":
                    text, name, header, options, *launch = rest
                    return self.kernel(text, name, header, options, *map(wire.unpack, launch))
                return getattr(self, kind)(rest[0], wire.unpack(rest[1]))
        except BaseException as error:
            return {"error": [type(error).__name__, str(error)[:LONGEST]]}


def serve(reading, writing, folder):
    """Answer requests until there are no more."""
    global wire
    os.chdir(folder)
    for name in BESIDE:
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    wire = importlib.import_module("wire")
    # what a student prints without Python must not come between the frames
    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silent, standard)
    student = Student()
    builtins.input = _no_input
    while True:
        try:
            request = wire.receive(reading)
        except wire.ClosedError:
            return
        wire.send(writing, student.answer(request))


def _no_input(prompt=""):
    raise EOFError("nobody answers input() where a notebook is graded")


if __name__ == "__main__":
    serve(os.dup(0), os.dup(1), os.getcwd())
