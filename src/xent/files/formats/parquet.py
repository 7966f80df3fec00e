"""Read Parquet files, whole or in batches, with an error if rows are missing; find pandas' index columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xent.files.errors import DataError, polars_faults

if TYPE_CHECKING:
    import polars

NOT_PARQUET = "is damaged or no Parquet file"
UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def read(path: Path) -> polars.DataFrame:
    """The whole table. Raises DataError."""
    import polars

    count = rows(path)
    with polars_faults(path, NOT_PARQUET):
        table = polars.read_parquet(path, glob=False)
    require_rows(path, table.height, count)
    return table


def batches(path: Path, cells: int) -> Iterator[polars.DataFrame]:
    """The table in batches of about ``cells`` cells; DataError at the end if rows are missing."""
    with polars_faults(path, NOT_PARQUET):
        frame = scan(path)
        width = len(frame.collect_schema())
    yield from pieces(path, frame, max(1, cells // max(1, width)))


def scan(path: Path) -> polars.LazyFrame:
    """A lazy frame of the table; only the schema is read."""
    import polars

    return polars.scan_parquet(path, glob=False)


def rows(path: Path) -> int:
    """Number of rows, from the file's metadata."""
    import polars

    with polars_faults(path, NOT_PARQUET):
        return int(scan(path).select(polars.len()).collect().item())


def pieces(path: Path, frame: polars.LazyFrame, size: int) -> Iterator[polars.DataFrame]:
    """All rows of ``frame``, a query on all rows of the file, in batches of ``size``.

    If a thread of polars panics on a damaged page, the iteration ends without an error, so the rows are
    counted.
    """
    expected, count = rows(path), 0
    with polars_faults(path, NOT_PARQUET):
        batches = frame.collect_batches(chunk_size=size, maintain_order=True)
    while True:
        with polars_faults(path, NOT_PARQUET):
            batch = next(batches, None)
        if batch is None:
            break
        count += batch.height
        yield batch
    require_rows(path, count, expected)


def require_rows(path: Path, count: int, expected: int) -> None:
    """Raise DataError unless ``count`` is ``expected``."""
    if count != expected:
        raise DataError(f"{path}: is damaged: {count:,} of its {expected:,} rows can be read")


def schema(path: Path) -> dict[str, Any]:
    """The dtype of each column. The file is opened here: polars takes a path with brackets for a pattern."""
    import polars

    with polars_faults(path, NOT_PARQUET), path.open("rb") as file:
        return dict(polars.read_parquet_schema(file))


def index_columns(path: Path) -> list[str]:
    """The columns that pandas wrote for the index of its frame."""
    import polars

    names = list(schema(path))
    with polars_faults(path, NOT_PARQUET), path.open("rb") as file:
        written = polars.read_parquet_metadata(file).get("pandas", "{}")
    try:
        entry: Any = json.loads(written)
        index = [name for name in entry.get("index_columns", []) if isinstance(name, str)]
    except (ValueError, RecursionError, AttributeError, TypeError):
        index = []  # the entry was not written by pandas
    return [name for name in names if name in index or UNNAMED_INDEX.fullmatch(name)]
