"""Minimise an Objective: choose a solver by name, run it, and report where it ended.

`lbfgs`, `newton_cg` and `sgd` are the solvers. They share `line_search`, `preconditioners` and `progress`,
which counts steps and decides when to stop; `state` is what they pass from step to step. `certificate` bounds
the distance to the optimum, `separation` detects separable classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from xent.regression.objective import Objective
from xent.regression.solvers.lbfgs import State as LbfgsState
from xent.regression.solvers.lbfgs import lbfgs
from xent.regression.solvers.line_search import evaluate
from xent.regression.solvers.newton_cg import State as NewtonState
from xent.regression.solvers.newton_cg import newton_cg
from xent.regression.solvers.preconditioners import is_whitened
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.separation import separates
from xent.regression.solvers.sgd import State as SgdState
from xent.regression.solvers.sgd import sgd
from xent.regression.solvers.state import Counts, Point, Snapshot, State
from xent.regression.sums.threads import few_threads

Array = np.ndarray[Any, Any]

LARGEST = 1e140  # root mean square norm of the rows above which squares of gradients overflow
SAMPLED_ROWS = 10  # rows for each parameter in a sample, a tenth of the rows, at whose optimum a fit starts
SOLVERS = ("auto", "lbfgs", "newton-cg", "sgd")


STATES: dict[str, Any] = {"lbfgs": LbfgsState, "newton-cg": NewtonState, "sgd": SgdState}
_RUN: dict[str, Callable[[Objective, Any, Progress], Point]] = {
    "lbfgs": lbfgs,
    "newton-cg": newton_cg,
    "sgd": sgd,
}


class Result(NamedTuple):
    """The result of a solver."""

    params: Array
    n_iter: int
    optimality_gap: float | None  # bound on (F − F*)/F; None if the objective is not convex
    solver: str  # the one that ran
    message: str  # "" if converged, otherwise a sentence that says what to do
    start_value: float  # of the objective, nats


class OtherObjectiveError(ValueError):
    """A snapshot is of another objective than the one to minimise."""


def minimise(
    objective: Objective,
    start: Array,
    *,
    solver: str = "auto",
    max_iter: int,
    tol: float,
    random_state: Any = None,
    on_step: Callable[[Snapshot], None] = lambda snapshot: None,
    resume: Snapshot | None = None,
) -> Result:
    """Minimise from ``start`` until the certified gap is at most ``tol``, for at most ``max_iter`` steps.

    With ``resume``, a snapshot that ``on_step`` received, go on from there instead, with the bits of the
    minimisation that it is from, as far as that had the same objective and arguments. OtherObjectiveError
    says that the objective or the solver is another one.
    """
    name = solver_of(objective, solver)
    overflow = ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
    totals = objective.totals
    parts = len(totals.rows)
    by_kernels = objective.is_sparse or objective.is_fused
    threads = few_threads(totals.entries, objective.num_scores, parts, by_kernels)
    with threads, np.errstate(all="ignore"):
        if totals.dtype == np.float64 and not objective.row_norm() < LARGEST:
            raise overflow
        if resume is None:
            random, counts = generator(random_state, name), Counts()
        else:
            _require_same(objective, name, resume)
            random, counts = np.random.RandomState(0), resume.counts
            resume.state.draws.restore(random)

        def stepped(state: State, counts: Counts) -> None:
            on_step(Snapshot(name, start_value, counts, state))

        progress = Progress(objective, max_iter, tol, random, stepped, counts)
        if resume is None:
            points = [evaluate(objective, start, progress)]
            start_value = points[0].value
            if name != "sgd" and max_iter and not start.any():
                points = [_optimum_of_a_sample(objective, points[0], name, progress)]
            states = [STATES[name].begin(objective, points.pop(), random)]
        else:
            start_value, states = resume.start_value, [resume.state]
        del start, resume  # free vectors of the length of the parameters early
        point = _RUN[name](objective, states.pop(), progress)
        if not np.isfinite(point.value):
            raise overflow
        progress.evaluated(*point)  # the solver may have evaluated other points after this one
        if not progress.ended and separates(objective, point.parameters):
            progress.found_separable()
    gap = float(progress.gap) if objective.is_convex else None
    return Result(
        point.parameters, progress.steps, gap, name, _message(progress, objective, name), start_value
    )


def solver_of(objective: Objective, solver: str) -> str:
    """The name of the solver that runs; ValueError for a name that is none, and for "sgd" with partitions."""
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
    return name


def generator(random_state: Any, solver: str) -> np.random.RandomState:
    """Of all that is drawn. Without a random_state two fits of the same data are equal, except with "sgd"."""
    given = 0 if random_state is None and solver != "sgd" else random_state
    random: np.random.RandomState = check_random_state(given)
    if random.get_state(legacy=False)["bit_generator"] == "MT19937":
        return random
    return np.random.RandomState(random.randint(1 << 32, dtype=np.uint32))  # one with a state that is kept


def _require_same(objective: Objective, solver: str, snapshot: Snapshot) -> None:
    """OtherObjectiveError if the solver is another, or the objective at the snapshot's point by a bit."""
    if solver != snapshot.solver:
        raise OtherObjectiveError(f"its solver is {snapshot.solver!r}, that of this fit {solver!r}")
    parameters, value, gradient = snapshot.state.point
    if parameters.shape != (objective.num_parameters,):
        raise OtherObjectiveError(f"it has {parameters.size} parameters, this fit {objective.num_parameters}")
    now = (objective if snapshot.state.is_exact else objective.rounded)(parameters)
    if now[0] != value:
        raise OtherObjectiveError(f"at its parameters the objective was {value!r} and is {now[0]!r}")
    if not np.array_equal(now[1], gradient):
        raise OtherObjectiveError("at its parameters the gradient of the objective was another")


