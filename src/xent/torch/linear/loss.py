"""The loss of a linear layer's logits, which are never whole, for operands that this process has whole."""

from __future__ import annotations

import torch

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import RowStats
from xent.core.spec import as_index
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.arguments import Call
from xent.torch.linear import chunked, row_stats
from xent.torch.linear import rows as linear_rows
from xent.torch.linear.chunked import Operands
from xent.torch.linear.rows import Chunks, LossProgram, RowLosses, call_rows
from xent.torch.linear.tempered import multiplied, tempered, with_derivative
from xent.torch.targets import kernel_labels, mask_silent_rows, zero_if_valid
from xent.torch.temperature import row_temperature

Tensor = torch.Tensor

OPERANDS = ("input", "linear_weight", "linear_bias")


def checked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    names: tuple[str, str, str],
    is_stack: bool = False,
) -> Operands:
    """The operands, checked for shapes and dtypes, and cast as autocast would.

    The weight is (K, D), or (K, d1, ..., D) if ``is_stack``.
    """
    for name, x in zip(names, (input, weight, bias), strict=True):
        if x is not None:
            arguments.require_tensor(x, name)
    arguments.require_together(**dict(zip(names, (input, weight, bias), strict=True)))
    device = input.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = _autocast(input, dtype), _autocast(weight, dtype)
        bias = None if bias is None else _autocast(bias, dtype)
    if input.dtype not in devices.FLOATING:
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


def linear_cross_entropy(operands: Operands, call: Call, chunks: Chunks) -> Tensor:
    """The loss of the operands' rows; see `functional.linear_cross_entropy`."""
    input, weight, bias = operands
    chunks = Chunks(as_index("shift", chunks.shift), chunks.chunking.checked(input))
    shape, num_classes, dtype = input.shape[:-1], weight.shape[0], devices.loss_dtype(input)
    _require_targets(call.targets, (*shape, num_classes), call.names.targets)
    call = call.checked((*shape, num_classes))
    arguments.require_local(**call.by_name, bias=bias)
    arguments.require_together(**{call.names.logits: input}, **call.by_name)
    flat = Operands(valid_rows.as_matrix(input), weight, bias)
    if call.temperature is not None:
        flat, constant = with_derivative(flat, row_temperature(call, chunks.shift))
        call = call._replace(temperature=constant)
    is_plain = chunked.is_plain(flat, *call.tensors, call.temperature)
    zero = zero_if_valid(call.targets, num_classes, call.spec.ignore_index, call.names.targets, call.validate)
    loss_shape, rows = call_rows(call, chunks.shift, num_classes, dtype, is_plain, flat.inputs)
    scale = call.scale(rows.full_target.total, rows.full_target.rows)
    is_reduced = call.reduction != "none"
    if modes.is_recorded():
        program = LossProgram(call, chunks)
        is_constant = not modes.are_derived(*call.tensors[:3])
        if is_constant and is_reduced and modes.knows_its_gradients():
            loss = linear_rows.loss_sum(flat, program) * scale
            return (loss if zero is None else loss + zero).to(dtype)
        losses = linear_rows.losses(flat, program) if is_constant else _derived_losses(flat, program, shape)
    else:
        function = tempered(RowLosses(rows, call.spec, chunks.chunking), call.temperature)
        if is_reduced and is_plain:
            return function.scaled_sum(flat, scale).to(dtype)
        (losses,) = function.values(flat) if is_plain else function.derivable(flat)
    loss = losses.sum() * scale if is_reduced else valid_rows.unflatten_rows(losses, shape, loss_shape)
    return (loss if zero is None else loss + zero).to(dtype)


def _derived_losses(operands: Operands, program: LossProgram, shape: tuple[int, ...]) -> Tensor:
    """The losses (M,) in a graph in which targets or weights require gradients."""
    call, (shift, chunking) = program
    targets, class_weight, sample_weight, spec = call[:4]
    if call.temperature is not None:
        operands = multiplied(operands, 1.0 / call.temperature)
    factors = None if class_weight is None else class_weight.double()
    counts = valid_rows.align_targets(
        torch.ones(shape, dtype=torch.bool, device=targets.device), shift, False, torch
    )
    omega = counts.double()
    if sample_weight is not None:
        omega = valid_rows.align_targets(sample_weight.double(), shift, 0.0, torch)
    if call.is_soft:
        q = valid_rows.as_matrix(targets).to(devices.loss_dtype(operands.inputs))
        t = targeting.from_probabilities(q, factors, omega, spec, torch)
    else:
        num_classes = operands.weight.shape[0]
        y = valid_rows.align_targets(kernel_labels(targets, num_classes, spec.ignore_index), shift, -1, torch)
        t = targeting.from_labels(y, y < 0, num_classes, factors, omega, spec, torch)
    is_learnt = modes.are_derived(class_weight, sample_weight)
    t = mask_silent_rows(t, spec, operands.inputs.isfinite().all(-1) if is_learnt else None)
    sources = {"log_prob": t.labels, "dense_log_prob": t.dense}
    names = ("lse", *(name for name, source in sources.items() if source is not None))
    columns = row_stats.row_stats(operands, t.labels, t.dense, counts, shift, spec.link, names, chunking)
    stats = RowStats(**dict(zip(names, columns, strict=True)))
    return head.row_losses(stats, t, spec, torch)


def _require_targets(targets: Tensor, shape: tuple[int, ...], name: str) -> None:
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
