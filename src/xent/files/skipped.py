"""Find what of a table is no data: blank lines, nameless empty columns, the index that pandas wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xent.files.cells import Reading

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)?")  # the name that pandas gives a nameless column
WHOLE = r"^-?\d{1,18}$"


def filled_rows(table: polars.DataFrame) -> Array:
    """Indices of the rows with a cell that is not blank, in a table of text."""
    blank = np.arange(table.height)
    for column in table:
        if not len(blank):
            break
        cells = column if len(blank) == table.height else column[blank]
        blank = blank[(cells.is_null() | (cells.str.strip_chars() == "")).to_numpy()]
    rows = np.ones(table.height, bool)
    rows[blank] = False
    return np.flatnonzero(rows)


def left_out(
    table: polars.DataFrame, nameless: Sequence[str], index: Sequence[str], reading: Reading
) -> dict[str, str]:
    """{column to leave out: the reason, a sentence}; ``index`` are columns known to be pandas' index."""
    notes = {}
    for position, name in enumerate(table.columns):
        if name in index:
            notes[name] = f"column {name!r} is an index that pandas wrote: left out (reset_index() keeps it)"
        elif name in nameless and _is_empty(table[name]):
            notes[name] = f"{name} has neither a name nor values: left out"
        elif position == 0 and (name in nameless or UNNAMED.fullmatch(name)) and _is_index(table[name]):
            called = f"{name} has no name" if name in nameless else f"column {name!r} has no name of its own"
            notes[name] = (
                f"{called} and numbers or names the rows, as an index that pandas wrote: left out "
                "(a name keeps it)"
            )
    return notes


def _is_empty(column: polars.Series) -> bool:
    import polars

    text = column.cast(polars.String, strict=False) if column.dtype != polars.Null else column
    return column.null_count() == len(column) or (
        column.dtype == polars.String and bool((text.fill_null("").str.strip_chars() == "").all())
    )


def _is_index(column: polars.Series) -> bool:
    """Whether the column counts the rows, or names each one.

    An index has gaps where rows were dropped and another order where they were shuffled, so distinct whole
    numbers, or distinct text, are enough. In concatenated tables the count may begin again at 0.
    """
    import polars

    if not (column.dtype.is_integer() or column.dtype == polars.String) or column.null_count():
        return False
    text = column.cast(polars.String).str.strip_chars()
    whole = text.str.contains(WHOLE)
    distinct = text.n_unique() == len(text)
    if not whole.all():
        numbers = text.cast(polars.Float64, strict=False)
        return distinct and len(text) > 1 and numbers.null_count() == len(text)
    counts = text.cast(polars.Int64).to_numpy()
    again = (np.diff(counts) == 1) | (counts[1:] == 0)
    return len(text) > 1 and (distinct or (bool(again.all()) and counts[0] == 0))
