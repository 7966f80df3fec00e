"""The binary loss where (1) is linear in the row statistics: one call, that reads each logit once."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core.spec import LossSpec
from xent.engine import checks
from xent.engine.binary_blocks import BinaryCase, Blocks
from xent.engine.logistic import smoothing_of
from xent.kernels.cpu_binary import binary_loss

Array = np.ndarray[Any, Any]
BITS = {"V": np.uint16, "b": np.uint8}  # bfloat16 and booleans, as the kernel knows them


def problem(case: BinaryCase) -> Elements | Blocks:
    """As `Problem`, of one logit an element."""
    is_taken = takes(checks.loss_dtype(case.logits), case.spec, case.pos_weight, case.weight)
    return Elements(case) if is_taken else Blocks(case)


def takes(dtype: Any, spec: LossSpec, *factors: Array | None) -> bool:
    """Whether the kernel has this loss, in ``dtype``: it then takes bfloat16 as its bits, too."""
    return spec.is_linear and all(x is None or _fits(x, dtype) for x in factors)


class Elements:
    """See `problem`."""

    def __init__(self, case: BinaryCase) -> None:
        self.logits, q, *factors, spec, self.reduction, divisor = case
        self.spec = spec
        self.scale = 1.0 / divisor if divisor else 0.0
        self.dtype = checks.loss_dtype(self.logits)
        smoothing = smoothing_of(spec)
        self.arrays = (_flat(_bits(self.logits)), _flat(_bits(q)), *map(self._cycle, factors))
        self.scalars = (1.0 - smoothing, smoothing / 2, 1.0 / spec.temperature, spec.softcap or 0.0)

    def stats(self) -> None:
        """None: no statistics are kept."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """See `Problem`."""
        return self._loss(None)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """See `Problem`."""
        return self._loss(out), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """See `Problem`."""
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
        flat = None if bits is None else _flat(bits)
        sum: float = binary_loss(*self.arrays, upstream, *self.scalars, scale, each, flat)
        if bits is not None and flat is not None and not np.may_share_memory(flat, bits):
            bits[...] = flat.reshape(bits.shape)
        return sum

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
        return _flat(x)


def _fits(factors: Any, dtype: Any) -> bool:
    """Whether ``dtype`` has room for the factors, and for what is made of them."""
    if factors.dtype == dtype or dtype == np.float64:
        return True
    size = np.abs(factors)
    return bool(size.max(initial=0.0) <= 1e30 and size.min(initial=1.0, where=size > 0) >= 1e-30)


def _bits(x: Array) -> Array:
    return x.view(BITS[x.dtype.kind]) if x.dtype.kind in BITS else x


def _flat(x: Array) -> Array:
    """``x`` in the order of its index: a view where its memory has that order."""
    return np.ascontiguousarray(x).reshape(-1)
