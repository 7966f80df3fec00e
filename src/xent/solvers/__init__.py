"""How an Objective is minimised: the solvers by name, and what each of them reports."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from xent.objective import Objective
from xent.solvers.lbfgs import lbfgs
from xent.solvers.newton_cg import newton_cg
from xent.solvers.progress import OnStep, Progress
from xent.solvers.sgd import sgd
from xent.solvers.threads import few_threads

Array = np.ndarray[Any, Any]

SOLVERS = ("auto", "lbfgs", "newton-cg", "sgd")


_RUN = {"lbfgs": lbfgs, "newton-cg": newton_cg, "sgd": sgd}


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
    name = choose(objective) if solver == "auto" else solver
    progress = Progress(objective, max_iter, tol, on_step)
    with few_threads(objective.features.size):
        parameters = _RUN[name](objective, start, progress, check_random_state(random_state))
        value, gradient = objective(parameters)
    if not np.isfinite(value):
        raise ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
    progress.evaluated(parameters, value, gradient)
    gap = float(progress.gap) if objective.is_convex else None
    return Result(parameters, progress.steps, gap, name, _message(progress, objective))


def choose(objective: Objective) -> str:
    """What "auto" is for this objective."""
    return "lbfgs"


def _message(progress: Progress, objective: Objective) -> str:
    if progress.converged:
        return ""
    gap = "optimality gap" if objective.is_convex else "expected decrease"
    finding = f"with an {gap} of {progress.gap:.2g} where tol={progress.tol:g} is asked for: "
    scale = "bring the features to one scale (StandardScaler), or raise "
    if progress.exhausted:
        return f"stopped at max_iter={progress.max_iter} steps {finding}{scale}max_iter, alpha or tol"
    return f"stopped after {progress.steps} steps, at the end of float64, {finding}{scale}alpha or tol"
