"""The explorer: one HTML page that shows a row's loss and gradient while its logits and options move."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from xent.core.spec import LossSpec, Options
from xent.engine.batch_loss import Problem
from xent.html import render

CLASSES = (2, 10)


class Control(NamedTuple):
    """A number field from ``low`` to ``high`` with a slider for the part ``slider`` of this range."""

    option: str
    symbol: str
    name: str
    low: float
    high: float
    slider: tuple[float, float]
    step: float
    hint: str = ""


LOGITS = Control("logits", "z", "Logits", -10_000, 10_000, (-10, 10), 0.1)
WEIGHTS = Control("class_weight", "c", "Class weights", 0, 100, (0, 5), 0.1)
SMOOTHING_HINT = "Probability moved from the label to the classes."
FOCAL_HINT = "Above 0, rows that are nearly right count less."
TEMPERATURE_HINT = "Above 1 evens p out, below 1 sharpens it."
CONTROLS = (
    Control("label_smoothing", "ε", "Label smoothing", 0, 1, (0, 1), 0.01, SMOOTHING_HINT),
    Control("focal_gamma", "γ", "Focal loss", 0, 10, (0, 5), 0.1, FOCAL_HINT),
    Control("temperature", "T", "Temperature", 0.01, 100, (0.1, 5), 0.1, TEMPERATURE_HINT),
    Control("softcap", "C", "Softcap", 0.1, 10_000, (1, 30), 0.5, "Bends the logits: none goes beyond ±C."),
    Control("z_loss", "λ", "z-loss", 0, 10, (0, 1), 0.01, "Adds λ l², to hold the log-sum-exp near 0."),
)


def html(logits: Any, label: int, options: Options) -> str:
    """The page that starts with ``logits (K,)``, ``label`` and ``options``; it needs no other file.

    ``options`` are those of `xent.cross_entropy` that apply to one row. The same row gives the same bytes.
    Raises the errors of `xent.cross_entropy`, and ValueError for fewer than 2 or more than 10 classes and for
    numbers outside the ranges of the fields.

    >>> from xent.explain import explorer
    >>> page = explorer.html([2.0, 3.0, 4.0], 1, {"label_smoothing": 0.1})
    >>> page.startswith("<!doctype html>"), "://" in page
    (True, False)
    """
    from markupsafe import Markup

    z = np.asarray(logits, np.float64)
    Problem.from_arguments(z[None], np.array([label]), "sum", None, True, options)
    spec, class_weight, _ = LossSpec.from_options(options)
    num_classes = len(z)
    if not CLASSES[0] <= num_classes <= CLASSES[1]:
        raise ValueError(f"`--html` shows {CLASSES[0]} to {CLASSES[1]} logits; got {num_classes}")
    state = {control.option: getattr(spec, control.option) for control in CONTROLS} | {
        "logits": z.tolist(),
        "label": int(label),
        "smoothing_over": spec.smoothing_over,
        "class_weight": (
            np.ones_like(z) if class_weight is None else np.asarray(class_weight, float)
        ).tolist(),
    }
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name not in (*state, "ignore_index") and value != field.default:
            raise ValueError(f"`--html` has no control for {field.name}; got {field.name}={value}")
    for control in (LOGITS, WEIGHTS, *CONTROLS):
        _require_shown(control, state[control.option])
    limits = {c.option: (c.low, c.high) for c in (LOGITS, WEIGHTS, *CONTROLS)} | {"classes": CLASSES}

    return render.render(
        "explorer.html.j2",
        controls=CONTROLS,
        logits=LOGITS,
        weights=WEIGHTS,
        initial=Markup(json.dumps({"state": state, "limits": limits})),
        version=version("xent"),
    )


def _require_shown(control: Control, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not control.low <= number <= control.high:
            raise ValueError(
                f"`--html` shows {control.option} from {control.low:g} to {control.high:g}; got {number:g}"
            )
