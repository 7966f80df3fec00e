"""The loss of logits that this process has whole: one autograd node, or operations derivable in any mode."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.autograd import Function

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import RowStats
from xent.core.link import Link
from xent.engine import checks, memory
from xent.engine.batch_loss import Problem, mean_loss_and_grad
from xent.torch import arguments, devices, modes, targets
from xent.torch.arguments import Call
from xent.torch.statistics import ahead, autograd
from xent.torch.temperature import divided_rows, row_temperature

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, call: Call) -> Tensor:
    """The loss of ``logits (..., K)``, by the fastest path that the active modes allow."""
    call = call.checked(logits.shape)
    if call.temperature is not None:
        arguments.require_local(**{call.names.logits: logits}, **call.by_name)
        arguments.require_together(**{call.names.logits: logits}, **call.by_name)
        logits, call = divided_rows(logits, row_temperature(call)), call._replace(temperature=None)
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
    t = targets.make_target(logits, call)
    scale = call.scale(t.total, t.rows)
    spec, is_reduced = call.spec, call.reduction != "none"
    is_learnt = modes.are_derived(call.class_weight, call.sample_weight)
    is_derived = torch.is_grad_enabled() and logits.requires_grad
    is_ahead = is_reduced and spec.is_linear and is_derived and modes.is_compiled(logits, t.dense)
    if is_learnt or not is_ahead or t.labels is not None:  # else the kernel itself skips rows of cotangents 0
        t = targets.mask_silent_rows(t, spec, _have_loss(logits) if is_learnt else None)
    if is_ahead:
        expected = head.cotangents(None, t, spec, scale, torch)
        stats = ahead.row_stats_and_grad(logits, t.labels, t.dense, spec.link, expected)
    else:
        stats = autograd.row_stats(logits, t.labels, t.dense, spec.link)
    losses = head.row_losses(stats, t, spec, torch)
    if is_reduced:
        losses = losses.sum() * scale
    return cast(Tensor, losses.to(devices.loss_dtype(logits)))


def _have_loss(logits: Tensor) -> Tensor:
    """Mask (...) of rows without NaN and +inf, and with a logit above −inf."""
    return cast(Tensor, autograd.row_stats(logits.detach(), None, None, Link()).lse.isfinite())


class Loss(Protocol):
    """A loss as a function of logits; its ``fixed`` tensors are not derived."""

    @property
    def fixed(self) -> tuple[Tensor | None, ...]:
        """The other tensors that the loss is computed from."""
        ...

    def value(self, logits: Tensor) -> Tensor:
        """The loss alone."""
        ...

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """(loss, gradient, None) if one read gives both; else (loss, None, statistics for `grad`)."""
        ...

    def grad(self, logits: Tensor, dloss: Tensor, unscaled: Tensor | None, stats: RowStats | None) -> Tensor:
        """The gradient times ``dloss``; ``unscaled``, from `value_and_grad`, may be overwritten."""
        ...

    def derivable(self, logits: Tensor) -> Tensor:
        """The loss in ordinary operations, for derivatives of any order."""
        ...


def value(loss: Loss, logits: Tensor) -> Tensor:
    """The loss as one autograd node, derivable in the logits; only for plain reverse mode."""
    if logits.requires_grad and torch.is_grad_enabled():
        loss_tensor: Tensor = _Loss.apply(logits, loss)
        return loss_tensor
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
        logits, *_ = ctx.saved_tensors  # raises if one was modified in place
        if torch.is_grad_enabled() or modes.is_batched(dloss):
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                loss = ctx.loss.derivable(logits)
            return *torch.autograd.grad(loss, logits, dloss, create_graph=create_graph), None
        unscaled, ctx.gradient = ctx.gradient, None  # used once: the caller may add to it in place
        return ctx.loss.grad(logits, dloss, unscaled, ctx.stats), None


class CpuLoss:
    """A `Loss` of CPU tensors, computed on NumPy views; subclasses define the `problem`."""

    def problem(self, logits: Tensor) -> Any:
        """A `Problem`, or an object with its methods, on views of the tensors."""
        raise NotImplementedError

    def value(self, logits: Tensor) -> Tensor:
        """The loss alone."""
        problem = self.problem(logits)
        return _tensor(problem.loss(problem.stats()))

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """The loss, and its gradient if one read gives both."""
        problem = self.problem(logits)
        if problem.spec.is_linear and problem.reduction != "none":
            out, gradient = devices.empty_like(problem.logits)
            return _tensor(problem.loss_and_grad(out)[0]), gradient, None
        stats = problem.stats_for_grad()
        return _tensor(problem.loss(stats)), None, stats

    def grad(self, logits: Tensor, dloss: Tensor, unscaled: Tensor | None, stats: RowStats | None) -> Tensor:
        """The gradient times ``dloss``; recomputed, since a float16 gradient has lost small entries."""
        upstream = devices.view(dloss.double()) if dloss.ndim else dloss.item()
        if unscaled is not None and isinstance(upstream, float) and upstream == 1.0:
            return unscaled
        problem = self.problem(logits)
        if unscaled is None:
            out, unscaled = devices.empty_like(problem.logits)
        else:
            out = devices.view(unscaled)
        problem.grad(stats, upstream, out)
        return unscaled


class CpuCrossEntropy(CpuLoss):
    """The loss of a `Call` on the CPU."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.fixed = call[:3]

    def problem(self, logits: Tensor) -> Problem:
        """The `Problem` on views of the tensors."""
        labels, class_weight, sample_weight, spec, _, _, validate, names, _ = self.call
        z = devices.view(logits)
        factors = None if class_weight is None else devices.view(class_weight.double())
        rows = None if sample_weight is None else devices.view(sample_weight.double())
        if self.call.is_soft:
            q = devices.view(labels.to(devices.loss_dtype(logits)))
            if validate is not False:
                checks.check_probabilities(q, names.targets)
            t = targeting.from_probabilities(q, factors, rows, spec, np)
        else:
            y, ignored = targets.cpu_labels(
                labels, z.shape[-1], spec.ignore_index, validate is not False, names.targets
            )
            t = targeting.from_labels(y, ignored, z.shape[-1], factors, rows, spec, np)
        divisor = targeting.divisor(t.total, t.rows, self.call.reduction, self.call.denominator)
        return Problem(z, t, spec, self.call.reduction, float(divisor))

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """The loss, and its gradient if one read gives both; a plain mean of labels takes a shortcut."""
        result = _mean_loss_and_grad(logits, self.call)
        return super().value_and_grad(logits) if result is None else (*result, None)

    def derivable(self, logits: Tensor) -> Tensor:
        """The loss in ordinary operations, for derivatives of any order."""
        return derivable(logits, self.call)


