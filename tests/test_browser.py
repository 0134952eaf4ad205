"""Every page of the built book in a real browser, both themes, with the network cut."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import matplotlib.pyplot as plt
import numpy as np
import pytest
import workshop

import dqt_core
from dqt_book.pages.browser import THEMES, browser, chromium, pages, served, visit
from dqt_book.places import ROOT, network
from dqt_book.records import exports as export_records
from dqt_book.widgets import controller_explorer, live_demo
from dqt_core import cost, data, integer, nested, results

GREY = ROOT / "reproductions" / "results" / "lenet5_digits" / "embedded.json"


@pytest.fixture(scope="session")
def running():
    """A Chromium. Without one the tests are skipped, or fail where CI says that nothing may be skipped."""
    executable = chromium()
    if executable is None:
        reason = "needs Chromium or Chrome: install it, or run `playwright install chromium`"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; it may not be skipped here, as CI is set", pytrace=False)
        pytest.skip(reason)
    with browser(executable) as found:
        yield found


@pytest.fixture(scope="session")
def address(book):
    with served(book) as host:
        yield host


def faults(opened):
    """What a reader would see go wrong on an open page."""
    page = opened.page
    broken = page.eval_on_selector_all("img", "all => all.filter(i => !i.naturalWidth).map(i => i.src)")
    formulas = page.eval_on_selector_all(
        ".math", "all => all.filter(m => !m.querySelector('mjx-container')).map(m => m.textContent)"
    )
    errors = page.eval_on_selector_all("mjx-merror", "all => all.map(e => e.textContent)")
    wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    # figures are fitted in the frame after the window's new width
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    small = page.eval_on_selector_all(
        ".figure-frame img", "all => all.filter(i => i.width < 0.69 * i.naturalWidth).map(i => i.alt)"
    )
    return [
        *opened.problems,
        *(f"{r.status}: {r.url}" for r in opened.responses if r.status >= 400),
        *(f"image not shown: {source}" for source in broken),
        *(f"formula not rendered: {text}" for text in formulas + errors),
        *(f"figure with type too small to read: {text}" for text in small),
        *([f"{wide} pixels wider than the window"] if wide > 0 else []),
    ]


DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 900}


@pytest.mark.parametrize("name", pages())
def test_page_is_whole_and_accessible(running, address, name):
    """Opened once: on a desk, as narrow as a phone, in the light and in the dark theme."""
    with visit(running, f"{address}/{name}.html") as opened:
        assert faults(opened) == []
        opened.page.set_viewport_size(PHONE)
        assert faults(opened) == []
        opened.page.set_viewport_size(DESK)
        assert opened.axe() == []
        assert opened.axe_in_dark() == []


@pytest.mark.parametrize("theme", THEMES)
def test_page_opens_on_a_phone_in_the_theme_that_was_chosen(running, address, theme):
    with visit(running, f"{address}/book/02-nested-codes.html", theme, PHONE["width"]) as opened:
        assert opened.page.evaluate("document.documentElement.dataset.theme") == theme
        assert faults(opened) == []


def test_a_figure_keeps_its_type_on_a_phone_and_is_reached_by_keyboard(running, address):
    with visit(running, f"{address}/book/01-why-bits-matter.html") as opened:
        frames = opened.page.locator(".figure-frame")
        assert frames.count() > 3
        assert opened.page.locator(".figure-frame.scrolls").count() == 0
        opened.page.set_viewport_size(PHONE)
        opened.page.wait_for_selector(".figure-frame.scrolls[tabindex='0']")
        first = frames.first
        assert first.evaluate("frame => frame.scrollWidth > frame.clientWidth")
        assert "sideways" in first.evaluate("frame => getComputedStyle(frame, '::after').content")
        assert [fault for fault in opened.axe() if "figure-frame" in fault] == []
        opened.page.set_viewport_size(DESK)
        opened.page.wait_for_function("!document.querySelector('.figure-frame.scrolls')")
        assert first.get_attribute("tabindex") is None


def test_book_works_from_disk(running, book):
    with visit(running, f"{book.as_uri()}/book/notation.html") as opened:
        # Chromium preloads no font from a disk; the style sheet loads it all the same.
        others = [
            p for p in faults(opened) if ".woff2" not in p and "CORS" not in p and "ERR_FAILED" not in p
        ]
        assert others == []
        assert opened.page.locator("mjx-container").count() > 0


def test_search_finds_a_term(running, address):
    with visit(running, f"{address}/search.html?q=requantize") as opened:
        opened.page.wait_for_selector("#search-results li")
        assert opened.page.locator("#search-results li").count() > 1


def test_what_a_search_has_found_can_be_read(running, address):
    with visit(running, f"{address}/book/09-training-through-the-shift.html?highlight=requantize") as opened:
        opened.page.wait_for_selector("span.highlighted")
        assert opened.contrast() == []
        assert opened.axe_in_dark() == []
    with visit(running, f"{address}/book/09-training-through-the-shift.html") as opened:
        assert opened.page.locator("span.highlighted").count() == 0, "another visit knows nothing of it"


def test_paper_has_the_hints_and_solutions_and_no_buttons(running, address):
    with visit(running, f"{address}/book/02-nested-codes.html") as opened:
        page = opened.page
        hint = page.locator("details.sd-dropdown").first
        solution = page.locator(".solution div.cell").first
        assert not hint.evaluate("hint => hint.open")
        assert not solution.is_visible()
        page.emulate_media(media="print")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert hint.evaluate("hint => hint.open")
        assert solution.is_visible()
        links = page.locator(".notebook-links").all()
        assert links
        assert not any(paragraph.is_visible() for paragraph in links)
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert not hint.evaluate("hint => hint.open")


# Widgets, by keyboard alone


def test_bit_slider_moves_by_the_arrow_keys(running, address):
    with visit(running, f"{address}/book/02-nested-codes.html") as opened:
        widget = opened.page.locator(".bit-slider")
        slider = widget.get_by_role("slider")
        slider.focus()
        before = int(slider.input_value())
        opened.page.keyboard.press("ArrowRight")
        code = np.uint8(before + 1)
        shown = {width: widget.locator(f"tr[data-width='{width}'] [data-role=code]") for width in range(1, 9)}
        assert {width: int(cell.inner_text()) for width, cell in shown.items()} == {
            width: int(nested.switch(np.array([code]), width)[0]) for width in range(1, 9)
        }


def test_requantize_stepper_steps_and_refuses_by_the_keyboard(running, address):
    with visit(running, f"{address}/book/04-one-rounding.html") as opened:
        widget = opened.page.locator(".requantize-stepper")
        slider, multiplier = widget.get_by_role("slider"), widget.get_by_label("M multiplier")
        code = widget.locator("tr[data-step=y] [data-role=value]")
        term = (np.array([int(slider.input_value()) + 1]), 0, int(multiplier.input_value()))
        slider.focus()
        opened.page.keyboard.press("ArrowRight")
        assert int(code.inner_text()) == integer.requantize([term], 0, 40, 0, 255)[0]
        widget.get_by_label("r right shift").focus()
        opened.page.keyboard.press("End")
        opened.page.keyboard.type("0")
        assert "Refused: r is outside 1 to 61" in widget.get_by_role("alert").inner_text()
        assert not code.is_visible()


def test_controller_explorer_answers_the_keyboard(running, address):
    record = controller_explorer.explorer_data()
    with visit(running, f"{address}/book/10-the-controller.html") as opened:
        widget = opened.page.locator(".controller-explorer")
        widget.get_by_role("button", name="digit 7").focus()
        opened.page.keyboard.press("Enter")
        widget.get_by_role("slider", name="Brightness").focus()
        opened.page.keyboard.press("Home")
        entry = 7 * len(record["brightness"]) * len(record["noise"])
        shown = [int(text[0]) for text in widget.locator("[data-role=width]").all_inner_texts()]
        assert shown == [int(width) for width in record["widths"][entry]]
        assert widget.locator("[data-role=class]").inner_text() == str(record["classes"][entry])
        assert widget.locator("[data-role=cost]").inner_text() == f"{record['bitops'][entry] / 1e6:.2f} M"
        assert widget.locator("tr.changed").count() > 0


# The live demo


@pytest.fixture(scope="module")
def demo_program():
    return dqt_core.load("digits")


def state_of(page):
    """What the demo shows, with Python's result for the same picture and widths."""
    state = page.evaluate("window.liveDemoState")
    return np.array(state["grey"], np.uint8).reshape(1, 8, 8), [int(text) for text in state["logits"]], state


