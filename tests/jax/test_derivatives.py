"""Derivatives of every order in every mode, against the closed forms and against differences."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import xent
from tests.tables.variants import SOME_OPTIONS

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import xent.jax  # noqa: E402
from tests.jax.modes import every_mode  # noqa: E402

Array = Any
RNG = np.random.default_rng(0)
Z, V = RNG.normal(size=(2, 6, 5)) * 2
LABELS = np.array([0, 4, 2, -100, 1, 1])
Q = RNG.dirichlet(np.ones(5), 6)
OMEGA = np.array([1.0, 0.5, 2.0, 1.0, 0.3, 0.0])
SOFT = {"label_smoothing": 0.1, "z_loss": 0.3, "softcap": 5.0, "temperature": 0.7}


@partial(jax.jit, static_argnames="options")
def modes(z: Array, v: Array, targets: Array, omega: Array, factors: Array, options: Any) -> dict[str, Array]:
    """Every mode of the mean with both weights."""
    given = {"sample_weight": omega, "class_weight": factors, **dict(options)}
    return every_mode(lambda x: xent.jax.cross_entropy(x, targets, **given), z, v)


def frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, x) for name, x in options.items() if name != "class_weight")


@pytest.mark.parametrize("name", ["smoothing_weights", "focal_2", "temperature_softcap", "soft"])
def test_every_mode(name: str, x64: None) -> None:
    factors = np.array([0.5, 2.0, 1.0, 0.0, 1.5])
    options, targets = (SOFT, Q) if name == "soft" else (SOME_OPTIONS[name], LABELS)
    weighted = {**options, "class_weight": factors, "sample_weight": OMEGA}
    loss, gradient = xent.cross_entropy_with_grad(Z, targets, **weighted)
    product = xent.cross_entropy_hvp(Z, targets, V, **weighted)
    found = modes(Z, V, targets, OMEGA, factors, frozen(options))
    expected = {"value": loss, "slope": np.vdot(gradient, V), "gradient": gradient}
    expected |= {"curvature": np.vdot(product, V), "product": product}
    for mode, value in found.items():
        kind = mode.partition(",")[0].partition(" ")[0]
        np.testing.assert_allclose(value, expected[kind], rtol=1e-11, atol=1e-14, err_msg=mode)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        SOFT,
        pytest.param({}, marks=slow),
        pytest.param({"focal_gamma": 2.0}, marks=slow),
        pytest.param({"poly1_epsilon": 2.0}, marks=slow),
    ],
    ids=str,
)
def test_differences_to_order_3(options: dict[str, Any], x64: None) -> None:
    z, y = jnp.asarray(Z[:3, :4]), LABELS[[0, 2, 3]]
    f = jax.jit(lambda x: xent.jax.cross_entropy(x, y, **options))
    check_grads(f, (z,), order=3, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=slow)])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_differences_in_all_arrays(kind: str, order: int, x64: None) -> None:
    """In logits, weights of classes and rows, denominator and probabilities together."""
    z, omega = jnp.asarray(Z[:2, :3]), jnp.asarray([0.7, 2.0])
    factors, denominator = jnp.asarray([0.5, 1.5, 2.0]), jnp.asarray(3.0)
    arrays = (z, factors, omega, denominator)

    def f(x: Array, c: Array, w: Array, d: Array, q: Array = (2, 0)) -> Array:
        options = {"label_smoothing": 0.1, "z_loss": 0.2, "class_weight": c, "sample_weight": w}
        by_number = xent.jax.cross_entropy(x, q, denominator=d, validate=False, **options)
        return by_number + xent.jax.cross_entropy(x, q, validate=False, **options)

    if kind == "probabilities":
        arrays = (*arrays, jnp.asarray(Q[:2, :3]))
    check_grads(jax.jit(f), arrays, order=order, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("num_classes", [2, 1000])
def test_the_tail_is_exact(num_classes: int, is_compiled: bool) -> None:
    """With a gap of 20 to the label's logit, where 1 − p is 2e-9, less than a rounding of float32."""
    z = np.full(num_classes, 3.0, np.float32)
    z[0] = 23.0
    r = np.exp(-20.0)
    rest = (num_classes - 1) * r
    p0, pk = 1 / (1 + rest), r / (1 + rest)
    v = np.zeros(num_classes, np.float32)
    v[0] = 1

    def results(x: Array) -> tuple[Array, ...]:
        f = partial(xent.jax.cross_entropy, targets=0)
        grad = jax.grad(f)
        forward = jax.jvp(grad, (x,), (v,))[1]
        reverse = jax.grad(lambda x: grad(x)[0])(x)
        return f(x), jax.jvp(f, (x,), (v,))[1], grad(x), forward, reverse

    loss, slope, gradient, *rows = (jax.jit(results) if is_compiled else results)(jnp.asarray(z))
    np.testing.assert_allclose(loss, np.log1p(rest), rtol=1e-6)
    np.testing.assert_allclose(slope, -rest * p0, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-rest * p0, *[pk] * (num_classes - 1)], rtol=1e-6)
    for row in rows:
        np.testing.assert_allclose(row, [p0 * rest * p0, *[-p0 * pk] * (num_classes - 1)], rtol=2e-6)


def test_the_tail_is_exact_with_a_temperature() -> None:
    """XLA contracts z/T − max into one rounding: the largest term must not become as large as that."""
    offsets = np.linspace(-40, 40, 50, dtype=np.float32)
    z = np.stack([offsets + 14, offsets], -1)
    u = z.astype(np.float64) / 0.7
    f = partial(xent.jax.cross_entropy, temperature=0.7, reduction="none", validate=False)
    loss = jax.jit(f)(z, np.zeros(50, int))
    scaled = jax.jit(lambda x, y: f(0.7 * (x / 0.7), y))(z, np.zeros(50, int))  # a product of the caller's
    np.testing.assert_allclose(scaled, loss, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x, y: f(x, y).sum()))(z, np.zeros(50, int))
    r = np.exp(u[:, 1] - u[:, 0])
    np.testing.assert_allclose(loss, np.log1p(r), rtol=1e-5)  # a rounding of z/T is 4e-6
    np.testing.assert_allclose(gradient[:, 0], -r / (1 + r) / 0.7, rtol=1e-5)


def test_batches_of_one_argument() -> None:
    """Maps over the labels, one of the weights, or the mask alone; and gradients within them."""
    z = Z.astype(np.float32)
    labels = np.stack([np.arange(6) % 5, np.full(6, 3)])
    omega, factors = np.stack([OMEGA, OMEGA[::-1]]), np.stack([np.ones(5), np.arange(5.0)])
    rows, classes = np.stack([OMEGA > 0.4, OMEGA < 2]), RNG.random((2, 6, 5)) > 0.3
    f = partial(xent.jax.cross_entropy, label_smoothing=0.1, validate=False)
    for name, batch in (
        ("targets", labels),
        ("sample_weight", omega),
        ("class_weight", factors),
        ("where", rows),
        ("where", classes),
    ):

        def g(x: Array, a: Array, name: str = name) -> Array:
            return jax.value_and_grad(lambda x: f(x, **{"targets": labels[0], name: a}))(x)

        mapped = jax.jit(jax.vmap(g, in_axes=(None, 0)))(z, batch)
        for i, one in enumerate(batch):
            for a, b in zip(mapped, g(jnp.asarray(z), one), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-7, err_msg=name)
