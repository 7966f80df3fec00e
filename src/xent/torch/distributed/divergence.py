"""Divergences from a teacher whose classes are split over the processes of a group, as the student's are.

The ranks combine a few numbers for each row: see `ShardedDivergences` and `ShardedTopKDivergences`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist

from xent.engine import valid_rows
from xent.torch import devices, modes
from xent.torch.distributed.shards import Shard
from xent.torch.linear.chunked import DERIVED, ChunkedFunction, Operands
from xent.torch.linear.distillation.bins import Bins
from xent.torch.linear.distillation.call import CountedRows, Distillation, counted_rows
from xent.torch.linear.distillation.divergence import Divergence, RowDivergences, divergence_and_slopes
from xent.torch.linear.distillation.topk import Entries, RowTopKDivergences, Teacher, TopKDivergence
from xent.torch.linear.products import TensorProjection
from xent.torch.linear.tempered import Tempered
from xent.torch.targets import require_indices, require_log_probs, require_targets

Tensor = torch.Tensor


class ShardedFunction(ChunkedFunction):
    """A `ChunkedFunction` whose chunks make all-reduces; derivable once.

    The operands are the inputs, the same on every rank, and the weight and bias of the rank's classes. The
    gradient of the inputs is summed over the ranks.
    """

    shard: Shard

    def projection(self, operands: Operands, copies: int = 1) -> TensorProjection:
        """The projection of the shard, with the same chunks on every rank."""
        inputs, weight, bias = operands
        sizes = {"copies": copies * self.copies, "num_classes": self.shard.largest}
        return TensorProjection(inputs, weight, bias, self.row_index, self.chunking, **sizes)

    def sweep(self, operands: Operands, dloss: Any = None, wanted: Any = None) -> Any:
        """As `ChunkedFunction.sweep`."""
        columns, gradients = super().sweep(operands, dloss, wanted)
        if gradients.inputs is not None:
            self.shard.reduce(gradients.inputs)
        return columns, gradients

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """There are no derivatives of higher order."""
        raise NotImplementedError(
            "a divergence whose classes are split over processes is derivable once; got a second derivative"
        )


class ShardedDivergences(ShardedFunction, RowDivergences):
    """`RowDivergences` of a shard, from a teacher with the same classes."""

    copies = DERIVED

    def __init__(self, divergence: Divergence, rows: CountedRows, shard: Shard) -> None:
        super().__init__(divergence, Operands(*divergence[:3]), rows, None)
        self.shard = shard

    def blocks(self, logits: Tensor, part: slice) -> Iterable[tuple[slice, slice]]:
        """The whole chunk: its rows share two all-reduces."""
        return [(slice(0, logits.shape[0]), part)]

    def losses_and_slopes(
        self, logits: Tensor, teacher_logits: Tensor, part: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The divergences over all classes, and the slopes in the logits of the shard.

        With a = u - max u and b = v - max v, the maxima over all classes, KL(p‖q) = G/A - log A + log B for
        p = softmax(u) and q = softmax(v), where A = Σ eᵃ, B = Σ eᵇ and G = Σ eᵃ (a - b). The maxima and the
        three sums take two all-reduces, of 40 bytes a row.
        """
        dtype = devices.loss_dtype(logits)
        pair = [self.divided(z, part) for z in (teacher_logits, logits)]
        a, b = pair[::-1] if self.is_reverse else pair
        tops = torch.stack([_maximum(a), _maximum(b)])
        self.shard.reduce(tops, dist.ReduceOp.MAX)  # undefined for NaN; the sums are NaN then
        a, b = (x - top.to(dtype)[:, None] for x, top in zip((a, b), tops, strict=True))
        e = a.exp()
        terms = (e, b.exp(), torch.where(e == 0, 0.0, e * (a - b)))
        sums = torch.stack([x.sum(-1, dtype=torch.float64) for x in terms])
        self.shard.reduce(sums)
        log_a, log_b = sums[:2].log()
        losses = sums[2] / sums[0] - log_a + log_b
        one, two = a - log_a.to(dtype)[:, None], b - log_b.to(dtype)[:, None]
        return divergence_and_slopes(one, two, losses)


def _maximum(x: Tensor) -> Tensor:
    """The largest element of each row, float64; −inf without classes."""
    if not x.shape[-1]:
        return x.new_full(x.shape[:1], -torch.inf, dtype=torch.float64)
    return x.amax(-1).double()


