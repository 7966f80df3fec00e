"""The loss of rows whose classes are split over processes, from the combined statistics of the shards.

Each rank has some of the classes of every row, and its kernels compute the row statistics over them. Two
all-reduces of a few numbers for each row give every rank the statistics over all classes; from these its
kernels compute the gradient of its own logits, without further communication.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist

from xent.core import head, softmax
from xent.core import target as targeting
from xent.core.contract import Cotangents, RowStats
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.torch import devices

Tensor = torch.Tensor


class Shard(NamedTuple):
    """The classes of one rank of ``group``: ``size`` of ``num_classes``, from ``offset`` on."""

    group: Any
    offset: int
    size: int
    num_classes: int
    largest: int  # size of a shard of the group

    def labels(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(labels as this rank's kernels read them, mask of this rank's), from `targets.kernel_labels`.

        An ignored row keeps −1, and a label out of range stays out of range. A label of another rank becomes
        0: the kernels read class 0, and the result is not used.
        """
        is_local = (labels >= self.offset) & (labels < self.offset + self.size)
        elsewhere = torch.where(labels < 0, -1, torch.where(labels < self.num_classes, 0, self.size))
        return torch.where(is_local, labels - self.offset, elsewhere), is_local

    def reduce(self, x: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        """All-reduce ``x`` in place."""
        if x.numel():
            dist.all_reduce(x, operation, self.group)


class CombinedRows(NamedTuple):
    """Statistics over all classes, target and losses of each row; the same on every rank."""

    stats: RowStats
    target: Target
    losses: Tensor


class ShardRows:
    """The rows, the same on every rank, and this rank's part of their targets.

    ``labels`` (...) are among all classes, or None. ``probabilities (M, K_s)``, indexed by ``row_index``
    (None for all rows), and ``class_weight (K_s,)`` belong to the shard's classes; ``weight`` (...) is ω.
    """

    def __init__(
        self,
        shard: Shard,
        labels: Tensor | None,
        probabilities: Tensor | None,
        row_index: Tensor | None,
        class_weight: Tensor | None,
        weight: Tensor | None,
        spec: LossSpec,
    ) -> None:
        self.shard, self.spec, self.link = shard, spec, spec.link
        self.labels, self.probabilities, self.row_index = labels, probabilities, row_index
        self.class_weight, self.weight = class_weight, weight
        self.smoothing = targeting.uniform_smoothing(spec, shard.num_classes)
        self.is_signed = targeting.is_signed(spec, shard.num_classes)
        self.read: Tensor | None = None
        self.is_local: Tensor | None = None
        if labels is not None:
            self.read, self.is_local = shard.labels(labels)

    def row_slice(self, part: slice) -> ShardRows:
        """A slice of the rows (n,)."""
        labels, q, row_index, weight = self.labels, self.probabilities, self.row_index, self.weight
        if q is not None and row_index is None:
            q = q[part]
        return ShardRows(
            self.shard,
            None if labels is None else labels[part],
            q,
            None if row_index is None else row_index[part],
            self.class_weight,
            None if weight is None else weight[part],
            self.spec,
        )

    def dense(self, like: Tensor) -> Tensor | None:
        """This rank's columns of v: (K_s,), (..., K_s) or None."""
        if self.probabilities is None:
            if not self.smoothing:
                return None
            ones = torch.ones(self.shard.size, dtype=torch.float64, device=like.device)
            factors = ones if self.class_weight is None else self.class_weight
            if self.labels is None or not self.is_signed:
                return factors
            classes = self.shard.num_classes, self.spec, torch, self.shard.offset
            return targeting.smoothed_labels(self.labels, factors, *classes)
        q = self.probabilities if self.row_index is None else self.probabilities[self.row_index]
        q = q.to(devices.loss_dtype(like))
        q = targeting.smoothed(q, self.shard.num_classes, self.spec)
        return q if self.class_weight is None else q * self.class_weight

    def stats(self, logits: Tensor, others: tuple[str, ...] = ()) -> RowStats:
        """Statistics over the classes of this rank: (lse, log_prob, dense_log_prob, mass), and ``others``."""
        dense = self.dense(logits)
        names = ("log_prob", self.labels), ("dense_log_prob", dense), ("mass", dense)
        want = ("lse", *(name for name, source in names if source is not None), *others)
        stats = devices.row_stats(logits, self.read, dense, self.link, want)
        return stats._replace(lse=devices.lse_or_empty(logits, stats.lse))

    def top_class(self, logits: Tensor, argmax: Tensor) -> tuple[Tensor, Tensor]:
        """(the largest logit of this rank, its class among all), from this rank's ``argmax``."""
        if not self.shard.size:
            return argmax.new_full(argmax.shape, -torch.inf, dtype=torch.float64), argmax
        top = logits.gather(-1, argmax[..., None])[..., 0].double()
        return torch.where(top.isnan(), -torch.inf, top), argmax + self.shard.offset

    def argmax(self, top: Tensor, index: Tensor) -> Tensor:
        """The first class of all ranks with the largest logit, from `top_class`; NaN counts as −inf."""
        largest, last = top.clone(), max(0, self.shard.num_classes - 1)
        self.shard.reduce(largest, dist.ReduceOp.MAX)
        first = torch.where(top == largest, index, last) if self.shard.size else torch.full_like(index, last)
        self.shard.reduce(first, dist.ReduceOp.MIN)
        return first

    def cotangents(self, combined: CombinedRows, dlosses: Tensor) -> Cotangents:
        """The cotangents of the statistics for upstream ``dlosses`` (...); 0 in rows that are not read."""
        cotangents = head.cotangents(combined.stats, combined.target, self.spec, dlosses, torch)
        return Cotangents(*(self._read(c) if isinstance(c, Tensor) else c for c in cotangents))

    def grad(
        self, logits: Tensor, combined: CombinedRows, cotangents: Cotangents, out: Tensor | None = None
    ) -> Tensor:
        """Equation (2) for the classes of this rank.

        The kernels write (dl − dx) p + dσ (v − V p), without labels; elements at labels of this rank are then
        replaced.
        """
        stats, dense = RowStats(lse=combined.stats.lse, mass=combined.stats.mass), self.dense(logits)
        dl, dx, ds = cotangents
        if self.is_local is None or not self.shard.size:
            return devices.row_grad(logits, None, dense, self.link, stats, Cotangents(dl, 0.0, ds), out)
        y = torch.where(self.is_local, cast(Tensor, self.read), 0)[..., None]
        z = logits.gather(-1, y)[..., 0].to(combined.stats.lse.dtype)  # before it is overwritten
        dlogits = devices.row_grad(logits, None, dense, self.link, stats, Cotangents(dl - dx, 0.0, ds), out)
        v = None if dense is None else dense.expand(logits.shape).gather(-1, y)[..., 0]
        bracket = _at_label(combined.stats, cotangents, v)
        exact = head.multiply(bracket, self.link.slope(z, torch), torch).to(dlogits.dtype)
        value = torch.where(self.is_local, exact, dlogits.gather(-1, y)[..., 0])
        return dlogits.scatter_(-1, y, value[..., None])

    def combine(self, local: RowStats) -> CombinedRows:
        """The statistics over all classes from those of the shards, without cancellation as p_y → 1.

        With m the largest of the shards' l_s: l = m + log1p(R), where R = Σ exp(l_s − m) without one largest
        term; x = (x_y + l_y − m) − log1p(R) by the label's rank; σ = Σ [σ_s + V_s (l_s − m)] − V log1p(R).
        All terms of a sum have the same sign.
        """
        top = local.lse.clone()
        self.shard.reduce(top, dist.ReduceOp.MAX)  # undefined for NaN; the sums are NaN then
        gap = local.lse - top  # NaN if all shards have −inf: such a row has no softmax
        is_top = gap == 0
        columns = {"rest": torch.where(is_top, 0.0, gap.exp()), "tops": is_top.double()}
        log_prob, mass = local.log_prob, local.mass
        if log_prob is not None:
            log_prob = torch.where(gap == -torch.inf, -torch.inf, log_prob + gap)
            columns["log_prob"] = torch.where(cast(Tensor, self.is_local), log_prob, 0.0)
            if self.class_weight is not None:
                columns["factor"] = self._factors()
        if mass is not None:
            if self.probabilities is None and not self.is_signed:  # one v for all rows
                mass = cast(Tensor, self.dense(top)).double().sum()
            shifted = torch.where(gap == -torch.inf, -torch.inf, local.dense_log_prob + mass * gap)
            columns["dense_log_prob"] = torch.where(mass == 0, 0.0, shifted)
            columns["mass"] = mass
        whole = self.all_sum(columns)
        log_norm = torch.log1p(whole["rest"] + (whole["tops"] - 1.0))
        stats = RowStats(lse=self._read(top + log_norm))
        if mass is not None:
            mass = whole["mass"]
            sigma = whole["dense_log_prob"] - torch.where(mass == 0, 0.0, mass * log_norm)
            stats = stats._replace(dense_log_prob=self._read(sigma), mass=mass.expand(sigma.shape))
        if log_prob is not None:
            stats = stats._replace(log_prob=self._read(whole["log_prob"] - log_norm))
        target = self._target(whole.get("factor"), top.shape)
        return CombinedRows(stats, target, head.row_losses(stats, target, self.spec, torch))

    def _target(self, factor: Tensor | None, shape: tuple[int, ...]) -> Target:
        """The target of the rows; the head only tests whether its ``dense`` is None."""
        num_rows = math.prod(shape)
        if self.labels is None:
            total, rows = targeting.totals(num_rows, self.weight, None, torch)
            return Target(None, 0.0, self.probabilities, 1.0, self.weight, total, rows)
        alpha: Any = 0.0 if self.is_signed else 1.0 - self.smoothing
        if factor is not None:
            factor = torch.where(
                self.labels == self.shard.num_classes, 1.0, factor
            )  # out of range: the row stays NaN
            alpha = alpha * factor
        counts = self.labels >= 0
        counted = counts if self.weight is None else torch.where(counts, self.weight, 0.0)
        total, rows = targeting.totals(num_rows, counted, factor, torch)
        dense = self.labels if self.smoothing else None
        beta = 1.0 if self.is_signed else self.smoothing / max(self.shard.num_classes, 1)
        return Target(self.labels, alpha, dense, beta, self.weight, total, rows)

    def _factors(self) -> Tensor:
        """c_y for labels of this rank, 0 for others."""
        weights, is_local = cast(Tensor, self.class_weight), cast(Tensor, self.is_local)
        if not self.shard.size:
            return torch.zeros(is_local.shape, dtype=torch.float64, device=is_local.device)
        return torch.where(is_local, weights[torch.where(is_local, cast(Tensor, self.read), 0)], 0.0)

    def _read(self, column: Tensor) -> Tensor:
        """``column`` with 0 in rows that are not read, as in the kernels."""
        return column if self.labels is None else torch.where(self.labels < 0, 0.0, column)

    def all_sum(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns summed over the group, by one all-reduce."""
        whole = torch.cat([c.reshape(-1) for c in columns.values()])
        self.shard.reduce(whole)
        parts = whole.split([c.numel() for c in columns.values()])
        return {name: part.view(c.shape) for (name, c), part in zip(columns.items(), parts, strict=True)}


def _at_label(stats: RowStats, cotangents: Cotangents, v: Tensor | None) -> Tensor:
    """The bracket of (2) at the label, with 1 − p from expm1; 0 where all cotangents are 0."""
    dl, dx, ds = cast(Any, cotangents)
    x = stats.log_prob
    dense_residual = None if v is None else softmax.mass_residual(v, stats.mass, x, torch)
    bracket = softmax.bracket(cotangents, x.exp(), -torch.expm1(x), dense_residual)
    return torch.where((dl == 0) & (dx == 0) & (ds == 0), 0.0, bracket)
