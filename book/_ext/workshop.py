"""The workshop's timetables and episodes: read from `episodes.yml`, and from the chapters that it names.

An episode says which sections and exercises of a chapter it takes and how long they last. Its objectives and
key points are the chapter's own sentences; `episodes.yml` holds no more than how each begins.
"""

import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dqt_book.exercises import wrong

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "book" / "workshop" / "episodes.yml"
LONGEST = 120  # minutes without a break
DECKS = ("90-minutes",)  # the timetables that are one deck, with a sheet
NEEDED = {"title", "chapter", "sections", "teaching", "exercise", "exercises", "questions", "objectives"}
NEEDED |= {"points", "notes"}


def read() -> dict[str, Any]:
    """The timetables and episodes as they were written down."""
    return yaml.safe_load(SOURCE.read_text())


# What the chapters say


@cache
def text(chapter: str) -> str:
    path = ROOT / "book" / f"{chapter}.md"
    return path.read_text() if path.is_file() else ""


def sections(chapter: str) -> list[str]:
    """Titles of a chapter's sections."""
    return re.findall(r"^##+ (.*)$", text(chapter), re.M)


def exercises(chapter: str) -> dict[str, str]:
    """Label and title of a chapter's exercises."""
    found = re.findall(r"\{exercise-start\} (.*)\n:label: (\S+)", text(chapter))
    return {label: title for title, label in found}


def _bullets(passage: str) -> list[str]:
    return [" ".join(item.split()) for item in re.findall(r"^- (.*(?:\n  .*)*)", passage, re.M)]


def objectives(chapter: str) -> list[str]:
    """What a chapter says that one will be able to do."""
    return _bullets(text(chapter).partition("What you will be able to do")[2].partition("\n:::")[0])


def points(chapter: str) -> list[str]:
    """A chapter's key points."""
    return _bullets(
        text(chapter).partition("\n## Key points\n")[2].partition("\n## ")[0].partition("\n:::")[0]
    )


def wrong_answers() -> dict[str, list[str]]:
    """For the label of each exercise the names of the wrong solutions that its checker is tested with."""
    return {"ex-" + name.replace("_", "-"): list(kinds) for name, kinds in wrong.WRONG.items()}


# What can be wrong with them


def minutes(clock: str) -> int:
    """Minutes since midnight of a time such as 09:30."""
    hours, rest = clock.split(":")
    return 60 * int(hours) + int(rest)


def clock(at: int) -> str:
    return f"{at // 60}:{at % 60:02}"


def length(entry: dict[str, Any], episodes: dict[str, Any]) -> int:
    """Minutes of one entry of a day: an episode, a break, or something else with a length of its own."""
    if "episode" in entry:
        episode = episodes[entry["episode"]]
        return episode["teaching"] + episode["exercise"]
    return entry["minutes"]


def _episode_faults(name: str, episode: dict[str, Any]) -> list[str]:
    if missing := sorted(NEEDED - set(episode)):
        return [f"{name}: lacks {', '.join(missing)}"]
    chapter = episode["chapter"]
    if not text(chapter):
        return [f"{name}: there is no chapter {chapter}"]
    faults = [
        f"{name}: {chapter} has no section {s!r}" for s in episode["sections"] if s not in sections(chapter)
    ]
    faults += [
        f"{name}: {chapter} has no exercise {e}" for e in episode["exercises"] if e not in exercises(chapter)
    ]
    for kind, own in (("objectives", objectives(chapter)), ("points", points(chapter))):
        for start in episode[kind]:
            if (count := sum(whole.startswith(start) for whole in own)) != 1:
                faults.append(f"{name}: {start!r} begins {count} of the {kind} of {chapter}, expected 1")
    faults += [
        f"{name}: no {key}"
        for key in ("sections", "questions", "objectives", "points", "notes")
        if not episode[key]
    ]
    if bool(episode["exercise"]) != bool(episode["exercises"]):
        faults.append(f"{name}: {episode['exercise']} minutes for {len(episode['exercises'])} exercises")
    if episode["teaching"] % 5 or episode["exercise"] % 5:
        faults.append(f"{name}: minutes come in fives")
    return faults


