"""The pages by keyboard, in a screen reader, in high contrast and on paper, as far as rules can say."""

from __future__ import annotations

import pytest

from tests.axe import violations
from tests.report import pages as browser_pages

PHONE, DESK = {"width": 320, "height": 700}, {"width": 1280, "height": 900}
WAYS = {
    "phone": {"viewport": PHONE},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "high contrast": {"viewport": DESK, "color_scheme": "dark", "forced_colors": "active"},
}
PAGES = ("digits", "species.csv", "two models", "longest names")
pages = pytest.fixture(scope="module")(browser_pages.pages)
SCROLLING = """() => [...document.querySelectorAll(".scroll")]
    .filter(box => box.scrollWidth > box.clientWidth)
    .map(box => [box.tabIndex, box.role, box.ariaLabel, box.querySelector("caption").textContent])"""
# The bars whose colour is that of the paper: [class names].
COLOURLESS = """() => [...document.querySelectorAll(".saved, .sum .bar div, .share span")]
    .filter(bar => getComputedStyle(bar).backgroundColor === getComputedStyle(document.body).backgroundColor)
    .map(bar => bar.className)"""
# The numbers that go over more than one line.
BROKEN = """() => [...document.querySelectorAll("td:not(.share), .abreast th[scope=row]")].filter(cell => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
    return /^[\\u2212+]?[\\d.,]+%?$/.test(cell.textContent.trim()) && lines.size > 1;
}).map(cell => cell.textContent)"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PAGES)
def test_no_rule_of_accessibility_is_broken(pages, visit, name, way):
    assert violations(visit(pages[name], **WAYS[way])) == []


@pytest.mark.parametrize("name", PAGES)
def test_what_scrolls_is_reached_by_keyboard_and_has_the_name_of_its_table(pages, visit, name):
    page = visit(pages[name], viewport=PHONE)
    boxes = page.evaluate(SCROLLING)
    assert boxes
    assert all(box[:2] == [0, "group"] and box[2] == box[3] for box in boxes)
    page.set_viewport_size(DESK)
    page.wait_for_function("document.querySelectorAll('.scroll[tabindex]').length === 0")
    assert page.evaluate(SCROLLING) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_keep_their_colours_in_high_contrast(pages, visit, scheme):
    for name in PAGES:
        page = visit(pages[name], forced_colors="active", color_scheme=scheme)
        assert page.evaluate(COLOURLESS) == [], name


@pytest.mark.parametrize("name", PAGES)
def test_no_number_is_broken_over_lines(pages, visit, name):
    page = visit(pages[name], viewport={"width": 680, "height": 900})
    page.emulate_media(media="print")
    assert page.evaluate(BROKEN) == []
    page.emulate_media(media="screen")
    for width in (320, 640):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(BROKEN) == []


def test_what_a_pointer_shows_over_a_point_is_in_a_table_too(pages, visit):
    page = visit(pages["digits"], viewport=PHONE)
    page.get_by_text("The points in numbers").press("Enter")
    table = page.get_by_role("table", name="Reliability, bin by bin")
    cells = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    shown = page.locator("#parts svg title").all_text_contents()
    assert [f"stated {stated}, true {right}, rows {rows}" for stated, right, rows in cells] == shown
