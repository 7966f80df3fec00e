"""Row kernels as operations of JAX that it differentiates by a formula, wherever they stand.

`jax.custom_jvp` would not do: in the body of a `scan` JAX drops its rule once it has differentiated it, and
the second derivative meets the kernel itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xent.jax.derivatives import partial_jvp

Array = Any


def row_primitive(name: str, kernel: Callable[..., Any], formula: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is ``kernel`` in programs for the CPU and ``formula`` in others and in derivatives.

    Both have the same arguments, trees whose arrays have the rows as their leading axes. Whatever else the
    trees hold is a constant of the program.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def function(*arguments: Any) -> Any:
        leaves, tree = jax.tree_util.tree_flatten(arguments)
        constants = tuple(None if isinstance(x, jax.Array) else x for x in leaves)
        arrays = [x for x in leaves if isinstance(x, jax.Array)]
        static = {"tree": tree, "constants": constants}
        traced, result = jax.make_jaxpr(_on_arrays(formula, **static), return_shape=True)(*arrays)
        results = primitive.bind(*arrays, **static, avals=tuple(traced.out_avals))
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(result), results)

    def differentiate(primals: Any, tangents: Any, *, avals: Any, **static: Any) -> Any:
        results = primitive.bind(*primals, **static, avals=avals)
        active = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

        def flat(*arrays: Any) -> list[Array]:
            return _flat(formula, arrays, **static)

        return results, partial_jvp(flat, primals, tangents, active)[1]

    def batch(arrays: Any, axes: Any, *, avals: Any, **static: Any) -> Any:
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
        moved = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arrays, axes, strict=True)
        ]
        results = jax.tree_util.tree_leaves(_on_arrays(function, **static)(*moved))
        return results, [0] * len(results)

    def lower(implementation: Callable[..., Any]) -> Any:
        def flat(*arrays: Array, avals: Any, **static: Any) -> list[Array]:
            return _flat(implementation, arrays, **static)

        return mlir.lower_fun(flat, multiple_results=True)

    primitive.def_impl(lambda *arrays, **static: jax.jit(lambda *x: primitive.bind(*x, **static))(*arrays))
    primitive.def_abstract_eval(lambda *arrays, avals, **static: list(avals))
    ad.primitive_jvps[primitive] = differentiate
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lower(kernel), platform="cpu")
    mlir.register_lowering(primitive, lower(formula))
    return function


def _on_arrays(function: Callable[..., Any], tree: Any, constants: tuple[Any, ...]) -> Callable[..., Any]:
    """``function`` of the arrays of its arguments alone."""

    def on_arrays(*arrays: Array) -> Any:
        rest = iter(arrays)
        leaves = [next(rest) if constant is None else constant for constant in constants]
        return function(*jax.tree_util.tree_unflatten(tree, leaves))

    return on_arrays


def _flat(function: Callable[..., Any], arrays: Any, **static: Any) -> list[Array]:
    leaves: list[Array] = jax.tree_util.tree_leaves(_on_arrays(function, **static)(*arrays))
    return leaves
