"""Convert columns of a table, of text or typed, to numbers, categories and labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xent.files import cells
from xent.files.cells import Reading
from xent.files.errors import DataError as DataError
from xent.files.phrases import listed

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

# Numbers with a comma as decimal mark or thousands separator: 0,667 and 1.002,5 and 1,002.5.
MARKED = r"^[-+]?(\d*,\d+|\d{1,3}(\.\d{3})+,\d+|\d{1,3}(,\d{3})+\.?\d*)$"

LEAVE_OUT = "leave its row out, as --drop-unlabelled does"


def columns(
    path: Path,
    table: polars.DataFrame,
    names: Sequence[str],
    reading: Reading,
    categories: Collection[str] | None = None,
    booleans: Collection[str] = (),
    first: int = 0,
    also: Collection[str] = (),
) -> polars.DataFrame:
    """Columns ``names`` as numbers (floats, null where missing) or categories (text, null where missing).

    ``categories`` names the columns of categories; None takes the columns of text and those in ``also``.
    A column of numbers may hold booleans, read as 1 and 0, if it is among ``booleans``, or if ``categories``
    is None and its other numbers are 0 and 1. ``first`` is the index in the file of the table's first row.
    """
    import polars

    absent = [name for name in names if name not in table.columns]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}; the columns are {listed(table.columns)}")
    guess = categories is None
    category_names = also if categories is None else categories
    converted = []
    for name in names:
        column = table[name]
        if name in category_names:
            converted.append(_categories(path, column, reading))
        elif column.dtype in (polars.String, polars.Categorical, polars.Enum):
            numbers, text = cells.floats(column.cast(polars.String), reading)
            if numbers.null_count() == text.null_count() < text.len():
                converted.append(_finite(path, numbers, reading, first))
                continue
            flags = cells.booleans(text)
            allowed = name in booleans or (guess and _are_flags(numbers, flags, text))
            if guess and not allowed and _is_text(numbers, text):
                converted.append(_categories(path, column, reading))
                continue
            values = numbers.fill_null(flags) if allowed else numbers
            _require_numbers(path, values, text, reading, first, guess)
            converted.append(_finite(path, values, reading, first))
        else:
            if column.dtype == polars.Boolean and not (guess or name in booleans):
                place = reading.numbers.name(first + int(column.is_not_null().arg_max() or 0))
                raise DataError(f"{path}: expected a number in column {name!r}, {place}; got booleans")
            converted.append(_finite(path, _typed(path, column, reading), reading, first))
    return polars.DataFrame(converted)


def labels(
    path: Path, column: polars.Series, rows: Array, reading: Reading, drop_missing: bool = False
) -> tuple[Array, Array]:
    """(labels, their rows) of a column at ``rows``: booleans or integers if all labels are, otherwise text.

    A missing label raises DataError, or with ``drop_missing`` its row is left out.
    """
    import polars

    where = f"column {column.name!r}"
    if column.dtype.is_decimal():
        column = column.cast(polars.Float64)
    if column.dtype.is_float():
        whole = column.drop_nulls().drop_nans()
        if not (whole == whole.round()).all():
            raise DataError(f"{path}: {where} holds numbers with a fraction; expected classes")
        large = whole.filter(whole.abs() >= 2.0**63)
        if len(large):
            raise DataError(f"{path}: {where} holds {large[0]:g}; expected integers of 64 bits")
        column = column.fill_nan(None).cast(polars.Int64, strict=False)
    text = (polars.String, polars.Categorical, polars.Enum, polars.Boolean, polars.Null)
    if not (column.dtype.is_integer() or column.dtype in text):
        raise DataError(f"{path}: {where} holds {column.dtype}; expected integers or text")
    is_plain = column.dtype.is_integer() and column.dtype != polars.UInt64 and not column.null_count()
    if is_plain and not any(re.match(cells.NUMBER, word) for word in reading.missing):
        return column.cast(polars.Int64).to_numpy()[rows], rows  # as below, without spelling each
    spelt = cells.texts(column, reading)[rows]
    present = spelt.is_not_null().to_numpy()
    if not drop_missing and not present.all():
        row = int(rows[present.argmin()])
        raise DataError(
            f"{path}: missing label in {where}, {reading.numbers.name(row)}: {_missing(column[row])}"
        )
    return classes_of(spelt.drop_nulls()), rows[present]


def classes_of(spelt: polars.Series) -> Array:
    """Text labels as booleans or int64 if all of them are, otherwise as text.

    Labels that are booleans or the numbers 1 and 0 are booleans, as in a column of features.
    """
    flags = cells.booleans(spelt)
    if flags.is_not_null().any() and (flags.is_not_null() | spelt.is_in(["0", "1"])).all():
        return spelt.is_in(["true", "1"]).to_numpy()
    text = np.array(spelt.to_list())
    try:
        numbers = text.astype(np.int64)
    except (ValueError, OverflowError):
        return text
    return numbers if np.array_equal(numbers.astype(str), text) else text  # "01" is not 1


def _missing(cell: Any) -> str:
    """Advice for the error about a missing label."""
    if isinstance(cell, str) and cell.strip():
        return f"got {cell!r}, which is read as missing: {LEAVE_OUT}, or say --no-missing if it is a class"
    return f"fill it in or {LEAVE_OUT}"


def _are_flags(numbers: polars.Series, flags: polars.Series, text: polars.Series) -> bool:
    """Whether the column has booleans, and otherwise only 1, 0 and missing values."""
    if not flags.is_not_null().any():
        return False
    others = text.is_not_null() & flags.is_null()
    return bool((numbers.is_in([0.0, 1.0]) | numbers.is_nan() | ~others).fill_null(False).all())


def _is_text(numbers: polars.Series, text: polars.Series) -> bool:
    """Whether present are values, and fewer than half of them are numbers, with or without commas."""
    count, present = _count_numbers(numbers, text)
    return present > 0 and 2 * count < present


def _count_numbers(numbers: polars.Series, text: polars.Series) -> tuple[int, int]:
    """(numbers, with or without commas; values), both without the missing."""
    is_number = (numbers.is_not_null() | text.str.contains(MARKED)) & text.is_not_null()
    return int(is_number.sum()), text.len() - text.null_count()


def numbers_among(column: polars.Series, reading: Reading) -> tuple[int, int]:
    """(how many cells of a column of text are numbers, how many are not missing)."""
    import polars

    return _count_numbers(*cells.floats(column.cast(polars.String), reading))


def _require_numbers(
    path: Path, numbers: polars.Series, text: polars.Series, reading: Reading, first: int, guess: bool
) -> None:
    bad = (numbers.is_null() & text.is_not_null()).arg_true()
    if not len(bad):
        return
    name, value = text.name, text[bad[0]]
    place = f"column {name!r}, {reading.numbers.name(first + bad[0])}"
    hint = ""
    if re.match(MARKED, value) or (reading.decimal == "," and re.match(r"^[-+]?\d*\.\d+$", value)):
        hint = (
            f"; this file is read with a decimal {'comma' if reading.decimal == ',' else 'point'}: "
            "say --decimal , if its fractions follow a comma, --decimal . if they follow a point"
        )
    elif value.lower() in cells.MISSING:
        hint = f"; if it stands for a missing value, say --missing {value}"
    hint += f"; if the column holds categories, say --categorical {name}" + ("" if guess else " to `fit`")
    raise DataError(f"{path}: expected a number in {place}; got {value!r}{hint}")


def _typed(path: Path, column: polars.Series, reading: Reading) -> polars.Series:
    """Numbers and booleans as floats."""
    import polars

    kind = column.dtype
    if not (kind.is_numeric() or kind in (polars.Boolean, polars.Null)):
        raise _no_feature(path, column)
    numbers = column if kind == polars.Float32 else column.cast(polars.Float64)
    return cells.without_numbers(numbers, reading)


def _finite(path: Path, numbers: polars.Series, reading: Reading, first: int) -> polars.Series:
    """Finite floats, null where missing."""
    numbers = numbers.fill_nan(None)
    infinite = numbers.is_infinite().arg_true()
    if len(infinite):
        place = f"column {numbers.name!r}, {reading.numbers.name(first + infinite[0])}"
        raise DataError(f"{path}: expected a finite number in {place}; got '{numbers[infinite[0]]}'")
    return numbers


def _categories(path: Path, column: polars.Series, reading: Reading) -> polars.Series:
    import polars

    try:
        return cells.texts(column, reading)
    except polars.exceptions.PolarsError:  # lists; bytes that are not UTF-8
        raise _no_feature(path, column) from None


def _no_feature(path: Path, column: polars.Series) -> DataError:
    return DataError(
        f"{path}: column {column.name!r} holds {column.dtype}; expected numbers, booleans or text: convert "
        f"it, or have `fit` leave it out by --drop {column.name}"
    )
