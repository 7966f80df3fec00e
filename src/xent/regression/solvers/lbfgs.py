"""Preconditioned L-BFGS: one read of X a step, in the dtype of X as far as that goes, then in float64.

SciPy's has no place for a preconditioner, and a change of variables in its stead (W = R⁻¹V) forgets its
pairs at every change. Here they are pairs in W, and outlive the preconditioner and the dtype.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import Point, evaluate, step_along, step_of_intercept
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.whitening import is_cheap_by_class, preconditioner

Array = np.ndarray[Any, Any]

PAIRS = 20
PAIRS_BYTES = 100 << 20  # of memory for them at most, beyond the first 4
REFRESHES = (10, 40)  # steps after which the curvature is estimated anew: p has moved far from 1/K
REFRESHES_BY_CLASS = (5, 40)  # the sooner the better, as it leaves little to learn from the pairs
NEAR = 0.1  # relative gap from which few steps are left
ROUNDED_TOL = 1e-6  # relative gap below which products in float32 do not decide anything


def lbfgs(objective: Objective, point: Point, progress: Progress, random: np.random.RandomState) -> Point:
    """From ``point`` to where ``progress`` was content, or exhausted, or no step lowers the objective."""
    memory = Memory(objective, point.parameters, random)
    function = objective.rounded if objective.features.dtype == np.float32 else objective
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
        elif not exact:  # near enough, or at the last bits of float32
            function, point = objective, _in_float64(objective, point, progress)
            progress.stepped(point.parameters, point.value)
        elif not polished:  # at the last bits of float64
            break
    return point if function is objective else _in_float64(objective, point, progress)


def _in_float64(objective: Objective, point: Point, progress: Progress) -> Point:
    """The same place anew. What rounded passes said of the optimum is no bound: it is forgotten."""
    progress.forget()
    return evaluate(objective, point.parameters, progress)


class Memory:
    """What is known of the inverse Hessian: an estimate, corrected by the last pairs of (step, change)."""

    def __init__(self, objective: Objective, parameters: Array, random: np.random.RandomState) -> None:
        self.objective = objective
        self.random = random
        pair_bytes = 2 * 8 * objective.num_parameters
        self.pairs: deque[tuple[Array, Array, float]] = deque(
            maxlen=min(PAIRS, max(4, PAIRS_BYTES // max(1, pair_bytes)))
        )
        self.scale = 1.0
        self.by_class = is_cheap_by_class(objective)
        differ = self.by_class and bool(parameters.any())  # at 0 all classes curve alike
        self.estimate = preconditioner(objective, parameters, random, differ)

    def is_stale(self, progress: Progress) -> bool:
        """Whether it is time to estimate the Hessian anew. By class, unless the end is in sight."""
        if not self.by_class:
            return progress.steps in REFRESHES
        return progress.steps in REFRESHES_BY_CLASS and progress.within_reach > NEAR

    def refresh(self, parameters: Array) -> None:
        """Estimate the Hessian anew."""
        self.estimate = preconditioner(self.objective, parameters, self.random, self.by_class)

    def learn(self, before: Point, after: Point) -> None:
        """Add the pair of a step, if the objective curved upwards along it."""
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
