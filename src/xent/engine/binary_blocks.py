"""The binary loss block by block, so that what is computed on the way stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np

from xent.core.contract import Kernels
from xent.core.spec import LossSpec
from xent.engine import checks, logistic
from xent.engine.batch_loss import Problem

Array = np.ndarray[Any, Any]

BLOCK = 1 << 15  # elements: a dozen float32 arrays fit in a 2 MiB level-2 cache


class BinaryCase(NamedTuple):
    """Checked arguments of a binary loss."""

    logits: Array
    q: Array  # (...) labels or probabilities
    pos_weight: Any  # like `weight`, None or an array that broadcasts to (...)
    weight: Any
    spec: LossSpec
    reduction: str
    divisor: float


class Blocks:
    """As `Problem`, of one logit an element, block by block."""

    def __init__(self, case: BinaryCase) -> None:
        self.logits, *columns, self.spec, self.reduction, self.divisor = case
        self.columns = [None if x is None else _flat(x, self.logits.shape) for x in columns]

    def stats(self) -> None:
        """None: each block has its own."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """See `Problem`."""
        losses = [problem.loss(problem.stats()) for _, problem in self._problems()]
        return self._total(losses)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """See `Problem`."""
        losses = []

        def write(block: slice, problem: Problem, dlogits: Array) -> None:
            losses.append(problem.loss_and_grad(dlogits)[0])

        self._write(out, write)
        return self._total(losses), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """See `Problem`."""
        upstream = _flat(np.asarray(dloss), self.logits.shape) if np.ndim(dloss) else None

        def write(block: slice, problem: Problem, dlogits: Array) -> None:
            d = dloss if upstream is None else upstream[block]
            problem.grad(None if self.spec.is_linear else problem.stats_for_grad(), d, dlogits)

        self._write(out, write)
        return out

    def _problems(self) -> Iterator[tuple[slice, Problem]]:
        z = _flat(self.logits, self.logits.shape)
        dtype = checks.loss_dtype(self.logits)
        for start in range(0, max(self.logits.size, 1), BLOCK):
            block = slice(start, start + BLOCK)
            q, pos_weight, weight = (None if x is None else x[block] for x in self.columns)
            if not self.spec.label_function.needs_labels:
                q = _as_probabilities(q, dtype)
            measure = logistic.measure(q, pos_weight, weight, self.spec, np)
            part = z[block].astype(dtype, copy=False)
            kernels = cast(Kernels, logistic)  # which has no `row_hvp`
            yield block, Problem(part, measure, self.spec, self.reduction, self.divisor, kernels)

    def _write(self, out: Array, write: Callable[[slice, Problem, Array], None]) -> None:
        flat = out.reshape(-1)  # a copy where it has to be
        for block, problem in self._problems():
            write(block, problem, flat[block])
        if not np.may_share_memory(flat, out):
            out[...] = flat.reshape(out.shape)

    def _total(self, losses: list[Any]) -> Any:
        if self.reduction == "none":
            return np.concatenate(losses).reshape(self.logits.shape)[()]
        return checks.loss_dtype(self.logits).type(np.sum(losses, dtype=np.float64))


def _flat(x: Array, shape: tuple[int, ...]) -> Any:
    """``x`` in the order of its index, to be read block by block; not copied as a whole."""
    if x.shape == shape and x.flags.c_contiguous:
        return x.reshape(-1)
    return np.broadcast_to(x, shape).flat


def _as_probabilities(q: Any, dtype: Any) -> Array:
    """Labels as probabilities, NaN for what is no label."""
    p: Array = q
    if q.dtype.kind != "i":
        return p
    p = q.astype(dtype)
    p[q > 1] = np.nan
    return p
