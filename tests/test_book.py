"""The book builds without a warning, and its pages keep the rules for chapters."""

import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import dqt_core
from dqt_book import inside
from dqt_book.pages import build as builder
from dqt_book.pages import execution, reading
from dqt_book.pages.browser import pages

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.md"))
LESSONS = [*CHAPTERS, ROOT / "book" / "kernels-in-detail.md"]  # pages with exercises


class Page(HTMLParser):
    """What a page loads, and the images in its text."""

    def __init__(self, html):
        super().__init__()
        self.loaded, self.alternatives, self.depth = [], [], 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.depth += tag == "article"
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(attributes["href"])
        if tag in ("script", "img", "iframe") and "src" in attributes:
            self.loaded.append(attributes["src"])
        if tag == "img" and self.depth:
            self.alternatives.append(attributes.get("alt") or "")

    def handle_endtag(self, tag):
        self.depth -= tag == "article"


def remote(html):
    return [address for address in Page(html).loaded if re.match(r"(https?:)?//", address)]


def unnamed(html):
    """Count the images whose alternative text is empty or the name of a file."""
    return sum(not text.strip() or bool(re.search(r"\.(svg|png)$", text)) for text in Page(html).alternatives)


def test_book_builds_without_warning(book):
    assert [page for page in pages() if not (book / page).with_suffix(".html").is_file()] == []


def test_pages_load_nothing_from_the_network(book):
    found = {page: remote((book / page).with_suffix(".html").read_text()) for page in pages()}
    assert {page: addresses for page, addresses in found.items() if addresses} == {}


def test_formulas_render_without_the_network(book):
    page = (book / "book" / "notation.html").read_text()
    assert 'class="math' in page
    assert (book / "_static" / "mathjax" / "tex-svg-full.js").is_file()
    assert re.search(r'<script[^>]*src="\.\./_static/mathjax/tex-svg-full\.js', page)


def test_no_page_names_the_machine_that_built_it(book):
    named = [name for name in pages() if "site-packages" in (book / name).with_suffix(".html").read_text()]
    assert named == []


def test_every_figure_has_an_alternative_text(book):
    found = {page: unnamed((book / page).with_suffix(".html").read_text()) for page in pages()}
    assert {page: count for page, count in found.items() if count} == {}


def test_the_page_rules_can_fail():
    assert remote('<script src="https://cdn.example/a.js"></script>')
    assert remote('<link rel="stylesheet" href="//cdn.example/a.css">')
    assert not remote('<a href="https://arxiv.org/abs/1902.08153"></a><script src="../a.js"></script>')
    assert unnamed('<article><img src="a.svg" alt="../_images/a.svg"></article>') == 1
    assert unnamed('<article><img src="a.svg"></article>') == 1
    assert unnamed('<article><img src="a.svg" alt="Accuracy against width"></article>') == 0


# Chapters


def cells(text, drawings=True):
    """Return the lines of each code cell that a reader sees, options left out; on demand no figures."""
    shown = []
    for body in re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", text, re.M | re.S):
        options = re.match(r"(:[^\n]*\n|---\n.*?\n---\n)*", body, re.S).group()
        hidden = re.search(r"remove-cell|remove-input|hide-input|hide-cell", options)
        if not hidden and (drawings or "  figure:" not in options):
            shown.append([line for line in body[len(options) :].splitlines() if line.strip()])
    return shown


def cell_faults(text):
    lengths = sorted(len(cell) for cell in cells(text)) or [0]
    faults = []
    if statistics.median(lengths) > 8:
        faults.append(f"the median cell has {statistics.median(lengths)} lines, at most 8")
    if lengths[int(0.9 * (len(lengths) - 1))] > 20:
        faults.append("more than a tenth of the cells have over 20 lines")
    if lengths[-1] > 40:
        faults.append(f"the longest cell has {lengths[-1]} lines, at most 40")
    folded = cells(text.replace("hide-input", ""))
    faults += [f"wider than 74: {line}" for cell in folded for line in cell if len(line) > 74]
    return faults


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_read_in_35_minutes(chapter):
    assert 5 <= reading.minutes(chapter.read_text()) < reading.LONGEST + 0.5


def test_the_chapters_are_read_in_six_and_a_half_hours():
    assert sum(reading.minutes(path.read_text()) for path in reading.chapters()) < reading.IN_ALL


def test_words_code_and_pictures_take_time_and_exercises_do_not():
    page = "---\nkernelspec:\n---\n" + "word " * 200
    shown, folded = "\n```{code-cell} ipython3\n%s\n```\n", ":tags: [hide-input]\n"
    code = "x\n" * 14 + "x"
    assert reading.minutes(page) == pytest.approx(1)
    assert reading.minutes(page + shown % code) == pytest.approx(2, abs=0.15)
    assert reading.minutes(page + shown % (folded + code)) == pytest.approx(1)
    assert reading.minutes(page + "\n```{figure} a.svg\n```") > 1.3
    assert reading.minutes(page + "\n## Exercises\n" + "word " * 200) == pytest.approx(1)


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda path: path.stem)
def test_cells_are_short(chapter):
    text = chapter.read_text()
    assert cells(text)
    assert cell_faults(text) == []


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution(chapter):
    text = chapter.read_text()
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)", text)
    assert exercises
    assert sorted(exercises) == sorted(solutions)


# Aimed at: 10 to 15 words for each line of code. Solutions do not count, as their words are the hint's, nor
# do lines that draw a figure, as their words are the caption, which counts. Up to 17 words are tolerated. A
# chapter that reads tables, drawn by folded cells, shows few lines of its own and may have any number of
# words.
FEWEST, MOST = 10, 17


def outside_solutions(text):
    return re.sub(r"^```\{solution-start\}.*?^```\{solution-end\}\n```", "", text, flags=re.M | re.S)


