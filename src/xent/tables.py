"""Tables in CSV and Parquet files, whole or in batches; their columns as numbers, categories, labels."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xent.preprocess import listed

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
SPELT = sorted({s for word in MISSING for s in (word, word.upper(), word.capitalize())} | {"NaN"})
BATCH = 1 << 20  # values of a table read at a time
EACH_CELL = "fill it in or leave the row out"
# 0,667 and 1.002,5 and 1,002.5: a comma at the decimals, or between the thousands.
COMMA = r"^[-+]?(\d*,\d+|\d{1,3}(\.\d{3})+,\d+|\d{1,3}(,\d{3})+\.?\d*)$"


class DataError(ValueError):
    """What is wrong with the data and where, in one line."""


def read(path: Path, text: Sequence[str | None] = ()) -> polars.DataFrame:
    """The whole table; columns named in ``text`` stay text. Raises DataError for a file that is none."""
    import polars

    if is_parquet(path):
        try:
            return polars.read_parquet(path, glob=False)
        except polars.exceptions.PolarsError as error:
            raise _not_parquet(path, error) from None
    separator = _separator(path)
    try:
        # Numbers where all values are, text elsewhere; a value such as " 3" is found to be one later.
        table = polars.read_csv(
            path,
            infer_schema_length=None,
            null_values=SPELT,
            schema_overrides={name: polars.String for name in text if name},
            separator=separator,
            glob=False,
        )
    except polars.exceptions.PolarsError:
        try:
            table = polars.read_csv(path, infer_schema=False, separator=separator, glob=False)
        except polars.exceptions.PolarsError as error:
            raise _not_csv(path, separator, error) from None
    true_or_false = [name for name in table.columns if table[name].dtype == polars.Boolean]
    if true_or_false:  # categories as they are written, which `batches` must find again
        return read(path, (*text, *true_or_false))
    return _with_plain_names(path, table)


def batches(path: Path) -> Iterator[polars.DataFrame]:
    """The table in pieces of some rows; those of a CSV file are text throughout."""
    import polars

    parquet = is_parquet(path)
    separator = "" if parquet else _separator(path)
    try:
        if parquet:
            frame = polars.scan_parquet(path, glob=False)
        else:
            frame = polars.scan_csv(path, infer_schema=False, separator=separator, glob=False)
        rows = max(1, BATCH // max(1, len(frame.collect_schema())))
        for batch in frame.collect_batches(chunk_size=rows, maintain_order=True):
            yield batch if parquet else _with_plain_names(path, batch)
    except polars.exceptions.PolarsError as error:
        if parquet:
            raise _not_parquet(path, error) from None
        raise _not_csv(path, separator, error) from None


def is_parquet(path: Path) -> bool:
    """By its first bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def filled_rows(path: Path, table: polars.DataFrame) -> Array:
    """Places of the rows that hold something; in a Parquet file, of all."""
    import polars

    if is_parquet(path):
        return np.arange(table.height)
    blank = table.select(polars.all_horizontal(polars.all().is_null()).alias("blank"))
    return np.flatnonzero(~blank["blank"].to_numpy())


def columns(
    path: Path,
    table: polars.DataFrame,
    names: Sequence[str],
    categories: Sequence[str] | None = None,
    first_row: int = 1,
    also: Sequence[str] = (),
) -> polars.DataFrame:
    """Columns ``names`` as numbers (floats, null where missing) or categories (text, null where missing).

    ``categories`` are those of categories; None finds them out: columns of text, and those in ``also``.
    ``first_row`` is the number of the table's first row in messages.
    """
    import polars

    absent = [name for name in names if name not in table.columns]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}; the columns are {listed(table.columns)}")
    result = []
    for name in names:
        column = table[name]
        if column.dtype in (polars.String, polars.Categorical, polars.Enum):
            column = _text(column)
            guess = categories is None and name not in also
            known = name in (categories if categories is not None else also)
            if known or (guess and _is_text(column)):
                result.append(column)
                continue
            result.append(_parsed(path, column, first_row, guess))
        elif name in (also if categories is None else categories):
            result.append(_spelt(path, column))
        else:
            result.append(_number(path, column, first_row))
    return polars.DataFrame(result)


