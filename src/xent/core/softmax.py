"""The row statistics and their derivatives, equations (2), (3) and (5), on arrays of any library.

The float64 reference (NumPy) and derivatives of any order (PyTorch) share this code: every result is an
expression of whole arrays, which a library can differentiate again.
"""

from __future__ import annotations

from typing import Any

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link

Array = Any


class Softmax:
    """Rows ``logits (..., K)`` with ``labels (...)``, or a dense part ``v`` (K,) or (..., K), or both.

    All results are 0 in a row with a negative label, which is not read, and NaN in a row with a label ≥ K.
    """

    def __init__(
        self,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        xp: Any,
        num_classes: int | None = None,
    ) -> None:
        """``num_classes`` is K where the logits of these rows are not all here."""
        self.xp, self.link, self.labels = xp, link, labels
        num_classes = logits.shape[-1] if num_classes is None else num_classes
        self.is_read: Array = None
        if labels is not None:
            self.is_read = labels >= 0
            in_range = self.is_read & (labels < num_classes)
            self.index = xp.where(in_range, labels, 0)[..., None]
            if dense is not None and dense.ndim > 1:
                dense = xp.where(self.is_read[..., None], dense, 0.0)
        self.logits = read_logits(logits, labels, xp, num_classes)
        self.dense = dense
        self.dense_sum: Array = None if dense is None else self._class_sum(dense)  # V (..., 1)
        self.log_p = self._log_softmax(link.value(self.logits, xp))
        self.p = self._exp(self.log_p)

    # The statistics: docs/maths.md, 1.

    def stats(self, want: tuple[str, ...]) -> RowStats:
        """The fields of `RowStats` that ``want`` names."""
        return RowStats(**{name: self._mask_column(getattr(self, name)()) for name in want})

    def lse(self) -> Array:
        """l."""
        top, log_norm = self._norm(self.link.value(self.logits, self.xp))
        return (top + log_norm)[..., 0]

    def log_prob(self) -> Array:
        """x = log p_y."""
        return self._take_class(self.log_p, self.index)[..., 0]

    def dense_log_prob(self) -> Array:
        """σ = ⟨v, log p⟩."""
        return self._dot(self.dense, self.log_p)

    def mass(self) -> Array:
        """V = Σ v."""
        return self.xp.broadcast_to(self.dense_sum[..., 0], self.logits.shape[:-1])

    def entropy(self) -> Array:
        """−⟨p, log p⟩."""
        return -self._dot(self.p, self.log_p)

    def argmax(self) -> Array:
        """The first class with the largest logit; NaN counts as −inf."""
        xp, z = self.xp, self.logits
        if not z.shape[-1]:
            return xp.zeros_like(z.sum(-1), dtype=int)
        largest = xp.amax(xp.where(xp.isnan(z), -xp.inf, z), -1)[..., None]
        return xp.argmax(xp.where(z == largest, 1, 0), -1)

    # Equation (5) in reverse and in forward mode.

    def grad(self, cotangents: Cotangents) -> Array:
        """Equation (2): φ' ∘ [dl·p + dx·(e_y − p) + dσ·(v − V·p)]."""
        return self._mask_rows(self.link.slope(self.logits, self.xp) * self._bracket(cotangents))

    def jvp(self, vector: Array) -> tuple[Array, Array, Array]:
        """Tangents of (l, x, σ) along ``vector``: ⟨p, r̃⟩, ⟨e_y − p, r̃⟩, ⟨v − V·p, r̃⟩."""
        tilted = self._mask_rows(self.link.slope(self.logits, self.xp) * vector)
        rho = self._mask_column(self._expectation(tilted))
        dx = ds = self.xp.zeros_like(rho)
        if self.labels is not None:
            dx = self._take_class(tilted, self.index)[..., 0] - rho
        if self.dense is not None:
            ds = (self.dense * tilted).sum(-1) - self.dense_sum[..., 0] * rho
        return rho, dx, ds

    def entropy_grad(self, dentropy: Array) -> Array:
        """Gradient of the entropy, (26): −φ' ∘ p ∘ (log p + entropy)."""
        slope = self.link.slope(self.logits, self.xp)
        return self._mask_rows(entropy_grad(self.p, self.log_p, self.entropy(), slope, dentropy, self.xp))

    def entropy_jvp(self, vector: Array) -> Array:
        """Tangent of the entropy along ``vector``."""
        one = self.xp.ones_like(self.logits[..., 0])
        return (self.entropy_grad(one) * vector).sum(-1)

    # Equation (3).

    def hvp(self, cotangents: Cotangents, vector: Array, curvatures: Curvatures | None = None) -> Array:
        """Equation (3), with s − b = dl − dx − V·dσ and κ = ddx·(r̃_y − ρ); None for constant cotangents."""
        link, p = self.link, self.p
        slope = link.slope(self.logits, self.xp)
        tilted = slope * vector
        rho = self._expectation(tilted)[..., None]
        product = self._softmax_coefficient(cotangents) * p * (tilted - rho)
        if curvatures is not None:
            product = product + self._column(curvatures.lse) * rho * p
            if self.labels is not None:
                kappa = self._column(curvatures.log_prob) * (self._take_class(tilted, self.index) - rho)
                product = product + kappa * self._label_residual()
        product = slope * product
        if link.softcap is not None:
            curvature = link.curvature(self.logits, self.xp)
            product = product + curvature * vector * self._bracket(cotangents)
        return self._mask_rows(product)

    # The parts of the bracket of (2).

    def _bracket(self, cotangents: Cotangents) -> Array:
        columns = Cotangents(*(self._column(c) for c in cotangents))
        label_residual = None if self.labels is None else self._label_residual()
        dense_residual = None if self.dense is None else self._dense_residual()
        return bracket(columns, self.p, label_residual, dense_residual)

    def _softmax_coefficient(self, cotangents: Cotangents) -> Array:
        """s − b of (3): the coefficient of p in (2)."""
        dl, dx, ds = (self._column(c) for c in cotangents)
        return dl - dx if self.dense is None else dl - dx - ds * self.dense_sum

    def _label_residual(self) -> Array:
        """e_y − p, with 1 − p_y from expm1."""
        return self._replace_class(
            -self.p, self.index, -self.xp.expm1(self._take_class(self.log_p, self.index))
        )

    def _dense_residual(self) -> Array:
        """v − V·p, without cancellation at the class of the largest p, the only one that may exceed 1/2."""
        if not self.p.shape[-1]:
            return self.p
        largest = self._likeliest()
        dense = self._take_class(self.xp.broadcast_to(self.dense, self.p.shape), largest)
        exact = mass_residual(dense, self.dense_sum, self._take_class(self.log_p, largest), self.xp)
        return self._replace_class(self.dense - self.dense_sum * self.p, largest, exact)

    # Sums over classes, and rows that are not read.

    def _log_softmax(self, u: Array) -> Array:
        top, log_norm = self._norm(u)
        return (u - top) - log_norm

    def _norm(self, u: Array) -> tuple[Array, Array]:
        """max u and log Σ exp(u − max u), summed without the largest term: docs/maths.md, 7."""
        xp = self.xp
        if not u.shape[-1]:
            empty = u.sum(-1)[..., None]
            return empty - xp.inf, empty
        top = xp.amax(u, -1)[..., None]
        shifted = u - top
        is_largest = self._classes() == xp.argmax(u, -1)[..., None]
        rest = xp.where(is_largest, xp.expm1(shifted), xp.exp(shifted)).sum(-1)[..., None]
        return top, xp.log1p(rest)

    def _exp(self, x: Array) -> Array:
        return self.xp.exp(x)

    def _expectation(self, x: Array) -> Array:
        """⟨p, x⟩."""
        return self._dot(self.p, x)

    def _dot(self, a: Array, b: Array) -> Array:
        """⟨a, b⟩ over classes; a term with a = 0 is 0."""
        return self._class_sum(multiply(a, b, self.xp))[..., 0]

    def _class_sum(self, x: Array) -> Array:
        """Σ over classes (..., 1)."""
        return x.sum(-1)[..., None]

    def _likeliest(self) -> Array:
        """A class of the largest p (..., 1)."""
        return self.xp.argmax(self.log_p, -1)[..., None]

    def _take_class(self, x: Array, index: Array) -> Array:
        """``x`` at one class of each row, ``index (..., 1)``."""
        return self.xp.take_along_axis(x, index, -1)

    def _replace_class(self, x: Array, index: Array, value: Array) -> Array:
        """``x`` with ``value (..., 1)`` at one class of each row."""
        return self.xp.where(self._classes() == index, value, x)

    def _classes(self) -> Array:
        return self.xp.arange(self.logits.shape[-1], device=self.logits.device)

    def _column(self, coefficient: Array) -> Array:
        return coefficient[..., None] if getattr(coefficient, "ndim", 0) else coefficient

    def _mask_column(self, x: Array) -> Array:
        """``x (...)`` with 0 in rows that are not read."""
        return x if self.is_read is None else self.xp.where(self.is_read, x, 0)

    def _mask_rows(self, x: Array) -> Array:
        """``x (..., K)`` with 0 in rows that are not read."""
        return x if self.is_read is None else self.xp.where(self.is_read[..., None], x, 0.0)


