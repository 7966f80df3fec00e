"""Bins of confidence: calibration errors with their bias and intervals, of independent rows or of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xent.evaluation import standard_errors

Array = np.ndarray[Any, Any]

BINS = 15  # bins of the highest probability, for the calibration error
FINE = 256  # parts of a bin, of which bins with equally many rows are put together
GROUPS = 1024  # groups of rows are put together to so many, for the covariance of the bins
HALF_NORMAL = math.sqrt(2 / math.pi)  # E|x| of a standard normal x
CERTAIN = 3.5  # standard deviations beyond which the sign of a gap is taken for known


class Bin(NamedTuple):
    """The rows whose probability lies in one interval of [0, 1]."""

    rows: int
    confidence: float  # mean of the probability
    accuracy: float  # share of these rows for which the event was true


class CalibrationErrors(NamedTuple):
    """Gaps between confidence and accuracy, (43) to (46) and (60) to (64) of docs/maths.md."""

    error: float  # mean gap over `BINS` equal intervals
    expected: float  # the mean of ``error`` for a calibrated model with as many rows
    interval: tuple[float, float]  # 95%, of the mean gap over these intervals of all rows there could be
    adaptive: float  # mean gap over `BINS` bins of equally many rows
    adaptive_expected: float
    adaptive_interval: tuple[float, float]
    rms: float  # root of the mean squared gap over the bins of equally many rows, without its bias
    rms_interval: tuple[float, float]  # 95%
    gap_interval: tuple[float, float]  # 95%, of mean confidence less accuracy


class Gaps(NamedTuple):
    """The gaps, confidence less accuracy, of B bins with rows, and how precisely they are known."""

    rows: Array  # (B,)
    sums: Array  # (B,) of the gaps of the rows
    chance: Array  # (B,) variances of the sums, if the model is calibrated and rows are independent
    covariance: Array  # (B, B) of the sums, less their part of what N varies, (60)
    noise: Array  # (B, B) covariance of the mean gaps, given the bins of the rows, (45)
    units: Array  # (B,) rows, or groups with rows, in the bin
    freedom: int  # rows or groups, less 1

    @property
    def deviations(self) -> Array:
        """Standard deviations of sums / N, (B,), no less than those of a calibrated model."""
        variances: Array = np.maximum(np.diag(self.covariance), self.chance)
        return np.sqrt(variances) / float(self.rows.sum())


class GroupSums:
    """The rows in each part of a bin and the sums of their gaps, by groups of rows.

    More than `GROUPS` groups are put together, g with g + `GROUPS` and so on. Sums over groups that are
    independent are independent too, so the covariance keeps its mean, with a relative error of √(2/GROUPS).
    """

    def __init__(self, groups: int) -> None:
        self.width = min(groups, GROUPS)
        self.rows, self.gaps = np.zeros((2, BINS * FINE, self.width))

    def add(self, confidence: Array, right: Array, groups: Array) -> None:
        """Add rows (n,): their confidence, whether they are right, and the index of their group."""
        fine = np.minimum((confidence * (BINS * FINE)).astype(np.int64), BINS * FINE - 1)
        place = fine * self.width + groups % self.width
        np.add.at(self.rows.ravel(), place, 1.0)
        np.add.at(self.gaps.ravel(), place, confidence - right)


def calibration_errors(fine: Array, groups: GroupSums | None = None) -> CalibrationErrors:
    """The calibration errors of the sums of all fine bins, as `equal_widths` takes them.

    With ``groups`` the rows of a group may depend on each other in any way.
    """
    widths, masses = (gaps_of(fine, index, groups) for index in (widths_index(), masses_index(fine)))
    N = widths.rows.sum()
    gap = standard_errors.Estimate(
        float(widths.sums.sum() / N) if N else math.nan,
        math.sqrt(max(0.0, float(widths.covariance.sum()))) / float(N) if widths.freedom > 0 else math.nan,
        widths.freedom,
    )
    return CalibrationErrors(
        *mean_gap(widths, groups is None),
        *mean_gap(masses, groups is None),
        *squared_error(masses).root(masses.freedom),
        gap.interval,
    )


def gaps_of(fine: Array, index: Array, groups: GroupSums | None = None) -> Gaps:
    """The gaps of the bins that ``index`` has for each fine bin, in ascending order; bins with rows alone."""
    rows, right, confidence = fine[:, :3].T
    filled = np.flatnonzero(rows)
    n, gaps = rows[filled], (confidence - right)[filled]
    mean = confidence[filled] / n
    # Of all rows of a fine bin the confidence is that of their mean, to 1/3840.
    squares = n * mean**2 - 2 * mean * right[filled] + right[filled]
    starts = np.flatnonzero(np.diff(index[filled], prepend=-1))
    sums, squares, chance, n = (
        np.add.reduceat(each, starts) if len(each) else each
        for each in (gaps, squares, n * mean * (1 - mean), n)
    )
    if groups is None:
        return _of_rows(n, sums, squares, chance)
    by_group = [np.add.reduceat(each[filled], starts, axis=0) for each in (groups.gaps, groups.rows)]
    return _of_groups(n, chance, *by_group)


def _of_rows(n: Array, sums: Array, squares: Array, chance: Array) -> Gaps:
    """The gaps of independent rows, from sums over the rows of each bin (B,)."""
    N = n.sum()
    covariance = (np.diag(squares) - np.outer(sums, sums) / max(1, N)) * (N / max(1, N - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.maximum(0.0, squares - sums**2 / n) / (n * (n - 1))
    return Gaps(n, sums, chance, covariance, np.diag(noise), n, int(N) - 1)


def _of_groups(n: Array, chance: Array, gaps: Array, rows: Array) -> Gaps:
    """The gaps of rows in groups, from sums over the rows of each bin and group (B, G)."""
    size, sums = rows.sum(0), gaps.sum(1)
    G, units = int(np.count_nonzero(size)), np.count_nonzero(rows, axis=1)
    residual = gaps - np.outer(sums, size) / max(1, n.sum())
    inner = gaps - (sums / n)[:, None] * rows
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(units / (units - 1)) / n
        noise = (inner @ inner.T) * np.outer(scale, scale)
    covariance = residual @ residual.T * (G / max(1, G - 1))
    return Gaps(n, sums, chance, covariance, noise, units, G - 1)


def mean_gap(gaps: Gaps, independent: bool = True) -> tuple[float, float, tuple[float, float]]:
    """(the mean gap (43), its mean for a calibrated model (44), its 95% interval (63)); NaN without rows."""
    N, deviations = gaps.rows.sum(), gaps.deviations
    if not N:
        return math.nan, math.nan, (math.nan, math.nan)
    signs = np.sign(gaps.sums)
    # The delta method's variance, with the larger variances of `deviations` on the diagonal.
    variance = signs @ gaps.covariance @ signs - np.trace(gaps.covariance)
    error = math.sqrt(max(0.0, float(variance) / N**2 + float(deviations @ deviations)))
    expected = HALF_NORMAL * float(np.sqrt(gaps.chance).sum() / N if independent else deviations.sum())
    low, high = mean_gap_interval(gaps.sums / N, deviations, error, gaps.freedom)
    return float(np.abs(gaps.sums).sum() / N), expected, (low, high)


def mean_gap_interval(gaps: Array, deviations: Array, error: float, freedom: int) -> tuple[float, float]:
    """The 95% interval (63) of Σ|μ|, from normal estimates ``gaps`` of μ with standard ``deviations`` (B,).

    ``error`` is the standard error of Σ|gaps| by the delta method. NaN for ``freedom < 1``.
    """
    if freedom < 1:
        return math.nan, math.nan
    half = standard_errors.quantile(freedom) * error
    sizes = np.abs(gaps)
    open_ = sizes < CERTAIN * deviations  # their sign may be that of the noise
    noise, rest = float(deviations[open_].sum()), float(sizes[open_].sum())
    known = float(sizes[~open_].sum())
    low = known + rest - HALF_NORMAL * noise - half
    high = known + (noise * _unfolded((rest + half) / noise) if noise else rest + half)
    return max(0.0, low), high


def _unfolded(mean: float) -> float:
    """The u ≥ 0 for which |x|, x normal about u with variance 1, has this mean; 0 below the least mean."""
    low, high = 0.0, mean
    while high - low > 1e-12 * mean:
        u = (low + high) / 2
        folded = HALF_NORMAL * math.exp(-u * u / 2) + u * math.erf(u / math.sqrt(2))
        low, high = (u, high) if folded < mean else (low, u)
    return low


class SquaredError(NamedTuple):
    """A mean squared gap without its bias, (45), which may be negative; where the mean squared gap is x, its
    variance is ``slope·x + least``, (46)."""

    value: float
    slope: float
    least: float

    def root(self, freedom: int) -> tuple[float, tuple[float, float]]:
        """(the root, 0 of a negative value; its 95% interval, of all x whose variance allows the value)."""
        if math.isnan(self.value):
            return math.nan, (math.nan, math.nan)
        square = standard_errors.quantile(freedom) ** 2
        middle = self.value + square * self.slope / 2
        half = math.sqrt(max(0.0, middle**2 - self.value**2 + square * self.least))
        low, value, high = (math.sqrt(max(0.0, x)) for x in (middle - half, self.value, middle + half))
        return value, (low if self.value > 0 else 0.0, high)


NO_SQUARED_ERROR = SquaredError(math.nan, math.nan, math.nan)


def squared_error(gaps: Gaps) -> SquaredError:
    """The mean squared gap of the bins of at least 2 units; NaN without such bins."""
    used = np.flatnonzero(gaps.units > 1)
    if not len(used):
        return NO_SQUARED_ERROR
    n, mean, noise = gaps.rows[used], (gaps.sums / gaps.rows)[used], gaps.noise[np.ix_(used, used)]
    share, variances = n / n.sum(), np.diag(noise)
    squared = float(share @ (mean**2 - variances))
    # A bin without a wrong row shows no noise, but has that of a calibrated model.
    noise = noise + np.diag(np.maximum(0.0, gaps.chance[used] / n**2 - variances))
    weighted = share[:, None] * noise
    size, linear = float(share @ mean**2), float((share * mean) @ noise @ (share * mean))
    return SquaredError(squared, 4 * linear / size if size else 0.0, 2 * float((weighted * weighted.T).sum()))


def equal_widths(fine: Array) -> list[Bin]:
    """`BINS` equal intervals of [0, 1], without the empty ones.

    ``fine (BINS·FINE, ≥ 3)`` has the sums of equal parts of them: rows, right rows, confidence.
    """
    return bins_of(fine.reshape(BINS, FINE, -1).sum(1))


def widths_index() -> Array:
    """The bin of `BINS` of equal width that each fine bin is part of, (BINS·FINE,)."""
    return np.repeat(np.arange(BINS), FINE)


def masses_index(fine: Array) -> Array:
    """The bin of `BINS`, with about equally many rows, that each fine bin is part of, (BINS·FINE,).

    So a bin is no narrower than 1/3840, and more rows than a fifteenth may share one.
    """
    through = np.cumsum(fine[:, 0])
    index: Array = (through - fine[:, 0] / 2) * BINS / max(1, through[-1])
    return np.minimum(index, BINS - 1).astype(int)


def bins_of(sums: Array) -> list[Bin]:
    """The bins of sums (bins, ≥ 3) of rows, right rows and confidence, without the empty ones."""
    return [Bin(int(n), c / n, r / n) for n, r, c, *_ in sums.tolist() if n]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over rows of |confidence − accuracy| of their bin; NaN without rows."""
    rows = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / rows if rows else math.nan
