"""The loss of rows of logits: one read for its value and its gradient where equation (1) is linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xent.core import head
from xent.core import target as targeting
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine.batch_loss import Problem
from xent.jax import kernels
from xent.jax.derivatives import with_gradient
from xent.jax.targets import unread

Array = Any


def loss(
    logits: Array,
    target: Target,
    spec: LossSpec,
    reduction: str,
    scale: Array | float,
    formulas: Any = None,
) -> Array:
    """Equation (4) with ``scale`` = 1/D, or the loss of each row, (...), for ``reduction`` "none".

    ``formulas`` are the kernels of rows of another shape than (..., K), in operations that JAX
    differentiates.
    """
    # Half of float16's range would be lost to 1/D; the other dtypes take it before the gradient is rounded.
    is_scaled_late = logits.dtype == jnp.float16 and reduction != "none"
    rest, rebuild = split_arrays((target, 1.0 if is_scaled_late else scale))

    def evaluate(is_formula: bool) -> Callable[..., Any]:
        def value_and_grads(
            main: list[Array], rest: list[Array], wanted: tuple[bool, ...] = (False,)
        ) -> tuple[Array, list[Array]]:
            (z,), (measure, factor) = main, rebuild(rest)
            if is_formula:
                z, measure = without_silent_nan(z, measure, spec)
            row_kernels: Any = formulas or (kernels.Formulas if is_formula else kernels.choose(z))
            problem = Problem(z, measure, spec, "none", 1.0, row_kernels, jnp)
            if not any(wanted):
                return reduced(problem.row_losses(problem.stats()), factor), [None]
            stats, dlogits = problem.stats_and_grad(factor, None)
            return reduced(problem.row_losses(stats), factor), [dlogits]

        return value_and_grads

    def reduced(losses: Array, factor: Array | float) -> Array:
        return losses if reduction == "none" else head.multiply(factor, sum_of_rows(losses), jnp)

    function = with_gradient(evaluate(False), evaluate(True))
    value = function([logits], rest)
    return head.multiply(scale, value, jnp) if is_scaled_late else value


def scale_of(target: Target, reduction: str, denominator: Any, dtype: Any) -> Array | float:
    """1/D of (4); 0 where D is 0, so that loss and gradient are 0 where no row counts."""
    divisor = targeting.divisor(target.total, target.rows, reduction, denominator)
    if isinstance(divisor, (int, float)):
        return 1.0 / divisor if divisor else 0.0
    divisor = jnp.asarray(divisor).astype(dtype)
    return jnp.where(divisor == 0, 0, 1 / jnp.where(divisor == 0, 1, divisor))


def split_arrays(tree: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """(the arrays of a tree, a function that makes the tree of other arrays); other leaves are unchanged."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def rebuild(arrays: list[Array]) -> Any:
        filled = list(leaves)
        for i, array in zip(positions, arrays, strict=True):
            filled[i] = array
        return jax.tree_util.tree_unflatten(structure, filled)

    return [leaves[i] for i in positions], rebuild


def without_silent_nan(logits: Array, target: Target, spec: LossSpec) -> tuple[Array, Target]:
    """(logits, target) in which no row that does not count has a loss of NaN: its derivatives were 0·NaN.

    Other such rows are kept: the derivative in a weight of 0 is the loss of its row.
    """
    silent = head.silent_rows(target, spec, jnp)
    # Elements of a binary loss are replaced before it.
    if silent is None or silent.ndim == logits.ndim:
        return logits, target
    is_nan = ~jnp.isfinite(jnp.max(logits, -1, initial=-jnp.inf))
    if target.labels is not None:
        is_nan = is_nan | (target.labels >= logits.shape[-1])
    rows = silent & is_nan
    return jnp.where(rows[..., None], 0, logits), unread(target, rows)


def sum_of_rows(losses: Array) -> Array:
    """Σ of all losses: XLA adds blocks of them, so that millions lose only a few roundings."""
    return losses.sum()
