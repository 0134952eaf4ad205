"""The chapters as notebooks: whole, plain, and able to run on their own."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import jupytext
import nbformat
import notebooks
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.md"))
REPOSITORY = "https://github.com/owner/name"


def made(chapter, **options):
    return notebooks.notebook(chapter, lambda role, content: f"({role}: {content})", **options)


def text_of(notebook, kind):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def outside_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]+`|\$\$.*?\$\$|\$[^$]+\$", "", text, flags=re.M | re.S)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapters_notebook_is_valid_and_keeps_every_cell(chapter):
    notebook = made(chapter)
    nbformat.validate(notebook)
    assert "%pip install" in notebook.cells[0].source
    cells = [cell.source for cell in jupytext.read(chapter, fmt="md:myst").cells if cell.cell_type == "code"]
    kept = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]
    assert kept == cells
    assert "myst_nb" not in text_of(notebook, "code")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapters_notebook_is_plain_markdown(chapter):
    text = outside_code(text_of(made(chapter), "markdown"))
    assert re.findall(r"^(?::{3,}|`{3,})\{.*|\{[\w:]+\}`.*|^\([\w-]+\)=", text, re.M) == []


def test_an_unknown_directive_is_refused(tmp_path):
    with pytest.raises(ValueError, match="add a rule"):
        notebooks.plain("```{mermaid}\na --> b\n```", tmp_path, lambda *_: "")


@pytest.mark.parametrize(
    ("source", "markdown"),
    [
        ("```{slide} Title\n:beside:\n\n- said\n```\nText.\n\n% show code\nShown.", "Text.\n\nShown."),
        (":::{admonition} Note\n:class: tip\n\nText.\n:::", "> **Note**\n>\n> Text."),
        (":::{dropdown} A & B\nText.\n:::", "<details><summary>A &amp; B</summary>\n\nText.\n\n</details>"),
        ("Before\n\n```{exercise-start} Title\n:label: ex\n```", "Before\n\n### Exercise: Title"),
        ("see {numref}`fig-a`, {glue:text}`x`", "see <numref fig-a>, <glue:text x>"),
        ("```{list-table}\n:header-rows: 1\n\n* - a\n  - b\n* - c\n  - d\n    e\n```",
         "| a | b |\n| --- | --- |\n| c | d e |"),
    ],
)  # fmt: skip
def test_constructs_become_plain_markdown(source, markdown, tmp_path):
    assert notebooks.plain(source, tmp_path, lambda *word: f"<{' '.join(word)}>") == markdown


def test_included_source_is_the_part_that_the_page_shows(tmp_path):
    (tmp_path / "a.cu").write_text("zero\n    one(\n    two\nthree\n")
    options = "---\nlanguage: cuda\nstart-at: one\nend-before: three\ndedent: 4\n---\n"
    assert notebooks.plain(f"```{{literalinclude}} a.cu\n{options}```", tmp_path, str) == (
        "```cpp\none(\ntwo\n```"
    )


# What they install and download

TRAIN = f'{notebooks.FOR_CPUS}"..[train]" matplotlib'


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import numpy as np\nfrom dqt_core import nested, trained", '".." matplotlib'),
        ('digits = data.load("embedded")', '".." matplotlib scikit-learn'),
        (
            'from dqt_core import data, lower\ndata.load("embedded")',
            f'{notebooks.FOR_CPUS}"..[train]" matplotlib',
        ),
        ("from dqt_core.training.objective import Objective", f'{notebooks.FOR_CPUS}"..[train]" matplotlib'),
        ("dqt_core.quantize(net)", f'{notebooks.FOR_CPUS}"..[train]" matplotlib'),
        ("from dqt_core.backends import bit_planes", '"..[fast]" matplotlib'),
        ("import torch\nimport onnx", f'{notebooks.FOR_CPUS}"..[train,export]" matplotlib'),
    ],
)
def test_a_notebook_installs_what_its_code_asks_for(code, packages):
    assert notebooks.needs(code)[0] == packages


def test_the_first_chapters_need_no_torch_no_record_and_one_small_network_of_the_checkpoints():
    for code in map(notebooks.code_of, CHAPTERS[:4]):
        assert "[" not in notebooks.needs(code)[0]
        files = notebooks.files(code)
        assert not any("results" in path.parts for path in files)
        kept = [path.name for path in files if "checkpoints" in path.parts]
        assert all(name.startswith("resnet18_embedded_float-") for name in kept)


def test_a_notebook_downloads_the_networks_that_it_names():
    files = notebooks.files('next(shipped.glob("resnet18_embedded_float-*"))')
    assert [path.name[:24] for path in files if path.parent.name == "checkpoints"] == [
        "resnet18_embedded_float-"
    ]


def test_no_chapters_files_weigh_more_than_two_megabytes(tmp_path):
    for chapter in CHAPTERS:
        notebooks.write_archive(chapter, tmp_path / "a.zip")
        assert (tmp_path / "a.zip").stat().st_size < 2e6, chapter.stem


# On their own


def closure(names):
    """Distributions that installing some brings, these included."""
    found, waiting = set(), [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in found:
            continue
        found.add(key)
        try:
            listed = metadata.requires(wanted.name) or []
        except metadata.PackageNotFoundError:
            continue
        markers = [{"extra": extra} for extra in wanted.extras or {""}]
        needed = [Requirement(text) for text in listed]
        waiting += [r for r in needed if r.marker is None or any(map(r.marker.evaluate, markers))]
    return {name for name, _ in found}


def not_installed(packages):
    """Modules that are here and would not be after pip has installed some packages for a notebook."""
    names = [name.strip('"').replace("..", "dqt_core") for name in packages.split() if "//" not in name]
    brought = closure([*(name for name in names if name[0] != "-"), "ipykernel"])
    found = metadata.packages_distributions()
    return sorted(m for m, owners in found.items() if not {canonicalize_name(o) for o in owners} & brought)


WITHOUT = """
import sys

