"""Load the data named on the command line, of any kind of file, as checked rows and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent.files import cells, skipped, tables
from xent.files.cells import Reading
from xent.files.errors import DataError, named_faults
from xent.files.formats import csv_table, foreign, npz, parquet, row_numbers, svmlight
from xent.files.formats.csv_table import Dialect
from xent.files.phrases import counted, listed
from xent.files.preprocess import Preprocessor

Array = np.ndarray[Any, Any]

BUNDLED = ("digits", "iris", "wine", "breast_cancer")
KINDS = "CSV, Parquet, npz or svmlight"
PIECE = 1 << 24  # bytes of an svmlight file, or values of an npz array, to read at a time
BATCH = 1 << 20  # cells of a table to read at a time
NO_DIALECT = Dialect()


class Dataset(NamedTuple):
    """Examples as rows, with their labels.

    ``features`` is (N, D) floats, NaN where missing; or CSR without missing values; or a polars DataFrame
    of columns of floats and of text, null where missing. ``labels`` is (N,), of at least 2 classes,
    integers, booleans or text.
    """

    name: str
    features: Any
    labels: Array
    feature_names: list[str]
    target: str = "target"  # name of the label column
    numbers: Array | None = None  # (N,) number of each row in its file; None for 1, 2, ...
    word: str = "row"  # what ``numbers`` count: "line" in a text file, else "row"
    unlabelled: int = 0  # rows left out because they have no label
    notes: tuple[str, ...] = ()  # what was left out, in sentences
    dialect: Dialect = NO_DIALECT  # the options for reading the file
    files: Array | None = None  # (N,) name of the file of each row, if there are several

    def number(self, row: int) -> int:
        """Number in its file of row ``row``, counted from 0 in ``features``."""
        return row + 1 if self.numbers is None else int(self.numbers[row])


class Batch(NamedTuple):
    """A few rows of ``features``, as in `Dataset`, and the number of blank lines among them."""

    features: Any
    blank: int = 0


def load(
    data: str,
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    dialect: Dialect = NO_DIALECT,
    drop_unlabelled: bool = False,
) -> Dataset:
    """Load a bundled set by its name, or the file at that path.

    A CSV file has a header, then one row for each example. Its separator and decimal mark are detected
    unless ``dialect`` gives them. In CSV and Parquet files ``target`` names the label column, the columns
    in ``drop`` are left out, and those in ``categorical`` are categories even if they hold numbers. An npz
    file has arrays ``X (N, D)`` and ``y (N,)``; a CSR matrix is ``data``, ``indices``, ``indptr`` and
    ``shape`` instead of ``X``. Rows without a label are an error unless ``drop_unlabelled`` leaves them
    out. Raises DataError.
    """
    kind, path = kind_of(data)
    _require_no_options(
        data,
        kind,
        {"--target": target, "--drop": drop, "--categorical": categorical, **_table_options(dialect)},
    )
    with named_faults(data):
        if kind in ("csv", "parquet"):
            dataset = _table(path, kind, target, drop, categorical, dialect, drop_unlabelled)
        elif kind == "bundled":
            dataset = _bundled(data)
        else:
            dataset = (_npz if kind == "npz" else _svmlight)(data, drop_unlabelled)
    _check_classes(dataset)
    if dataset.unlabelled:
        left_out = f"{counted(dataset.unlabelled, 'row')} without a label left out"
        dataset = dataset._replace(notes=(*dataset.notes, left_out))
    return dataset


def batches(data: str, learnt: Preprocessor, dialect: Dialect = NO_DIALECT) -> Iterator[Batch]:
    """Yield the rows of a file, a batch at a time, with the columns that ``learnt`` can transform."""
    kind, path = kind_of(data)
    with named_faults(data):
        if kind in ("csv", "parquet"):
            yield from _table_batches(path, kind, learnt, dialect)
            return
        if learnt.levels:
            needed = listed(list(learnt.columns))
            raise DataError(
                f"{data}: has no named columns; the model needs {needed}, some of them categories"
            )
        width = len(learnt.columns)
        if kind == "npz":
            pieces = npz.pieces(data, PIECE)
        elif kind == "svmlight":
            pieces = svmlight.pieces(data, learnt.columns, PIECE)
        else:
            pieces = iter([_bundled(data).features])
        for rows in pieces:
            if rows.shape[1] != width:
                raise DataError(f"{data}: has {rows.shape[1]} columns; the model was trained on {width}")
            yield Batch(rows)


def require_table_options(data: str, dialect: Dialect) -> None:
    """Raise DataError if ``dialect`` has an option that the kind of file at ``data`` does not take."""
    _require_no_options(data, kind_of(data)[0], _table_options(dialect))


def _table_options(dialect: Dialect) -> dict[str, Any]:
    return {
        "--separator": dialect.separator,
        "--decimal": dialect.decimal,
        "--missing": dialect.missing,
        "--no-missing": not dialect.usual_missing,
    }


def _require_no_options(data: str, kind: str, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if not value or kind == "csv":
            continue
        if kind != "parquet":
            raise DataError(f"`{option}` is for CSV and Parquet files; {data} has no named columns")
        if option in ("--separator", "--decimal"):
            raise DataError(f"`{option}` is for CSV files; {data} is a Parquet file")


def kind_of(data: str) -> tuple[str, Path]:
    """(bundled, csv, parquet, npz or svmlight; the path). Raises DataError if it is none of them."""
    path = Path(data)
    if data in BUNDLED:
        return "bundled", path
    foreign.require_file(data, KINDS)
    if not path.exists():
        raise DataError(f"{data}: no such file, and none of the bundled sets {', '.join(BUNDLED)}")
    with path.open("rb") as file:
        head = file.read(foreign.HEAD)
    if head.startswith(b"PAR1"):
        return "parquet", path
    other = foreign.identify(path, KINDS)
    if other:
        raise other
    if head.startswith(b"PK"):
        return "npz", path
    return "svmlight" if svmlight.is_svmlight(head) else "csv", path


def _bundled(name: str) -> Dataset:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    labels = np.asarray(bunch.target_names).astype(str)[bunch.target] if name != "digits" else bunch.target
    names = [str(feature) for feature in bunch.feature_names]
    shadowed = f"the bundled set: the file {name} in this directory is not read; name it ./{name}"
    notes = (shadowed,) if Path(name).is_file() else ()
    return Dataset(name, np.asarray(bunch.data, np.float64), labels, names, notes=notes)


def _table(
    path: Path,
    kind: str,
    target: str | None,
    drop: Sequence[str],
    categorical: Sequence[str],
    dialect: Dialect,
    drop_unlabelled: bool,
) -> Dataset:
    if kind == "csv":
        layout = csv_table.detect_layout(path, dialect)
        table, numbers = csv_table.read(path, layout)
        reading = csv_reading(layout, dialect, numbers)
        nameless, index = layout.nameless, []
    else:
        table, nameless = plainly_named(path, parquet.read(path))
        reading = parquet_reading(dialect, row_numbers.one_based(table.height))
        index = [name.strip() for name in parquet.index_columns(path)]
    names = table.columns
    if target is None:
        raise DataError(f"{path}: name the label column by --target; the columns are {listed(names)}")
    drop = [column for name in drop for column in (nameless if nameless and not name else [name])]
    named = [("target", target), *(("drop", each) for each in drop)]
    for option, column in (*named, *(("categorical", each) for each in categorical)):
        if column not in names:
            raise DataError(f"{path}: no column {column!r} for --{option}; the columns are {listed(names)}")
    rows = skipped.filled_rows(table) if kind == "csv" else np.arange(table.height)
    if not len(rows):
        raise DataError(f"{path}: a header and no rows")
    left_out = skipped.left_out(table[rows], nameless, index, reading)
    for name in (target, *drop, *categorical):
        left_out.pop(name, None)
    feature_names = [name for name in names if name not in (target, *drop, *left_out)]
    notes = tuple(dict.fromkeys(left_out.values()))
    if not feature_names:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(f"{path}: no feature column beside the target {target!r}{why}")
    labels, kept = tables.labels(path, table[target], rows, reading, drop_unlabelled)
    features = tables.columns(path, table, feature_names, reading, also=categorical)[kept]
    return Dataset(
        path.name,
        plain(features),
        labels,
        feature_names,
        target,
        reading.numbers.lookup(kept),
        reading.numbers.word,
        len(rows) - len(kept),
        notes,
        dialect,
    )


def _table_batches(path: Path, kind: str, learnt: Preprocessor, dialect: Dialect) -> Iterator[Batch]:
    first = 0
    for table, reading in _csv_batches(path, dialect) if kind == "csv" else _parquet_batches(path, dialect):
        features = tables.columns(
            path, table, learnt.columns, reading, tuple(learnt.levels), learnt.booleans, first
        )
        rows = skipped.filled_rows(table) if kind == "csv" else range(table.height)
        yield Batch(features if len(rows) == table.height else features[rows], table.height - len(rows))
        first += table.height


def _csv_batches(path: Path, dialect: Dialect) -> Iterator[tuple[Any, Reading]]:
    layout = csv_table.detect_layout(path, dialect)
    for table, numbers in csv_table.batches(path, layout, BATCH):
        yield table, csv_reading(layout, dialect, numbers)


def _parquet_batches(path: Path, dialect: Dialect) -> Iterator[tuple[Any, Reading]]:
    reading = parquet_reading(dialect, row_numbers.one_based(parquet.rows(path)))
    for table in parquet.batches(path, BATCH):
        yield plainly_named(path, table)[0], reading


def csv_reading(layout: csv_table.Layout, dialect: Dialect, numbers: row_numbers.RowNumbers) -> Reading:
    """How to read the cells of a CSV file."""
    words = cells.missing_words(dialect.missing, dialect.usual_missing)
    return Reading(numbers, words, layout.decimal, layout.grouped)


def parquet_reading(dialect: Dialect, numbers: row_numbers.RowNumbers) -> Reading:
    """Parquet stores nulls, so only a null or an empty text is missing; the text None is text."""
    return Reading(numbers, cells.missing_words(dialect.missing, usual=False))


def plainly_named(path: Path, table: Any) -> tuple[Any, list[str]]:
    """(the table with stripped and completed column names, the names made up)."""
    names, nameless = csv_table.plain_names(path, table.columns)
    table.columns = names
    return table, nameless


def plain(features: Any) -> Any:
    """``features`` as an array if all its columns are numbers, otherwise unchanged."""
    import polars

    if polars.String in features.dtypes:
        return features
    narrow = all(kind == polars.Float32 for kind in features.dtypes)
    floats = features.cast(polars.Float32 if narrow else polars.Float64).fill_null(np.nan)
    return np.ascontiguousarray(floats.to_numpy())


def _npz(data: str, drop_unlabelled: bool) -> Dataset:
    features = npz.features(data)
    names = svmlight.numbered(data, features.shape[1], 0)
    y = npz.arrays(data, ["y"])["y"]
    if y.ndim != 1:
        raise DataError(f"{data}: expected y of shape (rows,), one label a row; got {y.shape}")
    if len(y) != features.shape[0]:
        raise DataError(f"{data}: X has {features.shape[0]} rows, y {len(y)}")
    return _unnamed(data, features, y, names, row_numbers.one_based(len(y)), drop_unlabelled)


def _svmlight(data: str, drop_unlabelled: bool) -> Dataset:
    features, y, names, numbers = svmlight.read(data)
    return _unnamed(data, features, y, names, numbers, drop_unlabelled)


def _unnamed(
    data: str,
    features: Any,
    y: Array,
    names: list[str],
    numbers: row_numbers.RowNumbers,
    drop_unlabelled: bool,
) -> Dataset:
    labels, kept = plain_labels(data, y, numbers, drop_unlabelled)
    return Dataset(
        Path(data).name,
        features if len(kept) == len(y) else features[kept],
        labels,
        names,
        numbers=numbers.lookup(kept),
        word=numbers.word,
        unlabelled=len(y) - len(kept),
    )


def plain_labels(
    data: str, y: Array, numbers: row_numbers.RowNumbers, drop_missing: bool
) -> tuple[Array, Array]:
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


def _check_classes(dataset: Dataset) -> None:
    """Raise DataError if the labels hold fewer than 2 classes, or mostly values that occur once."""
    where = f"{dataset.name}: " + (f"column {dataset.target!r}" if dataset.target != "target" else "y")
    check_classes(where, *np.unique(dataset.labels, return_counts=True))


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
