"""The exchange of all ranks of a group before a loss: all of them raise if one raises or they disagree."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from xent.engine import valid_rows
from xent.torch import arguments
from xent.torch.arguments import Call
from xent.torch.distributed.shards import Shard
from xent.torch.targets import LabelError, as_int64

Tensor = torch.Tensor
T = TypeVar("T")

MOST_TENSORS = 7  # compared at most: of a top-k divergence
ERRORS = (LabelError, arguments.ArgumentError, NotImplementedError, TypeError, ValueError)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a float


class RankGroup(NamedTuple):
    """The ranks that must agree, in the words of an error."""

    ranks: str
    advice: str = ""  # for a caller who gave each rank rows of its own


class LocalCheck(NamedTuple, Generic[T]):
    """The checked arguments of this rank, and those of their properties that all ranks must share."""

    value: T
    num_rows: int = 0
    facts: Mapping[str, Any] = {}  # options, and dtypes and shapes of tensors, by the argument's name
    tensors: Mapping[str, Tensor] = {}  # compared by checksums


class RankRecord(NamedTuple):
    """The numbers that each rank sends, before the checksums of its tensors."""

    size: int  # the rank's number of classes
    num_rows: int = 0
    facts: int = 0  # a checksum of them
    refused: int = 1


def agree(
    check: Callable[[], LocalCheck[T]],
    group: Any,
    sizes: Sequence[int] | None,
    size: int,
    device: torch.device,
    rank_group: RankGroup,
) -> tuple[T, Shard]:
    """(the value of ``check``, the shard of this rank); an error on one rank is raised on all.

    With ``sizes``, the number of classes of each rank, nothing is sent, and an error is raised on one rank.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("this process must be one of `group`; it is not")
    own, record, sums, error = None, RankRecord(size), [], None
    try:
        own = check()
        if sizes is None:
            sums = [_fingerprint(x) for x in own.tensors.values()]
        elif len(sizes) != world or sizes[rank] != size:
            raise ValueError(
                f"`sizes` must be the number of classes of each of {world} ranks, {size} at rank {rank}; "
                f"got {list(sizes)}"
            )
        facts = {name: repr(value)[:200] for name, value in own.facts.items()}
        own = own._replace(facts=facts)
        record = RankRecord(size, own.num_rows, zlib.crc32(repr(facts).encode()), refused=0)
    except Exception as refusal:
        error = refusal
    if sizes is None:
        table = torch.zeros(world, len(record) + MOST_TENSORS, dtype=torch.int64, device=device)
        table[rank, : len(record)] = torch.tensor(record)
        if error is None and sums:
            table[rank, len(record) : len(record) + len(sums)] = torch.stack(sums)
        dist.all_reduce(table, group=group)
        ranks = table.tolist()
        sizes = [row[0] for row in ranks]
        if any(row[1:] != ranks[0][1:] or RankRecord(*row[: len(record)]).refused for row in ranks):
            difference = _difference(ranks, own, error, group, device, rank_group)
            error = error or difference
    if error is not None:
        raise error
    assert own is not None
    return own.value, Shard(group, sum(sizes[:rank]), size, sum(sizes), max(sizes))


def refuse(error: Exception, group: Any, device: torch.device, rank_group: RankGroup) -> None:
    """Raise ``error`` here, and on the other ranks, which wait in `agree`."""

    def check() -> LocalCheck[None]:
        raise error

    agree(check, group, None, 0, device, rank_group)


