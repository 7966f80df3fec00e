"""Check X without a change to the estimator; compute the scores of a linear model."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from xent.kernels import cpu_sparse
from xent.regression.dask_input import is_dask

Array = np.ndarray[Any, Any]

ATTRIBUTES = ("n_features_in_", "feature_names_in_")


def check(estimator: Any, X: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """(X as an array or CSR matrix of float64 or float32, the attributes for `set_attributes`)."""
    if is_dask(X):
        raise TypeError(
            "`X` must be in memory here; got a dask collection, which only `fit`, `score` and the "
            "predictions take: compute it, or go from partition to partition"
        )
    cpu_sparse.require_sound(X)
    other = copy(estimator)
    with np.errstate(invalid="ignore"):  # scikit-learn looks for NaN by a sum, which may be inf − inf
        X = validate_data(other, X, accept_sparse="csr", dtype=[np.float64, np.float32], **options)
    return X, {name: value for name, value in vars(other).items() if name in ATTRIBUTES}


def set_attributes(estimator: Any, attributes: dict[str, Any]) -> None:
    """Replace the number and names of the features on the estimator."""
    for name in ATTRIBUTES:
        vars(estimator).pop(name, None)
    vars(estimator).update(attributes)


def scores(X: Any, coef: Array, intercept: Array) -> Array:
    """``X @ coef.T + intercept``; ValueError where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.asarray(X @ coef.T + intercept)
    if not np.isfinite(result).all():
        row = int((~np.isfinite(result)).any(1).argmax())
        raise ValueError(
            f"the scores of row {row} of `X` overflow {result.dtype}: bring it to the scale of `fit`"
        )
    return result


def as_weights(parameters: Array, dtype: np.dtype[Any]) -> Array:
    """``parameters`` in the dtype of X; ValueError if they overflow."""
    with np.errstate(over="ignore"):
        weights = parameters.astype(dtype)
    if not np.isfinite(weights).all():
        raise ValueError(f"the weights overflow {dtype}: bring the features to one scale (StandardScaler)")
    return weights
