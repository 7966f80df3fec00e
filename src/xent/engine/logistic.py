"""Rows of two logits (0, z), without the rows: their measure, and their kernels, element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xent.core import target
from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.core.target import Target

Array = Any


def measure(q: Array, pos_weight: Array | None, weight: Array | None, spec: LossSpec, xp: Any) -> Target:
    """The measure of probabilities ``q`` (...) of the second class, or, for the focal loss, of labels.

    ``dense`` is the pair of its two masses (1 − q, πq). ``weight`` (...) is 0 for an element to leave out.
    """
    total, rows = target.totals(math.prod(q.shape), weight, None, xp)
    if spec.label_function.needs_labels:
        alpha = 1.0 if pos_weight is None else xp.where(q == 1, pos_weight, 1.0)
        return Target(q, alpha, None, 0.0, weight, total, rows)
    smoothing = smoothing_of(spec)
    if smoothing:
        q = (1.0 - smoothing) * q + smoothing / 2
    dense = (1.0 - q, q if pos_weight is None else pos_weight * q)
    return Target(None, 0.0, dense, 1.0, weight, total, rows)


def smoothing_of(spec: LossSpec) -> float:
    """The part of a probability that is shared by the two classes."""
    return spec.label_smoothing * (2 if spec.smoothing_over == "others" else 1)


# The kernels, on NumPy arrays (...), as `contract.Kernels`; `dense` is a pair of arrays.


def row_stats(logits: Array, labels: Array, dense: Any, link: Link, want: tuple[str, ...]) -> RowStats:
    """See `contract.Kernels`."""
    return _stats(_Row(logits, link), labels, dense)


def row_grad(
    logits: Array,
    labels: Array,
    dense: Any,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Array = None,
) -> Array:
    """See `contract.Kernels`."""
    return _written(_gradient(_Row(logits, link), logits, labels, dense, link, cotangents), out)


def row_stats_and_grad(
    logits: Array,
    labels: Array,
    dense: Any,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Array = None,
) -> tuple[RowStats, Array]:
    """See `contract.Kernels`."""
    row = _Row(logits, link)
    stats = _stats(row, labels, dense) if want else RowStats()
    return stats, _written(_gradient(row, logits, labels, dense, link, cotangents), out)


class _Row:
    """lse, log-probabilities and probabilities of (0, u): no difference of large numbers at either end."""

    def __init__(self, logits: Array, link: Link) -> None:
        u = logits if link == (1.0, None) else link.value(logits, np)
        if np.isposinf(u).any():
            u = np.where(u == np.inf, np.nan, u)  # as any row with +inf
        small = np.exp(-np.abs(u))
        rest = np.log1p(small)
        self.lse = np.maximum(u, 0) + rest
        self.log_p = (-self.lse, np.minimum(u, 0) - rest)
        large = 1 / (1 + small)
        small *= large
        self.p = np.where(u > 0, small, large), np.where(u > 0, large, small)


def _stats(row: _Row, labels: Array, dense: Any) -> RowStats:
    if labels is None:
        # 0·(−inf) = 0
        sigma = sum(v * np.where(v == 0, 0, log_p) for v, log_p in zip(dense, row.log_p, strict=True))
        return RowStats(lse=row.lse, dense_log_prob=sigma, mass=dense[0] + dense[1])
    x = np.where(labels == 0, *row.log_p)
    x = np.where(labels > 1, np.nan, np.where(labels < 0, 0, x))
    return RowStats(lse=np.where(labels < 0, 0, row.lse), log_prob=x)


def _gradient(
    row: _Row, logits: Array, labels: Array, dense: Any, link: Link, cotangents: Cotangents
) -> Array:
    """Equation (2), with each difference of probabilities as the product that it is."""
    dl, dx, ds = cotangents
    p0, p1 = row.p
    if labels is None:
        gradient = _times(ds, dense[1] * p0 - dense[0] * p1)
    else:
        bracket = np.where(labels == 1, p0, -p1)
        gradient = _times(np.where(labels < 0, 0.0, dx), np.where(labels > 1, np.nan, bracket))
    if np.ndim(dl) or dl:
        gradient = gradient + _times(dl, p1)
    return gradient if link == (1.0, None) else _times(gradient, link.slope(logits, np))


def _written(gradient: Array, out: Array) -> Array:
    if out is None:
        return gradient
    out[...] = gradient
    return out


def _times(coefficient: Any, x: Array) -> Array:
    """The product, where a coefficient of 0 silences NaN."""
    if np.ndim(coefficient) == 0:
        return coefficient * x if coefficient else np.zeros_like(x)
    return coefficient * np.where(coefficient == 0, 0, x)
