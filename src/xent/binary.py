"""Binary cross-entropy: one logit z against an implicit class whose logit is 0, a row [0, z] each.

The two-class rows are made, used and dropped block by block, so that they stay in the cache.
"""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from xent import checks, target
from xent.problem import Problem
from xent.spec import LossSpec, Options, require_reduction, with_options

Array = np.ndarray[Any, Any]

BLOCK = 1 << 15  # elements: five (BLOCK, 2) float32 arrays fit in a 2 MiB level-2 cache


@with_options(omit=("class_weight",))
def binary_cross_entropy(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> Any:
    """Binary cross-entropy of raw logits, elementwise, in nats.

    ``ℓ = −π q log σ(z) − (1 − q) log(1 − σ(z))``: cross-entropy (1) over the two logits (0, z) with
    class weights (1, π).

    Parameters
    ----------
    logits : (...) array of float64, float32, float16 or bfloat16
    targets : (...) integers or booleans in {0, 1}, or floats in [0, 1]
    pos_weight : float ≥ 0, default None
        Factor ``π`` of the positive class; a mean does not divide by it.
    reduction, denominator, validate
        As for `cross_entropy`; a mean divides by the sum of the sample weights.

    OPTIONS

    Returns
    -------
    loss
        As for `cross_entropy`, each element a row.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; `class_weight` is a TypeError: its place is taken by ``pos_weight``.

    Examples
    --------
    >>> import numpy as np, xent
    >>> round(float(xent.binary_cross_entropy(np.array([0.0, 0.0]), np.array([0, 1]))), 6)
    0.693147
    """
    if checks.is_tensor(logits):
        from xent.torch import last

        return last.binary_cross_entropy(
            logits, targets, pos_weight, reduction, denominator, validate, options
        )
    return _run(logits, targets, pos_weight, reduction, denominator, validate, options, None)


@with_options(omit=("class_weight",))
def binary_cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    out: Array | None = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> tuple[Any, Array]:
    """Binary cross-entropy and its gradient in the logits, ``(σ(z) − q) / N`` without options.

    Parameters
    ----------
    logits, targets, pos_weight, reduction, denominator, validate
        As for `binary_cross_entropy`.
    out : array of the logits' shape and dtype, default None
        Where to write the gradient; may be ``logits`` itself.

    OPTIONS

    Returns
    -------
    loss, dlogits
        As for `cross_entropy_with_grad`.

    Raises
    ------
    TypeError, ValueError
        As for `binary_cross_entropy`.

    Examples
    --------
    >>> import numpy as np, xent
    >>> loss, dlogits = xent.binary_cross_entropy_with_grad(np.array([0.0, 0.0]), np.array([0, 1]))
    >>> dlogits
    array([ 0.25, -0.25])
    """
    z = checks.as_logits(np.expand_dims(checks.as_array(logits, "logits"), -1))[..., 0]
    dlogits = checks.as_out(out, z)
    return _run(z, targets, pos_weight, reduction, denominator, validate, options, dlogits), dlogits


def _run(
    logits: Any,
    targets: Any,
    pos_weight: Any,
    reduction: str,
    denominator: Any,
    validate: bool,
    options: Options,
    out: Array | None,
) -> Any:
    require_reduction(reduction)
    spec, class_weight, sample_weight = LossSpec.from_options(options)
    if class_weight is not None:
        raise TypeError("`class_weight` has no place in a binary loss; use `pos_weight`")
    z = checks.as_logits(np.expand_dims(checks.as_array(logits, "logits"), -1))[..., 0]
    q = _as_targets(targets, z, validate)
    classes = np.array([1.0, _as_pos_weight(pos_weight)])
    ignored = None
    if q.dtype.kind == "i":
        q, ignored = checks.as_labels(q, 2, spec.ignore_index, validate)
    weight = None
    if sample_weight is not None:
        weight = checks.as_weights(sample_weight, "sample_weight", z.shape, validate)
    divisor = target.denominator(
        target.from_labels(q, ignored, 2, None, weight, spec, np)
        if q.dtype.kind == "i"
        else target.from_probabilities(q[..., None], None, weight, LossSpec(), np),
        reduction,
        checks.as_denominator(denominator),
    )

    flat_z, flat_q = z.reshape(-1), q.reshape(-1)
    flat_weight = None if weight is None else weight.reshape(-1)
    flat_ignored = None if ignored is None else ignored.reshape(-1)
    losses = []
    gradient = None if out is None else np.empty(z.size, z.dtype)
    for start in range(0, max(z.size, 1), BLOCK):
        block = slice(start, start + BLOCK)
        rows = np.stack([np.zeros_like(flat_z[block]), flat_z[block]], -1)
        w = None if flat_weight is None else flat_weight[block]
        if q.dtype.kind == "i":
            skip = None if flat_ignored is None else flat_ignored[block]
            measure = target.from_labels(flat_q[block], skip, 2, classes, w, spec, np)
        else:
            pair = np.stack([1 - flat_q[block], flat_q[block]], -1)
            measure = target.from_probabilities(pair, classes, w, spec, np)
        problem = Problem(rows, measure, spec, reduction, float(divisor))
        if gradient is None:
            losses.append(problem.loss(problem.stats()))
        else:
            loss, drows = problem.loss_and_grad(rows)
            gradient[block] = drows[:, 1]
            losses.append(loss)
    if out is not None and gradient is not None:
        out[...] = gradient.reshape(z.shape)
    if reduction == "none":
        return np.concatenate(losses).reshape(z.shape)[()]
    return checks.loss_dtype(z).type(np.sum(losses, dtype=np.float64))


def _as_targets(targets: Any, z: Array, validate: bool) -> Array:
    q = checks.as_array(targets, "targets")
    if q.shape != z.shape:
        raise ValueError(f"`targets` must have the shape of the logits, {z.shape}; got {q.shape}")
    if q.dtype.kind in "biu":
        return q.astype(np.int64)
    if not checks.is_floating(q.dtype):
        raise TypeError(f"`targets` must be integers or booleans (0 or 1) or floats in [0, 1]; got {q.dtype}")
    q = q.astype(checks.loss_dtype(z), copy=False)
    if validate:
        checks.check_probabilities(q, upper=1.0)
    return q


def _as_pos_weight(pos_weight: Any) -> float:
    if pos_weight is None:
        return 1.0
    try:
        weight = float(pos_weight)
    except (TypeError, ValueError):
        raise TypeError(f"`pos_weight` must be a number, finite and >= 0; got {pos_weight!r}") from None
    if not 0 <= weight < float("inf"):
        raise ValueError(f"`pos_weight` must be finite and >= 0; got {pos_weight!r}")
    return weight