def pad_of(page):
    """The pixels of the drawing pad, (32, 32)."""
    script = """document.querySelector('[data-role=pad]').getContext('2d').getImageData(0, 0, 32, 32).data"""
    return np.array(page.evaluate(f"Array.from({script})"), np.uint8).reshape(32, 32, 4)[..., 0]


def test_live_demo_prints_the_recorded_digest(running, address):
    recorded = {row["widths"]: row["browser"] for row in export_records.record("embedded")["rows"]}
    with visit(running, f"{address}/book/live-demo.html") as opened:
        opened.page.get_by_role("button", name="Check all").click()
        told = opened.page.locator("[data-role=checked]")
        told.get_by_text("sha256").wait_for(timeout=120_000)
        assert recorded["controller"] in told.inner_text()
        assert "Python's is the same." in told.inner_text()
        assert opened.problems == []


def test_live_demo_answers_a_drawing(running, address, demo_program):
    """A seven, by the mouse."""
    with visit(running, f"{address}/book/live-demo.html") as opened:
        page = opened.page
        pad = page.locator("[data-role=pad]")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        path = [(8, 6), (23, 6), (21, 12), (17, 19), (14, 27)]
        for i, (x, y) in enumerate(path):
            page.mouse.move(box["x"] + x / 32 * box["width"], box["y"] + y / 32 * box["height"], steps=4)
            if i == 0:
                page.mouse.down()
        page.mouse.up()
        page.wait_for_function("document.querySelector('[data-role=class]').textContent === '7'")
        grey, logits, state = state_of(page)
        result = demo_program.run(controller_explorer.as_images(grey), "controller")
        assert logits == result.logits[0].tolist()
        assert [width for width, _ in state["widths"]] == result.widths[0].tolist()
        assert state["bitops"] == cost.bitops(demo_program, result.widths)[0]
        assert opened.axe() == []
        assert opened.axe_in_dark() == []


