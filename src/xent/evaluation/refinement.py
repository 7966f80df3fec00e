"""What is measured on a sample of the rows: the temperature and what it saves, and classwise calibration."""

from __future__ import annotations

import math
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from xent.api.cross_entropy import softmax
from xent.engine import checks
from xent.evaluation import bins, standard_errors
from xent.evaluation.bins import BINS, SquaredError
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


class Classwise(NamedTuple):
    """The calibration of the probabilities of all classes: means over classes, in `BINS` equal intervals."""

    error: float  # mean gap
    expected: float  # the mean of ``error`` for a calibrated model with as many rows
    interval: tuple[float, float]  # 95%
    rms: float  # root of the mean squared gap without its bias
    rms_interval: tuple[float, float]  # 95%
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


def classwise(p: Array, labels: Array, groups: Array | None = None) -> Classwise:
    """Classwise calibration of probabilities ``p (n, K)`` with ``labels (n,)``, in ``groups (n,)`` of rows.

    As `bins.mean_gap` and `bins.squared_error` of K·`BINS` bins, of which each row is in K. The variance of
    a sum over bins is that of the sums of each unit, a row or a group, over its bins: no covariance is kept.
    """
    n, K = p.shape
    number = K * BINS
    index = np.minimum((p * BINS).astype(np.int64), BINS - 1) + BINS * np.arange(K)
    gaps = p - (labels[:, None] == np.arange(K))
    # Each cell is a unit and a bin in which it has rows: their number, and the sum of their gaps.
    if groups is None:
        G, unit, bin_ = n, np.repeat(np.arange(n), K), index.ravel()
        inside, total = np.ones(n * K), gaps.ravel()
    else:
        names, unit = np.unique(groups, return_inverse=True)
        G = len(names)
        cells, cell = np.unique(unit[:, None] * number + index, return_inverse=True)
        unit, bin_ = cells // number, cells % number
        inside, total = np.bincount(cell.ravel()).astype(float), np.bincount(cell.ravel(), gaps.ravel())
    correction, size = G / max(1, G - 1), np.bincount(unit, inside, G) / K
    rows, sums, units, chance = (
        np.bincount(where, weight, number).astype(float)
        for where, weight in (
            (bin_, inside),
            (bin_, total),
            (bin_, None),
            (index.ravel(), (p * (1 - p)).ravel()),
        )
    )
    share = sums / n
    residuals = np.bincount(bin_, total * (total - 2 * share[bin_] * size[unit]), number)
    variances = np.maximum(0.0, residuals + share**2 * float(size @ size)) * correction
    deviations = np.sqrt(np.maximum(variances, chance))
    signs = np.sign(sums)
    each = np.bincount(unit, signs[bin_] * total, G) - float(signs @ share) * size
    variance = float(each @ each) * correction - float(variances.sum()) + float(deviations @ deviations)
    error = math.sqrt(max(0.0, variance)) / (n * K)
    expected = np.sqrt(chance) if groups is None else deviations
    squared = _squared_error(np.stack([rows, sums, units, chance]), unit, bin_, inside, total, K)
    return Classwise(
        float(np.abs(sums).sum()) / (n * K),
        bins.HALF_NORMAL * float(expected.sum()) / (n * K),
        bins.mean_gap_interval(sums / (n * K), deviations / (n * K), error, G - 1),
        *squared.root(G - 1),
        n,
    )


def _squared_error(
    by_bin: Array, unit: Array, bin_: Array, inside: Array, total: Array, num_classes: int
) -> SquaredError:
    """As `bins.squared_error`, from rows, sums, units and chance by bin, and the cells of `classwise`."""
    rows, sums, units, chance = by_bin
    used = units > 1
    if not used.any():
        return bins.NO_SQUARED_ERROR
    n = np.where(used, rows, 1)
    weight, mean = np.where(used, rows, 0) / rows[used].sum(), sums / n
    residual = total - mean[bin_] * inside
    noise = np.bincount(bin_, residual**2, len(rows)) * units / (np.maximum(1, units - 1) * n**2)
    squared = float(weight @ (mean**2 - noise))
    more = np.maximum(noise, chance / n**2)
    each = np.bincount(unit, (weight * mean / n)[bin_] * residual)
    linear = float(each @ each) + float((weight * mean) ** 2 @ (more - noise))
    # The gaps of a row sum to 0 over the classes, so those of two classes of like size have the correlation
    # −1/(K − 1), which adds K − 1 times its square.
    trace = float((weight * more) @ (weight * more)) * num_classes / max(1, num_classes - 1)
    size = float(weight @ mean**2)
    return SquaredError(squared, 4 * linear / size if size else 0.0, 2 * trace)
