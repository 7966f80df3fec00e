"""Preconditioners: the inverse of an estimate of the Hessian, as a function of a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from xent.objective import Objective

Array = np.ndarray[Any, Any]
Preconditioner = Callable[[Array], Array]

WIDEST = 2048  # features; whitening costs their third power
ROWS = 8  # rows a feature that the estimate is made of


def preconditioner(objective: Objective, parameters: Array, random: np.random.Generator) -> Preconditioner:
    """Whitening where X is dense and not wide, otherwise the diagonal."""
    if objective.is_sparse or objective.num_features > WIDEST:
        return diagonal(objective, parameters)
    return whitening(objective, parameters, random)


def whitening(objective: Objective, parameters: Array, random: np.random.Generator) -> Preconditioner:
    """``(XᵀSX + αI)⁻¹`` on the weights of each class, intercept included; S is the curvature of a row.

    S is the mean over the classes of what (3) has on its diagonal, so that at W = 0 this is the inverse
    Hessian. A sample of the rows serves as well as all.
    """
    rows = max(4096, ROWS * objective.num_features)
    if rows < objective.num_rows:
        chosen = np.sort(random.choice(objective.num_rows, rows, replace=False))
        objective = objective.subset(chosen, objective.divisor * rows / objective.num_rows)
    width = objective.num_features + objective.fit_intercept
    gram = np.zeros((width, width))
    for x, weight in objective.curvature(parameters):
        root = np.sqrt(weight.mean(1, keepdims=True))
        scaled = np.concatenate([x * root, root], 1) if objective.fit_intercept else x * root
        gram += scaled.T @ scaled
    diagonal = gram.reshape(-1)[:: width + 1]
    # What is left of directions in which nothing varies: not 0, or they would not be positive.
    floor = 1e-10 * float(diagonal.mean()) + np.finfo(float).tiny
    diagonal += floor
    diagonal[: objective.num_features] += objective.alpha
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram), np.eye(width))

    def apply(vector: Array) -> Array:
        coef, intercept = objective.unpack(vector)
        if not objective.fit_intercept:
            return objective.pack(coef @ inverse, intercept)
        product = np.concatenate([coef, intercept[:, None]], 1) @ inverse
        return objective.pack(product[:, :-1], product[:, -1])

    return apply


def diagonal(objective: Objective, parameters: Array) -> Preconditioner:
    """The inverse of the Hessian's diagonal (Jacobi)."""
    dcoef = np.full((objective.num_scores, objective.num_features), objective.alpha)
    dintercept = np.zeros(objective.num_scores)
    for x, weight in objective.curvature(parameters):
        squares = x.multiply(x).T if objective.is_sparse else (x * x).T
        dcoef += (squares @ weight).T
        dintercept += weight.sum(0)
    whole = objective.pack(dcoef, dintercept)
    whole += 1e-10 * whole.mean() + np.finfo(float).tiny
    return lambda vector: vector / whole
