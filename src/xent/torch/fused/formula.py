"""Logits in terms of hidden states, weights and a link, and their loss by `linear_cross_entropy`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xent.torch import functional

Tensor = torch.Tensor

LARGEST = 1e30  # of a scale, a cap and their inverses


class Formula(NamedTuple):
    """cap · tanh(scale · (rows · weightᵀ + bias)); without the tanh if ``cap`` is None."""

    rows: Tensor  # (..., D)
    weight: Tensor  # (K, D)
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def scaled(self, factor: float) -> Formula | None:
        """The logits times ``factor``; None if the link cannot express them."""
        factor = factor * (self.scale if self.cap is None else self.cap)
        if not 1 / LARGEST < factor < LARGEST:
            return None
        return self._replace(scale=factor) if self.cap is None else self._replace(cap=factor)

    def capped(self) -> Formula | None:
        """The tanh of the logits; None if they are one already."""
        return self._replace(cap=1.0) if self.cap is None else None

    def shifted(self, vector: Tensor) -> Formula | None:
        """The logits plus a vector over the classes; None after a link."""
        if self.scale != 1.0 or self.cap is not None:
            return None
        return self._replace(bias=vector if self.bias is None else self.bias + vector)

    def of_classes(self, count: int) -> Formula:
        """The logits of the first ``count`` classes."""
        bias = None if self.bias is None else self.bias[:count]
        return self._replace(weight=self.weight[:count], bias=bias)

    def cross_entropy(self, target: Tensor, **options: Any) -> Tensor:
        """The loss of rows (N, D) by equation (1), with T and C of the link."""
        if self.cap is not None:
            options |= {"softcap": self.cap, "temperature": 1 / (self.scale * self.cap)}
        elif self.scale != 1.0:
            options["temperature"] = 1 / self.scale
        with torch.autocast(self.rows.device.type, enabled=False):
            return functional.linear_cross_entropy(
                self.rows, self.weight, target, linear_bias=self.bias, **options
            )