def test_live_demo_by_the_keyboard(running, address, demo_program):
    """A vertical stroke; then every layer at 2 bits, and one at 8."""
    with visit(running, f"{address}/book/live-demo.html", width=390) as opened:
        page = opened.page
        page.locator("[data-role=pad]").focus()
        for key in ["ArrowUp"] * 10 + ["Space"] + ["ArrowDown"] * 20:
            page.keyboard.press(key)
        assert page.locator("[data-role=class]").inner_text() == "1"
        page.locator("[data-role=all]").focus()
        page.keyboard.press("ArrowRight")
        page.get_by_role("slider", name="width of layer3.0.conv1").focus()
        page.keyboard.press("End")
        grey, logits, state = state_of(page)
        widths = [8 if name == "layer3.0.conv1" else 2 for name in demo_program.layers]
        assert [width for width, _ in state["widths"]] == widths
        assert logits == demo_program.run(controller_explorer.as_images(grey), widths).logits[0].tolist()
        assert page.locator("[data-role=cost]").inner_text() == f"{state['bitops'] / 1e6:.2f} M"
        assert state["bitops"] == cost.bitops(demo_program, widths)[0]


def test_live_demo_takes_test_images_and_files(running, address, tmp_path):
    digits = data.embedded()
    with visit(running, f"{address}/book/live-demo.html") as opened:
        page = opened.page
        page.locator("[data-role=test-image]").focus()
        page.keyboard.press("End")
        assert page.locator("[data-role=label]").inner_text() == str(digits.test_labels[-1])
        assert np.array_equal(state_of(page)[0], live_demo.grey(digits.test_images[-1:]))
        plt.imsave(tmp_path / "own.png", 255 - digits.test_images[3])
        page.set_input_files("input[type=file]", tmp_path / "own.png")
        page.get_by_text("own.png").first.wait_for()
        picture = live_demo.grey(digits.test_images[3:4]).astype(int)
        assert abs(state_of(page)[0].astype(int) - picture).max() <= 2, (
            "turned over and stretched, by a byte or two"
        )
        assert np.array_equal(pad_of(page)[::4, ::4], state_of(page)[0][0]), "the pad shows what is judged"
        # the same digit in a corner of a large sheet is centred, as a drawing is
        sheet = np.full((160, 160, 3), 255, np.uint8)
        sheet[10:42, 100:132] = 255 - digits.test_images[3]
        plt.imsave(tmp_path / "corner.png", sheet)
        page.set_input_files("input[type=file]", tmp_path / "corner.png")
        page.get_by_text("corner.png").first.wait_for()
        assert page.locator("[data-role=class]").inner_text() == str(digits.test_labels[3])
        (tmp_path / "no.png").write_text("no picture")
        page.set_input_files("input[type=file]", tmp_path / "no.png")
        page.get_by_text("no.png is not a picture").wait_for()


