"""The scores of each class, from sums over its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class ClassScore(NamedTuple):
    """Scores of one class."""

    label: int
    support: int  # rows of this class
    recall: float | None
    precision: float | None  # None if it is never predicted
    loss: float | None  # mean over its rows, nats
    share: float | None  # share of the loss of all rows


class ClassScores:
    """The scores of all classes; each is made when it is asked for, as most of very many are not shown.

    ``by_class`` (K, 4) counts the rows of each class, those predicted right and those right in the top k, and
    sums their losses; ``predicted`` (K,) counts the rows predicted to be of the class.
    """

    def __init__(self, by_class: Array, predicted: Array) -> None:
        self.support, self._right, _, self._losses = by_class.T
        self._predicted = predicted
        self._total = float(self._losses.sum())

    def __len__(self) -> int:
        return len(self.support)

    def __iter__(self) -> Iterator[ClassScore]:
        return iter(self.of(range(len(self))))

    def __getitem__(self, label: int) -> ClassScore:
        return self.of([label])[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassScores) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # its arrays can change

    def of(self, labels: Sequence[int] | Array) -> list[ClassScore]:
        """The scores of these classes."""
        finite = 0 < self._total < math.inf
        which = np.asarray(labels, np.intp)
        sums = (each[which].tolist() for each in (self.support, self._right, self._losses, self._predicted))
        return [
            ClassScore(
                label=k,
                support=int(support),
                recall=right / support if support else None,
                precision=right / predicted if predicted else None,
                loss=loss / support if support else None,
                share=loss / self._total if finite else None,
            )
            for k, support, right, loss, predicted in zip(which.tolist(), *sums, strict=True)
        ]

    def costliest(self) -> Array:
        """The classes that have rows, those with the largest share of the loss first."""
        present = np.flatnonzero(self.support)
        if not math.isfinite(self._total):
            return present
        return present[np.argsort(-self._losses[present], kind="stable")]
