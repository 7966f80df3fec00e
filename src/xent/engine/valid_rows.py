"""Which rows of a batch count, and the loss of a part of them: for losses that go chunk by chunk."""

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


class Rows:
    """The rows of a batch that count: ``measure`` is their target, chunk by chunk."""

    places: Array  # (n,) of those that count among the rows of the inputs, or None for all
    whole: Target  # of all n rows; of probabilities only its totals
    silent: Array = None  # (n,) those among them that do not count after all, or None

    def measure(self, part: slice) -> Target:
        """The target of a part of the n rows."""
        raise NotImplementedError


class LabelRows(Rows):
    """Rows with labels."""

    def __init__(self, places: Array, whole: Target, spec: LossSpec, xp: Any) -> None:
        self.places, self.whole, self.spec, self.xp = places, whole, spec, xp

    def measure(self, part: slice) -> Target:
        """See `Rows`."""
        return targeting.not_negative(targeting.part(self.whole, part), self.spec, self.xp)


class ProbabilityRows(Rows):
    """Rows with probabilities (M, K), ``offset`` rows further on than the inputs.

    No second matrix of them is made: ``widen`` brings the rows of one chunk to the loss's dtype.
    """

    def __init__(
        self,
        places: Array,
        whole: Target,
        probabilities: Array,
        offset: int,
        class_weight: Array,
        spec: LossSpec,
        widen: Callable[[Array], Array],
        xp: Any,
    ) -> None:
        self.places, self.whole, self.spec, self.xp = places, whole, spec, xp
        self.probabilities, self.offset, self.class_weight = probabilities, offset, class_weight
        self.widen = widen

    def measure(self, part: slice) -> Target:
        """See `Rows`."""
        q = self.probabilities[part if self.places is None else self.places[part] + self.offset]
        weight = None if self.whole.weight is None else self.whole.weight[part]
        return targeting.from_probabilities(self.widen(q), self.class_weight, weight, self.spec, self.xp)


class ChunkLoss:
    """The losses of rows whose logits come chunk by chunk: the step of a `chunked_projection.Projection`."""

    def __init__(self, rows: Rows, spec: LossSpec, kernels: Any, xp: Any) -> None:
        self.rows, self.spec, self.kernels, self.xp = rows, spec, kernels, xp

    def step(self, logits: Array, part: slice, dloss: Any) -> tuple[tuple[Array], Array]:
        """Equations (1) and (2) of a chunk; the gradient is written over its logits."""
        target = self.rows.measure(part)
        problem = Problem(logits, target, self.spec, "none", 1.0, self.kernels, self.xp)
        if dloss is None:
            return (problem.row_losses(problem.stats()),), None
        stats, dlogits = problem.stats_and_grad(dloss, logits)
        return (problem.row_losses(stats),), dlogits


def shifted(shape: tuple[int, ...], shift: int, xp: Any, device: Any) -> tuple[tuple[int, ...], Array]:
    """(the shape of the rows that have a target ``shift`` further on, their places; None for all)."""
    shift = as_index("shift", shift)
    if not shift:
        return shape, None
    if shift < 0 or not shape:
        raise ValueError(f"`shift` must be >= 0, and 0 for a single row; got {shift!r}")
    length = max(0, shape[-1] - shift)
    places = xp.arange(math.prod(shape), device=device).reshape(shape)[..., :length]
    return (*shape[:-1], length), places.reshape(-1)


def matrix(x: Array) -> Array:
    """``x (..., D)`` as (M, D), whatever is of size 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def flat(column: Array, shift: int) -> Array:
    """``column (..., T)`` from ``shift`` on, as (R,); None of None."""
    return None if column is None else (column[..., shift:] if shift else column).reshape(-1)


def further(column: Array, shift: int, value: Any, xp: Any) -> Array:
    """``column (..., T)`` moved by ``shift`` to the rows that it is for, as (M,); ``value`` where none is."""
    if shift:
        there = column[..., shift:]
        none = (*column.shape[:-1], column.shape[-1] - there.shape[-1])
        column = xp.concat((there, xp.full(none, value, dtype=column.dtype, device=column.device)), -1)
    return column.reshape(-1)


def unflat(column: Array, shape: tuple[int, ...], left: tuple[int, ...]) -> Array:
    """``column (M,)`` of rows of ``shape``, less those at the end that are not ``left``."""
    by_row = column.reshape(shape)
    return by_row if shape == left else by_row[..., : left[-1]]


def of_labels(
    labels: Array,
    ignored: Array,
    num_classes: int,
    class_weight: Array,
    weight: Array,
    spec: LossSpec,
    place: Array,
    xp: Any,
    leave_out: bool = True,
) -> Rows:
    """Rows with ``labels (R,)``; ``ignored (R,)`` or None, ``weight (R,)`` or None.

    ``place (R,)``, None for 0, 1, ..., says which rows of the inputs these are. To ``leave_out`` what is
    ignored or of weight 0 is to compute nothing of it.
    """
    index = place
    if leave_out:
        index, (labels, weight) = counted(ignored, weight, place, (labels, weight), xp)
        ignored = None
    whole = targeting.signed_from_labels(labels, ignored, num_classes, class_weight, weight, spec, xp)
    unread = head.silent(whole._replace(weight=None), spec, xp) if leave_out else None
    if unread is not None:  # by its class; it counts among the rows
        columns = whole.labels, whole.alpha, whole.weight
        index, (labels, alpha, weight) = counted(unread, None, index, columns, xp)
        whole = whole._replace(labels=labels, alpha=alpha, weight=weight)
    return LabelRows(index, whole, spec, xp)


def of_probabilities(
    probabilities: Array,
    offset: int,
    class_weight: Array,
    weight: Array,
    spec: LossSpec,
    place: Array,
    widen: Callable[[Array], Array],
    xp: Any,
    leave_out: bool = True,
) -> Rows:
    """Rows with the targets ``probabilities (M, K)``; see `ProbabilityRows`."""
    index = place
    if leave_out:
        index, (weight,) = counted(None, weight, place, (weight,), xp)
    num_rows = probabilities.shape[0] if index is None else index.shape[0]
    total, num_counted = targeting.totals(num_rows, weight, None, xp)
    whole = Target(None, 0.0, None, 1.0, weight, total, num_counted)
    return ProbabilityRows(index, whole, probabilities, offset, class_weight, spec, widen, xp)


def counted(
    ignored: Array, weight: Array, place: Array, columns: tuple[Array, ...], xp: Any
) -> tuple[Array, tuple[Array, ...]]:
    """(places of the rows that are not ``ignored`` nor of ``weight`` 0, the columns of only those)."""
    left_out = ignored
    if weight is not None:
        left_out = weight == 0 if ignored is None else ignored | (weight == 0)
    if left_out is None:
        return place, columns
    kept = xp.argwhere(~left_out)[:, 0]
    if kept.shape == left_out.shape:
        return place, columns
    index = kept if place is None else place[kept]
    return index, tuple(None if c is None else c[kept] for c in columns)