def read_logits(logits: Array, labels: Array, xp: Any, num_classes: int | None = None) -> Array:
    """The logits with 0 in rows of a negative label, whose derivative could be 0·NaN, and NaN for one ≥ K."""
    if labels is None:
        return logits
    in_range = (labels >= 0) & (labels < (logits.shape[-1] if num_classes is None else num_classes))
    return xp.where(in_range[..., None], logits, xp.where(labels < 0, 0.0, xp.nan)[..., None])


def mean_logits(logits: Array, labels: Array, link: Link, xp: Any) -> Array:
    """Σ u / K (...) in float64, of logits in float32 or float64; without classes 0."""
    num_classes = logits.shape[-1]
    if link.softcap is None:  # without a copy of the logits
        row_sum = xp.sum(logits, -1) / link.temperature
    else:
        row_sum = xp.sum(link.value(read_logits(logits, labels, xp), xp), -1)
    mean = xp.sum(row_sum[..., None], -1, dtype=float) / max(1, num_classes)
    if labels is None:
        return mean
    return xp.where(labels < 0, 0.0, xp.where(labels < num_classes, mean, xp.nan))


def mean_logits_grad(logits: Array, labels: Array, link: Link, dmean: Array, xp: Any) -> Array:
    """Gradient of the mean, (26), times ``dmean``: (..., K), or (..., 1) if it is that of every class."""
    if labels is not None:
        dmean = xp.where(labels < 0, 0.0, dmean)
    column = dmean[..., None] / max(1, logits.shape[-1])
    if link.softcap is None:
        return column * link.slope(logits, xp)
    return multiply(column, link.slope(logits, xp), xp)


