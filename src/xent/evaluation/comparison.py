"""Compare two models on the same rows: the paired difference of their losses, and where it is largest."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent.evaluation import standard_errors
from xent.evaluation.largest_rows import LargestRows, Row
from xent.evaluation.scoring import Columns
from xent.evaluation.standard_errors import Estimate, UnitSums

Array = np.ndarray[Any, Any]

MOST = 10  # rows to keep on which one model loses most to the other


class Difference(NamedTuple):
    """One row on which the losses of the models differ."""

    row: int  # counted from 1
    label: int
    losses: tuple[float, float]
    predicted: tuple[int, int]


class Wins(NamedTuple):
    """Numbers of rows."""

    first: int  # on which the first model has the lower loss
    second: int
    ties: int


class Comparison(NamedTuple):
    """Two models on the ``rows`` that count for both. Differences are the first model less the second."""

    rows: int
    groups: int | None  # groups of rows that the standard errors are clustered by
    difference: float  # of the mean losses, nats
    difference_se: float  # of the paired difference, (42) of docs/maths.md
    difference_interval: tuple[float, float]
    accuracy_difference: float
    accuracy_difference_se: float
    wins: Wins
    only_right: tuple[int, int]  # rows that only the first, and only the second, predicts right
    correlation: float  # of the losses over rows; NaN if one of them is constant
    first_worse: list[Difference]  # the rows on which the first model loses most to the second
    second_worse: list[Difference]


class PairedSums:
    """Sums over the rows that count for both models."""

    def __init__(self, groups: int | None = None) -> None:
        self.rows = UnitSums(5)  # 1, difference of the losses, of being right, and both losses less a shift
        self.by_group = None if groups is None else UnitSums(3, groups)
        self.shift: tuple[float, float] | None = None
        self.wins = np.zeros(2, np.int64)
        self.only_right = np.zeros(2, np.int64)
        self.worse = LargestRows(MOST), LargestRows(MOST)

    def add(self, first: Columns, second: Columns, start: int, groups: Array | None = None) -> None:
        """Add rows, the first of which is row ``start``, with the index of the group of each."""
        counts = first.counts & second.counts
        a, b = first.loss[counts], second.loss[counts]
        right = [(each.label == each.predicted)[counts] for each in (first, second)]
        with np.errstate(invalid="ignore"):
            difference = np.where(a == b, 0.0, a - b)  # two infinite losses are a tie
        if self.shift is None and len(a):
            self.shift = float(a[0]), float(b[0])
        shift = self.shift or (0.0, 0.0)
        accuracy = right[0].astype(np.float64) - right[1]
        with np.errstate(invalid="ignore"):
            x = np.stack([np.ones(len(a)), difference, accuracy, a - shift[0], b - shift[1]], 1)
        self.rows.add(x)
        if self.by_group is not None and groups is not None:
            self.by_group.add(x[:, :3], groups[counts])
        self.wins += [np.count_nonzero(difference < 0), np.count_nonzero(difference > 0)]
        self.only_right += [np.count_nonzero(accuracy > 0), np.count_nonzero(accuracy < 0)]
        index = np.flatnonzero(counts)
        for keep, keys in zip(self.worse, (difference, -difference), strict=True):
            rows = []
            for n in keep.candidates(keys):
                if keys[n] > 0:
                    each = index[n]
                    predicted = int(first.predicted[each]), int(second.predicted[each])
                    content = Difference(
                        start + int(each) + 1,
                        int(first.label[each]),
                        (float(a[n]), float(b[n])),
                        predicted,
                    )
                    rows.append(Row(float(keys[n]), start + int(each), content))
            keep.add(rows)

    def comparison(self) -> Comparison:
        """The result."""
        products, sums, rows = self.rows.totals
        totals = (products, sums, rows) if self.by_group is None else self.by_group.totals
        difference, accuracy = (self._mean(totals, column) for column in (1, 2))
        first, second = self.wins.tolist()
        return Comparison(
            rows,
            None if self.by_group is None else totals[2],
            difference.value,
            difference.se,
            difference.interval,
            accuracy.value,
            accuracy.se,
            Wins(first, second, rows - first - second),
            (int(self.only_right[0]), int(self.only_right[1])),
            _correlation(products, sums, rows),
            *([row.content for row in keep.rows] for keep in self.worse),
        )

    def _mean(self, totals: tuple[Array, Array, int], column: int) -> Estimate:
        unit = np.eye(len(totals[1]))
        return standard_errors.ratio(*totals, unit[column], unit[0])


def _correlation(products: Array, sums: Array, rows: int) -> float:
    if not rows or not np.isfinite(products[3:, 3:]).all():
        return math.nan
    centred = products[3:, 3:] - np.outer(sums[3:], sums[3:]) / rows
    variances = np.diag(centred)
    if not (variances > 1e-15 * np.diag(products[3:, 3:])).all():
        return math.nan
    return float(np.clip(centred[0, 1] / math.sqrt(variances[0] * variances[1]), -1, 1))
