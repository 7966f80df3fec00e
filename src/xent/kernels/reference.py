"""Equations (1)–(3) in float64 NumPy, by `core.softmax`: the oracle of the tests.

It implements ``contract.Kernels`` with whole-array expressions, without regard to speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.core.softmax import Softmax

Array = Any


def row_stats(logits: Array, labels: Array, dense: Array, link: Link, want: tuple[str, ...]) -> RowStats:
    """l, x, σ, V, entropy and argmax of each row."""
    with np.errstate(invalid="ignore"):
        return _softmax(logits, labels, dense, link).stats(want)


def row_grad(
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Array = None,
) -> Array:
    """Equation (2)."""
    cotangents = Cotangents(*map(_float64, cotangents))
    with np.errstate(invalid="ignore"):
        grad = _softmax(logits, labels, dense, link).grad(cotangents)
    return _written(grad, cotangents, out)


def row_stats_and_grad(
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Array = None,
) -> tuple[RowStats, Array]:
    """The statistics, then the gradient."""
    stats = row_stats(logits, labels, dense, link, want)
    return stats, row_grad(logits, labels, dense, link, stats, cotangents, out)


def row_hvp(
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    cotangents: Cotangents,
    curvatures: Curvatures,
    vector: Array,
    out: Array = None,
) -> Array:
    """Equation (3)."""
    cotangents, curvatures = Cotangents(*map(_float64, cotangents)), Curvatures(*map(_float64, curvatures))
    with np.errstate(invalid="ignore"):
        product = _softmax(logits, labels, dense, link).hvp(cotangents, _float64(vector), curvatures)
    return _written(product, (*cotangents, *curvatures), out)


def _softmax(logits: Array, labels: Array, dense: Array, link: Link) -> Softmax:
    return Softmax(_float64(logits), labels, None if dense is None else _float64(dense), link, np)


def _written(value: Array, coefficients: tuple[Array, ...], out: Array) -> Array:
    """``value``, copied to ``out`` if given, with 0 in rows whose coefficients are all 0."""
    silent = np.all([np.broadcast_to(c, value.shape[:-1]) == 0 for c in coefficients], axis=0)
    value = np.where(silent[..., None], 0.0, value)
    if out is None:
        return value
    out[...] = value
    return out


def _float64(x: Array) -> Array:
    return np.asarray(x).astype(np.float64, order="C")  # sums along contiguous rows are pairwise
