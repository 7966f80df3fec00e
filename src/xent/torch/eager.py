"""A plain call on the CPU in short: one autograd node, loss and gradient from one read of the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd import Function, forward_ad

from xent.problem import Problem
from xent.torch import arguments, bridge

Tensor = torch.Tensor


def is_plain(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether nothing watches this call but reverse-mode autograd, and that only for the logits."""
    return (
        arguments.is_readable(logits)
        and forward_ad._current_level < 0
        and all(x is None or (type(x) in arguments.PLAIN and not x.requires_grad) for x in others)
    )


def loss(logits: Tensor, problem: Problem, differentiable: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss of ``problem``, whose arrays are views of ``logits``.

    ``differentiable`` computes the same from the logits in ordinary operations, for second derivatives.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _Loss.apply(logits, problem, differentiable)
    return _tensor(problem.loss(problem.stats()))


def _is_batched(dloss: Tensor) -> bool:
    """Whether many upstream gradients come at once, as for a Jacobian."""
    return arguments.is_transformed() or torch._C._functorch.is_legacy_batchedtensor(dloss)


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, differentiable: Any) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.problem, ctx.differentiable = problem, differentiable
        ctx.gradient = ctx.stats = None
        if problem.spec.is_linear and problem.reduction != "none":
            out, ctx.gradient = bridge.empty_like(problem.logits)
            return _tensor(problem.loss_and_grad(out)[0])
        ctx.stats = problem.stats_for_grad()
        return _tensor(problem.loss(ctx.stats))

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        (logits,) = ctx.saved_tensors  # raises if they were written since
        if torch.is_grad_enabled() or _is_batched(dloss):
            further = torch.is_grad_enabled()
            with torch.enable_grad():
                again = ctx.differentiable(logits)
            return *torch.autograd.grad(again, logits, dloss, create_graph=further), None, None
        gradient, ctx.gradient = ctx.gradient, None  # given away once; the caller may add to it
        if ctx.problem.reduction == "none":
            upstream: Any = dloss.to(torch.float64).numpy()
        else:
            upstream = dloss.item()
            if gradient is not None and upstream == 1.0:
                return gradient, None, None
        # From the logits again, not by scaling what was rounded: float16 would have lost small entries.
        if gradient is None:
            out, gradient = bridge.empty_like(ctx.problem.logits)
        else:
            out = bridge.view(gradient)
        ctx.problem.grad(ctx.stats, upstream, out)
        return gradient, None, None


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.asarray(value))
