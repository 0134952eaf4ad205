"""Timetables add up, episodes name what exists, and decks are made of what the chapters mark."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import slides
import workshop
from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]

CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.md"))
DECKS = workshop.decks()
PLAN = workshop.read()


# Timetables and episodes


def test_timetables_and_episodes_are_without_fault():
    assert workshop.faults(PLAN) == []


def test_each_timetable_is_as_long_as_its_name_says():
    lengths = {
        name: [workshop.minutes(day["to"]) - workshop.minutes(day["from"]) for day in timetable["days"]]
        for name, timetable in PLAN["timetables"].items()
    }
    assert lengths == {"90-minutes": [90], "half-day": [210], "two-days": [480, 480]}


def first_day(plan, name="half-day"):
    return plan["timetables"][name]["days"][0]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda p: p["episodes"]["codes"].update(teaching=25), "215 minutes planned, 9:00 to 12:30 is 210"),
        (lambda p: first_day(p).update(to="12:00"), "210 minutes planned, 9:00 to 12:00 is 180"),
        (lambda p: first_day(p)["plan"][4].update(minutes=10), "half-day, day 1: 200 minutes planned"),
        (lambda p: first_day(p)["plan"].append(first_day(p)["plan"].pop(4)), "145 minutes without a break"),
        (lambda p: first_day(p)["plan"].append({"episode": "new"}), "there is no episode new"),
        (lambda p: first_day(p)["plan"].append({"episode": "codes"}), "half-day: codes comes twice"),
        (lambda p: p["episodes"].update(new=p["episodes"]["codes"]), "new: in no timetable"),
        (lambda p: p["episodes"]["codes"].update(chapter="02-codes"), "there is no chapter 02-codes"),
        (lambda p: p["episodes"]["codes"]["sections"].append("Cieling"), "has no section 'Cieling'"),
        (lambda p: p["episodes"]["codes"]["exercises"].append("ex-wrap"), "has no exercise ex-wrap"),
        (
            lambda p: p["episodes"]["codes"]["objectives"].append("Juggle"),
            "'Juggle' begins 0 of the objectives",
        ),
        (lambda p: p["episodes"]["codes"]["points"].append("`"), "'`' begins 3 of the points"),
        (lambda p: p["episodes"]["codes"].update(notes=[]), "codes: no notes"),
        (lambda p: p["episodes"]["codes"].update(exercises=[]), "15 minutes for 0 exercises"),
        (lambda p: p["episodes"]["codes"].update(teaching=21), "minutes come in fives"),
        (lambda p: p["episodes"]["codes"].pop("questions"), "codes: lacks questions"),
    ],
)
def test_a_fault_is_found(spoil, complaint):
    plan = copy.deepcopy(PLAN)
    spoil(plan)
    assert any(complaint in fault for fault in workshop.faults(plan)), workshop.faults(plan)


def test_wrong_answers_are_those_of_the_exercises():
    pages = [*(path.stem for path in CHAPTERS), "kernels-in-detail"]
    labels = {label for page in pages for label in workshop.exercises(page)}
    wrong = workshop.wrong_answers()
    assert set(wrong) == labels
    assert "no clamp" in wrong["ex-half-up"]


class Items(HTMLParser):
    """The texts of the list items of a page."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "li":
            self.open.append("")

    def handle_data(self, data):
        self.open = [text + data for text in self.open]

    def handle_endtag(self, tag):
        if tag == "li":
            self.texts.append(" ".join(self.open.pop().split()))


def items(path):
    article = path.read_text().partition('<article class="bd-article"')[2].partition("</article>")[0]
    return Items(article).texts


def test_objectives_and_points_on_the_page_are_the_chapters_own(book):
    own = {text for path in CHAPTERS for text in items(book / "book" / f"{path.stem}.html")}
    shown = items(book / "book" / "workshop" / "episodes.html")
    chosen = sum(len(e["objectives"]) + len(e["points"]) for e in PLAN["episodes"].values())
    assert sum(text in own for text in shown) >= chosen


