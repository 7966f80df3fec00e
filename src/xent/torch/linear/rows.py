"""The losses of a linear layer's rows: selection of the rows that count, and a function of their logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xent.core import head
from xent.core import target as targeting
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import valid_rows
from xent.engine.valid_rows import ChunkLoss, ValidRows
from xent.torch import devices, modes, operators, statistics
from xent.torch.arguments import Call
from xent.torch.linear.chunked import ChunkedFunction, Operands
from xent.torch.linear.operators import CHUNKING, column_operator, sum_operator
from xent.torch.linear.products import Chunking
from xent.torch.linear.tempered import tempered
from xent.torch.targets import kernel_labels, mask_silent_rows

Tensor = torch.Tensor


class Chunks(NamedTuple):
    """The distance of a row's target, and how logits are computed chunk by chunk."""

    shift: int = 0
    chunking: Chunking = Chunking()


def call_rows(
    call: Call,
    shift: int,
    num_classes: int,
    dtype: torch.dtype,
    leave_out: bool,
    inputs: Tensor | None = None,
) -> tuple[tuple[int, ...], ValidRows]:
    """(shape of the losses, rows that count), for a loss of ``dtype``.

    ``leave_out=True`` synchronises with a GPU. Otherwise rows that do not count are marked as silent;
    if factors are derived, only those whose ``inputs (M, D)`` are not finite.
    """
    leave_out = leave_out and not modes.is_captured(call.targets)
    spec = call.spec
    shape = call.targets.shape[:-1] if call.is_soft else call.targets.shape
    loss_shape, row_index = valid_rows.shifted_rows(shape, shift, torch, call.targets.device)
    factors = None if call.class_weight is None else call.class_weight.double()
    omega = valid_rows.flatten_rows(
        None if call.sample_weight is None else call.sample_weight.double(), shift
    )
    rows: ValidRows
    if call.is_soft:
        q = valid_rows.as_matrix(call.targets)
        rows = valid_rows.probability_rows(
            q, shift, factors, omega, spec, row_index, lambda x: x.to(dtype), torch, leave_out
        )
    else:
        y = kernel_labels(valid_rows.flatten_rows(call.targets, shift), num_classes, spec.ignore_index)
        rows = valid_rows.label_rows(y, y < 0, num_classes, factors, omega, spec, row_index, torch, leave_out)
    if leave_out:
        return loss_shape, rows
    finite = None
    if inputs is not None and modes.are_derived(call.class_weight, call.sample_weight):
        finite = inputs.isfinite().all(-1)
        finite = finite if rows.row_index is None else finite[rows.row_index]
    marked = mask_silent_rows(rows.full_target, spec, finite)
    return loss_shape, rows if marked.labels is None else SilentRows(rows, marked)


class SilentRows(ValidRows):
    """Rows of which those with a label of −1 in ``full_target`` have loss and gradient 0."""

    def __init__(self, rows: ValidRows, full_target: Target) -> None:
        self.rows, self.row_index = rows, rows.row_index
        self.full_target, self.silent = full_target, full_target.labels < 0

    def target(self, part: slice) -> Target:
        """The target of a slice of the rows."""
        marked, target = targeting.row_slice(self.full_target, part), self.rows.target(part)
        alpha = marked.alpha if self.full_target.dense is None else target.alpha
        return target._replace(labels=marked.labels, alpha=alpha, weight=marked.weight)


class RowLosses(ChunkedFunction):
    """The losses of `ValidRows` as one column."""

    def __init__(self, rows: ValidRows, spec: LossSpec, chunking: Chunking) -> None:
        super().__init__(rows.row_index, chunking, rows.silent)
        self.rows, self.spec = rows, spec
        self.by_kernels = ChunkLoss(rows, spec, devices, torch)

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient if ``dloss`` is given."""
        return self.by_kernels.evaluate_chunk(logits, part, dloss)

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        t = self.rows.target(part)
        stats = statistics.row_stats(logits, t.labels, t.dense, self.spec.link)
        return (head.row_losses(stats, t, self.spec, torch),)


SCHEMA = (  # of the result of `LossProgram.packed`
    "Tensor targets, Tensor? class_weight, Tensor? sample_weight, Tensor? temperature, SymInt ignore_index, "
    f"float[] options, Tensor? moving, SymInt shift, {CHUNKING}"
)


class LossProgram(NamedTuple):
    """The arguments of the losses of rows: an `operators.Program`."""

    call: Call
    chunks: Chunks

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """The fields as arguments of an operator."""
        call, spec, chunks = self.call, self.call.spec, self.chunks
        numbers = operators.spec_numbers(spec, device)
        tensors = *call.tensors[:3], call.temperature
        return *tensors, spec.ignore_index, *numbers, chunks.shift, *chunks.chunking

    @classmethod
    def unpacked(cls, *arguments: Any) -> LossProgram:
        """The inverse of `packed`."""
        targets, *factors, temperature, ignore_index, options, moving, shift, budget, dtype = arguments
        class_weight, sample_weight = factors
        spec = LossSpec.from_numbers(operators.as_floats(options, moving), ignore_index)
        call = Call(targets, class_weight, sample_weight, spec, "none", None, False)
        return cls(call._replace(temperature=temperature), Chunks(shift, Chunking(budget, dtype)))

    def function(self, operands: Operands) -> ChunkedFunction:
        """The function of the operands' rows."""
        dtype, num_classes = devices.loss_dtype(operands.inputs), operands.weight.shape[0]
        _, rows = call_rows(self.call, self.chunks.shift, num_classes, dtype, leave_out=True)
        function = RowLosses(rows, self.call.spec, self.chunks.chunking)
        return tempered(function, self.call.temperature)


loss_sum = sum_operator("losses", LossProgram, SCHEMA)
losses = column_operator("losses", LossProgram, SCHEMA)
