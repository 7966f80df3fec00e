"""Losses and row statistics whose classes or rows are split over the processes of a group.

`loss`, `distillation` and `statistics` have the public functions. They first call `handshake`, in which the
ranks compare their arguments. `shards` combines the row statistics of the ranks' classes; `layers` computes
them from the logits of a rank, which are in memory or projected chunk by chunk. `divergence` computes
divergences from a teacher in the same way, and `row_stats` statistics; `sharded` the losses of checked calls.
`dtensors` does the same for DTensors, whose classes or rows are split.
"""

from __future__ import annotations

from xent.torch.distributed.distillation import (
    vocab_parallel_linear_kl_divergence,
    vocab_parallel_linear_topk_kl_divergence,
)
from xent.torch.distributed.loss import vocab_parallel_cross_entropy, vocab_parallel_linear_cross_entropy
from xent.torch.distributed.statistics import vocab_parallel_linear_row_statistics

__all__ = [
    "vocab_parallel_cross_entropy",
    "vocab_parallel_linear_cross_entropy",
    "vocab_parallel_linear_kl_divergence",
    "vocab_parallel_linear_row_statistics",
    "vocab_parallel_linear_topk_kl_divergence",
]
