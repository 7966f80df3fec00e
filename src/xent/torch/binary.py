"""`torch.nn.functional.binary_cross_entropy_with_logits`: each logit z as a row (0, z) of two classes."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch.nn.functional import logsigmoid

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import RowStats
from xent.core.spec import ExtraOptions, LossSpec, require_reduction, with_options
from xent.torch import arguments, binary_ops, dense, devices, modes
from xent.torch.targets import zero_if_valid_binary
from xent.torch.temperature import divided

Tensor = torch.Tensor


@with_options(omit=("class_weight", "sample_weight", "ignore_index", "label_smoothing"))
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    denominator: Any = None,
    validate: bool | None = None,
    **options: Unpack[ExtraOptions],
) -> Tensor:
    """Binary cross-entropy of logits, in nats: ``−π q log s(z) − (1−q) log s(−z)``, s the logistic function.

    Parameters
    ----------
    input : (...) tensor of float64, float32, float16 or bfloat16
    target : (...) tensor of floats in [0, 1], or of integers or booleans
        Probabilities of the class 1.
    weight, pos_weight : tensors that broadcast to ``input``, default None
        Factor of each element, and of its positive part. The mean is over elements, whatever the weights.
    size_average, reduce, reduction
        As in PyTorch.
    label_smoothing : float in [0, 1], default 0.0
        As for `cross_entropy` with two classes, and so the options below; ``focal_gamma`` needs labels.
    denominator : float, default None
        What a mean divides by; None is the number of elements.
    validate : bool, default None
        Check that ``target`` is in [0, 1]. None: on the CPU, outside of transforms.

    OPTIONS

    Returns
    -------
    Tensor
        float64 for float64 ``input``, float32 for all others.

    Raises
    ------
    ValueError
        For a shape or value out of place.

    Examples
    --------
    >>> import torch, xent.torch
    >>> z, q = torch.zeros(2, requires_grad=True), torch.tensor([0.0, 1.0])
    >>> xent.torch.binary_cross_entropy_with_logits(z, q).backward()
    >>> z.grad
    tensor([ 0.2500, -0.2500])
    """
    reduction = arguments.legacy_reduction(size_average, reduce, reduction)
    if "temperature" in options:
        options["temperature"], input = divided(options["temperature"], input)
    spec = arguments.spec_of(label_smoothing=label_smoothing, **options)
    arguments.require_tensor(input, "input")
    require_reduction(reduction)
    denominator = arguments.as_denominator(denominator)
    divisor = targeting.divisor(input.numel(), input.numel(), reduction, denominator)
    return elementwise_loss(input, target, weight, pos_weight, spec, reduction, divisor, validate)


def elementwise_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    spec: LossSpec,
    reduction: str,
    divisor: Any,
    validate: bool | None,
    names: arguments.Names = arguments.TORCH,
) -> Tensor:
    """The loss with checked options and the divisor D of (4); see `binary_cross_entropy_with_logits`."""
    require_reduction(reduction)
    _require(input, target, spec, names)
    zero = zero_if_valid_binary(target, names.targets, validate)
    arguments.require_factor(weight, names.weight, input.shape, names.logits, validate)
    arguments.require_factor(pos_weight, "pos_weight", input.shape, names.logits, validate)
    loss = BinaryCrossEntropy(target, weight, pos_weight, spec, reduction, divisor)
    is_plain = not isinstance(divisor, Tensor) and modes.is_plain((input,), loss.fixed)
    if is_plain and not modes.has_saved_tensor_hooks() and devices.are_arrays(input, *loss.fixed):
        return dense.value(loss, input)
    by_name = dict(zip((*names, "pos_weight"), (input, *loss.fixed), strict=True))
    arguments.require_together(**by_name)
    value = loss.derivable(input)
    return value if zero is None else value + zero


class BinaryCrossEntropy(dense.CpuLoss):
    """The binary loss as a function of its logits."""

    def __init__(
        self,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        spec: LossSpec,
        reduction: str,
        divisor: Any,
    ) -> None:
        self.fixed = target, weight, pos_weight
        self.spec, self.reduction, self.divisor = spec, reduction, divisor

    def problem(self, logits: Tensor) -> Any:
        """The loss on views of the tensors, with the methods of `Problem`."""
        return binary_ops.problem((logits, *self.fixed), self.spec, self.reduction, float(self.divisor))

    def derivable(self, logits: Tensor) -> Tensor:
        """The loss in ordinary operations, for derivatives of any order."""
        q, weight, pos_weight = self.fixed
        dtype = devices.loss_dtype(logits)
        if self.spec.is_linear and modes.is_compiled(logits, *self.fixed):
            losses = binary_ops.losses((logits, *self.fixed), self.spec, each=self.reduction == "none")
            scale = 1.0 if self.reduction == "none" else arguments.inverse(self.divisor)
            return (losses * scale).to(dtype)
        if not logits.ndim:  # else forward mode makes the tangent of a scalar divided by a number float64
            weight, pos_weight = (x if x is None else x.reshape(1) for x in (weight, pos_weight))
            options = (self.spec, self.reduction, self.divisor)
            loss = BinaryCrossEntropy(q.reshape(1), weight, pos_weight, *options)
            return loss.derivable(logits.reshape(1)).reshape(())
        takes_labels = self.spec.label_function.needs_labels
        if not q.is_floating_point() and q.dtype != torch.bool and not takes_labels:
            q = torch.where((q == 0) | (q == 1), q.to(dtype), torch.nan)  # as in the kernel
        q = q.long() if takes_labels else q.to(dtype)
        pi, omega = (None if x is None else x.to(dtype) for x in (pos_weight, weight))
        z = logits.to(dtype)
        if omega is not None:  # an element of weight 0 is not read, even if it is NaN
            silent = (omega == 0) & ~(z.isfinite() & q.isfinite())
            z, q, omega = (torch.where(silent, 0, x) for x in (z, q, omega))
        measure = targeting.from_pairs(q, pi, omega, self.spec, torch)
        stats = _stats(z, measure.labels, measure.dense, self.spec)
        losses = head.row_losses(stats, measure, self.spec, torch)
        if self.reduction != "none":
            losses = losses.sum(dtype=torch.float64) * arguments.inverse(self.divisor)
        return losses.to(dtype)


def _stats(z: Tensor, labels: Tensor | None, dense: Any, spec: LossSpec) -> RowStats:
    """The row statistics of (0, z), without cancellation, in operations derivable in any mode."""
    u = spec.link.value(z, torch)
    u = u + torch.where(u == torch.inf, torch.nan, 0.0)  # NaN, as for any row with +inf
    log_p = logsigmoid(-u), logsigmoid(u)
    if labels is None:
        sigma = sum(head.multiply(v, x, torch) for v, x in zip(dense, log_p, strict=True))
        return RowStats(lse=-log_p[0], dense_log_prob=sigma)
    return RowStats(lse=-log_p[0], log_prob=torch.where(labels == 1, log_p[1], log_p[0]))


def _require(input: Tensor, q: Tensor, spec: LossSpec, names: arguments.Names) -> None:
    arguments.require_tensor(input, names.logits)
    arguments.require_tensor(q, names.targets)
    if input.dtype not in devices.FLOATING:
        raise arguments.ArgumentError(
            f"`{names.logits}` must be float64, float32, float16 or bfloat16; got {input.dtype}"
        )
    if q.dtype not in (torch.bool, *arguments.INTEGERS, *devices.FLOATING):
        raise arguments.ArgumentError(
            f"`{names.targets}` must be booleans, integers, float64, float32, float16 or bfloat16; "
            f"got {q.dtype}"
        )
    if q.shape != input.shape:
        raise arguments.ArgumentError(
            f"Target size ({q.shape}) must be the same as input size ({input.shape}): "
            f"`{names.targets}` and `{names.logits}` must have the same shape"
        )
    if q.is_floating_point():
        arguments.require_labels_for(spec, names.targets)
