"""What `make book-report` prints: the time of a build, the weight of every page, and what axe-core says."""

import sys
import time
from collections.abc import Iterator

from dqt_book.pages.browser import browser, chromium, pages, served, visit
from dqt_book.pages.build import CACHE, build
from dqt_book.places import ROOT

LIMIT = 2_000_000  # bytes of a page's own files


def timed_builds() -> Iterator[str]:
    for label in ("build" if CACHE.is_dir() else "build from nothing", "rebuild, nothing changed"):
        start = time.perf_counter()
        if build() != 0:
            sys.exit("the book does not build; see the warnings above")
        yield f"{label}: {time.perf_counter() - start:.0f} s"


def page_rows(executable: str) -> Iterator[tuple[str, int, int, int]]:
    """Name, own bytes, theme and MathJax as gzip sends them, violations in both themes."""
    with served(ROOT / "_build" / "html") as host, browser(executable) as running:
        for name in pages():
            with visit(running, f"{host}/{name}.html") as opened:
                own, shared = opened.weight(shared=False)[0], opened.weight(shared=True)[1]
                yield name, own, shared, len(opened.axe()) + len(opened.axe_in_dark())


def main() -> int:
    executable = chromium()
    if executable is None:
        sys.exit("needs Chromium or Chrome: install it, or run `playwright install chromium`")
    lines = list(timed_builds())
    print(f"{'page':<36}{'own files':>12}{'theme, gzip':>14}{'axe':>6}")
    rows = []
    for name, own, shared, violations in page_rows(executable):
        rows.append((own, violations))
        print(f"{name:<36}{own / 1e3:>9.0f} kB{shared / 1e3:>11.0f} kB{violations:>6}", flush=True)
    heaviest, total = max(own for own, _ in rows), sum(violations for _, violations in rows)
    print("\n".join(lines))
    print(
        f"heaviest page: {heaviest / 1e3:.0f} kB of its own, limit {LIMIT / 1e3:.0f} kB; axe: {total} found"
    )
    return int(heaviest > LIMIT or total > 0)


if __name__ == "__main__":
    sys.exit(main())
