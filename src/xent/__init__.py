"""xent: the cross-entropy loss, its gradient and its Hessian product, exact and fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xent import information
from xent.api import (
    CrossEntropyLoss,
    cross_entropy,
    cross_entropy_hvp,
    cross_entropy_with_grad,
    log_softmax,
    logsumexp,
    row_statistics,
    softmax,
)
from xent.binary import binary_cross_entropy, binary_cross_entropy_with_grad
from xent.linear import linear_cross_entropy, linear_cross_entropy_with_grad, linear_row_statistics
from xent.protocol import RowStatistics

if TYPE_CHECKING:
    from xent.regression import SoftmaxRegression

__version__ = "0.1.0"

__all__ = [
    "CrossEntropyLoss",
    "RowStatistics",
    "SoftmaxRegression",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "cross_entropy",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "information",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_row_statistics",
    "log_softmax",
    "logsumexp",
    "row_statistics",
    "softmax",
]


def __getattr__(name: str) -> Any:
    if name == "SoftmaxRegression":  # needs scikit-learn: loaded when asked for
        from xent.regression import SoftmaxRegression

        return SoftmaxRegression
    raise AttributeError(f"module 'xent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
