"""The coefficients of a run for people: the largest of each class, sentences, and pictures of pixels."""

from __future__ import annotations

import numpy as np

from xent.files.phrases import printable
from xent.html import thumbnails
from xent.report import coefficients, plots
from xent.report.training import Run

MOST_MULTIPLES = 12  # classes with a picture of their reliability and a table of their coefficients
MOST_EFFECTS = {1: 16, 2: 8}  # number of tables of coefficients → rows of each
FEW_EFFECTS = 5  # rows of each of more tables
MOST_PIXELS = 1 << 12  # of a picture of coefficients
MOST_SENTENCES = 3  # sentences about coefficients, and features in each


def effects(run: Run, order: list[int]) -> list[tuple[str, list[coefficients.Effect]]]:
    """[(class, its largest coefficients)] of the second of two classes, or the first classes in ``order``."""
    values, shown = _with_coefficients(run, order)
    most = MOST_EFFECTS.get(len(shown), FEW_EFFECTS)
    names = [printable(str(name)) for name in values.classes]
    return [(names[k], coefficients.largest(values, k, most)) for k in shown]


def coefficient_images(run: Run, order: list[int]) -> list[tuple[str, str]]:
    """[(class, picture of its coefficients)] of the classes of `effects`, if the columns are pixels."""
    shape = thumbnails.image_shape(run.model.preprocessor.feature_names)
    if shape is None or shape[0] * shape[1] > MOST_PIXELS:
        return []
    values, shown = _with_coefficients(run, order)
    names, largest = [printable(str(name)) for name in values.classes], float(np.abs(values.scaled).max())
    images = [plots.coefficient_image(values.scaled[k].reshape(shape), largest, names[k]) for k in shown]
    return [(names[k], image) for k, image in zip(shown, images, strict=True)]


def _with_coefficients(run: Run, order: list[int]) -> tuple[coefficients.Coefficients, list[int]]:
    """(the coefficients, the rows of them to show)."""
    values = coefficients.coefficients(run.model)
    return values, [0] if values.against is not None else sorted(order[:MOST_MULTIPLES])


def largest_effects(run: Run) -> list[str]:
    """The largest coefficients of some classes, a sentence for each."""
    order = sorted(range(len(run.classes)), key=lambda k: -run.class_rows[k])
    sentences = []
    for name, of_class in effects(run, order)[:MOST_SENTENCES]:
        parts = [f"{e.feature} {signed(e.scaled, '+.2f')}" for e in of_class[:MOST_SENTENCES]]
        sentences.append(f"on {name}: {', '.join(parts) or 'none'}")
    return sentences


def signed(value: float, form: str = "+.3g") -> str:
    """The value with its sign, a real minus sign."""
    return f"{value:{form}}".replace("-", "−")
