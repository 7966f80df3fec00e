"""Statistics and gradients of a shard: of logits in memory, or of a projection by chunks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function

from xent.core.contract import Cotangents, RowStats
from xent.engine.chunked_projection import ChunkEvaluator, Gradients, Wanted
from xent.torch.distributed.shards import CombinedRows, Shard, ShardRows
from xent.torch.linear import chunked, values
from xent.torch.linear.chunked import Operands
from xent.torch.linear.products import Chunking, TensorProjection
from xent.torch.linear.shifts import LogitsCopies, matrices
from xent.torch.linear.tempered import tempered_evaluator
from xent.torch.targets import label_weights

Tensor = torch.Tensor


class LossSums(NamedTuple):
    """The terms of equation (4): Σ ℓ and the two divisors of a mean; with the sums of the wanted columns."""

    losses: Tensor  # with the factors of several shifts
    total: Any
    rows: Any
    columns: Tensor | None = None  # (shifts, names of `Projected`)


class WeightedRows(NamedTuple):
    """The rows of each shift, and the factors of their losses."""

    each: Sequence[ShardRows]
    factors: Sequence[Any] = (1.0,)

    @property
    def shard(self) -> Shard:
        """The classes of this rank."""
        return self.each[0].shard


class Dense(NamedTuple):
    """Logits in memory; ``operands`` are ``(logits (..., K_s),)``."""

    def combined(self, rows: ShardRows, operands: Any) -> CombinedRows:
        """The statistics over all classes."""
        return rows.combine(rows.stats(operands[0]))

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
    names: tuple[str, ...] = ()  # of the columns that are wanted beside the loss: see `linear.values`
    class_weight: Tensor | None = None  # (K,), of all ranks, for these columns

    def combined(self, rows: ShardRows, operands: Any) -> CombinedRows:
        """The statistics over all classes; one product."""

        def chunk_stats(logits: Tensor, part: slice, _: Any) -> Any:
            local, top = self._local(rows.row_slice(part), logits)
            return (*(s for s in local if s is not None), *top), None

        columns, _ = self._sweep(rows.shard, operands, chunk_stats)
        is_present = [True, rows.labels is not None, *2 * [bool(rows.smoothing) or rows.labels is None]]
        present = iter(c if self.row_index is None else c[self.row_index] for c in columns)
        stats = RowStats(*(next(present) if p else None for p in is_present))
        return _combine(rows, stats, tuple(present))

    def columns(self, rows: ShardRows, combined: CombinedRows) -> tuple[Tensor, ...]:
        """The columns ``names`` of the rows."""
        label_weight = None
        if rows.labels is not None and self.class_weight is not None:
            label_weight = label_weights(rows.labels, self.class_weight)
        given = rows.labels, rows.weight, label_weight, rows.spec, combined.losses
        return values.columns(self.names, combined.stats, *given)

    def _local(self, rows: ShardRows, logits: Tensor) -> tuple[RowStats, tuple[Tensor, ...]]:
        """(the statistics of this rank, its `top_class` if the accuracy is wanted)."""
        if "accuracy" not in self.names:
            return rows.stats(logits), ()
        local = rows.stats(logits, ("argmax",))
        return local._replace(argmax=None), rows.top_class(logits, local.argmax)

    def gradients(
        self, rows: ShardRows, combined: CombinedRows, dlosses: Tensor, operands: Any, wanted: Wanted
    ) -> Any:
        """∂/∂(hidden, weight, bias); three products, of which one recomputes the logits."""
        cotangents = rows.cotangents(combined, dlosses)

        def chunk_grad(logits: Tensor, part: slice, _: Any) -> Any:
            chunk_rows = combined._replace(stats=RowStats(*(_slice_column(s, part) for s in combined.stats)))
            slopes = Cotangents(*(_slice_column(c, part) for c in cotangents))
            return (), rows.row_slice(part).grad(logits, chunk_rows, slopes, logits)

        _, gradients = self._sweep(rows.shard, operands, chunk_grad, wanted)
        return chunked.finished(_reduced(rows.shard, gradients), Operands(*operands), None)

    def sums_and_gradients(
        self, rows: WeightedRows, operands: Any, wanted: Wanted
    ) -> tuple[LossSums, Gradients]:
        """Σ ℓ and its gradients; three products, with the all-reduces of the statistics in each chunk."""
        sums: list[LossSums] = []
        copies, needs_gradient = LogitsCopies(len(rows.each)), any(wanted)

        def chunk_loss(logits: Tensor, part: slice, _: Any) -> Any:
            own, dlogits = [], None
            for k, (whole, factor) in enumerate(zip(rows.each, rows.factors, strict=True)):
                chunk = whole.row_slice(part)
                combined = _combine(chunk, *self._local(chunk, logits))
                columns = [c.sum() for c in self.columns(chunk, combined)]
                stacked = torch.stack(columns) if columns else combined.losses.new_zeros(0)
                target = combined.target
                own.append(LossSums(factor * combined.losses.sum(), target.total, target.rows, stacked))
                if needs_gradient:
                    z = copies.of(logits, k)
                    cotangents = chunk.cotangents(combined, factor * torch.ones_like(combined.losses))
                    slope = chunk.grad(z, combined, cotangents, z)
                    dlogits = slope if dlogits is None else dlogits.add_(slope)
            losses = sum([s.losses for s in own[1:]], own[0].losses)
            every = torch.stack([cast(Tensor, s.columns) for s in own])
            sums.append(own[0]._replace(losses=losses, columns=every))
            return (), dlogits

        asked, count = wanted if needs_gradient else None, matrices(len(rows.each))
        _, gradients = self._sweep(rows.shard, operands, chunk_loss, asked, count)
        added = LossSums(*(sum(column) for column in zip(*sums, strict=True)))
        return added, _reduced(rows.shard, gradients)

    def _sweep(
        self,
        shard: Shard,
        operands: Any,
        evaluate: ChunkEvaluator,
        wanted: Wanted | None = None,
        copies: int = 1,
    ) -> tuple[Any, Gradients]:
        if self.temperature is not None:
            evaluate = tempered_evaluator(evaluate, self.temperature)
        # Counted for the largest shard: the same chunks on every rank.
        given = *Operands(*operands), self.row_index, self.chunking
        projection = TensorProjection(*given, num_classes=shard.largest, copies=copies)
        return projection.sweep(evaluate, None, wanted)


def _combine(rows: ShardRows, local: RowStats, top: tuple[Tensor, ...]) -> CombinedRows:
    """The statistics over all classes; with argmax, if the `top_class` of this rank is given."""
    combined = rows.combine(local)
    if not top:
        return combined
    return combined._replace(stats=combined.stats._replace(argmax=rows.argmax(*top)))


def _reduced(shard: Shard, gradients: Gradients) -> Gradients:
    """The gradients, with that of ``hidden`` summed over the ranks."""
    if gradients.inputs is not None:
        shard.reduce(gradients.inputs)
    return gradients


Layer = Dense | Projected


def losses(rows: ShardRows, layer: Layer, operands: tuple[Any, ...]) -> tuple[Tensor, CombinedRows]:
    """(losses (...), float64, derivable once in the operands; the statistics over all classes)."""
    with torch.no_grad(), torch.autocast(operands[0].device.type, enabled=False):
        combined = layer.combined(rows, operands)
    column = combined.losses
    if is_derived(operands):
        column = cast(Tensor, _Losses.apply(combined, rows, layer, *operands))
    return column, combined


def loss_sums(rows: WeightedRows, layer: Projected, operands: tuple[Any, ...]) -> LossSums:
    """The sums, derivable once in the operands; the gradients are computed with the loss."""
    wanted = _wanted(operands) if torch.is_grad_enabled() else (False, False, False)
    with torch.no_grad(), torch.autocast(operands[0].device.type, enabled=False):
        sums, gradients = layer.sums_and_gradients(rows, operands, wanted)
    if not any(wanted):
        return sums
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
        rows: WeightedRows,
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
