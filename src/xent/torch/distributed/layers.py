"""Statistics and gradients of a shard: of logits in memory, or of a projection by chunks of rows."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function

from xent.core.contract import Cotangents, RowStats
from xent.engine.chunked_projection import ChunkEvaluator, Gradients, Wanted
from xent.torch.distributed.shards import CombinedRows, ShardRows
from xent.torch.linear import chunked
from xent.torch.linear.chunked import Operands
from xent.torch.linear.products import Chunking, TensorProjection
from xent.torch.linear.tempered import of_divided_logits

Tensor = torch.Tensor


class LossSums(NamedTuple):
    """The terms of equation (4): Σ ℓ and the two divisors of a mean."""

    losses: Tensor
    total: Any
    rows: Any


class Dense(NamedTuple):
    """Logits in memory; ``operands`` are ``(logits (..., K_s),)``."""

    def stats(self, rows: ShardRows, operands: Any) -> RowStats:
        """The row statistics of the shard."""
        return rows.stats(operands[0])

    def gradients(
        self, rows: ShardRows, combined: CombinedRows, dlosses: Tensor, operands: Any, wanted: Wanted
    ) -> Any:
        """∂/∂logits."""
        return (rows.grad(operands[0], combined, rows.cotangents(combined, dlosses)),)


class Projected(NamedTuple):
    """Logits of a projection; ``operands`` are ``hidden (M, D), weight (K_s, D), bias (K_s,) or None``."""

    row_index: Tensor | None  # the rows that count
    chunking: Chunking
    temperature: Tensor | None = None  # (n,), of the rows that count

    def stats(self, rows: ShardRows, operands: Any) -> RowStats:
        """The row statistics of the shard; one product."""

        def chunk_stats(logits: Tensor, part: slice, _: Any) -> Any:
            return tuple(s for s in rows.row_slice(part).stats(logits) if s is not None), None

        columns, _ = self._sweep(rows, operands, chunk_stats)
        is_present = [True, rows.labels is not None, *2 * [bool(rows.smoothing) or rows.labels is None]]
        present = iter(c if self.row_index is None else c[self.row_index] for c in columns)
        return RowStats(*(next(present) if p else None for p in is_present))

    def gradients(
        self, rows: ShardRows, combined: CombinedRows, dlosses: Tensor, operands: Any, wanted: Wanted
    ) -> Any:
        """∂/∂(hidden, weight, bias); three products, of which one recomputes the logits."""
        cotangents = rows.cotangents(combined, dlosses)

        def chunk_grad(logits: Tensor, part: slice, _: Any) -> Any:
            chunk_rows = combined._replace(stats=RowStats(*(_slice_column(s, part) for s in combined.stats)))
            slopes = Cotangents(*(_slice_column(c, part) for c in cotangents))
            return (), rows.row_slice(part).grad(logits, chunk_rows, slopes, logits)

        _, gradients = self._sweep(rows, operands, chunk_grad, wanted)
        return chunked.finished(self._reduced(rows, gradients), Operands(*operands), None)

    def sums_and_gradients(
        self, rows: ShardRows, operands: Any, wanted: Wanted
    ) -> tuple[LossSums, Gradients]:
        """Σ ℓ and its gradients; three products, with the all-reduces of the statistics in each chunk."""
        sums = []

        def chunk_loss(logits: Tensor, part: slice, _: Any) -> Any:
            chunk = rows.row_slice(part)
            combined = chunk.combine(chunk.stats(logits))
            sums.append(LossSums(combined.losses.sum(), combined.target.total, combined.target.rows))
            ones = torch.ones_like(combined.losses)
            return (), chunk.grad(logits, combined, chunk.cotangents(combined, ones), logits)

        _, gradients = self._sweep(rows, operands, chunk_loss, wanted)
        return LossSums(*(sum(column) for column in zip(*sums, strict=True))), self._reduced(rows, gradients)

    def _reduced(self, rows: ShardRows, gradients: Gradients) -> Gradients:
        """The gradients, with that of ``hidden`` summed over the ranks."""
        if gradients.inputs is not None:
            rows.shard.reduce(gradients.inputs)
        return gradients

    def _sweep(
        self, rows: ShardRows, operands: Any, evaluate: ChunkEvaluator, wanted: Wanted | None = None
    ) -> tuple[Any, Gradients]:
        if self.temperature is not None:
            evaluate = of_divided_logits(evaluate, self.temperature)
        # Counted for the largest shard: the same chunks on every rank.
        projection = TensorProjection(
            *Operands(*operands), self.row_index, self.chunking, num_classes=rows.shard.largest
        )
        return projection.sweep(evaluate, None, wanted)


Layer = Dense | Projected


def losses(rows: ShardRows, layer: Layer, operands: tuple[Any, ...]) -> tuple[Tensor, LossSums]:
    """(losses (...), float64, derivable once in the operands; their sums)."""
    with torch.no_grad(), torch.autocast(operands[0].device.type, enabled=False):
        combined = rows.combine(layer.stats(rows, operands))
    column = combined.losses
    if is_derived(operands):
        column = cast(Tensor, _Losses.apply(combined, rows, layer, *operands))
    return column, LossSums(column.sum(), combined.target.total, combined.target.rows)


def loss_sums(rows: ShardRows, layer: Projected, operands: tuple[Any, ...]) -> LossSums:
    """The sums, derivable once in the operands; the gradients are computed with the loss."""
    with torch.no_grad(), torch.autocast(operands[0].device.type, enabled=False):
        sums, gradients = layer.sums_and_gradients(rows, operands, _wanted(operands))
    ready = [gradients]  # used once
    return sums._replace(losses=_LossSum.apply(sums.losses, ready, rows, layer, *operands))


def is_derived(operands: tuple[Any, ...]) -> bool:
    """Whether an operand requires a gradient."""
    return torch.is_grad_enabled() and any(_wanted(operands))


class _Losses(Function):
    @staticmethod
    def forward(
        ctx: Any, combined: CombinedRows, rows: ShardRows, layer: Layer, *operands: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(*operands)
        ctx.combined, ctx.rows, ctx.layer = combined._replace(losses=torch.empty(0)), rows, layer
        return combined.losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> Any:
        require_first_order()
        operands = ctx.saved_tensors  # raises if they were written since
        with torch.autocast(operands[0].device.type, enabled=False):
            gradients = ctx.layer.gradients(
                ctx.rows, ctx.combined, dlosses, operands, ctx.needs_input_grad[3:]
            )
        return None, None, None, *gradients


class _LossSum(Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        ready: list[Gradients],
        rows: ShardRows,
        layer: Projected,
        *operands: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(*operands)
        ctx.ready, ctx.rows, ctx.layer = ready, rows, layer
        return value.clone()

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> Any:
        require_first_order()
        operands = ctx.saved_tensors  # raises if they were written since
        if ctx.ready:
            gradients = ctx.ready.pop()
        else:
            with torch.autocast(operands[0].device.type, enabled=False):
                _, gradients = ctx.layer.sums_and_gradients(ctx.rows, operands, ctx.needs_input_grad[4:])
        return None, None, None, None, *chunked.finished(gradients, Operands(*operands), dtotal)


def require_first_order() -> None:
    """Raise in a backward that is derived again."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "what is computed of classes split over processes is derivable once: `create_graph` must be False"
        )


def _wanted(operands: tuple[Any, ...]) -> Wanted:
    return cast(Wanted, tuple(x is not None and x.requires_grad for x in operands))


def _slice_column(column: Any, part: slice) -> Any:
    """A slice of a column; a scalar unchanged."""
    return column[part] if isinstance(column, Tensor) and column.ndim else column
