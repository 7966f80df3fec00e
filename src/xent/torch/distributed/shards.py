"""The loss of rows whose classes are split over processes: statistics of the shards, put together.

Each rank has some of the classes of every row. Its kernels give the row's statistics over those; two
all-reduces of a few numbers a row give every rank the statistics of the whole row, and with these its kernels
write the gradient of its own logits, which no other rank needs to know.
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
        """(labels as the kernels here read them, which of them are here) of `targets.kernel_labels` ones.

        A row that is left out keeps −1, and a label that is no class is none here. For a label on another
        rank class 0 is read, and nothing made of it.
        """
        here = (labels >= self.offset) & (labels < self.offset + self.size)
        elsewhere = torch.where(labels < 0, -1, torch.where(labels < self.num_classes, 0, self.size))
        return torch.where(here, labels - self.offset, elsewhere), here

    def reduce(self, x: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        """All-reduce ``x`` in place."""
        if x.numel():
            dist.all_reduce(x, operation, self.group)


class Known(NamedTuple):
    """What the ranks know together, one number a row."""

    stats: RowStats
    target: Target
    losses: Tensor


class Batch:
    """The rows, the same on every rank, and this rank's part of their targets.

    ``labels`` (...) are those of all classes, or None; ``probabilities (M, K_s)``, of which ``places`` are
    the rows (None: all), and ``class_weight (K_s,)`` are the shard's own; ``weight`` (...) is ω.
    """

    def __init__(
        self,
        shard: Shard,
        labels: Tensor | None,
        probabilities: Tensor | None,
        places: Tensor | None,
        class_weight: Tensor | None,
        weight: Tensor | None,
        spec: LossSpec,
    ) -> None:
        self.shard, self.spec, self.link = shard, spec, spec.link
        self.labels, self.probabilities, self.places = labels, probabilities, places
        self.class_weight, self.weight = class_weight, weight
        self.smoothing = targeting.uniform_smoothing(spec, shard.num_classes)
        self.is_signed = targeting.is_signed(spec, shard.num_classes)
        self.read: Tensor | None = None
        self.here: Tensor | None = None
        if labels is not None:
            self.read, self.here = shard.labels(labels)

    def rows(self, part: slice) -> Batch:
        """Some of the rows (n,)."""
        labels, q, places, weight = self.labels, self.probabilities, self.places, self.weight
        if q is not None and places is None:
            q = q[part]
        return Batch(
            self.shard,
            None if labels is None else labels[part],
            q,
            None if places is None else places[part],
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
        q = self.probabilities if self.places is None else self.probabilities[self.places]
        q = q.to(devices.loss_dtype(like))
        q = targeting.smoothed(q, self.shard.num_classes, self.spec)
        return q if self.class_weight is None else q * self.class_weight

    def stats(self, logits: Tensor) -> RowStats:
        """Statistics over the classes that are here: (lse, log_prob, dense_log_prob, mass)."""
        dense = self.dense(logits)
        names = ("log_prob", self.labels), ("dense_log_prob", dense), ("mass", dense)
        want = ("lse", *(name for name, there in names if there is not None))
        stats = devices.row_stats(logits, self.read, dense, self.link, want)
        return stats._replace(lse=_lse(logits, stats.lse))

    def cotangents(self, known: Known, dlosses: Tensor) -> Cotangents:
        """Those of the statistics, times ``dlosses`` (...); 0 in rows that are not read."""
        found = head.cotangents(known.stats, known.target, self.spec, dlosses, torch)
        return Cotangents(*(self._read(c) if isinstance(c, Tensor) else c for c in found))

    def grad(self, logits: Tensor, known: Known, cotangents: Cotangents, out: Tensor | None = None) -> Tensor:
        """Equation (2) for the classes that are here.

        The kernels write (dl − dx) p + dσ (v − V p), with no label; at those that are here it is put right.
        """
        stats, dense = RowStats(lse=known.stats.lse, mass=known.stats.mass), self.dense(logits)
        dl, dx, ds = cotangents
        if self.here is None or not self.shard.size:
            return devices.row_grad(logits, None, dense, self.link, stats, Cotangents(dl, 0.0, ds), out)
        y = torch.where(self.here, cast(Tensor, self.read), 0)[..., None]
        z = logits.gather(-1, y)[..., 0].to(known.stats.lse.dtype)  # before it is written over
        dlogits = devices.row_grad(logits, None, dense, self.link, stats, Cotangents(dl - dx, 0.0, ds), out)
        v = None if dense is None else dense.expand(logits.shape).gather(-1, y)[..., 0]
        bracket = _at_label(known.stats, cotangents, v)
        exact = head.multiply(bracket, self.link.slope(z, torch), torch).to(dlogits.dtype)
        value = torch.where(self.here, exact, dlogits.gather(-1, y)[..., 0])
        return dlogits.scatter_(-1, y, value[..., None])

    def combined(self, local: RowStats) -> Known:
        """The statistics of whole rows from those of the shards, to the last digit of the tail p_y → 1.

        With m the largest of the shards' l_s: l = m + log1p(R), where R = Σ exp(l_s − m) counts the largest
        term but once less; x = (x_y + l_y − m) − log1p(R) by the label's rank;
        σ = Σ [σ_s + V_s (l_s − m)] − V log1p(R). Every sum is one of terms of one sign.
        """
        top = local.lse.clone()
        self.shard.reduce(top, dist.ReduceOp.MAX)  # of NaN it is anything; the sums bring NaN back
        gap = local.lse - top  # NaN where no shard has anything: a row of −inf has no softmax
        is_top = gap == 0
        columns = {"rest": torch.where(is_top, 0.0, gap.exp()), "tops": is_top.double()}
        log_prob, mass = local.log_prob, local.mass
        if log_prob is not None:
            log_prob = torch.where(gap == -torch.inf, -torch.inf, log_prob + gap)
            columns["log_prob"] = torch.where(cast(Tensor, self.here), log_prob, 0.0)
            if self.class_weight is not None:
                columns["factor"] = self._factors()
        if mass is not None:
            if self.probabilities is None and not self.is_signed:  # one v for all rows
                mass = cast(Tensor, self.dense(top)).double().sum()
            shifted = torch.where(gap == -torch.inf, -torch.inf, local.dense_log_prob + mass * gap)
            columns["dense_log_prob"] = torch.where(mass == 0, 0.0, shifted)
            columns["mass"] = mass
        whole = self._summed(columns)
        log_norm = torch.log1p(whole["rest"] + (whole["tops"] - 1.0))
        stats = RowStats(lse=self._read(top + log_norm))
        if mass is not None:
            mass = whole["mass"]
            sigma = whole["dense_log_prob"] - torch.where(mass == 0, 0.0, mass * log_norm)
            stats = stats._replace(dense_log_prob=self._read(sigma), mass=mass.expand(sigma.shape))
        if log_prob is not None:
            stats = stats._replace(log_prob=self._read(whole["log_prob"] - log_norm))
        target = self._target(whole.get("factor"), top.shape)
        return Known(stats, target, head.row_losses(stats, target, self.spec, torch))

    def _target(self, factor: Tensor | None, shape: tuple[int, ...]) -> Target:
        """The measure of the rows; of v the head asks no more than whether it is there."""
        num_rows = math.prod(shape)
        if self.labels is None:
            total, rows = targeting.totals(num_rows, self.weight, None, torch)
            return Target(None, 0.0, self.probabilities, 1.0, self.weight, total, rows)
        alpha: Any = 0.0 if self.is_signed else 1.0 - self.smoothing
        if factor is not None:
            factor = torch.where(self.labels == self.shard.num_classes, 1.0, factor)  # its row stays NaN
            alpha = alpha * factor
        counts = self.labels >= 0
        counted = counts if self.weight is None else torch.where(counts, self.weight, 0.0)
        total, rows = targeting.totals(num_rows, counted, factor, torch)
        dense = self.labels if self.smoothing else None
        beta = 1.0 if self.is_signed else self.smoothing / max(self.shard.num_classes, 1)
        return Target(self.labels, alpha, dense, beta, self.weight, total, rows)

    def _factors(self) -> Tensor:
        """c_y where the label is here, 0 elsewhere."""
        weights, here = cast(Tensor, self.class_weight), cast(Tensor, self.here)
        if not self.shard.size:
            return torch.zeros(here.shape, dtype=torch.float64, device=here.device)
        return torch.where(here, weights[torch.where(here, cast(Tensor, self.read), 0)], 0.0)

    def _read(self, column: Tensor) -> Tensor:
        """0 in rows that are not read, as the kernels have it."""
        return column if self.labels is None else torch.where(self.labels < 0, 0.0, column)

    def _summed(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums over the group, in one call."""
        whole = torch.cat([c.reshape(-1) for c in columns.values()])
        self.shard.reduce(whole)
        parts = whole.split([c.numel() for c in columns.values()])
        return {name: part.view(c.shape) for (name, c), part in zip(columns.items(), parts, strict=True)}


def _at_label(stats: RowStats, cotangents: Cotangents, v: Tensor | None) -> Tensor:
    """The bracket of (2) at the label, with 1 − p from expm1; 0 where all cotangents are."""
    dl, dx, ds = cast(Any, cotangents)
    x = stats.log_prob
    of_dense = None if v is None else softmax.mass_residual(v, stats.mass, x, torch)
    bracket = softmax.bracket(cotangents, x.exp(), -torch.expm1(x), of_dense)
    return torch.where((dl == 0) & (dx == 0) & (ds == 0), 0.0, bracket)


def _lse(logits: Tensor, lse: Tensor) -> Tensor:
    """−inf, not NaN, for a row of −inf: on other ranks it may have finite logits."""
    if not logits.shape[-1] or (logits.is_cpu and not lse.isnan().any()):
        return lse
    return torch.where(lse.isnan() & (logits.amax(-1) == -torch.inf), -torch.inf, lse)
