"""Progress of a solver: counts, certifies and reports its steps, and decides when it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.certificate import Certificate
from xent.regression.solvers.separation import least_error
from xent.regression.solvers.state import Counts, State

Array = np.ndarray[Any, Any]
OnStep = Callable[[State, Counts], None]


RESOLUTION = 4 * float(np.finfo(np.float64).eps)  # least gap that a solver can reach


class Progress:
    """The state of one minimisation, except for that of the solver.

    ``gap`` is the bound for the last point evaluated. If the objective is not convex, or ``certify`` is
    False, it is the expected decrease of the next step, relative to the objective, which certifies nothing.
    """

    def __init__(
        self,
        objective: Objective,
        max_iter: int,
        tol: float,
        random: np.random.RandomState,
        on_step: OnStep = lambda state, counts: None,
        counts: Counts | None = None,
        certify: bool = True,
    ) -> None:
        self.max_iter = max_iter
        self.tol = max(tol, RESOLUTION)
        self.on_step = on_step
        self.certificate = Certificate(objective) if certify and objective.is_convex else None
        self.steps, self.gap, within_reach, lower, self.separated = counts or Counts()
        if self.certificate is not None:
            self.certificate.within_reach, self.certificate.lower = within_reach, lower
        self.random = random
        # Half, as products in float32 are not exact.
        self._separating = 0.5 * least_error(objective) if certify else -np.inf

    @property
    def exhausted(self) -> bool:
        """Whether ``max_iter`` steps have been made."""
        return self.steps >= self.max_iter

    @property
    def converged(self) -> bool:
        """Whether the gap is at most ``tol``."""
        return self.gap <= self.tol

    @property
    def ended(self) -> bool:
        """Whether the solver should stop: converged, or there is no optimum."""
        return self.converged or self.separated

    @property
    def within_reach(self) -> float:
        """The gap that the last point would have with the best intercept."""
        return self.gap if self.certificate is None else self.certificate.within_reach

    def evaluated(self, parameters: Array, value: float, gradient: Array) -> None:
        """Update the gap for a point with this objective and gradient."""
        if self.certificate is not None:
            self.gap = self.certificate.gap(parameters, value, gradient)
        if value < self._separating:
            self.found_separable()

    def found_separable(self) -> None:
        """Record that the classes are separable: the infimum is 0, so the gap is 1."""
        self.separated, self.gap = True, 1.0

    def forget(self) -> None:
        """Discard the lower bound from earlier points."""
        if self.certificate is not None:
            self.certificate.lower = 0.0

    def promised(self, decrease: float, value: float) -> None:
        """Record the expected decrease of the next step, the gap of an objective that is not convex."""
        if self.certificate is None:
            self.gap = decrease / value if value else 0.0

    def stepped(self, state: State) -> None:
        """Count and report a step, from whose end ``state`` goes on."""
        self.steps += 1
        lower = 0.0 if self.certificate is None else self.certificate.lower
        self.on_step(state, Counts(self.steps, self.gap, self.within_reach, lower, self.separated))
