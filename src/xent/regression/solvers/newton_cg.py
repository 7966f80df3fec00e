"""Newton-CG: the step that minimises the quadratic model (3), found by preconditioned conjugate gradients.

The gradient is exact, the Hessian products are in the dtype of X: a step need not be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import Point, step_along, step_of_intercept
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.whitening import Preconditioner, preconditioner

Array = np.ndarray[Any, Any]

MAX_PRODUCTS = 200  # a step


def newton_cg(objective: Objective, point: Point, progress: Progress, random: np.random.RandomState) -> Point:
    """From ``point`` to where ``progress`` was content, or exhausted, or no step lowers the objective."""
    polished = False
    while not (progress.exhausted or progress.ended):
        following = None
        if not polished and progress.within_reach <= 0.5 * progress.tol:
            following, polished = step_of_intercept(point, objective, progress), True
        else:
            direction = _direction(objective, point, random)
            following, polished = step_along(direction, point, objective, progress), False
        if following is not None:
            point = following
            progress.stepped(point.parameters, point.value)
        elif not polished:
            break
    return point


def _direction(objective: Objective, point: Point, random: np.random.RandomState) -> Array:
    """Towards the minimum of the quadratic model. Sparse problems have the long vectors: coarse ones too."""
    estimate = preconditioner(objective, point.parameters, random)
    hessian = objective.rounded.hessian(point.parameters)
    gradient = point.gradient.astype(
        objective.rounded.dtype if objective.is_sparse else np.float64, copy=False
    )
    return _solve(hessian, gradient, point.value, estimate).astype(np.float64, copy=False)


def _solve(
    hessian: Callable[[Array], Array], gradient: Array, value: float, estimate: Preconditioner
) -> Array:
    """About −H⁻¹ gradient: the nearer to the optimum, the more exactly.

    Where the objective curves downwards (focal loss), what was found before.
    """
    add = get_blas_funcs("axpy", (gradient,))  # in place, where NumPy has a product and a sum
    direction = np.zeros_like(gradient)
    residual = -gradient
    preconditioned = estimate(residual)
    search = preconditioned.copy()
    size = first = float(residual @ preconditioned)
    # Of the squared residual: the convergence is quadratic, down to what float32 products can tell.
    tolerance = min(0.1, max(1e-6, 0.5 * first / max(value, np.finfo(float).tiny)))
    for _ in range(MAX_PRODUCTS):
        product = hessian(search)
        curvature = float(search @ product)
        if curvature <= 0:
            return direction if direction.any() else search
        length = size / curvature
        add(search, direction, a=length)
        add(product, residual, a=-length)
        preconditioned = estimate(residual)
        before, size = size, float(residual @ preconditioned)
        if size <= tolerance * first:
            break
        search *= size / before
        search += preconditioned
    return direction
