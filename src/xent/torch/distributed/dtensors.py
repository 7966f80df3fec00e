"""Losses of DTensors over a mesh of one dimension: classes in shards here, rows by `dtensor_rows`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch

from xent.torch import arguments, dense
from xent.torch.arguments import Call
from xent.torch.distributed import dtensor_linear, handshake, sharded
from xent.torch.distributed.dtensor_rows import DistributedRows
from xent.torch.distributed.handshake import (
    LocalCheck,
    RankGroup,
    agree,
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

MESH = RankGroup(
    "the mesh",
    ": a plain tensor beside DTensors is whole; give what each rank has a part of as a DTensor",
)


def is_sharded(*tensors: Any) -> bool:
    """Whether one of the tensors is a DTensor; imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(x, module.DTensor) for x in tensors)


def refuse(error: Exception, *tensors: Any) -> None:
    """Raise ``error`` on all ranks of a DTensor, which wait for this rank in the handshake of its loss."""
    for x in tensors:
        if is_sharded(x) and x.device_mesh.ndim == 1:
            handshake.refuse(error, x.device_mesh.get_group(), x.to_local().device, MESH)


def cross_entropy(logits: Any, call: Call) -> Tensor:
    """The loss of a DTensor ``logits (..., K)``: whole, or with its rows or classes in shards.

    Targets and factors are DTensors, or whole and the same on every rank.
    """
    logits_name = call.names.logits
    if logits.device_mesh.ndim != 1:
        raise layout_error(logits_name, "Replicate(), or Shard of its rows or classes", logits)
    by_rows = _is_partial(logits) or DistributedRows.is_row_layout(logits)

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
    if _is_partial(logits):
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
    return dtensor_linear.cross_entropy(rows, whole, call, chunks)


def first_and_by_rows(operands: Operands, names: Sequence[str]) -> tuple[Any, bool]:
    """(a DTensor on the mesh of all, whether the weight is whole and the rows stay where they are)."""
    for name, x in zip(names, operands, strict=True):
        if is_sharded(x) and cast(Any, x).device_mesh.ndim != 1:
            raise layout_error(name, "Replicate(), or Shard(0)", x)
    inputs, weight, _ = operands
    first = weight if is_sharded(weight) else inputs
    return first, is_sharded(inputs) and is_sharded(weight) and is_whole(weight)


def require_class_shards(operands: Operands, names: Sequence[str]) -> None:
    """Raise unless the weight is a DTensor of ``Shard(0)``, and a bias is one too."""
    (inputs_name, weight_name, bias_name), (_, weight, bias) = names, cast(Any, operands)
    if not is_sharded(weight) or weight.placements[0] != split(0):
        expected = f"Shard(0), or Replicate() beside `{inputs_name}` as a DTensor"
        raise layout_error(weight_name, expected, weight)
    if bias is not None and not is_sharded(bias):
        raise ValueError(
            f"`{bias_name}` must be a DTensor with Shard(0), as `{weight_name}` is; got a Tensor"
        )


def mesh_of_classes(weight: Any, inputs_name: str, weight_name: str, targets_name: str) -> RankGroup:
    """The mesh, with advice for a caller whose plain tensors differ between ranks."""
    return MESH._replace(
        advice=f": beside a sharded `{weight_name}` a plain `{inputs_name}` is whole. Where each rank has "
        f"its own rows (data parallelism, FSDP), gather `{weight_name}` by {_gather(weight)}, or give "
        f"`{inputs_name}` and `{targets_name}` as DTensors"
    )


def _reduced(rows: DistributedRows, loss: Tensor, call: Call, local: Call, num_classes: int) -> Tensor:
    """The loss of all rows from the ``loss`` of the ``local`` call."""
    totals = partial(weight_and_rows, local, num_classes)
    return rows.reduce_loss(loss, call.reduction, call.denominator, totals)