def test_live_demo_looks_twice_with_the_grey_network(running, address):
    """By the keyboard: LeNet-5 looks at a digit that it is sure of, at one that it is not, then at all."""
    digits, record = data.embedded(channels=1), results.read(GREY)
    program = dqt_core.load(network(record, "trained"))
    row = next(row for row in record["rows"] if "steps" in row)
    twice = dqt_core.cascade(program, digits.test_images, row["steps"], row["thresholds"])
    with visit(running, f"{address}/book/live-demo.html", width=390) as opened:
        page = opened.page
        page.locator("[data-role=network]").focus()
        page.keyboard.press("ArrowDown")
        page.locator("[data-role=once]").focus()
        page.keyboard.press("ArrowDown")
        assert opened.axe() == []
        for passes in (1, 2):
            image = int(np.flatnonzero(twice.passes == passes)[0])
            page.locator("[data-role=test-image]").fill(str(image))
            state = state_of(page)[2]
            assert (state["network"], state["passes"]) == (program.name, passes)
            assert state_of(page)[1] == twice.logits[image].tolist()
            assert state["bitops"] == twice.bitops[image]
            assert page.locator("[data-role=look-2]").count() == passes - 1
        assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
        page.get_by_role("button", name="Check all").click()
        told = page.locator("[data-role=checked]")
        told.get_by_text("sha256").wait_for(timeout=120_000)
        assert f"{row['correct']} correct, {row['passes'][1]} looked at twice" in told.inner_text()
        assert f"{row['bitops'] / 1e6:.2f} M BitOPs an image" in told.inner_text()
        assert f"here: {row['logits']}. Python's is the same." in told.inner_text()


def test_live_demo_reads_an_upload_again_as_the_box_says(running, address, tmp_path):
    sheet = np.full((160, 160, 3), 255, np.uint8)
    sheet[10:42, 100:132] = 255 - data.embedded().test_images[3]
    plt.imsave(tmp_path / "corner.png", sheet)
    with visit(running, f"{address}/book/live-demo.html") as opened:
        page, box = opened.page, opened.page.get_by_label("centre it")
        page.set_input_files("input[type=file]", tmp_path / "corner.png")
        page.get_by_text("corner.png").first.wait_for()
        centred = state_of(page)[0]
        box.uncheck()
        whole = state_of(page)[0]
        assert np.count_nonzero(whole) < np.count_nonzero(centred) / 4
        assert np.array_equal(pad_of(page)[::4, ::4], whole[0]), "the pad shows what is judged"
        box.check()
        assert np.array_equal(state_of(page)[0], centred)


