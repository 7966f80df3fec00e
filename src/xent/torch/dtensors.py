"""Losses of DTensors over a mesh of one dimension: classes in shards here, rows by `dtensor_rows`."""

from __future__ import annotations

import math
import sys
from typing import Any, cast

import torch

from xent.core.spec import LossSpec
from xent.engine.chunked_projection import require_chunk_bytes
from xent.engine.valid_rows import shifted
from xent.torch import agreement, arguments, composite, dense, distributed, linear_loss
from xent.torch.agreement import Own, Whose, agreed, kind_of, plain
from xent.torch.distributed import Call
from xent.torch.dtensor_rows import DealtRows
from xent.torch.projected import Operands
from xent.torch.sharded import Shard

Tensor = torch.Tensor

MESH = Whose(
    "the mesh",
    ": a plain tensor beside DTensors is whole; give what each rank has a part of as a DTensor",
)


def is_sharded(*tensors: Any) -> bool:
    """Whether one of them is a DTensor; loads nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(x, module.DTensor) for x in tensors)


def refuse(error: Exception, *tensors: Any) -> None:
    """Tell the ranks of a DTensor of an ``error`` that comes before its loss; they wait for this rank."""
    for x in tensors:
        if is_sharded(x) and x.device_mesh.ndim == 1:
            agreement.refuse(error, x.device_mesh.get_group(), x.to_local().device, MESH)


def cross_entropy(
    logits: Any,
    targets: Any,
    weight: Any,
    sample_weight: Any,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    names: arguments.Names,
) -> Tensor:
    """The loss of a DTensor ``logits (..., K)``: whole, or with its rows or classes in shards.

    Targets and factors are DTensors, or whole and the same on every rank.
    """
    of_logits, name, _ = names
    if logits.device_mesh.ndim != 1:
        raise _layout(of_logits, "Replicate(), or Shard of its rows or classes", logits)
    call = Call(targets, weight, sample_weight, spec, reduction, denominator, validate, name)
    by_rows = _is_partial(logits) or DealtRows.are_dealt(logits)

    def check() -> Own[Call]:
        checked = call.checked(tuple(logits.shape), **{of_logits: logits})
        if not by_rows:
            checked.require_derivable()
        _require_dealt(logits.device_mesh, **{of_logits: logits}, **checked.tensors)
        checked.require_values(logits.shape[-1])
        facts = {of_logits: kind_of(logits), **checked.facts()}
        return Own(checked, math.prod(logits.shape[:-1]), facts, plain(**checked.tensors))

    call, shard = _agreed(check, logits, logits.ndim - 1, MESH)
    if not by_rows:
        return _replicated(
            distributed.of_logits(logits.to_local(), _local(call, logits, shard), shard), logits
        )
    if _is_partial(logits):
        logits = _gathered(logits)
    rows, local = DealtRows(logits), logits.to_local()
    y, omega, factors = rows.mine(call.targets), rows.mine(call.sample_weight), rows.shared(call.class_weight)
    return rows.reduced(
        lambda r, d: dense.of_rows(local, y, factors, omega, spec, r, d, False, names),
        lambda: composite.counts(y, logits.shape[-1], factors, omega, spec),
        reduction,
        _whole(call.denominator),
    )


def linear_cross_entropy(
    operands: Operands,
    targets: Any,
    weight: Any,
    sample_weight: Any,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    shift: int,
    chunk_bytes: int | None,
    names: arguments.Names,
) -> Tensor:
    """The loss with a DTensor for a weight (K, D): one of ``Shard(0)``, or a replicated one.

    With a weight of ``Shard(0)`` inputs of any placement are gathered, and a bias is sharded as the weight
    is. With a replicated weight the rows stay where they are.
    """
    name = names.targets
    of_operands = linear_loss.OPERANDS if names == arguments.TORCH else ("inputs", "weight", "bias")
    inputs, linear_weight, bias = cast(Any, operands)
    of_inputs, of_weight, of_bias = of_operands
    for of_operand, x in zip(of_operands, operands, strict=True):
        if is_sharded(x) and cast(Any, x).device_mesh.ndim != 1:
            raise _layout(of_operand, "Replicate(), or Shard(0)", x)
    first = linear_weight if is_sharded(linear_weight) else inputs
    call = Call(targets, weight, sample_weight, spec, reduction, denominator, validate, name)
    by_rows = is_sharded(inputs) and is_sharded(linear_weight) and _is_whole(linear_weight)

    def check() -> Own[Call]:
        require_chunk_bytes(chunk_bytes)
        shifted(inputs.shape[:-1], shift, torch, inputs.device)
        checked = call.checked((*inputs.shape[:-1], linear_weight.shape[0]), **{of_inputs: inputs})
        _require_dealt(first.device_mesh, **dict(zip(of_operands, operands, strict=True)), **checked.tensors)
        facts = {n: kind_of(x) for n, x in zip(of_operands, operands, strict=True)}
        facts |= {"shift": shift, "chunk_bytes": chunk_bytes, **checked.facts()}
        tensors = plain(**checked.tensors, **{of_bias: bias})
        if not by_rows:
            if not is_sharded(linear_weight) or linear_weight.placements[0] != _split(0):
                raise _layout(
                    of_weight, f"Shard(0), or Replicate() beside `{of_inputs}` as a DTensor", linear_weight
                )
            if bias is not None and not is_sharded(bias):
                raise ValueError(
                    f"`{of_bias}` must be a DTensor with Shard(0), as `{of_weight}` is; got a Tensor"
                )
            checked.require_derivable()
            if not is_sharded(inputs):
                tensors[of_inputs] = checked.counted(inputs, shift)
        else:
            DealtRows(inputs, shift)
        checked.require_values(linear_weight.shape[0])
        return Own(checked, math.prod(inputs.shape[:-1]), facts, tensors)

    advice = MESH.advice
    if not by_rows:
        advice = (
            f": beside a sharded `{of_weight}` a plain `{of_inputs}` is whole. Where each rank has its own "
            f"rows (data parallelism, FSDP), gather `{of_weight}` by {_gather(first)}, or give `{of_inputs}` "
            f"and `{name}` as DTensors"
        )
    call, shard = _agreed(check, first, 0, MESH._replace(advice=advice))
    if not by_rows:
        local = Operands(_whole(inputs), linear_weight.to_local(), _columns(bias, linear_weight, shard, 0))
        loss = distributed.of_operands(local, _local(call, linear_weight, shard), shard, shift, chunk_bytes)
        return _replicated(loss, linear_weight)
    if not DealtRows.are_dealt(inputs):
        inputs = _gathered(inputs)
    rows = DealtRows(inputs, shift)
    whole = Operands(inputs.to_local(), rows.shared(linear_weight), rows.shared(bias))
    y, omega, factors = rows.mine(call.targets), rows.mine(call.sample_weight), rows.shared(call.class_weight)
    later = y[..., shift:, :] if call.is_soft else y[..., shift:]
    late = omega if omega is None else omega[..., shift:]
    return rows.reduced(
        lambda r, d: linear_loss.of_rows(
            whole, y, factors, omega, spec, r, d, False, shift, chunk_bytes, names
        ),
        lambda: composite.counts(later, linear_weight.shape[0], factors, late, spec),
        reduction,
        _whole(call.denominator),
    )


def _agreed(check: Any, x: Any, axis: int, whose: Whose) -> tuple[Call, Shard]:
    local = x.to_local()
    return agreed(check, x.device_mesh.get_group(), None, local.shape[axis], local.device, whose)


def _require_dealt(mesh: Any, **tensors: Any) -> None:
    """Raise unless the DTensors are on ``mesh`` and dealt in equal parts, the last of them smaller.

    The first one may also be partial sums.
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
    """The arguments of a call, which were checked, beside this rank's classes."""
    return call._replace(
        targets=_columns(call.targets, like, shard, -1) if call.is_soft else _whole(call.targets),
        class_weight=_columns(call.class_weight, like, shard, 0),
        sample_weight=_whole(call.sample_weight),
        denominator=_whole(call.denominator),
        validate=False,
    )


