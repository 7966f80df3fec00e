"""Optima for one penalty after the other, of all rows and without each fold: for choosing the penalty.

Section 15 of docs/maths.md says how. All optima share one estimate of the Hessian: `lbfgs.Memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.lbfgs import Kept, Memory
from xent.regression.solvers.line_search import evaluate, step_along
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.state import Draws

Array = np.ndarray[Any, Any]

TOL = 2e-4  # expected decrease of the last step, relative to the objective; it is made without a pass
FIRST_TOL = 1e-4  # where the folds start from the optimum of all rows, which has seen the rows held out
MOST_STEPS = 200
FARTHEST = 1.5  # how far beyond two optima a third is extrapolated, in their distance


class PenaltyPath:
    """The optima along a path of penalties.

    Parameters
    ----------
    objective : Objective
        Of all rows.
    folds : sequence of Objective
        Of the same rows, each without those of one fold.
    random : RandomState
        Draws the rows from which the Hessian is estimated.

    Attributes
    ----------
    optima : dict {alpha: list of arrays}
        The parameters for all rows, and then without each fold.
    """

    def __init__(
        self, objective: Objective, folds: Sequence[Objective], random: np.random.RandomState
    ) -> None:
        self.objectives = [objective, *folds]
        self.random = random
        self.optima: dict[float, list[Array]] = {}
        self._memory: Memory | None = None

    def at(self, alpha: float) -> list[Array]:
        """Compute the optima for ``alpha``. ValueError if they overflow."""
        whole, *folds = (objective.with_alpha(alpha) for objective in self.objectives)
        start = self._predicted(alpha)
        kept = Kept(start[0], 0, Draws.of(self.random))
        memory = Memory(whole.rounded, kept, self.random, by_class=False)
        if self._memory is not None:
            memory.adopt(self._memory)
        self._memory = memory
        tol = TOL if self.optima else FIRST_TOL
        optimum = _settled(whole, start[0], memory, tol)
        moved = optimum - start[0]  # what was wrong with the prediction, for each fold alike
        rest = [
            _settled(fold, each + moved, memory, tol) for fold, each in zip(folds, start[1:], strict=True)
        ]
        if not all(np.isfinite(each).all() for each in (optimum, *rest)):
            raise ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
        self.optima[alpha] = [optimum, *rest]
        return self.optima[alpha]

    def _predicted(self, alpha: float) -> list[Array]:
        """Equation (51), with the two nearest alphas so far."""
        if not self.optima:
            return [np.zeros(self.objectives[0].num_parameters)] * len(self.objectives)
        if not alpha:
            return self.optima[min(self.optima)]
        near = sorted(filter(None, self.optima), key=lambda known: abs(log(known / alpha)))[:2]
        last = self.optima[near[0]]
        t = log(alpha / near[0]) / log(near[0] / near[1]) if len(near) > 1 else np.inf
        if abs(t) > FARTHEST:
            return last
        return [x + t * (x - y) for x, y in zip(last, self.optima[near[1]], strict=True)]


def _settled(objective: Objective, parameters: Array, memory: Memory, tol: float) -> Array:
    """L-BFGS from ``parameters``; the last step, which promises a small decrease, is not verified."""
    function = objective.rounded
    progress = Progress(objective, MOST_STEPS, tol, memory.random, certify=False)
    point = evaluate(function, parameters, progress)
    while not progress.exhausted:
        direction = memory.direction(point.gradient)
        progress.promised(-0.5 * float(direction @ point.gradient), point.value)
        if progress.converged:
            return point.parameters + direction
        following = step_along(direction, point, function, progress)
        if following is None:
            break
        memory.learn(point, following)
        point = following
        progress.steps += 1
    return point.parameters
