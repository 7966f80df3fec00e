"""Targets and options of a projected loss: which rows count, and what is computed of their logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xent.core import head
from xent.core import target as targeting
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import valid_rows
from xent.engine.valid_rows import Rows
from xent.torch import bridge, composite, linear_ops, ops, statistics
from xent.torch.projected import Operands, Swept

Tensor = torch.Tensor

SCHEMA = (  # of what `packed` gives
    "Tensor targets, Tensor? class_weight, Tensor? sample_weight, SymInt ignore_index, "
    "float[] options, Tensor? moving, SymInt shift, SymInt chunk_bytes"
)


class Measured(NamedTuple):
    """Labels (...) or probabilities (..., K), factors of classes (K,) and rows (...), and the options.

    A `linear_ops.Program`.
    """

    targets: Tensor
    class_weight: Tensor | None
    sample_weight: Tensor | None
    spec: LossSpec
    shift: int
    chunk_bytes: int | None

    def rows(
        self, num_classes: int, dtype: torch.dtype, leave_out: bool, inputs: Tensor | None = None
    ) -> tuple[tuple[int, ...], Rows]:
        """(the shape of the losses, the rows that count), for a loss of ``dtype``.

        ``leave_out=True`` synchronises with a GPU. Otherwise rows that do not count are marked as silent; if
        factors are derived, only where ``inputs (M, D)`` are not finite.
        """
        leave_out = leave_out and not is_captured(self.targets)
        targets, spec, shift = self.targets, self.spec, self.shift
        is_soft = targets.is_floating_point()
        shape = targets.shape[:-1] if is_soft else targets.shape
        left, place = valid_rows.shifted(shape, shift, torch, targets.device)
        factors = None if self.class_weight is None else self.class_weight.double()
        omega = valid_rows.flat(None if self.sample_weight is None else self.sample_weight.double(), shift)
        if not is_soft:
            y = composite.readable(valid_rows.flat(targets, shift), num_classes, spec.ignore_index)
            batch = valid_rows.of_labels(y, y < 0, num_classes, factors, omega, spec, place, torch, leave_out)
        else:
            q = valid_rows.matrix(targets)
            batch = valid_rows.of_probabilities(
                q, shift, factors, omega, spec, place, lambda x: x.to(dtype), torch, leave_out
            )
        return left, batch if leave_out else self._silenced(batch, inputs)

    def _silenced(self, batch: Rows, inputs: Tensor | None) -> Rows:
        finite = None
        if inputs is not None and composite.are_derived(self.class_weight, self.sample_weight):
            finite = inputs.isfinite().all(-1)
            finite = finite if batch.places is None else finite[batch.places]
        whole = composite.silenced(batch.whole, self.spec, finite)
        if whole.labels is None:
            return batch

        def measure(part: slice) -> Target:
            marked, own = targeting.part(whole, part), batch.measure(part)
            alpha = marked.alpha if whole.dense is None else own.alpha
            return own._replace(labels=marked.labels, alpha=alpha, weight=marked.weight)

        return batch._replace(measure=measure, whole=whole, silent=whole.labels < 0)

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """See `linear_ops.Program`."""
        spec, numbers = self.spec, ops.spec_numbers(self.spec, device)
        return *self[:3], spec.ignore_index, *numbers, self.shift, self.chunk_bytes or 0

    @classmethod
    def unpacked(cls, *arguments: Any) -> Measured:
        """See `linear_ops.Program`."""
        targets, class_weight, sample_weight, ignore_index, *numbers, shift, chunk_bytes = arguments
        spec = LossSpec.from_numbers(ops.as_floats(*numbers), ignore_index)
        return cls(targets, class_weight, sample_weight, spec, shift, chunk_bytes or None)

    def swept(self, operands: Operands, leave_out: bool) -> Swept:
        """See `linear_ops.Program`."""
        _, batch = self.rows(operands.weight.shape[0], bridge.loss_dtype(operands.inputs), leave_out)
        return self.of(batch)

    def of(self, batch: Rows) -> Swept:
        """The losses of the rows of ``batch``, by the kernels and in ordinary operations."""
        link = self.spec.link

        def losses_of(part: slice, logits: Tensor) -> tuple[Tensor, ...]:
            measure = batch.measure(part)
            stats = statistics.row_stats(logits, measure.labels, measure.dense, link)
            return (head.row_losses(stats, measure, self.spec, torch),)

        step = batch.step(self.spec, bridge, torch)
        return Swept(batch.places, step, losses_of, self.chunk_bytes, batch.silent)


total = linear_ops.total_operator("losses", Measured, SCHEMA)
losses = linear_ops.column_operator("losses", Measured, SCHEMA)


def is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is being recorded, which cannot wait for a number."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
