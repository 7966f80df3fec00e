"""Equations (1)–(3) in float64 NumPy, written to be read beside docs/maths.md: the oracle of the tests.

It fulfils ``contract.Kernels`` with whole-array expressions and no thought of speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link

Array = Any


def row_stats(logits: Array, labels: Array, dense: Array, link: Link, want: tuple[str, ...]) -> RowStats:
    """l, x, σ, V, entropy and argmax of each row."""
    z = _float64(logits)
    u = link.value(z, np)
    valid, y = _labels(labels, u)
    log_p, lse = _log_softmax(u)
    stats = {"lse": lse, "entropy": -_dot(np.exp(log_p), log_p)}
    if u.shape[-1]:
        stats["argmax"] = np.argmax(z == np.fmax.reduce(z, -1, keepdims=True), -1)
    else:
        stats["argmax"] = np.zeros(u.shape[:-1], np.int64)
    if labels is not None:
        stats["log_prob"] = np.take_along_axis(log_p, y[..., None], -1)[..., 0]
        stats["log_prob"] = np.where(labels < u.shape[-1], stats["log_prob"], np.nan)
    if dense is not None:
        v = np.broadcast_to(_float64(dense), u.shape)
        stats |= {"dense_log_prob": _dot(v, log_p), "mass": v.sum(-1)}
    return RowStats(**{name: np.where(valid, stats[name], 0) for name in want})


def row_grad(
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Array = None,
) -> Array:
    """Equation (2): φ' ∘ [dl·p + dx·(e_y − p) + dσ·(v − V·p)]."""
    z = _float64(logits)
    bracket = _bracket(z, labels, dense, link, cotangents)
    return _rows_read(labels, cotangents, link.slope(z, np) * bracket, logits, out)


def row_stats_and_grad(
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Array = None,
) -> tuple[RowStats, Array]:
    """Both, one after the other."""
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
    """Equation (3), with s − b = dl − dx − V·dσ and κ = f''-term·(r̃_y − ρ)."""
    z, r = _float64(logits), _float64(vector)
    p = np.exp(_log_softmax(link.value(z, np))[0])
    slope = link.slope(z, np)
    r_tilde = slope * r
    rho = _dot(p, r_tilde)[..., None]
    s_minus_b = _column(cotangents.lse) - _column(cotangents.log_prob)
    if dense is not None:
        s_minus_b = s_minus_b - _column(cotangents.dense_log_prob) * _mass(dense)
    product = s_minus_b * p * (r_tilde - rho) + _column(curvatures.lse) * rho * p
    if labels is not None:
        one_hot = _one_hot(labels, z)
        kappa = _column(curvatures.log_prob) * (_dot(one_hot, r_tilde)[..., None] - rho)
        product = product + kappa * (one_hot - p)
    product = slope * product
    if link.softcap is not None:
        product = product + link.curvature(z, np) * r * _bracket(z, labels, dense, link, cotangents)
    return _rows_read(labels, (*cotangents, *curvatures), product, logits, out)


def _bracket(z: Array, labels: Array, dense: Array, link: Link, cotangents: Cotangents) -> Array:
    log_p, _ = _log_softmax(link.value(z, np))
    bracket = _column(cotangents.lse) * np.exp(log_p)
    if labels is not None:  # e_y − p, as −expm1(log p) where it is 1 − p_y
        one_hot = _one_hot(labels, z)
        residual = np.where(one_hot == 1, -np.expm1(log_p), -np.exp(log_p))
        bracket = bracket + _column(cotangents.log_prob) * residual
    if dense is not None:  # v − V·p, as (v − V) − V·expm1(log p) where p > 1/2
        v, mass = _float64(dense), _mass(dense)
        near_one = (v - mass) - mass * np.expm1(log_p)
        residual = np.where(log_p > -0.69, near_one, v - mass * np.exp(log_p))
        bracket = bracket + _column(cotangents.dense_log_prob) * residual
    return bracket


def _log_softmax(u: Array) -> tuple[Array, Array]:
    """log p and l, from the sum of exponentials without its largest term."""
    if u.shape[-1] == 0:
        return u, np.full(u.shape[:-1], -np.inf)
    with np.errstate(invalid="ignore"):
        shifted = u - u.max(-1, keepdims=True)
    largest = np.argmax(u, -1)[..., None]
    terms = np.exp(shifted)
    np.put_along_axis(terms, largest, np.expm1(np.take_along_axis(shifted, largest, -1)), -1)
    log_norm = np.log1p(terms.sum(-1, keepdims=True))
    return shifted - log_norm, (u.max(-1, keepdims=True) + log_norm)[..., 0]


def _rows_read(labels: Array, coefficients: Any, value: Array, logits: Array, out: Array) -> Array:
    """``value`` in ``out``: 0 in rows that are not read, NaN where the label is not a class."""
    silent = np.all([np.broadcast_to(c, value.shape[:-1]) == 0 for c in coefficients], axis=0)
    if labels is not None:
        silent = silent | (labels < 0)
        value = np.where((labels >= value.shape[-1])[..., None], np.nan, value)
    value = np.where(silent[..., None], 0.0, value)
    if out is None:
        return value
    out[...] = value
    return out


def _labels(labels: Array, u: Array) -> tuple[Array, Array]:
    """(rows that are read, labels that are safe to index with)."""
    if labels is None:
        return np.ones(u.shape[:-1], bool), np.zeros(u.shape[:-1], np.int64)
    return labels >= 0, np.clip(labels, 0, u.shape[-1] - 1)


def _one_hot(labels: Array, z: Array) -> Array:
    return (labels[..., None] == np.arange(z.shape[-1])).astype(np.float64)


def _mass(dense: Array) -> Array:
    return _float64(dense).sum(-1, keepdims=True)


def _dot(a: Array, b: Array) -> Array:
    """⟨a, b⟩ over classes, with 0·(±inf) = 0."""
    with np.errstate(invalid="ignore"):
        return np.where(a == 0, 0.0, a * b).sum(-1)


def _float64(x: Array) -> Array:
    return np.asarray(x).astype(np.float64, order="C")  # sums along contiguous rows are pairwise


def _column(coefficient: Array | float) -> Array:
    return np.asarray(coefficient, np.float64)[..., None]
