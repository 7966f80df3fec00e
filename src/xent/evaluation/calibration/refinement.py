"""What is measured on a sample of the rows: the temperature and what it saves; classwise calibration."""

from __future__ import annotations

import math
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from xent.api.cross_entropy import softmax
from xent.engine import checks
from xent.evaluation import standard_errors
from xent.evaluation.calibration.classwise import Classwise, classwise
from xent.evaluation.scoring import Columns
from xent.evaluation.standard_errors import UnitSums
from xent.regression.calibration import Calibrated, cross_fitted

Array = np.ndarray[Any, Any]

ENOUGH = 20_000  # rows that are enough to fit a temperature
FEWEST = 128  # rows of a sample with very many classes, which tell the temperature to some hundredths
LEAST, MOST = 1 << 20, 1 << 25  # logits of a sample
SHARE = 256  # one of so many logits of a large file is sampled: fitting takes about six reads of the sample
MOST_CLASSES = 100  # for classwise calibration
CLASSWISE = 1 << 19  # probabilities for it


class Refinement(NamedTuple):
    """The loss as ``refinement + calibration``, (48) of docs/maths.md, by a fitted temperature."""

    refinement: float  # the loss that the temperature leaves
    calibration: float  # what it saves, fitted on other rows than it is applied to; 0 if nothing
    calibration_se: float
    temperature: float
    temperature_se: float
    rows: int  # rows of the sample


class RowSample:
    """Evenly spread rows of the file with their targets, all rows of a small file."""

    def __init__(
        self, num_rows: int, num_classes: int, probabilities: bool, groups: Array | None = None
    ) -> None:
        most = min(MOST, max(LEAST, num_rows * num_classes // SHARE))
        rows = max(1, min(ENOUGH, max(FEWEST, most // num_classes), MOST // num_classes))
        self.stride = max(1, math.ceil(num_rows / rows))
        self.probabilities = probabilities
        self.counts = np.zeros(-(-num_rows // self.stride), bool)  # which of the sampled rows count
        self.groups = None if groups is None else groups[:: self.stride]
        self.allocating = Lock()
        self.outputs: Array | None = None
        self.targets: Array | None = None

    def take(self, outputs: Array, targets: Array, columns: Columns, start: int) -> None:
        """Copy those of the rows from ``start`` on that are in the sample; called by any thread."""
        rows = slice(-start % self.stride, None, self.stride)
        label = columns.label[rows]
        soft = targets.dtype.kind not in "iu"
        with self.allocating:
            if self.outputs is None or self.targets is None:
                n = len(self.counts)
                self.outputs = np.empty((n, *outputs.shape[1:]), outputs.dtype)
                self.targets = np.empty((n, *targets.shape[1:]) if soft else n, float if soft else np.int64)
        first = -(-start // self.stride)
        place = slice(first, first + len(label))
        self.counts[place] = (label >= 0) & ~np.isnan(columns.loss[rows])
        self.outputs[place] = outputs[rows]
        self.targets[place] = targets[rows] if soft else label

    @property
    def rows(self) -> tuple[Array, Array] | None:
        """(outputs, targets) of the sampled rows that count, None without one."""
        if self.outputs is None or self.targets is None or not self.counts.any():
            return None
        if self.counts.all():
            return self.outputs, self.targets
        return self.outputs[self.counts], self.targets[self.counts]

    def refinement(self, loss: float) -> Refinement | None:
        """The parts of the mean ``loss`` of all rows; None if the sample has no best temperature."""
        if self.rows is None or not math.isfinite(loss):
            return None
        logits, targets = self.rows
        if self.probabilities:
            with np.errstate(divide="ignore"):
                logits = np.log(logits, dtype=np.float64)
        fitted = cross_fitted(checks.as_logits(logits), targets)
        if fitted.temperature is None or not np.isfinite(fitted.losses).all():
            return None
        return Refinement(
            loss - fitted.saved,
            fitted.saved,
            self._saved_se(fitted),
            fitted.temperature,
            fitted.temperature_se,
            len(logits),
        )

    def classwise(self) -> Classwise | None:
        """The classwise calibration of the sample; None without rows or with more than `MOST_CLASSES`."""
        if self.rows is None or self.rows[0].shape[1] > MOST_CLASSES:
            return None
        outputs, targets = self.rows
        every = math.ceil(outputs.size / CLASSWISE)
        p = outputs[::every].astype(np.float64)
        p = p / p.sum(1, keepdims=True) if self.probabilities else softmax(p)
        if targets.ndim == 2:
            targets = targets.argmax(1)
        groups = None if self.groups is None else self.groups[self.counts][::every]
        return classwise(p, targets[::every], groups)

    def _saved_se(self, fitted: Calibrated) -> float:
        """The standard error of what the temperature saves, clustered by the groups if there are any."""
        if self.groups is None:
            return fitted.saved_se
        saved = fitted.losses - fitted.calibrated
        names, groups = np.unique(self.groups[self.counts], return_inverse=True)
        sums = UnitSums(2, len(names))
        sums.add(np.stack([np.ones(len(saved)), saved], 1), groups)
        return standard_errors.ratio(*sums.totals, np.array([0.0, 1.0]), np.array([1.0, 0.0])).se
