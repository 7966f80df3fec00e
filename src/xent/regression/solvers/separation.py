"""Detect separable classes: without a penalty their loss has no minimum at finite weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core import head
from xent.core.contract import RowStats
from xent.regression.objective import Objective, row_mass

Array = np.ndarray[Any, Any]


def least_error(objective: Objective) -> float:
    """The least that a wrongly predicted row adds to the objective, its loss at p = 1/2.

    A lower objective proves that the classes are separable. Returns 0 if there is a minimum in any case:
    with a penalty, or if a row has several classes.
    """
    target, spec = objective.target, objective.spec
    if objective.alpha or spec.softcap is not None or spec.z_loss or not _has_one_class_a_row(objective):
        return 0.0
    row = target._replace(labels=np.zeros(1, np.int64), alpha=1.0, dense=None, weight=None)
    loss = float(head.row_losses(RowStats(log_prob=np.log([0.5])), row, spec, np)[0])
    mass = row_mass(target, objective.num_rows)
    return loss * float(mass[mass > 0].min()) / objective.divisor


def separates(objective: Objective, parameters: Array) -> bool:
    """Whether in every row with weight the logit of the true class is the largest, beyond rounding."""
    if not least_error(objective):
        return False
    for x, target, logits in objective.logits(parameters):
        own = target.labels if target.dense is None else target.dense.argmax(1)
        rows = np.arange(x.shape[0])
        above = logits[rows, own]
        noise = 1e-12 * np.abs(logits).max(1)
        logits[rows, own] = -np.inf
        if not (above > logits.max(1) + noise)[row_mass(target, len(rows)) > 0].all():
            return False
    return True


def _has_one_class_a_row(objective: Objective) -> bool:
    dense = objective.target.dense
    if dense is None:
        return True
    return objective.target.labels is None and bool((np.count_nonzero(dense, axis=1) <= 1).all())
