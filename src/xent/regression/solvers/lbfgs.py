"""Preconditioned L-BFGS: one read of X for each step, first in the dtype of X, then in float64.

SciPy's L-BFGS takes no preconditioner, and a change of variables (W = R⁻¹V) would lose the stored pairs at
each new preconditioner. Here the pairs are in W, so that they stay valid.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.blas import daxpy

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import evaluate, step_along, step_of_intercept
from xent.regression.solvers.preconditioners import (
    Preconditioner,
    diagonal,
    estimated_gram,
    is_cheap_by_class,
    is_whitened,
    whitening,
)
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.state import Draws, Point

Array = np.ndarray[Any, Any]

PAIRS = 20
PAIRS_BYTES = 100 << 20  # at most so much memory for the pairs, unless they are 4 or fewer
REFRESHES = (10, 40)  # steps after which the preconditioner is computed again: p has moved far from 1/K
REFRESHES_BY_CLASS = (5, 40)  # the same for `is_cheap_by_class`; early, as the pairs then matter little
NEAR = 0.1  # relative gap below which few steps remain
ROUNDED_TOL = 1e-6  # relative gap below which float32 products are too coarse


class Kept(NamedTuple):
    """What `Memory` is made from: where the preconditioner was computed, and the last pairs, oldest first."""

    anchor: Array
    anchor_step: int
    draws: Draws  # before its sample of the rows
    steps: tuple[Array, ...] = ()
    changes: tuple[Array, ...] = ()  # of the gradient
    rhos: tuple[float, ...] = ()  # 1/⟨step, change⟩
    scale: float = 1.0


class State(NamedTuple):
    """The point, whether its intercept is the best, and the approximate Hessian."""

    point: Point
    is_exact: bool
    polished: bool
    kept: Kept

    @classmethod
    def begin(cls, objective: Objective, point: Point, random: np.random.RandomState) -> State:
        """The state before the first step."""
        is_exact = objective.totals.dtype != np.float32
        return cls(point, is_exact, False, Kept(point.parameters, 0, Draws.of(random)))

    @property
    def draws(self) -> Draws:
        """Those before the preconditioner was computed, as `Memory` computes it again."""
        return self.kept.draws


def lbfgs(objective: Objective, state: State, progress: Progress) -> Point:
    """Step from ``state`` until ``progress`` ends, or no step lowers the objective; return the last point."""
    point, exact, polished, kept = state
    memory = Memory(objective, kept, progress.random)
    while not progress.exhausted:
        if exact and progress.ended:
            break
        if memory.is_stale(progress):
            memory.refresh(point.parameters, progress.steps)
        tol = 0.5 * (progress.tol if exact else max(progress.tol, ROUNDED_TOL))
        following = None
        if exact and progress.within_reach <= tol and not polished:
            following, polished = step_of_intercept(point, objective, progress), True
        elif exact or (progress.within_reach > tol and not progress.separated):
            direction = memory.direction(point.gradient)
            function = objective if exact else objective.rounded
            following, polished = step_along(direction, point, function, progress), False
        if following is not None:
            memory.learn(point, following)
            point = following
            progress.stepped(State(point, exact, polished, memory.kept))
        elif not exact:  # near the optimum, or no float32 step lowers the objective
            exact, point, polished = True, _in_float64(objective, point, progress), True
            progress.stepped(State(point, exact, polished, memory.kept))
        elif not polished:  # no float64 step lowers the objective
            break
    return point if exact else _in_float64(objective, point, progress)


def _in_float64(objective: Objective, point: Point, progress: Progress) -> Point:
    """``point`` with its best intercept, in float64; discard the bounds from float32 passes."""
    progress.forget()
    noise = 8 * float(np.finfo(np.float32).eps) * abs(point.value)
    polished = step_of_intercept(point, objective, progress, noise) if objective.fit_intercept else None
    return polished or evaluate(objective, point.parameters, progress)


class Memory:
    """Approximate inverse Hessian: a preconditioner, corrected by the last pairs (step, gradient change).

    ``kept`` is all that it is made from, and ``random`` must be in its state ``draws``.
    """

    def __init__(
        self,
        objective: Objective,
        kept: Kept,
        random: np.random.RandomState,
        by_class: bool | None = None,
    ) -> None:
        self.objective = objective
        self.random = random
        self.kept = kept
        self.most = min(PAIRS, max(4, PAIRS_BYTES // max(1, 2 * 8 * objective.num_parameters)))
        self.by_class = is_cheap_by_class(objective) if by_class is None else by_class
        self.refresh(kept.anchor, kept.anchor_step)

    def is_stale(self, progress: Progress) -> bool:
        """Whether to compute the preconditioner again; by class only if many steps remain."""
        if progress.steps == self.kept.anchor_step:
            return False
        if not self.by_class:
            return progress.steps in REFRESHES
        return progress.steps in REFRESHES_BY_CLASS and progress.within_reach > NEAR

    def refresh(self, parameters: Array, step: int) -> None:
        """Compute the preconditioner at ``parameters``, after ``step`` steps."""
        self.kept = self.kept._replace(anchor=parameters, anchor_step=step, draws=Draws.of(self.random))
        differ = self.by_class and bool(parameters.any())  # at 0 all classes have the same curvature
        self.gram: Array | None = None
        if is_whitened(self.objective):
            self.gram = estimated_gram(self.objective, parameters, self.random, differ)
            self.estimate: Preconditioner = whitening(self.objective, self.gram)
        else:
            self.estimate = diagonal(self.objective, parameters)

    def learn(self, before: Point, after: Point) -> None:
        """Add the pair of a step if the curvature along it is positive."""
        self._add(after.parameters - before.parameters, after.gradient - before.gradient)

    def with_penalty(self, objective: Objective, parameters: Array | None = None) -> Memory:
        """The memory for the same loss with another alpha, which changes the gradients of the pairs.

        The preconditioner is computed at ``parameters``; with None the XᵀSX of whitening is that of before.
        """
        other = copy(self)
        other.objective = objective
        more = objective.alpha - self.objective.alpha
        other.kept = self.kept._replace(steps=(), changes=(), rhos=(), scale=1.0)
        if parameters is None and self.gram is not None:
            other.estimate = whitening(objective, self.gram)
        else:
            other.refresh(self.kept.anchor if parameters is None else parameters, 0)
        weights = objective.num_scores * objective.num_features
        for step, change in zip(self.kept.steps, self.kept.changes, strict=True):
            penalised = change.copy()
            penalised[:weights] += more * step[:weights]
            other._add(step, penalised, step is self.kept.steps[-1])
        return other

    def _add(self, step: Array, change: Array, is_last: bool = True) -> None:
        """Add a pair if the curvature along it is positive; the last one gives the scale of the estimate."""
        curvature = float(step @ change)
        if not curvature > 1e-10 * float((step @ step) * (change @ change)) ** 0.5:
            return
        expected = float(change @ self.estimate(change)) if is_last else curvature
        if expected > 0 and 1.0 / curvature < np.inf:  # neither underflowed
            self.kept = self.kept._replace(
                steps=(*self.kept.steps, step)[-self.most :],
                changes=(*self.kept.changes, change)[-self.most :],
                rhos=(*self.kept.rhos, 1.0 / curvature)[-self.most :],
                scale=curvature / expected,
            )

    def direction(self, gradient: Array) -> Array:
        """−H⁻¹ gradient, by the two-loop recursion (Nocedal and Wright, *Numerical Optimization*, 7.4)."""
        pairs = list(zip(self.kept.steps, self.kept.changes, self.kept.rhos, strict=True))
        r = -gradient.astype(np.float64, copy=False)
        weights = []
        for step, change, rho in reversed(pairs):
            weights.append(rho * float(step @ r))
            daxpy(change, r, a=-weights[-1])  # in place: vectors may be long
        r = self.estimate(r).astype(np.float64, copy=False)
        r *= self.kept.scale
        for (step, change, rho), weight in zip(pairs, reversed(weights), strict=True):
            daxpy(step, r, a=weight - rho * float(change @ r))
        return r
