"""Certificate: how far a point can be from the optimum at most, by Fenchel duality, from its gradient alone.

With a = ω/D, masses m = Σ t and z = Wx + b the primal and its dual are

    F(W, b) = Σ a (m·logsumexp(z) − ⟨t, z⟩) + α/2·‖W‖²,
    D(q)    = Σ a m H(q) − ‖G(q)‖²/2α,   G(q) = Σ a (m q − t) xᵀ,   subject to Σ a (m q − t) = 0,

with one distribution q a row; the constraint is the price of the intercept, which has no penalty. Every
feasible q gives D(q) <= F*. The probabilities p of a point are almost feasible near the optimum; mixing them
with one distribution r for all rows, q = (1−τ) p + τ r, makes them so exactly. Entropy is concave, so
Σ a m H(q) >= (1−τ) Σ a m H(p) + τ A H(r), A = Σ a m, and

    Σ a m H(p) = loss − ⟨W, G(p)⟩ − ⟨b, Σ a (m p − t)⟩

needs nothing but the loss and its gradient. Without a penalty no finite bound exists in general (separable
classes have their infimum at infinity); then the optimum is sought among weights of at most `REACH` times the
norm of those at hand, where the dual is D(q) = Σ a m H(q) − REACH·‖W‖·‖G(q)‖.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.objective import Objective

Array = np.ndarray[Any, Any]

REACH = 10.0
BLOCK = 1 << 12  # features


class Certificate:
    """The best lower bound on the optimum among the points seen, for one convex objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.lower = 0.0  # the loss of one row is never negative
        self.within_reach = np.inf  # the gap of the last point, had its intercept been the best for its W
        self.moments = objective.target_moments() if objective.fit_intercept else None

    def gap(self, parameters: Array, value: float, gradient: Array) -> float:
        """A bound on (F − F*)/F, up to rounding (1e-15), where objective and gradient are these.

        F* is the infimum, except for alpha = 0: there the least value with an intercept of any size and
        ``‖W‖`` up to `REACH` times what it is here, or is at scores of one nat.
        """
        alpha = self.objective.alpha
        intercept, dintercept = self.objective.unpack(parameters)[1], self.objective.unpack(gradient)[1]
        size = self.objective.num_scores * self.objective.num_features
        coef, dcoef = parameters[:size], gradient[:size]
        squared = float(coef @ coef)
        reach = 0.0 if alpha else REACH * max(squared**0.5, 1.0 / self.objective.row_norm)
        self.within_reach = self._drop(float(dcoef @ dcoef), reach) / value if value else 0.0
        if self.within_reach * value >= value - self.lower > 0:  # it is too early for news
            return (value - self.lower) / value
        residual = alpha * coef
        np.subtract(dcoef, residual, out=residual)  # G(p); in place, for it is long where X is wide
        entropy = value - 0.5 * alpha * squared - float(coef @ residual)
        if self.moments is not None:
            entropy -= float(np.vdot(intercept, dintercept))
            entropy = self._feasible(entropy, residual, dintercept)
        if not alpha:
            bound = max(0.0, entropy - reach * float(np.linalg.norm(residual)))
            return max(0.0, value - bound) / value if value else 0.0
        self.lower = max(self.lower, entropy - float(residual @ residual) / (2 * alpha))
        return max(0.0, value - self.lower) / value if value else 0.0

    def _drop(self, squared: float, reach: float) -> float:
        """How much lower the optimum can be where the squared gradient in W is this and in b it is zero."""
        return squared / (2 * self.objective.alpha) if self.objective.alpha else reach * squared**0.5

    def _feasible(self, entropy: float, residual: Array, dintercept: Array) -> float:
        """Σ a m H(q) of the feasible mixture, from that of p; ``residual`` becomes G(q) from G(p)."""
        assert self.moments is not None
        mass, total_features, target_features = self.moments
        excess = dintercept if len(dintercept) > 1 else np.array([-dintercept[0], dintercept[0]])
        held = mass + excess  # Σ a m p, a class
        ratio = np.divide(excess, held, out=np.zeros_like(held), where=held > 0)
        tau = float(ratio.max())
        if tau <= np.finfo(float).eps:
            return entropy
        r = np.maximum(mass - (1.0 - tau) * held, 0.0)
        r /= r.sum()
        entropy_of_r = -float(r @ np.log(np.where(r > 0, r, 1.0)))
        residual *= 1 - tau
        scores = self.objective.num_scores
        by_class = self.objective.unpack(residual)[0]
        for start in range(0, len(total_features), BLOCK):  # where X is wide there is no room for another W
            part = slice(start, start + BLOCK)
            by_class[:, part] += tau * (
                r[-scores:, None] * total_features[part] - target_features[-scores:, part]
            )
        return (1 - tau) * entropy + tau * float(mass.sum()) * entropy_of_r