def _day_faults(name: str, day: dict[str, Any], episodes: dict[str, Any]) -> list[str]:
    unknown = [e["episode"] for e in day["plan"] if "episode" in e and e["episode"] not in episodes]
    if unknown:
        return [f"{name}: there is no episode {episode}" for episode in unknown]
    total, free = (
        sum(length(entry, episodes) for entry in day["plan"]),
        minutes(day["to"]) - minutes(day["from"]),
    )
    faults = (
        [f"{name}: {total} minutes planned, {day['from']} to {day['to']} is {free}"] if total != free else []
    )
    stretch = 0
    for entry in day["plan"]:
        stretch = 0 if "break" in entry else stretch + length(entry, episodes)
        if stretch > LONGEST:
            faults.append(f"{name}: {stretch} minutes without a break, at most {LONGEST}")
            break
    return faults


def faults(plan: dict[str, Any]) -> list[str]:
    """What is wrong with timetables and episodes, one sentence each."""
    episodes = plan["episodes"]
    found = [fault for name, episode in episodes.items() for fault in _episode_faults(name, episode)]
    if found:
        return found
    used = []
    for name, timetable in plan["timetables"].items():
        for number, day in enumerate(timetable["days"], 1):
            found += _day_faults(f"{name}, day {number}", day, episodes)
            used += [entry.get("episode") for entry in day["plan"]]
    found += [f"{name}: in no timetable" for name in episodes if name not in used]
    order = list(episodes)
    for name, timetable in plan["timetables"].items():
        taken = [entry["episode"] for day in timetable["days"] for entry in day["plan"] if "episode" in entry]
        found += [f"{name}: {episode} comes twice" for episode in order if taken.count(episode) > 1]
    return found


# As text of a page


def _values(chapter: str, folder: Path) -> dict[str, str]:
    """The numbers that a chapter glued into its text while it was built."""
    path = folder / "jupyter_execute" / "book" / f"{chapter}.glue.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: str(value["data"]["text/plain"]).strip("'\"") for key, value in found.items()}


def _filled(sentence: str, values: dict[str, str]) -> str:
    return re.sub(r"\{glue:text\}`(\w+)`", lambda match: values[match[1]], sentence)


def _chosen(starts: list[str], own: list[str], values: dict[str, str]) -> list[str]:
    return ["- " + _filled(next(s for s in own if s.startswith(start)), values) for start in starts]


def anchor(label: str) -> str:
    return f"episode-{label}"


def decks() -> list[str]:
    """The chapters that have slides."""
    names = sorted(path.stem for path in (ROOT / "book").glob("[0-9]*.md"))
    return [name for name in names if "```{slide}" in text(name)]


def slide_of(chapter: str, sections: list[str]) -> str:
    """The anchor of the first slide of some sections of a chapter; empty where they have none."""
    for title in sections:
        told = re.split(r"^##+ .*$", text(chapter).partition(f"# {title}\n")[2], maxsplit=1, flags=re.M)[0]
        if found := re.search(r"^```\{slide\} (.*)$", told, re.M):
            return nodes.make_id(found[1])
    return ""


def _section_link(chapter: str, title: str) -> str:
    return f'<a href="../{chapter}.html#{nodes.make_id(title)}">{escape(title)}</a>'


def episode_text(name: str, episode: dict[str, Any], folder: Path) -> list[str]:
    """One episode as MyST."""
    chapter, values = episode["chapter"], _values(episode["chapter"], folder)
    places = ", ".join(_section_link(chapter, title) for title in episode["sections"])
    answers, named = wrong_answers(), exercises(chapter)
    tasks = [
        f"- {{ref}}`{label}`, *{named[label]}*. Its checker rejects: {', '.join(answers[label])}."
        for label in episode["exercises"]
    ]
    slides = f' <a href="../../slides/{chapter}.html#/{slide_of(chapter, episode["sections"])}">Slides</a>.'
    slides = slides if chapter in decks() else ""
    return [
        f"({anchor(name)})=",
        f"## {episode['title']}",
        "",
        f"*{episode['teaching']} minutes of teaching, {episode['exercise']} of exercises.* "
        f"{{doc}}`../{chapter}`: {places}.{slides}",
        "",
        "**Questions**",
        "",
        *(f"- {question}" for question in episode["questions"]),
        "",
        "**Objectives**",
        "",
        *_chosen(episode["objectives"], objectives(chapter), values),
        "",
        *(["**Exercises**", "", *tasks, ""] if tasks else []),
        "**Key points**",
        "",
        *_chosen(episode["points"], points(chapter), values),
        "",
        ":::{admonition} For the instructor",
        ":class: note",
        *(f"- {note}" for note in episode["notes"]),
        ":::",
        "",
    ]