def labels(path: Path, column: polars.Series, rows: Array) -> Array:
    """A column as labels of ``rows``: integers if all are, text otherwise. Raises DataError."""
    import polars

    where = f"column {column.name!r}"
    if column.dtype.is_float():
        whole = column.drop_nulls().drop_nans()
        if not (whole == whole.round()).all():
            raise DataError(f"{path}: {where} holds numbers with a fraction; expected classes")
        large = whole.filter(whole.abs() >= 2.0**63)
        if len(large):
            raise DataError(f"{path}: {where} holds {large[0]:g}; expected integers of 64 bits")
        column = column.fill_nan(None).cast(polars.Int64, strict=False)
    text = (polars.String, polars.Categorical, polars.Enum, polars.Boolean)
    if not (column.dtype.is_integer() or column.dtype in text):
        raise DataError(f"{path}: {where} holds {column.dtype}; expected integers or text")
    column = _text(column.cast(polars.String))
    values = column.to_list()
    for row in rows:
        if values[row] is None:
            raise DataError(f"{path}: missing label in {where}, row {row + 1}: {EACH_CELL}")
    found = np.array([values[row] for row in rows])
    try:
        numbers = found.astype(np.int64)
    except (ValueError, OverflowError):
        return found
    return numbers if np.array_equal(numbers.astype(str), found) else found  # "01" is not 1


def _text(column: polars.Series) -> polars.Series:
    """Without blanks around, null where a value is missing."""
    import polars

    stripped = column.cast(polars.String).str.strip_chars()
    missing = stripped.str.to_lowercase().is_in(MISSING)
    return stripped.set(missing.fill_null(False), None)


def _is_text(column: polars.Series) -> bool:
    """Whether fewer than half of the values are numbers, be it with commas, and there are any values."""
    import polars

    there = column.len() - column.null_count()
    numbers = column.cast(polars.Float64, strict=False).is_not_null() | column.str.contains(COMMA)
    return there > 0 and 2 * int(numbers.sum()) < there


def _parsed(path: Path, column: polars.Series, first_row: int, guess: bool) -> polars.Series:
    import polars

    numbers = column.cast(polars.Float64, strict=False)
    bad = (numbers.is_null() & column.is_not_null()).arg_true()
    if len(bad):
        place = f"column {column.name!r}, row {bad[0] + first_row}"
        value = column[bad[0]]
        hint = "; write numbers with a point and without commas" if re.match(COMMA, value) else ""
        if guess:
            hint += f"; if the column holds categories, say --categorical {column.name}"
        raise DataError(f"{path}: expected a number in {place}; got {value!r}{hint}")
    return _number(path, numbers, first_row)


def _number(path: Path, column: polars.Series, first_row: int) -> polars.Series:
    """Finite floats, null where missing."""
    import polars

    kind = column.dtype
    if not (kind.is_numeric() or kind in (polars.Boolean, polars.Null)):
        raise _no_feature(path, column)
    numbers = column if kind == polars.Float32 else column.cast(polars.Float64)
    numbers = numbers.fill_nan(None)
    infinite = numbers.is_infinite().arg_true()
    if len(infinite):
        place = f"column {column.name!r}, row {infinite[0] + first_row}"
        raise DataError(f"{path}: expected a finite number in {place}; got '{numbers[infinite[0]]}'")
    return numbers


def _spelt(path: Path, column: polars.Series) -> polars.Series:
    """Values that are no text as categories."""
    import polars

    try:
        return _text(column.cast(polars.String))
    except polars.exceptions.PolarsError:  # lists; bytes that are not UTF-8
        raise _no_feature(path, column) from None


def _no_feature(path: Path, column: polars.Series) -> DataError:
    return DataError(
        f"{path}: column {column.name!r} holds {column.dtype}; expected numbers, booleans or text: convert "
        f"it, or have `fit` leave it out by --drop {column.name}"
    )


def _separator(path: Path) -> str:
    """Of a CSV file; DataError if it is none at first sight."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise DataError(f"{path}: is empty; expected a CSV file with a header")
    if b"\0" in head:
        raise DataError(f"{path}: is not a CSV file: it holds binary data")
    if b"\r" in head and b"\n" not in head:
        raise DataError(f"{path}: its lines end with a carriage return alone; expected line feeds (\\n)")
    header = head.splitlines()[0]
    return max(",;\t", key=lambda mark: header.count(mark.encode()))


def _with_plain_names(path: Path, table: polars.DataFrame) -> polars.DataFrame:
    names: set[str] = set()
    for name in map(str.strip, table.columns):
        first, mark, number = name.rpartition("_duplicated_")  # polars' name for a second column
        same = first if mark and number.isdecimal() and first in names else name
        if same in names:
            raise DataError(f"{path}: column {same!r} is there twice")
        names.add(name)
    return table.rename(str.strip)


def _not_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is damaged or no Parquet file: {_first_line(error)}")


def _not_csv(path: Path, separator: str, error: Exception) -> DataError:
    return DataError(f"{path}: is not a CSV file: {_first_bad_line(path, separator) or _first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


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
