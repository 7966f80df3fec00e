"""Softmax in JAX's operations, with derivatives of every order that keep the tail p → 1."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from xent.core import softmax as core
from xent.core.link import Link
from xent.jax import arguments

Array = Any


class Softmax(core.Softmax):
    """`core.softmax.Softmax` of JAX arrays, in float32 or float64; JAX can differentiate all of it."""

    def __init__(
        self, logits: Array, labels: Array, dense: Array, link: Link, num_classes: int | None = None
    ) -> None:
        wide = logits.astype(arguments.loss_dtype(logits))
        dense = None if dense is None else dense.astype(wide.dtype)
        super().__init__(wide, labels, dense, link, jnp, num_classes)

    def _log_softmax(self, u: Array) -> Array:
        return log_softmax_rows(u)

    def _exp(self, x: Array) -> Array:
        return exp(x)

    def lse(self) -> Array:
        """l = u − log p, at the class of the largest u."""
        u = self.link.value(self.logits, jnp)
        if not u.shape[-1]:
            return u.sum(-1) - jnp.inf
        return _at_largest(u - self.log_p, _is_largest(u))[..., 0]

    def _take_class(self, x: Array, index: Array) -> Array:
        # A comparison, for a gather has a scatter as its derivative, which runs one element at a time.
        return self._class_sum(jnp.where(self._classes() == index, x, 0))

    def _label_residual(self) -> Array:
        # JAX differentiates expm1 as expm1 + 1, which is 0 for a small exponential; so that is left to exp.
        log_p = self._take_class(self.log_p, self.index)
        residual = jnp.where(log_p > -0.69, -jnp.expm1(log_p), 1 - exp(log_p))
        return self._replace_class(-self.p, self.index, residual)

    def _classes(self) -> Array:
        return jnp.arange(self.logits.shape[-1])


@jax.custom_jvp
def exp(x: Array) -> Array:
    """eˣ, NaN for NaN: XLA's vectors of exp on a CPU may have 0 or any number there."""
    return jnp.where(x <= jnp.inf, jnp.exp(x), jnp.nan)


@exp.defjvp
def _exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = exp(*primals)
    return value, value * tangents[0]


@jax.custom_jvp
def log_softmax_rows(u: Array) -> Array:
    """log p along the last axis, its sum of exponentials without the largest term: docs/maths.md, 7."""
    if not u.shape[-1]:
        return u
    top = jnp.max(u, -1, keepdims=True)
    # XLA may round a product and its difference to the largest, z/T − max, only once: that of the largest is
    # then not 0, and a small loss is lost in it. A choice between the two keeps them apart.
    shifted = jnp.where(u < jnp.inf, u, jnp.nan) - top
    rest = jnp.where(_is_largest(u), 0, jnp.exp(shifted)).sum(-1, keepdims=True)
    return shifted - jnp.log1p(rest + (top - top))  # the difference is NaN for a row without a softmax


@log_softmax_rows.defjvp
def _log_softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Equation (30): d log p = r − ⟨p, r⟩, r = du − du at the largest u; no difference cancels as p → 1."""
    (u,), (du,) = primals, tangents
    log_p = log_softmax_rows(u)
    if not u.shape[-1]:
        return log_p, du
    r = du - _at_largest(du, _is_largest(u))
    return log_p, r - (exp(log_p) * r).sum(-1, keepdims=True)


def _is_largest(u: Array) -> Array:
    """Marks the first of the largest ``u`` of a row; in a row of NaN, the first. Faster than argmax."""
    classes = jnp.arange(u.shape[-1], dtype=jnp.int32)
    is_below = u < jnp.max(u, -1, keepdims=True)
    first = jnp.where(is_below, u.shape[-1], classes).min(-1, keepdims=True)
    return classes == first


def _at_largest(x: Array, is_largest: Array) -> Array:
    return jnp.where(is_largest, x, 0).sum(-1, keepdims=True)


def softmax(logits: Any, axis: int = -1) -> Array:
    """``exp z_i / Σ exp z_j`` along ``axis``, in the dtype of the logits.

    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.softmax(jnp.zeros(2))
    Array([0.5, 0.5], dtype=float32)
    """
    z = arguments.as_logits(logits)
    return exp(_wide_log_softmax(z, axis)).astype(z.dtype)


def log_softmax(logits: Any, axis: int = -1) -> Array:
    """``z_i − log Σ exp z_j`` along ``axis``, in the dtype of the logits; also exact as p → 1.

    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.log_softmax(jnp.array([25.0, 0.0]))
    Array([-1.3887944e-11, -2.5000000e+01], dtype=float32)
    """
    z = arguments.as_logits(logits)
    return _wide_log_softmax(z, axis).astype(z.dtype)


def logsumexp(logits: Any, axis: int = -1) -> Array:
    """``log Σ exp z_i`` along ``axis``, in the loss's dtype: float32 but for float64 logits.

    −inf where all are −inf, +inf where one is +inf, NaN where one is NaN; the gradient of all three is NaN.

    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.logsumexp(jnp.zeros(4)).round(4)
    Array(1.3863, dtype=float32)
    """
    z = arguments.axis_last(arguments.as_logits(logits), axis)
    return _logsumexp_rows(z.astype(arguments.loss_dtype(z)))


@jax.custom_jvp
def _logsumexp_rows(z: Array) -> Array:
    top = jnp.max(z, -1, initial=-jnp.inf)
    return jnp.where(jnp.isfinite(top), Softmax(z, None, None, Link()).lse(), top)


@_logsumexp_rows.defjvp
def _logsumexp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """⟨p, dz⟩; NaN in a row without a softmax, where the maximum has a derivative but the sum has none."""
    (z,), (dz,) = primals, tangents
    return _logsumexp_rows(z), (exp(log_softmax_rows(z)) * dz).sum(-1)


def _wide_log_softmax(z: Array, axis: int) -> Array:
    rows = arguments.axis_last(z, axis).astype(arguments.loss_dtype(z))
    return jnp.moveaxis(log_softmax_rows(rows), -1, axis)
