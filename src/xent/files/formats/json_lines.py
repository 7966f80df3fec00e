"""Convert JSON Lines, one object a line, to Parquet."""

from __future__ import annotations

import glob
import json
from pathlib import Path

from xent.files.errors import DataError, polars_faults
from xent.files.formats import parquet

BLANK = b"\xef\xbb\xbf \t\r\n"
MOST_BYTES = 1 << 24  # of the first line


def is_json_lines(path: Path, head: bytes) -> bool:
    """Whether the first line is an object, and the next begins as one or, if there is none, it is flat."""
    if not head.lstrip(BLANK).startswith(b"{"):
        return False
    with path.open("rb") as file:
        lines = (line for line in iter(lambda: file.readline(MOST_BYTES), b"") if line.strip(BLANK))
        line, following = next(lines), next(lines, b"").strip(BLANK)
    try:
        entry = json.loads(line.strip(BLANK))
    except (ValueError, RecursionError):
        return False
    if following:
        return isinstance(entry, dict) and following.startswith(b"{")
    return isinstance(entry, dict) and not any(isinstance(each, dict | list) for each in entry.values())


def convert(path: Path, target: Path) -> None:
    """Write the objects of ``path`` as the rows of a Parquet file; DataError names a line that is none."""
    import polars

    try:
        with polars_faults(path, "is no JSON Lines file"):
            frame = polars.scan_ndjson(glob.escape(str(path)), infer_schema_length=None)
            frame.sink_parquet(target, compression="lz4")
    except DataError:
        _require_objects(path)
        raise
    with path.open("rb") as file:
        count = sum(bool(line.strip(BLANK)) for line in file)
    parquet.require_rows(path, parquet.rows(target), count)


def _require_objects(path: Path) -> None:
    """Raise DataError that names the first line that is neither blank nor a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line.strip(BLANK) or b"{}", parse_constant=_no_number)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                shown = line[:40].decode("utf-8", "replace").strip()
                raise DataError(f"{path}: line {number} is not one JSON object; got {shown!r}")


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
