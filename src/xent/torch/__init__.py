"""`xent` for PyTorch: its losses under its own names, every option, the whole autograd contract."""

from xent.protocol import RowStatistics
from xent.torch.binary import binary_cross_entropy_with_logits
from xent.torch.functional import cross_entropy, row_statistics
from xent.torch.linear import linear_cross_entropy
from xent.torch.linear_statistics import linear_kl_divergence, linear_row_statistics
from xent.torch.modules import BCEWithLogitsLoss, CrossEntropyLoss, LinearCrossEntropyLoss

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "RowStatistics",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "linear_row_statistics",
    "row_statistics",
]
