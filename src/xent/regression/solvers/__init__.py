"""Minimise an Objective: choose a solver by name, run it, and report where it ended.

`lbfgs`, `newton_cg` and `sgd` are the solvers. They share `line_search`, `preconditioners` and `progress`,
which counts steps and decides when to stop. `certificate` bounds the distance to the optimum, `separation`
detects separable classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from xent.regression.objective import Objective
from xent.regression.solvers.lbfgs import lbfgs
from xent.regression.solvers.line_search import Point, evaluate
from xent.regression.solvers.newton_cg import newton_cg
from xent.regression.solvers.preconditioners import is_whitened
from xent.regression.solvers.progress import OnStep, Progress
from xent.regression.solvers.separation import separates
from xent.regression.solvers.sgd import sgd
from xent.regression.threads import few_threads

Array = np.ndarray[Any, Any]

LARGEST = 1e140  # root mean square norm of the rows above which squares of gradients overflow
SAMPLED_ROWS = 10  # rows for each parameter in a sample, a tenth of the rows, at whose optimum a fit starts
SOLVERS = ("auto", "lbfgs", "newton-cg", "sgd")


_RUN = {"lbfgs": lbfgs, "newton-cg": newton_cg, "sgd": sgd}


class Result(NamedTuple):
    """The result of a solver."""

    params: Array
    n_iter: int
    optimality_gap: float | None  # bound on (F − F*)/F; None if the objective is not convex
    solver: str  # the one that ran
    message: str  # "" if converged, otherwise a sentence that says what to do
    start_value: float  # of the objective, nats


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
    """Minimise from ``start`` until the certified gap is at most ``tol``, for at most ``max_iter`` steps."""
    if solver not in SOLVERS:
        expected = ", ".join(f'"{name}"' for name in SOLVERS)
        raise ValueError(f"`solver` must be one of {expected}; got {solver!r}")
    name = choose(objective) if solver == "auto" else solver
    parts = len(objective.totals.rows)
    if name == "sgd" and parts > 1:
        raise ValueError(
            '`solver` must be "auto", "lbfgs" or "newton-cg" for rows in several partitions, as "sgd" takes '
            f'them in any order; got "sgd" and {parts} partitions'
        )
    # Without a random_state two fits of the same data are equal, except with "sgd".
    random = check_random_state(0 if random_state is None and name != "sgd" else random_state)
    overflow = ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
    totals = objective.totals
    threads = few_threads(totals.entries, objective.num_scores, parts, totals.is_sparse)
    with threads, np.errstate(all="ignore"):
        if totals.dtype == np.float64 and not objective.row_norm() < LARGEST:
            raise overflow
        progress = Progress(objective, max_iter, tol, on_step)
        points = [evaluate(objective, start, progress)]
        start_value = points[0].value
        if name != "sgd" and max_iter and not start.any():
            points = [_optimum_of_a_sample(objective, points[0], name, progress, random)]
        del start  # free a vector of the length of the parameters early
        point = _RUN[name](objective, points.pop(), progress, random)
        if not np.isfinite(point.value):
            raise overflow
        progress.evaluated(*point)  # the solver may have evaluated other points after this one
        if not progress.ended and separates(objective, point.parameters):
            progress.found_separable()
    gap = float(progress.gap) if objective.is_convex else None
    return Result(
        point.parameters, progress.steps, gap, name, _message(progress, objective, name), start_value
    )


def choose(objective: Objective) -> str:
    """The solver for "auto": L-BFGS where X is whitened, otherwise Newton-CG; the reverse for small X.

    L-BFGS takes fewer reads of X where whitening makes its steps good, Newton-CG less memory. Reads for a gap
    of 1e-4 at alpha = 1/N, a Hessian product counted as one: L-BFGS 100 and Newton-CG 286 for (15000, 784)
    images; for CSR of (20000, 100000) and 20 classes L-BFGS 9 in float64, Newton-CG 5 and another 6 in
    float32, with half the memory.

    All small problems are fast. There the choice makes results reproducible: if rows are reordered, or
    weighted instead of repeated, the parameters agree to 1e-15, and with the other solver to 1e-6.
    """
    return "lbfgs" if is_whitened(objective) != objective.is_small else "newton-cg"


def _optimum_of_a_sample(
    objective: Objective, start: Point, solver: str, progress: Progress, random: np.random.RandomState
) -> Point:
    """The optimum of a sample, in memory, as a start for all rows, if there are many for each parameter.

    Returns ``start`` otherwise, and if the sample lacks a class: the intercept of that class would go to −∞,
    where the curvature is 0.
    """
    one_of = max(10, -(-objective.totals.entries // objective.totals.sampled))
    few = objective.num_rows // one_of < SAMPLED_ROWS * max(500, objective.num_parameters)
    if few or not objective.is_convex:
        return start
    rows = objective.draw(objective.num_rows // one_of, random)
    sample = objective.subset(rows, objective.divisor / one_of)
    if not sample.target_moments()[0].min() > 0:
        return start
    rough = Progress(sample, max_iter=100, tol=1e-3, on_step=lambda params, value, gap: None)
    parameters = _RUN[solver](sample, evaluate(sample, start.parameters, rough), rough, random).parameters
    return evaluate(objective, parameters, progress) if np.isfinite(parameters).all() else start


def _message(progress: Progress, objective: Objective, solver: str) -> str:
    if progress.separated:
        return (
            f"stopped after {progress.steps} steps, as the classes are separable: without a penalty no "
            "finite weights are the best, the objective tends to 0 as they grow; set alpha > 0"
        )
    if progress.converged:
        return ""
    gap = "optimality gap" if objective.is_convex else "expected decrease"
    finding = f"with an {gap} of {progress.gap:.2g} where tol={progress.tol:g} is asked for: "
    scale = "bring the features to one scale (StandardScaler), or raise "
    if not objective.alpha:
        scale = f"set alpha > 0, for there may be no optimum without a penalty, {scale}"
    if solver == "sgd":
        scale = f'choose solver="auto", {scale}'
    if progress.exhausted:
        return f"stopped at max_iter={progress.max_iter} steps {finding}{scale}max_iter, alpha or tol"
    return f"stopped after {progress.steps} steps, at the end of float64, {finding}{scale}alpha or tol"
