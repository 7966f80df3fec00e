"""Losses of DTensors over a mesh of one dimension: classes in shards here, rows by `dtensor_rows`."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch

from xent.spec import LossSpec
from xent.torch import composite, distributed, functional, linear
from xent.torch.distributed import Call
from xent.torch.dtensor_rows import DealtRows
from xent.torch.projected import Operands
from xent.torch.sharded import Shard

Tensor = torch.Tensor


def is_sharded(*tensors: Any) -> bool:
    """Whether one of them is a DTensor; loads nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(x, module.DTensor) for x in tensors)


def cross_entropy(
    logits: Any,
    targets: Any,
    weight: Any,
    sample_weight: Any,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
) -> Tensor:
    """`functional.of_rows` of a DTensor ``logits (..., K)``: a replicated one, or one loss a row.

    Targets and factors are DTensors of any placement, or whole and the same on every rank.
    """
    if DealtRows.are_dealt(logits):
        rows = DealtRows(logits)
        local = logits.to_local()
        y, omega = rows.mine(targets), rows.mine(sample_weight)
        factors, divisor = _whole(weight, logits), _whole(denominator, logits)
        return rows.reduced(
            lambda r, d: functional.of_rows(local, y, factors, omega, spec, r, d, validate),
            lambda: composite.counts(y, logits.shape[-1], factors, omega, spec),
            reduction,
            divisor,
        )
    shard = _shard(logits, logits.ndim - 1, "logits")
    local = logits.to_local()
    call = _call(targets, weight, sample_weight, spec, reduction, denominator, validate, logits, shard)
    return _replicated(distributed.of_logits(local, call.checked(local.shape), shard), logits)


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
) -> Tensor:
    """`linear.of_rows` with a DTensor for a weight (K, D): a replicated one, or one loss a row.

    With a weight of ``Shard(0)`` inputs of any placement are gathered, and a bias is sharded as the weight
    is. With a replicated weight the rows stay where they are.
    """
    inputs, linear_weight, bias = cast(Any, operands)
    if DealtRows.are_dealt(inputs) and DealtRows.are_whole(linear_weight):
        rows = DealtRows(inputs, shift)
        whole = Operands(inputs.to_local(), rows.shared(linear_weight), rows.shared(bias))
        y, omega = rows.mine(targets), rows.mine(sample_weight)
        factors, divisor = _whole(weight, inputs), _whole(denominator, inputs)
        later = y[..., shift:, :] if y.is_floating_point() else y[..., shift:]
        late = omega if omega is None else omega[..., shift:]
        return rows.reduced(
            lambda r, d: linear.of_rows(whole, y, factors, omega, spec, r, d, validate, shift, chunk_bytes),
            lambda: composite.counts(later, linear_weight.shape[0], factors, late, spec),
            reduction,
            divisor,
        )
    shard = _shard(linear_weight, 0, "linear_weight")
    if bias is not None and not is_sharded(bias):
        raise ValueError("`linear_bias` must be a DTensor with Shard(0), as `linear_weight` is; got a Tensor")
    local = linear.checked(
        _whole(inputs, linear_weight),
        _columns(linear_weight, linear_weight, shard, 0),
        _columns(bias, linear_weight, shard, 0),
        ("input", "linear_weight", "linear_bias"),
    )
    call = _call(targets, weight, sample_weight, spec, reduction, denominator, validate, linear_weight, shard)
    call = call.checked((*local.inputs.shape[:-1], shard.size))
    loss = distributed.of_operands(local, call, shard, shift, chunk_bytes)
    return _replicated(loss, linear_weight)


def _shard(x: Any, dim: int, name: str) -> Shard:
    """The classes of this rank, as a DTensor deals them: in equal parts, the last of them smaller."""
    from torch.distributed.tensor import Shard as Split

    if (
        not is_sharded(x)
        or x.device_mesh.ndim != 1
        or x.placements[0] not in (Split(dim), Split(dim - x.ndim))
    ):
        found = f"{x.placements} on {x.device_mesh.ndim} dimensions" if is_sharded(x) else type(x).__name__
        raise NotImplementedError(
            f"`{name}` must be a DTensor with its classes sharded, Shard({dim}), or whole beside rows in "
            f"shards, on a mesh of one dimension; got {found}"
        )
    mesh, num_classes = x.device_mesh, x.shape[dim]
    each = -(-num_classes // mesh.size())
    offset = min(mesh.get_local_rank() * each, num_classes)
    shard = Shard(mesh.get_group(), offset, min(each, num_classes - offset), num_classes, each)
    if x.to_local().shape[dim] != shard.size:
        raise ValueError(
            f"`{name}` must hold {shard.size} of {num_classes} classes on this rank, as Shard({dim}) deals "
            f"them; got {x.to_local().shape[dim]}: `vocab_parallel_cross_entropy` takes shards of any sizes"
        )
    return shard


def _call(
    targets: Any,
    weight: Any,
    sample_weight: Any,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    like: Any,
    shard: Shard,
) -> Call:
    soft = targets.is_floating_point()
    return Call(
        _columns(targets, like, shard, targets.ndim - 1) if soft else _whole(targets, like),
        _columns(weight, like, shard, 0),
        _whole(sample_weight, like),
        spec,
        reduction,
        _whole(denominator, like),
        validate,
    )


def _columns(x: Any, like: Any, shard: Shard, dim: int) -> Any:
    """This rank's classes of ``x``."""
    if x is None:
        return None
    if not is_sharded(x):
        return x.narrow(dim, shard.offset, shard.size)
    from torch.distributed.tensor import Shard as Split

    return x.redistribute(like.device_mesh, [Split(dim)]).to_local()


def _whole(x: Any, like: Any) -> Any:
    """All of ``x``; its gradient is whole on every rank and goes back to where its parts came from."""
    if not is_sharded(x):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(like.device_mesh, [Replicate()]).to_local()


def _replicated(loss: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    return cast(Tensor, DTensor.from_local(loss, like.device_mesh, [Replicate()], run_check=False))
