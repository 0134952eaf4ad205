"""Where the checkout is, whose records and networks the pages read."""

from pathlib import Path

from dqt_core import program


def checkout():
    """The folder that holds `reproductions/`: at or above the current one, else above this file.

    The current folder comes first, as a page's notebook runs beside an unpacked archive of the book's files.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "reproductions" / "expected").is_dir():
            return folder
    raise FileNotFoundError(
        f"found no reproductions/expected at or above {here}: run this in a checkout of the project"
    )


def network(record, kind):
    """The file of a network that a record names: a shipped one's name ends in its digest."""
    name = f"*-{record['programs'][kind][:12]}.safetensors"
    for folder in (CHECKPOINTS, Path(program.__file__).parent):
        for path in folder.glob(name):
            return path
    raise FileNotFoundError(f"no {name} in {CHECKPOINTS}; get it from the repository, or train it anew")


ROOT = checkout()
CHECKPOINTS = ROOT / "reproductions" / "checkpoints"
