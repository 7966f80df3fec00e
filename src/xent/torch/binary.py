"""`torch.nn.functional.binary_cross_entropy_with_logits`: each logit z is a row (0, z) of two classes."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xent import checks, head
from xent import target as targeting
from xent.link import Link
from xent.spec import LossSpec, require_reduction
from xent.target import Target
from xent.torch import arguments, bridge, composite, statistics

Tensor = torch.Tensor


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
    smoothing_over: Literal["all", "others"] = "all",
    focal_gamma: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    denominator: Any = None,
    validate: bool | None = None,
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
    label_smoothing, smoothing_over, focal_gamma, z_loss, softcap, temperature
        As for `xent.cross_entropy` with two classes; ``focal_gamma`` needs integers or booleans.
    denominator : float, default None
        What a mean divides by; None is the number of elements.
    validate : bool, default None
        Check that ``target`` is in [0, 1]. None: on the CPU, outside of transforms.

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
    require_reduction(reduction)
    spec = arguments.spec_of(
        label_smoothing=label_smoothing,
        smoothing_over=smoothing_over,
        focal_gamma=focal_gamma,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
    )
    _require(input, target, spec, validate)
    rows = torch.stack([torch.zeros_like(input), input], -1)
    pi = None if pos_weight is None else pos_weight.double().expand(input.shape)
    omega = None if weight is None else weight.double().expand(input.shape)
    measure = _measure(target, pi, omega, spec, bridge.loss_dtype(input))
    stats = statistics.row_stats(rows, measure.labels, measure.dense, Link(temperature, softcap))
    losses = head.row_losses(stats, measure, spec, torch)
    if reduction == "mean":
        divisor = input.numel() if denominator is None else checks.as_denominator(denominator)
        losses = losses.sum() * composite.inverse(divisor)
    elif reduction == "sum":
        losses = losses.sum()
    return losses.to(bridge.loss_dtype(input))


def _measure(
    q: Tensor, pi: Tensor | None, omega: Tensor | None, spec: LossSpec, dtype: torch.dtype
) -> Target:
    """The target as a measure on two classes, the second of them times π."""
    if spec.focal_gamma:
        measure = targeting.from_labels(q.long(), q < 0, 2, None, omega, spec, torch)
        return measure if pi is None else measure._replace(alpha=torch.where(q > 0, pi, 1.0))
    q = q.to(dtype)
    pair = torch.stack([1.0 - q, q], -1)
    factors = None if pi is None else torch.stack([torch.ones_like(pi), pi], -1).to(dtype)
    return targeting.from_probabilities(pair, factors, omega, spec, torch)


def _require(input: Tensor, q: Tensor, spec: LossSpec, validate: bool | None) -> None:
    arguments.require_tensor(input, "input")
    arguments.require_tensor(q, "target")
    if input.dtype not in bridge.FLOATING:
        raise arguments.ArgumentError(
            f"`input` must be float64, float32, float16 or bfloat16; got {input.dtype}"
        )
    if q.shape != input.shape:
        raise arguments.ArgumentError(
            f"Target size ({q.shape}) must be the same as input size ({input.shape})"
        )
    if spec.focal_gamma and q.is_floating_point():
        raise arguments.ArgumentError(
            "`focal_gamma` and probability `target` cannot be combined: the focal loss is defined for "
            f"labels, integers or booleans; got focal_gamma={spec.focal_gamma}"
        )
    if validate is False or not arguments.is_readable(q):
        return
    checks.check_probabilities(bridge.view(q.to(bridge.loss_dtype(input))), "target", upper=1.0)
