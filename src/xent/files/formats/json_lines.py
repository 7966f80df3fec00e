"""Convert JSON Lines, one object a line, to Parquet."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path

from xent.files.errors import DataError, polars_faults
from xent.files.formats import parquet

BLANK = b"\xef\xbb\xbf \t\r\n"
MOST_BYTES = 1 << 24  # of the first line
WORDS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')  # strings, so that what they hold is passed over


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
    """Write the objects of ``path`` as the rows of a Parquet file; DataError names a line that is none.

    NaN, which Python's json writes and which is no JSON, is null.
    """
    try:
        try:
            _convert(path, path, target)
        except DataError:
            plain = target.with_name(f"{target.name} without NaN")
            if not _write_without_nan(path, plain):
                raise
            _convert(path, plain, target)
            plain.unlink()
    except DataError:
        _require_objects(path)
        raise
    with path.open("rb") as file:
        count = sum(bool(line.strip(BLANK)) for line in file)
    parquet.require_rows(path, parquet.rows(target), count)


def _convert(path: Path, source: Path, target: Path) -> None:
    """Convert ``source``, the file itself or a copy of it; errors name ``path``."""
    import polars

    with polars_faults(path, "is no JSON Lines file"):
        frame = polars.scan_ndjson(glob.escape(str(source)), infer_schema_length=None)
        frame.sink_parquet(target, compression="lz4")


def _write_without_nan(path: Path, target: Path) -> bool:
    """Copy ``path`` with null in place of NaN; whether there was one. DataError names a line of infinity."""
    found = False
    with path.open("rb") as file, target.open("wb") as copy:
        for number, line in enumerate(file, 1):
            words = set(WORDS.findall(line))
            if words & {b"Infinity", b"-Infinity"}:
                raise DataError(
                    f"{path}: line {number} holds Infinity, which is no JSON: write null where a value is "
                    "missing; infinite numbers can be stored as Parquet or npy"
                )
            if b"NaN" in words:
                found = True
                line = WORDS.sub(lambda match: b"null" if match[0] == b"NaN" else match[0], line)
            copy.write(line)
    return found


def _require_objects(path: Path) -> None:
    """Raise DataError that names the first line that is neither blank nor a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line.strip(BLANK) or b"{}")
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                shown = line[:40].decode("utf-8", "replace").strip()
                raise DataError(f"{path}: line {number} is not one JSON object; got {shown!r}")