class ShardedTopKDivergences(ShardedFunction, RowTopKDivergences):
    """`RowTopKDivergences` of a shard; the entries of the teacher are the same on every rank."""

    def __init__(self, divergence: TopKDivergence, rows: CountedRows, shard: Shard) -> None:
        super().__init__(divergence, divergence.entries(shard.num_classes), rows)
        self.shard = shard

    def bins(self, entries: Entries) -> Bins:
        """The bins in the shard."""
        bins = entries.bins(self.temperature)
        classes = bins.classes - self.shard.offset
        is_local = (classes >= 0) & (classes < self.shard.size)
        return bins._replace(classes=torch.where(is_local, classes, 0), is_local=is_local)

    def take(self, bins: Bins, logits: Tensor) -> Tensor:
        """The logits of the bins of all classes: two all-reduces, of 8 (k + 2) bytes a row.

        Each picked logit is one rank's; the others have 0. With m the largest λ_s of the ranks, λ = m +
        log Σ exp(λ_s - m).
        """
        taken = bins.take(logits)
        if not bins.has_rest:
            self.shard.reduce(taken)
            return taken
        rest = taken[:, -1]
        top = rest.clone()
        self.shard.reduce(top, dist.ReduceOp.MAX)  # undefined for NaN; the sum is NaN then
        taken[:, -1] = torch.where(rest == -torch.inf, 0.0, (rest - top).exp())
        self.shard.reduce(taken)
        taken[:, -1] = top + taken[:, -1].log()
        return taken


class TemperedDivergences(ShardedFunction, Tempered):
    """`ShardedTopKDivergences` of logits divided by the temperatures of their rows."""

    def __init__(self, function: ShardedFunction, temperature: Tensor) -> None:
        super().__init__(function, temperature)
        self.shard = function.shard


def linear_kl_divergence(call: Distillation, teacher: Operands, shard: Shard) -> Tensor:
    """The divergence of a checked call, whose operands and ``teacher`` are those of a shard."""
    flat = teacher._replace(inputs=valid_rows.as_matrix(teacher.inputs))
    t, (student, flat) = call.tempered(call.operands, flat)
    kl = Divergence(*flat, call.row_factors(), t, call.temperature, call.is_reverse, call.chunking)
    return _loss(call, student, shard, kl, ShardedDivergences)


def linear_topk_kl_divergence(call: Distillation, teacher: Teacher, shard: Shard) -> Tensor:
    """The divergence of a checked call, whose operands are those of a shard, from a checked teacher."""
    teacher.require_classes(shard.num_classes)
    t, (student,) = call.tempered(call.operands)
    kl = teacher.divergence(call, t)
    if validates(call):
        indices, log_probs = teacher.read_entries(call.counts(kl.sample_weight))
        require_indices(indices, shard.num_classes)
        require_log_probs(log_probs)
    return _loss(call, student, shard, kl, _topk_divergences)


def _topk_divergences(divergence: TopKDivergence, rows: CountedRows, shard: Shard) -> ShardedFunction:
    function, t = ShardedTopKDivergences(divergence, rows, shard), divergence.row_temperature
    return function if t is None else TemperedDivergences(function, t)


def _loss(call: Distillation, flat: Operands, shard: Shard, kl: Any, function: Any) -> Tensor:
    if call.labels is not None and validates(call):
        require_targets(call.labels, shard.num_classes, call.ignore_index, "labels")
    scale = call.scale(kl.sample_weight)
    rows = counted_rows(flat, kl.sample_weight, True, None)
    divergences = function(kl, rows, shard)
    dtype = devices.loss_dtype(flat.inputs)
    if call.reduction != "none" and not modes.are_derived(call.divisor):
        return cast(Tensor, divergences.scaled_sum(flat, scale).to(dtype))
    return call.reduced(divergences.values(flat)[0], scale).to(dtype)


def validates(call: Distillation) -> bool:
    """Whether values are checked; every rank has the same ones."""
    return call.student.inputs.is_cpu if call.validate is None else call.validate


def require_derivable(call: Distillation, *teacher: Tensor | None) -> None:
    """Raise if a gradient is required that a divergence of classes in shards does not compute."""
    if torch.is_grad_enabled() and modes.are_derived(*teacher, call.sample_weight):
        raise NotImplementedError(
            "a divergence whose classes are split over processes is derivable in the student's hidden states "
            "and weights; its teacher and `sample_weight`, and beside a teacher's logits a `temperature` of "
            "each row, must not require gradients"
        )
    if modes.is_transformed():
        raise NotImplementedError(
            "a divergence whose classes are split over processes has no transforms of torch.func"
        )
