"""A plain call on a GPU: one autograd node, one read of the logits if (1) is linear; no host waits."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function, forward_ad

from xent.core import target as targeting
from xent.engine.batch_loss import Problem
from xent.torch import arguments, bridge, composite
from xent.torch.eager import CrossEntropy

Tensor = torch.Tensor


def is_plain(logits: Tensor, *others: Tensor | None) -> bool:
    """As `eager.is_plain`, of tensors whose kernels take tensors."""
    return (
        not arguments.is_graphed()
        and bridge.KERNELS.get(logits.device.type) == "triton"
        and type(logits) in arguments.PLAIN
        and not arguments.is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        and all(x is None or (type(x) in arguments.PLAIN and not x.requires_grad) for x in others)
    )


def loss(function: CrossEntropy, logits: Tensor, *others: Tensor | None) -> Tensor:
    """The loss of tensors that are all plain."""
    if logits.requires_grad and torch.is_grad_enabled():
        return _Loss.apply(logits, function, others)
    problem, scale = _problem(function, logits, *others)
    return _reduced(problem, problem.row_losses(problem.stats()), scale)


def _problem(
    function: CrossEntropy, logits: Tensor, targets: Any, weight: Any, sample_weight: Any
) -> tuple[Problem, Any]:
    """The problem but for its divisor, which is on the device: and 1/D beside it."""
    measure = composite.measure(logits, targets, weight, sample_weight, function.spec)
    divisor = targeting.divisor(measure.total, measure.rows, function.reduction, function.denominator)
    scale = composite.inverse(divisor)
    z: Any = logits.detach()
    kernels: Any = bridge
    return Problem(z, measure, function.spec, function.reduction, 1.0, kernels, torch), scale


def _reduced(problem: Problem, losses: Any, scale: Any) -> Tensor:
    if problem.reduction != "none":
        losses = losses.sum() * scale
    logits: Any = problem.logits
    reduced: Tensor = losses.to(bridge.loss_dtype(logits))
    return reduced


class _Loss(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, function: CrossEntropy, others: tuple[Tensor | None, ...]
    ) -> Tensor:
        ctx.save_for_backward(logits, *others)
        ctx.function = function
        ctx.gradient = ctx.stats = None
        problem, scale = _problem(function, logits, *others)
        # What an upstream gradient will multiply must not have lost its small entries, as in float16.
        if function.spec.is_linear and function.reduction != "none" and logits.dtype != torch.float16:
            out: Any = None
            stats, ctx.gradient = problem.stats_and_grad(scale, out)
        else:
            stats = ctx.stats = problem.stats_for_grad()
        return _reduced(problem, problem.row_losses(stats), scale)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        tensors = ctx.saved_tensors  # raises if they were written since
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dloss):
            further = torch.is_grad_enabled()
            with torch.enable_grad():
                again = ctx.function.differentiable(*tensors)
            return *torch.autograd.grad(again, tensors[0], dloss, create_graph=further), None, None
        gradient, ctx.gradient = ctx.gradient, None  # given away once; the caller may add to it
        if gradient is not None:
            return bridge.rescale(gradient, dloss), None, None
        problem, scale = _problem(ctx.function, *tensors)
        out: Any = None
        return problem.grad(ctx.stats, dloss.double() * scale, out), None, None
