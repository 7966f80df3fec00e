"""The loss on tensors as ordinary PyTorch code around the row statistics: every option, every transform."""

from __future__ import annotations

from typing import Any

import torch

from xent.core import head, target
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.torch import ahead, arguments, bridge, statistics

Tensor = torch.Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
) -> Tensor:
    """Equations (1) and (4) of ``logits (..., K)`` with labels (...) or probabilities (..., K)."""
    t = measure(logits, targets, class_weight, sample_weight, spec)
    scale = inverse(target.divisor(t.total, t.rows, reduction, denominator))
    is_learnt = are_derived(class_weight, sample_weight)
    derived = torch.is_grad_enabled() and logits.requires_grad
    is_linear = reduction != "none" and spec.is_linear
    is_ahead = is_linear and derived and arguments.is_compiled(logits, t.dense)
    if is_learnt or not is_ahead or t.labels is not None:  # no kernel reads a row whose cotangents are 0
        t = silenced(t, spec, _have_loss(logits) if is_learnt else None)
    arguments_of = (logits, t.labels, t.dense, spec.link)
    if is_ahead:
        expected = head.cotangents(None, t, spec, scale, torch)
        stats = ahead.row_stats(*arguments_of, expected)
    else:
        stats = statistics.row_stats(*arguments_of)
    losses = head.row_losses(stats, t, spec, torch)
    if reduction != "none":
        losses = losses.sum() * scale
    return losses.to(bridge.loss_dtype(logits))


def measure(
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
) -> target.Target:
    """The target measure of labels (...) or probabilities (..., K); no label is checked."""
    weight = None if sample_weight is None else sample_weight.double()
    factors = None if class_weight is None else class_weight.double()
    if targets.is_floating_point():
        q = targets.to(bridge.loss_dtype(logits))
        return target.from_probabilities(q, factors, weight, spec, torch)
    num_classes = logits.shape[-1]
    y = readable(targets, num_classes, spec.ignore_index)
    return target.from_labels(y, y < 0, num_classes, factors, weight, spec, torch)


def are_derived(*factors: Tensor | None) -> bool:
    """Whether a derivative may be asked for in one of them."""
    return any(x is not None and arguments.is_derived(x) for x in factors)


def silenced(t: target.Target, spec: LossSpec, have_loss: Tensor | None) -> target.Target:
    """``t`` with the label −1, which nothing reads or derives, in rows that (1) multiplies by 0.

    A factor that is derived has a derivative at 0 too, the loss of its row: where ``have_loss`` is given,
    those rows are as they were.
    """
    rows = head.silent(t, spec, torch)
    if rows is None:
        return t
    if have_loss is not None:
        rows = rows & ~have_loss
        weight, alpha = (
            torch.where(rows, 0.0, x) if isinstance(x, Tensor) else x for x in (t.weight, t.alpha)
        )
        t = t._replace(weight=weight, alpha=alpha)
    return t._replace(labels=torch.where(rows, -1, 0 if t.labels is None else t.labels))


def _have_loss(logits: Tensor) -> Tensor:
    """Which rows (...) have neither NaN nor +inf, and not −inf alone."""
    return statistics.row_stats(logits.detach(), None, None, Link()).lse.isfinite()


def counts(
    targets: Tensor,
    num_classes: int,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
) -> tuple[Any, Any]:
    """What a mean may divide by: the total weight of the rows that count, and their number."""
    weight = None if sample_weight is None else sample_weight.double()
    if targets.is_floating_point():
        return target.totals(targets.shape[:-1].numel(), weight, None, torch)
    factors = None if class_weight is None else class_weight.double()
    y = readable(targets, num_classes, spec.ignore_index)
    t = target.from_labels(y, y < 0, num_classes, factors, weight, spec, torch)
    return t.total, t.rows


def readable(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as the kernels read them: −1 for a row to leave out, K (NaN) for what is no class."""
    wide = arguments.as_int64(labels)  # 156 of 8 bits would be equal to −100
    y = torch.where((wide < 0) | (wide >= num_classes), num_classes, wide)
    return torch.where(wide == ignore_index, -1, y)


def inverse(divisor: Any) -> Any:
    """1/D, and 0 where no row counts: then loss and gradient are 0."""
    if isinstance(divisor, Tensor):
        divisor = divisor.double()
        return torch.where(divisor == 0, 0.0, 1.0 / torch.where(divisor == 0, 1.0, divisor))
    return 1.0 / divisor if divisor else 0.0
