"""The losses of checked calls from this rank's classes: logits in memory, or of a linear layer by chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from xent.engine import valid_rows
from xent.torch import devices
from xent.torch.arguments import Call
from xent.torch.distributed import layers
from xent.torch.distributed.shards import Shard, ShardRows
from xent.torch.linear import values
from xent.torch.linear.chunked import Operands
from xent.torch.linear.rows import Chunks
from xent.torch.linear.shifts import aligned, relative
from xent.torch.linear.tempered import with_derivative
from xent.torch.linear.values import Reduction
from xent.torch.targets import kernel_labels, require_targets, weight_and_rows
from xent.torch.temperature import divided_rows, row_temperature

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, call: Call, shard: Shard) -> Tensor:
    """The loss of a shard's ``logits (..., K_s)`` for a checked call."""
    if call.temperature is not None:
        logits = divided_rows(logits, row_temperature(call))
    omega = None if call.sample_weight is None else call.sample_weight.double()
    if call.is_soft:
        shard_rows = _shard_rows(call, shard, None, call.targets, None, omega)
    else:
        shard_rows = _shard_rows(call, shard, _labels(call, shard.num_classes), None, None, omega)
    losses, combined = layers.losses(shard_rows, layers.Dense(), (logits,))
    if call.reduction != "none":
        losses = losses.sum() * call.scale(combined.target.total, combined.target.rows)
    return losses.to(devices.loss_dtype(logits))


def linear_cross_entropy(operands: Operands, call: Call, chunks: Chunks, shard: Shard) -> Any:
    """The loss of ``hidden (..., D)`` and a shard's weight and bias for a checked call, or `LossValues`."""
    hidden, weight, bias = operands
    shape, dtype = hidden.shape[:-1], devices.loss_dtype(hidden)
    are_several = isinstance(chunks.shift, tuple)
    names = () if chunks.want is None else values.checked_names(chunks.want, call, are_several)
    if not call.is_soft:
        labels = _labels(call, shard.num_classes)
        call = call._replace(targets=labels, spec=replace(call.spec, ignore_index=-1))
    whole_call = call
    if call.class_weight is not None and (names or are_several):
        whole_call = call._replace(class_weight=_whole_weight(call.class_weight, shard))
    flat = Operands(valid_rows.as_matrix(hidden), weight, bias)
    if chunks.want is not None and "loss" not in chunks.want:
        flat = Operands(*(x if x is None else x.detach() for x in flat))  # type: ignore[arg-type]
    scales: list[Any] = []
    if are_several:
        row_index, each = _rows_by_shift(call, chunks.shift, shard)
        for shift in chunks.shift:
            one = aligned(whole_call, shift, shard.num_classes)
            scales.append(call.scale(*weight_and_rows(one, shard.num_classes)))
        scale, factors = relative([w * s for w, s in zip(chunks.shift_weight, scales, strict=True)])
        rows = layers.WeightedRows(each, factors)
    else:
        row_index, shard_rows = _rows(call, chunks.shift, shape, shard)
        rows = layers.WeightedRows((shard_rows,))
    temperature = None
    if call.temperature is not None:
        flat, temperature = with_derivative(flat, row_temperature(call, chunks.shift))
        temperature = temperature if row_index is None else temperature[row_index]
    layer = layers.Projected(row_index, chunks.chunking, temperature, names, whole_call.class_weight)
    columns: list[Tensor]
    if are_several or (call.reduction != "none" and layers.is_derived(flat)):
        sums = layers.loss_sums(rows, layer, flat)
        losses, divisors = sums.losses, (sums.total, sums.rows)
        columns = list(cast(Tensor, sums.columns).flatten())
    else:
        losses, combined = layers.losses(rows.each[0], layer, flat)
        divisors = combined.target.total, combined.target.rows
        columns = list(layer.columns(rows.each[0], combined))
        if call.reduction == "none" and row_index is not None:
            losses, *columns = (
                c.new_zeros(shape.numel()).index_put((row_index,), c) for c in (losses, *columns)
            )
    if not are_several:
        scale = call.scale(*divisors)
        scales = [scale]
    result = Reduction(whole_call, chunks, names, shape, shard.num_classes, dtype)
    return result.results(result.reduced(losses, scale, chunks.shift).to(dtype), columns, scales)


def _rows(call: Call, shift: int, shape: torch.Size, shard: Shard) -> tuple[Tensor | None, ShardRows]:
    """(the index of the rows that count or None for all, the rows)."""
    _, row_index = valid_rows.shifted_rows(shape, shift, torch, call.targets.device)
    weight = None if call.sample_weight is None else call.sample_weight.double()
    omega = valid_rows.flatten_rows(weight, shift)
    if call.is_soft:
        row_index, (omega,) = valid_rows.select_rows(None, omega, row_index, (omega,), torch)
        q = call.targets.reshape(shape.numel(), shard.size)
        index = None if row_index is None else row_index + shift
        return row_index, _shard_rows(call, shard, None, q, index, omega)
    y = valid_rows.flatten_rows(call.targets, shift)
    row_index, (y, omega) = valid_rows.select_rows(y < 0, omega, row_index, (y, omega), torch)
    return row_index, _shard_rows(call, shard, y, None, None, omega)


def _rows_by_shift(call: Call, shifts: Sequence[int], shard: Shard) -> tuple[Tensor | None, list[ShardRows]]:
    """(the index of the rows that count for any shift, the rows of each, with labels of −1 otherwise)."""
    labels, weights = [], []
    for shift in shifts:
        one = aligned(call, shift, shard.num_classes)
        omega = None if one.sample_weight is None else one.sample_weight.double()
        labels.append(one.targets if omega is None else torch.where(omega == 0, -1, one.targets))
        weights.append(omega)
    is_ignored = torch.stack([y < 0 for y in labels]).all(0)
    columns = (*labels, *weights)
    row_index, columns = valid_rows.select_rows(is_ignored, None, None, columns, torch)
    pairs = zip(columns[: len(labels)], columns[len(labels) :], strict=True)
    return row_index, [_shard_rows(call, shard, y, None, None, omega) for y, omega in pairs]


def _whole_weight(class_weight: Tensor, shard: Shard) -> Tensor:
    """The weights (K,) of the classes of all ranks."""
    whole = torch.zeros(shard.num_classes, dtype=torch.float64, device=class_weight.device)
    whole[shard.offset : shard.offset + shard.size] = class_weight.double()
    shard.reduce(whole)
    return whole


def validates(call: Call) -> bool:
    """Whether the values of targets are checked."""
    return call.targets.is_cpu if call.validate is None else call.validate


def _labels(call: Call, num_classes: int) -> Tensor:
    """The labels as kernels read them, checked if the call validates."""
    if validates(call):
        require_targets(call.targets, num_classes, call.spec.ignore_index, "labels")
    return kernel_labels(call.targets, num_classes, call.spec.ignore_index)


def _shard_rows(
    call: Call, shard: Shard, labels: Tensor | None, q: Tensor | None, row_index: Tensor | None, omega: Any
) -> ShardRows:
    """The rows with the class weights of the shard."""
    factors = None if call.class_weight is None else call.class_weight.double()
    return ShardRows(shard, labels, q, row_index, factors, omega, call.spec)
