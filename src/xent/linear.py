"""Projection and loss: cross-entropy of ``inputs @ weight.T + bias`` and its gradients, (P − Y)ᵀX / D."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import numpy as np

from xent import checks
from xent.problem import Problem
from xent.spec import Options, with_options

Array = np.ndarray[Any, Any]


class LinearGradients(NamedTuple):
    """Gradients of the loss, each of the shape and dtype of its argument; no bias, no ``dbias``."""

    dinputs: Array
    dweight: Array
    dbias: Array | None


@with_options()
def linear_cross_entropy(
    inputs: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> Any:
    """Cross-entropy of the logits ``inputs @ weight.T + bias``, in nats.

    Parameters
    ----------
    inputs : (..., D) array
    weight : (K, D) array
        One row a class, as in ``torch.nn.Linear``.
    targets : (...) integers, or (..., K) floats
    bias : (K,) array, default None
    reduction, denominator, validate
        As for `cross_entropy`.

    OPTIONS

    Returns
    -------
    loss
        As for `cross_entropy` of the logits.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`, and for shapes or dtypes that do not go together.

    Examples
    --------
    >>> import numpy as np, xent
    >>> x, w = np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    >>> round(float(xent.linear_cross_entropy(x, w, np.array([1]))), 6)
    1.407606
    """
    if checks.is_tensor(inputs):
        from xent.torch import last

        return last.linear_cross_entropy(
            inputs, weight, targets, bias, reduction, denominator, validate, options
        )
    x, w, b = _as_operands(inputs, weight, bias)
    logits = _project(x, w, b)
    problem = Problem.from_arguments(logits, targets, reduction, denominator, validate, options)
    return problem.loss(problem.stats())


@with_options()
def linear_cross_entropy_with_grad(
    inputs: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> tuple[Any, LinearGradients]:
    """Loss of `linear_cross_entropy` and its gradients in inputs, weight and bias.

    With G the gradient in the logits (2): ``dinputs = G W``, ``dweight = Gᵀ X``, ``dbias = Σ G``;
    for the plain mean ``dweight = (P − Y)ᵀ X / N``.

    Parameters
    ----------
    inputs, weight, targets, bias, reduction, denominator, validate
        As for `linear_cross_entropy`.

    OPTIONS

    Returns
    -------
    loss
        As for `linear_cross_entropy`.
    gradients : LinearGradients
        ``(dinputs, dweight, dbias)``.

    Raises
    ------
    TypeError, ValueError
        As for `linear_cross_entropy`.

    Examples
    --------
    >>> import numpy as np, xent
    >>> x, w = np.array([[1.0, 0.0]]), np.zeros((2, 2))
    >>> loss, (dinputs, dweight, dbias) = xent.linear_cross_entropy_with_grad(x, w, np.array([0]))
    >>> dweight
    array([[-0.5,  0. ],
           [ 0.5,  0. ]])
    """
    x, w, b = _as_operands(inputs, weight, bias)
    logits = _project(x, w, b)
    problem = Problem.from_arguments(logits, targets, reduction, denominator, validate, options)
    loss, dlogits = problem.loss_and_grad(logits)
    rows = dlogits.reshape(-1, w.shape[0])
    # Products in the loss's dtype: NumPy multiplies half precision without BLAS.
    dtype = checks.loss_dtype(x)
    dinputs = (rows @ w.astype(dtype, copy=False)).reshape(x.shape).astype(x.dtype, copy=False)
    dweight = rows.T @ x.reshape(-1, x.shape[-1]).astype(dtype, copy=False)
    dbias = None if b is None else rows.sum(0).astype(b.dtype, copy=False)
    return loss, LinearGradients(dinputs, dweight.astype(w.dtype, copy=False), dbias)


def _as_operands(inputs: Any, weight: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    x, w = checks.as_logits(inputs, "inputs"), checks.as_logits(weight, "weight")
    if w.ndim != 2 or w.shape[1] != x.shape[-1]:
        raise ValueError(
            f"`weight` must have shape (K, {x.shape[-1]}) to go with `inputs` {x.shape}; got {w.shape}"
        )
    if w.dtype != x.dtype:
        raise TypeError(f"`weight` must have the dtype of `inputs`, {x.dtype}; got {w.dtype}")
    if bias is None:
        return x, w, None
    b = checks.as_logits(bias, "bias")
    if b.shape != w.shape[:1]:
        raise ValueError(f"`bias` must have shape {w.shape[:1]}; got {b.shape}")
    if b.dtype != x.dtype:
        raise TypeError(f"`bias` must have the dtype of `inputs`, {x.dtype}; got {b.dtype}")
    return x, w, b


def _project(x: Array, w: Array, b: Array | None) -> Array:
    dtype = checks.loss_dtype(x)
    logits: Array = x.astype(dtype, copy=False) @ w.astype(dtype, copy=False).T
    return logits if b is None else np.add(logits, b.astype(dtype, copy=False), out=logits)
