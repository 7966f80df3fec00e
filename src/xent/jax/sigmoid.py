"""The logistic function and its logarithm, with derivatives of every order that keep both tails."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = Any


@jax.custom_jvp
def sigmoid(u: Array) -> Array:
    """1/(1 + e⁻ᵘ), of which no digits are lost as u → −∞."""
    small = jnp.exp(-jnp.abs(u))
    return jnp.where(u < 0, small, 1) / (1 + small)


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d s(u) = s(u) s(−u) du; 1 − s(u) would be 0 in the upper tail."""
    (u,), (du,) = primals, tangents
    p = sigmoid(u)
    return p, p * sigmoid(-u) * du


@jax.custom_jvp
def log_sigmoid(u: Array) -> Array:
    """log s(u) = −log(1 + e⁻ᵘ), of which no digits are lost as u → ∞."""
    return jnp.minimum(u, 0) - jnp.log1p(jnp.exp(-jnp.abs(u)))


@log_sigmoid.defjvp
def _log_sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d log s(u) = s(−u) du."""
    (u,), (du,) = primals, tangents
    return log_sigmoid(u), sigmoid(-u) * du