def choose(objective: Objective) -> str:
    """The solver for "auto": the one with fewer passes over several partitions, L-BFGS; see below for one.

    A pass over several partitions is dear: it reads a disk, or schedules tasks. Every `sum_over` and `map` is
    a pass, so a Hessian product is one. Passes for a gap of 1e-4 at alpha = 1/N, of 8 partitions in float32:

    ==============================================  =======  =========
    rows                                            L-BFGS   Newton-CG
    ==============================================  =======  =========
    normal features (12000, 784), 10 classes        22       39
    the same (40000, 50)                            15       38
    images (15000, 784), 10 classes                 108      195
    a table (100000, 30), 2 classes                 10       13
    a wide table (6000, 3000), 2 classes            84       152
    words (6000, 30000), CSR, 20 classes            11       21
    ==============================================  =======  =========

    Of one partition it is L-BFGS where X is whitened, otherwise Newton-CG; the reverse for small X. L-BFGS
    takes fewer reads of X where whitening makes its steps good, Newton-CG less memory: for CSR of
    (20000, 100000) and 20 classes L-BFGS 9 reads in float64, Newton-CG 5 and another 6 in float32, with half
    the memory.

    All small problems are fast. There the choice makes results reproducible: if rows are reordered, or
    weighted instead of repeated, the parameters agree to 1e-15, and with the other solver to 1e-6.
    """
    if len(objective.totals.rows) > 1:
        return "lbfgs"
    return "lbfgs" if is_whitened(objective) != objective.is_small else "newton-cg"


def _optimum_of_a_sample(objective: Objective, start: Point, solver: str, progress: Progress) -> Point:
    """The optimum of a sample, in memory, as a start for all rows, if there are many for each parameter.

    Returns ``start`` otherwise, and if the sample lacks a class: the intercept of that class would go to −∞,
    where the curvature is 0.
    """
    one_of = max(10, -(-objective.totals.entries // objective.totals.sampled))
    few = objective.num_rows // one_of < SAMPLED_ROWS * max(500, objective.num_parameters)
    if few or not objective.is_convex:
        return start
    rows = objective.draw(objective.num_rows // one_of, progress.random)
    sample = objective.subset(rows, objective.divisor / one_of)
    if not sample.target_moments()[0].min() > 0:
        return start
    rough = Progress(sample, 100, 1e-3, progress.random)
    state = STATES[solver].begin(sample, evaluate(sample, start.parameters, rough), rough.random)
    parameters = _RUN[solver](sample, state, rough).parameters
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
