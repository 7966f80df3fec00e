"""The cross-entropy of the logits of a linear layer, which are never whole."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from xent.core import head
from xent.core.spec import LossSpec, Options, require_reduction, with_options
from xent.core.target import Target
from xent.engine.batch_loss import Problem
from xent.jax import arguments, dense
from xent.jax.kernels import Formulas, choose
from xent.jax.linear import batches
from xent.jax.linear.batches import Plan
from xent.jax.linear.chunked import loss_sum, row_values
from xent.jax.linear.layers import Layer, as_form, as_layer, sum_dtype
from xent.jax.linear.shards import Shard, as_shard, shard_target
from xent.jax.targets import Batch, as_target, unread

Array = Any


@with_options()
def linear_cross_entropy(
    inputs: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    class_axis: int = 0,
    where: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    logits_dtype: Any = None,
    axis_name: Any = None,
    num_classes: int | None = None,
    **options: Unpack[Options],
) -> Array:
    """Cross-entropy of the logits ``inputs @ weight.T + bias``, in nats, without the matrix of logits.

    A mean or a sum takes three products with its gradients, and one without; "none" takes four. Nothing of
    the size of rows × classes is kept for derivatives of any order.

    Parameters
    ----------
    inputs : (..., D) jax.Array of float64, float32, float16 or bfloat16
        May be traced, as may all arrays.
    weight : (K, D) array, or (D, K) with ``class_axis=1``
    targets : (...) integers, or (..., K) floats
        As for `cross_entropy`.
    bias : (K,) array, default None
    class_axis : {0, 1}, default 0
        The axis of the classes in ``weight``: 0 for an embedding or ``torch.nn.Linear``, 1 for the kernel of
        a ``flax`` ``Dense``.
    where : (...) booleans, default None
        Rows to leave out where it is False.
    reduction, denominator, validate
        As for `cross_entropy`.
    shift : int, default 0
        Inputs at position t predict the targets (and ``where`` and ``sample_weight``) at t + ``shift`` of
        the last row axis: the loss of ``inputs[..., :-shift, :]`` and ``targets[..., shift:]``.
    chunk_bytes : int, default None
        Memory for the logits of one chunk, which has at least one row. None: on
        the CPU a sixth of all logits, but at least 8 MiB and at most 256 MiB; elsewhere 1 GiB.
    logits_dtype : dtype, default None
        Of the product that gives the logits: float32 (the default; float64 for float64 operands), or the
        dtype of operands of half precision. The products of the gradients have operands of half precision
        and float32 sums either way.
    axis_name : str or tuple of str, default None
        The mesh axis over which the classes are split, inside `jax.shard_map`: each device has its rows of
        ``weight`` and ``bias``, and its columns of probabilities; ``inputs``, labels and ``class_weight``
        (K,) are whole on each. A few numbers of each row are exchanged.
    num_classes : int, default None
        K of the shards together, with ``axis_name``. Rows of the weight beyond are padding that makes the
        shards equal; they must be finite. None: there is no padding.

    OPTIONS

    Returns
    -------
    loss : float64 scalar or array for float64 inputs, float32 for all others
        As for `cross_entropy` of the logits; for "none" (...), shorter by ``shift`` on the last axis.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`, and for shapes or dtypes that do not go together.

    Notes
    -----
    With ``axis_name`` take derivatives outside of `jax.shard_map`, or inside of it with ``check_vma=True``,
    its default. Inside of it with ``check_vma=False`` the gradients are those of the sum of the losses of all
    devices, as JAX has them.

    Each chunk has every n-th row. Of rows that are split over devices, `jax.shard_map` adds the gradients in
    the weight once; without it XLA adds them once for each chunk.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent.jax
    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    >>> round(float(xent.jax.linear_cross_entropy(x, w, jnp.array([1]))), 4)
    1.4076
    >>> round(float(xent.jax.linear_cross_entropy(x, w.T, jnp.array([1]), class_axis=1)), 4)
    1.4076
    """
    require_reduction(reduction)
    spec, class_weight, sample_weight = LossSpec.from_options(options)
    layer = as_layer(inputs, weight, bias, class_axis)
    form = as_form(class_axis, logits_dtype, layer.inputs.dtype)
    shard = as_shard(axis_name, num_classes, form.num_classes(layer))
    arrays = targets, where, class_weight, sample_weight
    batch = batches.checked(layer, form.num_classes(layer), *arrays, spec, validate, shard)
    plan = batches.as_plan(form, shift, chunk_bytes, layer)
    by_name, number = arguments.split_denominator(denominator, reduction)
    static = {"plan": plan, "spec": spec, "shard": shard, "reduction": reduction, "denominator": by_name}
    return _linear_cross_entropy(layer, batch, number, **static)


@partial(jax.jit, static_argnames=("plan", "spec", "shard", "reduction", "denominator"))
def _linear_cross_entropy(
    layer: Layer,
    batch: Batch,
    number: Array | float | None,
    *,
    plan: Plan,
    spec: LossSpec,
    shard: Shard | None,
    reduction: str,
    denominator: str | None,
) -> Array:
    rows = batches.flat_rows(layer, batch, plan)
    losses = LossOfRows(spec, plan.form.num_classes(layer), sum_dtype(layer.inputs), shard)
    shared = batch.class_weight
    if reduction == "none":
        values = row_values(
            losses.derivable, [rows.layer], rows.batch, shared, losses.silent, plan.form, rows.chunk_rows
        )
        return rows.unflat(values)
    measure = losses.target(rows.batch, shared)
    divide_by = number if denominator == "number" else denominator
    scale = dense.scale_of(measure, reduction, divide_by, losses.dtype)
    total = loss_sum([rows.layer], rows.batch, shared, losses, plan.form, rows.chunk_rows)
    if shard is not None:
        total = shard.psum(total)
    # 1/D last: before it, it could take the gradients of float16 out of range.
    return head.multiply(scale, total, jnp)


class LossOfRows(NamedTuple):
    """Equation (1) of the rows of a chunk: `chunked.RowLosses`; ``rows`` is a `Batch`."""

    spec: LossSpec
    num_classes: int
    dtype: Any
    shard: Shard | None = None  # of which ``num_classes`` are here

    def target(self, rows: Batch, class_weight: Array | None) -> Target:
        """The measure of the rows."""
        arrays = class_weight, rows.sample_weight, rows.where, self.dtype
        if self.shard is not None:
            return shard_target(self.shard, rows.targets, self.num_classes, self.spec, *arrays)
        measure = as_target(rows.targets, self.num_classes, self.spec, *arrays)
        return unread(measure, head.silent_rows(measure, self.spec, jnp))

    def silent(self, rows: Batch, class_weight: Array | None) -> Array | None:
        """Rows that are ignored, left out or of weight 0."""
        measure = self.target(rows, class_weight)
        return measure.labels < 0 if measure.labels is not None else head.silent_rows(measure, self.spec, jnp)

    def losses(self, logits: list[Array], rows: Batch, class_weight: Array | None, is_formula: bool) -> Array:
        """ℓ (M,); of a shard its part in the sum."""
        problem = self._problem(logits, rows, class_weight, is_formula)
        return self._part(problem.row_losses(problem.stats()))

    def losses_and_grads(
        self,
        logits: list[Array],
        rows: Batch,
        class_weight: Array | None,
        wanted: list[bool],
        is_formula: bool,
    ) -> tuple[Array, list[Array]]:
        """ℓ (M,) and equation (2)."""
        problem = self._problem(logits, rows, class_weight, is_formula)
        stats, dlogits = problem.stats_and_grad(1.0, problem.logits)  # in their memory
        return self._part(problem.row_losses(stats)), [dlogits]

    def derivable(self, logits: list[Array], rows: Batch, class_weight: Array | None) -> Array:
        """ℓ (M,), differentiated as the loss of logits is."""
        (z,) = logits
        if self.shard is not None:
            problem = self._problem(logits, rows, class_weight, True)
            return problem.row_losses(problem.stats())
        return dense.loss(z, self.target(rows, class_weight), self.spec, "none", 1.0)

    def _problem(
        self, logits: list[Array], rows: Batch, class_weight: Array | None, is_formula: bool
    ) -> Problem:
        (z,), measure = logits, self.target(rows, class_weight)
        if is_formula:
            z, measure = dense.without_silent_nan(z, measure, self.spec)
        kernels: Any = Formulas if is_formula else choose(z)
        if self.shard is not None:
            kernels = self.shard.formulas()
        return Problem(z, measure, self.spec, "none", 1.0, kernels, jnp)

    def _part(self, losses: Array) -> Array:
        return losses if self.shard is None else self.shard.on_first(losses)
