"""Files of every kind, damaged at random: flipped bits, cuts, insertions, swaps."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
from safetensors.numpy import save_file
from sklearn.datasets import dump_svmlight_file

ROWS = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3)).round(3)
Y = np.arange(ROWS) % 2
TABLE = pl.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": [*"rgbr"] * 10, "y": [*"uv"] * 20})
LOGITS = RNG.normal(size=(ROWS, 4)).astype(np.float32)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes."""
    for _ in range(rng.integers(1, 4)):
        data = bytearray(content)
        place, other = (int(k) for k in rng.integers(0, max(1, len(data)), 2))
        some = rng.bytes(int(rng.integers(1, 9)))
        change = rng.integers(0, 7)
        if change <= 1 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif change == 2:
            del data[place:]
        elif change == 3:
            data[place:place] = some
        elif change == 4:
            del data[place : place + len(some)]
        elif change == 5:
            data[place : place + len(some)] = some
        else:
            low, high = min(place, other), max(place, other)
            data[low : low + 8], data[high : high + 8] = data[high : high + 8], data[low : low + 8]
        content = bytes(data)
    return content


def _parquet(frame: pl.DataFrame, **options: object) -> Callable[[str], None]:
    return lambda path: frame.write_parquet(path, **options)


def _csr(path: str) -> None:
    m = sp.csr_array(np.where(abs(X) > 0.5, X, 0))
    np.savez(path, data=m.data, indices=m.indices, indptr=m.indptr, shape=m.shape, y=Y)


# kind → (suffix, how it is written)
TABLES = {
    "csv": ("csv", TABLE.write_csv),
    "quoted csv": ("csv", lambda path: TABLE.write_csv(path, quote_style="always", separator=";")),
    "parquet": ("parquet", _parquet(TABLE, row_group_size=15)),
    "plain parquet": ("parquet", _parquet(TABLE, compression="uncompressed", statistics=False)),
    "npz": ("npz", lambda path: np.savez(path, X=X, y=Y)),
    "compressed npz": ("npz", lambda path: np.savez_compressed(path, X=X, y=Y)),
    "csr npz": ("npz", _csr),
    "svmlight": ("svm", lambda path: dump_svmlight_file(X, Y, path, zero_based=False)),
}
ARRAYS = {
    "npy": ("npy", lambda path: np.save(path, LOGITS)),
    "npz": ("npz", lambda path: np.savez(path, z=LOGITS)),
    "compressed npz": ("npz", lambda path: np.savez_compressed(path, z=LOGITS)),
    "safetensors": ("safetensors", lambda path: save_file({"z": LOGITS}, path)),
    "columns": ("parquet", _parquet(pl.DataFrame(LOGITS), row_group_size=15)),
    "lists": ("parquet", _parquet(pl.DataFrame({"z": LOGITS.tolist()}), compression="lz4")),
}


def rows_said(path: Path) -> int | None:
    """How many rows the file says that it has, read by other means; None where these give up."""
    content = path.read_bytes()
    try:
        if content.startswith(b"PAR1"):
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        if content.startswith(b"\x93NUMPY"):
            return len(np.load(io.BytesIO(content)))
        if content.startswith(b"PK"):
            return ROWS  # guarded by checksums
        if path.suffix == ".safetensors":
            size = int.from_bytes(content[:8], "little")
            entries = json.loads(content[8 : 8 + size])
            return next(entry["shape"][0] for name, entry in entries.items() if name != "__metadata__")
        text = content.decode()
        if path.suffix == ".svm":
            return sum(bool(line.partition("#")[0].strip()) for line in text.split("\n"))
        mark = max(",;", key=text.count)
        records = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        return sum(any(cell.strip() for cell in record) for record in records) - 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
