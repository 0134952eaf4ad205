"""Every chapter as a notebook that runs on its own, with the archive of what it reads, and links to both.

A chapter is MyST text. Its notebook holds the same cells without outputs, its text in the Markdown that any
notebook reader shows, and before them a cell that installs the package and fetches the files.
"""

import base64
import json
import posixpath
import re
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from pybtex.database import parse_file
from sphinx.application import Sphinx

from dqt_book.pages import reading
from dqt_book.places import CHECKPOINTS, ROOT

FOLDER = "_notebooks"  # in the built book
BRANCH = "notebooks"  # where `make publish-notebooks` puts that folder
UNPACKED = "nested-integers"  # the folder that archives unpack into, of all chapters the same
FILES = ("pyproject.toml", "README.md", "LICENSE", "dqt_core/**/*", "dqt_book/**/*")
FILES += ("reproductions/*.json", "reproductions/expected/*")
RECORDS = "reproductions/results/**/*"

TRAINS = (
    r"(import |from dqt_core import [^\n]*\b|dqt_core\.)"
    r"(torch|convert|lower|models|objective|quantize|training|train)\b"
)
# what of a chapter's code asks for it, what pip is given, and the module that shows that it is there
EXTRAS = (
    (TRAINS, "train", "torch"),
    (r"backends import [^\n]*(bit_planes|numba_cpu)", "fast", "numba"),
    (r"\bimport onnx|dqt_core\.export", "export", "onnxruntime"),
)
DIGITS = (r"load\(\"embedded\"\)|import sklearn|from sklearn", "scikit-learn", "sklearn")
# Without it pip takes PyTorch for CUDA, gigabytes of it.
FOR_CPUS = "--extra-index-url https://download.pytorch.org/whl/cpu "
BINDER = "numpy\nsafetensors\nmatplotlib\nscikit-learn\n"  # of its image; the notebooks install the rest

SETUP = """\
# Gets the book's files and installs the package, unless they are here already.
import importlib.util
import os
import urllib.request
import zipfile
from pathlib import Path

ARCHIVE, ADDRESS = Path({archive!r}), {address!r}
if not Path("../reproductions/expected").exists():
    if not ARCHIVE.exists() and not ADDRESS:
        raise FileNotFoundError(f"no {{ARCHIVE}} beside this notebook: save it from the chapter's page")
    if not ARCHIVE.exists():
        urllib.request.urlretrieve(ADDRESS, ARCHIVE)
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall()
    os.chdir(Path({folder!r}, "book"))
if not all(map(importlib.util.find_spec, {modules!r})):
    %pip install --quiet {packages}
"""


def code_of(chapter: Path) -> str:
    """The code cells of a chapter."""
    cells = jupytext.read(chapter, fmt="md:myst").cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def needs(code: str) -> tuple[str, tuple[str, ...]]:
    """What pip is given for a chapter's code, and the modules that must be there."""
    found = [entry for entry in EXTRAS if re.search(entry[0], code)]
    extras = [extra for _, extra, _ in found]
    modules = ["dqt_core", "dqt_book", "matplotlib", *(module for *_, module in found)]
    packages = [f'"..[{",".join(extras)}]"' if extras else '".."', "matplotlib"]
    if "train" not in extras and re.search(DIGITS[0], code):
        packages.append(DIGITS[1])
        modules.append(DIGITS[2])
    return FOR_CPUS * ("train" in extras) + " ".join(packages), tuple(modules)


def files(code: str) -> list[Path]:
    """What a chapter imports and reads: the package, records if it names any, the networks that it names."""
    patterns = [*FILES, *([RECORDS] if re.search(r"/results|\"results\"|dqt_book\.records", code) else [])]
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    found |= {path for path in CHECKPOINTS.glob("*") if path.name.rpartition("-")[0] + "-" in code}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def address(repository: str, name: str) -> str:
    """Where a chapter's archive can be fetched; empty where no repository is configured."""
    return f"{repository}/raw/{BRANCH}/{name}.zip" if repository else ""


