"""One deck, and one sheet of paper, for a whole timetable of the workshop.

An episode gives a slide with its questions, the slides of the sections that it takes, a slide for each of its
exercises, and its key points: all of them the chapter's own.
"""

from html import escape
from typing import Any

import workshop
from docutils import nodes
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from slide_html import Writer, deck_html, handout_part, paper_html
from slides import Chapter, Page, copies, listed, task, title_of

DEMO = "book/live-demo"


def markdown(text: str) -> list[nodes.Node]:
    """A sentence of `episodes.yml` as nodes."""
    settings = {"myst_enable_extensions": ["dollarmath"], "report_level": 5}
    return publish_doctree(text, parser=Parser(), settings_overrides=settings).children


def said(texts: list[str]) -> nodes.bullet_list:
    """Sentences of `episodes.yml` as a list."""
    return nodes.bullet_list("", *(nodes.list_item("", *copies(markdown(text))) for text in texts))


def linked(text: str, page: str) -> nodes.reference:
    """A link to a page of the book."""
    return nodes.reference("", text, refuri=f"../{page}.html", internal=True)


class Workshop:
    """A timetable of one day, with the chapters that it takes its episodes from."""

    def __init__(self, name: str, chapters: dict[str, Chapter], demo: nodes.document, book: str) -> None:
        plan = workshop.read()
        self.name, self.chapters, self.demo, self.book = name, chapters, demo, book
        self.episodes = plan["episodes"]
        (self.day,) = plan["timetables"][name]["days"]

    def deck(self, write: Writer) -> str:
        """All of it as slides."""
        title = f"{self.name.replace('-', ' ').capitalize()}"
        first = [
            f"<p>{escape(self.book)}</p>",
            f"<h1>{escape(title)}</h1>",
            f'<p><a href="../book/workshop/{self.name}.html">Timetable</a> · '
            f'<a href="{self.name}-sheet.html">Sheet, to print</a></p>',
        ]
        pages, at = [], workshop.minutes(self.day["from"])
        for entry in self.day["plan"]:
            pages += self._pages(entry, workshop.clock(at))
            at += workshop.length(entry, self.episodes)
        return deck_html(first, title, pages, write)

    def sheet(self, write: Writer) -> str:
        """Key points, formulas and exercises of its episodes, for paper."""
        parts = ["<p>Key points, formulas and exercises. Print it from the browser.</p>"]
        for entry in self.day["plan"]:
            if "episode" not in entry:
                continue
            episode = self.episodes[entry["episode"]]
            found = self.chapters[f"book/{episode['chapter']}"]
            write.enter(f"book/{episode['chapter']}")
            taken = set(map(nodes.make_id, episode["sections"]))
            formulas = [(place, node) for place, node in found.formulas if nodes.make_id(place) in taken]
            exercises = self._exercises(episode, found)
            parts.append(handout_part(episode["title"], [self._points(episode)], formulas, exercises, write))
        return paper_html(f"{self.book}: {self.name}", f"{self.book}: {self.name.replace('-', ' ')}", parts)

    def _pages(self, entry: dict[str, Any], clock: str) -> list[tuple[str, Page]]:
        """The slides of one entry of the day, each with the page that it is from."""
        if "episode" in entry:
            episode = self.episodes[entry["episode"]]
            return [(f"book/{episode['chapter']}", page) for page in self._episode(episode, clock)]
        title = entry.get("break") or entry["other"]
        page = Page([nodes.Text(title)], [nodes.paragraph("", f"{clock}, {entry['minutes']} minutes")])
        if entry.get("slide") == "demo":
            page.shows = [node for node in self.demo.findall(nodes.raw) if "live-demo" in node.astext()]
            page.says, page.looks = [], ["demo"]
        if entry.get("slide") == "rest":
            page.says, page.looks = [self._rest()], ["small"]
        return [(DEMO, page)]

    def _episode(self, episode: dict[str, Any], clock: str) -> list[Page]:
        found = self.chapters[f"book/{episode['chapter']}"]
        exercise = f", {episode['exercise']} of exercises" if episode["exercise"] else ""
        time = nodes.paragraph("", f"{clock}: {episode['teaching']} minutes{exercise}")
        questions = Page(
            markdown(episode["title"])[0].children,
            [time, said(episode["questions"])],
            notes=[said(episode["notes"])],
            looks=["points"],
        )
        taken = set(map(nodes.make_id, episode["sections"]))
        told = [page for page in found.pages if taken & set(map(nodes.make_id, page.sections))]
        points = Page([nodes.Text("Key points")], [self._points(episode)], looks=["points"])
        return [questions, *told, *map(self._exercise, self._exercises(episode, found)), points]

    def _exercise(self, node: nodes.Element) -> Page:
        where = nodes.reference("", "On the page", refid=node["ids"][0])
        place = nodes.paragraph("", "", where, nodes.Text(", with its hint, its checker, and a solution"))
        return Page([nodes.Text(f"Exercise: {title_of(node)}")], [place], task(node))

    def _exercises(self, episode: dict[str, Any], found: Chapter) -> list[nodes.Element]:
        by_label = {label: node for node in found.exercises for label in node["ids"]}
        return [by_label[label] for label in episode["exercises"]]

    def _points(self, episode: dict[str, Any]) -> nodes.Node:
        own = workshop.points(episode["chapter"])
        items = self.chapters[f"book/{episode['chapter']}"].points.children
        chosen = [own.index(next(s for s in own if s.startswith(start))) for start in episode["points"]]
        return nodes.bullet_list("", *copies([items[i] for i in chosen]))

    def _rest(self) -> nodes.Node:
        """The chapters that no episode of the day is from."""
        entries = [entry["episode"] for entry in self.day["plan"] if "episode" in entry]
        taken = {f"book/{self.episodes[entry]['chapter']}" for entry in entries}
        rest = [(name, found) for name, found in self.chapters.items() if name not in taken]
        return listed([[linked(found.title, name)] for name, found in rest])
