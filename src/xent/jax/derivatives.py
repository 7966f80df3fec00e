"""Derivatives that come with the value: first ones by kernels, all others by differentiating formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Array = Any
Arrays = list[Any]


Evaluate = Callable[[Arrays, Arrays, tuple[bool, ...]], tuple[Array, Arrays]]


def with_gradient(evaluate: Evaluate, formula: Evaluate) -> Callable[[Arrays, Arrays], Array]:
    """A function of two lists of arrays, ``main`` and ``rest``, with derivatives of every order in both.

    ``evaluate(main, rest, wanted)`` gives its value, and its gradient in those of ``main`` that are wanted,
    else None. The first derivative in them costs what that costs, in reverse and in forward mode.
    ``formula`` is the same in operations that JAX differentiates: for derivatives in ``rest``, and for those
    of higher orders. A value that is no scalar has an entry for each row of ``main[0]``, and the gradient
    in that array alone is asked for.
    """

    @jax.custom_jvp
    def function(main: Arrays, rest: Arrays) -> Array:
        return evaluate(main, rest, (False,) * len(main))[0]

    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (main, rest), (dmain, drest) = primals, tangents
        wanted = tuple(map(_is_active, dmain))
        result, grads = _derivable(evaluate, formula, wanted)(main, rest)
        terms = [_inner(g, d, result) for g, d in zip(grads, dmain, strict=True) if _is_active(d)]
        if any(map(_is_active, drest)):
            nothing = (False,) * len(main)
            terms.append(active_jvp(lambda *others: formula(main, list(others), nothing)[0], rest, drest)[1])
        return result, sum(terms, start=jnp.zeros_like(result))

    function.defjvp(rule, symbolic_zeros=True)
    return function


def active_jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`jax.jvp` in the arguments whose tangent is no symbolic zero; a zero would meet infinite values."""
    return partial_jvp(f, primals, tangents, [i for i, t in enumerate(tangents) if _is_active(t)])


def partial_jvp(
    f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], active: Sequence[int]
) -> tuple[Any, Any]:
    """`jax.jvp` in the ``active`` arguments of ``f``; the others are constants."""

    def active_function(*values: Any) -> Any:
        arguments = list(primals)
        for i, x in zip(active, values, strict=True):
            arguments[i] = x
        return f(*arguments)

    return jax.jvp(active_function, [primals[i] for i in active], [tangents[i] for i in active])


def _derivable(
    evaluate: Evaluate, formula: Evaluate, wanted: tuple[bool, ...]
) -> Callable[[Arrays, Arrays], tuple[Array, Arrays]]:
    """``evaluate`` as a function that is differentiated by way of its formula."""

    @jax.custom_jvp
    def function(main: Arrays, rest: Arrays) -> tuple[Array, Arrays]:
        return evaluate(main, rest, wanted)

    def rule(primals: Any, tangents: Any) -> Any:
        main, rest = primals
        count = len(main)

        def flat_formula(*arrays: Any) -> Any:
            return formula(list(arrays[:count]), list(arrays[count:]), wanted)

        return active_jvp(flat_formula, [*main, *rest], [*tangents[0], *tangents[1]])

    function.defjvp(rule, symbolic_zeros=True)
    return function


def _is_active(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _inner(gradient: Array, tangent: Array, result: Array) -> Array:
    """⟨gradient, tangent⟩, over all axes or over the last ones for one value a row, in the result's dtype."""
    product = gradient.astype(result.dtype) * tangent.astype(result.dtype)
    return jnp.sum(product, tuple(range(result.ndim, product.ndim)))