def agree_on(check: Any, x: Any, axis: int, whose: RankGroup) -> tuple[Any, Shard]:
    """`handshake.agree` of the ranks of the mesh of the DTensor ``x``, whose ``axis`` has the classes."""
    local = x.to_local()
    return agree(check, x.device_mesh.get_group(), None, local.shape[axis], local.device, whose)


def require_layouts(mesh: Any, **tensors: Any) -> None:
    """Raise unless the DTensors are on ``mesh``, in equal shards of which the last may be smaller.

    The first tensor may also have the placement Partial.
    """
    first = next(iter(tensors))
    for name, x in tensors.items():
        if not is_sharded(x):
            continue
        if x.device_mesh != mesh:
            raise arguments.ArgumentError(
                f"`{name}` must be on the mesh of the other DTensors, {mesh}; got {x.device_mesh}"
            )
        if _is_partial(x) and name != first:
            raise arguments.ArgumentError(
                f"`{name}` must be sharded or whole; got {x.placements}: `.redistribute` it to [Replicate()]"
            )
        if (axis := getattr(x.placements[0], "dim", None)) is None:
            continue
        each = -(-x.shape[axis] // mesh.size())
        size = max(0, min(each, x.shape[axis] - mesh.get_local_rank() * each))
        if x.to_local().shape[axis] != size:
            raise arguments.ArgumentError(
                f"`{name}` must have {size} of {x.shape[axis]} on this rank, as {x.placements[0]} deals "
                f"them; got {x.to_local().shape[axis]}"
            )


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


def class_columns(x: Any, like: Any, shard: Shard, axis: int) -> Any:
    """This rank's classes of ``x``."""
    if x is None:
        return None
    if not is_sharded(x):
        return x.narrow(axis, shard.offset, shard.size)
    return x.redistribute(like.device_mesh, [split(axis % x.ndim)]).to_local()


def as_whole(x: Any) -> Any:
    """The whole of ``x``; its gradient, whole on every rank, is redistributed to the placement of ``x``."""
    return gathered(x).to_local() if is_sharded(x) else x


def gathered(x: Any) -> Any:
    """The DTensor ``x``, whole on every rank."""
    from torch.distributed.tensor import Replicate

    return x.redistribute(x.device_mesh, [Replicate()])


def replicated(loss: Tensor, like: Any) -> Tensor:
    """A loss that is the same on every rank as a DTensor, on the mesh of ``like``."""
    from torch.distributed.tensor import DTensor, Replicate

    return cast(Tensor, DTensor.from_local(loss, like.device_mesh, [Replicate()], run_check=False))


def split(axis: int) -> Any:
    """The placement of a DTensor in shards along ``axis``."""
    from torch.distributed.tensor import Shard as Split

    return Split(axis)


def is_whole(x: Any) -> bool:
    """Whether a DTensor is whole on every rank."""
    return bool(x.placements[0].is_replicate())


def _is_partial(x: Any) -> bool:
    return bool(x.placements[0].is_partial())


def _gather(x: Any) -> str:
    """The expression, for an error, that gathers a weight whose gradient is averaged over ranks."""
    dims = x.device_mesh.ndim
    return f'`.full_tensor(grad_placements={"" if dims == 1 else f"{dims} * "}[Partial("avg")])`'


def layout_error(name: str, expected: str, x: Any) -> NotImplementedError:
    """The error for an ``x`` that is not a DTensor of the ``expected`` placements."""
    found = f"{x.placements} on {x.device_mesh.ndim} dimensions" if is_sharded(x) else f"a {type(x).__name__}"
    advice = (
        f"bring it there by `.redistribute`, or gather it: {_gather(x)} where each rank has its own rows "
        "(data parallelism, FSDP)"
        if is_sharded(x)
        else "`DTensor.from_local` makes it one"
    )
    return NotImplementedError(
        f"`{name}` must be a DTensor on a mesh of one dimension, of {expected}; got {found}: {advice}"
    )
