"""Selection of the rows of a batch that count, and the loss of a chunk of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xent.core import head
from xent.core import target as targeting
from xent.core.spec import LossSpec, as_index
from xent.core.target import Target
from xent.engine.batch_loss import Problem

Array = Any


class ValidRows:
    """The n rows of a batch that count, and their targets."""

    row_index: Array  # (n,) indices into the rows of the inputs, or None for all rows
    full_target: Target  # of all n rows; for probabilities without ``dense``
    silent: Array = None  # (n,) mask of rows whose loss and gradient are 0, or None

    def target(self, part: slice) -> Target:
        """The target of a slice of the n rows."""
        raise NotImplementedError


class LabelRows(ValidRows):
    """Rows whose targets are labels."""

    def __init__(self, row_index: Array, full_target: Target, spec: LossSpec, xp: Any) -> None:
        self.row_index, self.full_target, self.spec, self.xp = row_index, full_target, spec, xp

    def target(self, part: slice) -> Target:
        """The target of a slice of the n rows."""
        return targeting.nonnegative_target(targeting.row_slice(self.full_target, part), self.spec, self.xp)


class ProbabilityRows(ValidRows):
    """Rows whose targets are probabilities (M, K); the target of row i is at row i + ``offset``.

    ``widen`` converts the probabilities of one chunk to the dtype of the loss; they are never copied whole.
    """

    def __init__(
        self,
        row_index: Array,
        full_target: Target,
        probabilities: Array,
        offset: int,
        class_weight: Array,
        spec: LossSpec,
        widen: Callable[[Array], Array],
        xp: Any,
    ) -> None:
        self.row_index, self.full_target, self.spec, self.xp = row_index, full_target, spec, xp
        self.probabilities, self.offset, self.class_weight = probabilities, offset, class_weight
        self.widen = widen

    def target(self, part: slice) -> Target:
        """The target of a slice of the n rows."""
        q = self.probabilities[part if self.row_index is None else self.row_index[part] + self.offset]
        weight = None if self.full_target.weight is None else self.full_target.weight[part]
        return targeting.from_probabilities(self.widen(q), self.class_weight, weight, self.spec, self.xp)


class ChunkLoss:
    """The losses of a chunk of rows; `evaluate_chunk` is a `chunked_projection.ChunkEvaluator`."""

    def __init__(self, rows: ValidRows, spec: LossSpec, kernels: Any, xp: Any) -> None:
        self.rows, self.spec, self.kernels, self.xp = rows, spec, kernels, xp

    def evaluate_chunk(self, logits: Array, part: slice, dloss: Any) -> tuple[tuple[Array], Array]:
        """Equations (1) and (2) for a chunk; the gradient overwrites its logits."""
        target = self.rows.target(part)
        problem = Problem(logits, target, self.spec, "none", 1.0, self.kernels, self.xp)
        if dloss is None:
            return (problem.row_losses(problem.stats()),), None
        stats, dlogits = problem.stats_and_grad(dloss, logits)
        return (problem.row_losses(stats),), dlogits


def shifted_rows(shape: tuple[int, ...], shift: int, xp: Any, device: Any) -> tuple[tuple[int, ...], Array]:
    """(shape, flat index or None for all) of the rows that have a target ``shift`` positions later."""
    shift = as_index("shift", shift)
    if not shift:
        return shape, None
    if shift < 0 or not shape:
        raise ValueError(f"`shift` must be >= 0, and 0 for a single row; got {shift!r}")
    length = max(0, shape[-1] - shift)
    row_index = xp.arange(math.prod(shape), device=device).reshape(shape)[..., :length]
    return (*shape[:-1], length), row_index.reshape(-1)


def as_matrix(x: Array) -> Array:
    """``x (..., D)`` as (M, D), also if an axis has size 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def flatten_rows(column: Array, shift: int) -> Array:
    """``column[..., shift:]`` as (R,); None if ``column`` is None."""
    return None if column is None else (column[..., shift:] if shift else column).reshape(-1)


def align_targets(column: Array, shift: int, value: Any, xp: Any) -> Array:
    """``column (..., T)`` moved back by ``shift``, as (M,); ``value`` in rows without a target."""
    if shift:
        moved = column[..., shift:]
        padding = (*column.shape[:-1], column.shape[-1] - moved.shape[-1])
        column = xp.concat((moved, xp.full(padding, value, dtype=column.dtype, device=column.device)), -1)
    return column.reshape(-1)


def unflatten_rows(column: Array, shape: tuple[int, ...], loss_shape: tuple[int, ...]) -> Array:
    """``column (M,)`` in ``shape``, cut to ``loss_shape`` along the last axis."""
    by_row = column.reshape(shape)
    return by_row if shape == loss_shape else by_row[..., : loss_shape[-1]]


def label_rows(
    labels: Array,
    ignored: Array,
    num_classes: int,
    class_weight: Array,
    weight: Array,
    spec: LossSpec,
    row_index: Array,
    xp: Any,
    leave_out: bool = True,
) -> ValidRows:
    """Rows with ``labels (R,)``; ``ignored (R,)`` or None, ``weight (R,)`` or None.

    ``row_index (R,)`` are their indices into the rows of the inputs, None for 0, 1, .... ``leave_out`` drops
    rows that are ignored or have weight 0.
    """
    index = row_index
    if leave_out:
        index, (labels, weight) = select_rows(ignored, weight, row_index, (labels, weight), xp)
        ignored = None
    full_target = targeting.signed_from_labels(labels, ignored, num_classes, class_weight, weight, spec, xp)
    is_silent = head.silent_rows(full_target._replace(weight=None), spec, xp) if leave_out else None
    if is_silent is not None:  # by the weight of its class; the row still counts in `Target.rows`
        columns = full_target.labels, full_target.alpha, full_target.weight
        index, (labels, alpha, weight) = select_rows(is_silent, None, index, columns, xp)
        full_target = full_target._replace(labels=labels, alpha=alpha, weight=weight)
    return LabelRows(index, full_target, spec, xp)


def probability_rows(
    probabilities: Array,
    offset: int,
    class_weight: Array,
    weight: Array,
    spec: LossSpec,
    row_index: Array,
    widen: Callable[[Array], Array],
    xp: Any,
    leave_out: bool = True,
) -> ValidRows:
    """Rows with the targets ``probabilities (M, K)``, as `ProbabilityRows`."""
    index = row_index
    if leave_out:
        index, (weight,) = select_rows(None, weight, row_index, (weight,), xp)
    num_rows = probabilities.shape[0] if index is None else index.shape[0]
    total, num_counted = targeting.totals(num_rows, weight, None, xp)
    full_target = Target(None, 0.0, None, 1.0, weight, total, num_counted)
    return ProbabilityRows(index, full_target, probabilities, offset, class_weight, spec, widen, xp)


def select_rows(
    ignored: Array, weight: Array, row_index: Array, columns: tuple[Array, ...], xp: Any
) -> tuple[Array, tuple[Array, ...]]:
    """(index, columns) of the rows that are neither ``ignored`` nor of ``weight`` 0."""
    left_out = ignored
    if weight is not None:
        left_out = weight == 0 if ignored is None else ignored | (weight == 0)
    if left_out is None:
        return row_index, columns
    kept = xp.argwhere(~left_out)[:, 0]
    if kept.shape == left_out.shape:
        return row_index, columns
    index = kept if row_index is None else row_index[kept]
    return index, tuple(None if c is None else c[kept] for c in columns)
