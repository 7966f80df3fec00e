"""The binary loss where (1) is linear in the row statistics: one call, that reads each logit once."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent import _native, checks
from xent.blocks import Blocks
from xent.logistic import smoothing_of
from xent.spec import LossSpec

Array = np.ndarray[Any, Any]
BITS = {"V": np.uint16, "b": np.uint8}  # bfloat16 and booleans, as the kernel knows them


def problem(
    logits: Array, q: Array, pos_weight: Any, weight: Any, spec: LossSpec, reduction: str, divisor: float
) -> Elements | Blocks:
    """As `Problem`, of ``logits`` and targets ``q`` (...), labels or probabilities.

    ``pos_weight`` and ``weight`` are None or arrays that broadcast to (...). bfloat16 may come as its bits.
    """
    kind = Elements if spec.is_linear else Blocks
    return kind(logits, q, pos_weight, weight, spec, reduction, divisor)


class Elements:
    """See `problem`."""

    def __init__(
        self,
        logits: Array,
        q: Array,
        pos_weight: Any,
        weight: Any,
        spec: LossSpec,
        reduction: str,
        divisor: float,
    ) -> None:
        self.logits = logits
        self.spec = spec
        self.reduction = reduction
        self.scale = 1.0 / divisor if divisor else 0.0
        self.dtype = checks.loss_dtype(logits)
        smoothing = smoothing_of(spec)
        self.arrays = (
            _flat(_bits(logits)),
            _flat(_bits(q)),
            *(self._cycle(x) for x in (pos_weight, weight)),
        )
        self.scalars = (1.0 - smoothing, smoothing / 2, 1.0 / spec.temperature, spec.softcap or 0.0)

    def stats(self) -> None:
        """None: no statistics are kept."""

    stats_for_grad = stats

    def loss(self, stats: None = None) -> Any:
        """See `Problem`."""
        return self._run(None, None)

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """See `Problem`."""
        return self._run(None, out), out

    def grad(self, stats: None, dloss: Any, out: Array) -> Array:
        """See `Problem`."""
        self._run(dloss, out)
        return out

    def _run(self, dloss: Any, out: Array | None) -> Any:
        """The loss, and its gradient times ``dloss`` into ``out``."""
        is_row = np.ndim(dloss) > 0
        upstream = self._cycle(dloss) if is_row else None
        scale = self.scale if dloss is None or is_row else self.scale * float(dloss)
        losses = np.empty(self.logits.size, self.dtype) if self.reduction == "none" else None
        target = None if out is None else _bits(out)
        flat = None if target is None else _flat(target)
        total = _native.binary_loss(*self.arrays, upstream, *self.scalars, scale, losses, flat)
        if target is not None and flat is not None and not np.may_share_memory(flat, target):
            target[...] = flat.reshape(target.shape)
        if losses is not None:
            return losses.reshape(self.logits.shape)[()]
        return self.dtype.type(total * self.scale)

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


def _bits(x: Array) -> Array:
    return x.view(BITS[x.dtype.kind]) if x.dtype.kind in BITS else x


def _flat(x: Array) -> Array:
    """``x`` in the order of its index: a view where its memory has that order."""
    return np.ascontiguousarray(x).reshape(-1)
