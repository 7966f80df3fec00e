"""The numbers that error messages give rows: the line in a text file, otherwise counted from 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

Array = np.ndarray[Any, Any]

PIECE = 1 << 20  # bytes to read at a time


class RowNumbers(NamedTuple):
    """The numbers of the ``num_rows`` rows of one file; ``word`` is what they count, "line" or "row".

    Row i, counted from 0, has the number ``first + i`` plus the number of entries <= i in ``skipped``, which
    is sorted. Each entry stands for a line that is no row or that continues the row before.
    """

    word: str
    first: int
    num_rows: int
    skipped: Array = np.zeros(0, np.int64)

    def lookup(self, rows: Any) -> Array:
        """Numbers of ``rows``, an array of rows counted from 0."""
        index = np.asarray(rows, np.int64)
        return self.first + index + np.searchsorted(self.skipped, index, "right")

    def after(self, count: int) -> Self:
        """The numbers of the rows after the first ``count``."""
        return self._replace(first=self.first + count, skipped=self.skipped - count)

    def name(self, row: int) -> str:
        """ "line 17" of one row."""
        return f"{self.word} {int(self.lookup(row))}"


def one_based(count: int) -> RowNumbers:
    """Row numbers of a file without lines, such as Parquet: 1 to ``count``."""
    return RowNumbers("row", 1, count)


def csv_lines(path: Path, before: int) -> RowNumbers:
    """The lines on which the rows of a CSV file begin, after ``before`` records that include the header.

    A line feed between quotes continues a row. Quotes are paired in their order, as in polars.
    """
    lines, records, quoted = 0, 0, 0  # line feeds, those that end a record, whether inside quotes
    continued = []
    last = b"\n"
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            last = piece[-1:]
            if not quoted and b'"' not in piece:
                ends = piece.count(b"\n")
                lines, records = lines + ends, records + ends
                continue
            content = np.frombuffer(piece, np.uint8)
            inside = (np.cumsum(content == ord('"')) + quoted) % 2
            quoted = int(inside[-1])
            within = inside[content == ord("\n")] == 1
            ended = np.cumsum(~within)
            continued.append(records + ended[within])  # the record that each continues
            lines, records = lines + len(within), records + int(ended[-1] if len(ended) else 0)
    records += last != b"\n"
    inner = np.concatenate([*continued, np.zeros(0, np.int64)])
    in_header = int(np.count_nonzero(inner < before))
    return RowNumbers("line", before + in_header + 1, records - before, inner[in_header:] - before + 1)


def svmlight_lines(path: Path) -> RowNumbers:
    """The lines of an svmlight file that hold more than blanks and a comment."""
    skipped, rows = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.partition(b"#")[0].strip():
                rows += 1
            else:
                skipped.append(rows)
    return RowNumbers("line", 1, rows, np.array(skipped, np.int64))
