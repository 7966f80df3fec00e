"""Progress: what all solvers share. It counts steps, certifies them, reports them, and says when to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.certificate import Certificate
from xent.regression.solvers.separation import least_error

Array = np.ndarray[Any, Any]
OnStep = Callable[[Array, float, float | None], None]


RESOLUTION = 4 * float(np.finfo(np.float64).eps)  # of a gap: no solver gets below it


class Progress:
    """The state of one minimisation beside the parameters.

    ``gap`` is the bound of the last point evaluated; where the objective is not convex it is the decrease
    that the solver promised itself of the next step, relative to the objective, and certifies nothing.
    """

    def __init__(self, objective: Objective, max_iter: int, tol: float, on_step: OnStep) -> None:
        self.max_iter = max_iter
        self.tol = max(tol, RESOLUTION)
        self.on_step = on_step
        self.certificate = Certificate(objective) if objective.is_convex else None
        self.gap = np.inf
        self.steps = 0
        self.separated = False  # the classes are separable, and have no optimum to come near to
        self._separating = 0.5 * least_error(
            objective
        )  # half: products in float32 are no proof of the last digits

    @property
    def exhausted(self) -> bool:
        """Whether ``max_iter`` steps are taken."""
        return self.steps >= self.max_iter

    @property
    def converged(self) -> bool:
        """Whether the gap is down to ``tol``."""
        return self.gap <= self.tol

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do: converged, or without an optimum."""
        return self.converged or self.separated

    @property
    def within_reach(self) -> float:
        """What the gap of the last point could be after a change of the intercept alone."""
        return self.gap if self.certificate is None else self.certificate.within_reach

    def evaluated(self, parameters: Array, value: float, gradient: Array) -> None:
        """Certify a point, whose objective and gradient these are."""
        if self.certificate is not None:
            self.gap = self.certificate.gap(parameters, value, gradient)
        if value < self._separating:
            self.found_separable()

    def found_separable(self) -> None:
        """The infimum is 0, so that all of the objective is above it."""
        self.separated, self.gap = True, 1.0

    def forget(self) -> None:
        """Forget the bounds of the points before."""
        if self.certificate is not None:
            self.certificate.lower = 0.0

    def promised(self, decrease: float, value: float) -> None:
        """The next step promises this decrease."""
        if self.certificate is None:
            self.gap = decrease / value if value else 0.0

    def stepped(self, parameters: Array, value: float) -> None:
        """A step ended at ``parameters``."""
        self.steps += 1
        self.on_step(parameters, value, None if self.certificate is None else self.gap)
