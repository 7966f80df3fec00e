"""Labels, probabilities or pairs, with the options, become the measure t = α·e_y + β·v of docs/maths.md."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xent.core.spec import LossSpec

Array = Any


class Target(NamedTuple):
    """``t = α·e_y + β·v`` per row, the row weight ω and what a mean divides by."""

    labels: Array  # y (...) int64, negative where the row is ignored; None without a point mass
    alpha: Array | float
    dense: Array  # v: (K,) for all rows, (..., K), or None
    beta: float
    weight: Array  # ω (...), or None for 1
    total: Array | float  # total weight of the rows that count: Σ ω c_y for labels, Σ ω for probabilities
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
    """The measure of ``labels`` (...) int64; ``ignored`` (...) is the mask of rows to leave out, or None."""
    measure = signed_from_labels(labels, ignored, num_classes, class_weight, weight, spec, xp)
    return nonnegative_target(measure, spec, xp)


def signed_from_labels(
    labels: Array,
    ignored: Array | None,
    num_classes: int,
    class_weight: Array | None,
    weight: Array | None,
    spec: LossSpec,
    xp: Any,
) -> Target:
    """As `from_labels`, but α may be negative; needs memory of (...) and (K,), never of (..., K)."""
    if ignored is class_weight is weight is None and not spec.label_smoothing:
        rows = math.prod(labels.shape)
        return Target(labels, 1.0, None, 0.0, None, rows, rows)
    smoothing = uniform_smoothing(spec, num_classes)
    alpha: Array | float = 1.0 - smoothing
    dense = None
    if smoothing:
        dense = class_weight
        if dense is None:
            dense = xp.ones(num_classes, dtype=float, **_beside(labels, xp))
    if ignored is not None:
        labels = xp.where(ignored, -1, labels)
    label_weight = None
    if class_weight is not None:
        in_range = (labels >= 0) & (labels < num_classes)
        label_weight = _class_factors(class_weight, xp.where(in_range, labels, 0), xp) if num_classes else 1.0
        # A label out of range has the factor 1, so that its row stays NaN.
        label_weight = xp.where(in_range, label_weight, xp.where(labels < 0, 0.0, 1.0))
        alpha = alpha * label_weight
    counted_weight = weight
    if ignored is not None:
        counted_weight = ~ignored if weight is None else xp.where(ignored, 0.0, weight)
    total, rows = totals(math.prod(labels.shape), counted_weight, label_weight, xp)
    return Target(labels, alpha, dense, smoothing / max(num_classes, 1), weight, total, rows)


def nonnegative_target(target: Target, spec: LossSpec, xp: Any) -> Target:
    """The same measure with α ≥ 0: where `is_signed`, all of it becomes dense."""
    if target.dense is None or not is_signed(spec, num_classes := target.dense.shape[-1]):
        return target
    dense = smoothed_labels(target.labels, target.dense, num_classes, spec, xp)
    return target._replace(alpha=0.0, dense=dense, beta=1.0)


def is_signed(spec: LossSpec, num_classes: int) -> bool:
    """Whether smoothing over the others gives the label less probability than each of them, so that α < 0.

    α x − β σ is then a difference of large numbers, or of infinite ones if the label's logit is −inf.
    """
    return uniform_smoothing(spec, num_classes) > 1


def smoothed_labels(
    labels: Array, factors: Array, num_classes: int, spec: LossSpec, xp: Any, offset: int = 0
) -> Array:
    """v (..., K_s) of labels smoothed over the others, ``factors (K_s,)`` of the classes from ``offset``."""
    y = labels[..., None]
    classes = xp.arange(offset, offset + factors.shape[-1], **_beside(labels, xp))
    epsilon = spec.label_smoothing
    dense = xp.where(y == classes, (1.0 - epsilon) * factors, epsilon / (num_classes - 1) * factors)
    return xp.where(y < num_classes, dense, xp.nan)  # NaN: the label is out of range


def from_probabilities(
    probabilities: Array, class_weight: Array | None, weight: Array | None, spec: LossSpec, xp: Any
) -> Target:
    """The measure of rows of probabilities ``q`` (..., K): v = c∘((1−ε)q + ε/K)."""
    spec.require_labels("targets")
    dense = smoothed(probabilities, probabilities.shape[-1], spec)
    if class_weight is not None:
        dense = dense * class_weight
    total, rows = totals(math.prod(probabilities.shape[:-1]), weight, None, xp)
    return Target(None, 0.0, dense, 1.0, weight, total, rows)


def from_pairs(q: Array, pos_weight: Array | None, weight: Array | None, spec: LossSpec, xp: Any) -> Target:
    """The measure of rows (0, z): ``q`` (...) are probabilities of z's class; where f needs labels, 0 or 1.

    ``dense`` is the pair of its masses (1 − q, πq), each (...). Of labels any other value is out of range.
    """
    total, rows = totals(math.prod(q.shape), weight, None, xp)
    if spec.label_function.needs_labels:
        alpha = 1.0 if pos_weight is None else xp.where(q == 1, pos_weight, 1.0)
        labels = xp.where(q == 1, 1, xp.where(q == 0, 0, 2))
        return Target(labels, alpha, None, 0.0, weight, total, rows)
    smoothing = uniform_smoothing(spec, 2)
    if smoothing:
        q = (1.0 - smoothing) * q + smoothing / 2
    dense = (1.0 - q, q if pos_weight is None else pos_weight * q)
    return Target(None, 0.0, dense, 1.0, weight, total, rows)


def pair_weight(q: Array, weight: Array | None, alpha: float | None) -> Array | None:
    """ω times ``αq + (1−α)(1−q)`` of rows (0, z) with the probabilities ``q``; ω itself without an α."""
    if alpha is None:
        return weight
    factor = alpha * q + (1.0 - alpha) * (1.0 - q)
    return factor if weight is None else weight * factor


def smoothed(probabilities: Array, num_classes: int, spec: LossSpec) -> Array:
    """(1−ε)q + ε/K, or over the others (1−ε)q + ε(1−q)/(K−1); no term is negative."""
    epsilon = spec.label_smoothing
    if not uniform_smoothing(spec, num_classes):
        return probabilities
    if spec.smoothing_over == "others":
        return (1.0 - epsilon) * probabilities + epsilon / (num_classes - 1) * (1.0 - probabilities)
    return (1.0 - epsilon) * probabilities + epsilon / max(num_classes, 1)


def row_slice(target: Target, rows: slice | Array) -> Target:
    """The rows of a slice or an index of a label target (N,). `total` and `rows` still describe all rows."""
    weight = None if target.weight is None else target.weight[rows]
    alpha: Any = target.alpha
    alpha = alpha[rows] if getattr(alpha, "ndim", 0) else alpha
    return target._replace(labels=target.labels[rows], alpha=alpha, weight=weight)


def divisor(total: Array | float, rows: Array | int, reduction: str, denominator: Any) -> Array | float:
    """D of (4): 1 unless ``reduction`` is "mean"; ``total`` and ``rows`` as in `Target`."""
    if reduction != "mean":
        if denominator is not None:
            raise ValueError(
                f'`denominator` needs `reduction`="mean"; got denominator={denominator!r} '
                f"and reduction={reduction!r}"
            )
        return 1.0
    if denominator is None:
        return total
    return rows if isinstance(denominator, str) else denominator


def uniform_smoothing(spec: LossSpec, num_classes: int) -> float:
    """ε over all classes; ε over the others is the same measure with ε ← εK/(K−1)."""
    if spec.smoothing_over == "others":
        return spec.label_smoothing * num_classes / (num_classes - 1) if num_classes > 1 else 0.0
    return spec.label_smoothing


def totals(
    num_rows: int, weight: Array | None, label_weight: Array | None, xp: Any
) -> tuple[Array | float, Array | int]:
    """(Σ ω c_y, number of rows with ω ≠ 0) of ``num_rows`` rows; ``weight`` is ω, ``label_weight`` c_y."""
    if weight is None:
        return num_rows if label_weight is None else xp.sum(label_weight), num_rows
    weighted = weight if label_weight is None else weight * label_weight
    return xp.sum(weighted), xp.sum(weight != 0)


def _class_factors(class_weight: Array, index: Array, xp: Any) -> Array:
    """c_y (...) of classes ``index`` (...)."""
    if xp.__name__ != "jax.numpy":
        return class_weight[index]
    # On a mesh of explicit axes a gather's result has no sharding; and its derivative is a scatter.
    classes = xp.arange(class_weight.shape[0])
    return xp.where(index[..., None] == classes, class_weight, 0).sum(-1)


def _beside(x: Array, xp: Any) -> dict[str, Any]:
    """Where a new array must lie to meet ``x``: on a tensor's device; NumPy and JAX place it themselves."""
    return {"device": x.device} if hasattr(xp, "Tensor") else {}
