"""CSR times dense on several threads: SciPy uses one, and lets go of the interpreter meanwhile."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALL = 1 << 22  # multiplications that one thread has done before others have started


def product(x: Any, dense: Array) -> Array:
    """``x (N, D) @ dense (D, C)``, the rows of x shared out by their numbers of entries: the same bits."""
    threads = _threads() if x.nnz * dense.shape[1] > SMALL else 1
    if threads == 1:
        whole: Array = x @ dense
        return whole
    out = np.empty((x.shape[0], dense.shape[1]), np.result_type(x, dense))
    bounds = np.searchsorted(x.indptr, np.linspace(0, x.nnz, threads + 1)[1:-1])
    edges = [0, *bounds.tolist(), x.shape[0]]

    def fill(start: int, stop: int) -> None:
        first, last = x.indptr[start], x.indptr[stop]
        parts = (x.data[first:last], x.indices[first:last], x.indptr[start : stop + 1] - first)
        out[start:stop] = type(x)(parts, shape=(stop - start, x.shape[1])) @ dense

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, edges[:-1], edges[1:]))
    return out


def _threads() -> int:
    """As many as the native kernels take."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
