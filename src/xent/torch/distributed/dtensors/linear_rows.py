"""The linear loss of DTensors whose rows are sharded, or whole on each rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from xent.torch.arguments import Call
from xent.torch.distributed.dtensors.rows import DistributedRows
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.chunked import Operands
from xent.torch.linear.rows import Chunks
from xent.torch.linear.values import LossValues
from xent.torch.targets import plain_weight_and_rows, weight_and_rows

Tensor = torch.Tensor


def cross_entropy(rows: DistributedRows, operands: Operands, call: Call, chunks: Chunks) -> Any:
    """The loss of this rank's inputs, or the values that are wanted, as DTensors; ``chunks`` are checked."""
    local, num_classes = rows.local_call(call), operands.weight.shape[0]
    if not rows.is_all_sum(call.reduction):
        result = linear_loss.linear_cross_entropy(operands, local, chunks)
        if not isinstance(result, LossValues):
            return rows.own_dtensor(result, call.reduction)
        return LossValues(*(None if x is None else rows.own_dtensor(x, call.reduction) for x in result))
    device = operands.inputs.device
    scale_of: Any = partial(rows.scale, call.reduction, call.denominator)
    scales = [
        scale_of(partial(weight_and_rows, _from_shift(local, s), num_classes), device) for s in chunks.shifts
    ]
    scale = scales[0]
    if are_several := isinstance(chunks.shift, tuple):  # their means are taken before their sum
        if any(isinstance(s, Tensor) and s.requires_grad for s in scales):
            raise NotImplementedError(
                "several of `shift` with rows in shards are not derivable in weights that a mean divides by"
            )
        weights = zip(chunks.shift_weight, scales, strict=True)
        chunks, scale = chunks._replace(shift_weight=tuple(w * float(s) for w, s in weights)), 1.0
    result = linear_loss.linear_cross_entropy(operands, local, chunks)
    if not isinstance(result, LossValues):
        return rows.replicated_sum(result, scale)
    by_name: dict[str, Sequence[Any]] = {"z_loss": scales, "by_shift": scales}
    if result.plain is not None or result.accuracy is not None:
        totals = [plain_weight_and_rows(local, num_classes, s) for s in chunks.shifts]
        by_name["plain"] = [scale_of(partial(tuple, t), device) for t in totals]
        by_name["accuracy"] = [scale_of(partial(tuple, (n, n)), device) for _, n in totals]
    results = {"loss": None if result.loss is None else rows.replicated_sum(result.loss, scale)}
    for name, own_scales in by_name.items():
        if (value := getattr(result, name)) is not None:
            each = torch.stack([torch.as_tensor(s, dtype=torch.float64, device=device) for s in own_scales])
            results[name] = rows.replicated_sum(value, (each if are_several else each[0]).detach())
    return LossValues(**results)


def _from_shift(call: Call, shift: int) -> Call:
    """The call with the targets and weights from ``shift`` on."""
    targets, weight = call.targets, call.sample_weight
    return call._replace(
        targets=targets[..., shift:, :] if call.is_soft else targets[..., shift:],
        sample_weight=None if weight is None else weight[..., shift:],
    )
