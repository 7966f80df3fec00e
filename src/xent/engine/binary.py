"""The binary loss of one logit an element: in one read where (1) is linear, else as blocks of rows (0, z)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xent.core import target
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import checks
from xent.engine.batch_loss import Problem
from xent.kernels.cpu_binary import binary_loss

Array = np.ndarray[Any, Any]
BITS = {"V": np.uint16, "b": np.uint8}  # bfloat16 and booleans, as the kernels know them
BLOCK = 1 << 16  # rows: fewer are too few for the threads, and what more need leaves the cache


class BinaryCase(NamedTuple):
    """Checked arguments of a binary loss. bfloat16 may come as its bits if the factors `fit`."""

    logits: Array
    q: Array  # (...) labels or probabilities
    pos_weight: Any  # like `weight`, None or an array that broadcasts to (...)
    weight: Any
    spec: LossSpec
    reduction: str
    divisor: float


def problem(case: BinaryCase) -> Fused | Pairs:
    """As `Problem`, of one logit an element."""
    is_fused = case.spec.is_linear and fit(checks.loss_dtype(case.logits), case.pos_weight, case.weight)
    return Fused(case) if is_fused else Pairs(case)


def fit(dtype: Any, *factors: Array | None) -> bool:
    """Whether ``dtype`` has room for the factors, and for what is made of them."""
    return all(x is None or _fits(x, dtype) for x in factors)


def _fits(factors: Any, dtype: Any) -> bool:
    if factors.dtype == dtype or dtype == np.float64:
        return True
    size = np.abs(factors)
    return bool(size.max(initial=0.0) <= 1e30 and size.min(initial=1.0, where=size > 0) >= 1e-30)


class Fused:
    """As `Problem`, by the kernel of the binary loss, where (1) is linear in the row statistics."""

    def __init__(self, case: BinaryCase) -> None:
        self.logits, q, *factors, spec, self.reduction, divisor = case
        self.spec = spec
        self.scale = 1.0 / divisor if divisor else 0.0
        self.dtype = checks.loss_dtype(self.logits)
        smoothing = target.total_smoothing(spec, 2)
        self.arrays = (_contiguous(_bits(self.logits)), _contiguous(_bits(q)), *map(self._cycle, factors))
        self.scalars = (1.0 - smoothing, smoothing / 2, 1.0 / spec.temperature, spec.softcap or 0.0)

    def stats(self) -> None:
        """None: no statistics are kept."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """As `Problem.loss`."""
        return self._loss(None)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """As `Problem.loss_and_grad`."""
        return self._loss(out), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """As `Problem.grad`."""
        self.total(None, dloss, out)
        return out

    def _loss(self, out: Array | None) -> Any:
        if self.reduction != "none":
            return self.dtype.type(self.total(None, 1.0, out) * self.scale)
        losses = np.empty(self.logits.shape, self.dtype)
        self.total(losses, 1.0, out)
        return losses[()]

    def total(self, losses: Array | None, dloss: Any, out: Array | None) -> float:
        """Σ of the losses, which go into ``losses``; ``dloss`` times the loss's gradient into ``out``."""
        is_row = np.ndim(dloss) > 0
        upstream = self._cycle(dloss) if is_row else None
        scale = self.scale if is_row else self.scale * float(dloss)
        each = None if losses is None else losses.reshape(-1)
        bits = None if out is None else _bits(out)
        flat = None if bits is None else _contiguous(bits)
        total: float = binary_loss(*self.arrays, upstream, *self.scalars, scale, each, flat)
        if bits is not None and flat is not None and not np.may_share_memory(flat, bits):
            bits[...] = flat.reshape(bits.shape)
        return total

    def _cycle(self, x: Any) -> Array | None:
        """Factors as the kernel takes them: as many as there are elements, or those of the last axes."""
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
    """As `Problem`, of blocks of rows (0, z) of two classes; the rows of one block exist at a time."""

    def __init__(self, case: BinaryCase) -> None:
        self.logits, q, pos_weight, weight, self.spec, self.reduction, self.divisor = case
        self.dtype = checks.loss_dtype(self.logits)
        # The rows are float64 where float32 has no room for the factors.
        self.is_wide = not fit(self.dtype, pos_weight, weight)
        z = self.logits if self.is_wide else _bits(self.logits)
        self.stored = np.dtype(np.float64) if self.is_wide else z.dtype
        self.columns = [_column(x, z.shape) for x in (z, q, pos_weight, weight)]

    def stats(self) -> None:
        """None: each block has its own."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """As `Problem.loss`."""
        losses = [problem.loss(problem.stats()) for _, problem in self._problems()]
        return self._total(losses)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """As `Problem.loss_and_grad`."""
        losses = []

        def write(block: slice, problem: Problem, dlogits: Array) -> None:
            losses.append(problem.loss_and_grad(dlogits)[0])

        self._write(out, write)
        return self._total(losses), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """As `Problem.grad`."""
        upstream = _column(np.asarray(dloss), self.logits.shape)

        def write(block: slice, problem: Problem, dlogits: Array) -> None:
            stats = None if self.spec.is_linear else problem.stats_for_grad()
            problem.grad(stats, _part(upstream, block), dlogits)

        self._write(out, write)
        return out

    def _problems(self) -> Iterator[tuple[slice, Problem]]:
        z, q, *factors = self.columns
        size = self.logits.size
        # A class is contiguous: the kernels read a whole vector of rows at a time.
        rows = np.zeros((2, min(size, BLOCK)), self.stored)
        for start in range(0, max(size, 1), BLOCK):
            block = slice(start, min(start + BLOCK, size))
            pairs = rows[:, : block.stop - start]
            pairs[1] = z[block]
            measure = self._target(q[block], *(_part(x, block) for x in factors))
            yield block, Problem(pairs.T, measure, self.spec, self.reduction, self.divisor)

    def _target(self, q: Array, pos_weight: Any, weight: Any) -> Target:
        """Labels or probabilities of a block as the measure of its rows."""
        if self.spec.label_function.needs_labels:
            return target.from_pairs(q.astype(np.int64, copy=False), pos_weight, weight, self.spec, np)
        dtype = np.dtype(np.float64) if self.is_wide else self.dtype
        if isinstance(pos_weight, np.ndarray):
            pos_weight = pos_weight.astype(dtype, copy=False)
        measure = target.from_pairs(_probabilities(q, dtype), pos_weight, weight, self.spec, np)
        return measure._replace(dense=np.stack(measure.dense).T)

    def _write(self, out: Array, write: Callable[[slice, Problem, Array], None]) -> None:
        bits = out if self.is_wide else _bits(out)
        flat = bits.reshape(-1)  # a copy where it has to be
        gradient: Array | None = None
        for block, problem in self._problems():
            if gradient is None:
                gradient = np.empty_like(problem.logits)
            dlogits = gradient[: block.stop - block.start]
            write(block, problem, dlogits)
            flat[block] = dlogits[:, 1]
        if not np.may_share_memory(flat, bits):
            bits[...] = flat.reshape(bits.shape)

    def _total(self, losses: list[Any]) -> Any:
        if self.reduction == "none":
            return np.concatenate(losses, dtype=self.dtype).reshape(self.logits.shape)[()]
        return self.dtype.type(np.sum(losses, dtype=np.float64))


def _column(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` in the order of its index, to be read block by block, not copied as a whole; or one number."""
    if x is None or (x.size == 1 and x.shape != shape):
        return x if x is None else float(x.item())
    if x.shape == shape and x.flags.c_contiguous:
        return x.reshape(-1)
    return np.broadcast_to(x, shape).flat


def _part(column: Any, block: slice) -> Any:
    return column if column is None or isinstance(column, float) else column[block]


def _probabilities(q: Array, dtype: Any) -> Array:
    """Labels, probabilities or the bits of bfloat16 in ``dtype``; NaN for what is no label."""
    if q.dtype == np.uint16:
        return (q.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
    p = q.astype(dtype, copy=False)
    if q.dtype.kind in "iu" and (bad := (q < 0) | (q > 1)).any():
        p[bad] = np.nan
    return p


def _bits(x: Array) -> Array:
    return x.view(BITS[x.dtype.kind]) if x.dtype.kind in BITS else x


def _contiguous(x: Array) -> Array:
    """``x`` (n,) in the order of its index: a view where its memory has that order."""
    return np.ascontiguousarray(x).reshape(-1)
