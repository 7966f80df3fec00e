"""What the ranks of a group tell each other before a loss, so that none waits for one that gave up."""

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

MOST_TENSORS = 6  # that are compared: input, target, class weight, sample weight, denominator, bias
ERRORS = (LabelError, arguments.ArgumentError, NotImplementedError, TypeError, ValueError)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # as wide as floats of so many bytes


class Whose(NamedTuple):
    """The ranks that must agree, in words."""

    ranks: str
    advice: str = ""  # for who gave every rank rows of its own


class Own(NamedTuple, Generic[T]):
    """What a rank finds of its own arguments, and what of them must be the same on every rank."""

    found: T
    num_rows: int = 0
    facts: Mapping[str, Any] = {}  # options and what is not a tensor's values, by the argument's name
    tensors: Mapping[str, Tensor] = {}  # compared by checksums


class Told(NamedTuple):
    """By each rank, 8 bytes each; checksums of tensors follow."""

    size: int  # its number of classes
    num_rows: int = 0
    facts: int = 0  # their checksum
    refused: int = 1


def agreed(
    check: Callable[[], Own[T]],
    group: Any,
    sizes: Sequence[int] | None,
    size: int,
    device: torch.device,
    whose: Whose,
) -> tuple[T, Shard]:
    """(what ``check`` found, the shard of this rank); an error on one rank is an error on all.

    With ``sizes``, the number of classes of each rank, nothing is told, and an error is one of its own rank.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("this process must be one of `group`; it is not")
    own, told, sums, error = None, Told(size), [], None
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
        told = Told(size, own.num_rows, zlib.crc32(repr(facts).encode()), refused=0)
    except Exception as refusal:
        error = refusal
    if sizes is None:
        table = torch.zeros(world, len(told) + MOST_TENSORS, dtype=torch.int64, device=device)
        table[rank, : len(told)] = torch.tensor(told)
        if error is None and sums:
            table[rank, len(told) : len(told) + len(sums)] = torch.stack(sums)
        dist.all_reduce(table, group=group)
        ranks = table.tolist()
        sizes = [row[0] for row in ranks]
        if any(row[1:] != ranks[0][1:] or Told(*row[: len(told)]).refused for row in ranks):
            difference = _difference(ranks, own, error, group, device, whose)
            error = error or difference
    if error is not None:
        raise error
    assert own is not None
    return own.found, Shard(group, sum(sizes[:rank]), size, sum(sizes), max(sizes))


def refuse(error: Exception, group: Any, device: torch.device, whose: Whose) -> None:
    """Tell the other ranks of an ``error``, where they wait in `agreed`; raises it."""

    def check() -> Own[None]:
        raise error

    agreed(check, group, None, 0, device, whose)


def checksum(x: Tensor) -> Tensor:
    """int64 (...) of ``x (..., D)``: the same for the same bits, and for others hardly ever.

    Each number's bits times a number of its place, summed; what exceeds 64 bits wraps around. 3 ns a number
    on the CPU, where products of hidden states with a thousand classes take a hundred times as long.
    """
    x = x.detach()
    most = 1 << 18 if x.is_cpu else 1 << 22  # 2 MiB, which stay in the cache; 32 MiB, for few launches
    most_rows = max(1, most // max(1, x.shape[-1]))
    if x.ndim > 1 and x.shape[0] > most_rows:
        return torch.cat([checksum(part) for part in x.split(most_rows)])
    factors = torch.arange(1, x.shape[-1] + 1, device=x.device) * -0x61C8864680B583EB
    factors = ((factors ^ (factors >> 32)) * -0x40A7B892E31B1A47) | 1
    bits = x.contiguous().view(INTEGERS[x.itemsize]) if x.is_floating_point() else x.long()
    return (bits * factors).sum(-1)


def plain(**tensors: Any) -> dict[str, Tensor]:
    """The tensors among them that are no DTensors: whole, and thus the same on every rank."""
    return {name: x for name, x in tensors.items() if isinstance(x, Tensor) and not hasattr(x, "to_local")}


def kind_of(x: Any) -> Any:
    """What ranks must have in common of a tensor, whatever its values; other arguments are returned."""
    if not isinstance(x, Tensor):
        return x
    kind = str(x.dtype) if x.is_floating_point() else "not of floats"
    kind += f" {x.placements}" if hasattr(x, "placements") else ""
    return kind + (" and derived" if x.requires_grad and torch.is_grad_enabled() else "")


def facts_of(call: Call) -> dict[str, Any]:
    """What must be the same on every rank of a call, but for the values of tensors."""
    kinds = {name: kind_of(x) for name, x in call.by_name.items()}
    options = {"reduction": call.reduction, "validate": call.validate, **asdict(call.spec)}
    shape = tuple(call.targets.shape[:-1] if call.is_soft else call.targets.shape)
    return {**kinds, **options, "shape of the rows": shape}


def tensors_of_all(call: Call) -> dict[str, Tensor]:
    """The tensors of a call that must be the same on every rank; the rest is of this rank's classes."""
    of_classes = (call.names.targets, call.names.weight) if call.is_soft else (call.names.weight,)
    return plain(**{name: x for name, x in call.by_name.items() if name not in of_classes})


