"""The prose is true: its Python gives what it shows; its excerpts and its tables are the program's."""

from __future__ import annotations

import doctest
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from xent import check
from xent.command.cli import main
from xent.core.spec import OPTIONS_DOC, LossSpec

ROOT = Path(__file__).parents[1]
NEEDS = {  # pages with Python, and the libraries that it needs
    "README.md": ("sklearn", "torch", "jax"),
    "docs/dask.md": ("sklearn", "dask"),
    "docs/differences.md": ("sklearn", "torch", "jax", "optax"),
    "docs/heads.md": ("torch",),
    "docs/how_it_works.md": (),
    "docs/index.md": ("sklearn",),
    "docs/jax.md": ("jax",),
    "docs/numpy.md": (),
    "docs/pytorch.md": ("torch",),
    "docs/scikit-learn.md": ("sklearn",),
}
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
]
TABLES = {
    "docs/benchmarks.md": ("core", "fits", "linear"),
    "docs/heads.md": ("log_probs",),
    "docs/jax.md": ("jax",),
    "docs/scale.md": ("outofcore",),
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_page_with_python_is_run() -> None:
    assert {page for page in PAGES if ">>> " in (ROOT / page).read_text("utf-8")} == set(NEEDS)
    assert {page for page in PAGES if blocks(page, "python")} == set(NEEDS)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_the_version_to_cite_is_that_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"version = {{{version}}}" in (ROOT / "docs/cite.md").read_text("utf-8")
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("page", NEEDS)
def test_python_blocks(page: str) -> None:
    """In order, sharing their names; a block without an example would go unchecked."""
    for library in NEEDS[page]:
        pytest.importorskip(library)
    names: dict[str, object] = {}
    examples = blocks(page, "python")
    assert examples
    for number, text in enumerate(examples):
        test = doctest.DocTestParser().get_doctest(text, names, f"{page}, block {number}", page, 0)
        assert test.examples, test.name
        with np.printoptions(legacy=False):
            failed, _ = doctest.DocTestRunner().run(test, clear_globs=False)
        assert not failed, test.name
        names = test.globs


def test_explain_excerpt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    monkeypatch.setenv("COLUMNS", "80")
    (excerpt,) = (text for text in blocks("docs/numpy.md", "text") if text.startswith("$ xent explain"))
    command, *shown = excerpt.splitlines()
    assert command == '$ xent explain "2 3 4" --label 1'
    assert main(["explain", "2 3 4", "--label", "1"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.strip("\n").splitlines()]
    while not printed[0]:
        printed.pop(0)
    assert shown == printed[: len(shown)]


def test_check_excerpt() -> None:
    """Its numbers differ by rounding from machine to machine; its variants and their count do not."""
    (excerpt,) = (text for text in blocks("docs/numpy.md", "text") if text.startswith("$ xent check"))
    names = re.findall(r"^ (\w.*?) +(?:0|\de-\d\d) ", excerpt, re.MULTILINE)
    *variants, last = names
    assert last == "tolerance"
    everything = list(check.VARIANTS)
    above = excerpt.partition(" ...\n")[0]
    split = sum(f" {name} " in above for name in variants)
    assert variants == everything[:split] + everything[split - len(variants) :]
    assert excerpt.endswith(f"\n{len(everything)} variants agree.\n")


def test_options_table() -> None:
    """Every option is there, in order, with its default."""
    rows = re.findall(
        r"^\| `(\w+)` \| `(.*?)` \|", (ROOT / "docs/options.md").read_text("utf-8"), re.MULTILINE
    )
    defaults = {name: getattr(LossSpec(), name, None) for name in OPTIONS_DOC}
    shown = {name: value.strip('"') for name, value in rows if name in defaults}
    assert list(shown) == list(defaults)
    assert shown == {name: str(value) for name, value in defaults.items()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, names in TABLES.items() for name in names])
def test_table_of_a_benchmark(page: str, name: str) -> None:
    """The numbers are the committed benchmark's, to the letter."""
    text = (ROOT / page).read_text("utf-8")
    (table,) = re.findall(rf"<!-- bench:{name} -->\n(.*?)\n<!-- /bench:{name} -->", text, re.DOTALL)
    assert table.startswith("| ")
    assert table in (ROOT / f"bench/results/{name}.md").read_text("utf-8")
