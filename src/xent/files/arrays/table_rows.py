"""Read the numbers of a Parquet or CSV file a few rows at a time: one column, or all side by side."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xent.files import cells
from xent.files.arrays.row_stream import RowReader, only
from xent.files.errors import polars_faults
from xent.files.formats import csv_table, parquet, row_numbers

Array = np.ndarray[Any, Any]

BATCH = 1 << 22  # elements to read at a time of a file
PROBABILITY = "p_"  # begins the name of a column of `xent predict` with the probabilities of a class


class _TableRows(RowReader):
    """Rows of a table that is read in batches."""

    batches: Iterator[Any]
    rest: Array  # rows of the last batch that were not taken

    @abstractmethod
    def next_rows(self) -> Array | None:
        """The rows of the next batch; None after the last."""

    def take(self, count: int, reuse: Array | None = None) -> Array:
        parts, have = [self.rest] if len(self.rest) else [], len(self.rest)
        while have < count:
            batch = self.next_rows()
            if batch is None:
                raise ValueError(f"{self.name}: ends before its array does")
            parts.append(batch)
            have += len(batch)
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts or [self.rest])
        self.rest = rows[count:]
        return rows[:count]

    def close(self) -> None:
        self.batches = iter(())


class ParquetRows(_TableRows):
    """Rows of one column of numbers or lists, or of all columns side by side."""

    def __init__(self, path: Path, key: str | None) -> None:
        import polars

        schema = parquet.schema(path)
        index = parquet.index_columns(path)
        names, self.classes = _chosen(path, list(schema), [name for name in schema if name not in index], key)
        bad = [name for name in names if not schema[name].is_numeric()]
        if len(names) > 1 and bad:
            raise ValueError(f"{path}: column {bad[0]!r} is no numbers; name one column as {path}:COLUMN")
        self.name = f"{path}:{key}" if key else str(path)
        self.kind = schema[names[0]]
        self.has_lists = isinstance(self.kind, polars.List | polars.Array)
        if not (self.has_lists or self.kind.is_numeric() or self.kind == polars.Boolean):
            raise ValueError(
                f"{self.name}: column {names[0]!r} holds {self.kind}; expected numbers or lists of them"
            )
        length = parquet.rows(path)
        with polars_faults(path, parquet.NOT_PARQUET):
            frame = parquet.scan(path).select(names)
            sample = _matrix(self.name, frame.head(1).collect(), None)
        self.row = sample.shape[1:] if self.has_lists or len(names) > 1 else ()
        self.shape = (length, *self.row)
        self.dtype = "bool" if self.kind == polars.Boolean else sample.dtype.name
        self.itemsize = sample.itemsize
        rows = max(1, BATCH // max(1, math.prod(self.row)))
        self.batches = parquet.pieces(path, frame, rows)
        self.rest = sample[:0].reshape(0, *self.row)

    def next_rows(self) -> Array | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        with polars_faults(self.name):
            return _matrix(self.name, batch, math.prod(self.row)).reshape(-1, *self.row)


def _matrix(name: str, frame: Any, width: int | None) -> Array:
    """The values of a batch, (n, D); ``width`` is D, or None to take it from the first row."""
    import polars

    column = frame.to_series(0)
    if sum(frame.null_count().row(0)) or (column.dtype == polars.List and column.list.len().null_count()):
        raise ValueError(f"{name}: has missing values")
    if isinstance(column.dtype, polars.List):
        lengths = column.list.len().unique().to_list()
        width = (lengths or [0])[0] if width is None else width
        if lengths not in ([], [width]):
            raise ValueError(
                f"{name}: its lists differ in length: {', '.join(map(str, sorted(lengths)[:5]))}"
            )
        column = column.list.to_array(width)
    if isinstance(column.dtype, polars.Array) and column.explode(empty_as_null=False).null_count():
        raise ValueError(f"{name}: has missing values")
    rows = column.to_numpy() if isinstance(column.dtype, polars.Array) else frame.to_numpy(order="c")
    if rows.dtype.kind not in "biuf":
        raise ValueError(f"{name}: holds {column.dtype}; expected numbers or lists of them")
    return np.asarray(rows.view(np.uint8) if rows.dtype == bool else rows)


class CsvRows(_TableRows):
    """Rows of one column of numbers in a CSV file, or of all columns side by side."""

    def __init__(self, path: Path, key: str | None) -> None:
        self.path = path
        self.layout = csv_table.detect_layout(path, csv_table.Dialect())
        self.names, self.classes = _chosen(path, self.layout.names, self.layout.names, key)
        self.name = f"{path}:{key}" if key else str(path)
        self.numbers = row_numbers.csv_lines(path, self.layout.before + 1)
        self.row = () if key or len(self.names) == 1 else (len(self.names),)
        self.shape = (self.numbers.num_rows, *self.row)
        self.dtype, self.itemsize = "float64", 8
        self.batches = csv_table.batches(path, self.layout, BATCH)
        self.rest = np.empty((0, *self.row))
        self.first = 0  # the row that is read next

    def next_rows(self) -> Array | None:
        table, _ = next(self.batches, (None, None))
        return None if table is None else self._numbers(table)

    def _numbers(self, table: Any) -> Array:
        reading = cells.Reading(
            self.numbers,
            cells.missing_words((), usual=True),
            self.layout.decimal,
            self.layout.grouped,
        )
        columns = []
        for name in self.names:
            numbers, text = cells.floats(table[name], reading)
            bad = numbers.is_null() & text.is_not_null()
            bad = bad if bad.any() else text.is_null()
            if bad.any():
                row = int(bad.arg_max() or 0)
                place = f"column {name!r}, {self.numbers.name(self.first + row)}"
                raise ValueError(f"{self.path}: expected a number in {place}; got {table[name][row] or ''!r}")
            columns.append(numbers.to_numpy())
        self.first += table.height
        return np.stack(columns, 1).reshape(-1, *self.row)


def _chosen(
    path: Path, names: list[str], candidates: list[str], key: str | None
) -> tuple[list[str], list[str] | None]:
    """(the columns to read, the names of the classes if they are probabilities by `xent predict`)."""
    if key is not None:
        return [only(path, "column", names, key)], None
    if not candidates:
        raise ValueError(f"{path}: has no columns")
    stated = [name for name in candidates if name.startswith(PROBABILITY)]
    if len(stated) > 1:
        return stated, [name.removeprefix(PROBABILITY) for name in stated]
    return candidates, None
