"""What a person gives as X, checked without a trace on the estimator, and its scores under a linear model."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from xent.kernels import cpu_sparse

Array = np.ndarray[Any, Any]

KEPT = ("n_features_in_", "feature_names_in_")


def check(estimator: Any, X: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """(X as an array or CSR matrix of float64 or float32, what `keep` gives to the estimator)."""
    cpu_sparse.require_sound(X)
    fresh = copy(estimator)
    with np.errstate(invalid="ignore"):  # the sum by which scikit-learn looks for NaN may be inf − inf
        X = validate_data(fresh, X, accept_sparse="csr", dtype=[np.float64, np.float32], **options)
    return X, {name: value for name, value in vars(fresh).items() if name in KEPT}


def keep(estimator: Any, kept: dict[str, Any]) -> None:
    """Let the estimator know the features that it is trained on, and none of those before."""
    for name in KEPT:
        vars(estimator).pop(name, None)
    vars(estimator).update(kept)


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
    """What training found, in the dtype of X."""
    with np.errstate(over="ignore"):
        weights = parameters.astype(dtype)
    if not np.isfinite(weights).all():
        raise ValueError(f"the weights overflow {dtype}: bring the features to one scale (StandardScaler)")
    return weights