def checksum(x: Tensor) -> Tensor:
    """int64 checksums (...) of ``x (..., D)``: equal for equal bits, and almost surely unequal for others.

    The sum, modulo 2⁶⁴, of each element's bits times a factor of its position. It takes 3 ns an element on
    the CPU; the product of a hidden state with a thousand classes takes a hundred times as long.
    """
    x = x.detach()
    most = 1 << 18 if x.is_cpu else 1 << 22  # 2 MiB stay in the cache; 32 MiB take few launches
    most_rows = max(1, most // max(1, x.shape[-1]))
    if x.ndim > 1 and x.shape[0] > most_rows:
        return torch.cat([checksum(part) for part in x.split(most_rows)])
    factors = torch.arange(1, x.shape[-1] + 1, device=x.device) * -0x61C8864680B583EB
    factors = ((factors ^ (factors >> 32)) * -0x40A7B892E31B1A47) | 1
    bits = x.contiguous().view(INTEGERS[x.itemsize]) if x.is_floating_point() else x.long()
    return (bits * factors).sum(-1)


def plain_tensors(**tensors: Any) -> dict[str, Tensor]:
    """The tensors that are not DTensors: they are whole, and must be the same on every rank."""
    return {name: x for name, x in tensors.items() if isinstance(x, Tensor) and not hasattr(x, "to_local")}


def tensor_kind(x: Any) -> Any:
    """The properties of a tensor that all ranks must share, as text; any other argument unchanged."""
    if not isinstance(x, Tensor):
        return x
    kind = str(x.dtype) if x.is_floating_point() else "not of floats"
    kind += f" {x.placements}" if hasattr(x, "placements") else ""
    return kind + (" and derived" if x.requires_grad and torch.is_grad_enabled() else "")


def call_facts(call: Call) -> dict[str, Any]:
    """The properties of a call, except values of tensors, that all ranks must share."""
    kinds = {name: tensor_kind(x) for name, x in call.by_name.items()}
    options = {"reduction": call.reduction, "validate": call.validate, **asdict(call.spec)}
    shape = tuple(call.targets.shape[:-1] if call.is_soft else call.targets.shape)
    return {**kinds, **options, "shape of the rows": shape}


def shared_tensors(call: Call) -> dict[str, Tensor]:
    """The tensors of a call that all ranks must share; the others belong to this rank's classes."""
    class_arguments = (call.names.targets, call.names.weight) if call.is_soft else (call.names.weight,)
    return plain_tensors(**{name: x for name, x in call.by_name.items() if name not in class_arguments})


def row_checksums(call: Call, inputs: Tensor, shifts: Sequence[int]) -> Tensor:
    """Checksums of the rows of ``inputs``, (R,) for each shift, 0 for rows that do not count for it."""
    return torch.cat([_counted_checksums(call, inputs, shift) for shift in shifts])


def _counted_checksums(call: Call, inputs: Tensor, shift: int) -> Tensor:
    whole = plain_tensors(labels=call.targets, sample_weight=call.sample_weight)
    labels = None if call.is_soft else whole.get("labels")
    sums = input_checksums(inputs, shift, labels, call.spec.ignore_index)
    if "sample_weight" in whole:
        sums = torch.where(valid_rows.flatten_rows(call.sample_weight, shift) == 0, 0, sums)
    return sums


def input_checksums(inputs: Tensor, shift: int, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Checksums (R,) of the rows of ``inputs``, 0 for those that ``labels`` ignore."""
    _, row_index = valid_rows.shifted_rows(inputs.shape[:-1], shift, torch, inputs.device)
    sums = checksum(valid_rows.as_matrix(inputs))
    sums = sums if row_index is None else sums[row_index]
    if labels is None:
        return sums
    return torch.where(as_int64(valid_rows.flatten_rows(labels, shift)) == ignore_index, 0, sums)


def _fingerprint(x: Tensor) -> Tensor:
    return checksum(checksum(valid_rows.as_matrix(x) if x.ndim > 1 else x.reshape(1, -1)))


def _difference(
    ranks: list[list[int]],
    own: LocalCheck[Any] | None,
    error: Exception | None,
    group: Any,
    device: torch.device,
    rank_group: RankGroup,
) -> Exception:
    """The error to raise if a rank raised or the ranks disagree. All ranks call this function together."""
    kind = None if error is None else next((k for k in ERRORS if isinstance(error, k)), ValueError)
    facts = {} if own is None else own.facts
    messages = _gather_messages(
        (None if kind is None else ERRORS.index(kind), str(error)[:2000], facts), group, device
    )
    for rank, (refused, text, _) in enumerate(messages):
        if refused is not None:
            return ERRORS[refused](f"rank {rank} of {rank_group.ranks} refused its arguments: {text}")
    num_rows = [RankRecord(*row[: len(RankRecord._fields)]).num_rows for row in ranks]
    if len(set(num_rows)) > 1:
        return ValueError(
            f"every rank of {rank_group.ranks} must give the same rows; got {num_rows} rows"
            f"{rank_group.advice}"
        )
    assert own is not None
    for rank, (row, (_, _, theirs)) in enumerate(zip(ranks, messages, strict=True)):
        first = messages[0][2]
        for name in first | theirs:
            if first.get(name) != theirs.get(name):
                return ValueError(
                    f"every rank of {rank_group.ranks} must give the same options and the same optional "
                    f"arguments; `{name}` is {first.get(name)} on rank 0, {theirs.get(name)} on rank {rank}"
                )
        for column, name in enumerate(own.tensors, len(RankRecord._fields)):
            if row[column] != ranks[0][column]:
                return ValueError(
                    f"`{name}` must be the same on every rank of {rank_group.ranks}; rank {rank} has other "
                    f"values than rank 0{rank_group.advice}"
                )
    raise AssertionError("the ranks agree")


def _gather_messages(message: Any, group: Any, device: torch.device) -> list[Any]:
    """The messages of all ranks. (`all_gather_object` fails under the transforms of torch.func.)"""
    own = json.dumps(message).encode()
    every = torch.zeros(dist.get_world_size(group), 1 << 14, dtype=torch.uint8, device=device)
    every[dist.get_rank(group), : len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    dist.all_reduce(every, group=group)
    return [json.loads(bytes(rank).rstrip(b"\0")) for rank in every.tolist()]
