"""The optimum near a start, to the accuracy that a choice of the penalty needs, and the steps towards it.

`Hessians` are Newton steps, for few parameters. `Pairs` are those of one L-BFGS, which goes on from problem
to problem: the loss has nearly the same Hessian at each, and that of the penalty is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.lbfgs import Kept, Memory
from xent.regression.solvers.line_search import evaluate, step_along
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.state import Draws, Point

Array = np.ndarray[Any, Any]

FEW_PARAMETERS = 128
MOST_STEPS = 200
SPARSE_PAIRS = 3  # of vectors that are long beside the entries of X, so that a pair takes as long as a pass
REFRESHES = 2  # penalties for which the curvature XᵀSX is computed again, which for wide X takes many passes
NO_DRAWS = np.random.RandomState(0)  # of `Progress`, for solvers that draw; these do not
RIDGE = 1e-10  # relative to each curvature: there is none along a constant added to all classes
# Expected decrease of the last step, relative to the objective; it is made without a pass. Smaller where the
# folds start from the optimum of all rows, which has seen the rows held out. Newton's steps are more exact.
TOL, FIRST_TOL = 2e-4, 1e-4
NEWTON_TOL, FIRST_NEWTON_TOL = 1e-2, 3e-3


class Steps(Protocol):
    """Directions in which to step."""

    tol: float  # of the expected decrease of the last step
    first_tol: float

    def begin(self, objective: Objective, parameters: Array) -> None:
        """Prepare for problems with the penalty of ``objective``, of optima near ``parameters``."""
        ...

    def direction(self, function: Objective, point: Point) -> Array:
        """The step from ``point`` towards the minimum of ``function``."""
        ...

    def learn(self, before: Point, after: Point) -> None:
        """Take note of a step that was made."""
        ...


class Hessians:
    """Newton's steps."""

    tol, first_tol = NEWTON_TOL, FIRST_NEWTON_TOL

    def begin(self, objective: Objective, parameters: Array) -> None:
        """See `Steps`."""

    def direction(self, function: Objective, point: Point) -> Array:
        """See `Steps`."""
        (step,) = newton_steps(function.hessian_matrix(point.parameters), [point.gradient])
        return np.asarray(step)

    def learn(self, before: Point, after: Point) -> None:
        """See `Steps`."""


class Pairs:
    """The steps of one L-BFGS for all problems."""

    tol, first_tol = TOL, FIRST_TOL

    def __init__(self, random: np.random.RandomState) -> None:
        self.random = random
        self.memory: Memory | None = None
        self.begun = 0

    def begin(self, objective: Objective, parameters: Array) -> None:
        """See `Steps`."""
        if self.memory is None:
            kept = Kept(parameters, 0, Draws.of(self.random))
            self.memory = Memory(objective, kept, self.random, by_class=False)
            if objective.is_sparse:
                self.memory.most = min(self.memory.most, SPARSE_PAIRS)
        else:  # the first optimum is far from 0, the others are nearer to each other
            place = parameters if self.begun < REFRESHES or objective.is_sparse else None
            self.memory = self.memory.with_penalty(objective, place)
        self.begun += 1

    def direction(self, function: Objective, point: Point) -> Array:
        """See `Steps`."""
        assert self.memory is not None
        return self.memory.direction(point.gradient)

    def learn(self, before: Point, after: Point) -> None:
        """See `Steps`."""
        assert self.memory is not None
        self.memory.learn(before, after)


def has_hessian(objective: Objective) -> bool:
    """Whether `Hessians` are for it: few parameters, and a convex objective of dense features."""
    return objective.num_parameters <= FEW_PARAMETERS and not objective.is_sparse and objective.is_convex


def newton_steps(hessian: Array, gradients: Sequence[Array]) -> Array:
    """−H⁻¹ gradient of each, (G, P) float64."""
    curvature = hessian.diagonal().astype(np.float64)
    unit = 1.0 / np.sqrt(np.where(curvature > 0, curvature, 1.0))
    scaled = hessian * unit[:, None] * unit
    scaled[range(len(scaled)), range(len(scaled))] += RIDGE
    steps: Array = -unit * np.linalg.solve(scaled, (unit * np.asarray(gradients)).T).T
    return steps


def settled(function: Objective, parameters: Array, steps: Steps, is_first: bool = False) -> Array:
    """The optimum of ``function`` near ``parameters``; the last, small step is not verified."""
    tol = steps.first_tol if is_first else steps.tol
    progress = Progress(function, MOST_STEPS, tol, NO_DRAWS, certify=False)
    point = evaluate(function, parameters, progress)
    while not progress.exhausted:
        direction = steps.direction(function, point)
        progress.promised(-0.5 * float(direction @ point.gradient), point.value)
        if progress.converged:
            return point.parameters + direction
        following = step_along(direction, point, function, progress)
        if following is None:
            break
        steps.learn(point, following)
        point = following
        progress.steps += 1
    return point.parameters
