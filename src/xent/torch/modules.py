"""The losses as modules, under the names that `torch.nn` gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from xent.torch import arguments, functional
from xent.torch.binary.loss import binary_cross_entropy_with_logits
from xent.torch.functional import linear_cross_entropy

Tensor = torch.Tensor


class _Loss(torch.nn.Module):
    """A module that calls ``function`` with a reduction and the options of its constructor.

    ``sample_weight`` and ``denominator`` of a call take precedence over those of the constructor.
    """

    function: Callable[..., Tensor]

    def __init__(
        self, size_average: bool | None, reduce: bool | None, reduction: str, **options: Any
    ) -> None:
        super().__init__()
        parameters = inspect.signature(self.function).parameters
        for name in options:
            if name not in parameters:
                raise TypeError(f"{type(self).__name__} has no option `{name}`")
        self.reduction = arguments.legacy_reduction(size_average, reduce, reduction)
        self.options = options
        if isinstance(options.get("temperature"), torch.nn.Parameter):  # registered, to be learnt
            self.temperature = options.pop("temperature")

    def keywords(self, **given: Any) -> dict[str, Any]:
        """The options with the learnt temperature; arguments of the call take precedence."""
        learnt = {"temperature": getattr(self, "temperature", None)}
        overrides = {name: value for name, value in (learnt | given).items() if value is not None}
        return self.options | overrides

    def extra_repr(self) -> str:
        """The reduction and the options that differ from their defaults."""
        defaults = {"ignore_index": (-100, None), "label_smoothing": (0.0,)}
        own = {
            k: getattr(self, k)
            for k, default in defaults.items()
            if getattr(self, k, default[0]) not in default
        }
        return ", ".join(
            f"{k}={v!r}" for k, v in {"reduction": self.reduction, **own, **self.keywords()}.items()
        )


class CrossEntropyLoss(_Loss):
    """`torch.nn.CrossEntropyLoss`, with the options of `xent.torch.cross_entropy` as keywords.

    >>> import torch, xent.torch
    >>> loss = xent.torch.CrossEntropyLoss(label_smoothing=0.1, z_loss=1e-4)
    >>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3865
    """

    function = staticmethod(functional.cross_entropy)
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

    def forward(
        self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, denominator: Any = None
    ) -> Tensor:
        """See `xent.torch.cross_entropy`."""
        return self.function(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            **self.keywords(sample_weight=sample_weight, denominator=denominator),
        )


class BCEWithLogitsLoss(_Loss):
    """`torch.nn.BCEWithLogitsLoss`, with the options of `xent.torch.binary_cross_entropy_with_logits`.

    >>> import torch, xent.torch
    >>> round(xent.torch.BCEWithLogitsLoss()(torch.zeros(2), torch.tensor([0.0, 1.0])).item(), 4)
    0.6931
    """

    function = staticmethod(binary_cross_entropy_with_logits)
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

    def forward(
        self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, denominator: Any = None
    ) -> Tensor:
        """See `xent.torch.binary_cross_entropy_with_logits`, whose ``weight`` is ``sample_weight`` here."""
        weight = self.weight
        if sample_weight is not None:
            arguments.require_tensor(input, "input")
            validate = self.options.get("validate")
            arguments.require_together(input=input, sample_weight=sample_weight)
            arguments.require_factor(sample_weight, "sample_weight", input.shape, "input", validate)
            weight = sample_weight
        return self.function(
            input,
            target,
            weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            **self.keywords(denominator=denominator),
        )


class LinearCrossEntropyLoss(_Loss):
    """`torch.nn.LinearCrossEntropyLoss`: a linear layer without its output, and the loss of its logits.

    >>> import torch, xent.torch
    >>> loss = xent.torch.LinearCrossEntropyLoss(8, 4, bias=True)
    >>> loss(torch.ones(2, 8), torch.tensor([0, 3])).shape
    torch.Size([])
    """

    function = staticmethod(linear_cross_entropy)
    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
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

    def forward(
        self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, denominator: Any = None
    ) -> Tensor:
        """See `xent.torch.linear_cross_entropy`."""
        bias = self.linear.bias
        return self.function(
            input,
            self.linear.weight.unflatten(0, self.shape),
            target,
            linear_bias=None if bias is None else bias.unflatten(0, self.shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            **self.keywords(sample_weight=sample_weight, denominator=denominator),
        )
