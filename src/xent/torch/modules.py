"""The losses as modules, under the names that `torch.nn` gives them."""

from __future__ import annotations

from typing import Any

import torch

from xent.torch import arguments, functional
from xent.torch.binary import binary_cross_entropy_with_logits
from xent.torch.linear import linear_cross_entropy

Tensor = torch.Tensor


class _Loss(torch.nn.Module):
    """A reduction, and options by name."""

    def __init__(
        self, size_average: bool | None, reduce: bool | None, reduction: str, **options: Any
    ) -> None:
        super().__init__()
        self.reduction = arguments.legacy_reduction(size_average, reduce, reduction)
        self.options = options

    def extra_repr(self) -> str:
        """The options that were set."""
        return ", ".join(f"{k}={v!r}" for k, v in {"reduction": self.reduction, **self.options}.items())


class CrossEntropyLoss(_Loss):
    """`torch.nn.CrossEntropyLoss`, with the options of `xent.torch.cross_entropy` as keywords.

    >>> import torch, xent.torch
    >>> loss = xent.torch.CrossEntropyLoss(label_smoothing=0.1, z_loss=1e-4)
    >>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3865
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(size_average, reduce, reduction, **options)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """See `xent.torch.cross_entropy`."""
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            **self.options,
        )


class BCEWithLogitsLoss(_Loss):
    """`torch.nn.BCEWithLogitsLoss`, with the options of `xent.torch.binary_cross_entropy_with_logits`.

    >>> import torch, xent.torch
    >>> round(xent.torch.BCEWithLogitsLoss()(torch.zeros(2), torch.tensor([0.0, 1.0])).item(), 4)
    0.6931
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(size_average, reduce, reduction, **options)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """See `xent.torch.binary_cross_entropy_with_logits`."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight, **self.options
        )


class LinearCrossEntropyLoss(_Loss):
    """`torch.nn.LinearCrossEntropyLoss`: a linear layer without its output, and the loss of its logits.

    >>> import torch, xent.torch
    >>> loss = xent.torch.LinearCrossEntropyLoss(8, 4, bias=True)
    >>> loss(torch.ones(2, 8), torch.tensor([0, 3])).shape
    torch.Size([])
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(None, None, reduction, **options)
        self.shape = (num_classes, *out_features)
        columns = int(torch.Size(self.shape).numel())
        self.linear = torch.nn.Linear(in_features, columns, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """See `xent.torch.linear_cross_entropy`."""
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.unflatten(0, self.shape),
            target,
            linear_bias=None if bias is None else bias.unflatten(0, self.shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            **self.options,
        )