@pytest.mark.parametrize("name", PLAN["timetables"])
def test_the_page_of_a_timetable_ends_on_time(book, name):
    page = (book / "book" / "workshop" / f"{name}.html").read_text()
    for day in PLAN["timetables"][name]["days"]:
        assert f"{day['to'].lstrip('0')}: the end." in page
        entries = [entry for entry in day["plan"] if "episode" in entry]
        assert all(f'href="episodes.html#episode-{entry["episode"]}"' in page for entry in entries)


# Slides


def test_chapters_that_are_taught_have_a_deck():
    assert {int(name[:2]) for name in DECKS} >= {1, 2, 3, 4, 5, 7, 8, 9, 10}


@pytest.mark.parametrize("name", DECKS)
def test_a_deck_has_slides_with_figures_and_notes(book, name):
    deck = (book / "slides" / f"{name}.html").read_text()
    pages = re.findall(r"<section.*?</section>", deck, re.S)
    assert 12 <= len(pages) <= 24
    assert [page for page in pages if not re.search(r"<h[12]>.+</h[12]>", page, re.S)] == []
    assert [page for page in pages if not re.search(r'class="(shows|says)"|class="first"', page)] == []
    assert sum('class="notes"' in page for page in pages) > len(pages) / 2
    has_figure = "  figure:" in workshop.text(name) or "```{figure}" in workshop.text(name)
    assert ("<img" in deck) == has_figure
    assert "<figcaption" not in deck  # the caption is said, not shown
    assert f'href="../slides/{name}.html"' in (book / "book" / f"{name}.html").read_text()


@pytest.mark.parametrize("name", DECKS)
def test_marks_leave_no_trace_in_page_and_notebook(book, name):
    said = re.findall(r"^```\{slide\} ([^\n$`]+)\n", (ROOT / "book" / f"{name}.md").read_text(), re.M)
    page = (book / "book" / f"{name}.html").read_text()
    notebook = (book / "_notebooks" / f"{name}.ipynb").read_text()
    alone = [title for title in said if title not in workshop.sections(name)]
    index = (book / "searchindex.js").read_text()
    assert alone
    assert [title for title in alone if f">{title}<" in page or f'"{title}"' in index] == []
    for text in (page, notebook):
        assert "% show" not in text
        assert "<!-- show" not in text
        assert "{slide}" not in text


@pytest.mark.parametrize("name", [*DECKS, *workshop.DECKS])
def test_slides_have_anchors_of_their_own(book, name):
    anchors = re.findall(r'<section id="([^"]+)"', (book / "slides" / f"{name}.html").read_text())
    assert len(anchors) > 10
    assert len(set(anchors)) == len(anchors)


def test_an_episodes_link_opens_its_deck_at_its_slide(book):
    page = (book / "book" / "workshop" / "episodes.html").read_text()
    links = re.findall(r'href="../../slides/([^"#]+)#/([^"]+)"', page)
    assert len(links) == len(PLAN["episodes"])
    for file, anchor in links:
        assert f'<section id="{anchor}"' in (book / "slides" / file).read_text(), (file, anchor)


def test_the_first_slide_of_an_episode_is_of_its_sections():
    first = workshop.slide_of("02-nested-codes", ["A code and its step", "Half up: a shift and one more bit"])
    assert first == nodes.make_id(re.search(r"\{slide\} (.*)", workshop.text("02-nested-codes"))[1])
    assert workshop.slide_of("02-nested-codes", ["Key points"]) == ""


