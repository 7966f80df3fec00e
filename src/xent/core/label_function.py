"""The table of label functions: f(x) of equation (1), x = log p_y, with its derivatives f' and f''."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class LabelFunction(NamedTuple):
    """One row of the table; its fields are options of the loss. With all of them 0 it is f(x) = −x.

    ===================  =======================
    option               f(x)
    ===================  =======================
    ``focal_gamma`` γ    −(1 − eˣ)^γ x
    ``poly1_epsilon`` ε  −x + ε (1 − eˣ)
    ===================  =======================
    """

    focal_gamma: float = 0.0
    poly1_epsilon: float = 0.0

    @property
    def is_linear(self) -> bool:
        """Whether f(x) = −x: its slope is −1 whatever x is."""
        return self.focal_gamma == 0 and self.poly1_epsilon == 0

    @property
    def needs_labels(self) -> bool:
        """Whether f is defined for labels alone, not for probabilities or smoothed labels."""
        return not self.is_linear

    def value(self, x: Array, xp: Any) -> Array:
        """f(x)."""
        if self.focal_gamma:
            return _focal(x, self.focal_gamma, xp)
        if self.poly1_epsilon:
            return 0.0 - x - self.poly1_epsilon * xp.expm1(x)
        return 0.0 - x  # never −0.0

    def slope(self, x: Array, xp: Any) -> Array | float:
        """f'(x)."""
        if self.focal_gamma:
            return _focal_slope(x, self.focal_gamma, xp)
        if self.poly1_epsilon:
            return -1.0 - self.poly1_epsilon * xp.exp(x)
        return -1.0

    def curvature(self, x: Array, xp: Any) -> Array | float:
        """f''(x)."""
        if self.focal_gamma:
            return _focal_curvature(x, self.focal_gamma, xp)
        if self.poly1_epsilon:
            return -self.poly1_epsilon * xp.exp(x)
        return 0.0


# Focal loss (Lin et al., 2017). With p = eˣ, q = 1 − p and h = x/q (→ −1 as x → 0) no 0/0 is left at p = 1:
# f' = q^γ (γ p h − 1),   f'' = γ q^(γ−1) (2p + p x − (γ − 1) p² h).


def _focal(x: Array, gamma: float, xp: Any) -> Array:
    # At q = 0 the power has a pole and at x = −inf x is infinite; autograd would multiply both by 0 and get
    # NaN. So f and its derivatives are set there: to 0 at q = 0, to those of −x at x = −inf.
    impossible = x == -xp.inf
    finite = xp.where(impossible, -1.0, x)
    q = -xp.expm1(finite)
    return xp.where(impossible, -x, -_power(q, gamma, xp) * finite)


def _focal_slope(x: Array, gamma: float, xp: Any) -> Array:
    q, ph = _focal_terms(x, xp)
    return _power(q, gamma, xp) * (gamma * ph - 1.0)


def _focal_curvature(x: Array, gamma: float, xp: Any) -> Array:
    q, ph = _focal_terms(x, xp)
    p = xp.exp(x)
    px = xp.where(p == 0, 0.0, p * xp.where(p == 0, 0.0, x))
    # At q = 0 every use of f'' is multiplied by (e_y − p) = 0, so its pole for γ < 1 counts as 0.
    return gamma * _power(q, gamma - 1.0, xp) * (2.0 * p + px - (gamma - 1.0) * p * ph)


def _focal_terms(x: Array, xp: Any) -> tuple[Array, Array]:
    """(q, p h), with their limits at x = 0 and x = −inf."""
    q, impossible = -xp.expm1(x), x == -xp.inf
    h = xp.where(q == 0, -1.0, xp.where(impossible, -1.0, x) / xp.where(q == 0, 1.0, q))
    return q, xp.where(impossible, 0.0, xp.exp(x) * h)


def _power(q: Array, exponent: float, xp: Any) -> Array:
    """q to a power, 0 with derivatives 0 at q = 0."""
    return xp.where(q == 0, 0.0, xp.where(q == 0, 1.0, q) ** exponent)