def test_live_demo_works_from_disk(running, book):
    with visit(running, f"{book.as_uri()}/book/live-demo.html") as opened:
        assert len(state_of(opened.page)[1]) == 10


# Decks of slides, and the hand-out

DECKS = [*workshop.decks(), *workshop.DECKS]
BOTH = ("02-nested-codes", *workshop.DECKS)  # what `make test` opens in both themes
SMALLEST = (
    14  # pixels of the 720 that a slide is high; what is operated on a slide is as large as on its page
)

UNREADABLE = """smallest => {
  const slide = Reveal.getCurrentSlide(), faults = [], title = slide.querySelector("h1, h2").innerText
  const over = (node, what) => {
    if (node.scrollHeight > node.clientHeight + 1 || node.scrollWidth > node.clientWidth + 1)
      faults.push(`${title}: ${what} is ${node.scrollWidth} by ${node.scrollHeight}, ` +
                  `room for ${node.clientWidth} by ${node.clientHeight}`)
  }
  over(slide, "the slide")
  slide.querySelectorAll("pre").forEach(node => over(node, "code"))
  const text = "p, li, pre, td, th, h1, h2"
  for (const node of slide.querySelectorAll(`:is(.shows, .says) :is(${text})`)) {
    const size = parseFloat(getComputedStyle(node).fontSize)
    if (size < smallest && !node.closest("[role=group]"))
      faults.push(`${title}: text of ${size} pixels: ${node.innerText.slice(0, 40)}`)
  }
  return faults
}"""


def started(opened):
    """An open deck, once its slides are laid out."""
    opened.page.wait_for_function("document.documentElement.dataset.ready")
    return opened.page


def unreadable(page):
    """Slides that overflow, code that is cut, text that is too small."""
    found = []
    for number in range(page.evaluate("Reveal.getTotalSlides()")):
        page.evaluate("number => Reveal.slide(number)", number)
        found += page.evaluate(UNREADABLE, SMALLEST)
    return found


@pytest.mark.parametrize("name", DECKS)
def test_deck_is_whole_and_fits_its_slides(running, address, name):
    with visit(running, f"{address}/slides/{name}.html") as opened:
        page = started(opened)
        assert faults(opened) == []
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        assert page.evaluate("Reveal.getIndices().h") == 2
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert unreadable(page) == []


@pytest.mark.parametrize(
    ("name", "theme"),
    [
        # in the dark a deck differs from the others by what its chapter's page has, too
        pytest.param(name, theme, marks=pytest.mark.slow if theme == "dark" and name not in BOTH else ())
        for name in DECKS
        for theme in THEMES
    ],
)
def test_deck_is_accessible_on_all_slides_at_once(running, address, name, theme):
    """Opened for each theme, as reveal.js keeps the ground of a printed slide that it found at first."""
    with visit(running, f"{address}/slides/{name}.html?view=print", theme) as opened:
        assert started(opened).evaluate("document.documentElement.dataset.theme") == theme
        # For print reveal.js lays hidden slides out and leaves them marked as hidden.
        found = opened.axe() if theme == "light" else opened.contrast()
        assert [line for line in found if not line.startswith("aria-hidden-focus")] == []
        assert opened.problems == []


def test_an_address_opens_a_deck_at_its_slide(running, address):
    anchor = workshop.slide_of("02-nested-codes", ["Never switch from a switched code"])
    with visit(running, f"{address}/slides/02-nested-codes.html#/{anchor}") as opened:
        page = started(opened)
        assert page.evaluate("Reveal.getCurrentSlide().id") == anchor
        assert page.evaluate("Reveal.getIndices().h") > 3


