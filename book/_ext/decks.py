"""Writes the decks of slides and the hand-out into the built book; `slides` says how a chapter marks them."""

import posixpath
import re
from pathlib import Path
from typing import Any

import workshop
import workshop_deck
from docutils import nodes
from slide_html import HANDOUT, Writer, chapter_deck, handout_html
from slides import Chapter, Slide, chapter, slide
from sphinx.application import Sphinx

FOLDER = "slides"  # in the built book
OTHERS = ("book/notation", "book/live-demo")  # pages that are no chapters and give something


def _is_chapter(name: str) -> bool:
    return re.match(r"book/\d\d-", name) is not None


def _skip(translator: Any, node: nodes.Node) -> None:
    raise nodes.SkipNode


class Decks:
    """Keeps what each page gives while pages are written, and writes decks and hand-out at the end."""

    def __init__(self) -> None:
        self.chapters: dict[str, Chapter] = {}
        self.others: dict[str, nodes.document] = {}

    def collect(self, app: Sphinx, tree: nodes.document, name: str) -> None:
        if app.builder.format != "html":
            return
        if name in OTHERS:
            self.others[name] = tree.deepcopy()
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
        for name in [*OTHERS, *filter(_is_chapter, app.env.found_docs)]:
            if name not in self.chapters and name not in self.others:  # was not written in this build
                tree = app.env.get_and_resolve_doctree(name, app.builder)
                app.builder.post_process_images(tree)
        folder, writer, book = Path(app.outdir) / FOLDER, Writer(app), app.config.html_title
        folder.mkdir(exist_ok=True)
        chapters = dict(sorted(self.chapters.items()))
        made = {
            posixpath.basename(name): chapter_deck(found, name, book, writer)
            for name, found in chapters.items()
            if found.pages
        }
        made[HANDOUT] = handout_html(chapters, self.others["book/notation"], book, writer)
        for name in workshop.DECKS:
            built = workshop_deck.Workshop(name, chapters, self.others["book/live-demo"], book)
            made[name], made[f"{name}-sheet"] = built.deck(writer), built.sheet(writer)
        for name, text in made.items():
            (folder / f"{name}.html").write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    decks = Decks()
    app.add_node(slide, html=(_skip, None), latex=(_skip, None), text=(_skip, None))
    app.add_directive("slide", Slide)
    app.connect("doctree-resolved", decks.collect)
    app.connect("build-finished", decks.write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
