"""`contract.Kernels` for JAX: formulas in JAX's operations, and the C++ kernels where those run faster."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.jax.softmax import Softmax

Array = Any


class Formulas:
    """The row statistics and equation (2) in operations that JAX compiles and differentiates."""

    @staticmethod
    def row_stats(logits: Array, labels: Array, dense: Array, link: Link, want: tuple[str, ...]) -> RowStats:
        """Statistics (...) in float32 or float64."""
        return Softmax(logits, labels, dense, link).stats(want)

    @staticmethod
    def row_grad(
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        stats: RowStats,
        cotangents: Cotangents,
        out: None = None,
    ) -> Array:
        """Equation (2) in the dtype of the logits; the statistics are computed again, in the same loops."""
        grad = Softmax(logits, labels, dense, link).grad(cotangents)
        return jnp.where(_is_read(cotangents), grad, 0).astype(logits.dtype)

    @classmethod
    def row_stats_and_grad(
        cls,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        cotangents: Cotangents,
        want: tuple[str, ...],
        out: None = None,
    ) -> tuple[RowStats, Array]:
        """Both of the above."""
        stats = cls.row_stats(logits, labels, dense, link, want)
        return stats, cls.row_grad(logits, labels, dense, link, stats, cotangents)


def choose(logits: Array) -> Any:
    """What computes rows of these logits: the formulas."""
    return Formulas


def _is_read(cotangents: Cotangents) -> Array:
    """Marks the rows of which a cotangent is not 0: (..., 1), or one value for all rows."""
    mask: Array = False
    for cotangent in cotangents:
        mask = mask | (jnp.asarray(cotangent) != 0)
    return mask[..., None] if jnp.ndim(mask) else mask