def test_the_deck_of_ninety_minutes_opens_with_the_demo(running, address):
    """A stroke by the keyboard is drawn, and does not turn the page."""
    with visit(running, f"{address}/slides/90-minutes.html#/1") as opened:
        page = started(opened)
        page.locator("[data-role=pad]").focus()
        for key in ["ArrowUp"] * 10 + ["Space"] + ["ArrowDown"] * 20:
            page.keyboard.press(key)
        assert page.locator("[data-role=class]").inner_text() == "1"
        assert page.evaluate("Reveal.getIndices().h") == 1
        page.locator("[data-role=twice]").check()
        assert page.locator("[data-role=look-1]").is_visible()


def test_speaker_notes_are_what_the_chapter_says(running, address):
    with visit(running, f"{address}/slides/02-nested-codes.html") as opened:
        page = started(opened)
        with page.expect_popup() as popup:
            page.keyboard.press("s")
        notes = popup.value.locator(".speaker-controls-notes .value")
        page.evaluate("Reveal.slide(2)")
        notes.get_by_text("We want to write each as an integer times one common").wait_for()
        assert notes.locator("mjx-container").count() > 0
        assert opened.problems == []


def test_deck_works_from_disk(running, book):
    with visit(running, f"{book.as_uri()}/slides/02-nested-codes.html") as opened:
        assert started(opened).locator("mjx-container").count() > 0
        assert opened.problems == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("node => node.style.minHeight = '900px'", "the slide is"),
        ("node => { node.style.display = 'block'; node.style.width = '1400px' }", "the slide is"),
        ("node => node.innerHTML = '<pre>' + 'x'.repeat(200) + '</pre>'", "code is"),
        ("node => node.innerHTML = '<p style=\"font-size: 12px\">small</p>'", "text of 12 pixels"),
    ],
)
def test_an_unreadable_slide_is_caught(running, address, spoil, complaint):
    with visit(running, f"{address}/slides/01-why-bits-matter.html") as opened:
        page = started(opened)
        page.evaluate("Reveal.slide(1)")
        page.locator(".present .says").evaluate(spoil)
        assert any(complaint in fault for fault in page.evaluate(UNREADABLE, SMALLEST))


@pytest.mark.parametrize("name", ["hand-out", *(f"{name}-sheet" for name in workshop.DECKS)])
def test_hand_out_is_whole_and_accessible(running, address, name):
    with visit(running, f"{address}/slides/{name}.html") as opened:
        assert opened.page.evaluate("document.documentElement.dataset.theme") == "light"
        assert faults(opened) == []
        assert opened.axe() == []
        assert opened.axe_in_dark() == []


def test_hand_out_prints_black_on_white_a_chapter_a_page(running, address):
    with visit(running, f"{address}/slides/hand-out.html", "dark") as opened:
        page = opened.page
        printed = page.pdf(format="A4")
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) > page.locator(".chapter").count() > 9
        page.emulate_media(media="print")
        look = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert look == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]


# What the page test would miss must be caught by it.

WHOLE = "<html lang='en'><head><title>t</title></head><body><main><h1>t</h1>{}</main></body></html>"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<img src='missing.png' alt='a'>", "image not shown"),
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<script>undefinedName()</script>", "script: undefinedName"),
        ("<script>fetch('https://cdn.example/a.js').catch(() => 0)</script>", "foreign: https://cdn.example"),
        ("<span class='math'>\\(x\\)</span>", "formula not rendered"),
        ("<div style='width: 3000px'>wide</div>", "wider than the window"),
    ],
)
def test_a_faulty_page_is_caught(running, tmp_path, body, complaint):
    (tmp_path / "page.html").write_text(WHOLE.format(body))
    with served(tmp_path) as host, visit(running, f"{host}/page.html") as opened:
        assert any(complaint in fault for fault in faults(opened)), faults(opened)


