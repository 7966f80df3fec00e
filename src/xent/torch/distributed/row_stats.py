"""The row statistics of a linear layer whose classes are split over processes, by chunks of rows.

The ranks combine the statistics of their classes in each chunk by all-reduces of columns, one number for each
row: two for log-sum-exp and log-probability, two for the argmax, one for entropy and mean, and four for
log Σ p², whose two terms (24) are log-probabilities of the likeliest class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function

from xent.core import softmax
from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.engine import row_columns
from xent.engine.chunked_projection import ChunkEvaluator, Gradients, Wanted
from xent.torch import devices
from xent.torch.distributed import layers
from xent.torch.distributed.shards import CombinedRows, Shard, ShardRows
from xent.torch.linear import chunked
from xent.torch.linear.chunked import DERIVED, Operands
from xent.torch.linear.products import Chunking, TensorProjection
from xent.torch.linear.tempered import tempered_evaluator

Tensor = torch.Tensor

OF_OTHERS = ("entropy", "log_sum_sq_probs", "mean_logits")  # columns that `ShardRows.grad` lacks


class Combined(NamedTuple):
    """Columns over all classes, the same on every rank; None for what no wanted column needs."""

    stats: RowStats  # lse, log_prob, entropy, argmax
    terms: tuple[RowStats, ...] = ()  # lse and log_prob of the likeliest class, by the links of (24)
    mean_logits: Tensor | None = None

    def log_sum_sq_probs(self, link: Link) -> Tensor:
        """Equation (24)."""
        factors = (factor for factor, _ in row_columns.likeliest_terms(link))
        return cast(Tensor, sum(f * term.log_prob for f, term in zip(factors, self.terms, strict=True)))


class ShardStatistics:
    """The statistics of the rows that count: ``row_index (n,)`` of those of ``hidden``, None for all.

    ``labels (n,)`` are among all classes, from `targets.kernel_labels`, and ``names`` among
    `row_columns.COLUMNS`. The logits are divided by the ``temperature (n,)`` of their rows.
    """

    def __init__(
        self,
        shard: Shard,
        labels: Tensor | None,
        row_index: Tensor | None,
        spec: LossSpec,
        names: tuple[str, ...],
        chunking: Chunking,
        temperature: Tensor | None = None,
    ) -> None:
        self.shard, self.labels, self.row_index = shard, labels, row_index
        self.spec, self.names, self.chunking = spec, names, chunking
        self.temperature = temperature

    def values(self, operands: Operands) -> tuple[Tensor, ...]:
        """The columns (M,), derivable once in the operands."""
        with torch.no_grad(), torch.autocast(operands.inputs.device.type, enabled=False):
            combined = self._sweep(operands)
        columns = self._columns(combined, operands.inputs.shape[0])
        if layers.is_derived(operands):
            return cast("tuple[Tensor, ...]", _Columns.apply(self, combined, columns, *operands))
        return columns

    def gradients(
        self, combined: Combined, upstream: dict[str, Tensor], operands: Operands, wanted: Wanted
    ) -> tuple[Tensor | None, ...]:
        """∂/∂(hidden, weight, bias) for the cotangents (n,) of the columns."""

        def chunk_grad(logits: Tensor, part: slice, _: Any) -> Any:
            slopes = {name: d[part] for name, d in upstream.items()}
            return (), self._chunk_grad(logits, self._rows(part), _row_slice(combined, part), slopes)

        gradients = self._sweep_logits(operands, chunk_grad, wanted)
        if gradients.inputs is not None:
            self.shard.reduce(gradients.inputs)
        return chunked.finished(gradients, operands, None)

    def _sweep(self, operands: Operands) -> Combined:
        """The combined columns (n,); one product."""
        pieces: list[Combined] = []

        def chunk_columns(logits: Tensor, part: slice, _: Any) -> Any:
            pieces.append(self._chunk_columns(logits, self._rows(part)))
            return (), None

        self._sweep_logits(operands, chunk_columns)
        return _joined(pieces)

    def _columns(self, combined: Combined, num_rows: int) -> tuple[Tensor, ...]:
        """The columns (M,) of all rows, 0 in rows that do not count."""
        by_name = combined.stats._asdict() | {"mean_logits": combined.mean_logits}
        if "log_sum_sq_probs" in self.names:
            by_name["log_sum_sq_probs"] = combined.log_sum_sq_probs(self.spec.link)
        columns = (cast(Tensor, by_name[name]) for name in self.names)
        if self.row_index is None:  # a node of autograd keeps `combined`, and must not keep its own result
            return tuple(c.clone() for c in columns)
        return tuple(c.new_zeros(num_rows).index_put((self.row_index,), c) for c in columns)

    def _chunk_columns(self, logits: Tensor, rows: ShardRows) -> Combined:
        """The statistics of a chunk, combined over the ranks."""
        finds_top = "argmax" in self.names or "log_sum_sq_probs" in self.names
        others = ("entropy",) * ("entropy" in self.names) + ("argmax",) * finds_top
        local = rows.stats(logits, others)
        stats = rows.combine(local).stats
        sums = {}
        if "entropy" in self.names:
            sums["entropy"] = _entropy_part(local, stats)
        if "mean_logits" in self.names:
            own = softmax.mean_logits(devices.widened(logits), None, rows.link, torch)
            sums["mean_logits"] = own * self._share()
        sums = rows.all_sum(sums) if sums else sums
        mean = sums.get("mean_logits")
        if mean is not None and rows.labels is not None:
            mean = torch.where(rows.labels < self.shard.num_classes, mean, torch.nan)
        stats = stats._replace(entropy=sums.get("entropy"))
        if finds_top:
            stats = stats._replace(argmax=rows.argmax(*rows.top_class(logits, local.argmax)))
        terms: tuple[RowStats, ...] = ()
        if "log_sum_sq_probs" in self.names:
            wide = devices.widened(logits)
            terms = tuple(
                likeliest.combine(likeliest.stats(wide)).stats
                for _, likeliest in self._likeliest_rows(stats.argmax, rows.labels)
            )
        return Combined(stats, terms, mean)

    def _chunk_grad(
        self, logits: Tensor, rows: ShardRows, combined: Combined, upstream: dict[str, Tensor]
    ) -> Tensor:
        """Gradient of Σ upstream·column in this rank's logits, which are overwritten."""
        others = None
        for name in OF_OTHERS:
            d = upstream.get(name)
            # On a GPU without a test of the values, for which the host would wait.
            if d is not None and (d.device.type != "cpu" or d.any()):
                product = getattr(self, f"_{name}_grad")(devices.widened(logits), rows, combined, d)
                others = product if others is None else others.add_(product)
        zero = torch.zeros_like(combined.stats.lse)
        cotangents = Cotangents(upstream.get("lse", zero), upstream.get("log_prob", zero))
        dlogits = rows.grad(logits, _as_rows(combined.stats), cotangents, logits)
        return dlogits if others is None else dlogits.add_(others)

    def _entropy_grad(self, logits: Tensor, rows: ShardRows, combined: Combined, d: Tensor) -> Tensor:
        """Equation (26) times ``d``, with log p = u − l; the difference keeps the digits of a float64 l."""
        high = combined.stats.lse.to(logits.dtype)
        low = (combined.stats.lse - high).to(logits.dtype)
        log_p = (rows.link.value(logits, torch) - high[:, None]) - low[:, None]
        slope, entropy = rows.link.slope(logits, torch), combined.stats.entropy
        return cast(Tensor, softmax.entropy_grad(log_p.exp(), log_p, entropy, slope, d, torch))

    def _mean_logits_grad(self, logits: Tensor, rows: ShardRows, combined: Combined, d: Tensor) -> Tensor:
        d = d.to(logits.dtype) * self._share()
        return cast(Tensor, softmax.mean_logits_grad(logits, rows.read, rows.link, d, torch))

    def _log_sum_sq_probs_grad(
        self, logits: Tensor, rows: ShardRows, combined: Combined, d: Tensor
    ) -> Tensor:
        """Equation (25) times ``d``, by the two terms of (24)."""
        terms = zip(self._likeliest_rows(combined.stats.argmax, rows.labels), combined.terms, strict=True)
        one, two = (
            likeliest.grad(logits, _as_rows(stats), Cotangents(log_prob=factor * d))
            for (factor, likeliest), stats in terms
        )
        return one.add_(two)

    def _likeliest_rows(self, argmax: Tensor, labels: Tensor | None) -> list[tuple[float, ShardRows]]:
        """The terms of (24): factors, and rows whose label is the likeliest class."""
        likeliest = row_columns.likeliest_class(argmax, labels, self.shard.num_classes, torch)
        return [
            (factor, self._shard_rows(likeliest, replace(self.spec, **link._asdict())))
            for factor, link in row_columns.likeliest_terms(self.spec.link)
        ]

    def _rows(self, part: slice) -> ShardRows:
        return self._shard_rows(None if self.labels is None else self.labels[part], self.spec)

    def _shard_rows(self, labels: Tensor | None, spec: LossSpec) -> ShardRows:
        return ShardRows(self.shard, labels, None, None, None, None, spec)

    def _share(self) -> float:
        """The part of the classes that this rank has."""
        return self.shard.size / max(1, self.shard.num_classes)

    def _sweep_logits(
        self, operands: Operands, evaluate: ChunkEvaluator, wanted: Wanted | None = None
    ) -> Gradients:
        """The gradients of `Projection.sweep` of this rank's logits."""
        if self.temperature is not None:
            evaluate = tempered_evaluator(evaluate, self.temperature)
        # Counted for the largest shard: the same chunks on every rank.
        given = *operands, self.row_index, self.chunking
        projection = TensorProjection(*given, copies=DERIVED, num_classes=self.shard.largest)
        return projection.sweep(evaluate, None, wanted)[1]


