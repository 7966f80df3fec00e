"""The losses of a linear layer's rows: selection of the rows that count, and a function of their logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from xent.core import head
from xent.core import target as targeting
from xent.core.spec import LossSpec, as_float, as_index, require_no_gradient
from xent.core.target import Target
from xent.engine import valid_rows
from xent.engine.valid_rows import ChunkLoss, ValidRows
from xent.torch import arguments, devices, modes
from xent.torch.arguments import Call
from xent.torch.linear.chunked import ChunkedFunction
from xent.torch.linear.products import Chunking
from xent.torch.statistics import autograd
from xent.torch.targets import kernel_labels, mask_silent_rows

Tensor = torch.Tensor

TEXT = (str, bytes)  # a tuple: PyTorch's compiler rejects a union of types


class Chunks(NamedTuple):
    """The distances of a row's targets, how logits are computed chunk by chunk, and what is returned."""

    shift: Any = 0  # an int, or a tuple of several
    chunking: Chunking = Chunking()
    shift_weight: Any = None  # a tuple of floats, one for each of several shifts
    want: Any = None  # names of `values.LossValues`; None: the loss alone

    def checked(self, call: Call, inputs: Tensor) -> Chunks:
        """Itself with checked shifts, their weights and chunking."""
        shift, weight = self.shift, self.shift_weight
        if not _is_sequence(shift):
            if weight is not None:
                raise arguments.ArgumentError(
                    f"`shift_weight` needs a sequence of several for `shift`; got shift={shift!r}"
                )
            shift = as_index("shift", shift)
        else:
            shift, weight = self._several(call)
        return self._replace(shift=shift, shift_weight=weight, chunking=self.chunking.checked(inputs))

    @property
    def shifts(self) -> tuple[int, ...]:
        """The shift, or all of several."""
        return self.shift if isinstance(self.shift, tuple) else (self.shift,)

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that all ranks must share."""
        options = {"shift": self.shift, "shift_weight": self.shift_weight, "want": self.want}
        return {**options, **self.chunking._asdict()}

    def _several(self, call: Call) -> tuple[tuple[int, ...], tuple[float, ...]]:
        shift, weight = tuple(as_index("shift", s) for s in self.shift), self.shift_weight
        rows = call.targets.shape
        if not shift or min(shift) < 0 or (max(shift) > 0 and not len(rows)):
            raise arguments.ArgumentError(
                f"`shift` must be integers >= 0, at least one, and 0 for a single row; got {list(shift)}"
            )
        if call.reduction == "none":
            raise arguments.ArgumentError(
                '`reduction` must be "mean" or "sum" for several of `shift`, whose losses differ in shape; '
                f'got reduction="none" and shift={list(shift)}'
            )
        if call.is_soft:
            raise arguments.ArgumentError(
                f"several of `shift` need labels; got `{call.names.targets}` of {call.targets.dtype}"
            )
        if weight is None:
            return shift, (1.0,) * len(shift)
        if not _is_sequence(weight) or len(weight) != len(shift):
            raise arguments.ArgumentError(
                f"`shift_weight` must be a sequence of {len(shift)} numbers, as `shift` is; got {weight!r}"
            )
        factors = []
        for w in weight:
            require_no_gradient("shift_weight", w)
            number = as_float(w)
            if number is None:
                raise TypeError(f"`shift_weight` must be numbers, finite and >= 0; got {w!r}")
            if not 0 <= number < math.inf:
                raise arguments.ArgumentError(f"`shift_weight` must be finite and >= 0; got {w!r}")
            factors.append(number)
        return shift, tuple(factors)


def _is_sequence(x: Any) -> bool:
    return isinstance(x, Sequence) and not isinstance(x, TEXT)


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
        stats = autograd.row_stats(logits, t.labels, t.dense, self.spec.link)
        return (head.row_losses(stats, t, self.spec, torch),)
