"""Check labels: those of an array, which have no column; and that they are classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xent.files import tables
from xent.files.cells import Reading
from xent.files.errors import DataError
from xent.files.formats.row_numbers import RowNumbers
from xent.files.phrases import counted, listed

Array = np.ndarray[Any, Any]


def plain_labels(data: str, y: Array, numbers: RowNumbers, drop_missing: bool) -> tuple[Array, Array]:
    """(labels (N,) as integers, booleans or text; the index of their rows in ``y``)."""
    import polars

    rows = np.arange(len(y))
    if y.dtype.kind == "U":
        return tables.labels(Path(data), polars.Series("y", y.tolist()), rows, Reading(numbers), drop_missing)
    if y.dtype.kind == "f":
        rows = np.flatnonzero(~np.isnan(y)) if drop_missing else rows
        y = y[rows]
        whole = (np.abs(y) < 2.0**63) & (y == np.round(y))
        if not whole.all():
            row = int((~whole).argmax())
            if np.isnan(y[row]):
                raise DataError(
                    f"{data}: missing label in {numbers.name(int(rows[row]))}: {tables.LEAVE_OUT}"
                )
            expected = "whole numbers of 64 bits as labels"
            raise DataError(f"{data}: expected {expected}; got {y[row]} in {numbers.name(int(rows[row]))}")
        return y.astype(np.int64), rows
    if y.dtype.kind not in "biu":
        raise DataError(f"{data}: expected integers or text as labels; got {y.dtype}")
    return y, rows


def of_rows(data: str, y: Array) -> Array:
    """``y`` as one label a row, (N,): (N, 1) loses its axis, one-hot rows (N, K) become 0 to K−1.

    Raises DataError for other shapes, and for rows that are not one-hot.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "biuf":
        wrong = (np.count_nonzero(y, axis=1) != 1) | (y.max(axis=1) != 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{data}: y of shape {y.shape} must be one-hot, one 1 in each row; row {row + 1} is not: "
                "store its likeliest class, y.argmax(1)"
            )
        return np.asarray(y.argmax(axis=1))
    if y.ndim != 1:
        raise DataError(f"{data}: expected y of shape (rows,), one label a row; got {y.shape}")
    return y


def of_classes_with_rows(labels: Array, least: int) -> tuple[Array, str]:
    """(mask (N,) of the rows of classes with at least ``least`` rows, a sentence on the others)."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    few = [str(name) for name in classes[counts < least].tolist()]
    kept = counts[inverse] >= least
    rows = counted(int(np.count_nonzero(~kept)), "row")
    return kept, f"{rows} left out, of classes with fewer than {least} rows: {listed(few, 6)}"


def check_classes(where: str, classes: Array, counts: Array) -> None:
    """Raise DataError if there are fewer than 2 classes, or mostly values that occur once."""
    rows = int(counts.sum())
    if len(classes) < 2:
        only = f"one class only: {classes[0].item()!r} in all {rows} rows" if rows else "no rows"
        raise DataError(f"{where}: {only}; at least 2 classes are needed")
    if len(classes) > 20 and np.mean(counts == 1) > 0.5:
        raise DataError(
            f"{where} has {len(classes)} distinct values in {rows} rows; expected classes, not a quantity or "
            "a name for each row"
        )
