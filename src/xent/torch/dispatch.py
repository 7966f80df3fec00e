"""Dispatch of losses and statistics: DTensors go to `distributed`, other tensors to `dense` or `linear`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch

from xent.core.contract import RowStatistics
from xent.torch import dense, modes
from xent.torch.arguments import Call
from xent.torch.linear import loss as linear_loss
from xent.torch.linear import row_stats
from xent.torch.linear.chunked import Operands
from xent.torch.linear.distillation import divergence, topk
from xent.torch.linear.distillation.call import Distillation
from xent.torch.linear.distillation.topk import Teacher
from xent.torch.linear.row_stats import Request
from xent.torch.linear.rows import Chunks

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, call: Call) -> Tensor:
    """The loss of ``logits (..., K)``, whole or split over processes."""
    if _is_sharded(logits):
        from xent.torch.distributed.dtensors import loss

        return loss.cross_entropy(logits, call)
    return dense.cross_entropy(logits, call)


def linear_cross_entropy(operands: Operands, call: Call, chunks: Chunks) -> Any:
    """The loss of the operands' rows, or the values that are wanted, whole or split over processes."""
    if _is_sharded(*operands[:2]):
        from xent.torch.distributed.dtensors import loss

        return loss.linear_cross_entropy(operands, call, chunks)
    return linear_loss.linear_cross_entropy(operands, call, chunks)


def linear_row_statistics(operands: Operands, request: Request) -> RowStatistics:
    """The row statistics of a linear layer, whole or split over processes."""
    if _is_sharded(*operands[:2]):
        from xent.torch.distributed.dtensors import statistics

        return statistics.linear_row_statistics(operands, request)
    return row_stats.linear_row_statistics(operands, request)


def linear_kl_divergence(call: Distillation, teacher: Operands) -> Tensor:
    """The divergence of the student's rows from a teacher with logits, whole or split over processes."""
    if _is_sharded(*call.student[:2]):
        from xent.torch.distributed.dtensors import distillation

        return distillation.linear_kl_divergence(call, teacher)
    return divergence.linear_kl_divergence(call, teacher)


def linear_topk_kl_divergence(call: Distillation, teacher: Teacher) -> Tensor:
    """The divergence of the student's rows from a teacher's entries, whole or split over processes."""
    if _is_sharded(*call.student[:2]):
        from xent.torch.distributed.dtensors import distillation

        return distillation.linear_topk_kl_divergence(call, teacher)
    return topk.linear_topk_kl_divergence(call, teacher)


def refuse(error: Exception, *tensors: Any) -> NoReturn:
    """Raise ``error`` on all ranks of the mesh of a DTensor among ``tensors``, so that none waits."""
    if "torch.distributed.tensor" in sys.modules:
        from xent.torch.distributed.dtensors import layouts

        layouts.refuse(error, *tensors)
    raise error


def _is_sharded(*tensors: Tensor) -> bool:
    """Whether a tensor is a DTensor. Tensors of no subclass import nothing."""
    for x in tensors:
        if type(x) not in modes.PLAIN:
            break
    else:
        return False
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from xent.torch.distributed.dtensors import layouts

    return layouts.is_sharded(*tensors)
