"""Load the data named on the command line, of any kind of file, as checked rows and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent.files import cells, labels, skipped, tables
from xent.files.cells import Reading
from xent.files.data_files import Opened, opened
from xent.files.errors import DataError, named_faults
from xent.files.formats import csv_table, foreign, npz, parquet, row_numbers, svmlight
from xent.files.formats.csv_table import Dialect
from xent.files.phrases import counted, listed
from xent.files.preprocess import Preprocessor

Array = np.ndarray[Any, Any]

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
    held_out: Array | None = None  # rows that the file says are not for training; None to choose them

    def number(self, row: int) -> int:
        """Number in its file of row ``row``, counted from 0 in ``features``."""
        return row + 1 if self.numbers is None else int(self.numbers[row])


class Batch(NamedTuple):
    """A few rows of ``features``, as in `Dataset`, with the number of blank lines among them."""

    features: Any
    blank: int = 0
    notes: tuple[str, ...] = ()  # how the file was read, in sentences


def load(
    data: str,
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    dialect: Dialect = NO_DIALECT,
    drop_unlabelled: bool = False,
    drop_rare: bool = False,
) -> Dataset:
    """Load a bundled set by its name, or the file at that path; "-" is standard input.

    A CSV file has a header, then one row for each example. Its separator and decimal mark are detected
    unless ``dialect`` gives them. In tables ``target`` names the label column, the columns in ``drop`` are
    left out, and those in ``categorical`` are categories even if they hold numbers. An npz file has arrays
    ``X (N, ...)`` and ``y (N,)``, or of a common name such as x_train; a CSR matrix is ``data``,
    ``indices``, ``indptr`` and ``shape`` instead of ``X``. Rows without a label are an error unless
    ``drop_unlabelled`` leaves them out; ``drop_rare`` leaves out rows that are the only ones of their
    class. Other kinds of files are `xent.files.data_files`'. Raises DataError.
    """
    with opened(data) as file:
        options = {"--target": target, "--drop": drop, "--categorical": categorical}
        _require_no_options(file, {**options, **_table_options(dialect)})
        with named_faults(file.name):
            if file.kind in ("csv", "parquet"):
                dataset = _table(file.path, file.kind, target, drop, categorical, dialect, drop_unlabelled)
            elif file.kind == "bundled":
                dataset = _bundled(data)
            elif file.kind == "npy":
                raise DataError(f"{data}: {'; '.join(foreign.ARRAY)}")
            else:
                dataset = (_npz if file.kind == "npz" else _svmlight)(str(file.path), drop_unlabelled)
        dataset = dataset._replace(name=Path(file.name).name, notes=(*file.notes, *dataset.notes))
        if dataset.unlabelled:
            left_out = f"{counted(dataset.unlabelled, 'row')} without a label left out"
            dataset = dataset._replace(notes=(*dataset.notes, left_out))
        if drop_rare:
            dataset = _without_rare_classes(dataset)
        _check_classes(dataset)
    return dataset


def batches(
    data: str, learnt: Preprocessor, dialect: Dialect = NO_DIALECT, remembered: Dialect = NO_DIALECT
) -> Iterator[Batch]:
    """Yield the rows of a file, a batch at a time, with the columns that ``learnt`` can transform.

    The options in ``dialect`` must suit the kind of file; they take precedence over those ``remembered``
    from the training.
    """
    with opened(data) as file:
        require_table_options(file, dialect)
        with named_faults(file.name):
            for batch in _batches(file, learnt, dialect.over(remembered)):
                yield batch._replace(notes=file.notes)


def _batches(file: Opened, learnt: Preprocessor, dialect: Dialect) -> Iterator[Batch]:
    if file.kind in ("csv", "parquet"):
        yield from _table_batches(file.path, file.kind, learnt, dialect)
        return
    path = str(file.path)
    if learnt.levels:
        needed = listed(list(learnt.columns))
        raise DataError(f"{path}: has no named columns; the model needs {needed}, some of them categories")
    width = len(learnt.columns)
    if file.kind == "npz":
        pieces = npz.pieces(path, PIECE)
    elif file.kind == "npy":
        pieces = npz.array_pieces(path, PIECE)
    elif file.kind == "svmlight":
        pieces = svmlight.pieces(path, learnt.columns, PIECE)
    else:
        pieces = iter([_bundled(path).features])
    for rows in pieces:
        if rows.shape[1] != width:
            raise DataError(f"{path}: has {rows.shape[1]} columns; the model was trained on {width}")
        yield Batch(rows)


def require_table_options(file: Opened, dialect: Dialect) -> None:
    """Raise DataError if ``dialect`` has an option that a file of this kind does not take."""
    _require_no_options(file, _table_options(dialect))


def _table_options(dialect: Dialect) -> dict[str, Any]:
    return {
        "--separator": dialect.separator,
        "--decimal": dialect.decimal,
        "--missing": dialect.missing,
        "--no-missing": not dialect.usual_missing,
    }


def _require_no_options(file: Opened, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if not value or file.kind == "csv":
            continue
        if file.kind != "parquet":
            raise DataError(f"`{option}` is for CSV and Parquet files; {file.name} has no named columns")
        if option in ("--separator", "--decimal"):
            raise DataError(f"`{option}` is for CSV files; {file.name} is a Parquet file")


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
    require_columns(path, names, {"--target": [target], "--drop": drop, "--categorical": categorical})
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
    classes, kept = tables.labels(path, table[target], rows, reading, drop_unlabelled)
    features = tables.columns(path, table, feature_names, reading, also=categorical)[kept]
    return Dataset(
        path.name,
        plain(features),
        classes,
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


def require_columns(path: Path, names: Sequence[str], options: Mapping[str, Sequence[str]]) -> None:
    """DataError if an option names a column that is none of ``names``, or that another option names too."""
    found: dict[str, str] = {}  # column → the option that names it
    for option, columns in options.items():
        for column in columns:
            if column not in names:
                raise DataError(
                    f"{path}: no column {column!r} for `{option}`; the columns are {listed(names)}"
                )
            other = found.setdefault(column, option)
            if other != option:
                raise DataError(f"{path}: `{other}` and `{option}` both name the column {column!r}")


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
    stored = npz.read(data)
    y = labels.of_rows(data, stored.labels)
    numbers = row_numbers.one_based(len(y))
    dataset = _unnamed(data, stored.features, y, stored.names, numbers, drop_unlabelled)
    if stored.held_out:
        rows = np.arange(1, len(y) + 1) if dataset.numbers is None else dataset.numbers
        dataset = dataset._replace(held_out=np.flatnonzero(rows > len(y) - stored.held_out))
    return dataset._replace(notes=stored.notes)


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
    classes, kept = labels.plain_labels(data, y, numbers, drop_unlabelled)
    return Dataset(
        Path(data).name,
        features if len(kept) == len(y) else features[kept],
        classes,
        names,
        numbers=numbers.lookup(kept),
        word=numbers.word,
        unlabelled=len(y) - len(kept),
    )


def _check_classes(dataset: Dataset) -> None:
    """Raise DataError if the labels hold fewer than 2 classes, or mostly values that occur once."""
    where = f"{dataset.name}: " + (f"column {dataset.target!r}" if dataset.target != "target" else "y")
    labels.check_classes(where, *np.unique(dataset.labels, return_counts=True))


def _without_rare_classes(dataset: Dataset) -> Dataset:
    """``dataset`` without the rows that are the only ones of their class, and a note if there are any."""
    kept, note = labels.of_classes_with_rows(dataset.labels, 2)
    if kept.all():
        return dataset
    numbers = np.arange(1, len(kept) + 1) if dataset.numbers is None else dataset.numbers
    held_out = dataset.held_out
    if held_out is not None:
        held_out = np.flatnonzero(np.isin(np.flatnonzero(kept), held_out))
    return dataset._replace(
        features=dataset.features[np.flatnonzero(kept)],
        labels=dataset.labels[kept],
        numbers=numbers[kept],
        held_out=held_out,
        notes=(*dataset.notes, note),
    )
