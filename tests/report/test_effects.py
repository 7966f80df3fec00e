"""Pictures of the coefficients of pixels: their colours are the signs, for data whose columns are pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from xent.files import dataset
from xent.report import effects, page, plots, training
from xent.report.coefficients import coefficients

SIGNS = np.array([[2.0, -1.0, 0.0], [0.0, 0.01, 1.0]])


@pytest.fixture(scope="module")
def digits():
    return training.run(dataset.load("digits"), training.Settings())


def cells(svg: str) -> dict[tuple[str, float], int]:
    """{(colour, opacity): number of cells}."""
    paths = re.findall(r'<path d="([^"]*)" class="([ab])" fill-opacity="([^"]*)"', svg)
    return {(css, float(opacity)): outline.count("M") for outline, css, opacity in paths}


def test_the_colour_is_the_sign_and_the_opacity_the_size():
    svg = plots.coefficient_image(SIGNS, 4.0, "<x>")
    assert cells(svg) == {("a", 0.5): 1, ("a", 0.25): 1, ("b", 0.25): 1}
    assert "for &lt;x&gt;: largest +2.00 in row 0, column 0, least -1.00 in row 0, column 1" in svg
    assert cells(plots.coefficient_image(0 * SIGNS, 0.0, "x")) == {}


def test_each_class_has_a_picture_on_one_scale(digits):
    values = coefficients(digits.model)
    images = effects.coefficient_images(digits, list(range(10)))
    assert [name for name, _ in images] == [str(k) for k in range(10)]
    largest = np.abs(values.scaled).max()
    for (_, svg), scaled in zip(images, values.scaled, strict=True):
        level = np.round(plots.LEVELS * scaled / largest)
        found = cells(svg)
        for css, count in (("a", (level > 0).sum()), ("b", (level < 0).sum())):
            assert sum(n for (each, _), n in found.items() if each == css) == count
    assert "A blue pixel speaks for the class" in page.html(digits, "xent fit")


@pytest.mark.parametrize("most", [63, 64])
def test_large_pictures_are_left_out(most, digits, monkeypatch):
    monkeypatch.setattr(effects, "MOST_PIXELS", most)
    assert len(effects.coefficient_images(digits, [3, 4])) == (2 if most == 64 else 0)


def test_other_columns_have_none():
    run = training.run(dataset.load("iris"), training.Settings())
    assert effects.coefficient_images(run, [0, 1, 2]) == []
    assert "A blue pixel" not in page.html(run, "xent fit")
