"""The role `{reading-time}`: minutes of the chapter that it stands in, or hours of "all" of them."""

from pathlib import PurePosixPath

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from dqt_book.pages import reading


class ReadingTime(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if self.text == "all":
            for path in reading.chapters():
                self.env.note_dependency(str(path))
            return [nodes.Text(reading.said("all"))], []
        return [nodes.Text(reading.said(PurePosixPath(self.env.docname).name))], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("reading-time", ReadingTime())
    return {"parallel_read_safe": True}