def launches(repository: str, name: str) -> list[tuple[str, str]]:
    """Label and address of what opens a chapter's notebook elsewhere; none without a repository."""
    if not repository:
        return []
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", repository)
    if match is None:
        raise ValueError(f"notebook_repository is {repository!r}, expected https://github.com/OWNER/NAME")
    colab = f"https://colab.research.google.com/github/{match[1]}/blob/{BRANCH}/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{match[1]}/{BRANCH}?labpath={name}.ipynb"
    return [("Open in Colab", colab), ("Launch on Binder", binder)]


# MyST to Markdown


def _quote(title: str, body: str) -> str:
    lines = f"**{title}**\n\n{body}".splitlines()
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _picture(argument: str, options: dict[str, str], body: str, folder: Path) -> str:
    data = base64.b64encode((folder / argument).read_bytes()).decode()
    words = " ".join(options["alt"].split()).strip('"')
    return f"![{words}](data:image/svg+xml;base64,{data})\n\n*{body}*"


def _included(argument: str, options: dict[str, str], folder: Path) -> str:
    text = (folder / argument).read_text()
    start, end = (options.get(key, "").strip('"') for key in ("start-at", "end-before"))
    text = text[text.rindex("\n", 0, text.index(start)) + 1 :] if start else text
    text = text[: text.index(end)] if end else text
    return f"```cpp\n{textwrap.dedent(text).rstrip()}\n```"


def _table(body: str) -> str:
    rows = [re.split(r"\n\s+- ", row) for row in re.split(r"^\* - ", body, flags=re.M)[1:]]
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def _directive(name: str, argument: str, options: dict[str, str], body: str, folder: Path) -> str:
    label = re.search(r'aria-label="([^":]*)', body)
    widget = f"*On the book's page there is something to operate here: {label[1] if label else argument}.*"
    rules: dict[str, Callable[[], str]] = {
        "admonition": lambda: _quote(argument, body),
        "dropdown": lambda: f"<details><summary>{escape(argument)}</summary>\n\n{body}\n\n</details>",
        "exercise-start": lambda: f"### Exercise: {argument}",
        "exercise-end": lambda: "",
        "solution-start": lambda: "**A solution.** Its cell is folded; open it when you have tried.",
        "solution-end": lambda: "",
        "raw": lambda: widget,
        "figure": lambda: _picture(argument, options, body, folder),
        "literalinclude": lambda: _included(argument, options, folder),
        "list-table": lambda: _table(body),
        "slide": lambda: "",
    }
    if name not in rules:
        raise ValueError(
            f"a notebook cannot show the directive {name!r}: add a rule to book/_ext/notebooks.py"
        )
    return rules[name]()


def _split_options(body: str) -> tuple[dict[str, str], str]:
    block = re.match(r"---\n(.*?)\n---\n", body, re.S)
    block = block or re.match(r"((?::[\w-]+:[^\n]*\n)*)", body)
    found = re.findall(r"^:?([\w-]+):[ ]?(.*(?:\n[ ]+.*)*)", block[1], re.M)
    return dict(found), body[block.end() :].strip("\n")


def plain(text: str, folder: Path, words: Callable[[str, str], str]) -> str:
    """MyST text as plain Markdown; `words(role, content)` says what stands for a role."""

    def directive(match: re.Match[str]) -> str:
        options, body = _split_options(match["body"])
        return _directive(match["name"], match["argument"].strip(), options, body, folder)

    fence = r"^(?P<fence>:{3,}|`{3,})\{(?P<name>[\w-]+)\}(?P<argument>[^\n]*)\n(?P<body>.*?)^(?P=fence)$"
    text = re.sub(r"^% show.*\n?", "", text, flags=re.M)
    text = re.sub(fence, directive, text, flags=re.M | re.S)
    return re.sub(r"\{([\w:]+)\}`([^`]+)`", lambda match: words(match[1], match[2]), text).strip("\n")


# A chapter's notebook


def _cell(cell: Any, folded: bool) -> Any:
    tags = cell.metadata.pop("tags", [])
    cell.metadata.clear()
    if folded or any(re.match("(remove|hide)-(cell|input)", tag) for tag in tags):
        cell.metadata.update(jupyter={"source_hidden": True}, cellView="form")
    return cell