def entropy_grad(p: Array, log_p: Array, entropy: Array, slope: Array, dentropy: Array, xp: Any) -> Array:
    """Gradient of the entropy, (26), times ``dentropy``; ``slope`` is φ'."""
    product = slope * p * (xp.where(p == 0, 0.0, log_p) + entropy[..., None])
    return multiply(-dentropy[..., None], product, xp)


def bracket(cotangents: Cotangents, p: Array, label_residual: Array, dense_residual: Array) -> Array:
    """dl·p + dx·(e_y − p) + dσ·(v − V·p), the bracket of (2); a residual is None if the target lacks it."""
    value = cotangents.lse * p
    if label_residual is not None:
        value = value + cotangents.log_prob * label_residual
    if dense_residual is not None:
        value = value + cotangents.dense_log_prob * dense_residual
    return value


def mass_residual(dense: Array, mass: Array, log_p: Array, xp: Any) -> Array:
    """v − V·p at a class, as (v − V) − V·expm1(log p) where p > 1/2."""
    near_one = (dense - mass) - mass * xp.expm1(log_p)
    return xp.where(log_p > -0.69, near_one, dense - mass * xp.exp(log_p))


def multiply(factor: Array, x: Array, xp: Any) -> Array:
    """factor·x; 0 where the factor is 0, even if x is infinite or NaN. Its derivative in the factor is x."""
    return factor * xp.where((factor == 0) & ~xp.isfinite(x), 0.0, x)
