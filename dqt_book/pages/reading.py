"""How long the chapters take to read, by one measure that their heads and the start page print.

Counted is what stands before a chapter's exercises: 200 words of prose a minute, 15 lines of shown code, a
third of a minute for each figure and table. Slides and folded code are not read along.
"""

import re
from pathlib import Path

from dqt_book.places import ROOT

WORDS, LINES, PICTURES = 200, 15, 3  # a minute
LONGEST, IN_ALL = 35, 390  # minutes of a chapter and of all, which is tested

_CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.S | re.M)
_SLIDE = re.compile(r"^```\{slide\}.*?^```$", re.S | re.M)
_FOLDED = re.compile(r"(remove|hide)-(cell|input)")
_PICTURE = re.compile(r"^  figure:|^```\{figure\}|show\.Table\(|<div class=\"[a-z]+-[a-z]+\"", re.M)
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.S)
_MARK = re.compile(r"^% .*$", re.M)


def chapters() -> list[Path]:
    """The chapters in their order."""
    return sorted((ROOT / "book").glob("[0-9]*.md"))


def minutes(text: str) -> float:
    """How long a chapter takes to read, without its exercises."""
    text = _FRONT.sub("", text).partition("\n## Exercises")[0]
    shown = [cell for cell in _CELL.findall(text) if not _FOLDED.search(cell)]
    lines = sum(cell.count("\n") - 1 for cell in shown)
    prose = _MARK.sub("", _SLIDE.sub("", _CELL.sub("", text)))
    return len(prose.split()) / WORDS + lines / LINES + len(_PICTURE.findall(text)) / PICTURES


def said(name: str) -> str:
    """The minutes of a chapter by its name, or the hours and minutes of "all"."""
    if name != "all":
        return f"{round(minutes((ROOT / 'book' / f'{name}.md').read_text()))} minutes"
    whole = round(sum(minutes(path.read_text()) for path in chapters()))
    return f"{whole // 60} hours and {whole % 60} minutes"
