"""Write the live demo's data into the built book, from the checkpoint and the test images."""

from pathlib import Path

from sphinx.application import Sphinx

from dqt_book.widgets import live_demo


def write_data(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / "_static"
    (folder / live_demo.NAME).write_text(live_demo.as_script(live_demo.demo_data()))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
