"""The project's own rules: dependencies in step, floors, the wheel, the files it tracks."""

import ast
import doctest
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]


def requirements(lines):
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins():
    return {
        name: next(iter(requirement.specifier)).version for name, requirement in requirements(LOCK).items()
    }


# Dependencies


def test_every_line_of_the_lock_is_one_exact_public_version():
    for line in LOCK:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line


@pytest.mark.parametrize("extra", ["", "train", "fast", "export", "book", "teach", "dev"])
def test_lock_is_within_the_ranges_of_pyproject(extra):
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for name, requirement in requirements(lines).items():
        if name == canonicalize_name(PROJECT["name"]):  # an extra that holds another one
            assert requirement.extras <= set(PROJECT["optional-dependencies"])
            continue
        assert name in pins(), f"{name} has no pin in requirements.txt"
        assert requirement.specifier.contains(pins()[name]), (str(requirement), pins()[name])
        assert "==" not in str(requirement.specifier), f"{requirement}: exact pins belong in requirements.txt"


def test_lock_has_what_its_packages_need():
    # The CUDA build of torch brings its own libraries, which a CPU build does not have.
    cuda = re.compile(r"nvidia-|cuda-|triton")
    locked = pins()
    for name in locked:
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needed):
            wanted = canonicalize_name(requirement.name)
            if (requirement.marker and not requirement.marker.evaluate({"extra": ""})) or cuda.match(wanted):
                continue
            assert wanted in locked, f"{name} needs {requirement}, which has no pin"


def test_the_package_itself_needs_numpy_and_safetensors_alone():
    assert set(requirements(PROJECT["dependencies"])) == {"numpy", "safetensors"}


def test_environment_adds_nothing_of_its_own():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, lists = dependencies
    assert pip == "pip"
    assert lists == {"pip": ["-r requirements.txt", "-e ."]}
    name, version = python.split("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")


def test_versions_are_in_step():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"


# Floors

FLOORS = {"nested": 1, "integer": 1, "program": 2, "backends": 2, "cost": 2, "allocate": 2, "export": 2}
FLOORS |= {"kernels": 2, "data": 2, "results": 2, "_torchvision": 2, "_onnx": 2, "qdq": 2, "": 2}
FLOORS |= {"data_imagenet": 2, "export_c": 2, "selftest": 2}
FLOORS |= {"operations": 2, "contract": 2, "bounds": 2, "refusal": 2, "storage": 2}
# The modules that hold an import for the rest of their floor; who imports them needs it too.
HOLD_TORCH = {"backends.torch_cpu": {"torch"}, "_torchvision": {"torch"}}
HOLD_TORCH |= {name: {"numba", "llvmlite"} for name in ("backends.numba_cpu", "backends._numba_kernels")}
OUTSIDE = {1: {"numpy"}, 2: {"numpy", "safetensors"}}


def floor(module):
    return FLOORS.get(module.split(".")[0], 3)


def imported(source):
    """Yield (module, whether the import runs when the file is imported)."""

    def visit(node, runs):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, runs) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, "relative imports hide what is imported"
                names = [child.module]
                if child.module == "dqt_core" or child.module.startswith("dqt_core.backends"):
                    names = [f"{child.module}.{alias.name}" for alias in child.names]
                yield from ((name, runs) for name in names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(ast.Module(child.orelse, []), runs)
            else:
                yield from visit(
                    child, runs and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                )

    return list(visit(ast.parse(source), runs=True))


def floor_faults(sources):
    """List what breaks the floors in {module: source}; a module is named from below dqt_core."""

    def inside(name):
        if name.split(".")[0] != "dqt_core":
            return None
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in sources:
            parts.pop()
        return ".".join(parts)

    def outside_at_import(module, seen):
        for name, runs in imported(sources[module]):
            below = inside(name)
            if not runs:
                continue
            if below is None:
                yield name.split(".")[0], module
            elif below not in seen:
                yield from outside_at_import(below, seen | {below})

    faults = []
    for module, source in sources.items():
        if floor(module) == 3:
            continue
        for name, _ in imported(source):
            below = inside(name)
            if below is not None and floor(below) > floor(module):
                faults.append(f"{module} (floor {floor(module)}) imports {below} (floor {floor(below)})")
        allowed = OUTSIDE[floor(module)] | HOLD_TORCH.get(module, set()) | sys.stdlib_module_names
        for name, where in outside_at_import(module, {module}):
            if name not in allowed:
                faults.append(f"importing {module or 'dqt_core'} imports {name}, in {where or 'dqt_core'}")
    return faults


def package_sources():
    package = ROOT / "dqt_core"
    names = {path: path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")}
    return {
        name.replace("/", ".").removesuffix("__init__").removesuffix("."): path.read_text()
        for path, name in names.items()
    }


def test_imports_only_go_down():
    assert floor_faults(package_sources()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"nested": "import torch"},
        {"nested": "import safetensors"},
        {"nested": "def f():\n    from dqt_core import data", "data": ""},
        {"integer": "from dqt_core.program import Program", "program": ""},
        {"cost": "from torch import nn"},
        {"cost": "try:\n    import torch\nexcept ImportError:\n    pass"},
        {"cost": "class A:\n    import torch"},
        {"cost": "def f():\n    import dqt_core.layers", "layers": ""},
        {"program": "from dqt_core.backends import torch_cpu", "backends.torch_cpu": "import torch"},
        {"program": "import dqt_core.backends.torch_cpu", "backends.torch_cpu": "import torch"},
        {"backends.numpy_ref": "import scipy"},
        {"backends.torch_cpu": "import cupy"},
        {"program": "import dqt_core.backends.numba_cpu", "backends.numba_cpu": "import numba"},
        {"": "from dqt_core import train", "train": "import torch"},
        {"": "import tqdm"},
    ],
)
def test_a_wrong_import_is_caught(wrong):
    assert floor_faults(wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"data": "def f():\n    import sklearn\n    from dqt_core._torchvision import g", "_torchvision": ""},
        {"backends.torch_cpu": "import torch\nfrom dqt_core import nested", "nested": "import numpy"},
        {"program": "def f():\n    import dqt_core.backends.torch_cpu", "backends.torch_cpu": "import torch"},
        {"cost": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"},
        {"train": "import torch, accelerate\nfrom dqt_core import data", "data": ""},
    ],
)
def test_a_right_import_is_not(right):
    assert floor_faults(right) == []


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy, as setuptools writes beside what it builds.
    source = folder / "source"
    shutil.copytree(ROOT / "dqt_core", source / "dqt_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def small_python(wheel, tmp_path_factory):
    """Make an environment that holds the wheel, NumPy and safetensors, and return its interpreter."""
    folder = tmp_path_factory.mktemp("small")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in ("numpy", "safetensors"):
        for top in {file.parts[0] for file in importlib.metadata.files(name)} - {"..", "__pycache__"}:
            here = Path(str(importlib.metadata.distribution(name).locate_file(top)))
            (packages / top).symlink_to(here, target_is_directory=here.is_dir())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder / "bin" / "python"


def run(*command, check=True):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def test_wheel_holds_every_file_of_the_package(wheel):
    package = ROOT / "dqt_core"
    files = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("dqt_core/")}
    assert packed == files


