"""What the ranks of a group tell each other before a loss, so that none waits for one that gave up."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from xent.torch.sharded import Shard

T = TypeVar("T")


class Told(NamedTuple):
    """By each rank, of its arguments; 8 bytes each."""

    size: int  # its number of classes
    num_rows: int = 0
    form: int = 0  # what decides which all-reduces follow, as a checksum
    lowest: int = 0  # of the labels that are checked
    highest: int = -1
    refused: int = 1


def form_of(*facts: Any) -> int:
    """A number that is the same for the same ``facts`` in every process."""
    return zlib.crc32(repr(facts).encode())


def agreed(
    check: Callable[[], tuple[Told, T]],
    group: Any,
    sizes: Sequence[int] | None,
    size: int,
    device: torch.device,
) -> tuple[T, Shard]:
    """(what ``check`` found, the shard of this rank); an error on one rank is an error on all.

    With ``sizes``, the number of classes of each rank, nothing is told, and an error is one of its own rank.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("this process must be one of `group`; it is not")
    own, found, error = Told(size), None, None
    try:
        told, found = check()
        own = told._replace(refused=0)
        if sizes is not None and (len(sizes) != world or sizes[rank] != size):
            raise ValueError(
                f"`sizes` must be the number of classes of each of {world} ranks, {size} at rank {rank}; "
                f"got {list(sizes)}"
            )
    except Exception as refusal:
        error = refusal
    if sizes is None:
        table = torch.zeros(world, len(own), dtype=torch.int64, device=device)
        table[rank] = torch.tensor(own)
        dist.all_reduce(table, group=group)
        ranks = [Told(*row) for row in table.tolist()]
        sizes = [told.size for told in ranks]
        if error is None:
            _compare(ranks, rank)
    if error is not None:
        raise error
    assert found is not None
    return found, Shard(group, sum(sizes[:rank]), size, sum(sizes), max(sizes))


def _compare(ranks: list[Told], own: int) -> None:
    """Raise for what another rank will raise for, or what would let ranks wait for each other."""
    num_classes = sum(told.size for told in ranks)
    if refused := [rank for rank, told in enumerate(ranks) if told.refused]:
        raise ValueError(f"rank {refused[0]} of `group` refused its arguments; its own error says why")
    if len({told.num_rows for told in ranks}) > 1:
        raise ValueError(
            "`labels` must have the same rows on every rank of `group`; got "
            f"{[told.num_rows for told in ranks]} rows"
        )
    for rank, told in enumerate(ranks):
        if told.form != ranks[0].form:
            raise ValueError(
                "every rank of `group` must give the same options and the same optional arguments; "
                f"rank {rank} and rank 0 do not"
            )
    bad = [rank for rank, told in enumerate(ranks) if told.lowest < 0 or told.highest >= num_classes]
    if bad and own not in bad:  # a rank of these names the label
        raise ValueError(f"rank {bad[0]} of `group` has a label that is no class; its own error says which")
