"""Where the logits of a shard come from: memory, or a projection of one chunk of rows at a time."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function

from xent.core.contract import Cotangents, RowStats
from xent.engine.chunked_projection import Gradients, Wanted, rows_per_chunk
from xent.torch.distributed.shards import Batch, Known
from xent.torch.linear import chunked
from xent.torch.linear.chunked import Operands
from xent.torch.linear.products import TensorProjection

Tensor = torch.Tensor


class Sums(NamedTuple):
    """What equation (4) is made of: Σ ℓ, and what a mean may divide by."""

    losses: Tensor
    total: Any
    rows: Any


class Dense(NamedTuple):
    """``operands`` are ``(logits (..., K_s),)``."""

    def stats(self, batch: Batch, operands: Any) -> RowStats:
        """The statistics of the shard."""
        return batch.stats(operands[0])

    def gradients(self, batch: Batch, known: Known, dlosses: Tensor, operands: Any, wanted: Wanted) -> Any:
        """∂/∂logits."""
        return (batch.grad(operands[0], known, batch.cotangents(known, dlosses)),)


class Projected(NamedTuple):
    """``operands`` are ``hidden (M, D), weight (K_s, D), bias (K_s,) or None``."""

    places: Tensor | None  # of the rows that count
    chunk_bytes: int | None

    def stats(self, batch: Batch, operands: Any) -> RowStats:
        """The statistics of the shard: one product."""

        def step(logits: Tensor, part: slice, _: Any) -> Any:
            return tuple(s for s in batch.rows(part).stats(logits) if s is not None), None

        columns, _ = self._projection(batch, operands).sweep(step)
        there = [True, batch.labels is not None, *2 * [bool(batch.smoothing) or batch.labels is None]]
        found = iter(c if self.places is None else c[self.places] for c in columns)
        return RowStats(*(next(found) if is_there else None for is_there in there))

    def gradients(self, batch: Batch, known: Known, dlosses: Tensor, operands: Any, wanted: Wanted) -> Any:
        """∂/∂(hidden, weight, bias): the logits again, and two products."""
        cotangents = batch.cotangents(known, dlosses)

        def step(logits: Tensor, part: slice, _: Any) -> Any:
            here = known._replace(stats=RowStats(*(_some(s, part) for s in known.stats)))
            slopes = Cotangents(*(_some(c, part) for c in cotangents))
            return (), batch.rows(part).grad(logits, here, slopes, logits)

        _, gradients = self._projection(batch, operands).sweep(step, None, wanted)
        return chunked.finished(self._reduced(batch, gradients), Operands(*operands), None)

    def total(self, batch: Batch, operands: Any, wanted: Wanted) -> tuple[Sums, Gradients]:
        """Σ ℓ and its gradients: three products, and the ranks' numbers put together chunk by chunk."""
        sums = []

        def step(logits: Tensor, part: slice, _: Any) -> Any:
            rows = batch.rows(part)
            known = rows.combined(rows.stats(logits))
            sums.append(Sums(known.losses.sum(), known.target.total, known.target.rows))
            ones = torch.ones_like(known.losses)
            return (), rows.grad(logits, known, rows.cotangents(known, ones), logits)

        _, gradients = self._projection(batch, operands).sweep(step, None, wanted)
        return Sums(*(sum(column) for column in zip(*sums, strict=True))), self._reduced(batch, gradients)

    def _reduced(self, batch: Batch, gradients: Gradients) -> Gradients:
        """With what the classes of the other ranks give to the gradient of ``hidden``."""
        if gradients.inputs is not None:
            batch.shard.reduce(gradients.inputs)
        return gradients

    def _projection(self, batch: Batch, operands: Any) -> TensorProjection:
        projection = TensorProjection(*Operands(*operands), self.places, self.chunk_bytes)
        row_bytes = batch.shard.largest * projection.dtype.itemsize  # the same chunks on every rank
        budget = self.chunk_bytes or projection.chunk_bytes()
        projection.chunk_rows = rows_per_chunk(projection.num_rows, row_bytes, budget)
        return projection


Layer = Dense | Projected


def losses(batch: Batch, layer: Layer, operands: tuple[Any, ...]) -> tuple[Tensor, Sums]:
    """(the losses (...), float64, derivable once in the operands; their sums)."""
    with torch.no_grad(), torch.autocast(operands[0].device.type, enabled=False):
        known = batch.combined(layer.stats(batch, operands))
    column = known.losses
    if is_derived(operands):
        column = cast(Tensor, _Losses.apply(known, batch, layer, *operands))
    return column, Sums(column.sum(), known.target.total, known.target.rows)


def total(batch: Batch, layer: Projected, operands: tuple[Any, ...]) -> Sums:
    """The sums, derivable once in the operands; the gradients are ready when the loss is."""
    with torch.no_grad(), torch.autocast(operands[0].device.type, enabled=False):
        sums, gradients = layer.total(batch, operands, _wanted(operands))
    ready = [gradients]  # given away once
    return sums._replace(losses=_Total.apply(sums.losses, ready, batch, layer, *operands))


def is_derived(operands: tuple[Any, ...]) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(_wanted(operands))


class _Losses(Function):
    @staticmethod
    def forward(ctx: Any, known: Known, batch: Batch, layer: Layer, *operands: Tensor | None) -> Tensor:
        ctx.save_for_backward(*operands)
        ctx.known, ctx.batch, ctx.layer = known._replace(losses=torch.empty(0)), batch, layer
        return known.losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> Any:
        _require_first_order()
        operands = ctx.saved_tensors  # raises if they were written since
        with torch.autocast(operands[0].device.type, enabled=False):
            found = ctx.layer.gradients(ctx.batch, ctx.known, dlosses, operands, ctx.needs_input_grad[3:])
        return None, None, None, *found


class _Total(Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        ready: list[Gradients],
        batch: Batch,
        layer: Projected,
        *operands: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(*operands)
        ctx.ready, ctx.batch, ctx.layer = ready, batch, layer
        return value.clone()

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> Any:
        _require_first_order()
        operands = ctx.saved_tensors  # raises if they were written since
        if ctx.ready:
            gradients = ctx.ready.pop()
        else:
            with torch.autocast(operands[0].device.type, enabled=False):
                _, gradients = ctx.layer.total(ctx.batch, operands, ctx.needs_input_grad[4:])
        return None, None, None, None, *chunked.finished(gradients, Operands(*operands), dtotal)


def _require_first_order() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "a loss whose classes are split over processes is derivable once: `create_graph` must be False"
        )


def _wanted(operands: tuple[Any, ...]) -> Wanted:
    return cast(Wanted, tuple(x is not None and x.requires_grad for x in operands))


def _some(column: Any, part: slice) -> Any:
    """A part of what there is one of for each row."""
    return column[part] if isinstance(column, Tensor) and column.ndim else column
