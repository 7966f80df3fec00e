"""The C++ kernels on NumPy arrays: converts layouts to strides and dtypes to those of the arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.kernels import _native

Array = np.ndarray[Any, Any]

all_in_range = _native.all_in_range  # whether labels (...) int64 are all in [0, num_classes)
all_within = _native.all_within  # whether all of an array is in [0, upper]
array_sum = _native.total  # Σ of a contiguous float64 array, in NumPy's order, on all threads

FIELDS = {
    name: (position, np.dtype(np.int64 if name == "argmax" else np.float64))
    for position, name in enumerate(RowStats._fields)
}


def isas() -> tuple[str, ...]:
    """The instruction sets that have kernels and that this processor has, best first."""
    return tuple(_native.isas())


def set_isa(name: str) -> str:
    """Use the kernels of another instruction set (tests do); returns the one used before."""
    return _native.set_isa(name)


def set_threads(most: int) -> int:
    """Limit the threads of later calls of this Python thread; returns the limit before.

    That of the threads of OpenMP, where the kernels are built with it, for all libraries that share them.
    """
    return _native.set_threads(most)


def row_stats(
    logits: Array, labels: Array | None, dense: Array | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """Row statistics in one read of the logits."""
    stats = _empty(logits, labels, want)
    if logits.size:
        z, v = _rows(logits, dense)
        _native.row_stats(z, labels, v, 1.0 / link.temperature, link.softcap or 0.0, *stats)
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
    """Equation (2), from known statistics."""
    out = np.empty_like(logits, subok=False) if out is None else out
    if logits.size:
        z, v, dz = _rows(logits, dense, out)
        dl, dx, ds = native_coefficients(cotangents)
        _native.row_grad(
            logits=z,
            labels=labels,
            dense=v,
            inv_temperature=1.0 / link.temperature,
            softcap=link.softcap or 0.0,
            lse=stats.lse,
            log_prob=stats.log_prob,
            mass=stats.mass,
            dl=dl,
            dx=dx,
            ds=ds,
            out=dz,
        )
        _write_back(dz, out)
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
    """Statistics and gradient in one read, for cotangents that are known before."""
    out = np.empty_like(logits, subok=False) if out is None else out
    stats = _empty(logits, labels, want)
    if logits.size:
        z, v, dz = _rows(logits, dense, out)
        dl, dx, ds = native_coefficients(cotangents)
        _native.row_stats_and_grad(
            z, labels, v, 1.0 / link.temperature, link.softcap or 0.0, dl, dx, ds, dz, *stats[:4]
        )
        _write_back(dz, out)
    return stats, out


def label_loss_sum_and_grad(logits: Array, labels: Array, scale: float, out: Array) -> float | None:
    """Σ −x of (N, K) and labels; writes ``scale (p − e_y)`` to ``out``. A short `row_stats_and_grad`.

    None if a label is out of range or negative.
    """
    if not all_in_range(labels, logits.shape[1]):
        return None
    log_prob = np.empty(len(labels))
    _native.row_stats_and_grad(
        logits, labels, None, 1.0, 0.0, 0.0, -scale, 0.0, out, None, log_prob, None, None
    )
    return 0.0 - array_sum(log_prob)


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
    """Equation (3): the Hessian of the loss in the logits, times ``vector``."""
    out = np.empty_like(logits, subok=False) if out is None else out
    if logits.size:
        z, v, product, r = _rows(logits, dense, out, vector)
        dl, dx, ds = native_coefficients(cotangents)
        ddl, ddx = native_coefficients(curvatures)
        _native.row_hvp(
            logits=z,
            labels=labels,
            dense=v,
            inv_temperature=1.0 / link.temperature,
            softcap=link.softcap or 0.0,
            dl=dl,
            dx=dx,
            ds=ds,
            ddl=ddl,
            ddx=ddx,
            vector=r,
            out=product,
        )
        _write_back(product, out)
    return out


def _empty(logits: Array, labels: Array | None, want: tuple[str, ...]) -> RowStats:
    """Uninitialised statistics; if ``logits`` is empty, those of rows without classes."""
    new = np.empty if logits.size else np.zeros
    stats: list[Array | None] = [None] * len(RowStats._fields)
    for name in want:
        position, dtype = FIELDS[name]
        stats[position] = column = new(logits.shape[:-1], dtype)
        if name == "lse" and not logits.size:
            column[...] = -np.inf if labels is None else np.where(labels < 0, 0.0, -np.inf)
    return RowStats(*stats)


def native_coefficients(columns: tuple[Array | float, ...]) -> list[Array | float]:
    """Coefficients as native functions take them: contiguous float64 columns, or floats for all rows."""
    return [c if type(c) is float else _column(c) for c in columns]


def _column(c: Array | float) -> Array | float:
    if isinstance(c, np.ndarray) and c.ndim:
        return np.ascontiguousarray(c, np.float64)
    return float(c)


def _rows(logits: Array, dense: Array | None, *others: Array) -> tuple[Any, ...]:
    """All arrays as (rows, K) or (outer, inner, K) views; ``dense`` in the compute type, second."""
    if dense is None and logits.ndim == 2 and logits.dtype.kind == "f":
        return (logits, None, *others)
    if dense is not None:
        dense = dense.astype(np.float64 if logits.dtype.char == "d" else np.float32, copy=False)
    arrays = [logits, *others] if dense is None or dense.ndim == 1 else [logits, *others, dense]
    if logits.ndim != 2:
        arrays = _collapsed(arrays)
    if logits.dtype.kind == "V":  # bfloat16 is read as its bits
        arrays = [x.view(np.uint16) if x.dtype.kind == "V" else x for x in arrays]
    if dense is None:
        return (arrays[0], None, *arrays[1:])
    return (arrays[0], dense, *arrays[1:]) if dense.ndim == 1 else (arrays[0], arrays[-1], *arrays[1:-1])


def _collapsed(arrays: list[Array]) -> list[Array]:
    """The arrays as (outer, inner, K): the leading axes are merged into two, without a copy if possible."""
    shape = arrays[0].shape
    for split in range(len(shape)):
        merged = (math.prod(shape[:split]), math.prod(shape[split:-1]), shape[-1])
        try:
            return [x.reshape(merged, copy=False) for x in arrays]
        except ValueError:
            continue
    return [x.reshape(-1, 1, shape[-1]) for x in arrays]


def _write_back(view: Array, out: Array) -> None:
    """Copy ``view`` to ``out`` if it is a copy, since the leading axes could not be merged."""
    if view is not out and out.ndim > 2 and not np.may_share_memory(out, view):
        out[...] = view.view(out.dtype).reshape(out.shape)
