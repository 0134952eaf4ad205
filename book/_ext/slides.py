"""A deck of slides for each chapter, made of what the chapter marks, and one hand-out for paper.

A chapter begins a slide with the directive `{slide} Title`, whose content is what the slide says, and puts
`% show` before each block that the slide shows: a formula, a list, a figure, a cell (`% show code` and
`% show output` take one half of a cell). What lies between two marks and is not shown becomes the speaker's
notes. The page itself is not changed by either mark. Objectives, key points, exercises and what was not shown
become slides of their own.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = "slides"  # in the built book
HANDOUT = "hand-out"
POINTS = 4  # most items of a list on one slide


class slide(nodes.General, nodes.Element):
    """The mark that begins a slide: a title, and what the slide says."""


class Slide(SphinxDirective):
    """`{slide} Title`, with what the slide says; `:beside:` puts it to the left of what is shown."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"beside": directives.flag, "class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        title, messages = self.parse_inline(self.arguments[0], lineno=self.lineno)
        looks = [*self.options.get("class", []), *(["beside"] if "beside" in self.options else [])]
        mark = slide("", classes=looks)
        mark += nodes.title("", "", *title)
        self.state.nested_parse(self.content, self.content_offset, mark)
        return [mark, *messages]


def _skip(translator: Any, node: nodes.Node) -> None:
    raise nodes.SkipNode


# What a chapter holds


@dataclass
class Page:
    """A slide before it is HTML."""

    title: list[nodes.Node]
    says: list[nodes.Node] = field(default_factory=list)
    shows: list[nodes.Node] = field(default_factory=list)
    notes: list[nodes.Node] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)


@dataclass
class Chapter:
    """What a deck and the hand-out take from a chapter."""

    title: str
    number: str
    lead: nodes.Node
    pages: list[Page]
    objectives: nodes.Node
    needs: list[nodes.Node]
    points: nodes.Node
    limits: list[nodes.Node]
    formulas: list[tuple[str, nodes.Node]]
    exercises: list[nodes.Element]


def blocks(node: nodes.Element) -> Iterator[nodes.Node]:
    """Everything that stands in a chapter's sections, in the order of the page, without their titles."""
    for child in node.children:
        if isinstance(child, nodes.section):
            yield from blocks(child)
        elif not isinstance(child, nodes.title):
            yield child


def mark_of(node: nodes.Node) -> str | None:
    """Which part the next block shows: "all", "code" or "output"; None where the node is no mark."""
    if not isinstance(node, nodes.comment):
        return None
    words = node.astext().split()
    if words[:1] != ["show"]:
        return None
    part = " ".join(words[1:]) or "all"
    if part not in ("all", "code", "output"):
        raise ValueError(f"{node.source}:{node.line}: `% show {part}`, expected `% show [code|output]`")
    return part


def _part(node: nodes.Node, part: str) -> list[nodes.Node]:
    """What a slide shows of a block: of a cell that draws a figure its figure, without its caption."""
    if "cell" not in node.get("classes", []):
        return [node]
    code, output = (
        [child for child in node.children if name in child.get("classes", [])]
        for name in ("cell_input", "cell_output")
    )
    figures = [figure for child in output for figure in child.findall(nodes.figure)]
    if part == "all" and figures:
        return figures
    return {"all": [*code, *output], "code": code, "output": figures or output}[part]


def _captions(node: nodes.Node) -> list[nodes.Node]:
    return [nodes.paragraph("", "", *_copies(found.children)) for found in node.findall(nodes.caption)]


def _copies(found: list[nodes.Node]) -> list[nodes.Node]:
    return [node.deepcopy() for node in found]


def _speakable(node: nodes.Node) -> bool:
    texts = nodes.paragraph, nodes.bullet_list, nodes.enumerated_list, nodes.math_block, nodes.Admonition
    return isinstance(node, texts) or "admonition" in node.get("classes", [])


