"""Derivatives of the row statistics in PyTorch's own operations: what second and higher orders are made of.

The kernels give first derivatives, and second ones where nothing is derived further; these formulas can be
derived any number of times, in any mode.
"""

from __future__ import annotations

from typing import Any

import torch

from xent.core import head
from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link

Tensor = torch.Tensor


class Softmax:
    """One batch of rows, with its probabilities and the measure in the shapes that products need."""

    def __init__(self, logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link) -> None:
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        self.link = link
        self.read = None
        if labels is not None:  # a negative label: the row is not read, for its derivatives would be 0·NaN
            self.read = (labels >= 0)[..., None]
            self.logits = torch.where(self.read, self.logits, 0.0)
            if dense is not None and dense.ndim > 1:
                dense = torch.where(self.read, dense, 0.0)
        u = link.value(self.logits, torch)
        self.log_p = torch.log_softmax(u, -1)
        self.p = self.log_p.exp()
        self.labels = labels
        self.dense = dense

    def stats(self) -> RowStats:
        """The statistics themselves."""
        lse = torch.logsumexp(self.link.value(self.logits, torch), -1)
        log_p = torch.where(self.p == 0, 0.0, self.log_p)
        log_prob = sigma = mass = None
        if self.labels is not None:
            log_prob = self._where_read(self._at_label(self.log_p))
            log_prob = torch.where(self.labels >= self.logits.shape[-1], torch.nan, log_prob)
        if self.dense is not None:
            sigma, mass = self.dense_log_prob()
        entropy = self._where_read(-(self.p * log_p).sum(-1))
        return RowStats(
            self._where_read(lse), log_prob, sigma, mass, entropy, self.logits.detach().argmax(-1)
        )

    def dense_log_prob(self) -> tuple[Tensor, Tensor]:
        """(σ, V), derivable in the dense part too."""
        dense: Any = self.dense
        sigma = self._where_read(head.times(dense, self.log_p, torch).sum(-1))
        return sigma, self._where_read(dense.sum(-1).expand(sigma.shape))

    def jvp(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tangents of (lse, log_prob, dense_log_prob) along ``vector``."""
        r = self._read(self.link.slope(self.logits, torch) * vector.to(self.logits.dtype))
        rho = (self.p * r).sum(-1)
        none = torch.zeros_like(rho)
        dx = none if self.labels is None else self._at_label(r) - self._where_read(rho)
        if self.dense is None:
            return self._where_read(rho), dx, none
        mass = self.dense.sum(-1)
        return self._where_read(rho), dx, (self.dense * r).sum(-1) - mass * self._where_read(rho)

    def grad(self, cotangents: Cotangents) -> Tensor:
        """Equation (2): φ'∘[dl p + dx (e_y − p) + dσ (v − V p)]."""
        return self._read(self.link.slope(self.logits, torch) * self._bracket(cotangents))

    def hvp(self, cotangents: Cotangents, vector: Tensor) -> Tensor:
        """Equation (3) with constant cotangents: φ'∘(dl − dx − V dσ) p∘(r̃ − ρ) + φ''∘r∘(the bracket)."""
        r = vector.to(self.logits.dtype)
        slope = self.link.slope(self.logits, torch)
        weight = self._weight_of_p(cotangents)
        bent = slope * r
        rho = (self.p * bent).sum(-1, keepdim=True)
        product = slope * (weight[..., None] * self.p * (bent - rho))
        if self.link.softcap is not None:
            product = product + self.link.curvature(self.logits, torch) * r * self._bracket(cotangents)
        return self._read(product)

    def entropy_grad(self, dentropy: Tensor) -> Tensor:
        """Gradient of the entropy −⟨p, log p⟩: −φ'∘p∘(log p + entropy)."""
        log_p = torch.where(self.p == 0, 0.0, self.log_p)  # 0·(−inf) = 0
        entropy = -(self.p * log_p).sum(-1, keepdim=True)
        slope = self.link.slope(self.logits, torch)
        product = slope * self.p * (log_p + entropy)
        return self._read(head.times(-dentropy[..., None], product, torch))

    def entropy_jvp(self, vector: Tensor) -> Tensor:
        """Tangent of the entropy along ``vector``."""
        one = self.logits.new_ones(self.logits.shape[:-1])
        return (self.entropy_grad(one) * vector).sum(-1)

    def _weight_of_p(self, c: Cotangents) -> Any:
        weight = c.lse - c.log_prob
        return weight if self.dense is None else weight - self.dense.sum(-1) * c.dense_log_prob

    def _bracket(self, c: Cotangents) -> Tensor:
        bracket: Tensor = self._weight_of_p(c)[..., None] * self.p
        if self.labels is not None:
            index = torch.where(self._in_range(), self.labels, 0)[..., None]
            bracket = bracket.scatter_add(
                -1, index, torch.as_tensor(c.log_prob, dtype=bracket.dtype)[..., None]
            )
        if self.dense is not None:
            bracket = bracket + torch.as_tensor(c.dense_log_prob)[..., None] * self.dense
        return bracket

    def _at_label(self, x: Tensor) -> Tensor:
        index = torch.where(self._in_range(), self.labels, 0)[..., None]  # type: ignore[arg-type]
        return x.gather(-1, index)[..., 0]

    def _in_range(self) -> Tensor:
        labels = self.labels
        assert labels is not None
        return (labels >= 0) & (labels < self.logits.shape[-1])

    def _read(self, x: Tensor) -> Tensor:
        return x if self.read is None else torch.where(self.read, x, 0.0)

    def _where_read(self, x: Tensor) -> Tensor:
        return x if self.read is None else torch.where(self.read[..., 0], x, 0.0)
