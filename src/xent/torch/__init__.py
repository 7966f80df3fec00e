"""`xent` for PyTorch: its losses under its own names, every option, the whole autograd contract.

`functional`, `binary` and `modules` have the public functions and modules; `linear` computes the loss of a
layer whose logits are never whole, `distributed` that of logits that are split over processes. `api` is what
`xent` itself calls with tensors.

A loss is a `Call` of `arguments`, which checks them; `targets` checks labels and probabilities and makes the
measure of equation (1); `temperature` divides by a temperature that is learnt. `dispatch` sends DTensors to
`distributed`, all else to `dense` or `linear`. `modes` says who watches a call. If only reverse mode does,
`dense` answers with one autograd node, otherwise with ordinary operations around `statistics`: operators of
`operators` and `binary_ops` in compiled graphs, and `softmax_derivatives` for higher orders. `devices` and
`memory` lead to the kernels.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from xent.core.contract import RowStatistics
from xent.torch.binary import binary_cross_entropy_with_logits
from xent.torch.functional import cross_entropy, linear_cross_entropy, row_statistics
from xent.torch.linear.statistics import linear_kl_divergence, linear_row_statistics
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


def __getattr__(name: str) -> ModuleType:
    """`xent.torch.distributed`, loaded when it is asked for."""
    if name == "distributed":
        return importlib.import_module("xent.torch.distributed")
    raise AttributeError(f"module `xent.torch` has no attribute `{name}`")
