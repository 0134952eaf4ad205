"""The chapters as notebooks: whole, plain, and able to run on their own."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jupytext
import nbformat
import notebooks
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

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


# On their own


def alone(chapter, folder, **options):
    """Write a chapter's notebook into a folder and return what runs it there."""
    jupytext.write(made(chapter, **options), folder / "chapter.ipynb")
    notebook = nbformat.read(folder / "chapter.ipynb", as_version=4)
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})


@pytest.mark.parametrize("name", ["02-nested-codes", "05-residual-block", "12-cifar10"])
def test_a_notebook_runs_in_an_empty_folder(name, tmp_path):
    notebooks.write_archive(ROOT, tmp_path / notebooks.ARCHIVE)
    alone(ROOT / "book" / f"{name}.md", tmp_path).execute()


def test_a_notebook_fetches_its_files(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    notebooks.write_archive(ROOT, tmp_path / "elsewhere" / notebooks.ARCHIVE)
    at = (tmp_path / "elsewhere" / notebooks.ARCHIVE).as_uri()
    monkeypatch.setattr(notebooks, "address", lambda repository: at)
    client = alone(ROOT / "book" / "02-nested-codes.md", tmp_path, repository=REPOSITORY)
    client.nb.cells = client.nb.cells[:3]
    client.execute()
    assert (tmp_path / Path(notebooks.ARCHIVE).stem / "dqt_book" / "show.py").is_file()


def test_missing_files_are_named(tmp_path):
    client = alone(ROOT / "book" / "02-nested-codes.md", tmp_path)
    with pytest.raises(CellExecutionError, match=f"no {notebooks.ARCHIVE} beside this notebook"):
        client.execute()


def test_the_archive_installs_as_a_package_and_equals_itself(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        notebooks.write_archive(ROOT, tmp_path / name / notebooks.ARCHIVE)
    first, second = (tmp_path / name / notebooks.ARCHIVE for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    zipfile.ZipFile(first).extractall(tmp_path)
    folder = tmp_path / first.stem
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", tmp_path / "site"]
    command = [sys.executable, "-m", "pip", "install", *options, "..[train,export]"]
    subprocess.run(command, cwd=folder / "book", check=True, capture_output=True)
    assert (tmp_path / "site" / "dqt_core" / "nested.py").is_file()
    assert (tmp_path / "site" / "dqt_book" / "show.py").is_file()


# Links


def test_no_repository_no_launch_links():
    assert notebooks.launches("", "02-nested-codes") == []
    assert notebooks.address("") == ""


def test_launch_links_are_derived_from_the_repository():
    assert dict(notebooks.launches(REPOSITORY, "02-nested-codes")) == {
        "Open in Colab": "https://colab.research.google.com/github/owner/name/blob/notebooks/02-nested-codes.ipynb",
        "Launch on Binder": "https://mybinder.org/v2/gh/owner/name/notebooks?labpath=02-nested-codes.ipynb",
    }
    assert notebooks.address(REPOSITORY) == f"{REPOSITORY}/raw/notebooks/{notebooks.ARCHIVE}"
    assert notebooks.address(REPOSITORY) in made(CHAPTERS[0], repository=REPOSITORY).cells[0].source


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
        assert f'href="../{notebooks.FOLDER}/{notebooks.ARCHIVE}"' in page
    assert zipfile.is_zipfile(book / notebooks.FOLDER / notebooks.ARCHIVE)
