"""Optima for one penalty after the other, of all rows and without each fold: for choosing the penalty.

Section 15 of docs/maths.md says how. `sampled_path` is the same for many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.penalty.optimum import Hessians, Pairs, Steps, has_hessian, settled

Array = np.ndarray[Any, Any]

FARTHEST = 1.5  # how far beyond two optima a third is extrapolated, in their distance


class PenaltyPath:
    """The optima along a path of penalties.

    Parameters
    ----------
    objective : Objective
        Of all rows.
    folds : sequence of Objective
        Of the rows without those of one fold, each.
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
        self.optima: dict[float, list[Array]] = {}
        self.steps: Steps = Hessians() if has_hessian(objective) else Pairs(random)

    def at(self, alpha: float) -> list[Array]:
        """Compute the optima for ``alpha``. ValueError if they overflow."""
        optima = self._optima(alpha, self._predicted(alpha))
        if not all(np.isfinite(each).all() for each in optima):
            raise ValueError("the objective overflowed: bring the features to one scale (StandardScaler)")
        self.optima[alpha] = optima
        return optima

    def _optima(self, alpha: float, starts: list[Array]) -> list[Array]:
        """The optima, from what (51) predicts."""
        whole, *folds = (objective.with_alpha(alpha) for objective in self.objectives)
        self.steps.begin(whole.rounded, starts[0])
        optimum = settled(whole.rounded, starts[0], self.steps, is_first=not self.optima)
        moved = optimum - starts[0]  # what was wrong with the prediction, for each fold alike: (52)
        rest = [
            settled(fold.rounded, start + moved, self.steps, is_first=not self.optima)
            for fold, start in zip(folds, starts[1:], strict=True)
        ]
        return [optimum, *rest]

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
