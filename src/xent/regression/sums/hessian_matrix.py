"""The Hessian of few parameters as a matrix: what one partition computes of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.api.cross_entropy import softmax
from xent.regression.sums.partition_sums import RowLoss, blocks_of_logits, row_mass
from xent.regression.sums.partitions import Partition

Array = np.ndarray[Any, Any]


def hessian_matrix(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss, with_intercept: bool
) -> Array:
    """Σ a m (diag p − ppᵀ) ⊗ xxᵀ, a = ω/D: the Hessian (3) of a convex loss in (C, D), (C·D, C·D).

    ``with_intercept`` X has a column of ones, the last, and D is one more.
    """
    scores, width = row_loss.num_scores, partition.features.shape[1] + with_intercept
    result = np.zeros((scores, width, scores, width))
    of_class = np.einsum("kikj->kij", result)  # a view
    for x, target, z in blocks_of_logits(partition, coef, intercept, row_loss):
        p = softmax(z)[:, -scores:].astype(x.dtype, copy=False)
        weighted = p * (row_mass(target, len(p)) / row_loss.divisor).astype(x.dtype)[:, None]
        wide = np.concatenate([x, np.ones_like(x[:, :1])], 1) if with_intercept else x
        if scores == 1:
            of_class += (wide * (weighted * (1 - p))).T @ wide
            continue
        each = (weighted[:, :, None] * wide[:, None, :]).reshape(len(p), -1)
        of_class += (each.T @ wide).reshape(scores, width, width)
        result -= (each.T @ (p[:, :, None] * wide[:, None, :]).reshape(len(p), -1)).reshape(result.shape)
    return result.reshape(scores * width, -1)
