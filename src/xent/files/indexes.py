"""What of a table is no data: blank lines, nameless columns without values, the index that pandas wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xent.files.cells import Reading

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)?")  # how pandas calls a nameless column that it has read
WHOLE = r"^-?\d{1,18}$"


def filled_rows(table: polars.DataFrame) -> Array:
    """Places of the rows of text that hold something."""

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
    """{column: a sentence that says why it is left out}; ``index`` are those known to be pandas' index."""
    found = {}
    for place, name in enumerate(table.columns):
        if name in index:
            found[name] = f"column {name!r} is an index that pandas wrote: left out (reset_index() keeps it)"
        elif name in nameless and _is_empty(table[name]):
            found[name] = f"{name} has neither a name nor values: left out"
        elif place == 0 and (name in nameless or UNNAMED.fullmatch(name)) and _is_index(table[name]):
            called = f"{name} has no name" if name in nameless else f"column {name!r} has no name of its own"
            found[name] = (
                f"{called} and numbers or names the rows, as an index that pandas wrote: left out "
                "(a name keeps it)"
            )
    return found


def _is_empty(column: polars.Series) -> bool:
    import polars

    text = column.cast(polars.String, strict=False) if column.dtype != polars.Null else column
    return column.null_count() == len(column) or (
        column.dtype == polars.String and bool((text.fill_null("").str.strip_chars() == "").all())
    )


def _is_index(column: polars.Series) -> bool:
    """Whether it counts the rows, or names each one.

    Rows left out leave gaps, shuffled ones another order: hence whole numbers, or text, each once. Tables
    put below each other count from 0 again.
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
