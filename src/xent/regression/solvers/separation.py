"""Detect separable classes: without a penalty their loss has no minimum at finite weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core import head
from xent.core.contract import RowStats
from xent.core.target import Target
from xent.regression.objective import Objective

Array = np.ndarray[Any, Any]


def least_error(objective: Objective) -> float:
    """The least that a wrongly predicted row adds to the objective, its loss at p = 1/2.

    A lower objective proves that the classes are separable. Returns 0 if there is a minimum in any case:
    with a penalty, or if a row has several classes.
    """
    spec = objective.spec
    if objective.alpha or spec.softcap is not None or spec.z_loss:
        return 0.0
    mass = objective.least_mass_of_one_class()
    if not mass:
        return 0.0
    row = Target(np.zeros(1, np.int64), 1.0, None, 0.0, None, 1, 1)
    loss = float(head.row_losses(RowStats(log_prob=np.log([0.5])), row, spec, np)[0])
    return loss * mass / objective.divisor


def separates(objective: Objective, parameters: Array) -> bool:
    """Whether in every row with weight the logit of the true class is the largest, beyond rounding."""
    return bool(least_error(objective)) and not objective.has_errors(parameters)