def marked(found: list[nodes.Node]) -> list[Page]:
    """The slides that the marks among a chapter's blocks describe."""
    pages: list[Page] = []
    part = None
    for node in found:
        if part and (isinstance(node, slide) or mark_of(node)):
            raise ValueError(f"{node.source}:{node.line}: the `% show` before it shows nothing")
        if isinstance(node, slide):
            title, *says = node.deepcopy().children
            pages.append(Page(title.children, says, looks=node["classes"]))
        elif mark_of(node):
            part = mark_of(node)
            if not pages:
                raise ValueError(f"{node.source}:{node.line}: `% show` before the first {{slide}}")
        elif part:
            pages[-1].shows += _copies(_part(node, part))
            pages[-1].notes += _captions(node)
            part = None
        elif pages and _speakable(node):
            pages[-1].notes.append(node.deepcopy())
    if part:
        raise ValueError("the last `% show` of a chapter shows nothing")
    return pages


def section(tree: nodes.document, title: str) -> nodes.Element:
    """The section of a page that has a title."""
    for node in tree.findall(nodes.section):
        if node[0].astext() == title:
            return node
    raise ValueError(f"{tree['source']} has no section {title!r}: slides and hand-out are made of it")


def admonition(tree: nodes.document, title: str) -> nodes.Element:
    """The admonition of a chapter that has a title."""
    for node in tree.findall(nodes.admonition):
        if node[0].astext() == title:
            return node
    raise ValueError(f"{tree['source']} has no box {title!r}: its slides are made of it")


def _unboxed(node: nodes.Node) -> list[nodes.Node]:
    return node.children[1:] if isinstance(node, nodes.admonition) else [node]


def chapter(tree: nodes.document, number: str) -> Chapter:
    """Take a chapter apart; its tree is left as it is."""
    top = next(iter(tree.findall(nodes.section)))
    story = [part for part in top.children if isinstance(part, nodes.section)]
    points, exercises = section(tree, "Key points"), section(tree, "Exercises")
    told = [node for part in story if part not in (points, exercises) for node in blocks(part)]
    box = admonition(tree, "What you will be able to do")
    # What was and was not shown follows the key points, in most chapters as a note.
    told_after = [node for node in points.children[1:] if not isinstance(node, nodes.bullet_list)]
    limits = [part for node in told_after for part in _unboxed(node)]
    formulas = [
        (part[0].astext(), formula.deepcopy())
        for part in story
        if part not in (points, exercises)
        for formula in part.findall(nodes.math_block)
        if not isinstance(formula.parent, slide)
    ]
    return Chapter(
        title=top[0].astext(),
        number=number,
        lead=next(iter(top.findall(nodes.paragraph))).deepcopy(),
        pages=marked(told),
        objectives=next(iter(box.findall(nodes.bullet_list))).deepcopy(),
        needs=_copies([child for child in box.children if isinstance(child, nodes.paragraph)]),
        points=next(iter(points.findall(nodes.bullet_list))).deepcopy(),
        limits=_copies(limits),
        formulas=formulas,
        exercises=[node.deepcopy() for node in exercises.findall(_is_exercise)],
    )


def _is_exercise(node: nodes.Node) -> bool:
    return type(node).__name__ in ("exercise_node", "exercise_enumerable_node")


def _title_of(exercise: nodes.Element) -> str:
    """An exercise's title without its number and brackets."""
    found = next(iter(exercise.findall(nodes.subtitle)), None) or exercise[0]
    return found.astext().strip("() ")


def _listed(texts: list[list[nodes.Node]]) -> nodes.bullet_list:
    items = [nodes.list_item("", nodes.paragraph("", "", *text)) for text in texts]
    return nodes.bullet_list("", *items)


