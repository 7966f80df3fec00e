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


def required_stats(spec: LossSpec, target: Target) -> tuple[str, ...]:
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
        loss = multiply(target.alpha, spec.label_function.value(stats.log_prob, xp), xp)
    if target.dense is not None:
        dense = multiply(-target.beta, stats.dense_log_prob, xp)
        loss = dense if loss is None else loss + dense
    if spec.z_loss:
        loss = loss + spec.z_loss * stats.lse**2
    return multiply(target.weight, loss, xp)


def silent_rows(target: Target, spec: LossSpec, xp: Any) -> Array | None:
    """Mask of the rows that (1) multiplies by 0: their loss and gradient are 0. None if there are none."""
    rows = None if target.weight is None else target.weight == 0
    if target.dense is None and not spec.z_loss and not isinstance(target.alpha, (float, int)):
        has_zero_alpha = target.alpha == 0
        rows = has_zero_alpha if rows is None else rows | has_zero_alpha
    return rows


def negates_log_prob(spec: LossSpec, target: Target) -> bool:
    """Whether (1) is ℓ = −x in every row, so that Σℓ = −Σx needs no array of losses."""
    plain = target.weight is None and target.dense is None and spec.is_linear
    return plain and isinstance(target.alpha, float) and target.alpha == 1.0


def cotangents(
    stats: RowStats | None, target: Target, spec: LossSpec, dloss: Array | float, xp: Any
) -> Cotangents:
    """(∂/∂l, ∂/∂x, ∂/∂σ) of Σ dloss·ℓ = dloss·ω·(2λl, α f'(x), −β); ``stats`` may be None if linear."""
    outer = _product(target.weight, dloss, xp)
    slope = -1.0 if stats is None else spec.label_function.slope(stats.log_prob, xp)
    return Cotangents(  # (lse, log_prob, dense_log_prob)
        multiply(_product(outer, 2 * spec.z_loss, xp), stats.lse, xp) if spec.z_loss and stats else 0.0,
        multiply(_product(outer, target.alpha, xp), slope, xp) if target.labels is not None else 0.0,
        _product(outer, -target.beta, xp) if target.dense is not None else 0.0,
    )


def curvatures(stats: RowStats, target: Target, spec: LossSpec, dloss: Array | float, xp: Any) -> Curvatures:
    """(∂²/∂l², ∂²/∂x²) of Σ dloss·ℓ = dloss·ω·(2λ, α f''(x))."""
    outer = _product(target.weight, dloss, xp)
    bend: Array | float = 0.0
    if not spec.label_function.is_linear:
        bend = spec.label_function.curvature(stats.log_prob, xp)
        bend = multiply(_product(outer, target.alpha, xp), bend, xp)
    return Curvatures(lse=_product(outer, 2 * spec.z_loss, xp) if spec.z_loss else 0.0, log_prob=bend)


def multiply(factor: Array | float | None, x: Array | float, xp: Any) -> Array:
    """factor·x, where None means 1, and a factor of 0 gives 0 even if x is infinite or NaN.

    The derivative in the factor is x, also where the factor is 0.
    """
    if factor is None:
        return x
    if isinstance(factor, (float, int)):  # a tuple is tested faster than a union
        if factor == 1:
            return x
        if factor == -1:
            return 0.0 - x  # never −0.0
        return factor * x if factor else xp.zeros_like(x) if hasattr(x, "shape") else 0.0
    if isinstance(x, (float, int)):
        return factor * x
    return softmax.multiply(factor, x, xp)


def _product(a: Array | float | None, b: Array | float | None, xp: Any) -> Array | float:
    """a·b of two coefficients, None for 1."""
    if a is None:
        return 1.0 if b is None else b
    if isinstance(b, (float, int)):  # first: PyTorch would convert the number to float32
        return multiply(b, a, xp)
    return a if b is None else multiply(a, b, xp)
