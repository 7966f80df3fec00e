"""The one table of tolerances: three times the error of the plain formula in the same precision.

Half precision is computed in float32, and its results may differ by one rounding at the end besides.

An error is measured in units of the natural magnitude of a result: the sum of the absolute values of
its terms, entry by entry, so that a probability of 1e-6 is checked as sharply as one of 1. What the
kernels do better than the plain formula (the tail p_y → 1) has tests of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16, finfo

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link

Array = Any


@dataclass(frozen=True)
class Tolerance:
    """error ≤ factor × (the plain error) + floor × (natural magnitude) + one rounding of the result."""

    compute: type  # precision of the plain formula
    factor: float
    floor: float
    per_logit: float  # added to the floor, × the largest |u|: a rounding of u itself


EPS32, EPS64 = 2.0**-23, 2.0**-52
TOLERANCES = {
    # The reference is float64 too: its error and the kernels' are alike, so the floor decides. In the
    # others it allows for sums in order, where NumPy's are pairwise.
    "float64": Tolerance(np.float64, 3.0, 256 * EPS64, 4 * EPS64),
    "float32": Tolerance(np.float32, 3.0, 16 * EPS32, 0.0),
    "float16": Tolerance(np.float32, 3.0, 16 * EPS32, 0.0),
    "bfloat16": Tolerance(np.float32, 3.0, 16 * EPS32, 0.0),
}
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(bfloat16),
}


def assert_close(
    actual: Array, expected: Array, plain: Array, magnitude: Array, what: str, dtype: str, largest: float
) -> None:
    """The rule of this file for one array; ``largest`` is the largest finite \\|u\\|."""
    rule = TOLERANCES[dtype]
    a, e, b = (np.asarray(x, np.float64) for x in (actual, expected, plain))
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    finite = np.isfinite(e)
    np.testing.assert_array_equal(a[~finite], e[~finite], f"{what}: other NaN or inf")
    unit = np.nan_to_num(np.broadcast_to(magnitude, finite.shape), nan=0.0, posinf=0.0)
    a, e, b, unit = (x[finite] for x in (a, e, b, unit))
    if not a.size:
        return
    counts = np.isfinite(b) & (unit > 0)
    plain_error = np.max(np.abs(b - e)[counts] / unit[counts], initial=0)
    info = finfo(np.asarray(actual).dtype)
    bound = (rule.factor * plain_error + rule.floor + rule.per_logit * largest) * unit
    bound += 0.51 * float(info.eps) * np.abs(e) + 0.51 * float(info.smallest_subnormal)  # one rounding
    bound += 4 * float(finfo(rule.compute).tiny) * max(unit.max(), 1.0)  # underflow
    excess = np.abs(a - e) - bound
    i = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    assert excess[i] <= 0, (
        f"{what}: {a[i]!r}, expected {e[i]!r}: error {abs(a[i] - e[i]):.2e}, allowed {bound[i]:.2e} "
        f"(plain formula: {abs(b[i] - e[i]):.2e} here, {plain_error:.2e} of the magnitude at worst)"
    )


class Magnitudes(NamedTuple):
    """Natural magnitudes: of each statistic (...), of the gradient and of the Hessian product (..., K)."""

    stats: dict[str, Array]
    grad: Array
    hvp: Array
    largest: float


def magnitudes(
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    cotangents: Cotangents,
    curvatures: Curvatures,
    vector: Array,
) -> Magnitudes:
    """Equations (1)–(3) with every term replaced by its absolute value, in float64."""
    z = np.asarray(logits, np.float64)
    u = link.value(z, np)
    top = u.max(-1, keepdims=True)
    e = np.exp(u - top)
    log_norm = np.log(e.sum(-1, keepdims=True))
    spread = np.where(np.isfinite(u), np.abs(u - top) + log_norm + 1, 0)  # of log p
    p = e / e.sum(-1, keepdims=True) * spread
    v = np.zeros(1) if dense is None else np.abs(np.asarray(dense, np.float64))
    v = np.broadcast_to(v, z.shape)
    mass = v.sum(-1, keepdims=True)
    one_hot = np.zeros_like(z) if labels is None else (labels[..., None] == np.arange(z.shape[-1])) * 1.0

    stats = {
        "lse": (np.abs(top) + log_norm + 1)[..., 0],
        "log_prob": (one_hot * spread).sum(-1),
        "dense_log_prob": (v * spread).sum(-1),
        "mass": mass[..., 0],
        "entropy": (p * spread).sum(-1),
    }
    dl, dx, ds = (np.abs(np.asarray(c, np.float64))[..., None] for c in cotangents)
    cl, cx = (np.abs(np.asarray(c, np.float64))[..., None] for c in curvatures)
    slope = 1.0 / link.temperature  # of 1 − tanh², before it cancels
    bracket = dl * p + dx * (one_hot + p) + ds * (v + mass * p)
    r = np.abs(np.asarray(vector, np.float64)) * slope
    rho = (p * r).sum(-1, keepdims=True)
    product = (dl + dx + ds * mass) * p * (r + rho) + cl * rho * p
    product = product + cx * ((one_hot * r).sum(-1, keepdims=True) + rho) * (one_hot + p)
    product = slope * product
    if link.softcap is not None:
        product = product + 2 * slope / link.softcap * r * bracket
    largest = float(np.max(np.abs(u), initial=0, where=np.isfinite(u)))
    return Magnitudes(stats, slope * bracket, product, largest)


class Plain:
    """The textbook formulas in one precision, as ``contract.Kernels``: shift, exponentiate, divide."""

    def __init__(self, compute: type) -> None:
        self.compute = compute

    def row_stats(
        self, logits: Array, labels: Array, dense: Array, link: Link, want: tuple[str, ...]
    ) -> RowStats:
        """Statistics from log p = u − max − log Σ exp(u − max)."""
        u, log_p = self._log_softmax(logits, link)
        read = np.ones(u.shape[:-1], bool) if labels is None else labels >= 0
        p = np.exp(log_p)
        stats = {
            "lse": u.max(-1) + np.log(np.exp(u - u.max(-1, keepdims=True)).sum(-1)),
            "entropy": -_dot(p, log_p),
            "argmax": u.argmax(-1),
        }
        if labels is not None:
            y = np.clip(labels, 0, u.shape[-1] - 1)[..., None]
            stats["log_prob"] = np.take_along_axis(log_p, y, -1)[..., 0]
        if dense is not None:
            v = np.broadcast_to(self._cast(dense), u.shape)
            stats |= {"dense_log_prob": _dot(v, log_p), "mass": v.sum(-1)}
        return RowStats(**{name: np.where(read, stats[name], stats[name].dtype.type(0)) for name in want})

    def row_grad(
        self,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        stats: RowStats,
        cotangents: Cotangents,
        out: Array = None,
    ) -> Array:
        """Equation (2) as it stands."""
        bracket = self._bracket(logits, labels, dense, link, cotangents)
        return self._result(labels, link.slope(self._cast(logits), np) * bracket, logits, out)

    def row_stats_and_grad(
        self,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        cotangents: Cotangents,
        want: tuple[str, ...],
        out: Array = None,
    ) -> tuple[RowStats, Array]:
        """Both."""
        stats = self.row_stats(logits, labels, dense, link, want)
        return stats, self.row_grad(logits, labels, dense, link, stats, cotangents, out)

    def row_hvp(
        self,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        cotangents: Cotangents,
        curvatures: Curvatures,
        vector: Array,
        out: Array = None,
    ) -> Array:
        """Equation (3) as it stands."""
        z, r = self._cast(logits), self._cast(vector)
        p = np.exp(self._log_softmax(logits, link)[1])
        dl, dx, ds = (self._cast(c)[..., None] for c in cotangents)
        cl, cx = (self._cast(c)[..., None] for c in curvatures)
        slope = link.slope(z, np)
        r_tilde = slope * r
        rho = (p * r_tilde).sum(-1, keepdims=True)
        mass = 0 if dense is None else self._cast(dense).sum(-1, keepdims=True)
        product = (dl - ds * mass - dx) * p * (r_tilde - rho) + cl * rho * p
        if labels is not None:
            one_hot = self._one_hot(labels, z)
            r_y = (one_hot * r_tilde).sum(-1, keepdims=True)
            product = product + cx * (r_y - rho) * (one_hot - p)
        bracket = self._bracket(logits, labels, dense, link, cotangents)
        return self._result(labels, slope * product + link.curvature(z, np) * r * bracket, logits, out)

    def _bracket(
        self, logits: Array, labels: Array, dense: Array, link: Link, cotangents: Cotangents
    ) -> Array:
        p = np.exp(self._log_softmax(logits, link)[1])
        dl, dx, ds = (self._cast(c)[..., None] for c in cotangents)
        bracket = dl * p
        if labels is not None:
            bracket = bracket + dx * (self._one_hot(labels, p) - p)
        if dense is not None:
            v = self._cast(dense)
            bracket = bracket + ds * (v - v.sum(-1, keepdims=True) * p)
        return bracket

    def _log_softmax(self, logits: Array, link: Link) -> tuple[Array, Array]:
        u = link.value(self._cast(logits), np).astype(self.compute, copy=False)
        shifted = u - u.max(-1, keepdims=True)
        return u, shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def _result(self, labels: Array, value: Array, logits: Array, out: Array) -> Array:
        if labels is not None:
            value = np.where((labels < 0)[..., None], 0, value)
        if out is None:
            return value
        out[...] = value
        return out

    def _one_hot(self, labels: Array, like: Array) -> Array:
        return self._cast(labels[..., None] == np.arange(like.shape[-1]))

    def _cast(self, x: Array) -> Array:
        return np.asarray(x).astype(self.compute, order="C")


def _dot(a: Array, b: Array) -> Array:
    return np.where(a == 0, a.dtype.type(0), a * np.where(a == 0, a.dtype.type(0), b)).sum(-1)
