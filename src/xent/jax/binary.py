"""Binary cross-entropy: rows (0, z) of two classes, of which only z is in memory."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec, Options, require_reduction, with_options
from xent.core.target import Target
from xent.engine import checks
from xent.jax import arguments, dense
from xent.jax.sigmoid import log_sigmoid, sigmoid
from xent.jax.targets import kernel_labels, require_mask

Array = Any
Pair = Any  # (masses of the class 0, of the class of z), each (...)


@with_options(omit=("class_weight",))
def binary_cross_entropy(
    logits: Any,
    targets: Any,
    *,
    where: Any = None,
    pos_weight: Any = None,
    alpha: float | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    **options: Unpack[Options],
) -> Array:
    """Binary cross-entropy of raw logits, elementwise, in nats: equation (12), reduced as in (4).

    ``ℓ = −π q log s(z) − (1 − q) log s(−z)`` with the logistic function s: cross-entropy (1) over the two
    logits (0, z) with class weights (1, π).

    Parameters
    ----------
    logits : (...) jax.Array of float64, float32, float16 or bfloat16
        May be traced, as may all arrays.
    targets : (...) integers or booleans in {0, 1}, or floats in [0, 1]
        Options that need labels (``focal_gamma``, ``poly1_epsilon``) take floats of 0 and 1. Elements equal
        to ``ignore_index``, also as floats, count nowhere. Gradients flow into probabilities, weights and
        ``denominator`` too.
    where : boolean array, default None
        With as many axes as the logits, each of their length or 1: elements to leave out where it is False.
    pos_weight : float ≥ 0 or array that broadcasts to the logits, default None
        Factor ``π`` of the positive class; a mean does not divide by it.
    alpha : float in [0, 1], default None
        Factor ``αq + (1−α)(1−q)`` of each element, ``α`` of positives and ``1−α`` of negatives, as in the
        sigmoid focal loss; with or without ``focal_gamma``. A mean does not divide by it.
    reduction, denominator, validate
        As for `cross_entropy`; a mean divides by the sum of the sample weights.

    OPTIONS

    Returns
    -------
    loss : float64 scalar or array for float64 logits, float32 for all others
        As for `cross_entropy`; each element is a row.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`. `class_weight` raises TypeError: use ``pos_weight``. So do derivatives in
        ``targets`` that an option takes as labels.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent.jax
    >>> logits, labels = jnp.zeros(2), jnp.array([0, 1])
    >>> xent.jax.binary_cross_entropy(logits, labels).round(4)
    Array(0.6931, dtype=float32)
    >>> jax.grad(xent.jax.binary_cross_entropy)(logits, labels)
    Array([ 0.25, -0.25], dtype=float32)
    """
    require_reduction(reduction)
    spec, class_weight, sample_weight = LossSpec.from_options(options)
    if class_weight is not None:
        raise TypeError("`class_weight` has no place in a binary loss; use `pos_weight`")
    z = arguments.as_logits(jnp.expand_dims(arguments.as_array(logits, "logits"), -1))[..., 0]
    elements = Elements.checked(z, targets, where, pos_weight, sample_weight, spec, validate)
    by, number = arguments.split_denominator(denominator, reduction)
    alpha = checks.as_alpha(alpha)
    return _loss(z, elements, number, alpha=alpha, spec=spec, reduction=reduction, denominator=by)


class Elements(NamedTuple):
    """The arrays of one call except its logits: checked, not yet converted."""

    targets: Array
    where: Array | None
    pos_weight: Array | None
    sample_weight: Array | None

    @classmethod
    def checked(
        cls,
        logits: Array,
        targets: Any,
        where: Any,
        pos_weight: Any,
        sample_weight: Any,
        spec: LossSpec,
        validate: bool | None,
    ) -> Elements:
        """Raise for shapes and dtypes, and for values if they are known and `arguments.is_checked`."""
        shape, dtype = logits.shape, arguments.loss_dtype(logits)
        q = arguments.as_array(targets, "targets")
        if q.shape != shape:
            raise ValueError(f"`targets` must have the shape of the logits, {shape}; got {q.shape}")
        is_whole = q.dtype == bool or jnp.issubdtype(q.dtype, jnp.integer)
        if not is_whole and q.dtype.name not in arguments.FLOATING:
            raise TypeError(
                f"`targets` must be integers or booleans (0 or 1) or floats in [0, 1]; got {q.dtype}"
            )
        mask = None if where is None else arguments.as_array(where, "where")
        if mask is not None:
            require_mask(mask, shape, shape)
        if pos_weight is not None:
            pos_weight = _as_pos_weight(pos_weight, shape, dtype)
        if sample_weight is not None:
            sample_weight = arguments.as_weights(sample_weight, "sample_weight", shape, dtype)
        if arguments.is_checked(validate, q, mask, pos_weight, sample_weight):
            _check_values(q, mask, pos_weight, sample_weight, spec)
        return cls(q, mask, pos_weight, sample_weight)

    def measure(self, logits: Array, alpha: float | None, spec: LossSpec) -> tuple[Array, Target]:
        """(logits, target of the pairs); 0 replaces what is not finite in elements that do not count."""
        dtype = arguments.loss_dtype(logits)
        q, ignored = self._probabilities(dtype, spec)
        if self.where is not None:
            ignored = ignored | ~self.where
        omega = jnp.where(ignored, 0, 1 if self.sample_weight is None else self.sample_weight).astype(dtype)
        q = jnp.where(ignored | ((omega == 0) & ~jnp.isfinite(q)), 0, q)
        # Booleans are counted without rounding.
        counted = ~ignored if self.sample_weight is None else omega
        total, rows = targeting.totals(q.size, counted, None, jnp)
        weight: Any = targeting.pair_weight(q, omega, alpha)
        target = targeting.from_pairs(q, self.pos_weight, weight, spec, jnp)
        # Derivatives of a product with 0 would be 0·NaN there; that of the weight is 0.
        silent: Any = head.silent_rows(target, spec, jnp)
        unread = silent & ~jnp.isfinite(logits)
        target = target._replace(weight=jnp.where(unread, 0, weight), total=total, rows=rows)
        return jnp.where(unread, 0, logits), target

    def _probabilities(self, dtype: Any, spec: LossSpec) -> tuple[Array, Array]:
        """(targets as ``dtype``, NaN where they are integers other than 0 and 1; mask of ignored ones)."""
        q = self.targets
        if jnp.issubdtype(q.dtype, jnp.floating):
            q = q.astype(dtype)
            return _labels_only(q, spec.labels_option()), q == float(spec.ignore_index)
        labels, ignored = kernel_labels(q.astype(jnp.int32) if q.dtype == bool else q, 2, spec.ignore_index)
        return jnp.where(labels == 2, jnp.nan, labels.astype(dtype)), ignored


@partial(jax.jit, static_argnames=("alpha", "spec", "reduction", "denominator"))
def _loss(
    logits: Array,
    elements: Elements,
    number: Array | float | None,
    *,
    alpha: float | None,
    spec: LossSpec,
    reduction: str,
    denominator: str | None,
) -> Array:
    z, measure = elements.measure(logits, alpha, spec)
    divide_by = number if denominator == "number" else denominator
    scale = dense.scale_of(measure, reduction, divide_by, arguments.loss_dtype(z))
    return dense.loss(z, measure, spec, reduction, scale, Pairs)


class Pairs:
    """`contract.Kernels` of rows (0, z): ``logits`` are z (...), ``dense`` is a pair of arrays (...).

    Labels are 0, 1, or 2 if they are out of range. Elements of +inf have no softmax: all is NaN.
    """

    @staticmethod
    def row_stats(logits: Array, labels: Array, dense: Pair, link: Link, want: tuple[str, ...]) -> RowStats:
        """Statistics (...) in float32 or float64."""
        u = _linked(logits, link)
        log_p = log_sigmoid(-u), log_sigmoid(u)
        stats = {"lse": -log_p[0]}
        if labels is not None:
            of_label = jnp.where(labels == 1, log_p[1], log_p[0])
            stats["log_prob"] = jnp.where(labels == 2, jnp.nan, of_label)
        if dense is not None:
            sigma = sum(head.multiply(v, x, jnp) for v, x in zip(dense, log_p, strict=True))
            stats["dense_log_prob"] = jnp.where(jnp.isnan(u), u, sigma)
            stats["mass"] = dense[0] + dense[1]
        return RowStats(**{name: stats[name] for name in want})

    @staticmethod
    def row_grad(
        logits: Array,
        labels: Array,
        dense: Pair,
        link: Link,
        stats: RowStats,
        cotangents: Cotangents,
        out: None = None,
    ) -> Array:
        """Equation (12) in the dtype of the logits."""
        z = logits.astype(arguments.loss_dtype(logits))
        u = _linked(logits, link)
        p, rest = sigmoid(u), sigmoid(-u)
        bracket = cotangents.lse * p
        if labels is not None:
            residual = jnp.where(labels == 1, rest, -p)
            bracket = bracket + cotangents.log_prob * jnp.where(labels == 2, jnp.nan, residual)
        if dense is not None:
            bracket = bracket + cotangents.dense_log_prob * (dense[1] * rest - dense[0] * p)
        grad = link.slope(z, jnp) * bracket
        is_read = sum(abs(c) for c in cotangents) != 0
        return jnp.where(is_read, grad, 0).astype(logits.dtype)

    @classmethod
    def row_stats_and_grad(
        cls,
        logits: Array,
        labels: Array,
        dense: Pair,
        link: Link,
        cotangents: Cotangents,
        want: tuple[str, ...],
        out: None = None,
    ) -> tuple[RowStats, Array]:
        """Both of the above."""
        stats = cls.row_stats(logits, labels, dense, link, want)
        return stats, cls.row_grad(logits, labels, dense, link, stats, cotangents)


def _linked(logits: Array, link: Link) -> Array:
    """u = φ(z), NaN for +inf."""
    u = link.value(logits.astype(arguments.loss_dtype(logits)), jnp)
    return u + jnp.where(jnp.isposinf(u), jnp.nan, 0)  # a sum, so that derivatives of all orders are NaN too


def _labels_only(q: Array, option: str | None) -> Array:
    """``q``; differentiating it is an error if an ``option`` takes it as labels."""
    if option is None:
        return q

    @jax.custom_jvp
    def identity(x: Array) -> Array:
        return x

    def rule(primals: Any, tangents: Any) -> Any:
        if not isinstance(tangents[0], SymbolicZero):
            raise TypeError(
                f"`targets` must not be differentiated where `{option}` takes them as labels; "
                "use `jax.lax.stop_gradient(targets)`"
            )
        return primals[0], tangents[0]

    identity.defjvp(rule, symbolic_zeros=True)
    return identity(q)


def _as_pos_weight(pos_weight: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """A number, or an array that broadcasts to ``shape``, in the dtype of the loss."""
    if not isinstance(pos_weight, (jax.Array, np.ndarray)):
        return jnp.asarray(checks.as_pos_weight(pos_weight), dtype)
    weight = arguments.as_array(pos_weight, "pos_weight")
    front = len(shape) - weight.ndim
    if front < 0 or any(n not in (1, m) for n, m in zip(weight.shape, shape[front:], strict=True)):
        raise ValueError(
            f"`pos_weight` must broadcast to the shape of the logits, {shape}; got {weight.shape}"
        )
    return arguments.as_weights(weight, "pos_weight", weight.shape, dtype)


def _check_values(q: Array, where: Any, pos_weight: Any, sample_weight: Any, spec: LossSpec) -> None:
    """Raise ValueError, as for NumPy, at a value that is out of range."""
    array = np.asarray(q)
    if where is not None:
        array = np.where(np.asarray(where), array, array.dtype.type(0))
    if array.dtype.kind in "biu":
        checks.as_labels(array.astype(np.int64) if array.dtype == bool else array, 2, spec.ignore_index, True)
    else:
        counted = np.where(array == float(spec.ignore_index), 0.0, array.astype(np.float64))
        checks.check_pair_targets(counted, option=spec.labels_option())
    if pos_weight is not None:
        checks.check_weights(np.asarray(pos_weight, np.float64), "pos_weight", False)
    if sample_weight is not None:
        checks.check_weights(np.asarray(sample_weight, np.float64), "sample_weight", True)
