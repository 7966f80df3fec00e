"""One loss on one batch: the order in which kernels and head are called, and the reduction over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from xent.core import head, target
from xent.core.contract import Kernels, RowStats
from xent.core.spec import LossSpec, Options, require_reduction
from xent.core.target import Target
from xent.engine import checks
from xent.kernels import cpu, registry

Array = np.ndarray[Any, Any]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INT64 = np.dtype(np.int64)


def mean_loss_and_grad(z: Array, y: Array, buffer: Callable[[Array], Array]) -> tuple[Any, Array] | None:
    """Mean loss of ``z (N, K)`` with labels, and its gradient; None if `Problem` is needed.

    The bits are those of `Problem`, of which this is the most frequent case; at 32×10 it takes half the time.
    """
    if z.dtype not in FLOATS or z.ndim != 2 or y.dtype != INT64 or y.shape != z.shape[:1] or not y.size:
        return None
    if not (z.flags.aligned and y.flags.aligned and y.flags.c_contiguous):
        return None
    out, scale = buffer(z), 1.0 / y.size
    loss_sum = cpu.label_loss_sum_and_grad(z, y, scale, out)
    return None if loss_sum is None else (z.dtype.type(loss_sum * scale), out)


class Problem:
    """Checked arrays and options of one call; its methods evaluate equations (1)–(4)."""

    __slots__ = ("divisor", "kernels", "link", "logits", "reduction", "spec", "target", "xp")

    def __init__(
        self,
        logits: Array,
        target: Target,
        spec: LossSpec,
        reduction: str,
        divisor: float,
        kernels: Kernels | None = None,
        xp: Any = np,
    ) -> None:
        self.logits = logits
        self.target = target
        self.spec = spec
        self.link = spec.link
        self.reduction = reduction
        self.divisor = divisor
        self.kernels = kernels or registry.get("cpu")
        self.xp = xp

    @classmethod
    def from_arguments(
        cls,
        logits: Any,
        targets: Any,
        reduction: str,
        denominator: Any,
        validate: bool,
        options: Options,
        kernels: Kernels | None = None,
    ) -> Self:
        """Check all arguments (rule 3)."""
        require_reduction(reduction)
        spec, class_weight, sample_weight = LossSpec.from_options(options)
        z = checks.as_logits(logits)
        measure = checks.as_target(targets, z, spec, class_weight, sample_weight, validate)
        denominator = checks.as_denominator(denominator)
        divisor = target.divisor(measure.total, measure.rows, reduction, denominator)
        return cls(z, measure, spec, reduction, float(divisor), kernels)

    @property
    def scale(self) -> float:
        """1/D of (4), and 0 where no row counts: then loss and gradient are 0."""
        return 1.0 / self.divisor if self.divisor else 0.0

    def stats(self, *extra: str) -> RowStats:
        """The row statistics that (1) needs under these options, and those named by ``extra``."""
        want = (*head.required_stats(self.spec, self.target), *extra)
        return self.kernels.row_stats(self.logits, self.target.labels, self.target.dense, self.link, want)

    def stats_for_grad(self) -> RowStats:
        """The row statistics that ``grad`` needs."""
        return self.stats("lse") if self.target.dense is None else self.stats("lse", "mass")

    def loss(self, stats: RowStats) -> Any:
        """Equations (1) and (4): a NumPy scalar; with reduction "none", one loss for each row."""
        dtype = checks.loss_dtype(self.logits)
        if self.reduction == "none":
            return self.row_losses(stats).astype(dtype, copy=False)
        if head.negates_log_prob(self.spec, self.target):
            loss_sum = 0.0 - cpu.array_sum(np.ascontiguousarray(stats.log_prob, np.float64))
        else:
            loss_sum = cpu.array_sum(np.ascontiguousarray(self.row_losses(stats), np.float64))
        return dtype.type(loss_sum * self.scale if self.divisor != 1.0 else loss_sum)

    def row_losses(self, stats: RowStats) -> Array:
        """Equation (1): one loss for each row, float64."""
        losses: Array = head.row_losses(stats, self.target, self.spec, self.xp)
        return losses

    def loss_and_grad(self, out: Array) -> tuple[Any, Array]:
        """The loss, and its gradient (with reduction "none", that of the sum of the losses)."""
        stats, dlogits = self.stats_and_grad(1.0, out)
        return self.loss(stats), dlogits

    def stats_and_grad(self, dloss: float | Array, out: Array | None) -> tuple[RowStats, Array]:
        """Statistics and `grad`, in one read of the logits if (1) is linear."""
        if not self.spec.is_linear:
            stats = self.stats_for_grad()
            return stats, self.grad(stats, dloss, out)
        cotangents = head.cotangents(None, self.target, self.spec, dloss * self.scale, self.xp)
        want = head.required_stats(self.spec, self.target)
        return self.kernels.row_stats_and_grad(
            self.logits, self.target.labels, self.target.dense, self.link, cotangents, want, out
        )

    def grad(self, stats: RowStats | None, dloss: float | Array, out: Array | None) -> Array:
        """Equation (2), times the upstream gradient ``dloss``: a scalar, or (...) for "none".

        ``stats`` may be None if (1) is linear; the bits are then those of `loss_and_grad`.
        """
        cotangents = head.cotangents(stats, self.target, self.spec, dloss * self.scale, self.xp)
        dlogits: Array
        if stats is None:
            labels, dense = self.target.labels, self.target.dense
            _, dlogits = self.kernels.row_stats_and_grad(
                self.logits, labels, dense, self.link, cotangents, (), out
            )
            return dlogits
        dlogits = self.kernels.row_grad(
            self.logits, self.target.labels, self.target.dense, self.link, stats, cotangents, out
        )
        return dlogits

    def hvp(self, vector: Array, out: Array) -> Array:
        """Equation (3): the Hessian of the (sum of the) loss times ``vector``."""
        stats = RowStats() if self.spec.is_linear else self.stats()
        cotangents = head.cotangents(stats, self.target, self.spec, self.scale, np)
        curvatures = head.curvatures(stats, self.target, self.spec, self.scale, np)
        product: Array = self.kernels.row_hvp(
            self.logits,
            self.target.labels,
            self.target.dense,
            self.link,
            cotangents,
            curvatures,
            vector,
            out,
        )
        return product
