"""Newton-CG: each step minimises the quadratic model (3) by preconditioned conjugate gradients.

Gradients are computed in float64, Hessian products in the dtype of X: a step need not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import Point, step_along, step_of_intercept
from xent.regression.solvers.preconditioners import Preconditioner, preconditioner
from xent.regression.solvers.progress import Progress

Array = np.ndarray[Any, Any]

MAX_PRODUCTS = 200  # Hessian products for each step


def newton_cg(objective: Objective, point: Point, progress: Progress, random: np.random.RandomState) -> Point:
    """Step from ``point`` until ``progress`` ends, or no step lowers the objective; return the last point."""
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
    """The step to the minimum of the quadratic model; vectors of sparse problems, long ones, are float32."""
    estimate = preconditioner(objective, point.parameters, random)
    hessian = objective.rounded.hessian(point.parameters)
    gradient = point.gradient.astype(
        objective.rounded.dtype if objective.is_sparse else np.float64, copy=False
    )
    return _solve(hessian, gradient, point.value, estimate).astype(np.float64, copy=False)


def _solve(
    hessian: Callable[[Array], Array], gradient: Array, value: float, estimate: Preconditioner
) -> Array:
    """Approximate −H⁻¹ gradient, more exactly near the optimum.

    At a direction of negative curvature (focal loss), return the approximation so far.
    """
    add = get_blas_funcs("axpy", (gradient,))  # in place, unlike NumPy
    direction = np.zeros_like(gradient)
    residual = -gradient
    preconditioned = estimate(residual)
    search = preconditioned.copy()
    size = first = float(residual @ preconditioned)
    # For the squared residual: proportional to the gap, for quadratic convergence; 1e-6 due to float32.
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
