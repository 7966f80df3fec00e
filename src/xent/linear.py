"""Projection and loss: cross-entropy of ``inputs @ weight.T + bias`` and its gradients, (P − Y)ᵀX / D.

The logits of one chunk of rows exist at a time (`projection`), so memory does not grow with N × K.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import numpy as np

from xent import checks, rows
from xent import target as targeting
from xent.projection import Projection
from xent.spec import LossSpec, Options, require_reduction, with_options

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
    shift: int = 0,
    chunk_bytes: int | None = None,
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
    shift : int, default 0
        Inputs at position t predict the targets (and ``sample_weight``) at t + ``shift`` of the last row
        axis: the loss of ``inputs[..., :-shift, :]`` and ``targets[..., shift:]`` without slicing either.
    chunk_bytes : int, default 40 MiB
        Budget for the logits that exist at a time; one row at least.

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
            inputs, weight, targets, bias, reduction, denominator, validate, shift, chunk_bytes, options
        )
    x, w, b = _as_operands(inputs, weight, bias)
    batch = _Batch(x, w, targets, shift, reduction, denominator, validate, options)
    losses, _ = batch.project(w, b, chunk_bytes).sweep(batch.step)
    return batch.reduced(*losses)


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
    shift: int = 0,
    chunk_bytes: int | None = None,
    **options: Unpack[Options],
) -> tuple[Any, LinearGradients]:
    """Loss of `linear_cross_entropy` and its gradients in inputs, weight and bias.

    With G the gradient in the logits (2): ``dinputs = G W``, ``dweight = Gᵀ X``, ``dbias = Σ G``;
    for the plain mean ``dweight = (P − Y)ᵀ X / N``.

    Parameters
    ----------
    inputs, weight, targets, bias, reduction, denominator, validate, shift, chunk_bytes
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
    batch = _Batch(x, w, targets, shift, reduction, denominator, validate, options)
    wanted = (True, True, b is not None)
    losses, gradients = batch.project(w, b, chunk_bytes).sweep(batch.step, batch.scale, wanted)
    dinputs = gradients.inputs.astype(x.dtype, copy=False).reshape(x.shape)
    dweight = gradients.weight.astype(w.dtype, copy=False)
    dbias = None if b is None else gradients.bias.astype(b.dtype, copy=False)
    return batch.reduced(*losses), LinearGradients(dinputs, dweight, dbias)


class _Batch:
    """The rows of one call and their targets, checked; how their losses are reduced."""

    def __init__(
        self,
        x: Array,
        w: Array,
        targets: Any,
        shift: int,
        reduction: str,
        denominator: Any,
        validate: bool,
        options: Options,
    ) -> None:
        require_reduction(reduction)
        spec, class_weight, sample_weight = LossSpec.from_options(options)
        self.inputs, self.reduction, self.dtype = x, reduction, checks.loss_dtype(x)
        num_classes = w.shape[0]
        array = checks.as_array(targets, "targets")
        is_labels = checks.is_labels(array, (*x.shape[:-1], num_classes))
        if class_weight is not None:
            class_weight = checks.as_class_weight(class_weight, num_classes, validate)
        if sample_weight is not None:
            sample_weight = checks.as_weights(sample_weight, "sample_weight", x.shape[:-1], validate)
        self.shape, place = rows.shifted(x.shape[:-1], shift, np, x.device)
        sample_weight = rows.flat(sample_weight, shift)
        if is_labels:
            labels = checks.as_labels(array, num_classes, spec.ignore_index, validate)
            y, ignored = (rows.flat(column, shift) for column in labels)
            self.rows = rows.of_labels(y, ignored, num_classes, class_weight, sample_weight, spec, place, np)
        else:
            if validate:
                checks.check_probabilities(array)
            self.rows = rows.of_probabilities(
                array.reshape(-1, num_classes),
                shift,
                class_weight,
                sample_weight,
                spec,
                place,
                lambda q: checks.as_probabilities(q, self.dtype),
                np,
            )
        divisor = targeting.denominator(self.rows.whole, reduction, checks.as_denominator(denominator))
        self.scale = 1.0 / divisor if divisor else 0.0
        self.step = self.rows.step(spec, None, np)

    def project(self, w: Array, b: Array | None, chunk_bytes: int | None) -> Projection:
        """The logits of these rows."""
        x = self.inputs.reshape(-1, self.inputs.shape[-1])
        return Projection(x, w, b, self.rows.index, chunk_bytes)

    def reduced(self, losses: Array) -> Any:
        """Equation (4), from one loss for each row of the inputs."""
        if self.reduction == "none":
            length = self.shape[-1] if self.shape else 1
            by_row = losses.reshape(self.inputs.shape[:-1])
            return (by_row[..., :length] if self.shape else by_row).astype(self.dtype)
        return self.dtype.type(np.add.reduce(losses) * self.scale)


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
