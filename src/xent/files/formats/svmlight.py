"""Read an svmlight file as CSR matrices, whole or in batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xent.files.errors import DataError
from xent.files.formats import row_numbers
from xent.files.formats.row_numbers import RowNumbers

Array = np.ndarray[Any, Any]

MOST_COLUMNS = 1 << 25  # each column gets a name, which takes 64 bytes


def is_svmlight(head: bytes) -> bool:
    """Whether the first line with features is a label and index:value pairs; "#" begins a comment."""
    lines = (line.partition(b"#")[0].strip() for line in head.splitlines())
    line = next((line for line in lines if line and not re.fullmatch(rb"[-+.\de]+(\s+qid:\d+)?", line)), b"")
    return re.match(rb"\S+(\s+qid:\d+)?(\s+\d+:\S+)+", line) is not None


def read(data: str) -> tuple[Any, Array, list[str], RowNumbers]:
    """(CSR matrix, y, column names, numbers of the rows). Raises DataError."""
    x, y, first = _load(data)
    numbers = row_numbers.svmlight_lines(Path(data))
    require_count(data, x.shape[0], numbers)
    return _finite(data, x, first, numbers, 0), y, numbered(data, x.shape[1], first), numbers


def pieces(data: str, names: Sequence[str], size: int) -> Iterator[Any]:
    """The rows with columns ``names``, in batches of about ``size`` bytes of the file."""
    first = 0 if names and names[0] == "x0" else 1
    numbers = row_numbers.svmlight_lines(Path(data))
    count = 0
    for start in range(0, Path(data).stat().st_size, size):
        x, _, _ = _load(data, len(names), first, start, size)
        if x.shape[0]:
            yield _finite(data, x, first, numbers, count)
            count += x.shape[0]
    require_count(data, count, numbers)


def part(
    data: str, width: int | None, first: int, start: int, size: int, numbers: RowNumbers, count: int
) -> tuple[Any, Array]:
    """(CSR matrix, y) of the lines that begin in ``size`` bytes from ``start``, after ``count`` rows.

    ``first`` is the index of the first of ``width`` columns; None takes the last column of these lines.
    """
    x, y, _ = _load(data, MOST_COLUMNS + 1 if width is None else width, first, start, size)
    if width is None:
        x.resize(x.shape[0], int(x.indices.max(initial=-1)) + 1)
    return _finite(data, x, first, numbers, count), y


def numbered(data: str, width: int, first: int) -> list[str]:
    """Names for ``width`` columns: x0, x1, ... if ``first`` is 0; x1, x2, ... if it is 1."""
    if width > MOST_COLUMNS:
        raise DataError(f"{data}: has {width:,} columns; at most {MOST_COLUMNS:,} can be trained on")
    return [f"x{k + first}" for k in range(width)]


def _load(
    data: str, width: int | None = None, first: int | None = None, start: int = 0, length: int = -1
) -> tuple[Any, Array, int]:
    """(CSR matrix, y, the index of the first column in the file: 0 or 1)."""
    from sklearn.datasets import load_svmlight_file

    try:
        with open(data, "rb") as file:  # of a path scikit-learn would unpack what is called .gz or .bz2
            if first is None:
                with_zero, _ = load_svmlight_file(file, zero_based=True)
                first = int(with_zero.indices.all())
                file.seek(0)
            x, y = load_svmlight_file(
                file, n_features=width, offset=start, length=length, zero_based=first == 0
            )
    except (ValueError, OverflowError) as error:
        raise DataError(f"{data}: is no svmlight file for this: {error}") from None
    return x, y, first


def require_count(data: str, count: int, numbers: RowNumbers) -> None:
    """Raise DataError unless ``count`` rows were read."""
    if count != numbers.num_rows:
        raise DataError(f"{data}: {count:,} rows could be read of {numbers.num_rows:,} in the file")


def _finite(data: str, x: Any, first: int, numbers: RowNumbers, first_row: int) -> Any:
    bad = ~np.isfinite(x.data)
    if bad.any():
        entry = int(bad.argmax())
        row = int(np.searchsorted(x.indptr, entry, "right")) - 1 + first_row
        where = f"column x{int(x.indices[entry]) + first}, {numbers.name(row)}"
        raise DataError(f"{data}: expected a finite number in {where}; got {x.data[entry]}")
    return x
