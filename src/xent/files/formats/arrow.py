"""Convert an Arrow IPC file (Feather) to Parquet."""

from __future__ import annotations

from pathlib import Path

from xent.files.errors import polars_faults
from xent.files.formats import parquet

MAGIC = b"ARROW1\0\0"
DAMAGED = "is damaged or no Arrow file"


def convert(path: Path, target: Path) -> None:
    """Write the table in ``path`` as a Parquet file. Raises DataError."""
    import polars

    with polars_faults(path, DAMAGED):
        frame = polars.scan_ipc(path, glob=False)
        count = int(frame.select(polars.len()).collect().item())
        frame.sink_parquet(target, compression="lz4")
    parquet.require_rows(path, parquet.rows(target), count)
