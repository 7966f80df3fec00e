"""Entropy, cross-entropy, KL and JS divergence of probabilities; perplexity and bits of a loss.

Probabilities have shape (..., K) and sum to 1 over the last axis; results have shape (...), in nats.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent.engine import checks

Array = np.ndarray[Any, Any]


class Decomposition(NamedTuple):
    """``cross_entropy = entropy + kl_divergence``, each (...) in nats.

    >>> from xent import information
    >>> parts = information.decompose([0.5, 0.5], [0.25, 0.75])
    >>> bool(np.isclose(parts.cross_entropy, parts.entropy + parts.kl_divergence))
    True
    """

    cross_entropy: Array
    entropy: Array
    kl_divergence: Array


def entropy(p: Any) -> Any:
    """Shannon entropy ``H(p) = −Σ p log p`` (Shannon, 1948), with 0 log 0 = 0.

    Parameters: ``p (..., K)``, floats in [0, 1]. Returns (...) in nats. Raises TypeError for another
    dtype and ValueError for an entry that is NaN or outside [0, 1], naming the place.

    >>> from xent import information
    >>> float(information.entropy([0.5, 0.5]))
    0.6931471805599453
    """
    p = _probabilities(p, "p")
    return 0.0 - _sum_p_log(p, p)


def cross_entropy(p: Any, q: Any) -> Any:
    """``H(p, q) = −Σ p log q``: the mean length of a code for ``q`` under ``p``; inf where q = 0 < p.

    Parameters, errors and units as for `entropy`; ``p`` and ``q`` broadcast.

    >>> from xent import information
    >>> round(float(information.cross_entropy([1.0, 0.0], [0.25, 0.75])), 4)
    1.3863
    """
    return 0.0 - _sum_p_log(*_pair(p, q))


def kl_divergence(p: Any, q: Any) -> Any:
    """``KL(p‖q) = Σ p log(p/q)`` (Kullback and Leibler, 1951), 0 for p = q.

    Never negative if the sums of p and q are equal up to rounding in the coarser of their dtypes.
    Parameters, errors and units as for `cross_entropy`.

    >>> from xent import information
    >>> round(float(information.kl_divergence([0.5, 0.5], [0.25, 0.75])), 4)
    0.1438
    """
    epsilon = max(_epsilon(p, "p"), _epsilon(q, "q"))
    p, q = _pair(p, q)
    least = (p - q).sum(-1)  # a lower bound of KL, as log x ≤ x − 1
    least = np.where(least < -epsilon * p.shape[-1], least, 0.0)
    return np.maximum((p * _log_ratio(p, q)).sum(-1), least)


def js_divergence(p: Any, q: Any) -> Any:
    """``JS(p, q) = (KL(p‖m) + KL(q‖m))/2`` with ``m = (p+q)/2`` (Lin, 1991): symmetric, ≤ ln 2.

    Never negative: where p and q are close, it is computed as ``Σ (p+q)/4 [log(1−d²) + 2d artanh d]`` with
    d = (p−q)/(p+q). Its square root is a metric. Parameters, errors and units as for `cross_entropy`.

    >>> from xent import information
    >>> float(information.js_divergence([1.0, 0.0], [0.0, 1.0]))
    0.6931471805599453
    """
    p, q = _pair(p, q)
    both = p + q
    d = np.divide(p - q, both, out=np.zeros_like(both), where=both > 0)
    is_close = np.abs(d) < 0.5
    near = np.where(is_close, d, 0.0)
    close = both * (np.log1p(-near * near) + 2 * near * np.arctanh(near)) / 4
    apart = (p * _log_ratio(2 * p, both) + q * _log_ratio(2 * q, both)) / 2
    return np.where(is_close, close, apart).sum(-1)


def decompose(p: Any, q: Any) -> Decomposition:
    """``H(p, q) = H(p) + KL(p‖q)``: the loss that no model can avoid, and the excess of this one.

    Parameters, errors and units as for `cross_entropy`.

    >>> from xent import information
    >>> [round(float(x), 4) for x in information.decompose([0.5, 0.5], [0.25, 0.75])]
    [0.837, 0.6931, 0.1438]
    """
    return Decomposition(cross_entropy(p, q), entropy(p), kl_divergence(p, q))


def perplexity(loss: Any) -> Any:
    """``exp(loss)``: the number of equally likely classes that would cost ``loss`` nats.

    >>> from xent import information
    >>> round(float(information.perplexity(1.3862943611198906)), 6)
    4.0
    """
    with np.errstate(over="ignore"):  # to inf, the right result
        return np.exp(np.asarray(loss, np.float64))[()]


def bits(loss: Any) -> Any:
    """``loss / ln 2``: nats in bits.

    >>> from xent import information
    >>> float(information.bits(0.6931471805599453))
    1.0
    """
    with np.errstate(over="ignore"):
        return (np.asarray(loss, np.float64) / math.log(2))[()]


def _probabilities(p: Any, name: str) -> Array:
    array = checks.as_logits(p, name).astype(np.float64)
    # A float32 softmax may round a probability to 1 + 1e-7: take it as 1.
    checks.check_probabilities(array, name, upper=1 + 1e-6)
    return np.minimum(array, 1.0)


def _epsilon(p: Any, name: str) -> float:
    """The rounding error of one probability in the dtype of ``p``."""
    return {8: 2.0**-52, 4: 2.0**-23, 2: 2.0**-8}[checks.as_logits(p, name).dtype.itemsize]


def _pair(p: Any, q: Any) -> tuple[Array, Array]:
    p, q = _probabilities(p, "p"), _probabilities(q, "q")
    try:
        np.broadcast_shapes(p.shape, q.shape)
    except ValueError:
        raise ValueError(
            f"`p` and `q` must have shapes that broadcast; got {p.shape} and {q.shape}"
        ) from None
    return p, q


def _log_ratio(a: Array, b: Array) -> Array:
    """log(a/b), also if the quotient overflows; 0 for a = 0, since its weight is then 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        ratio = a / b
        log = np.where(np.isfinite(ratio), np.log(ratio), np.log(a) - np.log(b))
    return np.where(a == 0, 0.0, log)


def _sum_p_log(p: Array, q: Array) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms: Array = np.where(p == 0, 0.0, p * np.log(q))
    return terms.sum(-1)
