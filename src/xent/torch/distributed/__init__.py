"""Losses whose classes or rows are split over the processes of a group.

`loss` has the public functions; first they call `handshake`, in which the ranks compare what they were given.
`shards` combines the row statistics of the ranks' classes, and `layers` reads the logits of a
rank, from memory or chunk by chunk from a projection. `dtensors` takes DTensors apart, `dtensor_rows` those
whose rows are split.
"""

from __future__ import annotations

from xent.torch.distributed.loss import vocab_parallel_cross_entropy, vocab_parallel_linear_cross_entropy

__all__ = ["vocab_parallel_cross_entropy", "vocab_parallel_linear_cross_entropy"]