def _entropy_part(local: RowStats, stats: RowStats) -> Tensor:
    """P (H_s − log P), with P = exp(l_s − l): the part of this rank's classes in the entropy (27)."""
    log_mass = local.lse - stats.lse
    mass = log_mass.exp()
    return torch.where(mass == 0, 0.0, mass * (local.entropy - log_mass))


def _as_rows(stats: RowStats) -> CombinedRows:
    """The statistics as `ShardRows.grad` takes them."""
    return CombinedRows(stats, cast(Any, None), cast(Any, None))


def _row_slice(combined: Combined, part: slice) -> Combined:
    """A slice of the rows."""

    def cut(stats: RowStats) -> RowStats:
        return RowStats(*(None if s is None else s[part] for s in stats))

    mean = None if combined.mean_logits is None else combined.mean_logits[part]
    return Combined(cut(combined.stats), tuple(map(cut, combined.terms)), mean)


def _joined(pieces: list[Combined]) -> Combined:
    """The rows of all pieces."""

    def join(columns: Any) -> Any:
        columns = tuple(columns)
        return None if columns[0] is None else torch.cat(columns)

    def join_stats(every: Any) -> RowStats:
        return RowStats(*(join(column) for column in zip(*every, strict=True)))

    return Combined(
        join_stats(piece.stats for piece in pieces),
        tuple(map(join_stats, zip(*(piece.terms for piece in pieces), strict=True))),
        join(piece.mean_logits for piece in pieces),
    )


class _Columns(Function):
    @staticmethod
    def forward(
        ctx: Any,
        statistics: ShardStatistics,
        combined: Combined,
        columns: tuple[Tensor, ...],
        *operands: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*operands)
        ctx.statistics, ctx.combined = statistics, combined
        ctx.mark_non_differentiable(*(c for c in columns if not c.is_floating_point()))
        return columns

    @staticmethod
    def backward(ctx: Any, *dcolumns: Tensor) -> Any:
        layers.require_first_order()
        operands = Operands(*ctx.saved_tensors)  # raises if they were written since
        statistics, row_index = ctx.statistics, ctx.statistics.row_index
        upstream = {
            name: d.contiguous() if row_index is None else d[row_index]
            for name, d in zip(statistics.names, dcolumns, strict=True)
            if name != "argmax"
        }
        with torch.autocast(operands.inputs.device.type, enabled=False):
            gradients = statistics.gradients(ctx.combined, upstream, operands, ctx.needs_input_grad[3:])
        return None, None, None, *gradients
