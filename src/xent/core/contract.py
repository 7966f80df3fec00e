"""The interface of kernels and head: row statistics, their cotangents, and the four kernel functions.

Shapes: ``logits (..., K)``; ``labels (...)`` int64, where a negative label marks a row that is not
read (statistics 0, gradient 0) and one of K or more gives NaN in that row; ``dense`` is ``v``, either
(K,) for all rows or (..., K). Coefficients are scalars or (...). A row whose cotangents are all zero
is not read either: its gradient is exactly 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from xent.core.link import Link

Array = Any


class RowStats(NamedTuple):
    """Row statistics, from which every loss is computed; None for a field that was not requested."""

    lse: Array = None  # l = logsumexp(u)
    log_prob: Array = None  # x = u_y − l
    dense_log_prob: Array = None  # σ = ⟨v, log p⟩
    mass: Array = None  # V = Σ v
    entropy: Array = None  # −⟨p, log p⟩
    argmax: Array = None


class RowStatistics(NamedTuple):
    """Statistics of each row, shaped like the rows; None for a field that was not wanted.

    Attributes
    ----------
    lse : floats
        Log-sum-exp ``l`` of the logits, nats.
    log_prob : floats
        Log-probability ``x`` of the label, nats; None without labels.
    entropy : floats
        ``−Σ p log p``, nats.
    argmax : integers
        The first class of the largest logit.
    log_sum_sq_probs : floats
        ``log Σ p²``.
    mean_logits : floats
        ``Σ u / K``.
    is_top1 : booleans
        Whether the label is ``argmax``.

    Examples
    --------
    >>> import numpy as np, xent
    >>> statistics = xent.row_statistics(np.zeros((2, 4)), np.array([0, 3]))
    >>> statistics.log_prob.round(4), statistics.is_top1
    (array([-1.3863, -1.3863]), None)
    """

    lse: Array = None
    log_prob: Array = None
    entropy: Array = None
    argmax: Array = None
    log_sum_sq_probs: Array = None
    mean_logits: Array = None
    is_top1: Array = None


class Cotangents(NamedTuple):
    """∂loss/∂(l, x, σ), per row."""

    lse: Array | float = 0.0
    log_prob: Array | float = 0.0
    dense_log_prob: Array | float = 0.0


class Curvatures(NamedTuple):
    """∂²loss/∂l² and ∂²loss/∂x², per row; (1) has no mixed term and is linear in σ."""

    lse: Array | float = 0.0
    log_prob: Array | float = 0.0


class Kernels(Protocol):
    """A backend. ``want`` names the fields of RowStats to compute; ``out`` may be ``logits`` itself."""

    def row_stats(
        self, logits: Array, labels: Array, dense: Array, link: Link, want: tuple[str, ...]
    ) -> RowStats:
        """Statistics in one read of the logits."""
        ...

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
        """Equation (2): the vector-Jacobian product of the statistics, given lse, log_prob, mass."""
        ...

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
        """Statistics (without entropy and argmax) and gradient in one read, for cotangents known before."""
        ...

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
        """Equation (3): the Hessian of the loss in the logits, times ``vector``."""
        ...
