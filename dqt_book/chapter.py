"""What a chapter hands to its own text: values, and how long its cells ran since this was imported."""

import importlib.util
import warnings
from time import perf_counter

GLUED = "application/papermill.record/"  # before the kind of what a cell keeps for the page's text

_began = perf_counter()
warnings.filterwarnings("ignore", "IProgress")  # a progress bar in text will do


def say(**values):
    """Put values into the text of the book's page, where `{glue:text}` names them.

    Away from the book, in a chapter's notebook, the text has them already, and myst_nb may be missing.
    """
    if not importlib.util.find_spec("myst_nb"):
        return
    # as myst_nb's own `glue` does, which imports Sphinx: more than a second for a page
    from IPython.display import display

    for name, value in values.items():
        kept = {"scrapbook": {"name": name, "mime_prefix": GLUED}}
        display({GLUED + "text/plain": repr(str(value))}, raw=True, metadata=kept)


def say_run_time():
    """Say how long the cells ran."""
    seconds = perf_counter() - _began
    say(run_time=f"{seconds:.{0 if seconds > 20 else 1}f} seconds")
