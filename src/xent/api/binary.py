"""Binary cross-entropy: one logit z against an implicit class whose logit is 0, element by element."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from xent.core import target
from xent.core.spec import LossSpec, Options, require_reduction, with_options
from xent.engine import binary, checks

Array = np.ndarray[Any, Any]


@with_options(omit=("class_weight",))
def binary_cross_entropy(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    alpha: float | None = None,
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
    logits : (...) array, torch.Tensor or jax.Array, of float64, float32, float16 or bfloat16
        For a JAX array the loss is that of `xent.jax.binary_cross_entropy`, which can be traced.
    targets : (...) integers or booleans in {0, 1}, or floats in [0, 1]
        Options that need labels (``focal_gamma``, ``poly1_epsilon``) take floats of 0 and 1. Elements equal
        to ``ignore_index``, also as floats, count nowhere.
    pos_weight : float ≥ 0, default None
        Factor ``π`` of the positive class; a mean does not divide by it.
    alpha : float in [0, 1], default None
        Factor ``αq + (1−α)(1−q)`` of each element, ``α`` of positives and ``1−α`` of negatives, as in the
        sigmoid focal loss; with or without ``focal_gamma``. A mean does not divide by it.
    reduction, denominator, validate
        As for `cross_entropy`; a mean divides by the sum of the sample weights.

    OPTIONS

    Returns
    -------
    loss
        As for `cross_entropy`; each element is a row.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`. `class_weight` raises TypeError: use ``pos_weight``.

    Examples
    --------
    >>> import numpy as np, xent
    >>> round(float(xent.binary_cross_entropy(np.array([0.0, 0.0]), np.array([0, 1]))), 6)
    0.693147
    """
    if checks.is_tensor(logits):
        from xent.torch import api

        return api.binary_cross_entropy(
            logits, targets, pos_weight, alpha, reduction, denominator, validate, options
        )
    if checks.is_jax_array(logits):
        from xent import jax

        given = {"pos_weight": pos_weight, "alpha": alpha, "reduction": reduction, **options}
        check = None if validate else False
        return jax.binary_cross_entropy(logits, targets, denominator=denominator, validate=check, **given)
    return _run(logits, targets, pos_weight, alpha, reduction, denominator, validate, options, None)


@with_options(omit=("class_weight",))
def binary_cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    alpha: float | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    out: Array | None = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> tuple[Any, Array]:
    """Binary cross-entropy and its gradient in the logits, ``(σ(z) − q) / N`` without options.

    Parameters
    ----------
    logits, targets, pos_weight, alpha, reduction, denominator, validate
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
    dlogits = checks.as_out(out, z, targets)
    return _run(z, targets, pos_weight, alpha, reduction, denominator, validate, options, dlogits), dlogits


def _run(
    logits: Any,
    targets: Any,
    pos_weight: Any,
    alpha: float | None,
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
    q, ignored = _as_targets(targets, z, spec, validate)
    weight = None
    if sample_weight is not None:
        weight = checks.as_weights(sample_weight, "sample_weight", z.shape, validate)
    if ignored is not None:
        weight = np.where(ignored, 0.0, 1.0 if weight is None else weight)
        q = np.where(ignored, 0, q)
    total, rows = target.totals(z.size, weight, None, np)
    divisor = target.divisor(total, rows, reduction, checks.as_denominator(denominator))
    alpha = checks.as_alpha(alpha)
    if alpha is not None:
        weight = target.pair_weight(binary.as_probabilities(q, checks.loss_dtype(z)), weight, alpha)
    pi = None if pos_weight is None else np.float64(checks.as_pos_weight(pos_weight))
    problem = binary.problem(binary.BinaryCase(z, q, pi, weight, spec, reduction, float(divisor)))
    return problem.loss() if out is None else problem.loss_and_grad(out)[0]


def _as_targets(targets: Any, z: Array, spec: LossSpec, validate: bool) -> tuple[Array, Array | None]:
    """(labels or probabilities, the mask of ignored ones or None if there are none)."""
    q = checks.as_array(targets, "targets")
    if q.shape != z.shape:
        raise ValueError(f"`targets` must have the shape of the logits, {z.shape}; got {q.shape}")
    if q.dtype.kind in "biu":
        labels = q.astype(np.int64) if q.dtype.kind == "b" else q
        return checks.as_labels(labels, 2, spec.ignore_index, validate)
    if not checks.is_floating(q.dtype):
        raise TypeError(f"`targets` must be integers or booleans (0 or 1) or floats in [0, 1]; got {q.dtype}")
    q = q.astype(checks.loss_dtype(z), copy=False)
    ignored = None
    if spec.ignore_index in (0, 1) or not checks.all_within(q, 1.0):
        ignored = q == spec.ignore_index
    if validate:
        counted = q if ignored is None else np.where(ignored, 0.0, q)
        checks.check_pair_targets(counted, option=spec.labels_option())
    return q, ignored if ignored is not None and ignored.any() else None
