"""What the explorer's tests share: options, and a row as the page has it."""

from __future__ import annotations

import numpy as np

from xent.explain import explorer

OPTIONS = [
    {},
    {"smoothing_over": "others"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "smoothing_over": "others"},
    {"label_smoothing": 1.0},
    {"label_smoothing": 1.0, "smoothing_over": "others"},
    {"focal_gamma": 2.0},
    {"focal_gamma": 0.3},
    {"temperature": 3.0},
    {"temperature": 0.07},
    {"softcap": 5.0},
    {"z_loss": 0.01},
    {"class_weight": "ramp"},
    {"class_weight": "gap"},
    {"class_weight": "ramp", "label_smoothing": 0.2},
    {"class_weight": "gap", "label_smoothing": 0.3, "smoothing_over": "others", "temperature": 2.0},
    {"class_weight": "ramp", "focal_gamma": 1.5, "z_loss": 0.02, "softcap": 20.0, "temperature": 0.5},
    {"label_smoothing": 0.05, "z_loss": 0.1, "softcap": 30.0},
]
DEFAULTS = {
    "label_smoothing": 0.0,
    "smoothing_over": "all",
    "focal_gamma": 0.0,
    "temperature": 1.0,
    "softcap": None,
    "z_loss": 0.0,
}


def named(options, num_classes):
    """The options with the numbers that their class weights stand for."""
    ramp = np.linspace(0.25, 3.0, num_classes)
    gap = np.where(np.arange(num_classes) == 1, 0.0, ramp)
    names = {"ramp": ramp.tolist(), "gap": gap.tolist(), "none": [0.0] * num_classes}
    return {name: names[value] if name == "class_weight" else value for name, value in options.items()}


def state(logits, label, options):
    return {"class_weight": [1.0] * len(logits), **DEFAULTS, "logits": logits, "label": label, **options}


def row(logits=(2.0, 3.0, 4.0), label=1, options=None):
    return explorer.html(logits, label, options or {})
