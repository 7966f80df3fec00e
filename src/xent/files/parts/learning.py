"""Learn a Preprocessor from rows that come in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xent.files.preprocess import (
    MOST_LEVELS,
    Preprocessor,
    as_numbers,
    is_boolean,
    medians,
)

Array = np.ndarray[Any, Any]

SAMPLE = 1 << 22  # numbers from which medians are taken: 32 MiB
LEAST_ROWS = 1000  # rows of them, however many columns there are


class Learner:
    """Takes the pieces of a table one after the other; the result is as `Preprocessor.fit` of all rows.

    The difference: medians are those of the rows 0, s, 2s, ..., with s a power of 2 such that they are at
    most 4 Mi numbers (and at least 1,000 rows); s is 1, and the medians are exact, up to that size.

    Examples
    --------
    >>> import polars as pl
    >>> learner = Learner(["a"], [])
    >>> learner.add(pl.DataFrame({"a": [1.0, None]}))
    >>> learner.add(pl.DataFrame({"a": [3.0]}))
    >>> learner.preprocessor().fill
    array([2.])
    """

    def __init__(self, columns: Sequence[str], categories: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.numbers = [name for name in columns if name not in categories]
        width = len(self.numbers)
        self.rows, self.missing = 0, np.zeros(width, np.int64)
        self.mean, self.squares = np.zeros(width), np.zeros(width)  # of the values present; about the mean
        self.least, self.largest = np.full(width, np.inf), np.full(width, -np.inf)
        self.booleans = np.ones(width, bool)
        self.levels: dict[str, set[str | None]] = {name: set() for name in categories}
        self.step, self.most = 1, max(LEAST_ROWS, SAMPLE // max(1, width))
        self.sample: list[Array] = []

    @property
    def width(self) -> int:
        """Number of features so far."""
        return len(self.numbers) + int((self.missing > 0).sum()) + sum(map(len, self.levels.values()))

    def add(self, table: Any) -> None:
        """Learn from more rows: a polars DataFrame of floats and text, null where missing."""
        for name, levels in self.levels.items():
            levels.update(table[name].unique().to_list())
        self._require_few_levels(self.rows + table.height)
        x = as_numbers(table, self.numbers)
        if x.size:
            self._add_moments(x)
            self.least = np.fmin(self.least, np.fmin.reduce(x, axis=0))
            self.largest = np.fmax(self.largest, np.fmax.reduce(x, axis=0))
            for k in np.flatnonzero(self.booleans):
                self.booleans[k] = is_boolean(x[:, k])
            self.sample.append(x[-self.rows % self.step :: self.step].copy())
            self._thin()
        self.rows += table.height

    def merge(self, other: Learner) -> None:
        """Learn what ``other`` has learnt from other rows of the same columns.

        Each of the two samples for the medians is thinned to the steps of the other.
        """
        for name, levels in self.levels.items():
            levels.update(other.levels[name])
        self._require_few_levels(self.rows + other.rows)
        self._combine(other.rows - other.missing, other.mean, other.squares)
        self.missing += other.missing
        self.least = np.fmin(self.least, other.least)
        self.largest = np.fmax(self.largest, other.largest)
        self.booleans &= other.booleans
        step = max(self.step, other.step)
        samples = [np.concatenate(each.sample)[:: step // each.step] for each in (self, other) if each.sample]
        self.sample, self.step = samples, step
        self._thin()
        self.rows += other.rows

    def _require_few_levels(self, rows: int) -> None:
        """ValueError for more levels than there can be columns."""
        if sum(map(len, self.levels.values())) > MOST_LEVELS:
            name = max(self.levels, key=lambda each: len(self.levels[each]))
            many = f"{len(self.levels[name]):,} levels in {rows:,} rows"
            raise ValueError(
                f"column {name!r} has {many}, too many for a column each: leave it out or group them"
            )

    def _thin(self) -> None:
        """Leave out every second number of the sample while it is too large."""
        while sum(map(len, self.sample)) > self.most:
            self.sample, self.step = [np.concatenate(self.sample)[::2]], 2 * self.step

    def preprocessor(self) -> Preprocessor:
        """What the rows so far have taught. ValueError names a column whose values cannot be squared."""
        width = len(self.numbers)
        mean, scale, fill = np.zeros(width), np.ones(width), np.zeros(width)
        present = self.rows - self.missing
        if width and self.rows:
            sample = np.concatenate(self.sample)
            fill = medians(sample, np.isnan(sample).sum(axis=0))
            unseen = np.isnan(sample).all(axis=0) & (present > 0)
            fill[unseen] = self.mean[unseen]
            mean, scale = self._filled_moments(fill, present)
        levels = {
            name: (*sorted(each for each in found if each is not None), *((None,) if None in found else ()))
            for name, found in self.levels.items()
        }
        constant = self.largest <= self.least
        return Preprocessor(
            columns=self.columns,
            levels=levels,
            indicators={
                name: int(count)
                for name, count in zip(self.numbers, self.missing, strict=True)
                if 0 < count < self.rows
            },
            constants=tuple(n for n, one in zip(self.numbers, constant | (present == 0), strict=True) if one),
            fill=fill,
            mean=mean,
            scale=scale,
            booleans=tuple(n for n, is_one in zip(self.numbers, self.booleans, strict=True) if is_one),
        )

    def _add_moments(self, x: Array) -> None:
        """Mean and squares of more rows, combined with those so far."""
        missing = np.isnan(x)
        count = len(x) - missing.sum(axis=0)
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64)
            wide[missing] = 0.0
            mean = wide.sum(axis=0) / np.maximum(count, 1)
            wide -= mean
            wide[missing] = 0.0
            rest = wide.sum(axis=0)  # of rounding
            squares = np.einsum("nd,nd->d", wide, wide) - rest**2 / np.maximum(count, 1)
        self._combine(count, mean, squares)
        self.missing += len(x) - count

    def _combine(self, count: Array, mean: Array, squares: Array) -> None:
        """Combine mean and squares with those of ``count`` more values (Chan, Golub and LeVeque)."""
        before = self.rows - self.missing
        with np.errstate(all="ignore"):
            share = count / np.maximum(before + count, 1)
            self.squares += squares + before * share * (mean - self.mean) ** 2
            self.mean += share * (mean - self.mean)

    def _filled_moments(self, fill: Array, present: Array) -> tuple[Array, Array]:
        """Mean and standard deviation with the missing values filled; 1 for constant columns."""
        share = self.missing / self.rows
        found, variance = self.mean, self.squares / np.maximum(present, 1)
        if not np.isfinite(variance).all():
            k = int((~np.isfinite(variance)).argmax())
            largest = max(abs(self.least[k]), abs(self.largest[k]))
            raise ValueError(
                f"the values of column {self.numbers[k]!r} are too large to be squared: up to {largest:.3g}"
            )
        mean = found + share * (fill - found)
        variance = (1 - share) * (variance + share * (fill - found) ** 2)
        # The bound on the rounding errors of a constant column, as in scikit-learn's scaler.
        eps = np.finfo(np.float64).eps
        rounding = self.rows * eps * variance + (self.rows * mean * eps) ** 2
        return mean, np.where(variance <= rounding, 1.0, np.sqrt(variance))


class SparseLearner:
    """As `Learner` for CSR pieces, whose columns are divided by their largest absolute value."""

    width = None  # a row takes the memory of its stored entries

    def __init__(self) -> None:
        self.largest = np.zeros(0)

    def add(self, table: Any) -> None:
        """Learn from more rows; they may have more columns than those before."""
        grown = np.zeros(max(table.shape[1], len(self.largest)))
        grown[: len(self.largest)] = self.largest
        np.maximum.at(grown, table.indices, np.abs(table.data))
        self.largest = grown

    def preprocessor(self, columns: Sequence[str], first: int) -> Preprocessor:
        """What the rows so far have taught; column ``first`` of the pieces is the first of ``columns``."""
        size = self.largest[first:]
        zero = np.zeros(len(columns))
        constants = tuple(np.array(columns)[size == 0].tolist())
        scale = np.where(size > 0, size, 1.0)
        return Preprocessor(tuple(columns), {}, {}, constants, zero, zero, scale, sparse=True)
