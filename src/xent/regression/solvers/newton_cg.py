"""Newton-CG: each step minimises the quadratic model (3) by preconditioned conjugate gradients.

Gradients are computed in float64, Hessian products in the dtype of X: a step need not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import get_blas_funcs

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import step_along, step_of_intercept
from xent.regression.solvers.preconditioners import Preconditioner, preconditioner
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.state import Draws, Point

Array = np.ndarray[Any, Any]

MAX_PRODUCTS = 200  # Hessian products for each step
CERTIFIED = 0.25  # part of tol that the weights may take of the gap expected after a step, at which it ends


class State(NamedTuple):
    """The point, and whether its intercept is the best."""

    point: Point
    polished: bool
    draws: Draws

    @classmethod
    def begin(cls, objective: Objective, point: Point, random: np.random.RandomState) -> State:
        """The state before the first step."""
        return cls(point, False, Draws.of(random))

    @property
    def is_exact(self) -> bool:
        """Gradients are float64."""
        return True


def newton_cg(objective: Objective, state: State, progress: Progress) -> Point:
    """Step from ``state`` until ``progress`` ends, or no step lowers the objective; return the last point."""
    point, polished, _ = state
    del state  # free its long vectors early
    while not (progress.exhausted or progress.ended):
        following = None
        if not polished and progress.within_reach <= 0.5 * progress.tol:
            following, polished = step_of_intercept(point, objective, progress), True
        else:
            direction = _direction(objective, point, progress)
            following, polished = step_along(direction, point, objective, progress), False
        if following is not None:
            point = following
            progress.stepped(State(point, polished, Draws.of(progress.random)))
        elif not polished:
            break
    return point


def _direction(objective: Objective, point: Point, progress: Progress) -> Array:
    """The step to the minimum of the quadratic model; vectors of sparse problems, long ones, are float32."""
    logits = objective.rounded.logits(point.parameters)
    estimate = preconditioner(objective, point.parameters, progress.random, logits=logits)
    hessian = objective.rounded.hessian(point.parameters, logits)
    gradient = point.gradient.astype(
        objective.rounded.dtype if objective.is_sparse else np.float64, copy=False
    )
    weights = objective.num_scores * objective.num_features
    enough = 2.0 * objective.alpha * CERTIFIED * progress.tol * point.value if objective.is_convex else 0.0
    direction, residual = _solve(hessian, gradient, point.value, estimate, weights, enough)
    direction = direction.astype(np.float64, copy=False)
    if objective.fit_intercept and float(residual[:weights] @ residual[:weights]) <= enough:
        return _with_best_intercept(direction, objective, point, progress)
    return direction


def _with_best_intercept(direction: Array, objective: Objective, point: Point, progress: Progress) -> Array:
    """``direction`` and a Newton step of the intercept where it ends, by a pass without a gradient in W.

    The certificate, which is to hold there, is sensitive to the intercept.
    """
    if progress.certificate is None or progress.certificate.moments is None:
        return direction
    predicted, hessian = objective.rounded.intercept_model(point.parameters + direction)
    change = np.linalg.lstsq(hessian, progress.certificate.moments[0][-len(predicted) :] - predicted)[0]
    if len(change) > 1:
        change -= change.mean()  # the Hessian is singular: a constant for all classes is rounding
    coef, intercept = objective.unpack(direction)
    changed = objective.pack(coef, intercept + change)
    # It is a correction. One longer than the direction, and than a nat, is from far off, without curvature.
    corrects = float(change @ change) <= max(1.0, float(direction @ direction))
    return changed if corrects and float(changed @ point.gradient) < 0 else direction


def _solve(
    hessian: Callable[[Array], Array],
    gradient: Array,
    value: float,
    estimate: Preconditioner,
    weights: int,
    enough: float,
) -> tuple[Array, Array]:
    """Approximate −H⁻¹ gradient, more exactly near the optimum, and the negative residual.

    At a direction of negative curvature (focal loss), return the approximation so far. The residual is the
    gradient expected after the step: a square of at most ``enough`` in its first entries, the ``weights``,
    ends the iteration.
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
            return direction if direction.any() else search, residual
        length = size / curvature
        add(search, direction, a=length)
        add(product, residual, a=-length)
        preconditioned = estimate(residual)
        before, size = size, float(residual @ preconditioned)
        expected = residual[:weights]
        if size <= tolerance * first or float(expected @ expected) <= enough:
            break
        search *= size / before
        search += preconditioned
    return direction, residual
