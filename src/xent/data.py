"""The data named on the command line: scikit-learn's bundled sets, or a CSV file, as checked arrays."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

BUNDLED = ("digits", "iris", "wine", "breast_cancer")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


class DataError(ValueError):
    """What is wrong with the data and where, in one line."""


class Dataset(NamedTuple):
    """``features (N, D)`` float64, finite; ``labels (N,)`` of at least 2 classes, integers or text."""

    name: str
    features: Array
    labels: Array
    feature_names: list[str]
    target: str = "target"  # the column of the labels


def load(data: str, target: str | None = None) -> Dataset:
    """A bundled set by its name, or the CSV file at that path with the labels in column ``target``.

    A CSV file has a header, then one row an example; columns are separated by commas, semicolons or
    tabs. All columns but ``target`` are features and must be numbers. Raises DataError.
    """
    if data in BUNDLED:
        if target is not None:
            raise DataError(f"`--target` is for CSV files; {data} brings its own labels")
        return _bundled(data)
    path = Path(data)
    if not path.exists():
        raise DataError(f"{data}: no such file, and none of the bundled sets {', '.join(BUNDLED)}")
    if path.is_dir():
        raise DataError(f"{data}: is a directory; expected a CSV file")
    return _csv(path, target)


def _bundled(name: str) -> Dataset:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    labels = np.asarray(bunch.target_names).astype(str)[bunch.target] if name != "digits" else bunch.target
    names = [str(feature) for feature in bunch.feature_names]
    return Dataset(name, np.asarray(bunch.data, np.float64), labels, names)


def _csv(path: Path, target: str | None) -> Dataset:
    table = _read(path)
    names = list(table.columns)
    if target is None:
        raise DataError(f"{path}: name the label column by --target; the columns are {_listed(names)}")
    if target not in names:
        raise DataError(f"{path}: no column {target!r} for --target; the columns are {_listed(names)}")
    if len(names) == 1:
        raise DataError(f"{path}: no feature column beside the target {target!r}")
    # Blank lines are no examples, but they count in the row numbers of the messages.
    rows = np.flatnonzero(~np.all([table[name].is_null().to_numpy() for name in names], axis=0))
    if not len(rows):
        raise DataError(f"{path}: a header and no rows")
    feature_names = [name for name in names if name != target]
    features = np.stack([_numbers(path, table[name], rows) for name in feature_names], axis=1)
    return Dataset(path.name, features, _labels(path, table[target], rows), feature_names)


def _read(path: Path) -> Any:
    """The file as a polars table of text, so that what is no number can be shown with its place."""
    import polars

    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not head.strip():
        raise DataError(f"{path}: is empty; expected a CSV file with a header")
    if b"\0" in head:
        raise DataError(f"{path}: is not a CSV file: it holds binary data")
    header = head.splitlines()[0]
    separator = max(",;\t", key=lambda mark: header.count(mark.encode()))
    try:
        table = polars.read_csv(path, infer_schema=False, separator=separator)
        return table.rename(str.strip)
    except polars.exceptions.PolarsError as error:
        reason = _first_bad_line(path, separator) or str(error).partition("\n")[0]
        raise DataError(f"{path}: is not a CSV file: {reason}") from None


def _first_bad_line(path: Path, separator: str) -> str:
    """What polars refuses without saying where: text that is not UTF-8, a row with too many fields."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        return f"line {error.object.count(10, 0, error.start) + 1} is not UTF-8 text"
    reader = csv.reader(lines, delimiter=separator)
    width = len(next(reader))
    for row in reader:
        if len(row) > width:
            return f"line {reader.line_num} has {len(row)} fields, the header {width}"
    return ""


def _numbers(path: Path, column: Any, rows: Array) -> Array:
    """A column of text as finite float64, in ``rows``."""
    import polars

    column = column.str.strip_chars()
    numbers = np.array(column.cast(polars.Float64, strict=False).to_numpy(), np.float64)[rows]
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        row = int(rows[bad[0]])
        value = column[row]
        where = f"column {column.name!r}, row {row + 1}"
        if value is None or value.lower() in MISSING:
            raise DataError(f"{path}: missing value in {where}: fill it in or leave the row out")
        if len(bad) == len(rows) and np.isnan(numbers).all():
            hint = "features must be numbers: leave the column out or code it as numbers"
            raise DataError(f"{path}: text in {where}: {value!r}; {hint}")
        raise DataError(f"{path}: expected a finite number in {where}; got {value!r}")
    return numbers


def _labels(path: Path, column: Any, rows: Array) -> Array:
    """A column of text as labels: integers if all are, text otherwise."""
    column = column.str.strip_chars()
    values = column.to_list()
    for row in rows:
        if values[row] is None or values[row].lower() in MISSING:
            raise DataError(
                f"{path}: missing label in column {column.name!r}, row {row + 1}: "
                "fill it in or leave the row out"
            )
    labels = np.array([values[row] for row in rows])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        raise DataError(
            f"{path}: one class only in column {column.name!r}: {str(classes[0])!r} in all "
            f"{len(rows)} rows; at least 2 are needed"
        )
    if len(classes) > 20 and np.mean(counts == 1) > 0.5:
        raise DataError(
            f"{path}: column {column.name!r} has {len(classes)} distinct values in {len(rows)} rows; "
            "expected classes, not a quantity or a name for each row"
        )
    try:
        numbers = labels.astype(np.int64)
    except (ValueError, OverflowError):
        return labels
    return numbers if np.array_equal(numbers.astype(str), labels) else labels  # "01" is not 1


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
