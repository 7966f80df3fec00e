"""The data named on the command line, of whatever kind, as checked rows and labels."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent import tables
from xent.arrayfiles import DAMAGED, NO_HEADER, PIPE, FortranOrderError, open_rows
from xent.preprocess import Preprocessor, listed
from xent.tables import DataError

Array = np.ndarray[Any, Any]

BUNDLED = ("digits", "iris", "wine", "breast_cancer")
KINDS = "CSV, Parquet, npz or svmlight"
CSR = ("data", "indices", "indptr", "shape")
MOST_COLUMNS = 1 << 25  # without names: each gets one, which takes 64 bytes
PIECE = 1 << 24  # bytes of an svmlight file, values of an npz array, read at a time


class Dataset(NamedTuple):
    """Examples as rows, with their labels.

    ``features`` is (N, D) floats, NaN where missing; or CSR without missing values; or a polars DataFrame
    of columns of floats and of text, null where missing. ``labels`` is (N,), of at least 2 classes,
    integers or text.
    """

    name: str
    features: Any
    labels: Array
    feature_names: list[str]
    target: str = "target"  # the column of the labels


class Batch(NamedTuple):
    """Some rows of ``features`` as those of a `Dataset`, and how many blank lines there were."""

    features: Any
    blank: int = 0


def load(
    data: str, target: str | None = None, drop: Sequence[str] = (), categorical: Sequence[str] = ()
) -> Dataset:
    """A bundled set by its name, or the file at that path.

    A CSV file has a header, then one row an example; columns are separated by commas, semicolons or
    tabs. In it and in a Parquet file ``target`` names the column of labels; those in ``drop`` are left
    out, those in ``categorical`` are categories though they look like numbers. An npz file has arrays
    ``X (N, D)`` and ``y (N,)``, or ``data``, ``indices``, ``indptr``, ``shape`` of a CSR matrix instead
    of ``X``. Raises DataError.
    """
    kind, path = _kind(data)
    if kind not in ("csv", "parquet"):
        for option, given in (("--target", target), ("--drop", drop), ("--categorical", categorical)):
            if given:
                raise DataError(f"`{option}` is for CSV and Parquet files; {data} has no named columns")
        dataset = {"bundled": _bundled, "npz": _npz, "svmlight": _svmlight}[kind](data)
    else:
        dataset = _table(path, target, drop, categorical)
    _check_classes(dataset)
    return dataset


def batches(data: str, learnt: Preprocessor) -> Iterator[Batch]:
    """The rows of a file like the one that ``learnt`` was fitted on, in pieces that it can transform."""
    kind, path = _kind(data)
    if kind in ("csv", "parquet"):
        first = 1
        for table in tables.batches(path):
            rows = tables.filled_rows(path, table)
            found = tables.columns(path, table, learnt.columns, tuple(learnt.levels), first)
            yield Batch(found if len(rows) == table.height else found[rows], table.height - len(rows))
            first += table.height
        return
    width = len(learnt.columns)
    if learnt.levels:
        needed = listed(list(learnt.columns))
        raise DataError(f"{data}: has no named columns; the model needs {needed}, some of them categories")
    pieces = {"bundled": _bundled_pieces, "npz": _npz_pieces, "svmlight": _svmlight_pieces}[kind]
    for rows in pieces(data, learnt.columns):
        if rows.shape[1] != width:
            raise DataError(f"{data}: has {rows.shape[1]} columns; the model was trained on {width}")
        yield Batch(rows)


def _kind(data: str) -> tuple[str, Path]:
    path = Path(data)
    if data in BUNDLED:
        return "bundled", path
    if not path.exists():
        raise DataError(f"{data}: no such file, and none of the bundled sets {', '.join(BUNDLED)}")
    if path.is_dir():
        raise DataError(f"{data}: is a directory; expected a file, {KINDS}")
    if not path.is_file():
        raise DataError(f"{data}: {PIPE}")
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if head.startswith(b"PAR1"):
        return "parquet", path
    if head.startswith(b"PK"):
        return "npz", path
    # A label and index:value pairs; after comments, which begin with "#", and labels of rows of zeros.
    lines = (line.partition(b"#")[0].strip() for line in head.splitlines())
    line = next((line for line in lines if line and not re.fullmatch(rb"[-+.\de]+(\s+qid:\d+)?", line)), b"")
    return "svmlight" if re.match(rb"\S+(\s+qid:\d+)?(\s+\d+:\S+)+", line) else "csv", path


def _bundled(name: str) -> Dataset:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    labels = np.asarray(bunch.target_names).astype(str)[bunch.target] if name != "digits" else bunch.target
    names = [str(feature) for feature in bunch.feature_names]
    return Dataset(name, np.asarray(bunch.data, np.float64), labels, names)


def _bundled_pieces(name: str, names: Sequence[str]) -> Iterator[Array]:
    yield _bundled(name).features


def _table(path: Path, target: str | None, drop: Sequence[str], categorical: Sequence[str]) -> Dataset:
    table = tables.read(path, text=(target, *categorical))
    names = table.columns
    if target is None:
        raise DataError(f"{path}: name the label column by --target; the columns are {listed(names)}")
    named = [("target", target), *(("drop", each) for each in drop)]
    for option, column in (*named, *(("categorical", each) for each in categorical)):
        if column not in names:
            raise DataError(f"{path}: no column {column!r} for --{option}; the columns are {listed(names)}")
    feature_names = [name for name in names if name != target and name not in drop]
    if not feature_names:
        raise DataError(f"{path}: no feature column beside the target {target!r}")
    # Blank lines are no examples, but they count in the row numbers of the messages.
    rows = tables.filled_rows(path, table)
    if not len(rows):
        raise DataError(f"{path}: a header and no rows")
    features = tables.columns(path, table, feature_names, also=categorical)[rows]
    labels = tables.labels(path, table[target], rows)
    return Dataset(path.name, _plain(features), labels, feature_names, target)


def _plain(features: Any) -> Any:
    """An array where all columns are numbers."""
    import polars

    if polars.String in features.dtypes:
        return features
    narrow = all(kind == polars.Float32 for kind in features.dtypes)
    floats = features.cast(polars.Float32 if narrow else polars.Float64).fill_null(np.nan)
    return np.ascontiguousarray(floats.to_numpy())


def _npz(data: str) -> Dataset:
    features = _npz_features(data)
    names = _numbered(data, features.shape[1], 0)
    labels = _labels(data, _arrays(data, ["y"])["y"])
    if len(labels) != features.shape[0]:
        raise DataError(f"{data}: X has {features.shape[0]} rows, y {len(labels)}")
    return Dataset(Path(data).name, features, labels, names)


def _npz_features(data: str) -> Any:
    import scipy.sparse

    if "X" in _members(data):
        return _checked(data, _arrays(data, ["X"])["X"])
    parts = _arrays(data, CSR)
    try:
        rows, width = parts["shape"].tolist()  # a CSR array of one axis is none here
        stored = parts["data"], parts["indices"], parts["indptr"]
        matrix = scipy.sparse.csr_array(stored, shape=(rows, width))
        matrix.check_format(full_check=True)
        matrix.sum_duplicates()
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{data}: its arrays are no CSR matrix: {error}") from None
    return _checked(data, matrix)


def _npz_pieces(data: str, names: Sequence[str]) -> Iterator[Any]:
    if "X" not in _members(data):
        yield _npz_features(data)
        return
    try:
        opened = open_rows(f"{data}:X")
    except FortranOrderError:  # no row is there before all are
        yield _npz_features(data)
        return
    with opened as stored:
        if len(stored.shape) != 2:
            raise DataError(f"{data}: expected X of shape (rows, columns); got {stored.shape}")
        step = max(1, PIECE // max(1, stored.shape[1]))
        for start in range(0, stored.shape[0], step):
            yield _checked(data, stored.take(min(step, stored.shape[0] - start)), start)


def _members(data: str) -> list[str]:
    try:
        with zipfile.ZipFile(data) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGED as error:
        raise DataError(f"{data}: is damaged or no npz file: {error}") from None


def _arrays(data: str, names: Sequence[str]) -> dict[str, Array]:
    there = _members(data)
    absent = [name for name in names if name not in there]
    if absent:
        expected = "arrays X and y, or data, indices, indptr, shape and y of a CSR matrix"
        raise DataError(f"{data}: has no array {absent[0]!r} but {listed(there)}; expected {expected}")
    try:
        with np.load(data, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (*DAMAGED, *NO_HEADER) as error:
        raise DataError(f"{data}: cannot be read: {error}") from None


def _svmlight(data: str) -> Dataset:
    features, y, first = _read_svmlight(data)
    names = _numbered(data, features.shape[1], first)
    return Dataset(Path(data).name, _checked(data, features), _labels(data, y), names)


def _numbered(data: str, width: int, first: int) -> list[str]:
    """Names of columns that have none."""
    if width > MOST_COLUMNS:
        raise DataError(f"{data}: has {width:,} columns; at most {MOST_COLUMNS:,} can be trained on")
    return [f"x{k + first}" for k in range(width)]


def _svmlight_pieces(data: str, names: Sequence[str]) -> Iterator[Any]:
    from_zero = bool(names) and names[0] == "x0"
    size = Path(data).stat().st_size
    for start in range(0, size, PIECE):
        features, _, _ = _read_svmlight(data, len(names), from_zero, start, PIECE)
        if features.shape[0]:
            yield _checked(data, features)


def _read_svmlight(
    data: str, width: int | None = None, from_zero: bool | str = "auto", start: int = 0, length: int = -1
) -> tuple[Any, Array, int]:
    """(CSR, y, the first index: 0 or 1)."""
    from sklearn.datasets import load_svmlight_file

    options = {"n_features": width, "offset": start, "length": length}
    try:
        if from_zero == "auto":
            with_zero, _ = load_svmlight_file(data, zero_based=True)
            from_zero = not with_zero.indices.all()
        features, y = load_svmlight_file(data, zero_based=from_zero, **options)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{data}: is no svmlight file for this: {error}") from None
    return features, y, 0 if from_zero else 1


def _checked(data: str, features: Any, first: int = 0) -> Any:
    """(N, D) finite floats, NaN where missing if dense."""
    import scipy.sparse

    sparse = scipy.sparse.issparse(features)
    if not sparse and features.ndim != 2:
        raise DataError(f"{data}: expected X of shape (rows, columns); got {features.shape}")
    if features.dtype.kind not in "biuf":
        raise DataError(f"{data}: expected numbers in X; got {features.dtype}")
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float64)
    values = features.data if sparse else features
    bad = ~np.isfinite(values) if sparse else np.isinf(values)
    if bad.any():
        if sparse:
            row = int(np.searchsorted(features.indptr, bad.argmax(), "right")) - 1
            column, value = int(features.indices[bad.argmax()]), values[bad.argmax()]
        else:
            row, column = (int(k) for k in np.unravel_index(int(bad.argmax()), bad.shape))
            value = values[row, column]
        raise DataError(
            f"{data}: expected a finite number in column {column}, row {row + first} (from 0); got {value}"
        )
    return features


def _labels(data: str, y: Array) -> Array:
    """(N,) integers or text."""
    if y.ndim != 1:
        raise DataError(f"{data}: expected y of shape (rows,), one label a row; got {y.shape}")
    if y.dtype.kind == "f":
        whole = (np.abs(y) < 2.0**63) & (y == np.round(y))
        if not whole.all():
            row = int((~whole).argmax())
            expected = "whole numbers of 64 bits as labels"
            raise DataError(f"{data}: expected {expected}; got {y[row]} in row {row} (from 0)")
        return y.astype(np.int64)
    if y.dtype.kind not in "biuU":
        raise DataError(f"{data}: expected integers or text as labels; got {y.dtype}")
    return y


def _check_classes(dataset: Dataset) -> None:
    """DataError unless the labels are at least two classes, and fewer than a name for each row."""
    where = f"{dataset.name}: " + (f"column {dataset.target!r}" if dataset.target != "target" else "y")
    classes, counts = np.unique(dataset.labels, return_counts=True)
    rows = len(dataset.labels)
    if len(classes) < 2:
        only = f"one class only: {classes[0].item()!r} in all {rows} rows" if rows else "no rows"
        raise DataError(f"{where}: {only}; at least 2 classes are needed")
    if len(classes) > 20 and np.mean(counts == 1) > 0.5:
        raise DataError(
            f"{where} has {len(classes)} distinct values in {rows} rows; expected classes, not a quantity or "
            "a name for each row"
        )
