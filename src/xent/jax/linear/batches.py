"""The rows of a call: checked, shifted, flat and padded to whole chunks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xent.core.spec import LossSpec, as_index
from xent.engine.chunked_projection import require_chunk_bytes, rows_per_chunk
from xent.jax import arguments
from xent.jax.linear.layers import Form, Layer
from xent.jax.linear.shards import Shard
from xent.jax.targets import Batch

Array = Any

# The logits of a chunk where no budget is given. Smaller ones make more passes over the weight's gradient.
SHARE = 6  # a chunk takes a sixth of all logits
LEAST_BYTES, MOST_BYTES = 8 << 20, 256 << 20
ACCELERATOR_BYTES = 1 << 30  # of a GPU or TPU, whose products are slow for fewer than thousands of rows


class Plan(NamedTuple):
    """How a call goes through its rows."""

    form: Form
    shift: int
    chunk_bytes: int | None

    def chunk_rows(self, num_rows: int, num_classes: int) -> int:
        """Rows of a chunk."""
        row_bytes = num_classes * jnp.dtype(self.form.logits_dtype).itemsize
        return max(
            1, rows_per_chunk(num_rows, row_bytes, self.chunk_bytes or self._budget(num_rows * row_bytes))
        )

    @staticmethod
    def _budget(all_bytes: int) -> int:
        if jax.default_backend() != "cpu":
            return ACCELERATOR_BYTES
        return min(max(LEAST_BYTES, all_bytes // SHARE), MOST_BYTES)


def as_plan(form: Form, shift: Any, chunk_bytes: Any, layer: Layer) -> Plan:
    """The checked plan of a call; ``shift`` must be 0 for a single row."""
    require_chunk_bytes(chunk_bytes)
    positions = as_index("shift", shift)
    if positions < 0 or (positions and layer.inputs.ndim < 2):
        raise ValueError(f"`shift` must be >= 0, and 0 for a single row; got {shift!r}")
    return Plan(form, positions, None if chunk_bytes is None else int(chunk_bytes))


class Rows(NamedTuple):
    """The rows of a call, (M, ...) with M a multiple of ``chunk_rows``."""

    layer: Layer
    batch: Any  # tree of arrays (M, ...)
    chunk_rows: int
    shape: tuple[int, ...]  # of the rows before they were flat and padded

    def unflat(self, values: Array) -> Array:
        """Values (M,) in the shape of the rows."""
        return values[: math.prod(self.shape)].reshape(self.shape)


def checked(
    layer: Layer,
    num_classes: int,
    targets: Any,
    where: Any,
    class_weight: Any,
    sample_weight: Any,
    spec: LossSpec,
    validate: bool | None,
    shard: Shard | None = None,
    name: str = "targets",
) -> Batch:
    """The arrays beside the layer, checked as those beside its logits of ``num_classes`` would be.

    Labels and ``class_weight`` are those of all classes, if a ``shard`` has some of them.
    """
    rows, dtype = layer.inputs.shape[:-1], layer.inputs.dtype
    if where is not None:
        where = arguments.as_array(where, "where")
        if where.shape != rows:
            raise ValueError(f"`where` must have the shape of the rows, {rows}; got {where.shape}")
    y = arguments.as_array(targets, name)
    if shard is not None and jnp.issubdtype(y.dtype, jnp.integer):
        num_classes = shard.num_classes
    logits = jax.ShapeDtypeStruct((*rows, num_classes), dtype)
    if shard is None or class_weight is None:
        return Batch.checked(logits, y, -1, where, class_weight, sample_weight, spec, validate, name)
    shape = (shard.num_classes,)
    factors = arguments.as_weights(class_weight, "class_weight", shape, arguments.loss_dtype(logits))
    batch = Batch.checked(logits, y, -1, where, None, sample_weight, spec, validate, name)
    return batch._replace(class_weight=factors)


def flat_rows(layer: Layer, batch: Batch, plan: Plan) -> Rows:
    """The rows that have a target, flat and padded; rows of padding are masked by ``where``."""
    batch = batch._replace(class_weight=None)
    shape = layer.inputs.shape[:-1]
    if plan.shift:
        *outer, length = shape
        shape = (*outer, max(0, length - plan.shift))
        layer = layer._replace(inputs=layer.inputs[..., : shape[-1], :])
        later = (slice(None),) * len(outer) + (slice(plan.shift, None),)
        batch = jax.tree_util.tree_map(lambda x: x[later], batch)
    num_rows = math.prod(shape)
    chunk_rows = plan.chunk_rows(num_rows, plan.form.num_classes(layer))
    padding = -num_rows % chunk_rows
    if padding and batch.where is None:
        batch = batch._replace(where=jnp.ones(shape, bool))

    def flat(x: Array) -> Array:
        x = x.reshape(num_rows, *x.shape[len(shape) :])
        return jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))) if padding else x

    layer = layer._replace(inputs=flat(layer.inputs))
    return Rows(layer, jax.tree_util.tree_map(flat, batch), chunk_rows, shape)
