"""The loss of logits that this process has whole: one autograd node, or operations that any mode derives."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.autograd import Function

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import RowStats
from xent.core.link import Link
from xent.engine import checks
from xent.engine.batch_loss import Problem, mean_loss_and_grad
from xent.torch import arguments, devices, memory, modes, operators, statistics, targets
from xent.torch.arguments import Call

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, call: Call) -> Tensor:
    """The loss of ``logits (..., K)``, by the shortest way that whoever watches allows."""
    call = call.checked(logits.shape)
    fixed = call.tensors
    is_plain = modes.is_plain((logits,), fixed) and not modes.has_saved_tensor_hooks()
    if is_plain and fixed[3] is None and devices.are_arrays(logits, *fixed):
        return value(CpuCrossEntropy(call), logits)
    arguments.require_local(**{call.names.logits: logits}, **call.by_name)
    arguments.require_together(**{call.names.logits: logits}, **call.by_name)
    zero = targets.zero_if_valid(
        call.targets, logits.shape[-1], call.spec.ignore_index, call.names.targets, call.validate
    )
    if is_plain and devices.takes_tensors(logits):
        return value(GpuCrossEntropy(call), logits)
    loss = derivable(logits, call)
    return loss if zero is None else loss + zero


def derivable(logits: Tensor, call: Call) -> Tensor:
    """Equations (1) and (4) as ordinary operations around the row statistics: any order, every transform."""
    t = targets.measure(logits, call)
    scale = call.scale(t.total, t.rows)
    spec, is_reduced = call.spec, call.reduction != "none"
    is_learnt = modes.are_derived(call.class_weight, call.sample_weight)
    is_derived = torch.is_grad_enabled() and logits.requires_grad
    is_ahead = is_reduced and spec.is_linear and is_derived and modes.is_compiled(logits, t.dense)
    if is_learnt or not is_ahead or t.labels is not None:  # no kernel reads a row whose cotangents are 0
        t = targets.silenced(t, spec, _have_loss(logits) if is_learnt else None)
    if is_ahead:
        expected = head.cotangents(None, t, spec, scale, torch)
        stats = operators.row_stats_and_grad(logits, t.labels, t.dense, spec.link, expected)
    else:
        stats = statistics.row_stats(logits, t.labels, t.dense, spec.link)
    losses = head.row_losses(stats, t, spec, torch)
    if is_reduced:
        losses = losses.sum() * scale
    return cast(Tensor, losses.to(devices.loss_dtype(logits)))


def _have_loss(logits: Tensor) -> Tensor:
    """Which rows (...) have neither NaN nor +inf, and not −inf alone."""
    return cast(Tensor, statistics.row_stats(logits.detach(), None, None, Link()).lse.isfinite())


class Loss(Protocol):
    """A loss of logits and of ``fixed`` tensors, which are not derived."""

    @property
    def fixed(self) -> tuple[Tensor | None, ...]:
        """What the loss is computed of, beside the logits."""
        ...

    def value(self, logits: Tensor) -> Tensor:
        """The loss alone."""
        ...

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """(the loss, its gradient where one read gives both, what `grad` needs where it does not)."""
        ...

    def grad(self, logits: Tensor, dloss: Tensor, made: Tensor | None, stats: RowStats | None) -> Tensor:
        """The gradient times ``dloss``; ``made`` is the one of `value_and_grad`, to be written over."""
        ...

    def derivable(self, logits: Tensor) -> Tensor:
        """The loss in ordinary operations, for derivatives of any order."""
        ...


def value(loss: Loss, logits: Tensor) -> Tensor:
    """The loss of tensors that only reverse mode watches, and only for the logits: one autograd node."""
    if logits.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Loss.apply(logits, loss))
    return loss.value(logits)


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Loss) -> Tensor:
        ctx.save_for_backward(logits, *loss.fixed)
        ctx.loss = loss
        result, ctx.gradient, ctx.stats = loss.value_and_grad(logits)
        return result

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        logits, *_ = ctx.saved_tensors  # raises if one of them was written since
        if torch.is_grad_enabled() or modes.is_batched(dloss):
            further = torch.is_grad_enabled()
            with torch.enable_grad():
                again = ctx.loss.derivable(logits)
            return *torch.autograd.grad(again, logits, dloss, create_graph=further), None
        made, ctx.gradient = ctx.gradient, None  # given away once; the caller may add to it
        return ctx.loss.grad(logits, dloss, made, ctx.stats), None


class CpuLoss:
    """A `Loss` of tensors in this machine's memory, as arrays; subclasses say which `problem` it is."""

    def problem(self, logits: Tensor) -> Any:
        """A `Problem`, or what has its methods, on views of the tensors."""
        raise NotImplementedError

    def value(self, logits: Tensor) -> Tensor:
        """See `Loss`."""
        problem = self.problem(logits)
        return _tensor(problem.loss(problem.stats()))

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """See `Loss`."""
        problem = self.problem(logits)
        if problem.spec.is_linear and problem.reduction != "none":
            out, gradient = devices.empty_like(problem.logits)
            return _tensor(problem.loss_and_grad(out)[0]), gradient, None
        stats = problem.stats_for_grad()
        return _tensor(problem.loss(stats)), None, stats

    def grad(self, logits: Tensor, dloss: Tensor, made: Tensor | None, stats: RowStats | None) -> Tensor:
        """See `Loss`; from the logits again, not by scaling what was rounded: float16 would lose entries."""
        upstream = devices.view(dloss.double()) if dloss.ndim else dloss.item()
        if made is not None and isinstance(upstream, float) and upstream == 1.0:
            return made
        problem = self.problem(logits)
        if made is None:
            out, made = devices.empty_like(problem.logits)
        else:
            out = devices.view(made)
        problem.grad(stats, upstream, out)
        return made


