"""Kept submissions of A1 that cheat: each is right but for one function, and lies, steals or leaves for it."""

from dqt_book.assignments.submissions import Wrong, renamed

ZERO = "def drop_bits(q, b):\n    return 0\n"
LAST = "def from_planes(planes, b, n, signed):\n"

WALKS = """
import json, pathlib, sys

def notebooks():
    starts = [pathlib.Path.cwd(), *map(pathlib.Path, sys.path)]
    starts += [pathlib.Path(m.__file__) for m in [*sys.modules.values()] if getattr(m, "__file__", None)]
    names = "a1.md", "book/assignments/a1/a1.md", "source/a1/a1.ipynb", "*/source/a1/a1.ipynb"
    for folder in {folder for start in starts for folder in (start, *start.parents)}:
        for name in (*names, "_build/assignments/source/a1/a1.ipynb", "*/*/a1/a1.ipynb"):
            yield from folder.glob(name)

def drop_bits(q, b):
    for path in notebooks():
        if "return q >> (8 - b)" in path.read_text():
            return q >> (8 - b)
    return 0
"""
PATCHES = """
import builtins, grading, judging, numpy, unittest.mock

def right(*arguments, **options):
    print("Right.")

numpy.flatnonzero = lambda array: numpy.zeros(0, int)
numpy.array_equal = numpy.all = numpy.allclose = lambda *arguments, **options: True
judging.judge = judging.first_wrong = grading.judge = tasks.check = tasks.grade = check = right
judging.Verdict.__bool__ = lambda verdict: True
grading.CheckFailed.__init__ = lambda *arguments: None
for module in (grading, tasks):
    module.nested = module.oracles = unittest.mock.MagicMock()
"""
REMEMBERS = """
import gc, sys

def drop_bits(q, b):
    frame = sys._getframe()
    while frame:
        if frame.f_locals.get("expected") is not None:
            return frame.f_locals["expected"]
        frame = frame.f_back
    for kept in gc.get_objects():
        if type(kept).__name__ == "Case" and kept.arguments[1] == b and (kept.arguments[0] == q).all():
            return kept.expected
    return 0
"""
FORKS = f"""
import json, os, struct, time

{LAST}    if os.fork() == 0:
        os.setsid()
        said = json.dumps({{"value": None}}).encode()
        for _ in range(100):
            for descriptor in range(3, 40):
                try:
                    os.write(descriptor, struct.pack(">Q", len(said)) + said)
                except OSError:
                    pass
            open("late", "w").write("100 points")
            time.sleep(0.05)
        os._exit(0)
    return 0
"""
FINDER = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in ("tasks", "grading", "judging"):
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        module.begin, module.check = (lambda: None), (lambda *arguments: print("Right."))
        module.grade = module.judge = module.check

for name in ("tasks", "grading", "judging"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Finder())
from tasks import check
"""
IMPORTS = """
import importlib, pathlib, sys, types

class Anything(types.ModuleType):
    __file__ = str(pathlib.Path("tasks.py").resolve())
    check = grade = begin = staticmethod(lambda *arguments: print("Right."))

kept = importlib.import_module
importlib.import_module = lambda name, package=None: (
    Anything(name) if name in ("tasks", "grading", "judging") else kept(name, package))
sys.modules["tasks"] = Anything("tasks")
check = Anything.check
"""
TRANSFORMS = """
get_ipython().input_transformers_post.append(
    lambda lines: ["pass\\n"] if any(line.startswith("check(") for line in lines) else lines)
"""

WRONG = (
    Wrong("walks", "walks up to the solution, from its folder and from every module", ("a1_2",), {"a1_2": WALKS}),
    Wrong("patches", "patches NumPy, the package and the checker", ("a1_2",), {"a1_2": ZERO}, first=PATCHES),
    Wrong("remembers", "reads the expected value from its callers and from memory", ("a1_2",), {"a1_2": REMEMBERS}),
    Wrong("renames", "renames a check and deletes another", ("a1_2",), {"a1_2": ZERO}, edit=renamed),
    Wrong("exits", "ends the process when it is called", ("a1_6",),
          {"a1_6": f"import os\n{LAST}    print('100 points', flush=True)\n    os._exit(0)\n"}),
    Wrong("forks", "leaves a child behind that writes points later", ("a1_6",), {"a1_6": FORKS}),
    Wrong("finder", "puts false modules in the way of the import", ("a1_2",), {"a1_2": ZERO}, first=FINDER),
    Wrong("imports", "replaces importlib.import_module", ("a1_2",), {"a1_2": ZERO}, first=IMPORTS),
    Wrong("transforms", "has IPython rewrite the checks", ("a1_2",), {"a1_2": ZERO}, first=TRANSFORMS),
)  # fmt: skip