def _cells(found: Any, folder: Path, words: Callable[[str, str], str]) -> Iterator[Any]:
    solution = False
    for cell in found:
        if cell.cell_type == "code":
            yield _cell(cell, solution)
            continue
        marks = re.findall(r"\{solution-(start|end)\}", cell.source)
        solution = marks[-1] == "start" if marks else solution
        cell.source = plain(cell.source, folder, words)
        cell.metadata.clear()
        if cell.source:
            yield cell


def notebook(chapter: Path, words: Callable[[str, str], str], repository: str = "") -> Any:
    """The notebook of a chapter."""
    made, name = jupytext.read(chapter, fmt="md:myst"), chapter.stem
    packages, modules = needs(code_of(chapter))
    source = SETUP.format(
        archive=f"{name}.zip",
        address=address(repository, name),
        folder=UNPACKED,
        packages=packages,
        modules=modules,
    )
    install = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    made.cells = [type(made.cells[0])(install, source=source), *_cells(made.cells, chapter.parent, words)]
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def write_archive(chapter: Path, path: Path) -> None:
    """Pack what a chapter imports and reads, and itself; equal files give an equal archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in [*files(code_of(chapter)), chapter.resolve()]:
            name = f"{UNPACKED}/{file.relative_to(ROOT).as_posix()}"
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes(), zipfile.ZIP_DEFLATED)


# In the build


def _chapters(app: Sphinx) -> list[str]:
    return sorted(name for name in app.env.found_docs if re.match(r"book/\d\d-", name))


def _sources(app: Sphinx) -> dict[str, str]:
    entries = parse_file(Path(app.confdir) / "book" / "references.bib").entries
    found = {}
    for key, entry in entries.items():
        names = [" ".join(person.last_names) for person in entry.persons.get("author", [])] or [key]
        authors = (
            names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
        )
        found[key] = f"{authors}, {entry.fields.get('year', 'n.d.')}"
    return found


def _words(app: Sphinx, name: str) -> Callable[[str, str], str]:
    glued = Path(app.outdir).parent / "jupyter_execute" / f"{name}.glue.json"
    values = json.loads(glued.read_text()) if glued.is_file() else {}
    sources, labels = _sources(app), app.env.domaindata["std"]["anonlabels"]

    def words(role: str, content: str) -> str:
        if role == "glue:text":
            return str(values[content]["data"]["text/plain"]).strip("'\"")
        if role in ("cite:p", "cite:t"):
            return "(" + "; ".join(sources[key.strip()] for key in content.split(",")) + ")"
        if role == "numref":
            number = app.env.toc_fignumbers[labels[content][0]]["figure"][labels[content][1]]
            return "Fig. " + ".".join(map(str, number))
        if role == "doc":
            return f"*{app.env.titles[posixpath.normpath(posixpath.join('book', content))].astext()}*"
        if role == "reading-time":
            return reading.said(Path(name).name)
        return f"*{content}*"

    return words


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(exist_ok=True)
    for name in _chapters(app):
        chapter, repository = Path(app.confdir) / f"{name}.md", app.config.notebook_repository
        jupytext.write(notebook(chapter, _words(app, name), repository), folder / f"{chapter.stem}.ipynb")
        write_archive(chapter, folder / f"{chapter.stem}.zip")
    (folder / "requirements.txt").write_text(BINDER)
    (folder / "runtime.txt").write_text("python-3.11\n")


def add_links(app: Sphinx, tree: nodes.document, name: str) -> None:
    if app.builder.format != "html" or name not in _chapters(app):
        return
    here, chapter = f"../{FOLDER}", Path(name).name
    links = [
        f'Run it yourself: <a href="{here}/{chapter}.ipynb" download>notebook</a>',
        f'<a href="{here}/{chapter}.zip" download>files it reads</a> (save both in one folder)',
        *(f'<a href="{url}">{label}</a>' for label, url in launches(app.config.notebook_repository, chapter)),
    ]
    title = next(iter(tree.findall(nodes.title)))
    line = nodes.raw("", f'<p class="notebook-links">{" · ".join(links)}</p>', format="html")
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("notebook_repository", "", "html", [str])
    app.connect("doctree-resolved", add_links)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
