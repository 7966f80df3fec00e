"""The pictures and the short table of the documentation are those of the committed results."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import charts

ROOT = Path(__file__).parents[2]
PICTURES = charts.pictures()


@pytest.mark.parametrize("name", PICTURES)
def test_a_committed_picture_is_that_of_the_results(name: str) -> None:
    assert (ROOT / "docs/images" / name).read_text("utf-8") == PICTURES[name], "run python -m bench.charts"


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (table,) = re.findall(r"<!-- bench:ratios -->\n(.*?)\n<!-- /bench:ratios -->", text, re.DOTALL)
    assert table == charts.table(charts.overview())


def test_bars_are_as_long_as_their_values() -> None:
    bars = [charts.Bar("xent", 1.0), charts.Bar("another", 2.5), charts.Bar("stopped", 10.0, more=True)]
    svg = ElementTree.fromstring(charts.picture("title", [charts.Group("case", bars)]))
    found = [float(each.get("width", 0)) for each in svg.iter() if each.tag.endswith("rect")]
    assert found == pytest.approx([bar.value * found[0] for bar in bars], abs=0.05)
    words = [each.text for each in svg.iter() if each.tag.endswith("text")]
    assert words[2:] == ["xent", "1.0 ×", "another", "2.5 ×", "stopped", "> 10.0 ×"]


@pytest.mark.parametrize(
    ("name", "shape"), [("2048x512->128000 float32", "2,048 × 512 → 128,000"), ("32x10-float16", "32 × 10")]
)
def test_shapes_are_readable(name: str, shape: str) -> None:
    assert charts.shape(name) == shape
