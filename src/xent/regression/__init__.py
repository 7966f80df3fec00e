"""Softmax regression: the estimator, its objective and its solvers.

`estimator` is the scikit-learn classifier; `parameters`, `features` and `class_targets` check its arguments.
`partitions` are the rows, in one memory or several; `partition_sums` is what each computes, where features
are dense and classes few by `fused_loss` in one native pass; `objective` is the penalised loss over all.
`rows` are those of files that need not fit in memory, and `cached_rows` their passes over the files and the
cache; `dask_input` recognises dask collections, and `dask_rows` has their rows as partitions. `solvers`
minimise the objective and bound the distance to the minimum. `estimator_cv` is the classifier that chooses
its penalty, by the held-out losses of `alpha_choice` along a `penalty_path`. `fitting` sets an estimator's
attributes to the result; `checkpoints` are files from which a fit goes on. `threads` limits thread pools.
`calibration` fits a temperature.
`serialization` converts an estimator to tensors and JSON; `model_file` saves it with its preprocessing.
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
