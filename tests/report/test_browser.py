"""The report in a real browser: it draws, fits, prints, follows the dark, and is used by keyboard."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pytest

from tests.report import pages as browser_pages
from tests.report.pages import COMMAND
from xent.files import dataset as data
from xent.html import svg
from xent.report import page as report
from xent.report import training

NAMES = [
    "digits",
    "breast_cancer",
    "made.csv",
    "noise",
    "species.csv",
    "worse",
    "two models",
    "longest names",
]
EACH = pytest.mark.parametrize("name", NAMES)
pages = pytest.fixture(scope="module")(browser_pages.pages)
BOXES = """nodes => nodes.map(node => {
    const box = node.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom, node.textContent];
})"""
WORDS = "h1, h2, h3, p, dd, li, figcaption, :is(th, td), svg text"
UNSCROLLED = "h1, h2, h3, p, dd, li, figcaption, :not(.scroll) > table :is(th, td), svg text"


def beyond(page, words, width):
    """What sticks out of the page, to the left or to the right."""
    boxes = page.locator(words).evaluate_all(BOXES)
    return [text for left, _, right, _, text in boxes if left < -1 or right > width + 1]


def overlapping(page):
    """Pairs of labels that lie over each other in one picture."""
    found = []
    for i in range(page.locator("svg").count()):
        texts = page.locator("svg").nth(i).locator("text:not([transform])").evaluate_all(BOXES)
        for (left, top, right, bottom, one), other in all_pairs(texts):
            across = min(right, other[2]) - max(left, other[0])
            down = min(bottom, other[3]) - max(top, other[1])
            if across >= 2 and down >= 0.35 * (bottom - top):
                found.append((i, one, other[4]))
    return found


@EACH
@pytest.mark.parametrize("width", [320, 640, 1280])  # 640 is 1280 enlarged to 200%
def test_everything_is_drawn_and_fits(pages, visit, name, width):
    page = visit(pages[name], viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.locator("svg, img").evaluate_all(BOXES)
    assert all(right - left > 40 and bottom - top > 40 for left, top, right, bottom, _ in boxes)
    assert page.locator("img").evaluate_all("all => all.every(img => img.naturalWidth > 1)")
    assert beyond(page, ".scale span", width) == []
    assert beyond(page, UNSCROLLED if width < 1280 else WORDS, width) == []
    assert overlapping(page) == []


# Narrow and wide faces, and one that is tall.
@pytest.mark.parametrize(
    "browser", ["DejaVu Sans", "Noto Sans", "Liberation Sans", "Noto Sans Mono"], indirect=True
)
@pytest.mark.parametrize("medium", ["phone", "screen", "paper"])
def test_no_label_depends_on_the_fonts_that_are_there(pages, browser, visit, medium):
    width = {"phone": 390, "screen": 1280, "paper": 680}[medium]
    for name, html in pages.items():
        page = visit(html, viewport={"width": width, "height": 800})
        if medium == "paper":
            page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert beyond(page, UNSCROLLED if medium == "phone" else WORDS, width) == [], name
        assert overlapping(page) == [], name


def all_pairs(things):
    return ((a, b) for i, a in enumerate(things) for b in things[:i])


SCHEMES = ("light", "dark")
COLOURS = """() => {
    const places = {
        paper: ["body", "backgroundColor"], ink: ["body", "color"], soft: [".lead", "color"],
        link: ["a", "color"], good: [".passed", "color"], label: ["svg text", "fill"],
        blue: ["svg .a", "fill"], orange: ["svg .b", "fill"],
    };
    const seen = ([at, property]) => getComputedStyle(document.querySelector(at))[property];
    return Object.fromEntries(Object.entries(places).map(([name, place]) => [name, seen(place)]));
}"""


def contrast(one, other):
    """WCAG's ratio of two colours as the browser writes them."""

    def luminance(colour):
        channels = np.array([int(c) for c in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_dark_is_followed_and_all_is_legible(pages, visit):
    light, dark = (visit(pages["digits"], color_scheme=scheme).evaluate(COLOURS) for scheme in SCHEMES)
    assert all(light[name] != dark[name] for name in light)
    for colours in (light, dark):
        for name, colour in colours.items():
            assert name == "paper" or contrast(colour, colours["paper"]) >= 4.5, (name, colour)


@EACH
def test_it_prints_on_a_few_pages_of_a4_and_nothing_is_cut_off(pages, visit, name):
    page = visit(pages[name], viewport={"width": 680, "height": 900}, color_scheme="dark")  # 180 mm
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    fill = page.locator("svg text").first.evaluate("text => getComputedStyle(text).fill")
    assert fill == "rgb(99, 96, 91)"  # as on light paper
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    words = page.locator(WORDS).evaluate_all(BOXES)
    assert [text for left, _, right, _, text in words if left < -1 or right > 681] == []
    pdf = page.pdf(prefer_css_page_size=True)
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 9
    assert re.search(rb"/MediaBox\s*\[0 0 59[456](\.\d+)? 84[12]", pdf)


def many(names):
    """Forty rows of each class."""
    rng, classes = np.random.default_rng(0), len(names)
    labels = np.arange(40 * classes) % classes
    features = rng.standard_normal((len(labels), 4)) + 2 * rng.standard_normal((classes, 4))[labels]
    dataset = data.Dataset("many.csv", features, np.array(names)[labels], list("abcd"))
    return report.html(training.run(dataset, training.Settings()), COMMAND)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext")
def test_a_table_that_goes_on_over_the_page_has_its_heads_again(visit, tmp_path):
    page = visit(many([f"class {k}" for k in range(40)]))
    (tmp_path / "report.pdf").write_bytes(page.pdf(prefer_css_page_size=True))
    command = ["pdftotext", "-layout", str(tmp_path / "report.pdf"), "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with_rows = [
        part for part in text.split("\f") if re.search(r"^ ?class \d+ +8 +[\d.]+%", part, re.MULTILINE)
    ]
    assert len(with_rows) > 1
    for part in with_rows:
        assert re.search(r"recall +precision +pull +excess", part)


def test_names_that_begin_and_end_alike_are_told_apart(visit):
    fruit = ["apples", "pears", "bananas", "kiwis", "plums"]
    page = visit(many([f"a complaint about the delivery of {f} to another town" for f in fruit]))
    for name in ("Confusion", "Gradient of"):
        words = page.locator(f"svg[aria-label^='{name}'] text").all_text_contents()
        names = [word for word in words if word.startswith("…")]
        assert len(names) == 10  # down and across
        assert len(set(names)) == 5
        assert all(any(f in word for word in names) for f in fruit)
    for card in range(3):
        bars = page.locator(".cards svg").nth(card).locator("text.middle:not(.small)").all_text_contents()
        assert len(bars) > 2
        assert len(set(bars)) == len(bars)


@pytest.mark.parametrize("room", [30, 60, 150])
def test_names_that_nothing_shorter_tells_apart_get_their_places(room):
    names = ["x" * 20 + "a" * k + "b" + "a" * (20 - k) + "y" * 20 for k in range(12)]
    short = svg.distinct_names(names, room, 12.5)
    assert len(set(short)) == 12
    assert max(svg.width_of(name, 12.5) for name in short) <= room
    assert svg.distinct_names(["ant", "bee"], room, 12.5) == ["ant", "bee"]


def test_the_keyboard_reaches_the_links_and_sorts_the_table(pages, visit):
    page = visit(pages["digits"], viewport={"width": 1280, "height": 800})
    interactive = page.locator("a, button, summary")
    reached = []
    for _ in range(interactive.count()):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert reached == interactive.all_text_contents()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def column(place):
        cells = page.locator(f"#class-table tbody tr > :nth-child({place + 1})").all_text_contents()
        return [float(cell.strip().rstrip("%").replace("−", "-")) for cell in cells]

    for name, place, up in (("excess", 7, False), ("excess", 7, True), ("share of the loss", 2, False)):
        page.get_by_role("button", name=name).focus()
        page.keyboard.press("Enter")
        values = column(place)
        assert values == sorted(values, reverse=not up)
        assert page.get_by_role("columnheader", name=name).get_attribute("aria-sort") == (
            "ascending" if up else "descending"
        )
    page.get_by_role("button", name="class", exact=True).press("Enter")
    assert column(0) == list(range(10))
    page.get_by_role("link", name="The data").press("Enter")
    assert page.evaluate("location.hash") == "#data"


def test_it_reads_without_a_script(pages, visit):
    page = visit(pages["digits"], java_script_enabled=False)
    assert page.locator("#class-table thead th").all_text_contents()[:3] == [
        "class",
        "rows",
        "share of the loss",
    ]
    assert page.locator("button").count() == 0
    assert page.locator("svg").first.is_visible()


@EACH
def test_headings_pictures_and_tables_have_their_names(pages, visit, name):
    page = visit(pages[name])
    levels = [
        int(tag[1]) for tag in page.locator("h1, h2, h3").evaluate_all("all => all.map(h => h.tagName)")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("table").count() == page.locator("table > caption").count()
    assert page.locator("svg:not([role=img][aria-label])").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("html").get_attribute("lang") == "en"
    picture = page.get_by_role("img", name="On a scale from guessing by class frequencies")
    assert picture.count() == 1
