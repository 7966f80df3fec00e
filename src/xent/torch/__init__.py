"""`xent` for PyTorch: its losses under its own names, every option, the whole autograd contract.

Public: `functional`, `linear`, `linear_statistics`, `binary`, `modules`, `distributed`; `last` is what
`xent`'s own functions call. `arguments` and `validated` check, `temperature` divides by one that is learnt.
`door` sends DTensors to `dtensors` and all else to `dense` or `linear_loss`. A plain call goes by `eager`
(CPU) or `on_device` (GPU); by `composite` and `statistics`, with the formulas of `formulas`, where more is
watched; by `ops`, `ahead`, `binary_ops` and `linear_ops` in compiled graphs. `projected` goes through logits
that never exist whole, of what `measured`, `linear_row_stats` and `divergence` say. `sharded`,
`sharded_layers` and `agreement` are classes split over processes. `bridge` and `memory` lead to the kernels.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from xent.core.contract import RowStatistics
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


def __getattr__(name: str) -> ModuleType:
    """`xent.torch.distributed`, loaded when it is asked for."""
    if name == "distributed":
        return importlib.import_module("xent.torch.distributed")
    raise AttributeError(f"module `xent.torch` has no attribute `{name}`")
