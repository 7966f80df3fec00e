"""The loss of a linear layer's output, from the layer's input and its weight."""

from __future__ import annotations

from typing import Any

import torch

from xent.torch import arguments
from xent.torch.functional import cross_entropy

Tensor = torch.Tensor


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    **options: Any,
) -> Tensor:
    """`cross_entropy` of ``input @ linear_weight.T + linear_bias``, as `torch.nn.functional` has it.

    Parameters
    ----------
    input : (D,) or (N, D) tensor
    linear_weight : (C, D) or (C, d1, ..., D) tensor
    linear_bias : (C,) or (C, d1, ...) tensor, default None
    ignore_index : int, default None
        None is -100.
    target, weight, reduction, label_smoothing, **options
        As for `cross_entropy`.

    Examples
    --------
    >>> import torch, xent.torch
    >>> x, w = torch.eye(2), torch.zeros(3, 2)
    >>> round(xent.torch.linear_cross_entropy(x, w, torch.tensor([0, 2])).item(), 4)
    1.0986
    """
    arguments.require_tensor(linear_weight, "linear_weight")
    shape = linear_weight.shape[:-1]
    logits = torch.nn.functional.linear(
        input, linear_weight.flatten(0, -2), None if linear_bias is None else linear_bias.flatten()
    )
    return cross_entropy(
        logits.unflatten(-1, shape) if len(shape) > 1 else logits,
        target,
        weight,
        reduction=reduction,
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
        **options,
    )
