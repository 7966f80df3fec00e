"""Read a tensor of a safetensors file a few rows at a time, also one that an index finds in another file."""

from __future__ import annotations

import fnmatch
import glob
import json
import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from xent.files.arrays.row_stream import StoredRows, natural, only, require_size

HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, the format's own limit
SAFETENSORS = {
    f"{kind}{8 * size}": f"<{letter}{size}"
    for kind, letter, sizes in (("F", "f", (2, 4, 8)), ("I", "i", (1, 2, 4, 8)), ("U", "u", (1, 2, 4, 8)))
    for size in sizes
} | {"BF16": "<u2"}


def open_tensor(path: Path, key: str | None) -> StoredRows:
    file = path.open("rb", buffering=0)
    try:
        start, entries = _safetensors_header(path, file)
        key = only(path, "tensor", list(entries), key)
        entry, name = entries[key], f"{path}:{key}"
        dtype = entry["dtype"]
        if dtype not in SAFETENSORS:
            raise ValueError(f"{name}: is of dtype {dtype}; expected one of {', '.join(SAFETENSORS)}")
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, last)):
            raise ValueError(f"{path}: is no safetensors file: the entry of {key!r} is not as it should be")
        if last - first != math.prod(shape) * np.dtype(SAFETENSORS[dtype]).itemsize:
            raise ValueError(f"{path}: is no safetensors file: {key!r} has another size than its shape")
        require_size(path, start + last)
        file.seek(start + first)
    except (KeyError, TypeError, AttributeError) as error:
        file.close()
        raise ValueError(f"{path}: is no safetensors file: {error!r}") from None
    except BaseException:
        file.close()
        raise
    return StoredRows(name, file, shape, "bfloat16" if dtype == "BF16" else SAFETENSORS[dtype])


def _safetensors_header(path: Path, file: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """(offset of the data in the file, {name: entry of the tensor})."""
    size = int.from_bytes(file.read(8), "little")
    require_size(path, 8 + min(size, HEADER_LIMIT + 1))
    if size > HEADER_LIMIT:
        raise ValueError(f"{path}: is no safetensors file: a header of {size:,} bytes")
    try:
        entries = json.loads(file.read(size))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no safetensors file: {error}") from None
    return 8 + size, {name: entry for name, entry in entries.items() if name != "__metadata__"}


def find_tensors(path: Path, key: str | None) -> list[tuple[Path, str]] | None:
    """[(file, tensor)] that an index of sharded safetensors files names; None if ``path`` is no such index.

    ``key`` may be a pattern, such as ``logits.*``, of tensors that follow one another in natural order.
    """
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        found = {str(name): path.parent / file for name, file in files.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    names = sorted(fnmatch.filter(found, key), key=natural) if key and glob.has_magic(key) else []
    return [(found[name], name) for name in names or [only(path, "tensor", list(found), key)]]
