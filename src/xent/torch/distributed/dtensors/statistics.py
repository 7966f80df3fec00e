"""Row statistics of DTensors over a mesh of one dimension: classes in shards, or rows."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from xent.core.contract import RowStatistics
from xent.torch.distributed import statistics
from xent.torch.distributed.dtensors import layouts
from xent.torch.distributed.dtensors.layouts import MESH, as_whole, is_sharded
from xent.torch.distributed.dtensors.rows import DistributedRows
from xent.torch.distributed.handshake import LocalCheck, input_checksums, plain_tensors, tensor_kind
from xent.torch.linear import row_stats
from xent.torch.linear.chunked import Operands
from xent.torch.linear.row_stats import OPERANDS, Request

Tensor = torch.Tensor


def linear_row_statistics(operands: Operands, request: Request) -> RowStatistics:
    """The statistics as DTensors, with a DTensor for a weight: one of ``Shard(0)``, or a replicated one.

    With a weight of ``Shard(0)`` inputs of any placement are gathered. With a replicated weight the rows
    stay where they are.
    """
    inputs, weight, bias = cast(Any, operands)
    first, by_rows = layouts.first_and_by_rows(operands, OPERANDS)

    def check() -> LocalCheck[Request]:
        own, labels, temperature = request.checked(inputs), cast(Any, request.labels), request.temperature
        named = dict(zip(OPERANDS, operands, strict=True))
        layouts.require_layouts(first.device_mesh, **named, labels=labels, temperature=temperature)
        facts = {**{n: tensor_kind(x) for n, x in named.items()}, **statistics.request_facts(own)}
        tensors = plain_tensors(labels=labels, bias=bias, temperature=temperature)
        if by_rows:
            DistributedRows(inputs, own.shift)
        else:
            layouts.require_class_shards(operands, OPERANDS)
            statistics.require_no_transforms()
            if not is_sharded(inputs):
                whole_labels, ignore_index = tensors.get("labels"), own.spec.ignore_index
                tensors["inputs"] = input_checksums(inputs, own.shift, whole_labels, ignore_index)
        if labels is not None:
            part = labels.to_local() if is_sharded(labels) else labels
            statistics.require_values(part, weight.shape[0], own.spec.ignore_index, own.validate)
        _require_temperature(own)
        return LocalCheck(own, math.prod(inputs.shape[:-1]), facts, tensors)

    mesh = MESH if by_rows else layouts.mesh_of_classes(first, *OPERANDS[:2], "labels")
    request, shard = layouts.agree_on(check, first, 0, mesh)
    request = request._replace(validate=False)
    if not by_rows:
        columns = layouts.class_columns(bias, weight, shard, 0)
        local = Operands(as_whole(inputs), weight.to_local(), columns)
        whole_rows = request._replace(
            labels=as_whole(request.labels), temperature=as_whole(request.temperature)
        )
        stats = statistics.row_statistics(local, whole_rows, shard)
        return RowStatistics(*(None if s is None else layouts.replicated(s, weight) for s in stats))
    if not DistributedRows.is_row_layout(inputs):
        inputs = layouts.gathered(inputs)
    rows = DistributedRows(inputs, request.shift)
    local = Operands(inputs.to_local(), rows.replicated(weight), rows.replicated(bias))
    own_rows = request._replace(
        labels=rows.local_rows(request.labels), temperature=rows.local_rows(request.temperature)
    )
    stats = row_stats.linear_row_statistics(local, own_rows)
    return RowStatistics(*(None if s is None else rows.by_row(s) for s in stats))


def _require_temperature(request: Request) -> None:
    """Raise for temperatures of this rank's rows out of range."""
    labels, temperature = (
        cast(Any, x).to_local() if is_sharded(x) else x for x in (request.labels, request.temperature)
    )
    # Rows of different placements are not compared: a value out of range gives NaN.
    if temperature is not None and (labels is None or labels.shape == temperature.shape):
        request._replace(labels=labels).row_temperature(temperature)
