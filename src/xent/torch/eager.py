"""A plain call on the CPU in short: one autograd node, loss and gradient from one read of the logits."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.autograd import Function, forward_ad

from xent.core import target as targeting
from xent.core.spec import LossSpec
from xent.engine import checks
from xent.engine.batch_loss import Problem, mean_of_labels
from xent.torch import arguments, bridge, composite, memory

Tensor = torch.Tensor


class Loss(Protocol):
    """A loss of ``tensors``, the logits first, with its options."""

    @property
    def reduction(self) -> str:
        """As for `xent.cross_entropy`."""
        ...

    @property
    def is_plain_mean(self) -> bool:
        """Whether this is the mean of a cross-entropy without options."""
        ...

    def problem(self, *tensors: Any) -> Any:
        """A `Problem`, or what has its methods, on views of the tensors."""
        ...

    def differentiable(self, *tensors: Any) -> Tensor:
        """The same in ordinary operations, for derivatives of any order."""
        ...


class CrossEntropy(NamedTuple):
    """The options of `cross_entropy`, for (logits, targets, class weight, sample weight)."""

    spec: LossSpec
    reduction: str
    denominator: Any
    validate: bool
    name: str  # of the targets, in errors
    is_plain_mean: bool = False

    def differentiable(self, *tensors: Any) -> Tensor:
        """See `Loss`."""
        logits, targets, weight, sample_weight = tensors
        return composite.cross_entropy(
            logits, targets, weight, sample_weight, self.spec, self.reduction, self.denominator
        )

    def problem(self, *tensors: Any) -> Problem:
        """See `Loss`."""
        logits, targets, weight, sample_weight = tensors
        z = bridge.view(logits)
        factors = None if weight is None else bridge.view(weight.double())
        rows = None if sample_weight is None else bridge.view(sample_weight.double())
        if targets.is_floating_point():
            q = bridge.view(targets.to(bridge.loss_dtype(logits)))
            if self.validate:
                checks.check_probabilities(q, self.name)
            measure = targeting.from_probabilities(q, factors, rows, self.spec, np)
        else:
            ignore_index = self.spec.ignore_index
            y, ignored = arguments.labels_of(targets, z.shape[-1], ignore_index, self.validate, self.name)
            measure = targeting.from_labels(y, ignored, z.shape[-1], factors, rows, self.spec, np)
        divisor = targeting.divisor(measure.total, measure.rows, self.reduction, self.denominator)
        return Problem(z, measure, self.spec, self.reduction, float(divisor))


MEAN = {
    name: CrossEntropy(arguments.NO_OPTIONS, "mean", None, True, name, is_plain_mean=True)
    for name in ("target", "targets")
}


def is_plain(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether nothing watches this call but reverse-mode autograd, and that only for the logits.

    Hooks on saved tensors (a checkpoint) are to see all that is kept: no gradient is made beforehand then.
    """
    if not arguments.is_readable(logits) or forward_ad._current_level >= 0:
        return False
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return False
    for x in others:
        if x is None:
            continue
        if type(x) not in arguments.PLAIN or x.requires_grad or not x.is_cpu or x.layout != torch.strided:
            return False
    return True


def loss(function: Loss, logits: Tensor, *others: Tensor | None) -> Tensor:
    """The loss of tensors that are all plain."""
    if logits.requires_grad and torch.is_grad_enabled():
        return _Loss.apply(logits, function, others)
    problem = function.problem(logits, *others)
    return _tensor(problem.loss(problem.stats()))


def _is_batched(dloss: Tensor) -> bool:
    """Whether many upstream gradients come at once, as for a Jacobian."""
    return arguments.is_transformed() or torch._C._functorch.is_legacy_batchedtensor(dloss)


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, function: Loss, others: tuple[Tensor | None, ...]) -> Tensor:
        ctx.save_for_backward(logits, *others)
        ctx.function = function
        ctx.stats = None
        if function.is_plain_mean and (found := _mean_of_labels(logits, others)) is not None:
            loss, ctx.gradient = found
            return loss
        ctx.gradient = None
        problem = function.problem(logits, *others)
        if problem.spec.is_linear and problem.reduction != "none":
            out, ctx.gradient = bridge.empty_like(problem.logits)
            return _tensor(problem.loss_and_grad(out)[0])
        ctx.stats = problem.stats_for_grad()
        return _tensor(problem.loss(ctx.stats))

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        tensors = ctx.saved_tensors  # raises if they were written since
        if torch.is_grad_enabled() or _is_batched(dloss):
            further = torch.is_grad_enabled()
            with torch.enable_grad():
                again = ctx.function.differentiable(*tensors)
            return *torch.autograd.grad(again, tensors[0], dloss, create_graph=further), None, None
        gradient, ctx.gradient = ctx.gradient, None  # given away once; the caller may add to it
        upstream = bridge.view(dloss.double()) if ctx.function.reduction == "none" else dloss.item()
        if gradient is not None and upstream == 1.0:
            return gradient, None, None
        # From the logits again, not by scaling what was rounded: float16 would have lost small entries.
        problem = ctx.function.problem(*tensors)
        if gradient is None:
            out, gradient = bridge.empty_like(problem.logits)
        else:
            out = bridge.view(gradient)
        problem.grad(ctx.stats, upstream, out)
        return gradient, None, None


def _mean_of_labels(logits: Tensor, others: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """`batch_loss.mean_of_labels`; None if there is more to it."""
    labels, weight, sample_weight = others
    if weight is not None or sample_weight is not None or labels.dtype != torch.int64:
        return None
    if logits.dtype == torch.bfloat16 or logits.is_neg():
        return None
    found = mean_of_labels(logits.detach().numpy(), labels.numpy(), memory.empty_like)
    return None if found is None else (_tensor(found[0]), torch.from_numpy(found[1]))


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.asarray(value))
