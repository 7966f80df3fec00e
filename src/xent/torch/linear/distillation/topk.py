"""The KL divergence between a linear layer's softmax and a teacher that is given by some entries of each row.

It is the divergence between the distributions over the bins of `bins`: equation (22) of docs/maths.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xent.core import head
from xent.core.link import Link
from xent.torch import arguments, devices
from xent.torch.linear import operators
from xent.torch.linear.chunked import ChunkedFunction, Operands
from xent.torch.linear.distillation.bins import Bins, row_bins
from xent.torch.linear.distillation.call import (
    STUDENT,
    CountedRows,
    Distillation,
    are_finite,
    counted_rows,
)
from xent.torch.linear.distillation.divergence import kl_divergence
from xent.torch.linear.products import Chunking
from xent.torch.linear.tempered import tempered
from xent.torch.operator_numbers import as_floats, link_numbers
from xent.torch.targets import as_int64, zero_if_valid_topk

Tensor = torch.Tensor

TAILS = ("bin", "renormalise")


class Entries(NamedTuple):
    """The entries of a teacher: its log-probabilities (n, k) for the classes ``indices (n, k)``."""

    indices: Tensor  # int64; a row with one out of range has a divergence of NaN
    log_probs: Tensor
    num_classes: int
    is_renormalised: bool
    is_reverse: bool

    @property
    def has_rest(self) -> bool:
        """Whether the other classes are a bin. A reverse divergence that is renormalised leaves them out."""
        return self.indices.shape[-1] < self.num_classes and not (self.is_renormalised and self.is_reverse)

    def rows(self, row_index: Any, silent: Tensor | None) -> Entries:
        """Some of the rows; the entries of ``silent`` ones are replaced by finite ones."""
        indices, log_probs = self.indices[row_index], self.log_probs[row_index]
        if silent is not None:
            indices = torch.where(silent[:, None], 0, indices)
            log_probs = torch.where(silent[:, None], 0.0, log_probs)
        return self._replace(indices=indices, log_probs=log_probs)

    def bins(self, temperature: float) -> Bins:
        """The bins of the student."""
        return Bins(torch.where(self._is_class(), self.indices, 0), temperature, self.has_rest)

    def log_prob_bins(self) -> Tensor:
        """The teacher's log-probabilities (n, k + 1) of the bins, float64."""
        a = torch.where(self._is_class().all(-1, keepdim=True), self.log_probs.double(), torch.nan)
        total = torch.logsumexp(a, -1, keepdim=True)
        if self.is_renormalised:
            a = a - total
        if not self.has_rest:
            return a
        if self.is_renormalised:
            return torch.cat([a, torch.full_like(total, -torch.inf)], -1)
        has_mass = total < 0  # otherwise the entries have all of it, up to rounding
        rest = torch.log(-torch.expm1(torch.where(has_mass, total, -1.0)))
        rest = torch.where(has_mass, rest, -torch.inf)
        if self.is_reverse:
            # What rounds to 0 in the precision of the entries would make the divergence infinite.
            rest = rest.clamp(min=REST_FLOOR[self.log_probs.dtype == torch.float64])
        return torch.cat([a, rest], -1)

    def losses(self, bins: Tensor) -> Tensor:
        """KL (n,) for the logits (n, k + 1) of the student's bins, in ordinary operations."""
        return kl_divergence(*self._pair(bins))

    def losses_and_slopes(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """`losses`, and their gradients (n, k + 1) in the logits of the bins: equation (23)."""
        one, two = self._pair(bins)
        losses, p = kl_divergence(one, two), one.exp()
        if self.is_reverse:
            return losses, head.multiply(p, one - two - losses[:, None], torch)
        return losses, two.exp() * p.sum(-1, keepdim=True) - p

    def _pair(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of student and teacher, in the order of KL(one‖two)."""
        log_q, log_p = torch.log_softmax(bins, -1), self.log_prob_bins()
        return (log_q, log_p) if self.is_reverse else (log_p, log_q)

    def _is_class(self) -> Tensor:
        return (self.indices >= 0) & (self.indices < self.num_classes)


# The logarithm of the least mass of the rest of a teacher that a student may leave to it: 2⁻²³, or 2⁻⁵² for
# entries in float64.
REST_FLOOR = (-23 * 0.6931471805599453, -52 * 0.6931471805599453)

SCHEMA = (  # of the result of `TopKDivergence.packed`
    "Tensor indices, Tensor log_probs, Tensor? sample_weight, Tensor? temperature, float[] link, "
    f"Tensor? dynamic, bool is_renormalised, bool is_reverse, {operators.CHUNKING}"
)


class TopKDivergence(NamedTuple):
    """ω·KL of each row between a teacher's entries and a student's softmax: an `operators.Program`."""

    indices: Tensor  # (M, k)
    log_probs: Tensor  # (M, k)
    sample_weight: Tensor | None  # (M,)
    row_temperature: Tensor | None  # (M,), beside a `temperature` of 1
    temperature: float
    is_renormalised: bool
    is_reverse: bool
    chunking: Chunking

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """The fields as arguments of an operator."""
        numbers = link_numbers(Link(self.temperature), device)
        return *self[:4], *numbers, self.is_renormalised, self.is_reverse, *self.chunking

    @classmethod
    def unpacked(cls, *arguments: Any) -> TopKDivergence:
        """The inverse of `packed`."""
        indices, log_probs, omega, row_temperature, link, dynamic, *options = arguments
        is_renormalised, is_reverse, *chunking = options
        (temperature,) = as_floats(link, dynamic)
        tensors = indices, log_probs, omega, row_temperature
        return cls(*tensors, temperature, is_renormalised, is_reverse, Chunking(*chunking))

    def entries(self, num_classes: int) -> Entries:
        """The entries of all rows."""
        return Entries(self.indices, self.log_probs, num_classes, self.is_renormalised, self.is_reverse)

    def function(self, operands: Operands, leave_out: bool = True) -> ChunkedFunction:
        """The function of the student's logits."""
        rows = counted_rows(operands, self.sample_weight, leave_out, lambda: self.have_loss(operands))
        divergences = RowTopKDivergences(self, self.entries(operands.weight.shape[0]), rows)
        return tempered(divergences, self.row_temperature)

    def have_loss(self, operands: Operands) -> Tensor:
        """Mask (M,) of the rows that hold no NaN and no infinite input."""
        return are_finite(operands.inputs) & ~self.log_probs.isnan().any(-1)


class RowTopKDivergences(ChunkedFunction):
    """One column: ω·KL of each row of the student's logits."""

    def __init__(self, divergence: TopKDivergence, entries: Entries, rows: CountedRows) -> None:
        super().__init__(rows.row_index, divergence.chunking, rows.silent)
        self.temperature, self.all_entries, self.omega = divergence.temperature, entries, rows.omega

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        entries = self.entries(part)
        return (self.weighted(entries.losses(self.bins(entries).columns(logits)), part),)

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient if ``dloss`` is given."""
        entries = self.entries(part)
        bins = self.bins(entries)
        taken = self.take(bins, logits)
        if dloss is None:
            return (self.weighted(entries.losses(taken), part),), None
        losses, slopes = entries.losses_and_slopes(taken)
        upstream = torch.as_tensor(dloss, dtype=torch.float64, device=logits.device).expand(losses.shape)
        dbins = head.multiply(self.weighted(upstream, part)[:, None], slopes, torch)
        return (self.weighted(losses, part),), bins.gradient(logits, taken, dbins)

    def bins(self, entries: Entries) -> Bins:
        """The bins of a chunk's logits."""
        return entries.bins(self.temperature)

    def take(self, bins: Bins, logits: Tensor) -> Tensor:
        """The logits (n, k + 1) of the bins of all classes; `Bins.take` of a chunk's ``logits``."""
        return bins.take(logits)

    def entries(self, part: slice) -> Entries:
        """The teacher's entries of a chunk."""
        rows = part if self.row_index is None else self.row_index[part]
        return self.all_entries.rows(rows, None if self.silent is None else self.silent[part])

    def weighted(self, column: Tensor, part: slice) -> Tensor:
        """``column`` times the factors of a chunk's rows."""
        return head.multiply(None if self.omega is None else self.omega[part], column, torch)


divergence_sum = operators.sum_operator("topk_divergences", TopKDivergence, SCHEMA)


def losses(operands: Operands, divergence: TopKDivergence) -> Tensor:
    """ω·KL of each row in a graph; derivable once in the operands, log-probabilities and factors.

    A row of weight 0 is read only if it is finite and ω requires a gradient.
    """
    omega, counts, silent = divergence.sample_weight, None, None
    if omega is not None:
        counts = omega != 0
        if omega.requires_grad:
            counts = counts | divergence.have_loss(operands)
        silent = ~counts
    entries = divergence.entries(operands.weight.shape[0]).rows(slice(None), silent)
    bins = entries.bins(divergence.temperature)
    logits = row_bins(operands, bins, counts, divergence.row_temperature, divergence.chunking)
    column = entries.losses(logits)
    if silent is not None:
        column = torch.where(silent, 0.0, column)
    return head.multiply(omega, column, torch)


class Teacher(NamedTuple):
    """The arguments of a teacher that is given by entries: ``indices (..., k)``, ``log_probs (..., k)``."""

    indices: Tensor
    log_probs: Tensor
    tail: str

    def checked(self, shape: tuple[int, ...]) -> Teacher:
        """The teacher, checked against the ``shape`` of the rows, except for values."""
        if self.tail not in TAILS:
            raise arguments.ArgumentError(f'`tail` must be "bin" or "renormalise"; got {self.tail!r}')
        for name, x in (("indices", self.indices), ("log_probs", self.log_probs)):
            arguments.require_tensor(x, name)
            if x.ndim != len(shape) + 1 or x.shape[:-1] != shape or not x.shape[-1]:
                raise arguments.ArgumentError(
                    f"`{name}` must have shape (..., k) with k > 0 for the rows {shape}; got {tuple(x.shape)}"
                )
        if self.indices.dtype not in arguments.INTEGERS:
            raise arguments.ArgumentError(f"`indices` must have an integer dtype; got {self.indices.dtype}")
        if self.log_probs.dtype not in devices.FLOATING:
            raise arguments.ArgumentError(
                f"`log_probs` must be float64, float32, float16 or bfloat16; got {self.log_probs.dtype}"
            )
        if self.indices.shape != self.log_probs.shape:
            raise arguments.ArgumentError(
                "`log_probs` must have the shape of `indices`, "
                f"{tuple(self.indices.shape)}; got {tuple(self.log_probs.shape)}"
            )
        return self

    def require_classes(self, num_classes: int) -> None:
        """Raise if a row has more entries than there are classes."""
        if self.indices.shape[-1] > num_classes:
            raise arguments.ArgumentError(
                f"`indices` must have at most {num_classes} classes in a row; got {self.indices.shape[-1]}"
            )

    def read_entries(self, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """(indices, log-probabilities), valid ones where ``counts (...)`` is 0, which are not read."""
        if counts is None:
            return self.indices, self.log_probs
        is_read = (counts != 0)[..., None]
        distinct = torch.arange(self.indices.shape[-1], device=counts.device, dtype=self.indices.dtype)
        return torch.where(is_read, self.indices, distinct), torch.where(is_read, self.log_probs, 0.0)

    def divergence(self, call: Distillation, row_temperature: Tensor | None) -> TopKDivergence:
        """The divergence of the rows (M,), with their temperatures from `Distillation.tempered`."""
        shape = call.operands.inputs.shape[0], self.indices.shape[-1]
        indices, log_probs = as_int64(self.indices).reshape(shape), self.log_probs.reshape(shape)
        options = call.temperature, self.tail == "renormalise", call.is_reverse, call.chunking
        return TopKDivergence(indices, log_probs, call.row_factors(), row_temperature, *options)


def linear_topk_kl_divergence(call: Distillation, teacher: Teacher) -> Tensor:
    """The divergence of a checked call from a checked teacher."""
    tensors = {**dict(zip(STUDENT, call.student, strict=True)), **teacher._asdict()}
    arguments.require_local(**tensors, temperature=call.row_temperature)
    num_classes = call.student.weight.shape[0]
    teacher.require_classes(num_classes)
    t, (student,) = call.tempered(call.operands)
    kl = teacher.divergence(call, t)
    entries = teacher.read_entries(call.counts(kl.sample_weight))
    zero = zero_if_valid_topk(*entries, num_classes, call.validate)
    loss = call.loss(student, kl, (kl.log_probs, kl.sample_weight), divergence_sum, losses)
    return loss if zero is None else loss + zero
