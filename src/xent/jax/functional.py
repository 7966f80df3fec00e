"""The losses of `xent` on JAX arrays: traceable, and differentiable in every mode and order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from xent.core.contract import RowStatistics
from xent.core.spec import LossSpec, Options, require_reduction, with_options
from xent.engine import row_columns
from xent.jax import arguments, dense, kernels
from xent.jax.targets import Batch, kernel_labels

Array = Any


@with_options()
def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    where: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    **options: Unpack[Options],
) -> Array:
    """Cross-entropy of raw logits with labels or probabilities, in nats: equations (1) and (4).

    Parameters
    ----------
    logits : (..., K) jax.Array of float64, float32, float16 or bfloat16
        Unnormalised log-probabilities, classes on ``axis``. May be traced, as may all arrays.
    targets : (...) integers, or (..., K) floats
        Labels in [0, K), or a distribution for each row. Gradients flow into probabilities, weights and
        ``denominator`` too.
    axis : int, default -1
        The axis of the classes; the rows are the other axes.
    where : boolean array, default None
        Of the shape of the rows: rows to leave out where it is False. With as many axes as the logits, each
        of their length or 1: classes to leave out; a row without any counts nowhere.
    reduction : {"mean", "sum", "none"}, default "mean"
        "none" gives one loss for each row, (...).
    denominator : None, "rows", float or 0-d array, default None
        What a mean divides by: the total weight, the number of rows that count, or this number.
    validate : bool, default None
        Check the values of arrays that are not traced. None: where all are on the CPU. A label out of range
        that is not checked makes the loss of its row NaN.

    OPTIONS

    Returns
    -------
    loss : float64 scalar or array for float64 logits, float32 for all others
        0 for a mean over no rows.

    Raises
    ------
    TypeError
        For another dtype or type; for an option that is traced, since options are numbers of the program.
    ValueError
        For a value or shape that is not valid; the message has the argument, what was expected, the value
        and its place.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent.jax
    >>> logits, labels = jnp.array([[2.0, 3.0, 4.0]]), jnp.array([1])
    >>> round(float(xent.jax.cross_entropy(logits, labels)), 4)
    1.4076
    >>> jax.grad(xent.jax.cross_entropy)(logits, labels).round(4)
    Array([[ 0.09  , -0.7553,  0.6652]], dtype=float32)
    """
    require_reduction(reduction)
    spec, class_weight, sample_weight = LossSpec.from_options(options)
    z = arguments.as_logits(logits)
    batch = Batch.checked(z, targets, axis, where, class_weight, sample_weight, spec, validate)
    by, number = arguments.split_denominator(denominator, reduction)
    axis = arguments.checked_axis(axis, z.shape)
    return _cross_entropy(z, batch, number, axis=axis, spec=spec, reduction=reduction, denominator=by)


@partial(jax.jit, static_argnames=("axis", "spec", "reduction", "denominator"))
def _cross_entropy(
    logits: Array,
    batch: Batch,
    number: Array | float | None,
    *,
    axis: int,
    spec: LossSpec,
    reduction: str,
    denominator: str | None,
) -> Array:
    z, measure = batch.measure(jnp.moveaxis(logits, axis, -1), axis, spec)
    divide_by = number if denominator == "number" else denominator
    scale = dense.scale_of(measure, reduction, divide_by, arguments.loss_dtype(z))
    return dense.loss(z, measure, spec, reduction, scale)


def row_statistics(
    logits: Any,
    labels: Any = None,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool | None = None,
    want: Sequence[str] = row_columns.DEFAULT,
) -> RowStatistics:
    """Log-sum-exp, label log-probability, entropy (nats) and argmax of each row, or what ``want`` names.

    Parameters
    ----------
    logits : (..., K) jax.Array, as for `cross_entropy`
    labels : (...) integers, default None
        Without them ``log_prob`` is None. Rows whose label is ``ignore_index`` are 0 throughout.
    axis, ignore_index, softcap, temperature, validate
        As for `cross_entropy`.
    want : sequence of str, default ("lse", "log_prob", "entropy", "argmax")
        As for `xent.row_statistics`.

    Returns
    -------
    RowStatistics
        Named tuple of (...) arrays, of the loss's dtype; ``argmax`` is an integer, the first of equals, and
        ``is_top1`` boolean. All others have derivatives.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy` and `xent.row_statistics`.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> stats = xent.jax.row_statistics(jnp.zeros((1, 2)), jnp.array([1]))
    >>> stats.lse.round(4), stats.entropy.round(4)
    (Array([0.6931], dtype=float32), Array([0.6931], dtype=float32))
    """
    wanted = row_columns.require_want(want, labels)
    named = Options(ignore_index=ignore_index, softcap=softcap, temperature=temperature)
    spec, _, _ = LossSpec.from_options(named)
    z = arguments.as_logits(logits)
    axis = arguments.checked_axis(axis, z.shape)
    y = None
    if labels is not None:
        y = arguments.as_labels(labels)
        y = Batch.checked(z, y, axis, None, None, None, spec, validate, "labels").targets
    return _row_statistics(z, y, axis=axis, spec=spec, wanted=wanted)


@partial(jax.jit, static_argnames=("axis", "spec", "wanted"))
def _row_statistics(
    logits: Array, labels: Array | None, *, axis: int, spec: LossSpec, wanted: tuple[str, ...]
) -> RowStatistics:
    z = jnp.moveaxis(logits, axis, -1)
    dtype, names = arguments.loss_dtype(z), row_columns.column_names(wanted)
    y = None if labels is None else kernel_labels(labels, z.shape[-1], spec.ignore_index)[0]
    columns = row_columns.columns(
        kernels.choose(z).row_stats, z, y, None, spec.link, names, lambda x: x.astype(dtype), jnp
    )
    by_name = dict(zip(names, columns, strict=True))
    return row_columns.collect(by_name, wanted, y, lambda x: x.astype(dtype))