def row_checksums(call: Call, inputs: Tensor, shift: int) -> Tensor:
    """Checksums (R,) of the rows of ``inputs``, 0 where a row does not count."""
    _, places = valid_rows.shifted_rows(inputs.shape[:-1], shift, torch, inputs.device)
    sums = checksum(valid_rows.as_matrix(inputs))
    sums = sums if places is None else sums[places]
    whole = plain(labels=call.targets, sample_weight=call.sample_weight)
    if "labels" in whole and not call.is_soft:
        ignored = as_int64(valid_rows.flatten_rows(call.targets, shift)) == call.spec.ignore_index
        sums = torch.where(ignored, 0, sums)
    if "sample_weight" in whole:
        sums = torch.where(valid_rows.flatten_rows(call.sample_weight, shift) == 0, 0, sums)
    return sums


def _fingerprint(x: Tensor) -> Tensor:
    return checksum(checksum(valid_rows.as_matrix(x) if x.ndim > 1 else x.reshape(1, -1)))


def _difference(
    ranks: list[list[int]],
    own: Own[Any] | None,
    error: Exception | None,
    group: Any,
    device: torch.device,
    whose: Whose,
) -> Exception:
    """What to raise where a rank refused its arguments, or the ranks do not agree. All ranks call it."""
    kind = None if error is None else next((k for k in ERRORS if isinstance(error, k)), ValueError)
    facts = {} if own is None else own.facts
    said = _said((None if kind is None else ERRORS.index(kind), str(error)[:2000], facts), group, device)
    for rank, (refused, text, _) in enumerate(said):
        if refused is not None:
            return ERRORS[refused](f"rank {rank} of {whose.ranks} refused its arguments: {text}")
    num_rows = [Told(*row[: len(Told._fields)]).num_rows for row in ranks]
    if len(set(num_rows)) > 1:
        return ValueError(
            f"every rank of {whose.ranks} must give the same rows; got {num_rows} rows{whose.advice}"
        )
    assert own is not None
    for rank, (row, (_, _, theirs)) in enumerate(zip(ranks, said, strict=True)):
        first = said[0][2]
        for name in first | theirs:
            if first.get(name) != theirs.get(name):
                return ValueError(
                    f"every rank of {whose.ranks} must give the same options and the same optional "
                    f"arguments; `{name}` is {first.get(name)} on rank 0, {theirs.get(name)} on rank {rank}"
                )
        for column, name in enumerate(own.tensors, len(Told._fields)):
            if row[column] != ranks[0][column]:
                return ValueError(
                    f"`{name}` must be the same on every rank of {whose.ranks}; rank {rank} has other "
                    f"values than rank 0{whose.advice}"
                )
    raise AssertionError("the ranks agree")


def _said(words: Any, group: Any, device: torch.device) -> list[Any]:
    """The words of every rank. (`all_gather_object` fails under the transforms of torch.func.)"""
    own = json.dumps(words).encode()
    every = torch.zeros(dist.get_world_size(group), 1 << 14, dtype=torch.uint8, device=device)
    every[dist.get_rank(group), : len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    dist.all_reduce(every, group=group)
    return [json.loads(bytes(rank).rstrip(b"\0")) for rank in every.tolist()]
