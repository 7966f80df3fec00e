"""Check the parameters of SoftmaxRegression."""

from __future__ import annotations

import math
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from xent.core.spec import LossSpec
from xent.regression.solvers import SOLVERS


def check_parameters(estimator: Any) -> LossSpec:
    """The options of the loss; ValueError or TypeError names the first parameter that is not valid."""
    for name in ("alpha", "tol", "checkpoint_interval"):
        value = getattr(estimator, name)
        if not _is_at_least_0(value):
            raise ValueError(f"`{name}` must be a number, finite and >= 0; got {value!r}")
    max_iter = estimator.max_iter
    if isinstance(max_iter, bool) or not hasattr(max_iter, "__index__") or max_iter < 0:
        raise ValueError(f"`max_iter` must be an integer >= 0; got {max_iter!r}")
    if not isinstance(estimator.verbose, Integral | np.bool) or estimator.verbose < 0:
        raise ValueError(f"`verbose` must be True, False or an integer >= 0; got {estimator.verbose!r}")
    for name in ("fit_intercept", "warm_start"):
        value = getattr(estimator, name)
        if not isinstance(value, bool | np.bool):
            raise ValueError(f"`{name}` must be True or False; got {value!r}")
    if estimator.solver not in SOLVERS:
        names = ", ".join(f'"{name}"' for name in SOLVERS)
        raise ValueError(f"`solver` must be one of {names}; got {estimator.solver!r}")
    if not (estimator.callback is None or callable(estimator.callback)):
        raise ValueError(f"`callback` must be callable or None; got {estimator.callback!r}")
    for name in ("checkpoint", "resume"):
        value = getattr(estimator, name)
        if not isinstance(value, str | PathLike | None):
            raise ValueError(f"`{name}` must be a path or None; got {value!r}")
    _check_class_weight(estimator.class_weight)
    _check_random_state(estimator.random_state)
    return LossSpec(
        label_smoothing=estimator.label_smoothing,
        smoothing_over=estimator.smoothing_over,
        focal_gamma=estimator.focal_gamma,
    )


def _check_class_weight(class_weight: Any) -> None:
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "balanced"):
        return
    if not isinstance(class_weight, dict):
        raise ValueError(f'`class_weight` must be a dict, "balanced" or None; got {class_weight!r}')
    for label, factor in class_weight.items():
        if not _is_at_least_0(factor):
            raise ValueError(f"`class_weight` must be finite and >= 0; got {factor!r} for {label!r}")


def _check_random_state(random_state: Any) -> None:
    """scikit-learn's check; a seed is checked without making a generator, which takes as long as a step."""
    if not (isinstance(random_state, Integral) and 0 <= int(random_state) < 1 << 32):
        check_random_state(random_state)


def _is_at_least_0(value: Any) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool | np.bool)
    return number and math.isfinite(value) and value >= 0