def split(points: nodes.Node) -> list[nodes.bullet_list]:
    """A list as lists that fit a slide, of about equal length."""
    items = points.children
    count = -(-len(items) // POINTS)
    each = -(-len(items) // count)
    return [nodes.bullet_list("", *_copies(items[i : i + each])) for i in range(0, len(items), each)]


def deck(found: Chapter, name: str) -> list[Page]:
    """All slides of a chapter but the first."""
    titles = [
        [nodes.reference("", _title_of(node), refid=node["ids"][0])]
        for node in found.exercises
        if node["ids"]
    ]
    key = [
        Page([nodes.Text("Key points")], says=[points], looks=["points"]) for points in split(found.points)
    ]
    exercises = Page([nodes.Text("Exercises")], says=[_listed(titles)], looks=["points"])
    limits = Page([nodes.Text("What was and was not shown")], says=found.limits, looks=["limits"])
    objectives = Page(
        [nodes.Text("What you will be able to do")], [found.objectives], notes=found.needs, looks=["points"]
    )
    return [objectives, *found.pages, *key, exercises, limits]


# HTML


class Writer:
    """Turns nodes of a chapter into HTML for a page of the folder of slides."""

    def __init__(self, app: Sphinx) -> None:
        self.builder = app.builder

    def enter(self, name: str) -> None:
        self.name = name
        self.builder.current_docname = name
        self.builder.secnumbers = self.builder.env.toc_secnumbers.get(name, {})
        self.builder.fignumbers = self.builder.env.toc_fignumbers.get(name, {})
        self.builder.imgpath, self.builder.dlpath = "../_images", "../_downloads"

    def __call__(self, found: list[nodes.Node]) -> str:
        return "\n".join(self.one(node) for node in found)

    def one(self, node: nodes.Node) -> str:
        box = nodes.container("", node.deepcopy())
        for reference in box.findall(nodes.reference):
            self._relink(reference)
        for caption in [*box.findall(nodes.caption)]:
            caption.parent.remove(caption)
        for named in box.findall(nodes.Element):
            named["ids"] = []
        made = self.builder.render_partial(box)["fragment"]
        return made.removeprefix('<div class="docutils container">').strip().removesuffix("</div>").strip()

    def _relink(self, reference: nodes.Element) -> None:
        page = posixpath.basename(self.name) + ".html"
        if "refid" in reference:
            reference["refuri"] = f"../book/{page}#{reference.attributes.pop('refid')}"
        elif not re.match(r"\w+:", reference.get("refuri", "x:")):
            target = reference["refuri"]
            target = page + target if target.startswith("#") else target
            reference["refuri"] = posixpath.normpath(posixpath.join("../book", target))
        reference["internal"] = True

    def inline(self, found: list[nodes.Node]) -> str:
        made = self.one(nodes.paragraph("", "", *_copies(found)))
        return re.sub(r"^<p>|</p>$", "", made)


HEAD = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="../_static/favicon.svg">
<link rel="stylesheet" href="../_static/pygments.css">
{styles}
<script>
window.MathJax = {{options: {{enableMenu: false}}, svg: {{fontCache: "local", scale: 0.9}}}};
</script>
<script defer src="../_static/mathjax/tex-svg-full.js"></script>
{scripts}
</head>
<body>
"""
STYLE, SCRIPT = '<link rel="stylesheet" href="../_static/{}">', '<script defer src="../_static/{}"></script>'


def head(title: str, styles: list[str], scripts: list[str]) -> str:
    return HEAD.format(
        title=html.escape(title),
        styles="\n".join(map(STYLE.format, styles)),
        scripts="\n".join(map(SCRIPT.format, scripts)),
    )


def section_html(page: Page, write: Writer) -> str:
    parts = [
        f'<section class="{" ".join(page.looks)}">',
        f"<h2>{write.inline(page.title)}</h2>",
        f'<div class="shows">{write(page.shows)}</div>' if page.shows else "",
        f'<div class="says">{write(page.says)}</div>' if page.says else "",
        f'<aside class="notes">{write(page.notes)}</aside>' if page.notes else "",
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def deck_html(found: Chapter, name: str, book: str, write: Writer) -> str:
    write.enter(name)
    page = posixpath.basename(name)
    first = [
        '<section class="first">',
        f"<p>{html.escape(book)} · Chapter {found.number}</p>",
        f"<h1>{html.escape(found.title)}</h1>",
        f'<p><a href="../book/{page}.html">The chapter</a> · <a href="{HANDOUT}.html">Hand-out</a></p>',
        '<p class="keys">Keys: space or arrows move, S speaker notes, O overview, T light or dark, F full'
        " screen</p>",
        f'<aside class="notes">{write([found.lead])}</aside>',
        "</section>",
    ]
    top = head(
        f"{found.title} (slides)",
        ["reveal/reveal.css", "slides.css"],
        ["reveal/reveal.js", "reveal/notes.js", "slides.js"],
    )
    pages = "\n".join([*first, *(section_html(page, write) for page in deck(found, name))])
    return f'{top}<main class="reveal"><div class="slides">\n{pages}\n</div></main>\n</body>\n</html>\n'


def handout_html(chapters: dict[str, Chapter], notation: nodes.document, book: str, write: Writer) -> str:
    parts = [
        head(f"{book}: hand-out", ["hand-out.css"], ["slides.js"]),
        f"<main>\n<h1>{html.escape(book)}</h1>",
        "<p>Notation, key points, formulas and exercises of all chapters. Print it from the browser.</p>",
    ]
    write.enter("book/notation")
    for title in ("Words", "Symbols"):
        part = section(notation, title)
        parts.append(f"<section><h2>{title}</h2>{write(_copies(part.children[1:]))}</section>")
    for name, found in chapters.items():
        write.enter(name)
        parts.append(handout_part(found, write))
    return "\n".join([*parts, "</main>\n</body>\n</html>\n"])


def handout_part(found: Chapter, write: Writer) -> str:
    formulas, before = [], ""
    for title, formula in found.formulas:
        label = html.escape(title) if title != before else ""
        formulas.append(f"<tr><th scope='row'>{label}</th><td>{write([formula])}</td></tr>")
        before = title
    return "\n".join(
        [
            f'<section class="chapter"><h2>{found.number} {html.escape(found.title)}</h2>',
            f"<h3>Key points</h3>{write([found.points])}",
            f"<h3>Formulas</h3><table class='formulas'>{''.join(formulas)}</table>" if formulas else "",
            f"<h3>Exercises</h3>{''.join(_task(node, write) for node in found.exercises)}",
            "</section>",
        ]
    )


def _task(exercise: nodes.Element, write: Writer) -> str:
    body = next((c for c in exercise.children if isinstance(c, nodes.section)), exercise)
    shown = [child for child in body.children if not isinstance(child, nodes.title | nodes.subtitle)]
    shown = [part for child in shown for part in _part(child, "code")]
    return f"<div class='exercise'><h4>{html.escape(_title_of(exercise))}</h4>{write(shown)}</div>"


# In the build


def _is_chapter(name: str) -> bool:
    return re.match(r"book/\d\d-", name) is not None


class Decks:
    """Keeps what each chapter gives while pages are written, and writes decks and hand-out at the end."""

    def __init__(self) -> None:
        self.chapters: dict[str, Chapter] = {}
        self.notation: nodes.document | None = None

    def collect(self, app: Sphinx, tree: nodes.document, name: str) -> None:
        if app.builder.format != "html":
            return
        if name == "book/notation":
            self.notation = tree.deepcopy()
        if _is_chapter(name):
            number = ".".join(map(str, app.env.toc_secnumbers.get(name, {}).get("", ())))
            self.chapters[name] = chapter(tree, number)
            if self.chapters[name].pages:
                self._link(tree, name)
        for node in [*tree.findall(slide)]:  # or the search would find what the page does not show
            node.parent.remove(node)

    def _link(self, tree: nodes.document, name: str) -> None:
        links = f'<a href="../{FOLDER}/{posixpath.basename(name)}.html">slides</a>'
        links += f' · <a href="../{FOLDER}/{HANDOUT}.html">hand-out</a>'
        line = nodes.raw("", f'<p class="notebook-links">Teach it: {links}</p>', format="html")
        title = next(iter(tree.findall(nodes.title)))
        title.parent.insert(title.parent.index(title) + 1, line)

    def write(self, app: Sphinx, exception: Exception | None) -> None:
        if exception is not None or app.builder.format != "html" or not self.chapters:
            return
        for name in ["book/notation", *(name for name in app.env.found_docs if _is_chapter(name))]:
            if name not in self.chapters and not (name == "book/notation" and self.notation):
                tree = app.env.get_and_resolve_doctree(name, app.builder)  # was not written in this build
                app.builder.post_process_images(tree)
        folder, writer, book = Path(app.outdir) / FOLDER, Writer(app), app.config.html_title
        folder.mkdir(exist_ok=True)
        chapters = dict(sorted(self.chapters.items()))
        for name, found in chapters.items():
            if found.pages:
                text = deck_html(found, name, book, writer)
                (folder / f"{posixpath.basename(name)}.html").write_text(text)
        text = handout_html(chapters, self.notation, book, writer)
        (folder / f"{HANDOUT}.html").write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    decks = Decks()
    app.add_node(slide, html=(_skip, None), latex=(_skip, None), text=(_skip, None))
    app.add_directive("slide", Slide)
    app.connect("doctree-resolved", decks.collect)
    app.connect("build-finished", decks.write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