def _row(at: int, entry: dict[str, Any], episodes: dict[str, Any]) -> list[str]:
    if "episode" in entry:
        episode = episodes[entry["episode"]]
        what = f"{{ref}}`{episode['title']} <{anchor(entry['episode'])}>`"
        return [clock(at), what, str(episode["teaching"]), str(episode["exercise"] or "")]
    what = entry.get("break") or entry["other"]
    return [clock(at), f"*{what}*" if "break" in entry else what, str(entry["minutes"]), ""]


def day_text(day: dict[str, Any], episodes: dict[str, Any]) -> list[str]:
    """One day as a MyST table."""
    lines = [
        "::::{container} timetable",
        "| at | what | minutes | exercises |",
        "| --- | --- | ---: | ---: |",
    ]
    at = minutes(day["from"])
    for entry in day["plan"]:
        lines.append("| " + " | ".join(_row(at, entry, episodes)) + " |")
        at += length(entry, episodes)
    taught = [episodes[entry["episode"]] for entry in day["plan"] if "episode" in entry]
    sums = [sum(episode[key] for episode in taught) for key in ("teaching", "exercise")]
    end = f"{clock(at)}: the end. {sums[0]} minutes of teaching, {sums[1]} of exercises."
    return [*lines, "::::", "", end, ""]


class FromPlan(SphinxDirective):
    """A directive whose content is made from `episodes.yml`."""

    def run(self) -> list[nodes.Node]:
        plan = read()
        if found := faults(plan):
            raise self.error(f"{SOURCE.name}: " + "; ".join(found))
        for dependency in (
            SOURCE,
            *Path(wrong.__file__).parent.glob("*.py"),
            *(ROOT / "book").glob("[0-9]*.md"),
        ):
            self.env.note_dependency(str(dependency))
        lines = StringList(self.made(plan), source=str(SOURCE))
        box = nodes.Element()
        box.document = self.state.document
        self.state.nested_parse(lines, 0, box, match_titles=True)
        return box.children


class Timetable(FromPlan):
    """`{timetable} NAME`: the days of a timetable."""

    required_arguments = 1

    def made(self, plan: dict[str, Any]) -> list[str]:
        days = plan["timetables"][self.arguments[0]]["days"]
        several = len(days) > 1
        return [
            line
            for number, day in enumerate(days, 1)
            for line in [*([f"## Day {number}", ""] if several else []), *day_text(day, plan["episodes"])]
        ]


class Episodes(FromPlan):
    """`{episodes}`: all of them, with what an instructor wants to know."""

    def made(self, plan: dict[str, Any]) -> list[str]:
        folder = Path(self.env.app.outdir).parent
        return [line for name, one in plan["episodes"].items() for line in episode_text(name, one, folder)]


class Decks(SphinxDirective):
    """`{decks}`: a list of the chapters that have slides."""

    def run(self) -> list[nodes.Node]:
        link = '<a href="../../slides/{0}.html">slides</a>'
        lines = [f"- {{doc}}`{name}`: {link.format(name)}, with their sheet, in one deck" for name in DECKS]
        lines += [f"- {{doc}}`../{name}`: {link.format(name)}" for name in decks()]
        box = nodes.Element()
        self.state.nested_parse(StringList(lines), 0, box)
        return box.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("timetable", Timetable)
    app.add_directive("episodes", Episodes)
    app.add_directive("decks", Decks)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