@pytest.mark.parametrize("name", workshop.DECKS)
def test_the_deck_of_a_timetable_has_all_of_it_in_order(book, name):
    deck = (book / "slides" / f"{name}.html").read_text()
    (day,) = PLAN["timetables"][name]["days"]
    titles = re.findall(r"<h2>(.*?)</h2>", deck, re.S)
    assert titles[0] == day["plan"][0]["other"]
    assert 'class="live-demo"' in deck.partition("</section>")[2].partition("</section>")[0], (
        "it opens with it"
    )
    at = -1
    for entry in day["plan"]:
        title = entry.get("other") or PLAN["episodes"][entry["episode"]]["title"]
        assert titles.index(title, at + 1) > at
        at = titles.index(title, at + 1)
    for episode in (PLAN["episodes"][entry["episode"]] for entry in day["plan"] if "episode" in entry):
        tasks = [workshop.exercises(episode["chapter"])[label] for label in episode["exercises"]]
        assert {f"Exercise: {title}" for title in tasks} <= set(titles)
        sheet = (book / "slides" / f"{name}-sheet.html").read_text()
        assert all(f"<h4>{title}</h4>" in sheet for title in tasks)
        assert sheet.count("<li>") >= len(episode["points"])
    assert f'href="../../slides/{name}.html"' in (book / "book" / "workshop" / f"{name}.html").read_text()
    taken = {entry["episode"] for entry in day["plan"] if "episode" in entry}
    rest = {path.stem for path in CHAPTERS} - {PLAN["episodes"][episode]["chapter"] for episode in taken}
    assert all(f'href="../book/{chapter}.html"' in deck for chapter in rest)


def test_the_hand_out_has_every_exercise_and_key_point(book):
    page = (book / "slides" / "hand-out.html").read_text()
    found = {" ".join(text.split()) for text in Items(page).texts}
    for path in CHAPTERS:
        points = workshop.points(path.stem)
        own = items(book / "book" / f"{path.stem}.html")
        assert points
        assert sum(text in found for text in own) >= len(points)
        assert all(f"<h4>{title}</h4>" in page for title in workshop.exercises(path.stem).values())


def comment(text):
    return nodes.comment(text, text)


def mark(title, *says):
    return slides.slide("", nodes.title("", "", nodes.Text(title)), *says)


def said(text):
    return nodes.paragraph("", "", nodes.Text(text))


def test_what_is_not_shown_is_for_the_speaker():
    cell = nodes.container(classes=["cell"])
    cell += nodes.container("", said("code"), classes=["cell_input"])
    cell += nodes.container("", said("output"), classes=["cell_output"])
    pages = slides.marked(
        [
            said("before"),
            mark("One", said("point")),
            said("spoken"),
            comment("show code"),
            cell,
            mark("Two"),
            comment("another comment"),
            cell,
            comment("show"),
            said("shown"),
        ]
    )
    first, second = pages
    assert [[node.astext() for node in part] for part in (first.says, first.shows, first.notes)] == [
        ["point"],
        ["code"],
        ["spoken"],
    ]
    assert [[node.astext() for node in part] for part in (second.says, second.shows, second.notes)] == [
        [],
        ["shown"],
        [],
    ]


def test_of_a_cell_that_draws_only_the_figure_is_shown_and_its_caption_is_said():
    cell = nodes.container(classes=["cell"])
    cell += nodes.container("", said("code"), classes=["cell_input"])
    figure = nodes.figure("", nodes.image(uri="a.svg"), nodes.caption("", "what one sees"))
    cell += nodes.container("", figure, classes=["cell_output"])
    (page,) = slides.marked([mark("One"), comment("show"), cell])
    assert [type(node) for node in page.shows] == [nodes.figure]
    assert [node.astext() for node in page.notes] == ["what one sees"]


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ([mark("One"), comment("show result"), said("a")], "expected `% show"),
        ([comment("show"), said("a"), mark("One")], "before the first"),
        ([mark("One"), comment("show"), mark("Two")], "shows nothing"),
        ([mark("One"), comment("show")], "shows nothing"),
    ],
)
def test_a_wrong_mark_is_refused(found, complaint):
    with pytest.raises(ValueError, match=complaint):
        slides.marked(found)


@pytest.mark.parametrize(("count", "lengths"), [(3, [3]), (4, [4]), (5, [3, 2]), (6, [3, 3]), (9, [3, 3, 3])])
def test_long_lists_are_split_evenly(count, lengths):
    points = nodes.bullet_list("", *(nodes.list_item("", said(str(i))) for i in range(count)))
    assert [len(part) for part in slides.split(points)] == lengths
