"""`torch.nn.functional.binary_cross_entropy_with_logits`: each logit z as a row (0, z) of two classes."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch.nn.functional import logsigmoid

from xent.core import head
from xent.core import target as targeting
from xent.core.contract import RowStats
from xent.core.spec import ExtraOptions, LossSpec, require_reduction, with_options
from xent.engine import checks
from xent.torch import arguments, dense, devices, modes
from xent.torch.binary import operators
from xent.torch.targets import split_ignored, zero_if_valid_binary
from xent.torch.temperature import divided

Tensor = torch.Tensor


class BinaryCall(NamedTuple):
    """The arguments of one binary loss except its logits."""

    targets: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    alpha: float | None
    spec: LossSpec
    ignore_index: int | None  # None: no element is ignored
    reduction: str
    denominator: Any
    validate: bool | None
    divides_by_weight: bool  # whether a mean divides by the weight of the elements, not by their number
    names: arguments.Names = arguments.TORCH


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
    alpha: float | None = None,
    ignore_index: int | None = None,
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
        Probabilities of the class 1; 0 and 1, of any dtype, for options that need labels (``focal_gamma``,
        ``poly1_epsilon``).
    weight, pos_weight : tensors that broadcast to ``input``, default None
        Factor of each element, and of its positive part. The mean is over elements, whatever the weights.
    size_average, reduce, reduction
        As in PyTorch.
    alpha : float in [0, 1], default None
        Factor ``αq + (1−α)(1−q)`` of each element, ``α`` of positives and ``1−α`` of negatives, as in the
        sigmoid focal loss; with or without ``focal_gamma``. A mean does not divide by it.
    ignore_index : int, default None
        Elements with this target, also as a float, have loss 0, gradient 0 and no part in the mean.
    label_smoothing : float in [0, 1], default 0.0
        As for `cross_entropy` with two classes, and so the options below.
    denominator : float, default None
        What a mean divides by; None is the number of elements that are not ignored.
    validate : bool, default None
        Check that ``target`` is in [0, 1], or 0 or 1 where it must be. None: on the CPU, outside of
        transforms. Without it a value that is no label gives NaN for its element.

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

    The focal loss of detectors:

    >>> xent.torch.binary_cross_entropy_with_logits(z, q, reduction="sum", focal_gamma=2.0, alpha=0.25)
    tensor(0.1733, grad_fn=<_LossBackward>)
    """
    reduction = arguments.legacy_reduction(size_average, reduce, reduction)
    if "temperature" in options:
        options["temperature"], input = divided(options["temperature"], input)
    index = {} if ignore_index is None else {"ignore_index": ignore_index}
    spec = arguments.spec_of(label_smoothing=label_smoothing, **index, **options)
    ignored = spec.ignore_index if index else None
    factors = weight, pos_weight, alpha
    call = BinaryCall(target, *factors, spec, ignored, reduction, denominator, validate, False)
    return elementwise_loss(input, call)


def elementwise_loss(input: Tensor, call: BinaryCall) -> Tensor:
    """The loss of a call whose options are checked; see `binary_cross_entropy_with_logits`."""
    spec, names, validate = call.spec, call.names, call.validate
    require_reduction(call.reduction)
    alpha = checks.as_alpha(call.alpha)
    _require(input, call)
    arguments.require_factor(call.weight, names.weight, input.shape, names.logits, validate)
    arguments.require_factor(call.pos_weight, "pos_weight", input.shape, names.logits, validate)
    given = call.targets, call.weight, call.pos_weight
    if not devices.are_arrays(input, *given):
        arguments.require_together(**dict(zip((*names, "pos_weight"), (input, *given), strict=True)))
    target, ignored = split_ignored(call.targets, call.ignore_index)
    zero = zero_if_valid_binary(target, spec.labels_option(), names.targets, validate)
    weight, dtype = call.weight, devices.loss_dtype(input)
    if ignored is not None:
        ones = torch.ones((), dtype=dtype, device=input.device)
        weight = torch.where(ignored, 0.0, ones if weight is None else weight)
    divisor = _divisor(input, call, ignored, weight)
    if alpha is not None:
        weight = targeting.pair_weight(_as_probabilities(target, dtype), weight, alpha)
    loss = BinaryCrossEntropy(target, weight, call.pos_weight, spec, call.reduction, divisor)
    is_plain = not isinstance(divisor, Tensor) and modes.is_plain((input,), loss.fixed)
    if is_plain and not modes.has_saved_tensor_hooks() and devices.are_arrays(input, *loss.fixed):
        return dense.value(loss, input)
    value = loss.derivable(input)
    return value if zero is None else value + zero


def _divisor(input: Tensor, call: BinaryCall, ignored: Tensor | None, weight: Tensor | None) -> Any:
    """D of (4), for ``weight`` with 0 at ``ignored`` elements."""
    total: Any = input.numel()
    rows = total
    if call.divides_by_weight and weight is not None:
        total, rows = weight.double().sum(), torch.count_nonzero(weight)
        if modes.is_readable(weight) and not weight.requires_grad:
            total, rows = total.item(), rows.item()
    elif ignored is not None:
        count = ignored.sum()
        total = rows = total - (int(count) if modes.is_readable(count) else count)
    return targeting.divisor(total, rows, call.reduction, arguments.as_denominator(call.denominator))


def _as_probabilities(q: Tensor, dtype: torch.dtype) -> Tensor:
    """``q`` as ``dtype``; NaN for integers other than 0 and 1, as in the kernel."""
    if q.is_floating_point() or q.dtype == torch.bool:
        return q.to(dtype)
    return torch.where((q == 0) | (q == 1), q.to(dtype), torch.nan)


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
        return operators.problem((logits, *self.fixed), self.spec, self.reduction, float(self.divisor))

    def derivable(self, logits: Tensor) -> Tensor:
        """The loss in ordinary operations, for derivatives of any order."""
        q, weight, pos_weight = self.fixed
        dtype = devices.loss_dtype(logits)
        if self.spec.is_linear and modes.is_compiled(logits, *self.fixed):
            losses = operators.losses((logits, *self.fixed), self.spec, each=self.reduction == "none")
            scale = 1.0 if self.reduction == "none" else arguments.inverse(self.divisor)
            return (losses * scale).to(dtype)
        if not logits.ndim:  # else forward mode makes the tangent of a scalar divided by a number float64
            weight, pos_weight = (x if x is None else x.reshape(1) for x in (weight, pos_weight))
            options = (self.spec, self.reduction, self.divisor)
            loss = BinaryCrossEntropy(q.reshape(1), weight, pos_weight, *options)
            return loss.derivable(logits.reshape(1)).reshape(())
        q = _as_probabilities(q, dtype)
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
    log_prob = torch.where(labels == 1, log_p[1], log_p[0])
    return RowStats(lse=-log_p[0], log_prob=torch.where(labels == 2, torch.nan, log_prob))


def _require(input: Tensor, call: BinaryCall) -> None:
    q, names = call.targets, call.names
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
    if q.is_floating_point() and q.requires_grad and (option := call.spec.labels_option()):
        raise arguments.ArgumentError(
            f"`{names.targets}` must not require a gradient where `{option}` takes them as labels; "
            "`.detach()` them"
        )
