"""The C++ kernels on NumPy arrays: layouts to strides, dtypes to what they compute in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xent import _native
from xent.link import Link
from xent.protocol import Cotangents, Curvatures, RowStats

Array = np.ndarray[Any, Any]

STATISTICS = ("lse", "log_prob", "dense_log_prob", "mass", "entropy", "argmax")


def isas() -> tuple[str, ...]:
    """The instruction sets that have kernels and that this processor has, best first."""
    return tuple(_native.isas())


def set_isa(name: str) -> str:
    """Use the kernels of another instruction set (tests do); returns the one used before."""
    return str(_native.set_isa(name))


def row_stats(
    logits: Array, labels: Array | None, dense: Array | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """See `protocol.Kernels`."""
    stats = _empty(logits, want)
    if logits.size:
        z, v = _rows(logits, dense)
        _native.row_stats(z, _flat(labels), v, *_link(link), *(_flat(x) for x in stats))
    return stats


def row_grad(
    logits: Array,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Array | None = None,
) -> Array:
    """See `protocol.Kernels`."""
    out = np.empty_like(logits, subok=False) if out is None else out
    if logits.size:
        z, v, dz = _rows(logits, dense, out)
        known = (_flat(stats.lse), _flat(stats.log_prob), _flat(stats.mass))
        _native.row_grad(z, _flat(labels), v, *_link(link), *known, *map(_coefficient, cotangents), dz)
        _written(out, dz)
    return out


def row_stats_and_grad(
    logits: Array,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Array | None = None,
) -> tuple[RowStats, Array]:
    """See `protocol.Kernels`."""
    out = np.empty_like(logits, subok=False) if out is None else out
    stats = _empty(logits, want)
    if logits.size:
        z, v, dz = _rows(logits, dense, out)
        coefficients = map(_coefficient, cotangents)
        _native.row_stats_and_grad(
            z, _flat(labels), v, *_link(link), *coefficients, dz, *(_flat(x) for x in stats[:4])
        )
        _written(out, dz)
    return stats, out


def row_hvp(
    logits: Array,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    cotangents: Cotangents,
    curvatures: Curvatures,
    vector: Array,
    out: Array | None = None,
) -> Array:
    """See `protocol.Kernels`."""
    out = np.empty_like(logits, subok=False) if out is None else out
    if logits.size:
        z, v, product, r = _rows(logits, dense, out, vector)
        coefficients = map(_coefficient, (*cotangents, *curvatures))
        _native.row_hvp(z, _flat(labels), v, *_link(link), *coefficients, r, product)
        _written(out, product)
    return out


def _empty(logits: Array, want: tuple[str, ...]) -> RowStats:
    """Room for the statistics; zeros where there is nothing to compute them from."""
    new = np.empty if logits.size else np.zeros
    shape = logits.shape[:-1]
    return RowStats(
        *(new(shape, np.int64 if s == "argmax" else np.float64) if s in want else None for s in STATISTICS)
    )


def _link(link: Link) -> tuple[float, float]:
    return 1.0 / link.temperature, link.softcap or 0.0


def _flat(x: Array | None) -> Array | None:
    return x if x is None or x.ndim == 1 else x.reshape(-1)


def _coefficient(c: Array | float) -> Array | float:
    if isinstance(c, np.ndarray) and c.ndim:
        return np.ascontiguousarray(c, np.float64).reshape(-1)
    return float(c)


def _rows(logits: Array, dense: Array | None, *more: Array) -> tuple[Any, ...]:
    """All arrays as (rows, K) or (outer, inner, K) views; ``dense`` in the compute type, second."""
    if dense is not None:
        compute = logits.dtype if logits.dtype == np.float64 else np.float32
        dense = dense.astype(compute, copy=False)
    whole = [logits, *more] if dense is None or dense.ndim == 1 else [logits, *more, dense]
    if logits.ndim != 2:
        whole = _collapsed(whole)
    views = [x.view(np.uint16) if x.dtype.name == "bfloat16" else x for x in whole]
    if dense is not None and dense.ndim == 1:
        views.append(dense)
    return (views[0], None, *views[1:]) if dense is None else (views[0], views[-1], *views[1:-1])


def _collapsed(arrays: list[Array]) -> list[Array]:
    """The leading axes merged into two, (outer, inner, K), without a copy where the strides allow it."""
    shape = arrays[0].shape
    for split in range(len(shape)):
        merged = (math.prod(shape[:split]), math.prod(shape[split:-1]), shape[-1])
        try:
            return [x.reshape(merged, copy=False) for x in arrays]
        except ValueError:
            continue
    return [x.reshape(-1, 1, shape[-1]) for x in arrays]


def _written(out: Array, view: Array) -> Array:
    """``out``, with what was computed: ``view`` is a copy if its axes could not be merged."""
    if out.ndim > 2 and not np.may_share_memory(out, view):
        out[...] = view.reshape(out.shape)
    return out
