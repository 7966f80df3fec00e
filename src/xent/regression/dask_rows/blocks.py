"""Dask arrays, dataframes and lists of delayed blocks as partitions of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from dask.delayed import Delayed

from xent.regression.sums.partitions import aligned

KINDS = "a dask array, a dask dataframe or a list of delayed blocks of rows"


def split(X: Any, y: Any, sample_weight: Any) -> list[tuple[Any, Any, Any]]:
    """(blocks of X, of y, of the weights or None) of each partition, for `joined`.

    Raises TypeError for other collections, ValueError for another number of partitions than X has.
    """
    parts = {"X": blocks(X, "X"), "y": blocks(y, "y")}
    if sample_weight is not None:
        parts["sample_weight"] = blocks(sample_weight, "sample_weight")
    count = len(parts["X"])
    for name, part in parts.items():
        if len(part) != count:
            raise ValueError(
                f"`{name}` must have the {count} partitions of `X`; got {len(part)}: rechunk or repartition"
            )
    same_rows(X, y, "y")
    same_rows(X, sample_weight, "sample_weight")
    weights = parts.get("sample_weight", [None] * count)
    return list(zip(parts["X"], parts["y"], weights, strict=True))


def blocks(collection: Any, name: str) -> list[list[Delayed]]:
    """The delayed blocks of each partition, from left to right: several where columns are chunked."""
    if isinstance(collection, list | tuple) and all(isinstance(part, Delayed) for part in collection):
        return [[part] for part in collection]
    if not hasattr(type(collection), "to_delayed") or getattr(collection, "ndim", 0) not in (1, 2):
        found = f"{type(collection).__module__}.{type(collection).__qualname__}"
        if hasattr(collection, "ndim"):
            found += f" of {collection.ndim} axes"
        raise TypeError(f"`{name}` must be {KINDS}, as `X` and `y` both are; got {found}")
    parts = np.asarray(collection.to_delayed(), dtype=object)
    return [list(np.ravel(row)) for row in parts]


def chunk_rows(collection: Any) -> tuple[float, ...]:
    """Rows of each chunk of a dask array, NaN where unknown; () of other collections."""
    chunks = getattr(collection, "chunks", ())
    return tuple(chunks[0]) if chunks else ()


def same_rows(X: Any, other: Any, name: str) -> None:
    """Raise ValueError at the first chunk known to differ. Unknown ones are compared when they are read."""
    for index, (n, m) in enumerate(zip(chunk_rows(X), chunk_rows(other), strict=False)):
        if n == n and m == m and n != m:
            raise ValueError(
                f"`{name}` must be chunked as `X`: partition {index} has {m} rows, and {n} in `X`; rechunk it"
            )


def joined(parts: list[Any]) -> Any:
    """The blocks of one partition side by side."""
    if len(parts) == 1:
        return aligned(parts[0])
    if any(map(scipy.sparse.issparse, parts)):
        return scipy.sparse.hstack(parts, "csr")
    return np.concatenate(parts, axis=1)
