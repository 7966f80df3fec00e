"""The loss of a linear layer's output that never exists whole, of operands that this process has whole."""

from __future__ import annotations

from typing import Any

import torch

from xent.core import head
from xent.core import target as targeting
from xent.core.spec import LossSpec, as_index, require_reduction
from xent.engine import valid_rows
from xent.engine.chunked_projection import require_chunk_bytes
from xent.torch import (
    arguments,
    bridge,
    composite,
    linear_ops,
    linear_row_stats,
    measured,
    projected,
    validated,
)
from xent.torch.measured import Measured
from xent.torch.projected import Operands

Tensor = torch.Tensor

OPERANDS = ("input", "linear_weight", "linear_bias")


def checked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    names: tuple[str, str, str],
    is_stack: bool = False,
) -> Operands:
    """Operands whose shapes and dtypes go together, as autocast would have them.

    The weight is (K, D), or a stack (K, d1, ..., D) of them.
    """
    for name, x in zip(names, (input, weight, bias), strict=True):
        if x is not None:
            arguments.require_tensor(x, name)
    arguments.require_together(**dict(zip(names, (input, weight, bias), strict=True)))
    device = input.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        to = torch.get_autocast_dtype(device)
        input, weight = _autocast(input, to), _autocast(weight, to)
        bias = None if bias is None else _autocast(bias, to)
    if input.dtype not in bridge.FLOATING:
        raise arguments.ArgumentError(
            f"`{names[0]}` must be float64, float32, float16 or bfloat16; got {input.dtype}"
        )
    is_fit = weight.ndim > 2 if is_stack else weight.ndim == 2
    if not is_fit or input.ndim == 0 or weight.shape[-1] != input.shape[-1]:
        raise arguments.ArgumentError(
            f"`{names[1]}` must have shape {'(K, d1, ..., D)' if is_stack else '(K, D)'} to go with "
            f"`{names[0]}` (..., D) of shape {tuple(input.shape)}; got {tuple(weight.shape)}"
        )
    for name, x in ((names[1], weight), (names[2], bias)):
        if x is not None and x.dtype != input.dtype:
            raise arguments.ArgumentError(
                f"`{name}` must have the dtype of `{names[0]}`, {input.dtype}; got {x.dtype}"
            )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise arguments.ArgumentError(
            f"`{names[2]}` must have shape {tuple(weight.shape[:-1])}; got {tuple(bias.shape)}"
        )
    return Operands(input, weight, bias)


def _autocast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


def of_rows(
    operands: Operands,
    targets: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    shift: int,
    chunk_bytes: int | None,
    names: arguments.Names = arguments.TORCH,
) -> Tensor:
    """The loss of the operands' rows; see `linear_cross_entropy`."""
    require_reduction(reduction)
    require_chunk_bytes(chunk_bytes)
    shift = as_index("shift", shift)
    input, weight, bias = operands
    shape, num_classes = input.shape[:-1], weight.shape[0]
    _require_targets(targets, (*shape, num_classes), spec, names.targets)
    arguments.require_weight(class_weight, num_classes, names.weight, validate)
    arguments.require_rows(sample_weight, shape, validate)
    by_name = dict(zip(names[1:], (targets, class_weight), strict=True)) | {"sample_weight": sample_weight}
    arguments.require_local(**by_name, bias=bias, denominator=denominator)
    arguments.require_together(**{names.logits: input}, **by_name)
    denominator = arguments.as_denominator(denominator)
    flat = Operands(valid_rows.matrix(input), weight, bias)
    others = (targets, class_weight, sample_weight, denominator if isinstance(denominator, Tensor) else None)
    is_plain = projected.is_plain(flat, *others)
    added = validated.targets(targets, num_classes, spec.ignore_index, names.targets, validate)
    computed = Measured(targets, class_weight, sample_weight, spec, shift, chunk_bytes)
    left, batch = computed.rows(num_classes, bridge.loss_dtype(input), is_plain, flat.inputs)
    scale = composite.inverse(targeting.divisor(batch.whole.total, batch.whole.rows, reduction, denominator))
    dtype = bridge.loss_dtype(input)
    is_reduced = reduction != "none"
    if arguments.is_recorded():
        losses = None
        if not linear_ops.are_constant(*computed[:3]):
            losses = _losses(flat, computed, shape)
        elif is_reduced and linear_ops.knows_its_gradients():
            value = measured.total(flat, computed) * scale
        else:
            losses = measured.losses(flat, computed)
    else:
        swept = computed.of(batch)
        if is_reduced and is_plain:
            return projected.total(flat, swept, scale).to(dtype)
        (losses,) = projected.columns(flat, swept) if is_plain else swept.differentiable(flat)
    if losses is not None:
        value = losses.sum() * scale if is_reduced else valid_rows.unflat(losses, shape, left)
    return (value if added is None else value + added).to(dtype)


def _losses(operands: Operands, computed: Measured, shape: tuple[int, ...]) -> Tensor:
    """The losses of a graph in which targets or weights are derived, one for each row of the inputs."""
    targets, class_weight, sample_weight, spec, shift, chunk_bytes = computed
    factors = None if class_weight is None else class_weight.double()
    counts = valid_rows.further(
        torch.ones(shape, dtype=torch.bool, device=targets.device), shift, False, torch
    )
    omega = counts.double()
    if sample_weight is not None:
        omega = valid_rows.further(sample_weight.double(), shift, 0.0, torch)
    if targets.is_floating_point():
        q = valid_rows.matrix(targets).to(bridge.loss_dtype(operands.inputs))
        measure = targeting.from_probabilities(q, factors, omega, spec, torch)
    else:
        num_classes = operands.weight.shape[0]
        y = valid_rows.further(composite.readable(targets, num_classes, spec.ignore_index), shift, -1, torch)
        measure = targeting.from_labels(y, y < 0, num_classes, factors, omega, spec, torch)
    is_learnt = composite.are_derived(class_weight, sample_weight)
    measure = composite.silenced(measure, spec, operands.inputs.isfinite().all(-1) if is_learnt else None)
    link, budget = spec.link, chunk_bytes or 0
    stats = linear_row_stats.row_stats(
        operands, measure.labels, measure.dense, counts, shift, link, False, budget
    )
    return head.row_losses(stats, measure, spec, torch)


def _require_targets(targets: Tensor, shape: tuple[int, ...], spec: LossSpec, name: str) -> None:
    arguments.require_tensor(targets, name)
    is_soft = targets.is_floating_point()
    if not is_soft and targets.dtype not in arguments.INTEGERS:
        raise arguments.ArgumentError(
            f"`{name}` must have an integer or a floating dtype; got {targets.dtype}"
        )
    expected = shape if is_soft else shape[:-1]
    if targets.shape != expected:
        raise arguments.ArgumentError(
            f"`{name}` of {targets.dtype} must have shape {tuple(expected)}; got {tuple(targets.shape)}"
        )
    if is_soft:
        arguments.require_no_labels(spec, name)
