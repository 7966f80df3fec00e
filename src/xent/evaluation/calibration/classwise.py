"""The calibration of the probabilities of all classes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent.evaluation.calibration import bins
from xent.evaluation.calibration.bins import BINS, SquaredError

Array = np.ndarray[Any, Any]


class Classwise(NamedTuple):
    """The calibration of the probabilities of all classes: means over classes, in `BINS` equal intervals."""

    error: float  # mean gap
    expected: float  # the mean of ``error`` for a calibrated model with as many rows
    interval: tuple[float, float]  # 95%
    rms: float  # root of the mean squared gap without its bias
    rms_interval: tuple[float, float]  # 95%
    rows: int  # rows of the sample


class _Cells(NamedTuple):
    """Each pair of a unit, a row or a group of rows, and a bin in which it has rows."""

    unit: Array  # (C,) its index
    bin: Array  # (C,) its index
    rows: Array  # (C,) of the unit in the bin
    gaps: Array  # (C,) summed over these rows
    units: int  # in all


class _Bins(NamedTuple):
    """Sums over the rows of each of K·`BINS` bins, (K·BINS,)."""

    rows: Array
    gaps: Array
    units: Array  # that have rows in the bin
    chance: Array  # variances of the gaps' sums, if the model is calibrated and rows are independent


def classwise(p: Array, labels: Array, groups: Array | None = None) -> Classwise:
    """Classwise calibration of probabilities ``p (n, K)`` with ``labels (n,)``, in ``groups (n,)`` of rows.

    As `bins.mean_gap` and `bins.squared_error` of K·`BINS` bins, of which each row is in K. The variance of
    a sum over bins is that of the sums of each unit over its bins: no covariance is kept.
    """
    n, K = p.shape
    index = np.minimum((p * BINS).astype(np.int64), BINS - 1) + BINS * np.arange(K)
    cells = _cells(index, p - (labels[:, None] == np.arange(K)), groups)
    columns = (
        (cells.bin, cells.rows),
        (cells.bin, cells.gaps),
        (cells.bin, None),
        (index.ravel(), (p * (1 - p)).ravel()),
    )
    sums = _Bins(*(np.bincount(where, weight, K * BINS).astype(float) for where, weight in columns))
    error, expected, interval = _mean_gap(cells, sums, K, independent=groups is None)
    return Classwise(error, expected, interval, *_squared_error(cells, sums, K).root(cells.units - 1), n)


def _cells(index: Array, gaps: Array, groups: Array | None) -> _Cells:
    """From the bins and the gaps of each row and class, (n, K)."""
    n, K = index.shape
    if groups is None:
        return _Cells(np.repeat(np.arange(n), K), index.ravel(), np.ones(n * K), gaps.ravel(), n)
    names, unit = np.unique(groups, return_inverse=True)
    pairs, cell = np.unique(unit[:, None] * (K * BINS) + index, return_inverse=True)
    rows, sums = np.bincount(cell.ravel()).astype(float), np.bincount(cell.ravel(), gaps.ravel())
    return _Cells(pairs // (K * BINS), pairs % (K * BINS), rows, sums, len(names))


def _mean_gap(
    cells: _Cells, sums: _Bins, num_classes: int, independent: bool
) -> tuple[float, float, tuple[float, float]]:
    """As `bins.mean_gap`."""
    G, total = cells.units, float(sums.rows.sum())  # rows × classes
    n, correction = total / num_classes, G / max(1, G - 1)
    size = np.bincount(cells.unit, cells.rows, G) / num_classes
    share = sums.gaps / n
    products = cells.gaps * (cells.gaps - 2 * share[cells.bin] * size[cells.unit])
    variances = np.bincount(cells.bin, products, len(share)) + share**2 * float(size @ size)
    variances = np.maximum(0.0, variances) * correction
    deviations = np.sqrt(np.maximum(variances, sums.chance))
    signs = np.sign(sums.gaps)
    each = np.bincount(cells.unit, signs[cells.bin] * cells.gaps, G) - float(signs @ share) * size
    variance = float(each @ each) * correction - float(variances.sum()) + float(deviations @ deviations)
    error = math.sqrt(max(0.0, variance)) / total
    expected = np.sqrt(sums.chance) if independent else deviations
    return (
        float(np.abs(sums.gaps).sum()) / total,
        bins.HALF_NORMAL * float(expected.sum()) / total,
        bins.mean_gap_interval(sums.gaps / total, deviations / total, error, G - 1),
    )


def _squared_error(cells: _Cells, sums: _Bins, num_classes: int) -> SquaredError:
    """As `bins.squared_error`."""
    used = sums.units > 1
    if not used.any():
        return bins.NO_SQUARED_ERROR
    n = np.where(used, sums.rows, 1)
    weight, mean = np.where(used, sums.rows, 0) / sums.rows[used].sum(), sums.gaps / n
    residual = cells.gaps - mean[cells.bin] * cells.rows
    noise = np.bincount(cells.bin, residual**2, len(n))
    noise = noise * sums.units / (np.maximum(1, sums.units - 1) * n**2)
    squared = float(weight @ (mean**2 - noise))
    more = np.maximum(noise, sums.chance / n**2)
    each = np.bincount(cells.unit, (weight * mean / n)[cells.bin] * residual)
    linear = float(each @ each) + float((weight * mean) ** 2 @ (more - noise))
    # The gaps of a row sum to 0 over the classes, so those of two classes of like size have the correlation
    # −1/(K − 1), which adds K − 1 times its square.
    trace = float((weight * more) @ (weight * more)) * num_classes / max(1, num_classes - 1)
    size = float(weight @ mean**2)
    return SquaredError(squared, 4 * linear / size if size else 0.0, 2 * trace)
