"""The site builds without a warning, loads nothing from elsewhere, and has every public object."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.axe import violations

ROOT = Path(__file__).parents[1]
MODULES = {
    "xent": (),
    "xent.torch": ("torch",),
    "xent.torch.distributed": ("torch",),
    "xent.jax": ("jax",),
    "xent.jax.optax": ("jax",),
    "xent.information": (),
}
WIDE = (
    *("docs/benchmarks.html", "docs/maths.html", "docs/differences.html", "docs/command.html"),
    *("docs/api/generated/xent.torch.linear_cross_entropy.html", "genindex.html", "docs/index.html"),
)


def public(module: str) -> dict[str, Any]:
    """Public functions and classes by name; modules, versions and optax's helpers are not objects here."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or [
        name
        for name, value in vars(loaded).items()
        if getattr(value, "__module__", "") == module and not name.startswith("_")
    ]
    return {name: value for name in names if callable(value := getattr(loaded, name))}


def listed() -> dict[str, set[str]]:
    """Names in the tables of docs/api, by module."""
    names: dict[str, set[str]] = {}
    for page in (ROOT / "docs/api").glob("*.md"):
        for module, block in re.findall(
            r"^\.\. currentmodule:: (\S+)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            names.setdefault(module, set()).update(re.findall(r"^   (\w+)$", block, re.MULTILINE))
    return names


@pytest.mark.parametrize("module", MODULES)
def test_every_public_object_is_listed(module: str) -> None:
    for library in MODULES[module]:
        pytest.importorskip(library)
    elsewhere = {value for name, value in public("xent").items()} if module != "xent" else set()
    expected = {name for name, value in public(module).items() if value not in elsewhere}
    assert listed()[module] == expected


@pytest.mark.parametrize("module", MODULES)
def test_every_public_object_has_an_example(module: str) -> None:
    for library in MODULES[module]:
        pytest.importorskip(library)
    missing = [name for name, value in public(module).items() if ">>> " not in (inspect.getdoc(value) or "")]
    assert missing == []


class Page(HTMLParser):
    """What a page links to and loads, the targets within it, and what a screen reader would miss."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.unnamed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        self.ids.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("img", "script", "iframe", "source") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loaded.append(values.get("href", ""))
        if (tag == "img" and not values.get("alt")) or (tag == "iframe" and not values.get("title")):
            self.unnamed.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as by `make docs`."""
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs/site"]
    done = subprocess.run([*build, ".", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    loaded = {address for page in pages.values() for address in page.loaded}
    assert [address for address in loaded if urlsplit(address).scheme not in ("", "data")] == []


def test_every_link_leads_to_a_place(pages: dict[Path, Page]) -> None:
    lost = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            ids = pages[target].ids if target in pages else set()
            if not target.exists() or (ids and parts.fragment and unquote(parts.fragment) not in ids):
                lost.append((path.name, link))
    assert lost == []


def test_pictures_and_embedded_pages_have_a_name(pages: dict[Path, Page]) -> None:
    assert {path.name: page.unnamed for path, page in pages.items() if page.unnamed} == {}


def test_every_numbered_equation_is_shown(site: Path, pages: dict[Path, Page]) -> None:
    numbers = re.findall(r"\\tag\{(\d+)\}", (ROOT / "docs/maths.md").read_text("utf-8"))
    assert {f"equation-{number}" for number in numbers} <= pages[site / "docs/maths.html"].ids
    assert len(set(numbers)) == len(numbers) > 30


def test_the_explorer_and_the_report_are_there(site: Path) -> None:
    assert "Cross-entropy of one row" in (site / "docs/explorer.html").read_text("utf-8")
    assert "xent fit digits --report report.html" in (site / "docs/report.html").read_text("utf-8")


# What sticks out of the window and is in no box that scrolls.
CUT = """() => [...document.querySelectorAll("article *")].filter(node => {
    if (node.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let box = node.parentElement; box.tagName != "ARTICLE"; box = box.parentElement)
        if (/auto|scroll/.test(getComputedStyle(box).overflowX)) return false;
    return true;
}).map(node => node.textContent.slice(0, 60))"""


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_the_explorer_follows_the_scheme(
    site: Path, browser: Any, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in WIDE:
        page.goto((site / name).as_uri())
        assert page.evaluate(CUT) == [], name
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe").locator("body")
    paper = frame.evaluate("body => getComputedStyle(body).backgroundColor")
    assert paper == {"light": "rgb(252, 251, 249)", "dark": "rgb(22, 23, 25)"}[scheme]
    inherited = "getComputedStyle(document.querySelector('img')).colorScheme"
    assert page.evaluate(inherited) == scheme
    page.emulate_media(media="print", color_scheme=scheme)
    assert not page.locator(".skip-to-content").is_visible()  # it would lie over each page's text
    assert page.evaluate(inherited) == "light"
    page.close()


RULED = ("index", "maths", "dask", "api/generated/xent.cross_entropy")


@pytest.mark.parametrize("width", [320, 1280])
def test_no_rule_of_accessibility_is_broken(site: Path, browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    for name in RULED:
        page.goto((site / f"docs/{name}.html").as_uri())
        assert violations(page) == [], name
    page.close()