def words(text):
    """Count the words of a chapter's prose, captions included."""
    captions = re.findall(r"^    caption: (.*?)\n(?:    \w|---)", text, re.M | re.S)
    text = text.split("---\n", 2)[-1]  # without its head
    text = re.sub(r"^```\{(code-cell|raw|figure|literalinclude|slide)\}.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    text = re.sub(r"^(:[\w-]+:|```|:::|% show).*$", "", text, flags=re.M)
    return len(re.findall(r"[A-Za-z0-9]\S*", "\n".join([text, *captions])))


def prose_faults(text):
    text = outside_solutions(text)
    lines = sum(map(len, cells(text, drawings=False)))
    folded = sum(map(len, cells(text.replace("hide-input", "")))) - sum(map(len, cells(text)))
    ratio = words(text) / lines
    if ratio < FEWEST or (ratio > MOST and 2 * folded < lines):
        return [f"{ratio:.1f} words of prose for each line of code, aim at 10 to 15"]
    return []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_code_is_explained(chapter):
    assert prose_faults(chapter.read_text()) == []


@pytest.mark.parametrize(("per_line", "faulty"), [(9, True), (12, False), (18, True)])
def test_too_little_and_too_much_prose_is_caught(per_line, faulty):
    cell = "```{code-cell} ipython3\n" + "x = 1\n" * 10 + "```\n"
    text = f"---\nhead\n---\n{'word ' * 10 * per_line}\n{cell}"
    assert bool(prose_faults(text)) == faulty
    figure = '---\nmystnb:\n  figure:\n    caption: "a"\n    name: b\n---\n'
    drawing = cell.replace("ipython3\n", f"ipython3\n{figure}")
    assert bool(prose_faults(text + drawing)) == faulty
    solution = "```{solution-start} a\n```\n" + 9 * cell + "```{solution-end}\n```\n"
    assert bool(prose_faults(text + solution)) == faulty
    folded = cell.replace("ipython3\n", "ipython3\n:tags: [hide-input]\n")
    assert bool(prose_faults(text + folded)) == (faulty and per_line < 10)


@pytest.mark.parametrize("lines", [9, 41])
def test_a_long_cell_is_caught(lines):
    assert cell_faults("```{code-cell} ipython3\n:tags: [margin]\n" + "x = 1\n" * lines + "```\n")


def test_a_wide_cell_is_caught():
    assert cell_faults("```{code-cell} ipython3\n" + "x" * 75 + "\n```\n")


def test_what_a_program_holds_inside_ends_in_its_logits():
    program, images = dqt_core.load("digits"), np.full((2, 32, 32, 3), 90, np.uint8)
    held = inside.values(program, images, 4)
    assert (held["logits"].reshape(2, -1) == program.run(images, 4, "numpy").logits).all()
    assert held["conv1:sum"].dtype == np.int32
    with pytest.raises(ValueError, match="it holds 2"):
        inside.values(program, images, 5)


# The cache of executed cells


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    for name in (
        "dqt_core/nested.py",
        "requirements.txt",
        "dqt_book/show.py",
        "reproductions/results/run.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    return builder


def test_what_a_cell_wrote_to_stderr_is_told_in_its_words(build, monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "CACHE", tmp_path)
    outputs = [
        {"output_type": "stream", "name": name, "text": f"a word on {name}"} for name in ("stdout", "stderr")
    ]
    page = tmp_path / "executed" / "0" / "base.ipynb"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": outputs}]}))
    assert build.written_to_stderr() == ["a word on stderr"]


@pytest.mark.parametrize(
    "changed",
    [
        "dqt_core/nested.py",
        "dqt_core/kernels/new.cu",
        "requirements.txt",
        "dqt_book/show.py",
        "reproductions/results/run.json",
    ],
)
def test_cached_cells_are_dropped_when_what_they_use_changes(build, tmp_path, changed):
    before = build.cache_key()
    assert build.cache_key() == before
    (tmp_path / changed).parent.mkdir(exist_ok=True)
    (tmp_path / changed).write_text("2")
    assert build.cache_key() != before


def test_cached_cells_are_kept_when_only_a_page_changes(build, tmp_path):
    before = build.cache_key()
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "intro.md").write_text("2")
    (tmp_path / "dqt_core" / "__pycache__").mkdir()
    (tmp_path / "dqt_core" / "__pycache__" / "nested.pyc").write_text("2")
    assert build.cache_key() == before


def test_a_page_is_executed_once_and_nothing_is_kept_of_one_that_fails(tmp_path):
    head = (ROOT / "book" / "02-nested-codes.md").read_text().split("---\n")[1]
    pages = {name: tmp_path / f"{name}.md" for name in ("whole", "broken", "timed")}
    for name, code in (
        ("whole", "print(6 * 7)"),
        ("broken", "1 / 0"),
        ("timed", "from time import perf_counter"),
    ):
        pages[name].write_text(f"---\n{head}---\n\n# Title\n\n```{{code-cell}} ipython3\n{code}\n```\n")
    cache = tmp_path / "cache"
    done = execution.execute(pages.values(), cache, timeout=60, workers=2)
    assert done == [pages["whole"], pages["timed"]]
    texts = [path.read_text() for path in cache.glob("executed/*/base.ipynb")]
    assert len(texts) == 2
    (kept,) = (text for text in texts if "6 * 7" in text)
    assert '"42\\n"' in kept
    assert execution.execute(done, cache, timeout=60, workers=2) == []


def test_every_page_with_cells_is_executed_before_the_build():
    named = {page.stem for page in execution.pages()}
    assert {path.stem for path in CHAPTERS} <= named
    assert {"intro", "your-own-network", "cpu-speed"} <= named
    assert "resnet18_cifar" not in named
