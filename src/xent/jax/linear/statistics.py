"""The row statistics of the logits of a linear layer, which are never whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from xent.core.contract import RowStatistics
from xent.core.spec import LossSpec, Options
from xent.engine import row_columns
from xent.jax import arguments, kernels
from xent.jax.linear import batches
from xent.jax.linear.batches import Plan
from xent.jax.linear.chunked import row_values
from xent.jax.linear.layers import Layer, as_form, as_layer, sum_dtype
from xent.jax.targets import Batch, kernel_labels

Array = Any


def linear_row_statistics(
    inputs: Any,
    weight: Any,
    labels: Any = None,
    *,
    bias: Any = None,
    class_axis: int = 0,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    logits_dtype: Any = None,
    want: Sequence[str] = row_columns.DEFAULT,
) -> RowStatistics:
    """`row_statistics` of the logits ``inputs @ weight.T + bias``, without the matrix of logits in memory.

    Parameters
    ----------
    inputs, weight, bias, class_axis, shift, chunk_bytes, logits_dtype
        As for `linear_cross_entropy`.
    labels : (...) integers, default None
        Without them ``log_prob`` is None. Rows whose label is ``ignore_index`` are 0 throughout.
    ignore_index, softcap, temperature, validate, want
        As for `row_statistics`.

    Returns
    -------
    RowStatistics
        Named tuple of arrays shaped like the rows (shorter by ``shift`` on the last axis), as
        `row_statistics` gives them; derivable in inputs, weight and bias.

    Raises
    ------
    TypeError, ValueError
        As for `linear_cross_entropy` and `row_statistics`.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> stats = xent.jax.linear_row_statistics(jnp.eye(2), jnp.zeros((4, 2)), jnp.array([0, 3]))
    >>> stats.log_prob.round(4), stats.entropy.round(4)
    (Array([-1.3863, -1.3863], dtype=float32), Array([1.3863, 1.3863], dtype=float32))
    """
    wanted = row_columns.require_want(want, labels)
    named = Options(ignore_index=ignore_index, softcap=softcap, temperature=temperature)
    spec, _, _ = LossSpec.from_options(named)
    layer = as_layer(inputs, weight, bias, class_axis)
    form = as_form(class_axis, logits_dtype, layer.inputs.dtype)
    batch = Batch(None, None, None, None)
    if labels is not None:
        y = arguments.as_labels(labels)
        batch = batches.checked(
            layer, form.num_classes(layer), y, None, None, None, spec, validate, name="labels"
        )
    plan = batches.as_plan(form, shift, chunk_bytes, layer)
    return _linear_row_statistics(layer, batch, plan=plan, spec=spec, wanted=wanted)


@partial(jax.jit, static_argnames=("plan", "spec", "wanted"))
def _linear_row_statistics(
    layer: Layer, batch: Batch, *, plan: Plan, spec: LossSpec, wanted: tuple[str, ...]
) -> RowStatistics:
    num_classes, dtype = plan.form.num_classes(layer), sum_dtype(layer.inputs)
    names = row_columns.column_names(wanted)
    rows = batches.flat_rows(layer, batch, plan)

    def widen(x: Array) -> Array:
        return x.astype(dtype)

    def kernel(batch: Batch) -> Array | None:
        if batch.targets is None:
            return None
        y, _ = kernel_labels(batch.targets, num_classes, spec.ignore_index)
        return y if batch.where is None else jnp.where(batch.where, y, -1)

    def silent(batch: Batch, shared: None) -> Array | None:
        y = kernel(batch)
        return None if y is None else y < 0

    def columns(logits: list[Array], batch: Batch, shared: None) -> tuple[Array, ...]:
        return row_columns.columns(
            kernels.choose(logits[0]).row_stats, logits[0], kernel(batch), None, spec.link, names, widen, jnp
        )

    values = row_values(columns, [rows.layer], rows.batch, None, silent, plan.form, rows.chunk_rows)
    flat = dict(zip(names, map(rows.unflat, values), strict=True))
    y = kernel(rows.batch)
    return row_columns.collect(flat, wanted, y if y is None else rows.unflat(y), widen)
