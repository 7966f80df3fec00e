"""Certificate: how far a point can be from the optimum at most, by Fenchel duality, from its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.objective import Objective

Array = np.ndarray[Any, Any]


class Certificate:
    """The best lower bound on the optimum seen so far."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.lower = 0.0

    def gap(self, parameters: Array, value: float, gradient: Array) -> float:
        """A bound on (F − F*)/F at ``parameters``, whose objective and gradient these are."""
        dcoef, _ = self.objective.unpack(gradient)
        if self.objective.alpha:
            bound = value - float(np.vdot(dcoef, dcoef)) / (2 * self.objective.alpha)
            self.lower = max(self.lower, bound)
        return (value - self.lower) / value if value else 0.0
