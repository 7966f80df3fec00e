"""What one cell means: missing, a boolean, a number or text, whatever its spelling or column type."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from xent.files.formats.row_numbers import RowNumbers

if TYPE_CHECKING:
    import polars

# Compared in lower case.
MISSING = ("", "na", "n/a", "nan", "-nan", "nat", "null", "none", "?", "#n/a", "#na", "<na>")
BOOLEANS = {"true": 1.0, "false": 0.0}  # compared in lower case
# Numbers as programs write them. 01 is not a number: it may be a postal code.
NUMBER = r"^[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]\d{2,4})?$"
SHORTEST = r"^(?:0|-?[1-9]\d*|-?(?:0|[1-9]\d*)\.\d*[1-9])$"  # a number in its shortest spelling
COMMA_NUMBER = r"^([-+]?(?:0|[1-9]\d*)),(\d+)$"
MOST_DIGITS = 30  # digits before the point, up to which a number is written without an exponent
# A number with decimal mark {0} and thousands separator {1}.
GROUPED = r"^[-+]?(?:\d+|\d{{1,3}}(?:\{1}\d{{3}})+)?(?:\{0}\d*)?(?:[eE][-+]?\d+)?$"
EITHER = r"^[-+]?\d{{1,3}}\{1}\d{{3}}$"  # ambiguous: 1.234 with a decimal comma is 1234 or 1.234


class Reading(NamedTuple):
    """How to read the cells of one file, and the numbers of its rows."""

    numbers: RowNumbers
    missing: frozenset[str] = frozenset(("",))  # words in lower case, numbers in their shortest spelling
    decimal: str = "."
    grouped: bool = False  # whether 1.234 with a decimal comma is 1234, and 1,234 with a point


def missing_words(words: tuple[str, ...], usual: bool) -> frozenset[str]:
    """``words`` and, if ``usual``, those of `MISSING`, in the spelling of `Reading.missing`."""
    return frozenset((*(spelling(word.strip()).lower() for word in words), *(MISSING if usual else ("",))))


def spelling(text: str) -> str:
    """A boolean in lower case, a number in its shortest spelling (1.0 and +1 are 1), other text unchanged."""
    if text.lower() in BOOLEANS:
        return text.lower()
    if re.match(SHORTEST, text) or not re.match(NUMBER, text):
        return text
    number = Decimal(text).normalize()
    if not number:
        return "0"
    return f"{number:f}" if -MOST_DIGITS < number.adjusted() < MOST_DIGITS else str(number).lower()


def texts(column: polars.Series, reading: Reading) -> polars.Series:
    """A column of any type as text in the spelling of `spelling`, null where missing.

    Raises polars' error for a type that cannot be cast to text.
    """
    import polars

    typed = column.dtype.is_float()
    if typed:
        column = column.fill_nan(None)
    text = column.cast(polars.String).str.strip_chars()
    if typed:  # 1e16 as other programs write it
        text = text.str.replace(r"e(\d)", "e+0$1").str.replace("e-", "e-0", literal=True)
    if reading.decimal == ",":
        text = text.str.replace(COMMA_NUMBER, "$1.$2")
    is_short = text.str.contains(SHORTEST)
    odd = text.filter(~is_short & (text.str.contains(NUMBER) | text.str.to_lowercase().is_in([*BOOLEANS])))
    if len(odd):
        spellings = {value: spelling(value) for value in odd.unique()}
        text = text.replace(list(spellings), list(spellings.values()))
    return without_missing(text, reading)


def without_missing(text: polars.Series, reading: Reading) -> polars.Series:
    """``text`` with null for each word that means a missing value."""
    missing = text.str.to_lowercase().is_in(list(reading.missing))
    return text.set(missing.fill_null(False), None)


def floats(column: polars.Series, reading: Reading) -> tuple[polars.Series, polars.Series]:
    """(a column of text as floats, null where a cell is no number; the stripped text, null where missing)."""
    import polars

    if reading.decimal == "." and not reading.grouped:
        numbers = column.cast(polars.Float64, strict=False)
        if numbers.null_count() == column.null_count():
            return without_numbers(numbers, reading), column
    text = column.str.strip_chars()
    plain = text
    if reading.decimal == "," or reading.grouped:
        marks = reading.decimal, {",": ".", ".": ","}[reading.decimal]
        valid = text.str.contains(GROUPED.format(*marks))
        if not reading.grouped:
            valid &= ~text.str.contains(EITHER.format(*marks))
        plain = text.str.replace_all(marks[1], "", literal=True)
        plain = plain.str.replace(marks[0], ".", literal=True).set(~valid, None)
    numbers = without_numbers(plain.cast(polars.Float64, strict=False), reading)
    return numbers, without_missing(text, reading)


def without_numbers(numbers: polars.Series, reading: Reading) -> polars.Series:
    """``numbers`` with NaN for each number that means a missing value."""
    marks = [float(word) for word in reading.missing if re.match(NUMBER, word)]
    return numbers.set(numbers.is_in(marks).fill_null(False), float("nan")) if marks else numbers


def booleans(text: polars.Series) -> polars.Series:
    """1 for true, 0 for false, null for other text."""
    import polars

    lower = text.str.to_lowercase()
    return lower.replace_strict(BOOLEANS, default=None, return_dtype=polars.Float64)
