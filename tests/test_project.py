"""The project's own rules: dependencies in step, floors, the wheel, the files it tracks."""

import ast
import doctest
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import mutants
import pytest
import touched
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dqt_core
from dqt_core import _extras

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


def test_the_repositorys_address_is_said_alike():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    assert PROJECT.get("urls", {}).get("Repository", "") == config["notebook_repository"]


def test_versions_are_in_step():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == dqt_core.__version__
    for page in ("README.md", "book/assignments/index.md", "book/assignments/a6/a6.md"):
        named = re.findall(r"dqt_core-(\S+)-py3-none-any.whl", (ROOT / page).read_text())
        assert set(named) == {PROJECT["version"]}
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"


# Rooms: pyproject.toml says which may import which

RULES = {
    "down": "The rooms of dqt_core: imports only go down",
    "circle": "No circle in a room",
    "outside": "The package knows neither the book nor the runs",
    "numbers": "The numbers need NumPy alone",
    "torch": "Torch is met in training",
}


def linted(folder):
    """What import-linter says of the checkout in a folder."""
    tool = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [tool, "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_imports_only_go_down():
    result = linted(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for package in ("dqt_core", "dqt_book", "reproductions", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            there = folder / path.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("file", "wrong", "rule"),
    [
        ("dqt_core/nested.py", "def f():\n    from dqt_core.integer import matmul", "down"),
        ("dqt_core/program/program.py", "def f():\n    from dqt_core.backends import numpy_ref", "down"),
        ("dqt_core/evaluation/cost.py", "from dqt_core.training import layers", "down"),
        ("dqt_core/data/datasets.py", "from dqt_core.export import qdq", "down"),
        ("dqt_core/another_room.py", "", "down"),
        ("dqt_core/training/layers.py", "from dqt_core.training.conversion import joints", "circle"),
        ("dqt_core/training/layers.py", "from dqt_core.training import train", "circle"),
        ("dqt_core/training/train.py", "def f():\n    from dqt_book import show", "outside"),
        ("dqt_core/integer/rounding.py", "import safetensors", "numbers"),
        ("dqt_core/evaluation/cost.py", "try:\n    import torch\nexcept ImportError:\n    pass", "torch"),
    ],
)
def test_a_wrong_import_is_caught(copied, file, wrong, rule):
    path = copied / file
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{wrong}\n")
    result = linted(copied)
    path.unlink() if before is None else path.write_text(before)
    assert result.returncode != 0
    assert any(RULES[rule] in line and "BROKEN" in line for line in result.stdout.splitlines()) or (
        "another_room" in result.stdout + result.stderr
    )


def packages(top):
    """{package: its public modules and packages} below a top-level package."""
    found = {}
    for path in (ROOT / top).rglob("__init__.py"):
        entries = {p.stem for p in path.parent.glob("*.py")} | {
            p.parent.name for p in path.parent.glob("*/__init__.py")
        }
        found[path.parent.relative_to(ROOT).as_posix()] = {
            name for name in entries if not name.startswith("_")
        }
    return found


@pytest.mark.parametrize("top", ["dqt_core", "dqt_book"])
def test_a_room_says_what_is_in_it(top):
    for package, entries in packages(top).items():
        words = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
        chapters = {name for name in entries if re.fullmatch(r"chapter\d\d", name)}
        unnamed = {name for name in entries - chapters if not re.search(rf"`(\w+/)?{name}[`/.]", words)}
        assert unnamed == set(), f"{package}/__init__.py does not say what they are"


def table(page, head):
    """The first column of a page's table, without the marks of code."""
    rows = (ROOT / page).read_text().split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_the_rooms_that_prose_names_are_those_there_are(tracked):
    tops = {path.relative_to(ROOT).parts[0] for path in tracked if path.parent != ROOT}
    named = table("README.md", "| folder | what is in it |")
    assert sorted(named) == sorted(f"{top}/" for top in tops if not top.startswith("."))
    rooms = {
        f"{name}/" if (ROOT / "dqt_core" / name).is_dir() else name
        for name in packages("dqt_core")["dqt_core"]
    }
    named = table("CONTRIBUTING.md", "| room | what is in it | needs |")
    assert sorted(named) == sorted(rooms)
    assert len(rooms) <= 10


# The wheel

PACKAGES = ("dqt_core", "dqt_book")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy, as setuptools writes beside what it builds.
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "test_alone.py").touch()
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
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == files


def test_a_source_distribution_holds_the_package_and_no_tests(wheel, tmp_path):
    make = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", make], cwd=wheel.parent / "source", check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "dqt_core/nested.py", "dqt_book/show.py"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_a_wheel_alone_has_something_to_run(small_python):
    program = "import dqt_core; print(dqt_core.load('digits').digest)"
    record = (ROOT / "reproductions" / "results" / "resnet18_cifar" / "embedded.json").read_text()
    assert f'"trained": "{run(small_python, "-I", "-c", program).stdout.strip()}"' in record


def test_wheel_works_with_numpy_and_safetensors_alone(small_python):
    program = (
        "import dqt_core, importlib.util, numpy as np\n"
        "from dqt_core import nested, integer\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "codes, step = nested.quantize([-1.0, 1.0])\n"
        "print(nested.switch(codes, 4))"
    )
    assert run(small_python, "-I", "-c", program).stdout == "[-8  7]\n"


# What needs more than the rest of its room; who imports one of them needs that too.
NEED_MORE = {f"backends.{name}" for name in ("torch_cpu", "bit_planes", "numba_cpu")}
NEED_MORE |= {f"backends.{name}" for name in ("_llvm", "_numba_cache", "_processor")}
NEED_MORE |= {"data._torchvision", "data.streaming", "training"}


def test_all_but_training_is_imported_with_numpy_and_safetensors_alone(small_python):
    program = (
        "import importlib, pkgutil, dqt_core\n"
        "for found in pkgutil.walk_packages(dqt_core.__path__, 'dqt_core.'):\n"
        "    try: importlib.import_module(found.name)\n"
        "    except ModuleNotFoundError: print(found.name.removeprefix('dqt_core.'))"
    )
    assert set(run(small_python, "-I", "-c", program).stdout.split()) == NEED_MORE


def test_the_selftest_needs_numpy_and_safetensors_alone(small_python):
    told = run(small_python, "-I", "-m", "dqt_core.selftest").stdout
    assert "numpy, from a file     exact" in told
    assert f"torch, on the CPU      not here: {_extras.install('train')}" in told
    assert "All that is here is exact" in told


WITHOUT = """\
train  torch       dqt_core.training      from dqt_core import convert
train  torch       dqt_core.training      from dqt_core import train
train  torch       dqt_core.training      from dqt_core.training import layers
train  torch       dqt_core.training      from dqt_core.training.agreement import follow
train  torch       dqt_core.training      import dqt_core.training.calibration
train  torch       torchvision            from dqt_core.data import streaming
train  sklearn     the embedded data set  from dqt_core import data; data.load("embedded")
train  sklearn     imagenet.photographs   from dqt_core.data import imagenet; imagenet.photographs()
train  PIL         reading images         from dqt_core.data import decoding; decoding.pillow()
train  webdataset  packing                from dqt_core.data import packing; packing._shard_writer(0, 0)
train  scipy       allocate               from dqt_core.evaluation import allocate; allocate._scipy_optimize()
train  torch       backend "torch"        program.run(images, 8, "torch")
fast   numba       backend "numba"        program.run(images, 8, "numba")
export onnx        exporting              from dqt_core import export; export.to_onnx(program, "x")
"""


@pytest.mark.parametrize("line", WITHOUT.splitlines(), ids=lambda line: line.split("  ")[-1])
def test_a_missing_extra_is_one_sentence(small_python, line):
    extra, module, who, statement = line[:6].strip(), line[7:18].strip(), line[19:41].strip(), line[42:]
    before = "from dqt_core import selftest as s; program, images = s.network(), s.images()\n"
    result = run(small_python, "-I", "-c", before + statement, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ModuleNotFoundError: {who} needs {module}: {_extras.install(extra)}"


def test_a_name_that_needs_an_extra_is_none_for_hasattr(small_python):
    program = "import dqt_core; print(hasattr(dqt_core, 'train'))\ndqt_core.train"
    result = run(small_python, "-I", "-c", program, check=False)
    assert result.stdout == "False\n"
    assert result.stderr.splitlines()[-1].startswith("AttributeError: dqt_core.training needs torch: pip")


def test_the_download_without_torch_is_one_line(small_python, tmp_path):
    result = run(small_python, "-I", "-m", "dqt_core.data", "cifar10", tmp_path, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"torchvision needs torch: {_extras.install('train')}\n"


def test_nobody_is_sent_to_an_index_for_this_package(tracked):
    """Whoever registered the name there could run code on the reader's machine."""
    by_name = re.compile(r"pip3? install[^\n`]*[ \"']dqt[-_]core\b(?!-)")
    assert by_name.search('`pip install "dqt_core[book]"`')
    assert by_name.search("pip install -U dqt-core")
    kinds = {".md", ".py", ".yml", ".ipynb"}
    pages = [path for path in tracked if path.suffix in kinds and path != Path(__file__)]
    assert [path for path in pages if by_name.search(path.read_text())] == []


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


def test_api_pages_list_every_public_module():
    pages = sorted((ROOT / "book" / "api").glob("*.md"))
    listed = re.findall(r"automodule:: dqt_core\.(\S+)", "".join(page.read_text() for page in pages))
    public = {
        f"{package}/{name}".removeprefix("dqt_core/").replace("/", ".")
        for package, names in packages("dqt_core").items()
        for name in names
    }
    rooms = {package.removeprefix("dqt_core/").replace("/", ".") for package in packages("dqt_core")}
    public -= rooms - {"kernels", "backends.numba_cpu"}  # which hold what is public themselves
    assert len(listed) == len(set(listed))
    assert set(listed) == public, "book/api and dqt_core/ differ"


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*_checks.py")), ids=lambda p: p.stem)
def test_every_check_is_in_a_list(path):
    tree = ast.parse(path.read_text())
    checks = {node.name for node in tree.body if getattr(node, "name", "").startswith("check_")}
    lists = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("CHECKS")
    ]
    assert checks == {
        name.id for node in lists for name in ast.walk(node.value) if isinstance(name, ast.Name)
    }


def test_every_file_of_tests_is_of_one_room_or_left_to_the_whole_suite():
    lists = [
        touched.tests(names) for names in (*(names for _, names in touched.ROOMS.values()), touched.LATER)
    ]
    assert sorted(name for names in lists for name in names) == sorted(touched.tests("*"))


@pytest.mark.parametrize(
    ("file", "rooms"),
    [
        ("dqt_core/integer/rounding.py", ["numbers"]),
        ("dqt_core/backends/torch_cpu.py", ["backends"]),
        ("tests/test_qdq.py", ["export"]),
        ("book/02-nested-codes.md", ["exercises"]),
        ("README.md", []),
    ],
)
def test_a_file_has_its_rooms(file, rooms):
    assert touched.rooms_of([file]) == rooms
    for argument in touched.arguments(rooms):
        assert (ROOT / argument).exists()


def test_every_module_is_in_a_room():
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "dqt_core").rglob("*.py")]
    left = {"dqt_core/__init__.py", "dqt_core/_extras.py"}  # what installing is about: this file tests it
    assert {file for file in modules if not touched.rooms_of([file])} == left


def test_the_count_of_mutants_is_that_of_its_record():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert mutants.within(page) == mutants.table(json.loads(mutants.RECORD.read_text()))
    assert mutants.within(mutants.within(page, "other\n")) == "other\n"


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
    assert sum(sizes.values()) < 31_000_000


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
