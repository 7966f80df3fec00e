"""The front door of every loss: DTensors take one way, tensors that this process has whole the other."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch

from xent.core.spec import LossSpec
from xent.torch import arguments, dense, linear_loss
from xent.torch.projected import Operands

Tensor = torch.Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    names: arguments.Names = arguments.TORCH,
) -> Tensor:
    """The loss of ``logits (..., K)``, whole or split over processes."""
    call = (logits, targets, weight, sample_weight, spec, reduction, denominator, validate, names)
    if _may_be_sharded(logits):
        from xent.torch import dtensors

        if dtensors.is_sharded(logits):
            return dtensors.cross_entropy(*call)
    return dense.of_rows(*call)


def linear_cross_entropy(
    operands: Operands,
    targets: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    spec: LossSpec,
    reduction: str,
    denominator: Any,
    validate: bool | None,
    shift: int,
    chunk_bytes: int | None,
    names: arguments.Names = arguments.TORCH,
) -> Tensor:
    """The loss of the operands' rows, whole or split over processes."""
    options = (class_weight, sample_weight, spec, reduction, denominator, validate, shift, chunk_bytes, names)
    if _may_be_sharded(*operands[:2]):
        from xent.torch import dtensors

        if dtensors.is_sharded(*operands[:2]):
            return dtensors.linear_cross_entropy(operands, targets, *options)
    return linear_loss.of_rows(operands, targets, *options)


def refuse(error: Exception, *tensors: Any) -> NoReturn:
    """Raise ``error``, on every rank of the mesh of a DTensor among ``tensors``: none waits for this one."""
    if "torch.distributed.tensor" in sys.modules:
        from xent.torch import dtensors

        dtensors.refuse(error, *tensors)
    raise error


def _may_be_sharded(*tensors: Tensor) -> bool:
    """Whether a tensor is of a class of its own, and DTensors are loaded."""
    return any(type(x) not in arguments.PLAIN for x in tensors) and "torch.distributed.tensor" in sys.modules
