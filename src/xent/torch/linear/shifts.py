"""The losses of several shifts of one hidden state: equation (29), each chunk of logits computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from xent.core import head
from xent.core import target as targeting
from xent.engine import valid_rows
from xent.engine.valid_rows import LabelRows, ValidRows
from xent.torch import devices, modes
from xent.torch.arguments import Call
from xent.torch.linear.chunked import ChunkedFunction, Operands
from xent.torch.linear.rows import call_rows
from xent.torch.targets import kernel_labels

Tensor = torch.Tensor


class SeveralShifts(ChunkedFunction):
    """Σ factor·loss over functions of the same rows; then their further columns, which have no derivative."""

    num_derived = 1

    def __init__(self, functions: Sequence[ChunkedFunction], factors: Sequence[Any]) -> None:
        first, silent = functions[0], None
        if all(f.silent is not None for f in functions):
            silent = torch.stack([f.silent for f in functions if f.silent is not None]).all(0)
        super().__init__(first.row_index, first.chunking, silent)
        self.functions, self.factors, self.copies = functions, factors, matrices(len(functions))
        self._copies = LogitsCopies(len(functions))

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient if ``dloss`` is given."""
        if dloss is None:
            return self._joined([f.evaluate_chunk(logits, part, None)[0] for f in self.functions]), None
        columns_by_shift, dlogits = [], None
        for k, (function, factor) in enumerate(zip(self.functions, self.factors, strict=True)):
            columns, slope = function.evaluate_chunk(self._copies.of(logits, k), part, dloss * factor)
            columns_by_shift.append(columns)
            dlogits = slope if dlogits is None else dlogits.add_(slope)
        return self._joined(columns_by_shift), dlogits

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        return self._joined([f.columns(logits, part) for f in self.functions])

    def sweep(self, operands: Operands, dloss: Any = None, wanted: Any = None) -> Any:
        """As `ChunkedFunction.sweep`; the copies of logits are freed after it."""
        try:
            return super().sweep(operands, dloss, wanted)
        finally:
            self._copies = LogitsCopies(len(self.functions))

    def _joined(self, columns_by_shift: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        pairs = zip(self.factors, columns_by_shift, strict=True)
        weighted = [head.multiply(factor, losses, torch) for factor, (losses, *_) in pairs]
        return sum(weighted[1:], weighted[0]), *(c for _, *others in columns_by_shift for c in others)


class LogitsCopies:
    """Logits for each of ``count`` gradients, written over them and then added to the first.

    The last is given the logits themselves, the first a copy, and all between share another copy.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._buffers: dict[bool, Tensor] = {}

    def of(self, logits: Tensor, k: int) -> Tensor:
        """The logits for gradient ``k``, of a chunk that is no larger than the first."""
        if k == self.count - 1:
            return logits
        if (k == 0) not in self._buffers:
            self._buffers[k == 0] = devices.empty(logits.shape, logits.dtype, logits.device)
        return self._buffers[k == 0][: logits.shape[0]].copy_(logits)


def matrices(count: int) -> int:
    """The number of matrices of a chunk's size, with its logits, for the gradients of ``count`` shifts."""
    return min(count, 3)


def rows_by_shift(
    call: Call,
    shifts: Sequence[int],
    num_classes: int,
    dtype: torch.dtype,
    leave_out: bool,
    inputs: Tensor | None = None,
) -> list[ValidRows]:
    """The rows of each shift among those that count for any, with labels of −1 where they do not for it.

    The arguments are those of `rows.call_rows`; ``full_target`` has the totals of each shift.
    """
    each_rows = [
        call_rows(aligned(call, shift, num_classes), 0, num_classes, dtype, False, inputs)[1]
        for shift in shifts
    ]
    if not leave_out or modes.is_captured(call.targets):
        return each_rows
    counts = torch.stack([rows.full_target.labels >= 0 for rows in each_rows]).any(0)
    index, _ = valid_rows.select_rows(~counts, None, None, (), torch)
    if index is None:
        return each_rows
    return [
        LabelRows(index, targeting.row_slice(rows.full_target, index), call.spec, torch) for rows in each_rows
    ]


def aligned(call: Call, shift: int, num_classes: int) -> Call:
    """The call of rows (M,): targets and weights from ``shift`` positions later, ignored past the end."""
    y = kernel_labels(call.targets, num_classes, call.spec.ignore_index)
    omega = call.sample_weight
    return call._replace(
        targets=valid_rows.align_targets(y, shift, -1, torch),
        sample_weight=None if omega is None else valid_rows.align_targets(omega, shift, 0, torch),
        spec=replace(call.spec, ignore_index=-1),
    )


def relative(scales: Sequence[Any]) -> tuple[Any, list[Any]]:
    """(the largest scale, each scale as a multiple of it): in half precision small factors would be 0."""
    if not any(isinstance(s, Tensor) for s in scales):
        largest = max(scales)
        return largest, [s / largest if largest else 0.0 for s in scales]
    first = next(s for s in scales if isinstance(s, Tensor))
    stacked = torch.stack([first.new_zeros((), dtype=torch.float64) + s for s in scales])
    largest = stacked.max()
    ratios = torch.where(largest == 0, 0.0, stacked / torch.where(largest == 0, 1.0, largest))
    if modes.is_readable(stacked) and not stacked.requires_grad:
        return largest.item(), ratios.tolist()
    return largest, list(ratios.unbind())
