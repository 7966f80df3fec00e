"""`contract.Kernels` for JAX: formulas in JAX's operations, and the C++ kernels where those run faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.jax import ffi
from xent.jax.primitives import row_primitive
from xent.jax.softmax import Softmax

Array = Any

LEAST = 256  # logits from which the C++ kernels are faster


class Formulas:
    """The row statistics and equation (2) in operations that JAX compiles and differentiates."""

    softmax: Any = Softmax

    @classmethod
    def row_stats(
        cls, logits: Array, labels: Array, dense: Array, link: Link, want: tuple[str, ...]
    ) -> RowStats:
        """Statistics (...) in float32 or float64."""
        stats: RowStats = cls.softmax(logits, labels, dense, link).stats(want)
        return stats

    @classmethod
    def row_grad(
        cls,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        stats: RowStats,
        cotangents: Cotangents,
        out: Array | None = None,
    ) -> Array:
        """Equation (2) in the dtype of the logits; the statistics are computed again, in the same loops."""
        grad = cls.softmax(logits, labels, dense, link).grad(cotangents)
        # A row that is not read is 0 already, unless it has NaN; its derivative in a cotangent is not.
        return jnp.where(_is_read(cotangents) | jnp.isfinite(grad), grad, 0).astype(logits.dtype)

    @classmethod
    def row_stats_and_grad(
        cls,
        logits: Array,
        labels: Array,
        dense: Array,
        link: Link,
        cotangents: Cotangents,
        want: tuple[str, ...],
        out: Array | None = None,
    ) -> tuple[RowStats, Array]:
        """Both of the above."""
        stats = cls.row_stats(logits, labels, dense, link, want)
        return stats, cls.row_grad(logits, labels, dense, link, stats, cotangents)


class ByPlatform:
    """The C++ kernels in programs for the CPU, the formulas in those for other devices and as derivatives."""

    @staticmethod
    def row_stats(*arguments: Any) -> RowStats:
        """As `Formulas.row_stats`."""
        return _ROW_STATS(*arguments)

    @staticmethod
    def row_grad(*arguments: Any) -> Array:
        """As `Formulas.row_grad`."""
        return _ROW_GRAD(*_without_buffer(arguments, 6))

    @staticmethod
    def row_stats_and_grad(*arguments: Any) -> tuple[RowStats, Array]:
        """As `Formulas.row_stats_and_grad`."""
        return _ROW_STATS_AND_GRAD(*_without_buffer(arguments, 6))


def _in_batches(formula: Callable[..., Any]) -> Callable[..., Any]:
    """``formula`` of what `vmap` makes: coefficients and masses of each batch, which all its rows share."""

    def batched_formula(logits: Array, labels: Array, dense: Array, link: Link, *others: Any) -> Any:
        if dense is not None and dense.ndim > 1:
            dense = jnp.expand_dims(dense, tuple(range(dense.ndim - 1, logits.ndim - 1)))

        def widened(x: Any) -> Any:
            if not jnp.ndim(x):
                return x
            return jnp.expand_dims(x, tuple(range(x.ndim, logits.ndim - 1)))

        each = (Cotangents(*map(widened, x)) if isinstance(x, Cotangents) else x for x in others)
        return formula(logits, labels, dense, link, *each)

    return batched_formula


_ROW_STATS = row_primitive("xent_row_stats", ffi.row_stats, _in_batches(Formulas.row_stats))
_ROW_GRAD = row_primitive("xent_row_grad", ffi.row_grad, _in_batches(Formulas.row_grad))
_ROW_STATS_AND_GRAD = row_primitive(
    "xent_row_stats_and_grad", ffi.row_stats_and_grad, _in_batches(Formulas.row_stats_and_grad)
)


def choose(logits: Array) -> Any:
    """What computes rows of these logits, by their size: a call of the kernels costs some microseconds."""
    return ByPlatform if logits.size >= LEAST and ffi.is_available() else Formulas


def _without_buffer(arguments: tuple[Any, ...], position: int) -> tuple[Any, ...]:
    """``out``, which is the logits or None, as a word: of an array XLA would make a second operand."""
    is_given = len(arguments) > position and arguments[position] is not None
    return (*arguments[:position], "logits" if is_given else None)


def _is_read(cotangents: Cotangents) -> Array:
    """Marks the rows of which a cotangent is not 0: (..., 1), or one value for all rows."""
    mask: Array = False
    for cotangent in cotangents:
        mask = mask | (jnp.asarray(cotangent) != 0)
    return mask[..., None] if jnp.ndim(mask) else mask
