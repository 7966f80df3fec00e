"""The head: equation (1) of the row statistics, its first and second partial derivatives.

O(rows) arithmetic on NumPy, PyTorch or JAX arrays; it knows every option and touches no logits.
"""

from __future__ import annotations

from typing import Any

from xent.core import softmax
from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.spec import LossSpec
from xent.core.target import Target

Array = Any


def wanted(spec: LossSpec, target: Target) -> tuple[str, ...]:
    """The row statistics that equation (1) reads under these options."""
    names = []
    if spec.z_loss:
        names.append("lse")
    if target.labels is not None:
        names.append("log_prob")
    if target.dense is not None:
        names.append("dense_log_prob")
    return tuple(names)


def row_losses(stats: RowStats, target: Target, spec: LossSpec, xp: Any) -> Array:
    """Equation (1): ℓ = ω [α f(x) − β σ + λ l²], per row."""
    loss = None
    if target.labels is not None:
        loss = times(target.alpha, spec.label_function.value(stats.log_prob, xp), xp)
    if target.dense is not None:
        dense = times(-target.beta, stats.dense_log_prob, xp)
        loss = dense if loss is None else loss + dense
    if spec.z_loss:
        loss = loss + spec.z_loss * stats.lse**2
    return times(target.weight, loss, xp)


def silent(target: Target, spec: LossSpec, xp: Any) -> Array | None:
    """Which rows (1) multiplies by 0 throughout: their loss and gradient are 0. None for none."""
    rows = None if target.weight is None else target.weight == 0
    if target.dense is None and not spec.z_loss and not isinstance(target.alpha, (float, int)):
        of_classes = target.alpha == 0
        rows = of_classes if rows is None else rows | of_classes
    return rows


def negates_log_prob(spec: LossSpec, target: Target) -> bool:
    """Whether (1) is ℓ = −x in every row: Σℓ then needs no array of losses."""
    plain = target.weight is None and target.dense is None and spec.is_linear
    return plain and isinstance(target.alpha, float) and target.alpha == 1.0


def cotangents(
    stats: RowStats | None, target: Target, spec: LossSpec, dloss: Array | float, xp: Any
) -> Cotangents:
    """(∂/∂l, ∂/∂x, ∂/∂σ) of Σ dloss·ℓ = dloss·ω·(2λl, α f'(x), −β); ``stats`` only if not linear."""
    outer = _product(target.weight, dloss, xp)
    slope = -1.0 if stats is None else spec.label_function.slope(stats.log_prob, xp)
    return Cotangents(  # (lse, log_prob, dense_log_prob)
        times(outer, 2 * spec.z_loss * stats.lse, xp) if spec.z_loss and stats else 0.0,
        times(_product(outer, target.alpha, xp), slope, xp) if target.labels is not None else 0.0,
        _product(outer, -target.beta, xp) if target.dense is not None else 0.0,
    )


def curvatures(stats: RowStats, target: Target, spec: LossSpec, dloss: Array | float, xp: Any) -> Curvatures:
    """(∂²/∂l², ∂²/∂x²) of Σ dloss·ℓ = dloss·ω·(2λ, α f''(x))."""
    outer = _product(target.weight, dloss, xp)
    bend: Array | float = 0.0
    if not spec.label_function.is_linear:
        bend = spec.label_function.curvature(stats.log_prob, xp)
        bend = times(_product(outer, target.alpha, xp), bend, xp)
    return Curvatures(lse=_product(outer, 2 * spec.z_loss, xp) if spec.z_loss else 0.0, log_prob=bend)


def times(factor: Array | float | None, x: Array | float, xp: Any) -> Array:
    """factor·x, with None for 1 and 0·(anything) = 0: weight zero silences −inf and NaN.

    Its derivative in the factor is x, at 0 too.
    """
    if factor is None:
        return x
    if isinstance(factor, (float, int)):  # faster than the union
        if factor == 1:
            return x
        if factor == -1:
            return 0.0 - x  # never −0.0
        return factor * x if factor else xp.zeros_like(x) if hasattr(x, "shape") else 0.0
    if isinstance(x, (float, int)):
        return factor * x
    return softmax.times(factor, x, xp)


def _product(a: Array | float | None, b: Array | float | None, xp: Any) -> Array | float:
    """a·b of two coefficients, None for 1."""
    if a is None:
        return 1.0 if b is None else b
    if isinstance(b, (float, int)):  # first, so that PyTorch makes no float32 of it
        return times(b, a, xp)
    return a if b is None else times(a, b, xp)
