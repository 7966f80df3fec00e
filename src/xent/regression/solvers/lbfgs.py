"""Preconditioned L-BFGS: one read of X for each step, first in the dtype of X, then in float64.

SciPy's L-BFGS takes no preconditioner, and a change of variables (W = R⁻¹V) would lose the stored pairs at
each new preconditioner. Here the pairs are in W, so that they stay valid.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import Point, evaluate, step_along, step_of_intercept
from xent.regression.solvers.preconditioners import is_cheap_by_class, preconditioner
from xent.regression.solvers.progress import Progress

Array = np.ndarray[Any, Any]

PAIRS = 20
PAIRS_BYTES = 100 << 20  # at most so much memory for the pairs, unless they are 4 or fewer
REFRESHES = (10, 40)  # steps after which the preconditioner is computed again: p has moved far from 1/K
REFRESHES_BY_CLASS = (5, 40)  # the same for `is_cheap_by_class`; early, as the pairs then matter little
NEAR = 0.1  # relative gap below which few steps remain
ROUNDED_TOL = 1e-6  # relative gap below which float32 products are too coarse


def lbfgs(objective: Objective, point: Point, progress: Progress, random: np.random.RandomState) -> Point:
    """Step from ``point`` until ``progress`` ends, or no step lowers the objective; return the last point."""
    memory = Memory(objective, point.parameters, random)
    function = objective.rounded if objective.totals.dtype == np.float32 else objective
    polished = False
    while not progress.exhausted:
        exact = function is objective
        if exact and progress.ended:
            break
        tol = 0.5 * (progress.tol if exact else max(progress.tol, ROUNDED_TOL))
        following = None
        if exact and progress.within_reach <= tol and not polished:
            following, polished = step_of_intercept(point, objective, progress), True
        elif exact or (progress.within_reach > tol and not progress.separated):
            direction = memory.direction(point.gradient)
            following, polished = step_along(direction, point, function, progress), False
        if following is not None:
            memory.learn(point, following)
            point = following
            progress.stepped(point.parameters, point.value)
            if memory.is_stale(progress):
                memory.refresh(point.parameters)
        elif not exact:  # near the optimum, or no float32 step lowers the objective
            function, point, polished = objective, _in_float64(objective, point, progress), True
            progress.stepped(point.parameters, point.value)
        elif not polished:  # no float64 step lowers the objective
            break
    return point if function is objective else _in_float64(objective, point, progress)


def _in_float64(objective: Objective, point: Point, progress: Progress) -> Point:
    """``point`` with its best intercept, in float64; discard the bounds from float32 passes."""
    progress.forget()
    noise = 8 * float(np.finfo(np.float32).eps) * abs(point.value)
    polished = step_of_intercept(point, objective, progress, noise) if objective.fit_intercept else None
    return polished or evaluate(objective, point.parameters, progress)


class Memory:
    """Approximate inverse Hessian: a preconditioner, corrected by the last pairs (step, gradient change)."""

    def __init__(self, objective: Objective, parameters: Array, random: np.random.RandomState) -> None:
        self.objective = objective
        self.random = random
        pair_bytes = 2 * 8 * objective.num_parameters
        self.pairs: deque[tuple[Array, Array, float]] = deque(
            maxlen=min(PAIRS, max(4, PAIRS_BYTES // max(1, pair_bytes)))
        )
        self.scale = 1.0
        self.by_class = is_cheap_by_class(objective)
        differ = self.by_class and bool(parameters.any())  # at 0 all classes have the same curvature
        self.estimate = preconditioner(objective, parameters, random, differ)

    def is_stale(self, progress: Progress) -> bool:
        """Whether to compute the preconditioner again; by class only if many steps remain."""
        if not self.by_class:
            return progress.steps in REFRESHES
        return progress.steps in REFRESHES_BY_CLASS and progress.within_reach > NEAR

    def refresh(self, parameters: Array) -> None:
        """Compute the preconditioner at ``parameters``."""
        self.estimate = preconditioner(self.objective, parameters, self.random, self.by_class)

    def learn(self, before: Point, after: Point) -> None:
        """Add the pair of a step if the curvature along it is positive."""
        step, change = after.parameters - before.parameters, after.gradient - before.gradient
        curvature = float(step @ change)
        if not curvature > 1e-10 * float((step @ step) * (change @ change)) ** 0.5:
            return
        expected = float(change @ self.estimate(change))
        if expected > 0 and 1.0 / curvature < np.inf:  # neither underflowed
            self.pairs.append((step, change, 1.0 / curvature))
            self.scale = curvature / expected

    def direction(self, gradient: Array) -> Array:
        """−H⁻¹ gradient, by the two-loop recursion (Nocedal and Wright, *Numerical Optimization*, 7.4)."""
        r = -gradient
        weights = []
        for step, change, rho in reversed(self.pairs):
            weights.append(rho * float(step @ r))
            r -= weights[-1] * change
        r = self.scale * self.estimate(r)
        for (step, change, rho), weight in zip(self.pairs, reversed(weights), strict=True):
            r += (weight - rho * float(change @ r)) * step
        return r
