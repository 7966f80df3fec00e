"""The binary loss of one logit for each element: in one read if (1) is linear, else as rows (0, z)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xent.core import target
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import checks, memory
from xent.engine.batch_loss import Problem
from xent.kernels.cpu_binary import binary_loss

Array = np.ndarray[Any, Any]
BITS = {"V": np.uint16, "b": np.uint8}  # the dtypes that kernels read bfloat16 and booleans as
BLOCK = 1 << 16  # rows: enough for all threads, and few enough for the cache


class BinaryCase(NamedTuple):
    """Checked arguments of a binary loss; bfloat16 logits may be uint16 bits if `are_representable`."""

    logits: Array
    q: Array  # (...) labels or probabilities
    pos_weight: Any  # like `weight`, None or an array that broadcasts to (...)
    weight: Any
    spec: LossSpec
    reduction: str
    divisor: float


def problem(case: BinaryCase) -> Fused | Pairs:
    """The counterpart of `Problem` for one logit an element."""
    is_fused = case.spec.is_linear and are_representable(
        checks.loss_dtype(case.logits), case.pos_weight, case.weight
    )
    return Fused(case) if is_fused else Pairs(case)


def are_representable(dtype: Any, *factors: Array | None) -> bool:
    """Whether the factors, and their products, are in the range of ``dtype``."""
    return all(x is None or _fits(x, dtype) for x in factors)


def _fits(factors: Any, dtype: Any) -> bool:
    if factors.dtype == dtype or dtype == np.float64:
        return True
    size = np.abs(factors)
    return bool(size.max(initial=0.0) <= 1e30 and size.min(initial=1.0, where=size > 0) >= 1e-30)


class Fused:
    """The loss by the binary kernel, if (1) is linear in the row statistics; the methods of `Problem`."""

    def __init__(self, case: BinaryCase) -> None:
        self.logits, q, *factors, spec, self.reduction, divisor = case
        self.spec = spec
        self.scale = 1.0 / divisor if divisor else 0.0
        self.dtype = checks.loss_dtype(self.logits)
        smoothing = target.uniform_smoothing(spec, 2)
        self.arrays = (_contiguous(_bits(self.logits)), _contiguous(_bits(q)), *map(self._cycle, factors))
        self.scalars = (1.0 - smoothing, smoothing / 2, 1.0 / spec.temperature, spec.softcap or 0.0)

    def stats(self) -> None:
        """None: the kernel keeps no statistics."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """As `Problem.loss`."""
        return self._loss(None)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """As `Problem.loss_and_grad`."""
        return self._loss(out), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """As `Problem.grad`."""
        self.loss_sum(None, dloss, out)
        return out

    def _loss(self, out: Array | None) -> Any:
        if self.reduction != "none":
            return self.dtype.type(self.loss_sum(None, 1.0, out) * self.scale)
        losses = np.empty(self.logits.shape, self.dtype)
        self.loss_sum(losses, 1.0, out)
        return losses[()]

    def loss_sum(self, losses: Array | None, dloss: Any, out: Array | None) -> float:
        """Σ of the losses; writes them to ``losses``, and the gradient times ``dloss`` to ``out``."""
        is_row = np.ndim(dloss) > 0
        upstream = self._cycle(dloss) if is_row else None
        scale = self.scale if is_row else self.scale * float(dloss)
        flat_losses = None if losses is None else losses.reshape(-1)
        bits = None if out is None else _bits(out)
        flat_grad = None if bits is None else _contiguous(bits)
        loss_sum: float = binary_loss(*self.arrays, upstream, *self.scalars, scale, flat_losses, flat_grad)
        if bits is not None and flat_grad is not None and not np.may_share_memory(flat_grad, bits):
            bits[...] = flat_grad.reshape(bits.shape)
        return loss_sum

    def _cycle(self, x: Any) -> Array | None:
        """Factors as a contiguous array: one for each element, or those of the last axes, which repeat."""
        if x is None or not self.logits.size:
            return None
        x = np.asarray(x, self.dtype)
        shape = self.logits.shape
        while x.ndim and x.shape[0] == 1:
            x = x[0]
        if x.shape != shape[len(shape) - x.ndim :]:
            x = np.broadcast_to(x, shape)
        return _contiguous(x)


class Pairs:
    """The loss as that of rows (0, z) of two classes, one block at a time; the methods of `Problem`."""

    def __init__(self, case: BinaryCase) -> None:
        self.logits, q, pos_weight, weight, self.spec, self.reduction, self.divisor = case
        self.dtype = checks.loss_dtype(self.logits)
        # The rows are float64 if the factors exceed the range of float32.
        self.is_wide = not are_representable(self.dtype, pos_weight, weight)
        z = self.logits if self.is_wide else _bits(self.logits)
        self.stored = np.dtype(np.float64) if self.is_wide else z.dtype
        self.columns = [_column(x, z.shape) for x in (z, q, pos_weight, weight)]

    def stats(self) -> None:
        """None: each block computes its own statistics."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """As `Problem.loss`."""
        losses = [problem.loss(problem.stats()) for _, problem in self._problems()]
        return self._reduced(losses)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """As `Problem.loss_and_grad`."""
        losses = []

        def write(block: slice, problem: Problem, dlogits: Array) -> None:
            losses.append(problem.loss_and_grad(dlogits)[0])

        self._write(out, write)
        return self._reduced(losses), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """As `Problem.grad`."""
        upstream = _column(np.asarray(dloss), self.logits.shape)

        def write(block: slice, problem: Problem, dlogits: Array) -> None:
            stats = None if self.spec.is_linear else problem.stats_for_grad()
            problem.grad(stats, _block_slice(upstream, block), dlogits)

        self._write(out, write)
        return out

    def _problems(self) -> Iterator[tuple[slice, Problem]]:
        z, q, *factors = self.columns
        size = self.logits.size
        # Class-major: the kernels then read a vector of rows at a time.
        rows = np.zeros((2, min(size, BLOCK)), self.stored)
        for start in range(0, max(size, 1), BLOCK):
            block = slice(start, min(start + BLOCK, size))
            pairs = rows[:, : block.stop - start]
            pairs[1] = z[block]
            measure = self._target(q[block], *(_block_slice(x, block) for x in factors))
            yield block, Problem(pairs.T, measure, self.spec, self.reduction, self.divisor)

    def _target(self, q: Array, pos_weight: Any, weight: Any) -> Target:
        """The target of a block, from its labels or probabilities."""
        dtype = np.dtype(np.float64) if self.is_wide else self.dtype
        if isinstance(pos_weight, np.ndarray):
            pos_weight = pos_weight.astype(dtype, copy=False)
        measure = target.from_pairs(as_probabilities(q, dtype), pos_weight, weight, self.spec, np)
        return measure if measure.dense is None else measure._replace(dense=np.stack(measure.dense).T)

    def _write(self, out: Array, write: Callable[[slice, Problem, Array], None]) -> None:
        bits = out if self.is_wide else _bits(out)
        flat = bits.reshape(-1)  # a view, or a copy if it is not contiguous
        gradient: Array | None = None
        for block, problem in self._problems():
            if gradient is None:
                gradient = memory.empty_like(problem.logits)
            dlogits = gradient[: block.stop - block.start]
            write(block, problem, dlogits)
            flat[block] = dlogits[:, 1]
        if not np.may_share_memory(flat, bits):
            bits[...] = flat.reshape(bits.shape)

    def _reduced(self, losses: list[Any]) -> Any:
        if self.reduction == "none":
            return np.concatenate(losses, dtype=self.dtype).reshape(self.logits.shape)[()]
        return self.dtype.type(np.sum(losses, dtype=np.float64))


def _column(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` as something that can be sliced in C order without a copy of the whole, or one number."""
    if x is None or (x.size == 1 and x.shape != shape):
        return x if x is None else float(x.item())
    if x.shape == shape and x.flags.c_contiguous:
        return x.reshape(-1)
    return np.broadcast_to(x, shape).flat


def _block_slice(column: Any, block: slice) -> Any:
    return column if column is None or isinstance(column, float) else column[block]


def as_probabilities(q: Array, dtype: Any) -> Array:
    """Labels, probabilities or bits of bfloat16 as ``dtype``; NaN for integers other than 0 and 1."""
    if q.dtype == np.uint16:
        return (q.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
    p = q.astype(dtype, copy=False)
    if q.dtype.kind in "iu" and (bad := (q < 0) | (q > 1)).any():
        p[bad] = np.nan
    return p


def _bits(x: Array) -> Array:
    return x.view(BITS[x.dtype.kind]) if x.dtype.kind in BITS else x


def _contiguous(x: Array) -> Array:
    """``x`` as (n,) in C order; a view if it is contiguous."""
    return np.ascontiguousarray(x).reshape(-1)
