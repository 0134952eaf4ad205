"""A browser on the built book: what the page test and `make book-report` share.

Nothing but the book's own host is let through, so that a page which needs the network fails here.
"""

import functools
import gzip
import http.server
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import axe_playwright_python
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, Request, Response, sync_playwright

from dqt_book.places import ROOT

THEMES = ("light", "dark")
# Not by Playwright's routes: with one, a browser keeps no file, and loads MathJax anew for every page.
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
QUIET = 40  # milliseconds without a request, twice, until a page is drawn
PATIENCE = 20_000  # milliseconds for anything that a page does
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
CONTRAST = ("color-contrast", "link-in-text-block")  # all that a theme can change
# sphinx-book-theme 1.1 loads its own script twice on every page.
THEME_ERRORS = ("Identifier 'THEBE_JS_URL' has already been declared",)
# docutils writes a list of citations as <div role="list"> around entries that have another role.
DOCUTILS_RULES = ("aria-required-children", "aria-deprecated-role")
# A page's code and signatures have thousands of words and a dozen looks: one word of each look is kept, as
# each of axe-core's rules walks through them all.
ONE_OF_A_KIND = """() => {
  const seen = new Set()
  const words = [...document.querySelectorAll(".highlight span, .sig span:not(a span)")].filter(word => {
    const style = getComputedStyle(word), block = word.closest(".highlight, .sig").parentElement
    const own = [style.color, style.backgroundColor, style.fontSize, style.fontWeight]
    const look = [block.className, word.parentElement.className, word.className, ...own].join()
    const known = seen.has(look)
    seen.add(look)
    return known && !word.id && !word.childElementCount
  })
  words.forEach(word => word.remove())
}"""
# axe-core measures the contrast of every word for itself, and a page has thousands of words and dozens of
# looks. One element of each is enough: contrast depends on its own style and the grounds of what it lies in.
CONTRAST_OF_EACH_LOOK = """rules => {
  const grounds = new Map([[null, ""]]), seen = new Set()
  const ground = node => {
    if (!grounds.has(node)) {
      const style = getComputedStyle(node)
      const own = [style.backgroundColor, style.backgroundImage, style.opacity, style.position]
      grounds.set(node, [ground(node.parentElement), ...own].join())
    }
    return grounds.get(node)
  }
  const looks = [...document.body.querySelectorAll("*")].filter(node => {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) return false
    if (!node.checkVisibility()) return false
    const style = getComputedStyle(node)
    const look = [node.tagName, style.color, style.fontSize, style.fontWeight, ground(node)].join()
    const known = seen.has(look)
    seen.add(look)
    return !known
  })
  return axe.run(looks, {runOnly: rules})
}"""
ALL_BUT_CONTRAST = """([tags, contrast]) => {
  const rules = Object.fromEntries(contrast.map(rule => [rule, {enabled: false}]))
  return axe.run(document, {runOnly: {type: "tag", values: tags}, rules})
}"""


def pages() -> list[str]:
    """Every page of the book, in the order of its contents."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [contents["root"], *(page["file"] for part in contents["parts"] for page in part["chapters"])]


def chromium() -> str | None:
    """Path of a Chromium or Chrome: $CHROMIUM, one on the PATH, or the one that Playwright installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
    with sync_playwright() as playwright:
        found.append(playwright.chromium.executable_path)
    return next((path for path in found if path and Path(path).is_file()), None)


@contextmanager
def browser(executable: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # No sandbox: containers, where continuous integration runs, seldom allow one.
        running = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", NO_NETWORK])
        try:
            yield running
        finally:
            running.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # asked for by the browser, where a page names no picture
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a plain file server on a folder."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@dataclass
class Visit:
    """An open page and what went wrong while it loaded."""

    page: Page
    problems: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    under_way: set[Request] = field(default_factory=set)

    def wait_until_quiet(self) -> None:
        """Nothing is loaded any more, seen twice; Playwright's "networkidle" waits half a second longer."""
        seen, late = 0, time.monotonic() + PATIENCE / 1000
        while seen < 2:
            assert time.monotonic() < late, f"still loading: {[request.url for request in self.under_way]}"
            self.page.wait_for_timeout(QUIET)
            seen = 0 if self.under_way else seen + 1

    def weight(self, shared: bool) -> tuple[int, int]:
        """Bytes as stored and as gzip sends them; of the theme and MathJax, or of the page's own files."""
        bodies = [r.body() for r in self.responses if r.ok and ("/_static/" in r.url) == shared]
        return sum(map(len, bodies)), sum(len(gzip.compress(body, 6)) for body in bodies)

    def axe(self) -> list[str]:
        """Violations that axe-core finds, one line each. The page's code is taken apart for it."""
        contrast = self.contrast()
        return [*self._told(self.page.evaluate(ALL_BUT_CONTRAST, [RULES, CONTRAST])), *contrast]

    def contrast(self) -> list[str]:
        """Those of them that are of colours: all in which the themes differ. Code is taken apart here too."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text())
            self.page.evaluate(ONE_OF_A_KIND)
        return self._told(self.page.evaluate(CONTRAST_OF_EACH_LOOK, CONTRAST))

    def axe_in_dark(self) -> list[str]:
        """What axe-core finds in the dark theme and not in the light one."""
        self.page.add_style_tag(content="* { transition: none !important }")
        self.page.evaluate("Object.assign(document.documentElement.dataset, {theme: 'dark', mode: 'dark'})")
        return self.contrast()

    @staticmethod
    def _told(found: dict[str, Any]) -> list[str]:
        return [
            f"{violation['id']} ({violation['impact']}): {node['html'][:160]}"
            for violation in found["violations"]
            if violation["id"] not in DOCUTILS_RULES
            for node in violation["nodes"]
        ]


@functools.cache
def _context(running: Browser, theme: str) -> BrowserContext:
    """One for all pages in a theme: what they share is loaded once; what one visit keeps no other finds."""
    context = running.new_context(reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    context.add_init_script(
        "if (!sessionStorage.getItem('visited')) localStorage.clear(); sessionStorage.setItem('visited', 1);"
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
    )
    return context


@contextmanager
def visit(running: Browser, address: str, theme: str = "light", width: int = 1280) -> Iterator[Visit]:
    """Open a page in a theme with the network cut, and wait until it is drawn."""
    context = _context(running, theme)
    try:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        opened = Visit(page)
        own = (re.match(r"\w+://[^/]*", address).group(), "data:", "blob:")
        note = opened.problems.append
        page.on("console", lambda m: note(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: None if str(e) in THEME_ERRORS else note(f"script: {e}"))
        page.on("request", lambda r: None if r.url.startswith(own) else note(f"foreign: {r.url}"))
        page.on("request", lambda r: opened.under_way.add(r))
        page.on("requestfinished", lambda r: opened.under_way.discard(r))
        page.on("requestfailed", lambda r: opened.under_way.discard(r))
        page.on("requestfailed", lambda r: note(f"not loaded: {r.url}"))
        page.on("response", lambda r: opened.responses.append(r))
        page.goto(address, wait_until="load")
        page.wait_for_function(
            "!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"
        )
        opened.wait_until_quiet()
        yield opened
    finally:
        for page in context.pages:
            page.close()
