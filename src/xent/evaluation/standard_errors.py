"""Standard errors and 95% intervals of means and ratios of sums over rows, or over groups of rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

NORMAL = 1.959963984540054  # the 97.5% quantile of the normal distribution


class Estimate(NamedTuple):
    """A mean or a ratio, its standard error, and the degrees of freedom of that."""

    value: float
    se: float  # NaN if there is one row or group only, or an infinite value
    freedom: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval, value ± t·se."""
        half = self.half
        return self.value - half, self.value + half

    @property
    def half(self) -> float:
        """Half the width of the 95% interval."""
        return quantile(self.freedom) * self.se if self.freedom > 0 else math.nan


def quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t: above 30 degrees of freedom by its expansion, to 1e-7."""
    if freedom <= 30:
        from scipy.special import stdtrit  # half a second to import

        return float(stdtrit(freedom, 0.975))
    z, n = NORMAL, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def ratio(products: Array, sums: Array, count: int, numerator: Array, denominator: Array) -> Estimate:
    """The ratio of two sums over ``count`` units, rows or groups, by equations (39) and (40).

    Each unit has C numbers ``x``. ``sums (C,)`` is Σ x and ``products (C, C)`` is Σ x xᵀ over the units. The
    ratio is ``⟨numerator, Σ x⟩ / ⟨denominator, Σ x⟩``, both vectors (C,).
    """
    total = _dot(denominator, sums)
    value = _dot(numerator, sums) / total if total else math.nan
    if count < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, count - 1)
    residual = numerator - value * denominator
    used = np.flatnonzero(residual)
    squares = float(residual[used] @ products[np.ix_(used, used)] @ residual[used])
    return Estimate(value, math.sqrt(max(0.0, squares) * count / (count - 1)) / abs(total), count - 1)


def _dot(vector: Array, sums: Array) -> float:
    """⟨vector, sums⟩, in which infinite sums have no part where the vector is 0."""
    used = np.flatnonzero(vector)
    return float(vector[used] @ sums[used])


def wilson(share: float, count: float) -> tuple[float, float]:
    """95% interval of a proportion among ``count`` rows (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def proportion_interval(share: Estimate) -> tuple[float, float]:
    """95% interval of a proportion: Wilson's, for as many independent rows as give this standard error."""
    if not 0 <= share.value <= 1 or share.freedom < 1:
        return math.nan, math.nan
    variance = share.value * (1 - share.value)
    return wilson(share.value, variance / share.se**2 if share.se > 0 else share.freedom + 1)


class UnitSums:
    """Σ x and Σ x xᵀ over units, which are rows, or groups of rows whose numbers are added first."""

    def __init__(self, columns: int, groups: int | None = None) -> None:
        self.by_group = None if groups is None else np.zeros((groups, columns))
        self._sums, self._products, self._count = np.zeros(columns), np.zeros((columns, columns)), 0

    def add(self, x: Array, groups: Array | None = None) -> None:
        """Add rows ``x (n, C)``; ``groups (n,)`` has the index of the group of each."""
        if self.by_group is None or groups is None:
            self._sums += x.sum(0)
            self._products += np.einsum("ni,nj->ij", x, x)
            self._count += len(x)
        else:
            for column, values in zip(self.by_group.T, x.T, strict=True):
                np.add.at(column, groups, values)

    @property
    def totals(self) -> tuple[Array, Array, int]:
        """(Σ x xᵀ, Σ x, number of units), the first three arguments of `ratio`; column 0 counts rows."""
        if self.by_group is None:
            return self._products, self._sums, self._count
        filled = self.by_group[self.by_group[:, 0] > 0]
        return filled.T @ filled, filled.sum(0), len(filled)
