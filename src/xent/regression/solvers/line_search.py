"""Line search along a direction, and a Newton step of the intercept alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.regression.objective import Objective
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.state import Point

Array = np.ndarray[Any, Any]

TRIALS = 40  # bisections; a Newton step from p = e^−20 is e^20 too long


def evaluate(function: Objective, parameters: Array, progress: Progress) -> Point:
    """Evaluate the objective and its gradient, and update the gap."""
    value, gradient = function(parameters)
    progress.evaluated(parameters, value, gradient)
    return Point(parameters, value, gradient)


def step_along(direction: Array, point: Point, function: Objective, progress: Progress) -> Point | None:
    """A point that satisfies the weak Wolfe conditions, by bisection (Lewis and Overton, 2013).

    If the decrease is below rounding, the slopes decide instead (Hager and Zhang, 2005). Returns None if the
    objective does not fall along the direction, or `TRIALS` were not enough.
    """
    slope = float(direction @ point.gradient)
    progress.promised(-0.5 * slope, point.value)
    if not slope < 0:
        return None
    low, high, length = 0.0, np.inf, 1.0
    noise = 8 * float(np.finfo(function.dtype).eps) * abs(point.value)
    for _ in range(TRIALS):
        trial = evaluate(function, point.parameters + length * direction, progress)
        trial_slope = float(trial.gradient @ direction)
        falls = trial.value <= point.value + 1e-4 * length * slope
        if not (falls or (trial.value <= point.value + noise and trial_slope <= -0.9998 * slope)):
            high = length
        elif trial_slope < 0.9 * slope:
            low = length
        else:
            return trial
        length = 0.5 * (low + high) if high < np.inf else 2.0 * low
    return None


def step_of_intercept(
    point: Point, function: Objective, progress: Progress, noise: float = 0.0
) -> Point | None:
    """A Newton step of the intercept alone, to which the certificate is sensitive.

    None if it increases the objective by more than ``noise``.
    """
    coef, intercept = function.unpack(point.parameters)
    _, dintercept = function.unpack(point.gradient)
    change = np.linalg.lstsq(function.rounded.intercept_model(point.parameters)[1], -dintercept)[0]
    trial = evaluate(function, function.pack(coef, intercept + change), progress)
    return trial if trial.value <= point.value + noise else None