def test_wheel_works_with_numpy_and_safetensors_alone(small_python):
    program = (
        "import dqt_core, importlib.util, numpy as np\n"
        "from dqt_core import nested, integer\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "codes, step = nested.quantize([-1.0, 1.0])\n"
        "print(nested.switch(codes, 4))"
    )
    assert run(small_python, "-I", "-c", program).stdout == "[-8  7]\n"


def test_the_selftest_needs_numpy_and_safetensors_alone(small_python):
    told = run(small_python, "-I", "-m", "dqt_core.selftest").stdout
    assert "numpy, from a file     exact" in told
    assert 'torch, on the CPU      not here: pip install "dqt_core[train]"' in told
    assert "All that is here is exact" in told


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("from dqt_core import convert", "train"),
        ("import dqt_core; dqt_core.convert", "train"),
        ("from dqt_core import train", "train"),
        ("from dqt_core import data; data.load('embedded')", "train"),
        ("from dqt_core import _onnx; _onnx.Writer()", "export"),
        ("from dqt_core import program; program._resolve('numba')", "fast"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(small_python, statement, extra):
    result = run(small_python, "-I", "-c", statement, check=False)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(r"(ImportError|ModuleNotFoundError): ", last)
    assert f'pip install "dqt_core[{extra}]"' in last


# What readers are told


def test_readme_example_runs():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "book/intro.md"])
def test_commands_in_prose_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    text = (ROOT / page).read_text()
    commands = re.findall(r"(?:^|`)make((?: [A-Za-z0-9.=_-]+)+)", text, re.M)
    named = {word for command in commands for word in command.split() if "=" not in word}
    assert "test" in named
    assert named <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_in_prose_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing == []


def test_api_page_lists_every_public_module():
    listed = re.findall(r"automodule:: dqt_core\.(\S+)", (ROOT / "book" / "api.md").read_text())
    public = {name for name in package_sources() if name and "_" not in {part[0] for part in name.split(".")}}
    public.discard("backends")  # a folder; its modules are listed
    assert len(listed) == len(set(listed))
    assert set(listed) == public, "book/api.md and dqt_core/ differ"


# What is tracked


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: lists the tracked files")
    listing = run("git", "-C", ROOT, "ls-files", "-z").stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_are_small(tracked):
    sizes = {path: path.stat().st_size for path in tracked}
    assert sizes
    networks = {path for path in sizes if path.parent.name == "checkpoints"}
    assert [path for path, size in sizes.items() if size > 3_000_000 and path not in networks] == []
    assert sum(sizes[path] for path in networks) < 24_000_000
    assert sum(sizes.values()) < 30_000_000


def test_nothing_names_one_machine(tracked):
    local = re.compile(rb"/home/\w|/root/|/Users/\w|file://|" + re.escape(str(ROOT).encode()) + rb"\b")
    own = Path(__file__).resolve()
    text = [path for path in tracked if not {"mathjax", "reveal"} & set(path.parts) and path != own]
    assert [path for path in text if local.search(path.read_bytes())] == []


# The rule for real data

USES_DATA = "def test_uses_data(cifar10):\n    pass\n"


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_missing_data_is_named(tmp_path, required, outcome):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_data.py").write_text(USES_DATA)
    environment = {**os.environ, "DQT_REQUIRE_DATA": required}
    environment.pop("DQT_DATA", None)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "-c", os.devnull, tmp_path],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert outcome in result.stdout
    assert "needs CIFAR-10: set DQT_DATA" in result.stdout


def make_calls(workflow):
    """The make targets that a workflow calls, and whatever else it runs."""
    steps = [step for job in yaml.safe_load(workflow)["jobs"].values() for step in job["steps"]]
    commands = [step["run"].split() for step in steps if "run" in step]
    targets = {command[1] for command in commands if command[0] == "make" and len(command) > 1}
    return targets, [command for command in commands if command[0] != "make"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_workflows_call_make_targets_that_exist(path):
    known = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    targets, others = make_calls(path.read_text())
    assert targets
    assert targets <= known
    assert others == []
