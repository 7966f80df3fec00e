"""optax's names and arguments for the losses of `xent.jax`: one value for each row.

Existing code changes its import only. Values are float32 but for float64 logits, with derivatives of every
order. docs/differences.md lists where the two differ, and why.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from xent.core import head
from xent.jax import arguments, functional
from xent.jax.binary import binary_cross_entropy
from xent.jax.sigmoid import log_sigmoid
from xent.jax.softmax import log_softmax_rows

Array = Any
Axes = int | tuple[int, ...] | None


def softmax_cross_entropy(logits: Any, labels: Any, axis: Axes = -1, where: Any = None) -> Array:
    """Cross-entropy of logits with probabilities, −Σ qᵢ log pᵢ in nats, for each row.

    Parameters
    ----------
    logits : (..., K) array of float64, float32, float16 or bfloat16
        Unnormalised log-probabilities.
    labels : array that broadcasts with ``logits``
        Probabilities or one-hot rows, of any dtype of numbers; their values are not checked.
    axis : int, tuple of int or None, default -1
        The axis or axes of the classes; None for all.
    where : boolean array, default None
        With as many axes as the logits: classes to leave out where it is False. Else of the shape of the
        rows: rows to leave out.

    Returns
    -------
    losses : (...) array of float64 for float64 logits, float32 for all others
        0 for a row that is left out, or without classes.

    Raises
    ------
    TypeError, ValueError
        For a dtype or shape that is not valid.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.optax.softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])).round(4)
    Array([0.6931], dtype=float32)
    """
    z, q, mask = _distributions(logits, labels, axis, where)
    return functional.cross_entropy(z, q, where=mask, reduction="none", validate=False)


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: int | tuple[int, ...] = -1, where: Any = None
) -> Array:
    """Cross-entropy of logits with integer labels, −log p_y in nats, for each row.

    Parameters
    ----------
    logits, where
        As for `softmax_cross_entropy`. The loss is inf where the class of the label is left out.
    labels : integers that broadcast with the rows
        In [0, K), or −100 in a row to leave out. Others are an error where values are known, except in rows
        that ``where`` leaves out, and else make the loss of their row NaN.
    axis : int or tuple of int, default -1
        Of several axes a label is the flat index of a class, in the order of the tuple.

    Returns
    -------
    losses
        As for `softmax_cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        For a dtype, a shape or a label that is not valid.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> logits = jnp.zeros((1, 2))
    >>> xent.jax.optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([1])).round(4)
    Array([0.6931], dtype=float32)
    """
    z, y = arguments.as_logits(logits), arguments.as_array(labels, "labels")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"`labels` must have an integer dtype; got {y.dtype}")
    axes = _class_axes(axis, z.shape)
    mask = _as_mask(where, z.shape, axes)
    z = _classes_last(z, axes)
    rows = _joint_shape(z.shape[:-1], y.shape)
    if mask is not None:
        is_counted = mask if mask.ndim < z.ndim else mask.any(-1)
        y = jnp.where(is_counted, y, 0)
        mask = jnp.broadcast_to(mask, rows + mask.shape[z.ndim - 1 :])
    z, y = jnp.broadcast_to(z, (*rows, z.shape[-1])), jnp.broadcast_to(y, rows)
    return functional.cross_entropy(z, y, where=mask, reduction="none")


def safe_softmax_cross_entropy(logits: Any, labels: Any) -> Array:
    """`softmax_cross_entropy`, where a class with logit −inf always costs nothing if its probability is 0.

    >>> import jax.numpy as jnp, xent.jax
    >>> logits, q = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([0.5, 0.5, 0.0])
    >>> xent.jax.optax.safe_softmax_cross_entropy(logits, q).round(4)
    Array(0.6931, dtype=float32)
    """
    return softmax_cross_entropy(logits, labels)


def poly_loss_cross_entropy(
    logits: Any, labels: Any, *, epsilon: Any = 2.0, axis: Axes = -1, where: Any = None
) -> Array:
    """Poly-1 loss Σ qᵢ (−log pᵢ + ε (1 − pᵢ)) of logits with probabilities, for each row.

    Of labels it is `xent.jax.cross_entropy` with ``poly1_epsilon``. Arguments, result and errors are as for
    `softmax_cross_entropy`; ``epsilon``, a number or 0-d array, may be traced.

    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.optax.poly_loss_cross_entropy(jnp.zeros(2), jnp.array([0.0, 1.0])).round(4)
    Array(1.6931, dtype=float32)
    """
    z, q, mask = _distributions(logits, labels, axis, where)
    z, q = _masked(z.astype(q.dtype), q, mask)
    x = log_softmax_rows(z)
    return head.multiply(q, -(x + epsilon * jnp.expm1(x)), jnp).sum(-1).astype(q.dtype)


def kl_divergence(log_predictions: Any, targets: Any, axis: Axes = -1, where: Any = None) -> Array:
    """Divergence Σ tᵢ (log tᵢ − log pᵢ) in nats of predictions from targets, for each row.

    Parameters
    ----------
    log_predictions : (..., K) array of float64, float32, float16 or bfloat16
        Logarithms log p, which are not normalised here.
    targets : array that broadcasts with ``log_predictions``
        Probabilities t; a term with t = 0 is 0.
    axis : int, tuple of int or None, default -1
        The axis or axes of the classes; None for all.
    where : boolean array that broadcasts to ``log_predictions``, default None
        Terms to leave out where it is False.

    Returns
    -------
    divergences : (...) array of float64 for float64 ``log_predictions``, float32 for all others

    Raises
    ------
    TypeError, ValueError
        For a dtype or shape that is not valid.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.optax.kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0])).round(4)
    Array(0.6931, dtype=float32)
    """
    if where is not None:  # one axis fewer would be taken for rows
        where = arguments.as_array(where, "where")
        where = where.reshape((1,) * (jnp.ndim(log_predictions) - where.ndim) + where.shape)
    names = "log_predictions", "targets"
    log_p, t, mask = _distributions(log_predictions, targets, axis, where, names)
    if mask is not None:
        log_p, t = jnp.where(mask, log_p, 0), jnp.where(mask, t, 0)
    log_ratio = jnp.log(jnp.where(t == 0, 1, t)) - log_p.astype(t.dtype)
    return head.multiply(t, log_ratio, jnp).sum(-1)


def sigmoid_binary_cross_entropy(logits: Any, labels: Any) -> Array:
    """Binary cross-entropy −q log s(z) − (1−q) log s(−z) in nats, for each element.

    Parameters
    ----------
    logits : array of float64, float32, float16 or bfloat16
    labels : array that broadcasts with ``logits``
        Probabilities, or 0 and 1, of any dtype of numbers; their values are not checked.

    Returns
    -------
    losses : array of float64 for float64 logits, float32 for all others

    Raises
    ------
    TypeError, ValueError
        For a dtype or shape that is not valid.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.optax.sigmoid_binary_cross_entropy(jnp.zeros(2), jnp.array([0, 1])).round(4)
    Array([0.6931, 0.6931], dtype=float32)
    """
    z, q = _elements(logits, labels)
    return binary_cross_entropy(z, q, reduction="none", validate=False)


def sigmoid_focal_loss(logits: Any, labels: Any, *, alpha: Any = None, gamma: Any = 2.0) -> Array:
    """Focal loss α_t (1 − p_t)^γ ℓ of `sigmoid_binary_cross_entropy` ℓ, for each element.

    Here p_t = q p + (1−q)(1−p), which is the probability of the label where q is 0 or 1; then the loss is
    `xent.jax.binary_cross_entropy` with ``focal_gamma`` and ``alpha``. Arguments, result and errors are as
    for `sigmoid_binary_cross_entropy`.

    Parameters
    ----------
    alpha : number or array, default None
        Factor α_t = αq + (1−α)(1−q) of each element. May be traced, and so may ``gamma``.
    gamma : number or array >= 0, default 2.0
        The exponent.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.optax.sigmoid_focal_loss(jnp.zeros(2), jnp.array([0, 1]), alpha=0.25).round(4)
    Array([0.13 , 0.0433], dtype=float32)
    """
    z, q = _elements(logits, labels)
    losses = binary_cross_entropy(z, q, reduction="none", validate=False)
    # Where the loss is inf the factor is 1, of a label of probability 0; its derivative would be inf·0.
    is_inf = jnp.isinf(losses)
    log_factor = jnp.where(is_inf, 0, _log_wrong(jnp.where(is_inf, 0, z.astype(q.dtype)), q))
    losses = jnp.exp(head.multiply(jnp.asarray(gamma, q.dtype), log_factor, jnp)) * losses
    if alpha is None:
        return losses
    alpha = jnp.asarray(alpha, q.dtype)
    return head.multiply(alpha * q + (1 - alpha) * (1 - q), losses, jnp)


def smooth_labels(labels: Any, alpha: Any, *, axis: Axes = -1, where: Any = None) -> Array:
    """``(1 − α) q + α/K``: probabilities with the part α spread over the K classes on ``axis``.

    Parameters
    ----------
    labels : array of float64, float32, float16 or bfloat16
        Probabilities or one-hot rows.
    alpha : number or array
        The part that is moved. May be traced.
    axis : int, tuple of int or None, default -1
        The axis or axes of the classes; None for all.
    where : boolean array that broadcasts to ``labels``, default None
        Classes to leave out where it is False: the others share α, and these get 0.

    Returns
    -------
    labels : array of the dtype of ``labels``, or of ``alpha`` if that is wider

    Raises
    ------
    TypeError
        For another dtype.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> xent.jax.optax.smooth_labels(jnp.array([0.0, 1.0]), 0.1)
    Array([0.05, 0.95], dtype=float32)
    """
    q = arguments.as_array(labels, "labels")
    if q.dtype.name not in arguments.FLOATING:
        raise TypeError(f"`labels` must be an array of {', '.join(arguments.FLOATING)}; got {q.dtype}")
    if where is None:
        num_classes = math.prod(q.shape[i] for i in _class_axes(axis, q.shape))
        return (1 - alpha) * q + alpha / max(1, num_classes)
    mask = jnp.broadcast_to(arguments.as_array(where, "where"), q.shape)
    count = jnp.maximum(1, mask.sum(axis, keepdims=True)).astype(q.dtype)
    return jnp.where(mask, (1 - alpha) * q + alpha / count, 0)


def _log_wrong(z: Array, q: Array) -> Array:
    """log(1 − p_t) = log((1−q) s(z) + q s(−z)) of finite z, without underflow.

    With the larger of s(z) and s(−z) as a factor, s(|z|), the sum is a + b e^−|z|.
    """
    is_positive = z >= 0
    size = jnp.where(is_positive, z, -z)
    a, b = jnp.where(is_positive, 1 - q, q), jnp.where(is_positive, q, 1 - q)
    mixture = jnp.log(jnp.where(a == 0, 1, a + b * jnp.exp(-size)))
    return log_sigmoid(size) + jnp.where(a == 0, jnp.log(jnp.where(a == 0, b, 1)) - size, mixture)


def _distributions(
    logits: Any, labels: Any, axis: Axes, where: Any, names: tuple[str, str] = ("logits", "labels")
) -> tuple[Array, Array, Array | None]:
    """(logits, labels in the dtype of the loss, both (..., K); mask of the rows or classes, or None)."""
    z = arguments.as_logits(logits, names[0])
    q = _as_numbers(labels, names[1], z)
    axes = _class_axes(axis, z.shape)
    shape = _joint_shape(z.shape, q.shape, names)
    if any(shape[i] != z.shape[i] for i in axes):
        raise ValueError(f"`{names[1]}` must have the classes of `{names[0]}`, {z.shape}; got {q.shape}")
    mask = _as_mask(where, z.shape, axes)
    z, q = (_classes_last(jnp.broadcast_to(x, shape), axes) for x in (z, q))
    if mask is not None:
        mask = jnp.broadcast_to(mask, q.shape if mask.ndim == z.ndim else q.shape[:-1])
    return z, q, mask


def _elements(logits: Any, labels: Any) -> tuple[Array, Array]:
    """(logits, labels in the dtype of the loss), of one shape."""
    z = arguments.as_logits(jnp.expand_dims(arguments.as_array(logits, "logits"), -1))[..., 0]
    q = _as_numbers(labels, "labels", z)
    shape = _joint_shape(z.shape, q.shape)
    return jnp.broadcast_to(z, shape), jnp.broadcast_to(q, shape)


def _as_numbers(x: Any, name: str, logits: Array) -> Array:
    array = arguments.as_array(x, name)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be an array of numbers; got {array.dtype}")
    return array.astype(arguments.loss_dtype(logits))


def _joint_shape(
    first: tuple[int, ...], second: tuple[int, ...], names: tuple[str, str] = ("logits", "labels")
) -> tuple[int, ...]:
    """The shape that both broadcast to."""
    try:
        return jnp.broadcast_shapes(first, second)
    except ValueError:
        raise ValueError(
            f"`{names[1]}` must have a shape that broadcasts with that of `{names[0]}`, {first}; got {second}"
        ) from None


def _class_axes(axis: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the classes, counted from the end."""
    given = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(arguments.checked_axis(i, shape) for i in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"`axis` must name each axis once; got {axis}")
    return axes


def _classes_last(x: Array, axes: tuple[int, ...]) -> Array:
    """(..., K) with K classes in the order of ``axes``."""
    rows = jnp.moveaxis(x, axes, range(-len(axes), 0))
    split = x.ndim - len(axes)
    return rows.reshape(*rows.shape[:split], math.prod(rows.shape[split:]))


def _as_mask(where: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array | None:
    """A mask of classes (..., K) if it has the axes of the logits, else of rows, unchanged."""
    if where is None:
        return None
    mask = arguments.as_array(where, "where")
    if mask.dtype != bool:
        raise TypeError(f"`where` must be boolean; got {mask.dtype}")
    is_full = mask.ndim == len(shape)
    whole = shape if is_full else tuple(n for i, n in enumerate(shape, -len(shape)) if i not in axes)
    if _joint_shape(whole, mask.shape, ("logits", "where")) != whole:
        raise ValueError(f"`where` must broadcast to {whole}; got {mask.shape}")
    mask = jnp.broadcast_to(mask, whole)
    return _classes_last(mask, axes) if is_full else mask


def _masked(logits: Array, labels: Array, mask: Array | None) -> tuple[Array, Array]:
    """Both without the classes that are left out."""
    if mask is None:
        return logits, labels
    classes = mask if mask.ndim == logits.ndim else mask[..., None]
    return jnp.where(classes, logits, -jnp.inf), jnp.where(classes, labels, 0)
