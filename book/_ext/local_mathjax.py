"""Load MathJax from the book's own files, so that formulas render without a network."""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPT = "mathjax/tex-svg-full.js"


def use_local_script(app: Sphinx, config: Config) -> None:
    if not (Path(app.confdir) / "book" / "_static" / SCRIPT).is_file():
        raise FileNotFoundError(f"book/_static/{SCRIPT} is missing: git checkout book/_static/mathjax")
    config.mathjax_path = SCRIPT


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", use_local_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
