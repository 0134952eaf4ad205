"""Execute the pages that are not in the cache, several at a time; Sphinx would take one after another.

A page that takes the time of its cells is executed alone, when the others are done. Of a page that fails
nothing is kept: the build comes to it, fails in the same cell, and says where.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader, is_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbformat import NotebookNode

from dqt_book.places import ROOT

MOST = 4  # pages at a time; some take a gigabyte
CLOCK = "perf_counter"  # in a page that takes the time


def pages() -> list[Path]:
    """The book's pages that have cells, but for the reproductions, whose outputs are stored with them."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    named = [contents["root"], *(page["file"] for part in contents["parts"] for page in part["chapters"])]
    found = [ROOT / f"{name}.md" for name in named if not name.startswith("reproductions/")]
    return [page for page in found if page.is_file() and is_myst_markdown_notebook(page.read_text())]


def read(page: Path) -> NotebookNode:
    """A page as the notebook that Sphinx looks for in the cache."""
    text = page.read_text()
    reader = create_nb_reader(str(page), MdParserConfig(), NbParserConfig(), text)
    assert reader is not None, f"{page} has no cells"
    return reader.read(text)


def executed(notebook: NotebookNode, folder: Path, timeout: int) -> tuple[NotebookNode | None, float]:
    """A notebook with the outputs of its cells, None where one fails; and the seconds that it took."""
    result = single_nb_execution(notebook, cwd=str(folder), timeout=timeout, allow_errors=False)
    return (None if result.err else notebook), result.time or 0.0


def execute(wanted: Iterable[Path], folder: Path, timeout: int, workers: int) -> list[Path]:
    """Execute pages and keep their outputs in a cache.

    Parameters
    ----------
    wanted : iterable of Path
        Of pages with cells.
    folder : Path
        Of the cache.
    timeout : int
        Seconds of a cell.
    workers : int
        Pages at a time.

    Returns
    -------
    list of Path
        The pages that were executed to their ends.
    """
    cache = get_cache(folder)
    left = {page: read(page) for page in wanted}
    for page in list(left):
        try:
            cache.match_cache_notebook(left[page])
        except KeyError:
            continue
        del left[page]
    timed = [page for page in left if CLOCK in page.read_text()]
    done = []

    for together, count in ((set(left) - set(timed), workers), (timed, 1)):
        with ProcessPoolExecutor(count, get_context("spawn")) as pool:
            running = {
                pool.submit(executed, left[page], page.parent, timeout): page for page in sorted(together)
            }
            for future in as_completed(running):
                page, (notebook, seconds) = running[future], future.result()
                if notebook is not None:
                    bundle = CacheBundleIn(notebook, str(page), data={"execution_seconds": seconds})
                    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
                    done.append(page)
    return done


def main() -> None:
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]["timeout"]
    execute(pages(), ROOT / "_build" / ".jupyter_cache", timeout, min(MOST, os.cpu_count() or 1))


if __name__ == "__main__":
    main()
