"""Projection and loss: cross-entropy of ``inputs @ weight.T + bias`` and its gradients, (P − Y)ᵀX / D.

Logits are computed for one chunk of rows at a time (`chunked_projection`): memory does not grow with N × K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np

from xent.core import target as targeting
from xent.core.spec import LossSpec, Options, require_reduction, with_options
from xent.engine import checks, row_columns, valid_rows
from xent.engine.chunked_projection import Projection
from xent.kernels import registry

Array = np.ndarray[Any, Any]


class LinearGradients(NamedTuple):
    """Gradients of the loss, with the shapes and dtypes of the arguments; ``dbias`` is None without bias."""

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
        One row for each class, as in ``torch.nn.Linear``.
    targets : (...) integers, or (..., K) floats
    bias : (K,) array, default None
    reduction, denominator, validate
        As for `cross_entropy`.
    shift : int, default 0
        Inputs at position t predict the targets (and ``sample_weight``) at t + ``shift`` of the last row
        axis: the loss of ``inputs[..., :-shift, :]`` and ``targets[..., shift:]`` without slicing either.
    chunk_bytes : int, default None
        Memory for the logits of one chunk, which has at least one row. None: what the weight's gradient
        takes, but no more than a quarter of all logits or 1024 rows of them, and at least 16 million logits.

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
        from xent.torch import api

        return api.linear_cross_entropy(
            inputs, weight, targets, bias, reduction, denominator, validate, shift, chunk_bytes, options
        )
    if checks.is_jax_array(inputs):
        from xent import jax

        return jax.linear_cross_entropy(
            inputs,
            weight,
            targets,
            bias=bias,
            reduction=reduction,
            denominator=denominator,
            validate=None if validate else False,
            shift=shift,
            chunk_bytes=chunk_bytes,
            **options,
        )
    x, w, b = _as_operands(inputs, weight, bias)
    problem = _LinearProblem(x, w, targets, shift, reduction, denominator, validate, options)
    losses, _ = problem.project(w, b, chunk_bytes).sweep(problem.evaluate_chunk)
    return problem.reduced(*losses)


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
    problem = _LinearProblem(x, w, targets, shift, reduction, denominator, validate, options)
    wanted = (True, True, b is not None)
    losses, gradients = problem.project(w, b, chunk_bytes).sweep(
        problem.evaluate_chunk, problem.scale, wanted
    )
    dinputs = gradients.inputs.astype(x.dtype, copy=False).reshape(x.shape)
    dweight = gradients.weight.astype(w.dtype, copy=False)
    dbias = None if b is None else gradients.bias.astype(b.dtype, copy=False)
    return problem.reduced(*losses), LinearGradients(dinputs, dweight, dbias)


def linear_row_statistics(
    inputs: Any,
    weight: Any,
    labels: Any = None,
    *,
    bias: Any = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool = True,
    shift: int = 0,
    chunk_bytes: int | None = None,
    want: Sequence[str] = row_columns.DEFAULT,
) -> Any:
    """`row_statistics` of the logits ``inputs @ weight.T + bias``, without the matrix of logits in memory.

    Parameters
    ----------
    inputs, weight, bias, shift, chunk_bytes
        As for `linear_cross_entropy`.
    labels, ignore_index, softcap, temperature, validate, want
        As for `row_statistics`. Rows that are ignored cost nothing.

    Returns
    -------
    RowStatistics
        Arrays shaped like the rows (shorter by ``shift`` on the last axis), as `row_statistics` gives them.

    Raises
    ------
    TypeError, ValueError
        As for `linear_cross_entropy` and `row_statistics`.

    Examples
    --------
    >>> import numpy as np, xent
    >>> stats = xent.linear_row_statistics(np.eye(2), np.zeros((4, 2)), np.array([0, 3]))
    >>> stats.log_prob.round(4), stats.entropy.round(4)
    (array([-1.3863, -1.3863]), array([1.3863, 1.3863]))
    """
    wanted = row_columns.require_want(want, labels)
    front: Any = None
    if checks.is_tensor(inputs):
        from xent.torch.linear import statistics as front
    elif checks.is_jax_array(inputs):
        from xent import jax as front
    if front is not None:
        return front.linear_row_statistics(
            inputs,
            weight,
            labels,
            bias=bias,
            ignore_index=ignore_index,
            softcap=softcap,
            temperature=temperature,
            validate=None if validate else False,
            shift=shift,
            chunk_bytes=chunk_bytes,
            want=want,
        )
    x, w, b = _as_operands(inputs, weight, bias)
    options = Options(ignore_index=ignore_index, softcap=softcap, temperature=temperature)
    spec, _, _ = LossSpec.from_options(options)
    shape, index = valid_rows.shifted_rows(x.shape[:-1], shift, np, x.device)
    y = by_row = None
    if labels is not None:
        array = checks.as_integers(labels, "labels")
        checks.is_labels(array, (*x.shape[:-1], w.shape[0]), "labels")
        y, ignored = checks.as_labels(array, w.shape[0], ignore_index, validate, "labels")
        by_row = y if ignored is None else np.where(ignored, -1, y)
        by_row = valid_rows.flatten_rows(by_row, shift).reshape(shape)
        index, (y,) = valid_rows.select_rows(
            valid_rows.flatten_rows(ignored, shift), None, index, (valid_rows.flatten_rows(y, shift),), np
        )
    names, dtype = row_columns.column_names(wanted), checks.loss_dtype(x)

    def as_dtype(column: Array) -> Array:
        return column.astype(dtype, copy=False)

    def chunk_stats(logits: Array, part: slice, dcolumns: Any) -> tuple[tuple[Array, ...], Any]:
        labels = None if y is None else y[part]
        kernel = registry.get("cpu").row_stats
        with np.errstate(invalid="ignore"):  # of infinite logits
            return row_columns.columns(kernel, logits, labels, None, spec.link, names, as_dtype, np), None

    columns, _ = Projection(valid_rows.as_matrix(x), w, b, index, chunk_bytes).sweep(chunk_stats)
    unflat = (valid_rows.unflatten_rows(c, x.shape[:-1], shape) for c in columns)
    return row_columns.collect(dict(zip(names, unflat, strict=True)), wanted, by_row, as_dtype)


class _LinearProblem:
    """The checked arguments of one call; computes logits by chunks and reduces the losses."""

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
        self.shape, row_index = valid_rows.shifted_rows(x.shape[:-1], shift, np, x.device)
        sample_weight = valid_rows.flatten_rows(sample_weight, shift)
        if is_labels:
            labels = checks.as_labels(array, num_classes, spec.ignore_index, validate)
            y, ignored = (valid_rows.flatten_rows(column, shift) for column in labels)
            self.rows = valid_rows.label_rows(
                y, ignored, num_classes, class_weight, sample_weight, spec, row_index, np
            )
        else:
            if validate:
                checks.check_probabilities(array)
            self.rows = valid_rows.probability_rows(
                valid_rows.as_matrix(array),
                shift,
                class_weight,
                sample_weight,
                spec,
                row_index,
                lambda q: checks.as_probabilities(q, self.dtype),
                np,
            )
        target, denominator = self.rows.full_target, checks.as_denominator(denominator)
        divisor = targeting.divisor(target.total, target.rows, reduction, denominator)
        self.scale = 1.0 / divisor if divisor else 0.0
        self.evaluate_chunk = valid_rows.ChunkLoss(self.rows, spec, None, np).evaluate_chunk

    def project(self, w: Array, b: Array | None, chunk_bytes: int | None) -> Projection:
        """The projection that yields the logits chunk by chunk."""
        return Projection(valid_rows.as_matrix(self.inputs), w, b, self.rows.row_index, chunk_bytes)

    def reduced(self, losses: Array) -> Any:
        """Equation (4) for ``losses``, one for each row of the inputs."""
        if self.reduction == "none":
            return valid_rows.unflatten_rows(losses, self.inputs.shape[:-1], self.shape).astype(self.dtype)
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
