"""The binary loss of CPU tensors by the NumPy engine, and as operators for compiled graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from xent.core.spec import LossSpec
from xent.engine import binary
from xent.torch import devices
from xent.torch.operator_numbers import as_floats, spec_numbers

Tensor = torch.Tensor


def problem(tensors: tuple[Any, ...], spec: LossSpec, reduction: str, divisor: float) -> Any:
    """`engine.binary.problem` of the tensors (logits, targets, weight, pos_weight)."""
    logits, q, weight, pos_weight = tensors
    dtype = devices.loss_dtype(logits)
    factors = (x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in (pos_weight, weight))
    pi, omega = (None if x is None else devices.view(x) for x in factors)
    if logits.dtype == torch.bfloat16 and not binary.are_representable(np.float32, pi, omega):
        logits = logits.to(dtype)  # float64 rows cannot be made of bits
    if q.dtype not in (torch.bool, torch.uint8, logits.dtype):
        q = q.to(dtype) if q.is_floating_point() else q.long()
    arrays = (devices.view(logits), devices.view(q), pi, omega)
    return binary.problem(binary.BinaryCase(*arrays, spec, reduction, divisor))


def losses(tensors: tuple[Any, ...], spec: LossSpec, each: bool) -> Tensor:
    """The losses (...) if ``each``, else their float64 sum; derivable once, in the logits."""
    return binary_losses(*tensors, *spec_numbers(spec, tensors[0].device), each)


@torch.library.custom_op("xent::binary_losses", mutates_args=())
def binary_losses(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: Sequence[float],
    dynamic: Tensor | None,
    each: bool,
) -> Tensor:
    """The operator of `losses`; `spec_numbers` makes (``options``, ``dynamic``)."""
    spec = _spec(options, dynamic)
    binary_loss = problem((logits, targets, weight, pos_weight), spec, "none" if each else "sum", 1.0)
    loss = torch.from_numpy(np.asarray(binary_loss.loss()))
    return loss if each else loss.double()


@binary_losses.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    shape, dtype = (logits.shape, devices.loss_dtype(logits)) if arguments[-1] else ((), torch.float64)
    return logits.new_empty(shape, dtype=dtype)


@torch.library.custom_op("xent::binary_grad", mutates_args=())
def binary_grad(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: Sequence[float],
    dynamic: Tensor | None,
    upstream: Tensor,
) -> Tensor:
    """The gradient of `losses` times ``upstream``, (...) or a scalar."""
    spec = _spec(options, dynamic)
    binary_loss = problem((logits, targets, weight, pos_weight), spec, "sum", 1.0)
    out, gradient = devices.empty_like(binary_loss.logits)
    binary_loss.grad(None, devices.view(upstream) if upstream.ndim else upstream.item(), out)
    return gradient


@binary_grad.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


def _spec(options: Sequence[float], dynamic: Tensor | None) -> LossSpec:
    return LossSpec.from_numbers(as_floats(options, dynamic))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.options, dynamic, _ = inputs
    ctx.save_for_backward(*tensors, dynamic)


def _backward(ctx: Any, upstream: Tensor) -> Any:
    *tensors, dynamic = ctx.saved_tensors
    gradient = binary_grad(*tensors, ctx.options, dynamic, upstream)
    return gradient, *([None] * 6)


binary_losses.register_autograd(_backward, setup_context=_setup_context)
