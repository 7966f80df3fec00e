"""Softmax regression: the estimator, its objective and its solvers.

`estimator` is the scikit-learn classifier; `parameters`, `features` and `class_targets` check its arguments.
`sums` has the partitions of the rows, in one memory or several, and what each computes; `objective` is the
penalised loss over all. `file_rows` has the rows of files that need not fit in memory, `dask_input`
recognises dask collections, and `dask_rows` has their rows as partitions. `solvers` minimise the objective
and bound the distance to the minimum. `fitting` sets an estimator's attributes to the result. `penalty` has
the classifier that chooses its penalty, `saved` the files of fits: models and checkpoints. `calibration` fits
a temperature.
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
