"""The explorer in a real browser: its controls by keyboard, its link, its drawing; and how it is written."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import xent
from tests.axe import violations
from tests.explain.explorer_rows import OPTIONS, named, row, state
from xent.command.cli import main
from xent.explain import explorer


def current(page):
    return page.evaluate("xent.state()")


def loss_of(page):
    return page.evaluate("xent.compute(xent.state()).loss")


def xent_loss(shown):
    logits, label = [shown["logits"]], [shown["label"]]
    options = {name: value for name, value in shown.items() if name not in ("logits", "label")}
    return xent.cross_entropy_with_grad(logits, label, reduction="sum", **options)


# label of the slider, how to reach its value in the state, and one step of it
SLIDERS = [
    *((f"logit of class {k}", ("logits", k), 0.1) for k in range(3)),
    *((f"weight of class {k}", ("class_weight", k), 0.1) for k in range(3)),
    ("Label smoothing ε", ("label_smoothing",), 0.01),
    ("Focal loss γ", ("focal_gamma",), 0.1),
    ("Temperature T", ("temperature",), 0.1),
    ("z-loss λ", ("z_loss",), 0.01),
    ("Softcap C", ("softcap",), 0.5),
]


def value_at(shown, place):
    return shown[place[0]] if len(place) == 1 else shown[place[0]][place[1]]


@pytest.mark.parametrize(("name", "place", "step"), SLIDERS, ids=[s[0] for s in SLIDERS])
def test_sliders_move_by_the_keyboard_and_everything_follows(visit, name, place, step):
    page = visit(row())
    page.get_by_text("Class weights").click()
    if place == ("softcap",):
        page.get_by_role("checkbox", name="on").press("Space")
    before = value_at(current(page), place)
    slider = page.get_by_role("slider", name=name, exact=True)
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    shown = current(page)
    after = value_at(shown, place)
    assert after == pytest.approx(before + 2 * step, rel=1e-12)
    assert page.evaluate("document.activeElement.type") == "range"  # the focus stays where it was
    number = page.get_by_role("spinbutton", name=name, exact=True)
    assert float(number.input_value()) == after
    # The field does the same, and takes what lies between the slider's steps.
    loss, gradient = xent_loss(shown)
    assert loss_of(page) == pytest.approx(float(loss), rel=1e-12)
    last = page.locator("#loss-lines tr").last.locator("td").last.inner_text()
    assert float(last.strip("= ").replace("−", "-")) == pytest.approx(float(loss), abs=1e-6)
    cells = page.locator("#bars td.g").all_inner_texts()
    found = [float(text.replace("−", "-")) for text in cells]
    np.testing.assert_allclose(found, gradient[0], atol=6e-5)
    number.fill("0.8725")
    assert value_at(current(page), place) == 0.8725


def test_the_true_class_and_the_smoothing_are_radios(visit):
    page = visit(row(options={"label_smoothing": 0.1}))
    page.get_by_role("radio", name="class 1 is true").press("ArrowDown")
    assert current(page)["label"] == 2
    page.get_by_role("radio", name="on all").press("ArrowRight")
    assert current(page)["smoothing_over"] == "others"
    assert loss_of(page) == pytest.approx(float(xent_loss(current(page))[0]), rel=1e-12)


def test_every_control_is_reached_by_tab(visit):
    page = visit(row())
    page.get_by_text("Class weights").click()
    page.locator("body").press("Tab")
    for _ in range(60):
        page.evaluate("document.activeElement.dataset.reached = true")
        page.keyboard.press("Tab")
    usable = "input:enabled:visible:not([type=radio]), button:enabled, a, summary"
    assert page.locator(usable).count() > 25
    assert page.evaluate(
        "s => [...document.querySelectorAll(s)].every(e => e.dataset.reached)", usable.replace(":visible", "")
    )


def test_an_unfinished_number_or_one_out_of_range_changes_nothing(visit):
    page = visit(row())
    number = page.get_by_role("spinbutton", name="Temperature T")
    for text in ("", "0", "-3", "1e9"):
        number.fill(text)
        assert number.get_attribute("aria-invalid") == "true"
        assert current(page)["temperature"] == 1
    number.blur()
    assert number.get_attribute("aria-invalid") == "false"
    assert number.input_value() == "1"


def test_options_that_do_not_combine_are_off_and_say_why(visit):
    page = visit(row(options={"focal_gamma": 2.0}))
    smoothing = page.locator("[data-option=label_smoothing]")
    assert smoothing.locator("input:disabled").count() == 4
    assert "Off while γ > 0: the focal loss is defined for labels" in smoothing.inner_text()
    page.get_by_role("spinbutton", name="Focal loss γ").fill("0")
    assert smoothing.locator("input:disabled").count() == 0
    assert "Off" not in smoothing.inner_text()
    page.get_by_role("spinbutton", name="Label smoothing ε").fill("0.1")
    focal = page.locator("[data-option=focal_gamma]")
    assert focal.locator("input:disabled").count() == 2
    assert "Off while ε > 0" in focal.inner_text()


def test_classes_come_and_go_between_two_and_ten(visit):
    page = visit(row(logits=(2.0, 3.0, 4.0, 5.0), label=1, options={"class_weight": [1.0, 2.0, 3.0, 4.0]}))
    page.get_by_role("button", name="remove class 0").press("Enter")
    shown = current(page)
    assert (shown["logits"], shown["class_weight"], shown["label"]) == ([3, 4, 5], [2, 3, 4], 0)
    assert page.evaluate("document.activeElement.ariaLabel") == "remove class 0"
    page.get_by_role("button", name="remove class 1").press("Enter")
    assert (current(page)["logits"], current(page)["label"]) == ([3, 5], 0)
    assert page.locator("button.remove:enabled").count() == 0
    add = page.get_by_role("button", name="Add a class")
    for num_classes in range(3, 11):
        add.press("Enter")
        assert len(current(page)["logits"]) == num_classes == page.locator("#bars tbody tr").count()
    assert add.is_disabled()
    assert loss_of(page) == pytest.approx(float(xent_loss(current(page))[0]), rel=1e-12)
    page.get_by_role("radio", name="class 9 is true").check()
    page.get_by_role("button", name="remove class 9").click()
    assert current(page)["label"] == 8


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_link_reproduces_the_state_and_reset_the_file(visit, options):
    given = named(options, 4)
    page = visit(row(logits=(0.1, -2.0, 1e3, 1e-7), label=3, options=given))
    expected = state([0.1, -2.0, 1e3, 1e-7], 3, given)
    assert current(page) == expected
    link = page.get_by_role("link", name="Link to this state")
    page.get_by_role("slider", name="logit of class 0").press("ArrowLeft")
    moved = current(page)
    link.click()
    page.get_by_text("The address bar has this state.").wait_for()
    page.reload()
    assert current(page) == moved != expected
    fragment = link.get_attribute("href")
    visit(row(), link=fragment)
    assert current(page) == moved
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("location.hash === ''")
    assert current(page) == state([2.0, 3.0, 4.0], 1, {})


BAD_LINKS = {
    "#logits=2,x,4&label=1": "logits must be from -10000 to 10000; got “x”",
    "#logits=2,1e9&label=1": "got “1e9”",
    "#logits=2&label=0": "number of classes must be from 2 to 10; got “1”",
    "#label=1": "logits must be",
    "#logits=1,2,3&label=3": "label must be from 0 to 2; got “3”",
    "#logits=1,2,3&label=0.5": "label must be a whole number",
    "#logits=1,2&label=0&temperature=0": "temperature must be from 0.01 to 100; got “0”",
    "#logits=1,2&label=0&smoothing_over=some": "smoothing_over must be all or others",
    "#logits=1,2&label=0&class_weight=1": "class_weight must have one number a class",
    "#logits=1,2&label=0&focal_gamma=1&label_smoothing=0.1": "do not combine",
    "#logits=1,2&label=0&margin=1": "there is no option margin",
}


@pytest.mark.parametrize(("link", "words"), BAD_LINKS.items())
def test_a_link_that_is_wrong_says_so_and_shows_the_file(visit, link, words):
    page = visit(row(), link=link)
    assert words in page.get_by_role("alert").inner_text()
    assert current(page) == state([2.0, 3.0, 4.0], 1, {})


def width(locator):
    return locator.bounding_box()["width"]


def test_bars_curve_and_split_draw_the_numbers(visit):
    page = visit(row(options={"label_smoothing": 0.2, "class_weight": [1.0, 2.0, 1.0]}))
    r = page.evaluate("xent.compute(xent.state())")
    for column, values, most in (("p", r["p"], 1), ("t", r["t"], 2), ("g", r["gradient"], 4)):
        for k, value in enumerate(values):
            cell = page.locator(f"#bars tbody tr:nth-child({k + 1}) td.{column}")
            share = width(cell.locator(".bar")) / width(cell.locator(".track"))
            assert share == pytest.approx(abs(value) / most, abs=0.01)
    own, excess = page.locator("#split .own"), page.locator("#split .excess")
    assert width(own) / width(excess) == pytest.approx(r["entropy"] / r["divergence"], rel=0.02)
    curve = page.locator("#curve")
    assert curve.get_attribute("aria-label").endswith(f"{r['loss']:.4g} nats at {r['p'][1]:.4g}")
    point = curve.locator(".point").bounding_box()
    path = curve.locator(".curve").bounding_box()
    assert min(path["width"], path["height"]) > 100
    assert path["x"] < point["x"] < path["x"] + path["width"]
    # The point is on the curve: some vertex of the path is no further than the path's steps.
    x, y = (float(curve.locator(".point").get_attribute(name)) for name in ("cx", "cy"))
    pairs = re.findall(r"([\d.]+) ([\d.]+)", curve.locator(".curve").get_attribute("d"))
    assert min(math.hypot(float(a) - x, float(b) - y) for a, b in pairs) < 8


def luminance(colour):
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(visit, scheme):
    page = visit(
        row(options={"focal_gamma": 1.0}), color_scheme=scheme, viewport={"width": 1280, "height": 900}
    )
    style = "(e, name) => getComputedStyle(e)[name]"
    paper = luminance(page.locator("body").evaluate(style, "backgroundColor"))
    assert (paper < 0.05) == (scheme == "dark")
    for place in ("h1", ".hint", ".hint.why", "figcaption p", "a", "#bars tr.true th", "#curve text"):
        name = "fill" if "text" in place else "color"
        ink = luminance(page.locator(place).first.evaluate(style, name))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, place


@pytest.mark.parametrize(
    "options",
    [
        *OPTIONS,
        {"class_weight": "none"},
        {"class_weight": "none", "z_loss": 10.0, "focal_gamma": 10.0},
        {"temperature": 0.01, "z_loss": 10.0, "class_weight": "gap"},
        {"softcap": 0.1, "temperature": 100.0, "label_smoothing": 1.0},
    ],
    ids=str,
)
def test_nothing_shown_is_not_a_number(visit, options):
    for logits in ([2.0, 3.0, 4.0], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0]):
        page = visit(row(logits, 0, named(options, 3)))
        assert not re.findall(
            r"NaN|Infinity|undefined|null|∞", page.locator("body").inner_html().split("<script")[0]
        )


LARGE = "#logits=1,3,2,4,-9999,1e4,6,7,-9.25,1e-5&label=4&z_loss=0.1&class_weight=1,2,3,4,5,6,7,8,9,10"


@pytest.mark.parametrize("link", ["", LARGE, "#logits=1,2&label=0&softcap=2&focal_gamma=2&temperature=3"])
def test_nothing_is_wider_than_the_window(visit, link):
    page = visit(row(), link=link, viewport={"width": 390, "height": 844})
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    for wide in (320, 390, 768, 1024, 1280):
        page.set_viewport_size({"width": wide, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= wide
        assert width(page.locator("#curve")) > 200


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "focal_gamma": 1.0}], ids=str)
@pytest.mark.parametrize("way", [{"color_scheme": "dark"}, {"forced_colors": "active"}], ids=str)
def test_no_rule_of_accessibility_is_broken_on_a_phone(visit, options, way):
    page = visit(row(options=options), viewport={"width": 320, "height": 700}, **way)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert violations(page) == []
    assert page.locator("table:not([aria-labelledby])").count() == 0
    heads = page.locator("#bars thead th:visible").evaluate_all(
        "all => all.map(head => [head.scrollWidth, head.clientWidth])"
    )
    assert all(needed <= given for needed, given in heads)


def test_it_prints_without_its_controls(visit):
    page = visit(row(), color_scheme="dark")
    pdf = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2  # the footer has none of its own
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.locator("#bars").is_visible()
    paper = page.locator("body").evaluate("e => getComputedStyle(e).getPropertyValue('--paper')")
    assert luminance(f"{int(paper[1:3], 16)} {int(paper[3:5], 16)} {int(paper[5:7], 16)}") > 0.9


def test_the_page_needs_nothing_but_itself():
    html = explorer.html([2.0, 3.0, 4.0], 1, {"softcap": 30.0})
    assert html == explorer.html([2.0, 3.0, 4.0], 1, {"softcap": 30.0})
    assert not re.findall(r"https?:|\bsrc=|@import|url\((?!#)", html)
    assert re.findall(r"href=\"([^\"]*)\"", html) == ["#"]
    assert "default-src 'none'" in html
    assert len(html.encode()) < 60_000


@pytest.mark.parametrize(
    ("logits", "options", "words"),
    [
        ([1.0], {}, "`--html` shows 2 to 10 logits; got 1"),
        ([0.0] * 11, {}, "got 11"),
        ([0.0, np.inf], {}, "logits from -10000 to 10000; got inf"),
        ([0.0, 1e5], {}, "got 100000"),
        ([0.0, 1.0], {"temperature": 1e3}, "temperature from 0.01 to 100; got 1000"),
        ([0.0, 1.0], {"class_weight": [1.0, 200.0]}, "class_weight from 0 to 100; got 200"),
        ([0.0, 1.0], {"class_weight": [1.0]}, "class_weight"),
    ],
)
def test_a_row_that_has_no_room_is_refused(logits, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        explorer.html(logits, 0, options)


def test_the_command_writes_the_page_and_says_where(visit, tmp_path, capsys):
    file = tmp_path / "row.html"
    words = ["explain", "-1 2.5 3", "--label", "1", "--label-smoothing", "0.1", "--smoothing-over", "others"]
    assert main([*words, "--class-weight", "1 2 1", "--html", str(file)]) == 0
    out = capsys.readouterr().out
    assert "loss, nats" in out
    assert re.sub(r"\s", "", out).endswith(f"page{file}")
    options = {"label_smoothing": 0.1, "smoothing_over": "others", "class_weight": [1.0, 2.0, 1.0]}
    assert file.read_text("utf-8") == explorer.html([-1.0, 2.5, 3.0], 1, options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "no/row.html"], "no/row.html: cannot be written: no directory no"),
        (["--html", "."], "cannot be written: is a directory"),
        (["--html", "row.html", "--temperature", "1000"], "`--html` shows temperature from 0.01 to 100"),
        (["--html", "row.html", "--focal-gamma", "1", "--label-smoothing", "0.1"], "cannot be combined"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "1 2 3", "--label", "1", *words]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert said in captured.err
    assert list(tmp_path.iterdir()) == []
