"""Print the hand-out of the built book to `_build/hand-out.pdf`, as a browser does."""

import sys

from dqt_book.pages.browser import browser, chromium, visit
from dqt_book.places import ROOT

PAGE, PDF = ROOT / "_build" / "html" / "slides" / "hand-out.html", ROOT / "_build" / "hand-out.pdf"


def main() -> None:
    executable = chromium()
    if executable is None:
        sys.exit("needs Chromium or Chrome: install it, or print the page from any browser")
    with browser(executable) as running, visit(running, PAGE.as_uri()) as opened:
        opened.page.pdf(path=PDF, format="A4")
    print(f"printed: {PDF.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
