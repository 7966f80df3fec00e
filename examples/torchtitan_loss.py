"""torchtitan's loss without logits: its own cross-entropy, of an output layer that `fuse` took over.

Put `ProjectedLoss.Config(...)` where a configuration has `ChunkedLossWrapper.Config(...)`. The trainer then
leaves the output layer to the loss, as it does for torchtitan's own chunks. In place of a product, a loss and
a backward for each of them there is one call; the loss inside is torchtitan's, with its sum and its division
by the tokens of all ranks. torchtitan 0.3.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.loss import ChunkedLossWrapper

import xent.torch

Tensor = torch.Tensor


class ProjectedLoss(ChunkedLossWrapper):
    """The loss of ``lm_head(pred)``, whose logits are computed and dropped in chunks by `xent`."""

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        """As `ChunkedLossWrapper.Config`; ``num_chunks`` is not needed."""

    def set_lm_head(self, lm_head: torch.nn.Module) -> None:
        """Take the output layer, whose weight stays the model's."""
        super().set_lm_head(xent.torch.fuse(lm_head))

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of hidden states ``pred (N, T, D)``, and its metrics."""
        return self.loss_fn(self.lm_head(pred), labels, global_valid_tokens, **inputs)
