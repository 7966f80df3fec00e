"""Layouts of DTensors over a mesh of one dimension: which are taken, their errors, and other layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as Split

from xent.torch import arguments
from xent.torch.distributed import handshake
from xent.torch.distributed.handshake import RankGroup
from xent.torch.distributed.shards import Shard
from xent.torch.linear.chunked import Operands

Tensor = torch.Tensor

MESH = RankGroup(
    "the mesh",
    ": a plain tensor beside DTensors is whole; give what each rank has a part of as a DTensor",
)


def is_sharded(*tensors: Any) -> bool:
    """Whether one of the tensors is a DTensor."""
    return any(isinstance(x, DTensor) for x in tensors)


def is_whole(x: Any) -> bool:
    """Whether a DTensor is whole on every rank."""
    return bool(x.placements[0].is_replicate())


def is_partial(x: Any) -> bool:
    """Whether the ranks hold summands of a DTensor."""
    return bool(x.placements[0].is_partial())


def split(axis: int) -> Any:
    """The placement of a DTensor in shards along ``axis``."""
    return Split(axis)


def agree_on(check: Any, x: Any, axis: int, rank_group: RankGroup) -> tuple[Any, Shard]:
    """`handshake.agree` of the ranks of the mesh of the DTensor ``x``, whose ``axis`` has the classes."""
    local = x.to_local()
    return handshake.agree(
        check, x.device_mesh.get_group(), None, local.shape[axis], local.device, rank_group
    )


def refuse(error: Exception, *tensors: Any) -> None:
    """Raise ``error`` on all ranks of a DTensor, which wait for this rank in the handshake of its loss."""
    for x in tensors:
        if is_sharded(x) and x.device_mesh.ndim == 1:
            handshake.refuse(error, x.device_mesh.get_group(), x.to_local().device, MESH)


def mesh_of_classes(weight: Any, inputs_name: str, weight_name: str, targets_name: str) -> RankGroup:
    """The mesh, with advice for a caller whose plain tensors differ between ranks."""
    return MESH._replace(
        advice=f": beside a sharded `{weight_name}` a plain `{inputs_name}` is whole. Where each rank has "
        f"its own rows (data parallelism, FSDP), gather `{weight_name}` by {_gather(weight)}, or give "
        f"`{inputs_name}` and `{targets_name}` as DTensors"
    )


def first_and_by_rows(operands: Operands, names: Sequence[str], **others: Any) -> tuple[Any, bool]:
    """(a DTensor on the mesh of all, whether the weight is whole and the rows stay where they are).

    Raises NotImplementedError for a mesh of more than one dimension, of the operands or of ``others``.
    """
    for name, x in {**dict(zip(names, operands, strict=True)), **others}.items():
        if is_sharded(x) and cast(Any, x).device_mesh.ndim != 1:
            raise layout_error(name, "Replicate(), or Shard(0)", x)
    inputs, weight, _ = operands
    first = weight if is_sharded(weight) else inputs
    return first, is_sharded(inputs) and is_sharded(weight) and is_whole(weight)


def require_class_shards(operands: Operands, names: Sequence[str], **others: Any) -> None:
    """Raise unless the weight is a DTensor of ``Shard(0)``, and a bias and the ``others`` are DTensors."""
    (inputs_name, weight_name, bias_name), (_, weight, bias) = names, cast(Any, operands)
    if not is_sharded(weight) or weight.placements[0] != split(0):
        expected = f"Shard(0), or Replicate() beside `{inputs_name}` as a DTensor"
        raise layout_error(weight_name, expected, weight)
    for name, x in {bias_name: bias, **others}.items():
        if x is not None and not is_sharded(x):
            raise arguments.ArgumentError(
                f"`{name}` must be a DTensor with Shard(0), as `{weight_name}` is; got a {type(x).__name__}"
            )


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
        if is_partial(x) and name != first:
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


def layout_error(name: str, expected: str, x: Any) -> NotImplementedError:
    """The error for an ``x`` that is not a DTensor of the ``expected`` placements."""
    layout = (
        f"{x.placements} on {x.device_mesh.ndim} dimensions" if is_sharded(x) else f"a {type(x).__name__}"
    )
    advice = (
        f"bring it there by `.redistribute`, or gather it: {_gather(x)} where each rank has its own rows "
        "(data parallelism, FSDP)"
        if is_sharded(x)
        else "`DTensor.from_local` makes it one"
    )
    return NotImplementedError(
        f"`{name}` must be a DTensor on a mesh of one dimension, of {expected}; got {layout}: {advice}"
    )


def _gather(x: Any) -> str:
    """The expression, for an error, that gathers a weight whose gradient is averaged over ranks."""
    dims = x.device_mesh.ndim
    return f'`.full_tensor(grad_placements={"" if dims == 1 else f"{dims} * "}[Partial("avg")])`'


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
    return x.redistribute(x.device_mesh, [Replicate()])


def replicated(loss: Tensor, like: Any) -> Tensor:
    """A loss that is the same on every rank as a DTensor, on the mesh of ``like``."""
    return cast(Tensor, DTensor.from_local(loss, like.device_mesh, [Replicate()], run_check=False))
