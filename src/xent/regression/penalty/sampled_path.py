"""Optima for one penalty after the other where rows are many: steps on a sample, gradients of all rows.

Section 15 of docs/maths.md says how: (53).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.penalty.optimum import has_hessian, newton_steps, settled
from xent.regression.penalty.penalty_path import PenaltyPath

Array = np.ndarray[Any, Any]

ROWS = 64  # of the sample, for each feature,
LEAST = 4000  # in all,
SHARE = 16  # or one row in so many
WORTH = 4  # how many times these are all rows at least
NEAR = 1e-4  # expected decrease from an anchor, relative to the objective, below which it is the last
MOST_ANCHORS = 8


def sample_size(objective: Objective) -> int | None:
    """How many rows a sample has that has nearly the Hessian of all; None if all rows are hardly more."""
    rows = max(LEAST, ROWS * (objective.num_features + 1), objective.num_rows // SHARE)
    return rows if has_hessian(objective) and WORTH * rows <= objective.num_rows else None


class SampledPath(PenaltyPath):
    """As `PenaltyPath`, for many rows.

    Parameters
    ----------
    objective : Objective
        Of all rows.
    left_out : sequence of Objective
        Of the rows that are left out, one for each fold.
    rows : int
        In the sample.
    random : RandomState
    """

    def __init__(
        self,
        objective: Objective,
        left_out: Sequence[Objective],
        rows: int,
        random: np.random.RandomState,
    ) -> None:
        drawn = objective.draw(rows, random)
        self.sample = objective.subset(drawn, objective.divisor * rows / objective.num_rows)
        super().__init__(objective, (), random)
        self.left_out = [each.with_alpha(0.0).rounded for each in left_out]
        # Each row is left out once: the sum of the folds is that of all rows.
        self.is_partition = sum(each.num_rows for each in left_out) == objective.num_rows

    def _optima(self, alpha: float, starts: list[Array]) -> list[Array]:
        local = self.sample.with_alpha(alpha).rounded
        anchor = starts[0] if self.optima else settled(local, starts[0], self.steps)
        for _ in range(MOST_ANCHORS):
            value, gradients = self._gradients(anchor, alpha)
            directions = newton_steps(local.hessian_matrix(anchor), gradients)
            optima = [anchor + direction for direction in directions]
            decrease = -0.5 * float(gradients[0] @ directions[0])
            if decrease <= NEAR * value:
                break
            anchor = optima[0]
        return optima

    def _gradients(self, anchor: Array, alpha: float) -> tuple[float, list[Array]]:
        """(objective of all rows, its gradient, and that without the rows of each fold): (53)."""
        each = [(left_out.divisor, *left_out(anchor)) for left_out in self.left_out]
        whole = self.objectives[0].with_alpha(0.0).rounded
        total, value, gradient = whole.divisor, 0.0, np.zeros_like(anchor)
        if self.is_partition:
            for divisor, part_value, part_gradient in each:
                value += divisor / total * part_value
                gradient += divisor / total * part_gradient
        else:
            value, gradient = whole(anchor)
        weights = self.sample.num_scores * self.sample.num_features
        penalty = np.zeros_like(anchor)
        penalty[:weights] = alpha * anchor[:weights]
        without = [
            (total * gradient - divisor * part) / (total - divisor) + penalty for divisor, _, part in each
        ]
        return value + 0.5 * float(penalty @ anchor), [gradient + penalty, *without]
