"""What a chapter hands to its own text: values, and how long its cells ran since this was imported."""

import warnings
from time import perf_counter

_began = perf_counter()
warnings.filterwarnings("ignore", "IProgress")  # a progress bar in text will do


def say(**values):
    """Put values into the text of the book's page, where `{glue:text}` names them.

    Away from the book, in a chapter's notebook, the text has them already, and myst_nb may be missing.
    """
    try:
        from myst_nb import glue
    except ModuleNotFoundError:
        return
    for name, value in values.items():
        glue(name, str(value), display=False)


def say_run_time():
    """Say how long the cells ran."""
    seconds = perf_counter() - _began
    say(run_time=f"{seconds:.{0 if seconds > 20 else 1}f} seconds")
