"""Split the rows into folds, sorted so that the rows to train on and those held out are views."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import check_cv

from xent.regression.class_targets import ClassTargets
from xent.regression.objective import SMALL
from xent.regression.sums.partitions import with_entries

Array = np.ndarray[Any, Any]

COPIED = 1 << 22  # elements of X below which a copy of a fold's training rows costs less than a second part


class Split(NamedTuple):
    """Rows of one fold, each selected by numbers or a slice."""

    training: tuple[Any, ...]  # together all rows to train on
    held_out: Any
    left_out: Any  # all rows but those to train on; mostly those held out


def splits_of(cv: Any, X: Any, targets: ClassTargets) -> list[tuple[Array, Array]]:
    """[(training rows, held-out rows)], stratified by class if ``cv`` is a number and ``y`` labels."""
    y = np.zeros(X.shape[0]) if targets.labels is None else targets.labels
    splitter = check_cv(cv, y, classifier=targets.labels is not None)
    with warnings.catch_warnings():
        # Rows of classes that the other folds lack are left out of the mean.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return [(np.asarray(one), np.asarray(other)) for one, other in splitter.split(X, y)]


def sorted_by_fold(
    X: Any, targets: ClassTargets, splits: list[tuple[Array, Array]]
) -> tuple[Any, ClassTargets, list[Split]]:
    """(X, the targets, the splits) with the rows in the order of the folds that hold them out.

    In the order as it is if the folds are not a partition of the rows. X becomes float32 unless it is small.
    """
    rows = X.shape[0]
    if X.dtype != np.float32 and X.size >= SMALL:
        X = with_entries(X, X.data.astype(np.float32)) if hasattr(X, "indptr") else X.astype(np.float32)
    order = np.concatenate([held_out for _, held_out in splits])
    seen = np.bincount(order, minlength=rows)
    if (seen != 1).any() or any(len(one) + len(other) != rows for one, other in splits):
        numbers = np.arange(rows)
        unsorted = [Split((one,), other, np.setdiff1d(numbers, one)) for one, other in splits]
        return X, targets, unsorted
    result, start = [], 0
    for _, held_out in splits:
        stop = start + len(held_out)
        training: tuple[Any, ...] = tuple(s for s in (slice(0, start), slice(stop, rows)) if s.stop > s.start)
        if X.size < COPIED:
            training = (np.r_[training],)
        result.append(Split(training, slice(start, stop), slice(start, stop)))
        start = stop
    return X[order], targets_of(targets, order), result


def rows_of(X: Any, rows: Any) -> Any:
    """``X[rows]``; a slice of a CSR matrix too is a view, unless it has less than half of its entries."""
    if not (hasattr(X, "indptr") and isinstance(rows, slice)):
        return X[rows]
    start, stop, _ = rows.indices(X.shape[0])
    entries = slice(X.indptr[start], X.indptr[stop])
    indptr = X.indptr[start : stop + 1] - X.indptr[start]
    return type(X)((X.data[entries], X.indices[entries], indptr), shape=(stop - start, X.shape[1]))


def targets_of(targets: ClassTargets, rows: Any) -> ClassTargets:
    """The targets of some of the rows."""
    return ClassTargets(targets.classes, *(None if each is None else each[rows] for each in targets[1:]))
