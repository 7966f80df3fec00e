"""The loss of a linear layer's logits, which are never whole, for operands that this process has whole."""

from __future__ import annotations

from typing import Any, cast

import torch

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import RowStats
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.arguments import Call
from xent.torch.linear import chunked, row_stats, values
from xent.torch.linear.chunked import Operands
from xent.torch.linear.program import LossProgram, loss_sums, losses
from xent.torch.linear.rows import Chunks
from xent.torch.linear.shifts import relative
from xent.torch.linear.tempered import with_derivative
from xent.torch.linear.values import LossValues, Reduction
from xent.torch.targets import kernel_labels, label_weights, mask_silent_rows, zero_if_valid
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
    input, weight, bias = autocast_operands(Operands(input, weight, bias))
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


def autocast_operands(operands: Operands) -> Operands:
    """The operands in the dtype in which autocast multiplies them."""
    device = operands.inputs.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return operands
    dtype = torch.get_autocast_dtype(device)
    cast_operands: Any = (
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in operands
    )
    return Operands(*cast_operands)


def linear_cross_entropy(operands: Operands, call: Call, chunks: Chunks) -> Any:
    """The loss of the operands' rows, or the `LossValues` that are wanted: `functional` describes them."""
    input, weight, bias = operands
    shape, num_classes = input.shape[:-1], weight.shape[0]
    _require_targets(call.targets, (*shape, num_classes), call.names.targets)
    call = call.checked((*shape, num_classes))
    arguments.require_local(**call.by_name, bias=bias)
    arguments.require_together(**{call.names.logits: input}, **call.by_name)
    chunks = chunks.checked(call, input)
    are_several, is_reduced = isinstance(chunks.shift, tuple), call.reduction != "none"
    names = () if chunks.want is None else values.checked_names(chunks.want, call, are_several)
    if are_several and modes.is_recorded() and modes.are_derived(*call.tensors[:3]):
        return _one_by_one(operands, call, chunks, names)
    flat = Operands(valid_rows.as_matrix(input), weight, bias)
    if chunks.want is not None and "loss" not in chunks.want:
        flat = Operands(*(x if x is None else x.detach() for x in flat))  # type: ignore[arg-type]
    if call.temperature is not None:
        flat, constant = with_derivative(flat, row_temperature(call, chunks.shift))
        call = call._replace(temperature=constant)
    is_plain = chunked.is_plain(flat, *call.tensors, call.temperature)
    zero = zero_if_valid(call.targets, num_classes, call.spec.ignore_index, call.names.targets, call.validate)
    program = LossProgram(call, chunks, names)
    rows = program.rows(flat, is_plain, flat.inputs)
    scales = [call.scale(r.full_target.total, r.full_target.rows) for r in rows]
    scale = scales[0]
    if are_several:
        weighted = [w * s for w, s in zip(chunks.shift_weight, scales, strict=True)]
        scale, factors = relative(weighted)
        program = program._replace(factors=factors)
    dtype, is_scaled = devices.loss_dtype(input), False
    if modes.is_recorded():
        is_constant = not modes.are_derived(*call.tensors[:3])
        if is_constant and is_reduced and modes.knows_its_gradients():
            first, *others = loss_sums(flat, program).unbind()
        elif is_constant:
            first, *others = losses(flat, program)
        else:
            first, *others = _derived_columns(flat, program, shape)
    else:
        function, is_scaled = program.function_of_rows(rows), is_reduced and is_plain
        if is_scaled:
            first, *others = function.scaled_sum_and_columns(flat, scale)
        else:
            first, *others = function.values(flat) if is_plain else function.derivable(flat)
    result = Reduction(call, chunks, names, shape, num_classes, dtype)
    loss = first if is_scaled else result.reduced(first, scale, chunks.shift)
    loss = (loss if zero is None else loss + zero).to(dtype)
    return result.results(loss, others, scales)


def _one_by_one(operands: Operands, call: Call, chunks: Chunks, names: tuple[str, ...]) -> Any:
    """The loss of several shifts in a graph in which targets or weights require gradients."""
    singles = []
    for shift in chunks.shift:
        want = ("loss", *(name for name in names if name != "by_shift"))
        one = chunks._replace(shift=shift, shift_weight=None, want=want)
        singles.append(cast(LossValues, linear_cross_entropy(operands, call, one)))
    by_shift = torch.stack([cast(Tensor, single.loss) for single in singles])
    loss = (by_shift * by_shift.new_tensor(chunks.shift_weight)).sum()
    if chunks.want is None:
        return loss
    by_name = {name: [getattr(single, name) for single in singles] for name in names if name != "by_shift"}
    stacked = {name: torch.stack(each) for name, each in by_name.items()}
    if "by_shift" in names:
        stacked["by_shift"] = by_shift.detach()
    return LossValues(loss if "loss" in chunks.want else None, **stacked)


def _derived_columns(operands: Operands, program: LossProgram, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The columns (M,) in a graph in which targets or weights require gradients."""
    call, (shift, chunking, *_), names, _ = program
    targets, class_weight, sample_weight, spec = call[:4]
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
    read = ["lse", *(name for name, source in sources.items() if source is not None)]
    read += [name for name in values.required_stats(names, spec) if name not in read]
    columns = row_stats.row_stats(
        operands, t.labels, t.dense, counts, call.temperature, shift, spec.link, tuple(read), chunking
    )
    stats = RowStats(**dict(zip(read, columns, strict=True)))
    column = head.row_losses(stats, t, spec, torch)
    label_weight = None
    if t.labels is not None and factors is not None:
        label_weight = label_weights(t.labels, factors)
    return column, *values.columns(names, stats, t.labels, t.weight, label_weight, spec, column)


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
