"""Softmax regression: the estimator, what it minimises, and how.

`estimator` is the scikit-learn classifier; `parameters`, `features` and `class_targets` check what it is
given. `objective` is the penalised loss (`fused` where one pass over dense features computes it); `solvers`
minimise it and prove how far from the minimum they stopped. `calibration` fits a temperature; `state` and
`model_file` save and load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xent.regression.estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]


def __getattr__(name: str) -> Any:
    if name == "SoftmaxRegression":  # needs scikit-learn: loaded when asked for
        from xent.regression.estimator import SoftmaxRegression

        return SoftmaxRegression
    raise AttributeError(f"module 'xent.regression' has no attribute {name!r}")
