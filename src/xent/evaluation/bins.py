"""Bins of confidence: calibration errors, what a calibrated model would show, and an unbiased estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

BINS = 15  # bins of the highest probability, for the calibration error
FINE = 256  # parts of a bin, of which bins with equally many rows are put together


class Bin(NamedTuple):
    """The rows whose probability lies in one interval of [0, 1]."""

    rows: int
    confidence: float  # mean of the probability
    accuracy: float  # share of these rows for which the event was true


class CalibrationErrors(NamedTuple):
    """Gaps between confidence and accuracy, (43) to (46) of docs/maths.md."""

    error: float  # mean gap over `BINS` equal intervals
    expected: float  # the mean of ``error`` for a calibrated model with as many rows
    adaptive: float  # mean gap over `BINS` bins of equally many rows
    adaptive_expected: float
    rms: float  # root of the mean squared gap over the bins of equally many rows, without its bias
    rms_interval: tuple[float, float]  # 95%


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over rows of |confidence − accuracy| of their bin; NaN without rows."""
    rows = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / rows if rows else math.nan


def expected_error(bins: Sequence[Bin]) -> float:
    """The mean of `calibration_error` for a calibrated model, (44)."""
    rows = sum(b.rows for b in bins)
    terms = (b.rows * math.sqrt(max(0.0, b.confidence * (1 - b.confidence)) / b.rows) for b in bins)
    return math.sqrt(2 / math.pi) * sum(terms) / rows if rows else math.nan


def squared_error(bins: Sequence[Bin]) -> tuple[float, float]:
    """(mean squared gap without its bias, (45), its standard error, (46)), from bins of at least 2 rows.

    The first may be negative, as an unbiased estimate of a small number is. NaN without such bins.
    """
    bins = [b for b in bins if b.rows > 1]
    rows = sum(b.rows for b in bins)
    if not rows:
        return math.nan, math.nan
    squared = variance = 0.0
    for b in bins:
        share, gap = b.rows / rows, b.confidence - b.accuracy
        noise = b.accuracy * (1 - b.accuracy) / (b.rows - 1)
        squared += share * (gap * gap - noise)
        variance += share**2 * (4 * max(0.0, gap * gap - noise) * noise + 2 * noise**2)
    return squared, math.sqrt(variance)


def calibration_errors(fine: Array) -> CalibrationErrors:
    """The calibration errors of the sums of all fine bins, as `equal_widths` takes them."""
    widths, masses = equal_widths(fine), equal_masses(fine)
    return CalibrationErrors(
        calibration_error(widths),
        expected_error(widths),
        calibration_error(masses),
        expected_error(masses),
        *root(*squared_error(masses)),
    )


def root(squared: float, error: float) -> tuple[float, tuple[float, float]]:
    """(the root of a mean squared gap, 0 if that is negative; its 95% interval)."""
    if math.isnan(squared):
        return math.nan, (math.nan, math.nan)
    low, middle, high = (math.sqrt(max(0.0, squared + side * error)) for side in (-1.96, 0.0, 1.96))
    return middle, (low, high)


def equal_widths(fine: Array) -> list[Bin]:
    """`BINS` equal intervals of [0, 1], without the empty ones.

    ``fine (BINS·FINE, ≥ 3)`` has the sums of equal parts of them: rows, right rows, confidence.
    """
    return bins_of(fine.reshape(BINS, FINE, -1).sum(1))


def equal_masses(fine: Array) -> list[Bin]:
    """At most `BINS` intervals with about equally many rows; each is a union of the intervals of ``fine``.

    So a bin is no narrower than 1/3840, and more rows than a fifteenth may share one.
    """
    through = np.cumsum(fine[:, 0])
    if not len(through) or not through[-1]:
        return []
    index = np.minimum((through - fine[:, 0] / 2) * BINS / through[-1], BINS - 1).astype(int)
    sums = np.zeros((BINS, fine.shape[1]))
    np.add.at(sums, index, fine)
    return bins_of(sums)


def bins_of(sums: Array) -> list[Bin]:
    """The bins of sums (bins, ≥ 3) of rows, right rows and confidence, without the empty ones."""
    return [Bin(int(n), c / n, r / n) for n, r, c, *_ in sums.tolist() if n]