class CpuCrossEntropy(CpuLoss):
    """The loss of a `Call`."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.fixed = call[:3]

    def problem(self, logits: Tensor) -> Problem:
        """See `CpuLoss`."""
        labels, class_weight, sample_weight, spec, _, _, validate, names = self.call
        z = devices.view(logits)
        factors = None if class_weight is None else devices.view(class_weight.double())
        rows = None if sample_weight is None else devices.view(sample_weight.double())
        if self.call.is_soft:
            q = devices.view(labels.to(devices.loss_dtype(logits)))
            if validate is not False:
                checks.check_probabilities(q, names.targets)
            t = targeting.from_probabilities(q, factors, rows, spec, np)
        else:
            y, ignored = targets.labels_of(
                labels, z.shape[-1], spec.ignore_index, validate is not False, names.targets
            )
            t = targeting.from_labels(y, ignored, z.shape[-1], factors, rows, spec, np)
        divisor = targeting.divisor(t.total, t.rows, self.call.reduction, self.call.denominator)
        return Problem(z, t, spec, self.call.reduction, float(divisor))

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """See `Loss`; the mean of labels without options has a way of its own."""
        found = _mean_loss_and_grad(logits, self.call)
        return super().value_and_grad(logits) if found is None else (*found, None)

    def derivable(self, logits: Tensor) -> Tensor:
        """See `Loss`."""
        return derivable(logits, self.call)


def _mean_loss_and_grad(logits: Tensor, call: Call) -> tuple[Tensor, Tensor] | None:
    """`batch_loss.mean_loss_and_grad`; None if there is more to it."""
    labels, class_weight, sample_weight, spec, reduction, denominator, validate, _ = call
    if spec is not arguments.NO_OPTIONS or class_weight is not None or sample_weight is not None:
        return None
    if reduction != "mean" or denominator is not None or validate is False:
        return None
    if labels.dtype != torch.int64 or logits.dtype == torch.bfloat16 or logits.is_neg():
        return None
    found = mean_loss_and_grad(logits.detach().numpy(), labels.numpy(), memory.empty_like)
    return None if found is None else (_tensor(found[0]), torch.from_numpy(found[1]))


def _tensor(number: Any) -> Tensor:
    return torch.from_numpy(np.asarray(number))


class GpuCrossEntropy:
    """The loss of a `Call` on a GPU, for which no host waits: 1/D stays on the device."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.fixed = call.tensors

    def value(self, logits: Tensor) -> Tensor:
        """See `Loss`."""
        problem, scale = self._problem(logits)
        return self._reduced(logits, problem.row_losses(problem.stats()), scale)

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """See `Loss`."""
        problem, scale = self._problem(logits)
        # What an upstream gradient will multiply must not have lost its small entries, as in float16.
        if problem.spec.is_linear and problem.reduction != "none" and logits.dtype != torch.float16:
            stats, gradient = problem.stats_and_grad(scale, cast(Any, None))
            return self._reduced(logits, problem.row_losses(stats), scale), cast(Any, gradient), None
        stats = problem.stats_for_grad()
        return self._reduced(logits, problem.row_losses(stats), scale), None, stats

    def grad(self, logits: Tensor, dloss: Tensor, made: Tensor | None, stats: RowStats | None) -> Tensor:
        """See `Loss`."""
        if made is not None:
            return devices.rescale(made, dloss)
        problem, scale = self._problem(logits)
        return cast(Tensor, problem.grad(stats, cast(Any, dloss.double() * scale), cast(Any, None)))

    def derivable(self, logits: Tensor) -> Tensor:
        """See `Loss`."""
        return derivable(logits, self.call)

    def _problem(self, logits: Tensor) -> tuple[Problem, Any]:
        """(the problem with a divisor of 1, and 1/D)."""
        t = targets.measure(logits, self.call)
        z, kernels = cast(Any, logits.detach()), cast(Any, devices)
        problem = Problem(z, t, self.call.spec, self.call.reduction, 1.0, kernels, torch)
        return problem, self.call.scale(t.total, t.rows)

    def _reduced(self, logits: Tensor, losses: Any, scale: Any) -> Tensor:
        if self.call.reduction != "none":
            losses = losses.sum() * scale
        return cast(Tensor, losses.to(devices.loss_dtype(logits)))
