"""Bound the distance of a point from the optimum by Fenchel duality, from its loss and gradient alone.

Proved in section 13 of docs/maths.md, with how tight it is.

With a = ω/D, masses m = Σ t and z = Wx + b the primal and its dual are

    F(W, b) = Σ a (m·logsumexp(z) − ⟨t, z⟩) + α/2·‖W‖²,
    D(q)    = Σ a m H(q) − ‖G(q)‖²/2α,   G(q) = Σ a (m q − t) xᵀ,   subject to Σ a (m q − t) = 0,

with one distribution q for each row; the constraint exists because the intercept has no penalty. Every
feasible q gives D(q) <= F*. The probabilities p of a point are almost feasible near the optimum; mixing them
with one distribution r for all rows, q = (1−τ) p + τ r, makes them so exactly. Entropy is concave, so
Σ a m H(q) >= (1−τ) Σ a m H(p) + τ A H(r), A = Σ a m, and

    Σ a m H(p) = loss − ⟨W, G(p)⟩ − ⟨b, Σ a (m p − t)⟩

needs only the loss and its gradient. Without a penalty no finite bound exists in general (separable classes
have their infimum at infinity). Then F* is the minimum over weights of at most `REACH` times the norm of the
present ones, for which the dual is D(q) = Σ a m H(q) − REACH·‖W‖·‖G(q)‖.

In that case ‖G‖ includes a bound on the terms that the kernels round to 0 (those below `TINY`), and norms are
computed without underflow. Otherwise the loss of separable classes, which falls for ever, could seem optimal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.sums.partition_sums import norm

Array = np.ndarray[Any, Any]

REACH = 10.0
FEATURES = 1 << 12  # features in a block
LEAST = 1e-290  # least objective that can be certified
TINY = float(np.finfo(np.float64).tiny)


class Certificate:
    """The best lower bound on the optimum among the points seen, for one convex objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.lower = 0.0  # the loss of one row is never negative
        self.within_reach = np.inf  # the gap of the last point with the best intercept for its W
        self.moments = objective.target_moments() if objective.fit_intercept else None
        # Without a penalty: the ‖W‖ at which scores are one nat, and the part of ‖G‖ that may underflow.
        self.nat = self.lost = 0.0
        if not objective.alpha:
            rows = objective.row_norm()
            self.nat = 1.0 / (rows or 1.0)
            self.lost = TINY * objective.num_rows * objective.num_parameters**0.5 * (1.0 + rows)

    def gap(self, parameters: Array, value: float, gradient: Array) -> float:
        """A bound on (F − F*)/F, up to rounding (1e-15), at a point with this objective and gradient.

        F* is the infimum. At alpha = 0 it is the infimum over all intercepts and ``‖W‖`` up to `REACH` times
        its norm here, or the norm at scores of one nat if that is larger.
        """
        if not value > LEAST:  # its terms underflowed; the optimum is not negative
            return 1.0
        alpha = self.objective.alpha
        intercept, dintercept = self.objective.unpack(parameters)[1], self.objective.unpack(gradient)[1]
        size = self.objective.num_scores * self.objective.num_features
        coef, dcoef = parameters[:size], gradient[:size]
        reach = 0.0 if alpha else REACH * max(norm(coef), self.nat)
        self.within_reach = self._drop(norm(dcoef), reach) / value
        # Return early if this point cannot improve the lower bound.
        if not self.within_reach * value < value - self.lower and value > self.lower:
            return (value - self.lower) / value
        residual = alpha * coef
        entropy = value - 0.5 * (float(coef @ residual) if alpha else 0.0)
        np.subtract(dcoef, residual, out=residual)  # G(p); in place, as X may be wide
        entropy -= float(coef @ residual)
        if self.moments is not None:
            entropy -= float(np.vdot(intercept, dintercept))
            entropy = self._feasible(entropy, residual, dintercept)
        lower = entropy - self._drop(norm(residual), reach)
        if not alpha:  # earlier bounds were for other reaches
            return min(1.0, max(0.0, value - lower) / value)
        self.lower = max(self.lower, lower)
        return max(0.0, value - self.lower) / value

    def _drop(self, slope: float, reach: float) -> float:
        """How much lower the optimum can be if the gradient has norm ``slope`` in W and is 0 in b."""
        if not self.objective.alpha:
            return reach * (slope + self.lost)
        change = float(slope / (2 * self.objective.alpha) ** 0.5)
        return change * change

    def _feasible(self, entropy: float, residual: Array, dintercept: Array) -> float:
        """Σ a m H(q) of the feasible mixture q, given that of p; turns ``residual``, G(p), into G(q)."""
        assert self.moments is not None
        mass, feature_sums, target_features = self.moments
        excess = dintercept if len(dintercept) > 1 else np.array([-dintercept[0], dintercept[0]])
        predicted = mass + excess  # Σ a m p for each class
        ratio = np.divide(excess, predicted, out=np.zeros_like(predicted), where=predicted > 0)
        tau = float(ratio.max())
        r = np.maximum(tau * predicted - excess, 0.0)  # mass − (1 − τ) predicted, without cancellation
        if not r.sum() > 0:
            return entropy
        r /= r.sum()
        entropy_of_r = -float(r @ np.log(np.where(r > 0, r, 1.0)))
        residual *= 1 - tau
        scores = self.objective.num_scores
        by_class = self.objective.unpack(residual)[0]
        for start in range(0, len(feature_sums), FEATURES):  # by blocks, without another array like W
            part = slice(start, start + FEATURES)
            by_class[:, part] += tau * (
                r[-scores:, None] * feature_sums[part] - target_features[-scores:, part]
            )
        return (1 - tau) * entropy + tau * float(mass.sum()) * entropy_of_r
