"""Preconditioned L-BFGS: one read of X a step, in the dtype of X as far as that goes, then in float64.

SciPy's has no place for a preconditioner, and a change of variables in its stead (W = R⁻¹V) forgets its
pairs at every change. Here they are pairs in W, and outlive the preconditioner and the dtype.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from xent.objective import Objective
from xent.solvers.progress import Progress
from xent.solvers.whitening import Preconditioner, preconditioner

Array = np.ndarray[Any, Any]

PAIRS_BYTES = 100 << 20  # of memory for pairs, of which there are 4 to 20
REFRESHES = (30, 90)  # steps after which the curvature is estimated anew: p has moved far from 1/K
ROUNDED_TOL = 1e-6  # relative gap below which products in float32 do not decide anything


class Point(NamedTuple):
    """A place with what is known there."""

    parameters: Array
    value: float
    gradient: Array


def lbfgs(objective: Objective, start: Array, progress: Progress, random: np.random.Generator) -> Array:
    """The parameters where ``progress`` was content, or exhausted, or no step lowers the objective."""
    memory = Memory(objective, start, random)
    function = objective.rounded if objective.is_rounded_faster else objective
    point = _evaluate(function, start, progress)
    polished = False
    while not progress.exhausted:
        exact = function is objective
        if exact and progress.converged:
            break
        tol = 0.5 * (progress.tol if exact else max(progress.tol, ROUNDED_TOL))
        following = None
        if exact and progress.within_reach <= tol and not polished:
            following, polished = _with_best_intercept(objective, point, progress), True
        elif exact or progress.within_reach > tol:
            following, polished = _step(function, point, memory, progress), False
        if following is not None:
            memory.learn(point, following)
            point = following
            progress.stepped(point.parameters, point.value)
            if progress.steps in REFRESHES:
                memory.refresh(point.parameters)
        elif not exact:  # near enough, or at the last bits of float32
            function, point = objective, _evaluate(objective, point.parameters, progress)
        elif not polished:  # at the last bits of float64
            break
    return point.parameters


class Memory:
    """What is known of the inverse Hessian: an estimate, corrected by the last pairs of (step, change)."""

    def __init__(self, objective: Objective, parameters: Array, random: np.random.Generator) -> None:
        self.objective = objective
        self.random = random
        pair_bytes = 2 * 8 * objective.num_parameters
        self.pairs: deque[tuple[Array, Array, float]] = deque(
            maxlen=min(20, max(4, PAIRS_BYTES // max(1, pair_bytes)))
        )
        self.scale = 1.0
        self.estimate: Preconditioner
        self.refresh(parameters)

    def refresh(self, parameters: Array) -> None:
        """Estimate the Hessian anew."""
        self.estimate = preconditioner(self.objective, parameters, self.random)

    def learn(self, before: Point, after: Point) -> None:
        """Add the pair of a step, if the objective curved upwards along it."""
        step, change = after.parameters - before.parameters, after.gradient - before.gradient
        curvature = float(step @ change)
        if curvature > 1e-10 * float(np.linalg.norm(step) * np.linalg.norm(change)):
            self.pairs.append((step, change, 1.0 / curvature))
            self.scale = curvature / float(change @ self.estimate(change))

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


def _evaluate(function: Objective, parameters: Array, progress: Progress) -> Point:
    value, gradient = function(parameters)
    progress.evaluated(parameters, value, gradient)
    return Point(parameters, value, gradient)


def _with_best_intercept(objective: Objective, point: Point, progress: Progress) -> Point | None:
    """A Newton step of the intercept alone, which the certificate depends on to first order."""
    coef, intercept = objective.unpack(point.parameters)
    _, dintercept = objective.unpack(point.gradient)
    change = np.linalg.lstsq(objective.intercept_hessian(point.parameters), -dintercept)[0]
    trial = _evaluate(objective, objective.pack(coef, intercept + change), progress)
    return trial if trial.value <= point.value else None


def _step(function: Objective, point: Point, memory: Memory, progress: Progress) -> Point | None:
    """A step that satisfies the weak Wolfe conditions, by bisection (Lewis and Overton, 2013).

    Where the decrease drowns in rounding, the slopes stand in for it (Hager and Zhang, 2005).
    """
    direction = memory.direction(point.gradient)
    slope = float(direction @ point.gradient)
    progress.promised(-0.5 * slope, point.value)
    if not slope < 0:
        return None
    low, high, length = 0.0, np.inf, 1.0
    noise = 8 * float(np.finfo(function.dtype).eps) * abs(point.value)
    for _ in range(20):
        trial = _evaluate(function, point.parameters + length * direction, progress)
        trial_slope = float(trial.gradient @ direction)
        falls = trial.value <= point.value + 1e-4 * length * slope
        if not (falls or (trial.value <= point.value + noise and trial_slope <= -0.9998 * slope)):
            high = length
        elif trial_slope < 0.9 * slope:
            low = length
        else:
            return trial
        length = 0.5 * (low + high) if high < np.inf else 2.0 * low
    return None
