"""xent: the cross-entropy loss, its gradient and its Hessian product, exact and fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xent import information
    from xent.api.binary import binary_cross_entropy, binary_cross_entropy_with_grad
    from xent.api.cross_entropy import (
        CrossEntropyLoss,
        cross_entropy,
        cross_entropy_hvp,
        cross_entropy_with_grad,
        log_softmax,
        logsumexp,
        softmax,
    )
    from xent.api.linear import linear_cross_entropy, linear_cross_entropy_with_grad, linear_row_statistics
    from xent.api.row_statistics import row_statistics
    from xent.core.contract import RowStatistics
    from xent.engine.memory import release_memory
    from xent.regression.estimator import SoftmaxRegression
    from xent.regression.file_rows.rows import rows_from
    from xent.regression.penalty.estimator_cv import SoftmaxRegressionCV

    __version__: str

__all__ = [
    "CrossEntropyLoss",
    "RowStatistics",
    "SoftmaxRegression",
    "SoftmaxRegressionCV",
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
    "release_memory",
    "row_statistics",
    "rows_from",
    "softmax",
]


# Modules are loaded at the first use of a name: the command must handle Ctrl-C before NumPy is loaded, and
# scikit-learn may be missing.
_MODULES = {
    "binary_cross_entropy": "api.binary",
    "binary_cross_entropy_with_grad": "api.binary",
    "linear_cross_entropy": "api.linear",
    "linear_cross_entropy_with_grad": "api.linear",
    "linear_row_statistics": "api.linear",
    "row_statistics": "api.row_statistics",
    "RowStatistics": "core.contract",
    "release_memory": "engine.memory",
    "SoftmaxRegression": "regression.estimator",
    "SoftmaxRegressionCV": "regression.penalty.estimator_cv",
    "rows_from": "regression.file_rows.rows",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xent")
    if name not in __all__:
        raise AttributeError(f"module 'xent' has no attribute {name!r}")
    if name == "information":
        return import_module("xent.information")
    globals()[name] = getattr(import_module(f"xent.{_MODULES.get(name, 'api.cross_entropy')}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
