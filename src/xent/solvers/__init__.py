"""How an Objective is minimised: the solvers by name, and what each of them reports."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xent.objective import Objective
from xent.solvers.lbfgs import lbfgs
from xent.solvers.progress import OnStep, Progress

Array = np.ndarray[Any, Any]

SOLVERS = ("auto", "lbfgs", "newton-cg", "sgd")


class Result(NamedTuple):
    """Where a solver ended."""

    params: Array
    n_iter: int
    optimality_gap: float | None  # bound on (F − F*)/F; None if the objective is not convex
    solver: str  # the one that ran
    message: str  # "" if converged, otherwise a sentence that says what to do


def minimise(
    objective: Objective,
    start: Array,
    *,
    solver: str = "auto",
    max_iter: int,
    tol: float,
    random_state: Any = None,
    on_step: OnStep = lambda params, value, gap: None,
) -> Result:
    """Minimise from ``start`` until the certified gap is at most ``tol``, or for ``max_iter`` steps."""
    if solver not in SOLVERS:
        expected = ", ".join(f'"{name}"' for name in SOLVERS)
        raise ValueError(f"`solver` must be one of {expected}; got {solver!r}")
    progress = Progress(objective, max_iter, tol, on_step)
    random = np.random.default_rng(random_state)
    parameters = lbfgs(objective, start, progress, random)
    value, gradient = objective(parameters)
    if not np.isfinite(value):
        raise ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
    progress.evaluated(parameters, value, gradient)
    gap = progress.gap if objective.is_convex else None
    message = ""
    if not progress.converged:
        message = (
            f"stopped after {progress.steps} steps with an optimality gap of {progress.gap:.2g} where "
            f"tol={tol:g} is asked: "
            "bring the features to one scale (StandardScaler), or raise max_iter, alpha or tol"
        )
    return Result(parameters, progress.steps, gap, "lbfgs", message)
