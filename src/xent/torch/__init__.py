"""`xent` for PyTorch: its losses under its own names, every option, the whole autograd contract.

`functional`, `binary`, `distillation` and `modules` have the public functions and modules; `linear` computes
the loss of a linear layer without its whole logits, `fused` makes a model's own loss do so, and `distributed`
computes that of logits split over processes. `xent` itself calls `api` for tensors.

`arguments` checks the arguments of a loss, which form a `Call`; `targets` checks labels and probabilities,
and makes the `Target` of equation (1); `temperature` divides by one that is a tensor. `dispatch` sends
DTensors to `distributed` and other tensors to `dense` or `linear`. `modes` tells which of PyTorch's modes and
transforms are active. In plain reverse mode `dense` makes one autograd node, otherwise ordinary operations
around the row statistics of `statistics`. `operator_numbers` passes options to custom operators. `devices`
calls the kernels.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from xent.core.contract import RowStatistics
from xent.torch.binary.loss import binary_cross_entropy_with_logits
from xent.torch.distillation import linear_kl_divergence, linear_topk_kl_divergence
from xent.torch.functional import cross_entropy, linear_cross_entropy, row_statistics
from xent.torch.fused.layer import fuse, unfuse
from xent.torch.linear.statistics import linear_row_statistics
from xent.torch.linear.values import LossValues
from xent.torch.modules import BCEWithLogitsLoss, CrossEntropyLoss, LinearCrossEntropyLoss

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LossValues",
    "RowStatistics",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "fuse",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "linear_row_statistics",
    "linear_topk_kl_divergence",
    "row_statistics",
    "unfuse",
]


def __getattr__(name: str) -> ModuleType:
    """Import `xent.torch.distributed` at its first use."""
    if name == "distributed":
        return importlib.import_module("xent.torch.distributed")
    raise AttributeError(f"module `xent.torch` has no attribute `{name}`")
