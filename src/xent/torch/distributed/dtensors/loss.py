"""Losses of DTensors over a mesh of one dimension: classes in shards, or rows."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch

from xent.torch import arguments, dense
from xent.torch.arguments import Call
from xent.torch.distributed import sharded
from xent.torch.distributed.dtensors import linear_rows
from xent.torch.distributed.dtensors.layouts import (
    MESH,
    agree_on,
    as_whole,
    class_columns,
    first_and_by_rows,
    gathered,
    is_partial,
    is_sharded,
    layout_error,
    mesh_of_classes,
    replicated,
    require_class_shards,
    require_layouts,
)
from xent.torch.distributed.dtensors.rows import DistributedRows
from xent.torch.distributed.handshake import (
    LocalCheck,
    call_facts,
    plain_tensors,
    row_checksums,
    tensor_kind,
)
from xent.torch.distributed.loss import checked, checked_chunks, require_derivable, require_values
from xent.torch.distributed.shards import Shard
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.chunked import Operands
from xent.torch.linear.rows import Chunks
from xent.torch.linear.values import LossValues
from xent.torch.targets import weight_and_rows

Tensor = torch.Tensor


def cross_entropy(logits: Any, call: Call) -> Tensor:
    """The loss of a DTensor ``logits (..., K)``: whole, or with its rows or classes in shards.

    Targets and factors are DTensors, or whole and the same on every rank.
    """
    logits_name = call.names.logits
    if logits.device_mesh.ndim != 1:
        raise layout_error(logits_name, "Replicate(), or Shard of its rows or classes", logits)
    by_rows = is_partial(logits) or DistributedRows.is_row_layout(logits)

    def check() -> LocalCheck[Call]:
        own = checked(call, tuple(logits.shape), **{logits_name: logits})
        if not by_rows:
            require_derivable(own, own.temperature)
        require_layouts(logits.device_mesh, **{logits_name: logits}, **own.by_name)
        require_values(own, logits.shape[-1])
        facts = {logits_name: tensor_kind(logits), **call_facts(own)}
        return LocalCheck(own, math.prod(logits.shape[:-1]), facts, plain_tensors(**own.by_name))

    call, shard = agree_on(check, logits, logits.ndim - 1, MESH)
    if not by_rows:
        loss = sharded.cross_entropy(logits.to_local(), _local(call, logits, shard), shard)
        return replicated(loss, logits)
    if is_partial(logits):
        logits = gathered(logits)
    rows, call = DistributedRows(logits), call._replace(denominator=as_whole(call.denominator))
    local = rows.local_call(call)
    loss, num_classes = dense.cross_entropy(logits.to_local(), local), logits.shape[-1]
    return _reduced(rows, loss, call, local, num_classes)


def linear_cross_entropy(operands: Operands, call: Call, chunks: Chunks) -> Any:
    """The loss with a DTensor for a weight (K, D): one of ``Shard(0)``, or a replicated one.

    With a weight of ``Shard(0)`` inputs of any placement are gathered, and a bias is sharded as the weight
    is. With a replicated weight the rows stay where they are.
    """
    names = call.names
    operand_names = linear_loss.OPERANDS if names == arguments.TORCH else ("inputs", "weight", "bias")
    inputs, linear_weight, bias = cast(Any, operands)
    inputs_name, weight_name, bias_name = operand_names
    first, by_rows = first_and_by_rows(operands, operand_names)

    def check() -> LocalCheck[Call]:
        own = checked(call, (*inputs.shape[:-1], linear_weight.shape[0]), **{inputs_name: inputs})
        require_layouts(first.device_mesh, **dict(zip(operand_names, operands, strict=True)), **own.by_name)
        facts = {n: tensor_kind(x) for n, x in zip(operand_names, operands, strict=True)}
        given = checked_chunks(chunks, own, inputs)
        facts |= {**given.facts, **call_facts(own)}
        tensors = plain_tensors(**own.by_name, **{bias_name: bias})
        if not by_rows:
            require_class_shards(operands, operand_names)
            require_derivable(own)
            if not is_sharded(inputs):
                tensors[inputs_name] = row_checksums(own, inputs, given.shifts)
        else:
            DistributedRows(inputs, max(given.shifts))
        require_values(own, linear_weight.shape[0], given.shift)
        return LocalCheck(own, math.prod(inputs.shape[:-1]), facts, tensors)

    mesh = MESH if by_rows else mesh_of_classes(first, inputs_name, weight_name, names.targets)
    call, shard = agree_on(check, first, 0, mesh)
    if not by_rows:
        columns = class_columns(bias, linear_weight, shard, 0)
        local = Operands(as_whole(inputs), linear_weight.to_local(), columns)
        own = _local(call, linear_weight, shard)
        loss = sharded.linear_cross_entropy(local, own, chunks.checked(own, local.inputs), shard)
        if not isinstance(loss, LossValues):
            return replicated(loss, linear_weight)
        return LossValues(*(None if x is None else replicated(x, linear_weight) for x in loss))
    if not DistributedRows.is_row_layout(inputs):
        inputs = gathered(inputs)
    chunks, call = chunks.checked(call, inputs), call._replace(denominator=as_whole(call.denominator))
    rows = DistributedRows(inputs, max(chunks.shifts))
    whole = Operands(inputs.to_local(), rows.replicated(linear_weight), rows.replicated(bias))
    return linear_rows.cross_entropy(rows, whole, call, chunks)


def _reduced(rows: DistributedRows, loss: Tensor, call: Call, local: Call, num_classes: int) -> Tensor:
    """The loss of all rows from the ``loss`` of the ``local`` call."""
    totals = partial(weight_and_rows, local, num_classes)
    return rows.reduce_loss(loss, call.reduction, call.denominator, totals)


def _local(call: Call, like: Any, shard: Shard) -> Call:
    """The checked call for this rank's classes."""
    return call._replace(
        targets=class_columns(call.targets, like, shard, -1) if call.is_soft else as_whole(call.targets),
        class_weight=class_columns(call.class_weight, like, shard, 0),
        sample_weight=as_whole(call.sample_weight),
        temperature=as_whole(call.temperature),
        denominator=as_whole(call.denominator),
        validate=False,
    )
