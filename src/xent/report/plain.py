"""The results of `xent fit` as plain values, for JSON."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from xent.regression.estimator import versions
from xent.report import coefficients
from xent.report.diagnosis import Diagnosis
from xent.report.training import Run

OF_HELD_OUT = (
    "held_out",
    "parts",
    "calibration_error",
    "by_class",
    "reliability",
    "confusion",
    "costliest",
)  # null if no rows are held out


def run(result: Run, command: str, most: int | None = None) -> dict[str, Any]:
    """All numbers of the page; at most about ``most`` coefficients, the largest."""
    d, names = result.diagnosis, result.classes
    values = coefficients.coefficients(result.model)
    return {
        "command": command,
        "versions": versions() | {"python": platform.python_version()},
        "data": result.data.name,
        "rows": {
            "training": result.train.rows,
            "held_out": len(result.held_out),
            "unlabelled": result.data.unlabelled,
            "sample": result.sample,
        },
        "reads": None if result.reads is None else result.reads._asdict(),
        "features": len(result.data.feature_names),
        "classes": names,
        "settings": result.settings._asdict(),
        "training": result.train._asdict(),
        "cross_validated": None
        if result.validated is None
        else dict(zip(("loss", "standard_error"), result.validated, strict=True)),
        "solver": result.solver,
        "steps": result.steps,
        "converged": result.converged,
        "optimality_gap": result.optimality_gap,
        "gradient_check": result.gradient._asdict() | {"passed": result.gradient.passed},
        "coefficients": coefficients.plain(values, most and max(1, most // len(values.classes))),
        "alpha_choice": None if result.tried is None else result.tried._asdict(),
        "curve": {
            "first_step": result.first_step,
            "training": [a for a, _ in result.curve],
            "held_out": None if d is None else [b for _, b in result.curve],
        },
        "checks": [f._asdict() for f in result.findings],
        "surprises": result.surprises,
    } | (dict.fromkeys(OF_HELD_OUT) if d is None else _of_held_out(result, d))


def _of_held_out(run: Run, d: Diagnosis) -> dict[str, Any]:
    names = run.classes
    return {
        "held_out": d.summary._asdict() | {"standard_error": d.error, "skill": d.skill},
        "parts": d.parts._asdict(),
        "calibration_error": d.calibration_error,
        "by_class": [
            c._asdict() | {"name": name, "reliability": [b._asdict() for b in c.reliability]}
            for name, c in zip(names, d.classes, strict=True)
        ],
        "reliability": [b._asdict() for b in d.reliability],
        "confusion": [  # (index of true class, index of predicted class, rows)
            [int(i), int(j), int(d.confusion[i, j])] for i, j in zip(*np.nonzero(d.confusion), strict=True)
        ],
        "costliest": [
            {
                "row": run.data.number(int(run.held_out[s.position])),
                "file": None if run.data.files is None else run.data.files[run.held_out[s.position]],
                "true": names[s.label],
                "predicted": names[s.predicted],
                "loss": s.loss,
                "probabilities": s.probs.tolist(),
                "gradient": s.gradient.tolist(),
                "reasons": [r._asdict() for r in reasons],
            }
            for s, reasons in zip(d.costliest, run.reasons, strict=True)
        ],
    }
