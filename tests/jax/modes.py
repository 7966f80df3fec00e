"""Every way to a derivative: each by its name, as arrays that have the rows of the logits last but one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = Any


def every_mode(f: Callable[[Array], Array], z: Array, v: Array) -> dict[str, Array]:
    """Values, slopes along ``v``, gradients and Hessian products of ``f``, a scalar of logits ``z``."""
    grad = jax.grad(f)

    def slope(x: Array) -> Array:
        return jax.jvp(f, (x,), (v,))[1]

    def accumulate(total: Array, x: Array) -> tuple[Array, None]:
        return total + 3 * f(x), None

    def accumulated(x: Array) -> Array:
        return jax.lax.scan(accumulate, jnp.zeros((), f(x).dtype), jnp.stack([x, x]))[0] / 6

    return {
        "value": f(z),
        "value in a scan": accumulated(z),
        "slope": slope(z),
        "gradient": grad(z),
        "gradient, forward": jax.jacfwd(f)(z),
        "gradient of a multiple": jax.grad(lambda x: 7 * f(x))(z) / 7,
        "gradient in a scan": jax.grad(accumulated)(z),
        "gradient, recomputed": jax.grad(jax.checkpoint(f))(z),
        "gradient, mapped": jax.vmap(grad)(jnp.stack([z / 2, z]))[1],
        "gradient of the mapped": jax.grad(lambda x: jax.vmap(f)(jnp.stack([x, x])).sum() / 2)(z),
        "curvature": jax.jvp(slope, (z,), (v,))[1],
        "product, forward over reverse": jax.jvp(grad, (z,), (v,))[1],
        "product, reverse over reverse": jax.grad(lambda x: jnp.vdot(grad(x), v))(z),
        "product, reverse over forward": jax.grad(slope)(z),
        "product, recomputed": jax.grad(lambda x: jnp.vdot(jax.grad(jax.checkpoint(f))(x), v))(z),
    }
