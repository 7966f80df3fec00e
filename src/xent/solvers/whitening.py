"""Preconditioners: the inverse of an estimate of the Hessian, as a function of a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xent.objective import Objective

Array = np.ndarray[Any, Any]
Preconditioner = Callable[[Array], Array]

WIDEST = 2048  # features; whitening costs their third power
FLOOR = 1e-10  # of a feature's own variation: no direction counts as flatter
ROWS = 8  # rows a feature that the estimate is made of at least,
LEAST = 1000  # or so many of all,
SHARE = 16  # or one in so many


def preconditioner(objective: Objective, parameters: Array, random: np.random.RandomState) -> Preconditioner:
    """Whitening where X is dense and not wide, otherwise the diagonal."""
    if is_whitened(objective):
        return whitening(objective, parameters, random)
    return diagonal(objective, parameters)


def is_whitened(objective: Objective) -> bool:
    """Whether X is dense and not wide."""
    return not objective.is_sparse and objective.num_features <= WIDEST


def whitening(objective: Objective, parameters: Array, random: np.random.RandomState) -> Preconditioner:
    """``(XᵀSX + αI)⁻¹`` on the weights of each class, intercept included; S is the curvature of a row.

    S is the mean over the classes of what (3) has on its diagonal, so that at W = 0 this is the inverse
    Hessian. A sample of the rows serves as well as all.
    """
    width = objective.num_features + objective.fit_intercept
    rows = max(LEAST, ROWS * width, objective.num_rows // SHARE)
    if rows < objective.num_rows:
        chosen = np.sort(random.choice(objective.num_rows, rows, replace=False))
        objective = objective.subset(chosen, objective.divisor * rows / objective.num_rows)
    gram = np.zeros((width, width))
    for x, weight in objective.curvature(parameters):
        root = np.sqrt(weight.mean(1, keepdims=True))
        scaled = np.concatenate([x * root, root], 1) if objective.fit_intercept else x * root
        gram += scaled.T @ scaled
    size = gram.reshape(-1)[:: width + 1]
    size[: objective.num_features] += objective.alpha
    # In units of each feature's own size, or the floor under the directions in which nothing varies would
    # hide features on a small scale. Without it they would not be positive.
    unit = 1.0 / np.sqrt(np.where(size > 0, size, 1.0))
    gram *= np.outer(unit, unit)
    size += FLOOR
    root = np.linalg.inv(np.linalg.cholesky(gram)) * unit

    def apply(vector: Array) -> Array:
        coef, intercept = objective.unpack(vector)
        if not objective.fit_intercept:
            return objective.pack(coef @ root.T @ root, intercept)
        product = np.concatenate([coef, intercept[:, None]], 1) @ root.T @ root
        return objective.pack(product[:, :-1], product[:, -1])

    return apply


def diagonal(objective: Objective, parameters: Array) -> Preconditioner:
    """The inverse of the Hessian's diagonal (Jacobi)."""
    inverse = objective.rounded.curvature_of_parameters(parameters)
    inverse[inverse <= 0] = 1.0
    inverse = np.reciprocal(inverse, out=inverse).astype(objective.rounded.dtype, copy=False)
    return lambda vector: vector * inverse
