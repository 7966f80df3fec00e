"""The C++ kernels have derivatives of every order, wherever their call stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xent

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402

ROWS, CLASSES = 256, 64  # large enough for the kernels
Function = Callable[[Any], Any]


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    z, r = (jnp.asarray(rng.normal(size=(ROWS, CLASSES)), jnp.float32) for _ in range(2))
    return z, jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32), r


def in_scan(f: Function) -> Function:
    """``f`` as one step of a loop that adds."""
    return lambda z: jax.lax.scan(lambda total, x: (total + f(x), None), 0.0, z[None])[0]


PLACES: dict[str, Callable[[Function], Function]] = {
    "alone": lambda f: f,
    "checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
    "scan": in_scan,
    "checkpoint in scan": lambda f: in_scan(jax.checkpoint(f)),
    "scan in checkpoint": lambda f: jax.checkpoint(in_scan(f)),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_second_and_third_derivatives(place: Callable[[Function], Function], data: Any) -> None:
    z, y, r = data
    loss = place(lambda z: xent.jax.cross_entropy(z, y, z_loss=0.01))
    expected = xent.cross_entropy_hvp(*map(np.asarray, (z, y, r)), z_loss=0.01)
    products = {
        "forward over reverse": jax.jvp(jax.grad(loss), (z,), (r,))[1],
        "reverse over reverse": jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z), r))(z),
        "reverse over forward": jax.grad(lambda z: jax.jvp(loss, (z,), (r,))[1])(z),
    }
    for name, product in products.items():
        np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-8, err_msg=name)

    def curvature(z: Any) -> Any:
        return jnp.vdot(jax.grad(lambda z: jnp.vdot(jax.grad(loss)(z), r))(z), r)

    third = jnp.vdot(jax.grad(curvature)(z), r)
    step = 0.05
    difference = (curvature(z + step * r) - curvature(z - step * r)) / (2 * step)
    np.testing.assert_allclose(third, difference, rtol=1e-2)


def test_statistics_with_an_integer_among_them(data: Any) -> None:
    z, y, _ = data

    def total(z: Any) -> Any:
        stats = xent.jax.row_statistics(z, y)
        return stats.log_prob.sum() + stats.entropy.sum() + stats.argmax.sum()

    gradient = jax.jit(jax.grad(in_scan(total)))(z)
    p = np.asarray(xent.softmax(np.asarray(z, np.float64)))
    log_p = np.log(p)
    entropy = -(p * log_p).sum(-1, keepdims=True)
    expected = np.eye(CLASSES)[np.asarray(y)] - p - p * (log_p + entropy)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_of_what_all_rows_share(data: Any) -> None:
    z, y, _ = data
    weights = 1 + jnp.arange(3)[:, None] * jnp.linspace(0, 1, CLASSES)

    def gradient(z: Any, weight: Any) -> Any:
        def loss(z: Any) -> Any:
            return xent.jax.cross_entropy(z, y, class_weight=weight, label_smoothing=0.1)

        return jax.grad(lambda z: (jax.grad(loss)(z) ** 2).sum())(z)

    batch = jax.jit(jax.vmap(gradient, (None, 0)))(z, weights)
    for found, weight in zip(batch, weights, strict=True):
        np.testing.assert_allclose(found, gradient(z, weight), rtol=1e-4, atol=1e-12)


def test_rows_of_a_projected_loss_to_the_third_order() -> None:
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((256, 4), (64, 4)))
    y = jnp.asarray(rng.integers(0, 64, 256), jnp.int32)

    def third(loss: Function) -> Any:
        first = jax.grad(lambda w: (loss(w) ** 2).sum())
        return jax.grad(lambda w: (jax.grad(lambda w: (first(w) ** 2).sum())(w) ** 2).sum())(w)

    found = third(lambda w: xent.jax.linear_cross_entropy(x, w, y, reduction="none", chunk_bytes=1 << 15))
    expected = third(lambda w: xent.jax.cross_entropy(x @ w.T, y, reduction="none"))
    np.testing.assert_allclose(found / abs(expected).max(), expected / abs(expected).max(), atol=1e-4)