def _columns(x: Any, like: Any, shard: Shard, axis: int) -> Any:
    """This rank's classes of ``x``."""
    if x is None:
        return None
    if not is_sharded(x):
        return x.narrow(axis, shard.offset, shard.size)
    return x.redistribute(like.device_mesh, [_split(axis % x.ndim)]).to_local()


def _whole(x: Any) -> Any:
    """All of ``x``; its gradient is whole on every rank and goes back to where its parts came from."""
    return _gathered(x).to_local() if is_sharded(x) else x


def _gathered(x: Any) -> Any:
    from torch.distributed.tensor import Replicate

    return x.redistribute(x.device_mesh, [Replicate()])


def _replicated(loss: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    return cast(Tensor, DTensor.from_local(loss, like.device_mesh, [Replicate()], run_check=False))


def _split(axis: int) -> Any:
    from torch.distributed.tensor import Shard as Split

    return Split(axis)


def _is_whole(x: Any) -> bool:
    return bool(x.placements[0].is_replicate())


def _is_partial(x: Any) -> bool:
    return bool(x.placements[0].is_partial())


def _gather(x: Any) -> str:
    """How to make a weight whole that is derived on rows that differ between ranks."""
    dims = x.device_mesh.ndim
    return f'`.full_tensor(grad_placements={"" if dims == 1 else f"{dims} * "}[Partial("avg")])`'


def _layout(name: str, expected: str, x: Any) -> NotImplementedError:
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
