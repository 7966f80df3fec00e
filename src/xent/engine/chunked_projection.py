"""Logits ``inputs @ weight.T + bias`` of one chunk of rows at a time: they are never whole in memory.

For each chunk: the product, a function of its logits, and two products for the gradients. This file uses
NumPy; `xent.torch.linear.products` adapts it to tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xent.engine import memory

Array = Any

LEAST_LOGITS = 16 << 20  # of a chunk where no budget is given: 64 MiB in float32
MOST_ROWS = 1024  # of a chunk: beyond them a product is no faster
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
SHARE = 16  # a chunk takes at most 1/16 of the memory
BLOCK_BYTES = 4 << 20  # of weights converted at a time, and of a product that is added


class Gradients(NamedTuple):
    """∂/∂inputs (M, D), ∂/∂weight (K, D), ∂/∂bias (K,); None if it was not requested."""

    inputs: Array = None
    weight: Array = None
    bias: Array = None


Wanted = tuple[bool, bool, bool]  # which gradients are requested

# (logits of the chunk, its slice of the rows, ∂loss/∂column or None) → (columns, dlogits or None). The
# function may overwrite the logits.
ChunkEvaluator = Callable[[Array, slice, Any], tuple[tuple[Array, ...], Array]]


class Projection:
    """The rows ``index`` (all if None) of ``inputs (M, D)``, times ``weight (K, D)``, plus ``bias (K,)``."""

    xp: Any = np
    least_logits, most_rows, memory_bytes = LEAST_LOGITS, MOST_ROWS, MEMORY_BYTES

    def __init__(
        self,
        inputs: Array,
        weight: Array,
        bias: Array,
        index: Array,
        chunk_bytes: int | None,
        *,
        copies: int = 1,
        num_classes: int | None = None,
    ) -> None:
        """``copies`` matrices of a chunk's size share its budget, counted for ``num_classes``, K if None."""
        require_chunk_bytes(chunk_bytes)
        self.inputs, self.weight, self.bias, self.index = inputs, weight, bias, index
        self.num_rows = inputs.shape[0] if index is None else index.shape[0]
        self.dtype = self.product_dtype()
        classes = weight.shape[0] if num_classes is None else num_classes
        budget = chunk_bytes or self.default_bytes(classes)
        self.chunk_rows = rows_per_chunk(self.num_rows, classes * self.logit_bytes() * copies, budget)
        self.blocks = self._blocks(self.dtype)
        self._buffer: Array = None

    def default_bytes(self, num_classes: int) -> int:
        """The budget of a chunk where none is given: see ``chunk_bytes`` of `api.linear_cross_entropy`."""
        gradient = num_classes * self.weight.shape[1] * self.sum_dtype().itemsize
        rows = min(self.most_rows, -(-self.num_rows // 4))
        least: int = self.least_logits * self.logit_bytes()
        most = min(gradient, rows * num_classes * self.logit_bytes())
        budget: int = min(max(least, most), self.memory_bytes // SHARE)
        return budget

    def sweep(
        self, function: ChunkEvaluator, dloss: Any = None, wanted: Wanted | None = None
    ) -> tuple[Any, Gradients]:
        """Columns (M, ...) of ``function`` over all chunks, 0 in rows left out; and the gradients.

        ``dloss`` is a scalar or (M, ...); without ``wanted`` no gradient is computed.
        """
        columns: tuple[Array, ...] | None = None
        gradients = self._zeros(wanted or (False, False, False))
        for rows in self.chunks():
            row_index = rows if self.index is None else self.index[rows]
            x = self.inputs[row_index]
            part = dloss if dloss is None or not getattr(dloss, "ndim", 0) else dloss[row_index]
            values, dlogits = function(self._logits(x), rows, part)
            first = columns is None
            if columns is None:
                num_rows = self.inputs.shape[0]
                columns = tuple(self.zeros((num_rows, *v.shape[1:]), v.dtype) for v in values)
            for column, value in zip(columns, values, strict=True):
                column[row_index] = value
            if wanted is not None:
                self._add(gradients, row_index, x, dlogits, first)
        self._buffer = None
        return columns, gradients

    def chunks(self) -> Iterator[slice]:
        """Slices of the rows that count, one for each chunk; one empty slice if no row counts."""
        return slices(self.num_rows, self.chunk_rows or None)

    def _logits(self, x: Array) -> Array:
        if self._buffer is None:
            self._buffer = self.empty((self.chunk_rows, self.weight.shape[0]), self.logits_dtype())
        logits = self._buffer[: x.shape[0]]
        self.write_logits(x, logits)
        if self.bias is not None:
            logits += self.cast(self.bias, logits.dtype)
        return logits

    def _blocks(self, dtype: Any) -> list[slice]:
        """Slices of the classes: one of all, unless the weights must be converted to ``dtype``."""
        row_bytes = max(1, self.weight.shape[1] * dtype.itemsize)
        size = None if self.weight.dtype == dtype else max(1, BLOCK_BYTES // row_bytes)
        return list(slices(self.weight.shape[0], size))

    def _zeros(self, wanted: Wanted) -> Gradients:
        allocate = self.zeros if self.index is not None or len(self.blocks) != 1 else self.empty
        return Gradients(
            allocate(self.inputs.shape, self.dtype) if wanted[0] else None,
            self.empty(self.weight.shape, self.weight_sum_dtype()) if wanted[1] else None,
            self.zeros(self.weight.shape[:1], self.sum_dtype()) if wanted[2] else None,
        )

    def _add(self, gradients: Gradients, row_index: Array, x: Array, dlogits: Array, first: bool) -> None:
        if gradients.bias is not None:
            gradients.bias.__iadd__(self.xp.sum(dlogits, 0, dtype=gradients.bias.dtype))
        dlogits, x = self.cast(dlogits, self.dtype), self.cast(x, self.dtype)
        if gradients.inputs is not None and len(self.blocks) == 1:
            gradients.inputs[row_index] = self.xp.matmul(dlogits, self.cast(self.weight, self.dtype))
        elif gradients.inputs is not None:
            for k in self.blocks:
                product = self.xp.matmul(dlogits[:, k], self.cast(self.weight[k], self.dtype))
                gradients.inputs[row_index] += product
        if gradients.weight is not None:
            self.add_product(gradients.weight, dlogits.T, x, first)

    # Methods that differ between array libraries.

    def product_dtype(self) -> Any:
        """The dtype of products: at least float32, since NumPy multiplies half precision without BLAS."""
        return np.dtype(np.float64 if self.inputs.dtype.char == "d" else np.float32)

    def sum_dtype(self) -> Any:
        """The dtype of accumulated gradients: float64 for float64, else float32."""
        return self.dtype

    def weight_sum_dtype(self) -> Any:
        """The dtype of the accumulated gradient in the weight."""
        return self.sum_dtype()

    def logits_dtype(self) -> Any:
        """The dtype of the logits."""
        return self.dtype

    def logit_bytes(self) -> int:
        """Bytes of a logit and of what is made of it for the products of the gradients."""
        return int(self.dtype.itemsize)

    def write_logits(self, x: Array, out: Array) -> None:
        """Write ``x @ weight.T`` to ``out``."""
        x = self.cast(x, self.dtype)
        for k in self.blocks:
            self.xp.matmul(x, self.cast(self.weight[k], self.dtype).T, out=out[:, k])

    def cast(self, x: Array, dtype: Any) -> Array:
        """``x`` as ``dtype``; ``x`` itself if it has it."""
        return x.astype(dtype, copy=False)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array, not initialised."""
        return memory.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def add_product(self, accumulator: Array, a: Array, b: Array, first: bool) -> None:
        """Add ``a @ b``, or assign it if ``first``, in blocks of rows that stay in the cache."""
        for k in slices(accumulator.shape[0], max(1, BLOCK_BYTES // max(1, accumulator[:1].nbytes))):
            if first:
                np.matmul(a[k], b, out=accumulator[k])
            else:
                accumulator[k] += a[k] @ b


def require_chunk_bytes(value: Any) -> None:
    """Raise unless ``value`` is None or a positive integer."""
    if value is None:
        return
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "__index__")):
        raise TypeError(f"`chunk_bytes` must be None or an integer; got {value!r}")
    if value <= 0:
        raise ValueError(f"`chunk_bytes` must be None or > 0; got {value!r}")


def rows_per_chunk(num_rows: int, row_bytes: int, chunk_bytes: int) -> int:
    """Rows of a chunk: at most the budget, at least 1, so that all chunks are of almost equal size."""
    most = max(1, chunk_bytes // max(1, row_bytes))
    chunks = -(-num_rows // most)
    return -(-num_rows // max(1, chunks))


def slices(length: int, size: int | None) -> Iterator[slice]:
    """Slices of ``size`` that cover ``length``; one slice if ``size`` is None or 0."""
    if not size:
        yield slice(0, length)
        return
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
