"""Row statistics whose classes are split over the processes of a group: the public function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from xent.core.contract import RowStatistics
from xent.engine import row_columns, valid_rows
from xent.torch import arguments, modes
from xent.torch.distributed.handshake import (
    LocalCheck,
    agree,
    input_checksums,
    plain_tensors,
    tensor_kind,
)
from xent.torch.distributed.loss import GROUP, outside_graphs, size_and_device
from xent.torch.distributed.row_stats import ShardStatistics
from xent.torch.distributed.shards import Shard
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.chunked import Operands
from xent.torch.linear.products import Chunking
from xent.torch.linear.row_stats import Request
from xent.torch.targets import kernel_labels, require_targets
from xent.torch.temperature import split

Tensor = torch.Tensor


def vocab_parallel_linear_row_statistics(
    hidden: Tensor,
    weight_shard: Tensor,
    labels: Tensor | None = None,
    *,
    group: Any,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    sizes: Sequence[int] | None = None,
    want: Sequence[str] = row_columns.DEFAULT,
) -> RowStatistics:
    """`xent.torch.linear_row_statistics` of a layer whose classes are split over the ranks of ``group``.

    Every rank calls it with the same rows and options and gets the same bits. The logits exist by chunks of
    rows. For each chunk the ranks exchange 32 bytes a row for log-sum-exp and log-probability, which they
    always compute; 8 more for the entropy and for the mean, 16 for the argmax, and 64 beside it for
    ``log_sum_sq_probs``. The gradient of ``hidden`` takes one all-reduce of its size.

    Parameters
    ----------
    hidden : (..., D) tensor, the same on every rank
        Its gradient is complete on every rank.
    weight_shard : (K_s, D) tensor
        The rows of this rank's classes; K_s may differ between ranks, and be 0.
    labels : (...) tensor of integers, default None
        Among the classes of all ranks.
    group : ProcessGroup, or None for the default group
    bias : (K_s,) tensor, default None
        This rank's; all ranks have one or none.
    ignore_index, softcap, temperature, validate, shift, chunk_bytes, logits_dtype, want
        As for `xent.torch.linear_row_statistics`, the same on every rank.
    sizes : sequence of int, default None
        K_s of each rank, as for `vocab_parallel_linear_cross_entropy`.

    Returns
    -------
    RowStatistics
        As of `xent.torch.linear_row_statistics`; ``argmax`` is among the classes of all ranks.

    Raises
    ------
    ValueError
        As for `xent.torch.linear_row_statistics`; on all ranks if one refuses its arguments, or if their
        options, labels or hidden states differ.
    NotImplementedError
        For what would derive it twice.

    Examples
    --------
    The policy of a head that is split over the default group:

    >>> def log_probs_and_entropies(hidden, head, tokens):
    ...     want = ("log_prob", "entropy")
    ...     stats = vocab_parallel_linear_row_statistics(
    ...         hidden, head.weight, tokens, group=None, shift=1, want=want
    ...     )
    ...     return stats.log_prob, stats.entropy
    """

    def check() -> LocalCheck[tuple[Operands, Request]]:
        wanted = row_columns.require_want(want, labels)
        number, by_row = split(temperature)
        spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
        names = ("hidden", "weight_shard", "bias")
        operands = linear_loss.checked(hidden, weight_shard, bias, names)
        arguments.require_local(hidden=hidden, weight_shard=weight_shard, bias=bias)
        arguments.require_local(labels=labels, temperature=by_row)
        require_no_transforms()
        chunking = Chunking(chunk_bytes, logits_dtype)
        request = Request(labels, spec, wanted, shift, chunking, validate, by_row)
        request = request.checked(operands.inputs, "hidden")
        if by_row is not None:
            request.row_temperature(by_row)
        kinds = dict(zip(names, map(tensor_kind, operands), strict=True))
        tensors = {}
        if sizes is None:
            sums = input_checksums(hidden, shift, labels, ignore_index)
            tensors = {**plain_tensors(labels=labels, temperature=by_row), "hidden": sums}
        num_rows = math.prod(hidden.shape[:-1])
        return LocalCheck((operands, request), num_rows, {**kinds, **request_facts(request)}, tensors)

    (operands, request), shard = agree(check, group, sizes, *size_and_device(weight_shard, 0), GROUP)
    return outside_graphs(row_statistics)(operands, request, shard)


def row_statistics(operands: Operands, request: Request, shard: Shard) -> RowStatistics:
    """The statistics of ``hidden (..., D)`` and a shard's weight and bias for a checked request."""
    hidden, (labels, spec, wanted, shift, chunking, validate, _) = operands.inputs, request
    _, row_index = valid_rows.shifted_rows(hidden.shape[:-1], shift, torch, hidden.device)
    y: Tensor | None = None
    if labels is not None:
        require_values(labels, shard.num_classes, spec.ignore_index, validate)
        y = kernel_labels(valid_rows.flatten_rows(labels, shift), shard.num_classes, spec.ignore_index)
        row_index, (y,) = valid_rows.select_rows(y < 0, None, row_index, (y,), torch)
    names = row_columns.column_names(wanted)
    flat, t = request.tempered_operands(operands._replace(inputs=valid_rows.as_matrix(hidden)))
    t = t if t is None or row_index is None else t[row_index]
    statistics = ShardStatistics(shard, y, row_index, spec, names, chunking, t)
    columns = statistics.values(flat)
    return request.collect(columns, hidden, shard.num_classes)


def require_values(labels: Tensor, num_classes: int, ignore_index: int, validate: bool | None) -> None:
    """Raise for labels out of range if ``validate`` asks for it; None does on the CPU."""
    if labels.is_cpu if validate is None else validate:
        require_targets(labels, num_classes, ignore_index, "labels")


def request_facts(request: Request) -> dict[str, Any]:
    """The properties of a request, except values of tensors, that all ranks must share."""
    labels, temperature = request.labels, request.temperature
    rows = None if labels is None else tuple(labels.shape)
    options = {"want": request.wanted, "shift": request.shift, "validate": request.validate}
    options |= {**asdict(request.spec), **request.chunking._asdict()}
    if temperature is not None:
        options["temperature"] = tensor_kind(temperature)
    return {"labels": tensor_kind(labels), "shape of `labels`": rows, **options}


def require_no_transforms() -> None:
    """Raise under the transforms of torch.func, in which ranks cannot talk."""
    if modes.is_transformed():
        raise NotImplementedError(
            "row statistics whose classes are split over processes have no transforms of torch.func"
        )
