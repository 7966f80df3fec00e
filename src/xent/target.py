"""Labels or probabilities, with the options, become the target measure t = α·e_y + β·v of docs/maths.md."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xent.spec import LossSpec

Array = Any


class Target(NamedTuple):
    """``t = α·e_y + β·v`` per row, the row weight ω and what a mean divides by."""

    labels: Array  # y (...) int64, negative where the row is ignored; None without a point mass
    alpha: Array | float
    dense: Array  # v: (K,) for all rows, (..., K), or None
    beta: float
    weight: Array  # ω (...), or None for 1
    total: Array | float  # Σ ω c_y over labels that count; Σ ω for probabilities
    rows: Array | int  # the number of rows that count


def from_labels(
    labels: Array,
    ignored: Array | None,
    num_classes: int,
    class_weight: Array | None,
    weight: Array | None,
    spec: LossSpec,
    xp: Any,
) -> Target:
    """The measure of ``labels`` (...) int64; ``ignored`` (...) marks rows to leave out, None for none."""
    if ignored is class_weight is weight is None and not spec.label_smoothing:
        rows = math.prod(labels.shape)
        return Target(labels, 1.0, None, 0.0, None, rows, rows)
    smoothing = _smoothing(spec, num_classes)
    alpha: Array | float = 1.0 - smoothing
    dense = None
    if smoothing:
        dense = class_weight
        if dense is None:
            dense = xp.ones(num_classes, dtype=xp.float64, device=labels.device)
    if ignored is not None:
        labels = xp.where(ignored, -1, labels)
    point = None
    if class_weight is not None:
        in_range = (labels >= 0) & (labels < num_classes)
        point = class_weight[xp.where(in_range, labels, 0)] if num_classes else 1.0
        # 1 for a label that is no class, so that the NaN of its row stays.
        point = xp.where(in_range, point, xp.where(labels < 0, 0.0, 1.0))
        alpha = alpha * point
    counted = weight
    if ignored is not None:
        counted = ~ignored if weight is None else xp.where(ignored, 0.0, weight)
    total, rows = totals(math.prod(labels.shape), counted, point, xp)
    return Target(labels, alpha, dense, smoothing / max(num_classes, 1), weight, total, rows)


def from_probabilities(
    probabilities: Array, class_weight: Array | None, weight: Array | None, spec: LossSpec, xp: Any
) -> Target:
    """The measure of rows of probabilities ``q`` (..., K): v = c∘((1−ε)q + ε/K)."""
    if spec.focal_gamma:
        raise ValueError(
            "`focal_gamma` and probability `targets` cannot be combined: the focal loss is defined "
            f"for labels; got focal_gamma={spec.focal_gamma} and floating `targets`"
        )
    num_classes = probabilities.shape[-1]
    smoothing = _smoothing(spec, num_classes)
    dense = probabilities
    if smoothing:
        dense = (1.0 - smoothing) * dense + smoothing / max(num_classes, 1)
    if class_weight is not None:
        dense = dense * class_weight
    total, rows = totals(math.prod(probabilities.shape[:-1]), weight, None, xp)
    return Target(None, 0.0, dense, 1.0, weight, total, rows)


def part(target: Target, rows: slice) -> Target:
    """The measure of some of the rows (N,) of one of labels; the totals stay those of all."""
    weight = None if target.weight is None else target.weight[rows]
    alpha: Any = target.alpha
    alpha = alpha[rows] if getattr(alpha, "ndim", 0) else alpha
    return target._replace(labels=target.labels[rows], alpha=alpha, weight=weight)


def denominator(target: Target, reduction: str, denominator: Any) -> Array | float:
    """What Σℓ is divided by (4): 1 unless ``reduction`` is "mean"."""
    if reduction != "mean":
        if denominator is not None:
            raise ValueError(
                f'`denominator` needs `reduction`="mean"; got denominator={denominator!r} '
                f"and reduction={reduction!r}"
            )
        return 1.0
    if denominator is None:
        return target.total
    return target.rows if isinstance(denominator, str) else denominator


def _smoothing(spec: LossSpec, num_classes: int) -> float:
    """ε over all classes; ε over the others is the same measure with ε ← εK/(K−1)."""
    if spec.smoothing_over == "others":
        return spec.label_smoothing * num_classes / (num_classes - 1) if num_classes > 1 else 0.0
    return spec.label_smoothing


def totals(
    num_rows: int, counted: Array | None, point: Array | None, xp: Any
) -> tuple[Array | float, Array | int]:
    """(Σ ω c_y, number of rows with ω ≠ 0) of ``num_rows`` rows with ω in ``counted``, c_y in ``point``."""
    if counted is None:
        return num_rows if point is None else xp.sum(point), num_rows
    weighted = counted if point is None else counted * point
    return xp.sum(weighted), xp.sum(counted != 0)