def test_a_page_too_wide_for_a_phone_alone_is_caught(running, tmp_path):
    (tmp_path / "page.html").write_text(WHOLE.format("<div style='width: 600px'>wide</div>"))
    with served(tmp_path) as host, visit(running, f"{host}/page.html") as opened:
        assert faults(opened) == []
        opened.page.set_viewport_size(PHONE)
        assert any("wider than the window" in fault for fault in faults(opened))


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("<p style='color: #999; background: #aaa'>pale</p>", "color-contrast"),
        ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>", "image-alt"),
        ("<input type='range'>", "label"),
        (
            "<div><div class='highlight'><pre><span class='n'>dark</span> <span class='n'>dark</span>"
            "<span class='c' style='color: #999; background: #aaa'>pale</span>"
            "<span class='c' style='color: #999; background: #aaa'>pale</span></pre></div></div>",
            "color-contrast",
        ),
    ],
)
def test_an_inaccessible_page_is_caught(running, tmp_path, body, rule):
    (tmp_path / "page.html").write_text(WHOLE.format(body))
    with served(tmp_path) as host, visit(running, f"{host}/page.html") as opened:
        assert any(line.startswith(rule) for line in opened.axe()), opened.axe()


DARK = "html[data-theme=dark] body { background: #111; color: #eee } html[data-theme=dark] "


@pytest.mark.parametrize(
    ("look", "rule"),
    [
        ("b { color: #333 }", "color-contrast"),
        ("main { background: #bbb }", "color-contrast"),
        ("p.last { opacity: 0.3 }", "color-contrast"),
        ("a { color: #ccc; text-decoration: none }", "link-in-text-block"),
    ],
)
def test_what_is_inaccessible_in_the_dark_alone_is_caught(running, tmp_path, look, rule):
    style = f"<style>{DARK}{look}</style>"
    text = "<p>first <b>bold</b></p><p>a text with <a href='#'>a link</a> in it</p><p class='last'>last</p>"
    (tmp_path / "page.html").write_text(WHOLE.format(style + text))
    with served(tmp_path) as host, visit(running, f"{host}/page.html") as opened:
        assert opened.axe() == []
        assert any(line.startswith(rule) for line in opened.axe_in_dark())


# Links


class Links(HTMLParser):
    """The addresses that a page links to, and the anchors that it offers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and attributes.get("href"):
            self.targets.add(attributes["href"])


def broken_links(folder: Path) -> list[str]:
    """Return the links within the book whose file or anchor does not exist."""
    linked = {path: Links(path.read_text()) for path in folder.rglob("*.html")}
    broken = []
    for path, links in linked.items():
        for target in links.targets:
            address, anchor = urldefrag(target)
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            file = (path.parent / unquote(address.split("?")[0])).resolve() if address else path
            offered = linked[file].anchors if file in linked else None
            if not file.exists() or (
                anchor and offered is not None and unquote(anchor).removeprefix("/") not in offered
            ):
                broken.append(f"{path.relative_to(folder)} -> {target}")
    return sorted(broken)


def test_links_within_the_book_lead_somewhere(book):
    assert broken_links(book) == []


def test_a_broken_link_is_caught(tmp_path):
    (tmp_path / "a.html").write_text(
        "<a href='b.html#x'></a><a href='c.html'></a><a href='#here' id='here'></a>"
    )
    (tmp_path / "b.html").write_text("<p id='y'></p><a href='a.html#here'></a>")
    assert broken_links(tmp_path) == ["a.html -> b.html#x", "a.html -> c.html"]


def test_every_page_can_be_reached(book):
    reached = {re.sub(r"#.*", "", link) for link in Links((book / "book" / "intro.html").read_text()).targets}
    assert [
        name
        for name in pages()
        if f"../{name}.html" not in reached
        and os.path.relpath(f"{name}.html", "book") not in reached
        and name != "book/intro"
    ] == []
