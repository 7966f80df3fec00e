"""Derivatives of the row statistics in PyTorch operations, for second and higher orders.

The kernels compute first derivatives, and second ones that are not differentiated again; these functions can
be differentiated any number of times, in any mode.
"""

from __future__ import annotations

from typing import Any

import torch

from xent.core import softmax
from xent.core.link import Link

Tensor = torch.Tensor


class Softmax(softmax.Softmax):
    """`core.softmax.Softmax` of tensors, in float32 or float64."""

    def __init__(self, logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link) -> None:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        super().__init__(wide, labels, None if dense is None else dense.to(wide.dtype), link, torch)

    def _log_softmax(self, u: Tensor) -> Tensor:
        return torch.log_softmax(u, -1)  # one operation, and so is its derivative

    def lse(self) -> Tensor:
        """l, by one operation."""
        return torch.logsumexp(self.link.value(self.logits, torch), -1)

    def _take_class(self, x: Tensor, index: Tensor) -> Tensor:
        return x.gather(-1, index)

    def _replace_class(self, x: Tensor, index: Tensor, value: Tensor) -> Tensor:
        return x.scatter(-1, index, value)

    def _expectation(self, x: Tensor) -> Tensor:
        return (self.p * x).sum(-1)

    def _column(self, coefficient: Any) -> Tensor:
        return torch.as_tensor(super()._column(coefficient), dtype=self.p.dtype)
