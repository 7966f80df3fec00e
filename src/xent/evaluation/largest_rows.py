"""Keep the rows of a stream with the largest values of a key."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Row(NamedTuple):
    """One row, with its place in the file, counted from 0."""

    key: float
    place: int
    content: Any


class LargestRows:
    """The ``most`` rows of the largest keys, the largest first; of equal ones those that come first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: list[Row] = []

    def candidates(self, keys: Array) -> Array:
        """Positions in ``keys (n,)``, of rows after all those added, that may be among the largest."""
        least = self.rows[-1].key if len(self.rows) == self.most else -np.inf
        found = np.flatnonzero(keys > least)  # NaN is no candidate
        return found[np.argsort(-keys[found], kind="stable")[: self.most]]

    def add(self, rows: list[Row]) -> None:
        """Add rows that `candidates` named."""
        self.rows = sorted([*self.rows, *rows], key=lambda row: (-row.key, row.place))[: self.most]
