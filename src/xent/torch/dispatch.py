"""Dispatch of every loss: DTensors go to `distributed`, other tensors to `dense` or `linear`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch

from xent.torch import dense, modes
from xent.torch.arguments import Call
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.chunked import Operands
from xent.torch.linear.rows import Chunks

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, call: Call) -> Tensor:
    """The loss of ``logits (..., K)``, whole or split over processes."""
    if _may_be_sharded(logits):
        from xent.torch.distributed import dtensors

        if dtensors.is_sharded(logits):
            return dtensors.cross_entropy(logits, call)
    return dense.cross_entropy(logits, call)


def linear_cross_entropy(operands: Operands, call: Call, chunks: Chunks) -> Tensor:
    """The loss of the operands' rows, whole or split over processes."""
    if _may_be_sharded(*operands[:2]):
        from xent.torch.distributed import dtensors

        if dtensors.is_sharded(*operands[:2]):
            return dtensors.linear_cross_entropy(operands, call, chunks)
    return linear_loss.linear_cross_entropy(operands, call, chunks)


def refuse(error: Exception, *tensors: Any) -> NoReturn:
    """Raise ``error`` on all ranks of the mesh of a DTensor among ``tensors``, so that none waits."""
    if "torch.distributed.tensor" in sys.modules:
        from xent.torch.distributed import dtensors

        dtensors.refuse(error, *tensors)
    raise error


def _may_be_sharded(*tensors: Tensor) -> bool:
    """Whether a tensor is of a subclass and the module of DTensors is imported."""
    for x in tensors:
        if type(x) not in modes.PLAIN:
            return "torch.distributed.tensor" in sys.modules
    return False
