"""The slides that a chapter marks; `slide_html` writes them, `decks` makes decks and the hand-out of them.

A chapter begins a slide with the directive `{slide} Title`, whose content is what the slide says, and puts
`% show` before each block that the slide shows: a formula, a list, a figure, a cell (`% show code` and
`% show output` take one half of a cell). What lies between two marks and is not shown becomes the speaker's
notes. The page itself is not changed by either mark. Objectives, key points, exercises and what was not shown
become slides of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

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


# What a chapter holds


@dataclass
class Page:
    """A slide before it is HTML."""

    title: list[nodes.Node]
    says: list[nodes.Node] = field(default_factory=list)
    shows: list[nodes.Node] = field(default_factory=list)
    notes: list[nodes.Node] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)  # titles of those that it stands in

    @property
    def anchor(self) -> str:
        """By which an address opens the deck at this slide."""
        return nodes.make_id("".join(node.astext() for node in self.title))


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


def sections_of(node: nodes.Node) -> list[str]:
    """Titles of the sections that a block stands in, from the innermost."""
    titles = []
    while node := node.parent:
        if isinstance(node, nodes.section):
            titles.append(node[0].astext())
    return titles


def part_of(node: nodes.Node, part: str) -> list[nodes.Node]:
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
    return [nodes.paragraph("", "", *copies(found.children)) for found in node.findall(nodes.caption)]


def copies(found: list[nodes.Node]) -> list[nodes.Node]:
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
            pages.append(Page(title.children, says, looks=node["classes"], sections=sections_of(node)))
        elif mark_of(node):
            part = mark_of(node)
            if not pages:
                raise ValueError(f"{node.source}:{node.line}: `% show` before the first {{slide}}")
        elif part:
            pages[-1].shows += copies(part_of(node, part))
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
        needs=copies([child for child in box.children if isinstance(child, nodes.paragraph)]),
        points=next(iter(points.findall(nodes.bullet_list))).deepcopy(),
        limits=copies(limits),
        formulas=formulas,
        exercises=[node.deepcopy() for node in exercises.findall(_is_exercise)],
    )


def _is_exercise(node: nodes.Node) -> bool:
    return type(node).__name__ in ("exercise_node", "exercise_enumerable_node")


def title_of(exercise: nodes.Element) -> str:
    """An exercise's title without its number and brackets."""
    found = next(iter(exercise.findall(nodes.subtitle)), None) or exercise[0]
    return found.astext().strip("() ")


def task(exercise: nodes.Element) -> list[nodes.Node]:
    """What an exercise asks, with the code that it begins with."""
    body = next((child for child in exercise.children if isinstance(child, nodes.section)), exercise)
    shown = [child for child in body.children if not isinstance(child, nodes.title | nodes.subtitle)]
    return [part for child in shown for part in part_of(child, "code")]


def listed(texts: list[list[nodes.Node]]) -> nodes.bullet_list:
    items = [nodes.list_item("", nodes.paragraph("", "", *text)) for text in texts]
    return nodes.bullet_list("", *items)


def split(points: nodes.Node) -> list[nodes.bullet_list]:
    """A list as lists that fit a slide, of about equal length."""
    items = points.children
    count = -(-len(items) // POINTS)
    each = -(-len(items) // count)
    return [nodes.bullet_list("", *copies(items[i : i + each])) for i in range(0, len(items), each)]


def deck(found: Chapter) -> list[Page]:
    """All slides of a chapter but the first."""
    titles = [
        [nodes.reference("", title_of(node), refid=node["ids"][0])] for node in found.exercises if node["ids"]
    ]
    key = [
        Page([nodes.Text("Key points")], says=[points], looks=["points"]) for points in split(found.points)
    ]
    exercises = Page([nodes.Text("Exercises")], says=[listed(titles)], looks=["points"])
    limits = Page([nodes.Text("What was and was not shown")], says=found.limits, looks=["limits"])
    objectives = Page(
        [nodes.Text("What you will be able to do")], [found.objectives], notes=found.needs, looks=["points"]
    )
    return [objectives, *found.pages, *key, exercises, limits]
