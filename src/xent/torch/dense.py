"""The loss of logits that this process has whole, by the shortest way that whoever watches allows."""

from __future__ import annotations

from typing import Any

import torch

from xent.core.spec import LossSpec, require_reduction
from xent.torch import arguments, eager, on_device, validated

Tensor = torch.Tensor


def of_rows(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    names: arguments.Names = arguments.TORCH,
) -> Tensor:
    """The loss of ``logits (..., K)``, by one node where nothing but reverse mode asks for more."""
    require_reduction(reduction)
    if targets.is_floating_point():
        arguments.require_no_labels(spec, names.targets)
    if weight is not None:
        arguments.require_weight(weight, logits.shape[-1], names.weight, validate)
    if sample_weight is not None:
        arguments.require_rows(sample_weight, logits.shape[:-1], validate)
    if denominator is not None:
        denominator = arguments.as_denominator(denominator)
    if spec is arguments.NO_OPTIONS and reduction == "mean" and denominator is None and validate is not False:
        loss = eager.MEAN[names.targets]
    else:
        loss = eager.CrossEntropy(spec, reduction, denominator, validate is not False, names.targets)
    tensors = (logits, targets, weight, sample_weight)
    if not isinstance(denominator, Tensor) and eager.is_plain(*tensors):
        return eager.loss(loss, *tensors)
    together = dict(zip(names, (logits, targets, weight), strict=True))
    arguments.require_local(**together, sample_weight=sample_weight, denominator=denominator)
    arguments.require_together(**together, sample_weight=sample_weight)
    added = validated.targets(targets, logits.shape[-1], spec.ignore_index, names.targets, validate)
    if on_device.is_plain(*tensors, denominator if isinstance(denominator, Tensor) else None):
        return on_device.loss(loss, *tensors)
    value = loss.differentiable(*tensors)
    return value if added is None else value + added
