"""Pages and chapters of `slides` as HTML: sections of a deck, and the parts of a hand-out."""

import html
import posixpath
import re
from collections import Counter

from docutils import nodes
from slides import Chapter, Page, copies, deck, section, task, title_of
from sphinx.application import Sphinx

HANDOUT = "hand-out"


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
        made = self.one(nodes.paragraph("", "", *copies(found)))
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


def section_html(page: Page, write: Writer, anchor: str) -> str:
    parts = [
        f'<section id="{anchor}" class="{" ".join(page.looks)}">',
        f"<h2>{write.inline(page.title)}</h2>",
        f'<div class="shows">{write(page.shows)}</div>' if page.shows else "",
        f'<div class="says">{write(page.says)}</div>' if page.says else "",
        f'<aside class="notes">{write(page.notes)}</aside>' if page.notes else "",
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


KEYS = "Keys: space or arrows move, S speaker notes, O overview, T light or dark, F full screen"


def deck_html(first: list[str], title: str, pages: list[tuple[str, Page]], write: Writer) -> str:
    """A deck: the lines of its first slide, then pages, each with the name of the chapter that it is from."""
    top = head(
        f"{title} (slides)",
        ["reveal/reveal.css", "slides.css"],
        ["reveal/reveal.js", "reveal/notes.js", "slides.js"],
    )
    parts, seen = (
        ['<section class="first">', *first, f'<p class="keys">{KEYS}</p>', "</section>"],
        Counter[str](),
    )
    for name, page in pages:
        write.enter(name)
        seen[page.anchor] += 1
        again = f"-{seen[page.anchor]}" if seen[page.anchor] > 1 else ""
        parts.append(section_html(page, write, page.anchor + again))
    inner = "\n".join(parts)
    return f'{top}<main class="reveal"><div class="slides">\n{inner}\n</div></main>\n</body>\n</html>\n'


def chapter_deck(found: Chapter, name: str, book: str, write: Writer) -> str:
    """The deck of a chapter."""
    write.enter(name)
    page = posixpath.basename(name)
    first = [
        f"<p>{html.escape(book)} · Chapter {found.number}</p>",
        f"<h1>{html.escape(found.title)}</h1>",
        f'<p><a href="../book/{page}.html">The chapter</a> · <a href="{HANDOUT}.html">Hand-out</a></p>',
        f'<aside class="notes">{write([found.lead])}</aside>',
    ]
    return deck_html(first, found.title, [(name, slide) for slide in deck(found)], write)


def handout_html(chapters: dict[str, Chapter], notation: nodes.document, book: str, write: Writer) -> str:
    """Notation and all chapters on one page."""
    write.enter("book/notation")
    parts = [
        "<p>Notation, key points, formulas and exercises of all chapters. Print it from the browser.</p>"
    ]
    for title in ("Words", "Symbols"):
        found = section(notation, title)
        parts.append(f"<section><h2>{title}</h2>{write(copies(found.children[1:]))}</section>")
    for name, chapter in chapters.items():
        write.enter(name)
        title = f"{chapter.number} {chapter.title}"
        parts.append(handout_part(title, [chapter.points], chapter.formulas, chapter.exercises, write))
    return paper_html(f"{book}: hand-out", book, parts)


def paper_html(title: str, heading: str, parts: list[str]) -> str:
    """A page for paper."""
    top = head(title, ["hand-out.css"], ["slides.js"])
    return "\n".join([top, f"<main>\n<h1>{html.escape(heading)}</h1>", *parts, "</main>\n</body>\n</html>\n"])


def handout_part(
    title: str,
    points: list[nodes.Node],
    formulas: list[tuple[str, nodes.Node]],
    exercises: list[nodes.Element],
    write: Writer,
) -> str:
    """Key points, formulas and exercises under one title."""
    rows, before = [], ""
    for place, formula in formulas:
        label = html.escape(place) if place != before else ""
        rows.append(f"<tr><th scope='row'>{label}</th><td>{write([formula])}</td></tr>")
        before = place
    return "\n".join(
        [
            f'<section class="chapter"><h2>{html.escape(title)}</h2>',
            f"<h3>Key points</h3>{write(points)}",
            f"<h3>Formulas</h3><table class='formulas'>{''.join(rows)}</table>" if rows else "",
            f"<h3>Exercises</h3>{''.join(_task(node, write) for node in exercises)}" if exercises else "",
            "</section>",
        ]
    )


def _task(exercise: nodes.Element, write: Writer) -> str:
    return f"<div class='exercise'><h4>{html.escape(title_of(exercise))}</h4>{write(task(exercise))}</div>"
