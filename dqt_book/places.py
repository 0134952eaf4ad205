"""Where the checkout is, whose records and networks the pages read."""

from pathlib import Path


def checkout():
    """The folder that holds `reproductions/`: at or above the current one, else above this file.

    The current folder comes first, as a page's notebook runs beside an unpacked archive of the book's files.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "reproductions" / "results").is_dir():
            return folder
    raise FileNotFoundError(
        f"found no reproductions/results at or above {here}: run this in a checkout of the project"
    )


ROOT = checkout()