finder = next(f for f in sys.meta_path if getattr(f, "__name__", "") == "PathFinder")


class Without:
    find_distributions = finder.find_distributions

    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {modules} else finder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(finder)] = Without
"""


def alone(chapter, folder, **options):
    """Write a chapter's notebook into a folder and return what runs it there, with what it installs alone."""
    jupytext.write(made(chapter, **options), folder / "chapter.ipynb")
    notebook = nbformat.read(folder / "chapter.ipynb", as_version=4)
    (folder / "site").mkdir()
    modules = set(not_installed(notebooks.needs(notebooks.code_of(chapter))[0])) - {
        "dqt_book",
        "reproductions",
    }
    (folder / "site" / "sitecustomize.py").write_text(WITHOUT.format(modules=modules))
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})


def execute(client, folder):
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    client.execute(env=os.environ | {"PYTHONPATH": path})


QUICK = ("02-nested-codes", "05-residual-block", "12-cifar10")


@pytest.mark.parametrize(
    "chapter",
    [pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow) for path in CHAPTERS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_in_an_empty_folder_with_what_it_installs(chapter, tmp_path):
    notebooks.write_archive(chapter, tmp_path / f"{chapter.stem}.zip")
    execute(alone(chapter, tmp_path), tmp_path)


def test_what_is_not_installed_is_not_there(tmp_path, monkeypatch):
    """Else the test above could not fail."""
    chapter = ROOT / "book" / "05-residual-block.md"
    notebooks.write_archive(chapter, tmp_path / f"{chapter.stem}.zip")
    monkeypatch.setattr(notebooks, "needs", lambda code: ('".." matplotlib', ("dqt_core",)))
    with pytest.raises(CellExecutionError, match=r"No module named 'torch'|needs torch"):
        execute(alone(chapter, tmp_path), tmp_path)


def test_a_notebook_fetches_its_files(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    chapter = ROOT / "book" / "02-nested-codes.md"
    notebooks.write_archive(chapter, tmp_path / "elsewhere" / "a.zip")
    at = (tmp_path / "elsewhere" / "a.zip").as_uri()
    monkeypatch.setattr(notebooks, "address", lambda repository, name: at)
    client = alone(chapter, tmp_path, repository=REPOSITORY)
    client.nb.cells = client.nb.cells[:3]
    execute(client, tmp_path)
    assert (tmp_path / notebooks.UNPACKED / "dqt_book" / "show.py").is_file()


def test_missing_files_are_named(tmp_path):
    client = alone(ROOT / "book" / "02-nested-codes.md", tmp_path)
    with pytest.raises(CellExecutionError, match=r"no 02-nested-codes\.zip beside this notebook"):
        execute(client, tmp_path)


def test_the_archive_installs_as_a_package_and_equals_itself(tmp_path):
    for name in ("a.zip", "b.zip"):
        notebooks.write_archive(CHAPTERS[0], tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    zipfile.ZipFile(tmp_path / "a.zip").extractall(tmp_path)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", tmp_path / "site"]
    command = [sys.executable, "-m", "pip", "install", *options, "..[train,export]"]
    folder = tmp_path / notebooks.UNPACKED / "book"
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert (tmp_path / "site" / "dqt_core" / "nested.py").is_file()
    assert (tmp_path / "site" / "dqt_book" / "show.py").is_file()


# Links


def test_no_repository_no_launch_links():
    assert notebooks.launches("", "02-nested-codes") == []
    assert notebooks.address("", "02-nested-codes") == ""


def test_launch_links_are_derived_from_the_repository():
    assert dict(notebooks.launches(REPOSITORY, "02-nested-codes")) == {
        "Open in Colab": "https://colab.research.google.com/github/owner/name/blob/notebooks/02-nested-codes.ipynb",
        "Launch on Binder": "https://mybinder.org/v2/gh/owner/name/notebooks?labpath=02-nested-codes.ipynb",
    }
    name = CHAPTERS[0].stem
    assert notebooks.address(REPOSITORY, name) == f"{REPOSITORY}/raw/notebooks/{name}.zip"
    assert notebooks.address(REPOSITORY, name) in made(CHAPTERS[0], repository=REPOSITORY).cells[0].source


@pytest.mark.parametrize("wrong", ["owner/name", "https://example.org/owner/name", f"{REPOSITORY}/tree/main"])
def test_another_address_is_refused(wrong):
    with pytest.raises(ValueError, match="expected https://github"):
        notebooks.launches(wrong, "02-nested-codes")


def test_notebooks_are_published_on_their_branch(tmp_path):
    def git(*command):
        result = subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True, text=True)
        return result.stdout.split()

    git("init", "--quiet", "--bare", "origin.git")
    git("init", "--quiet", ".")
    git("remote", "add", "origin", "origin.git")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--allow-empty", "-m", "first")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("one.ipynb", "two.ipynb"):
        folder = tmp_path / "_build" / "html" / "_notebooks"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        subprocess.run(["make", "publish-notebooks"], cwd=tmp_path, check=True, capture_output=True)
        assert git("--git-dir=origin.git", "ls-tree", "--name-only", "notebooks") == [name]
    assert git("diff", "--cached", "--name-only") == []  # the index of the checkout is untouched


def test_the_built_book_has_every_notebook_and_links_it(book):
    for chapter in CHAPTERS:
        notebook = nbformat.read(book / notebooks.FOLDER / f"{chapter.stem}.ipynb", as_version=4)
        nbformat.validate(notebook)
        page = (book / "book" / f"{chapter.stem}.html").read_text()
        assert f'href="../{notebooks.FOLDER}/{chapter.stem}.ipynb"' in page
        assert f'href="../{notebooks.FOLDER}/{chapter.stem}.zip"' in page
        assert zipfile.is_zipfile(book / notebooks.FOLDER / f"{chapter.stem}.zip")
