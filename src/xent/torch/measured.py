"""Targets and options of a projected loss: which rows count, and what is computed of their logits."""

from __future__ import annotations

from typing import NamedTuple

import torch

from xent import head, rows
from xent.link import Link
from xent.rows import Rows
from xent.spec import LossSpec
from xent.torch import bridge, composite, statistics
from xent.torch.projected import Swept

Tensor = torch.Tensor


class Measured(NamedTuple):
    """Labels (...) or probabilities (..., K), factors of classes (K,) and rows (...), and the options."""

    targets: Tensor
    class_weight: Tensor | None
    sample_weight: Tensor | None
    spec: LossSpec
    shift: int
    chunk_bytes: int | None

    def rows(self, num_classes: int, dtype: torch.dtype, leave_out: bool) -> tuple[tuple[int, ...], Rows]:
        """(the shape of the losses, the rows that count), for a loss of ``dtype``.

        To ``leave_out`` others waits for a GPU.
        """
        leave_out = leave_out and not _is_captured(self.targets)
        targets, spec, shift = self.targets, self.spec, self.shift
        is_soft = targets.is_floating_point()
        shape = targets.shape[:-1] if is_soft else targets.shape
        left, place = rows.shifted(shape, shift, torch, targets.device)
        factors = None if self.class_weight is None else self.class_weight.double()
        omega = rows.flat(None if self.sample_weight is None else self.sample_weight.double(), shift)
        if not is_soft:
            y = composite.readable(rows.flat(targets, shift), num_classes, spec.ignore_index)
            return left, rows.of_labels(y, y < 0, num_classes, factors, omega, spec, place, torch, leave_out)
        q = rows.matrix(targets)
        return left, rows.of_probabilities(
            q, shift, factors, omega, spec, place, lambda x: x.to(dtype), torch, leave_out
        )

    def swept(self, batch: Rows) -> Swept:
        """The losses of the rows of ``batch``, by the kernels and in ordinary operations."""
        link = Link(self.spec.temperature, self.spec.softcap)

        def losses_of(part: slice, logits: Tensor) -> tuple[Tensor, ...]:
            measure = batch.measure(part)
            stats = statistics.row_stats(logits, measure.labels, measure.dense, link)
            return (head.row_losses(stats, measure, self.spec, torch),)

        return Swept(batch.places, batch.step(self.spec, bridge, torch), losses_of, self.chunk_bytes)


def _is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is being recorded, which cannot wait for a number."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