def _mean_loss_and_grad(logits: Tensor, call: Call) -> tuple[Tensor, Tensor] | None:
    """`batch_loss.mean_loss_and_grad` of tensors; None if the call has options or unusual dtypes."""
    labels, class_weight, sample_weight, spec, reduction, denominator, validate, *_ = call
    if spec is not arguments.NO_OPTIONS or class_weight is not None or sample_weight is not None:
        return None
    if reduction != "mean" or denominator is not None or validate is False:
        return None
    if labels.dtype != torch.int64 or logits.dtype == torch.bfloat16 or logits.is_neg():
        return None
    result = mean_loss_and_grad(logits.detach().numpy(), labels.numpy(), memory.empty_like)
    return None if result is None else (_tensor(result[0]), torch.from_numpy(result[1]))


def _tensor(number: Any) -> Tensor:
    return torch.from_numpy(np.asarray(number))


class GpuCrossEntropy:
    """The loss of a `Call` on a GPU; the host never waits for it, since 1/D stays on the device."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.fixed = call.tensors

    def value(self, logits: Tensor) -> Tensor:
        """The loss alone."""
        problem, scale = self._problem(logits)
        return self._reduced(logits, problem.row_losses(problem.stats()), scale)

    def value_and_grad(self, logits: Tensor) -> tuple[Tensor, Tensor | None, RowStats | None]:
        """The loss, and its gradient if one read gives both."""
        problem, scale = self._problem(logits)
        # Not for float16: the gradient loses small entries before the upstream gradient multiplies it.
        if problem.spec.is_linear and problem.reduction != "none" and logits.dtype != torch.float16:
            stats, gradient = problem.stats_and_grad(scale, cast(Any, None))
            return self._reduced(logits, problem.row_losses(stats), scale), cast(Any, gradient), None
        stats = problem.stats_for_grad()
        return self._reduced(logits, problem.row_losses(stats), scale), None, stats

    def grad(self, logits: Tensor, dloss: Tensor, unscaled: Tensor | None, stats: RowStats | None) -> Tensor:
        """The gradient times ``dloss``."""
        if unscaled is not None:
            return devices.rescale(unscaled, dloss)
        problem, scale = self._problem(logits)
        return cast(Tensor, problem.grad(stats, cast(Any, dloss.double() * scale), cast(Any, None)))

    def derivable(self, logits: Tensor) -> Tensor:
        """The loss in ordinary operations, for derivatives of any order."""
        return derivable(logits, self.call)

    def _problem(self, logits: Tensor) -> tuple[Problem, Any]:
        """(the problem with a divisor of 1, and 1/D)."""
        t = targets.make_target(logits, self.call)
        z, kernels = cast(Any, logits.detach()), cast(Any, devices)
        problem = Problem(z, t, self.call.spec, self.call.reduction, 1.0, kernels, torch)
        return problem, self.call.scale(t.total, t.rows)

    def _reduced(self, logits: Tensor, losses: Any, scale: Any) -> Tensor:
        if self.call.reduction != "none":
            losses = losses.sum() * scale
        return cast(Tensor, losses.to(devices.loss_dtype(logits)))
