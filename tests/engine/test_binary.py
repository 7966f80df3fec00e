"""The binary loss as blocks of rows (0, z): focal, poly-1, z-loss, odd weights; any layout and dtype."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest

import xent
from tests.tables.tolerance import DTYPES
from xent.engine import binary

Array = Any

SHAPES = [(0,), (), (1,), (7, 9), (3, binary.BLOCK // 2 + 11)]
OPTIONS: dict[str, dict[str, Any]] = {
    "focal": {"focal_gamma": 2.0},
    "focal 0.5": {"focal_gamma": 0.5, "pos_weight": 2.5},
    "poly-1": {"poly1_epsilon": 1.5},
    "z-loss": {"z_loss": 0.1, "pos_weight": 2.5},
    "alpha": {"alpha": 0.3},
    "focal + alpha + z-loss": {"focal_gamma": 2.0, "alpha": 0.25, "pos_weight": 2.5, "z_loss": 0.1},
    "focal + cap + z-loss": {"focal_gamma": 2.0, "softcap": 4.0, "temperature": 1.5, "z_loss": 0.1},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def exact(z: Array, y: Array, options: dict[str, Any]) -> tuple[Array, ...]:
    """Losses of labels, their derivatives, and the sizes of the derivatives' terms, in long double."""
    z, y = z.astype(np.longdouble), y.astype(bool)
    c, t = options.get("softcap"), np.longdouble(options.get("temperature", 1.0))
    u = z / t if c is None else c * np.tanh(z / (t * c))
    slope = 1 / t if c is None else (1 - (u / c) ** 2) / t
    sign = np.where(y, 1, -1)
    x = -np.logaddexp(np.longdouble(0), -sign * u)  # log p of the label
    p, rest = np.exp(x), 1 / (1 + np.exp(sign * u))
    gamma, epsilon = options.get("focal_gamma", 0.0), options.get("poly1_epsilon", 0.0)
    losses = -(rest**gamma) * x + epsilon * rest
    derivative = gamma * rest ** (gamma - 1) * p * x - rest**gamma - epsilon * p  # f'
    alpha = np.where(y, options.get("pos_weight", 1.0), 1.0)
    lse, p1 = np.logaddexp(np.longdouble(0), u), 1 / (1 + np.exp(-u))
    z_loss = options.get("z_loss", 0.0)
    one, two = alpha * derivative * sign * rest, 2 * z_loss * lse * p1
    factor = np.where(y, options["alpha"], 1 - options["alpha"]) if "alpha" in options else np.longdouble(1)
    one, two = factor * one, factor * two
    losses = factor * (alpha * losses + z_loss * lse**2)
    return losses, slope * (one + two), slope, abs(one) + abs(two)


def make(shape: tuple[int, ...], dtype: str, scale: float = 3.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(len(shape))
    z = np.asarray(rng.normal(size=shape) * scale).astype(DTYPES[dtype])
    return z, np.asarray(rng.random(shape) < 0.4)


@each_option
@pytest.mark.parametrize("dtype", DTYPES)
def test_from_the_definition(option: str, dtype: str) -> None:
    options, eps = OPTIONS[option], 2.0**-52 if dtype == "float64" else 2.0**-23
    rounding = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 100 * eps)
    for shape, scale in itertools.product(SHAPES, (1.0, 20.0)):
        z, y = make(shape, dtype, scale)
        expected, derivative, slope, terms = exact(z.astype(np.float64), y, options)
        losses, grad = xent.binary_cross_entropy_with_grad(z, y, reduction="none", **options)
        assert losses.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert grad.dtype == z.dtype
        np.testing.assert_allclose(losses, expected.astype(np.float64), rtol=100 * eps, atol=1e-37)
        # A capped slope is rounded as 1 − tanh².
        allowed = (rounding * slope + (8 * eps if "softcap" in options else 0.0)) * terms
        allowed = allowed + (2.0**-24 if dtype == "float16" else 1e-37)
        assert (np.abs(grad.astype(np.longdouble) - derivative) <= allowed).all()
        for reduction, whole in (("sum", expected.sum()), ("mean", expected.sum() / max(z.size, 1))):
            loss = xent.binary_cross_entropy(z, y, reduction=reduction, **options)
            np.testing.assert_allclose(float(loss), float(whole), rtol=16 * eps)


@each_option
def test_layouts_and_in_place(option: str) -> None:
    z, y = make((31, 33), "float32")
    weight = np.random.default_rng(0).random((31, 1)) * np.ones(33)
    options = OPTIONS[option] | {"sample_weight": weight}
    loss, grad = xent.binary_cross_entropy_with_grad(z, y, **options)
    wide = np.zeros((31, 66), np.float32)
    wide[:, ::2] = z
    for other in (np.asfortranarray(z), wide[:, ::2], z[::-1, ::-1].copy()[::-1, ::-1]):
        for out in (None, np.empty_like(wide)[:, ::2], other):
            found, gradient = xent.binary_cross_entropy_with_grad(
                other, np.asfortranarray(y), out=out, **options
            )
            assert found == loss
            np.testing.assert_array_equal(gradient, grad)
            assert out is None or gradient is out
        other[...] = z


@each_option
def test_same_bits_with_and_without_the_gradient_on_any_number_of_threads(option: str) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    z, y = make(SHAPES[-1], "float32")
    weight = np.random.default_rng(0).random(z.shape)
    found = set()
    for threads in (1, 2, 3):
        with threadpoolctl.threadpool_limits(threads):
            loss, grad = xent.binary_cross_entropy_with_grad(z, y, sample_weight=weight, **OPTIONS[option])
            alone = xent.binary_cross_entropy(z, y, sample_weight=weight, **OPTIONS[option])
            found.add((loss.tobytes(), alone.tobytes(), grad.tobytes()))
    ((loss_bits, alone_bits, _),) = found
    assert loss_bits == alone_bits


@each_option
def test_labels_that_are_none_and_elements_that_do_not_count(option: str) -> None:
    z = np.array([0.0, np.nan, 2.0, np.inf, -np.inf, 1.0], np.float32)
    labels = np.array([2, 1, -100, 1, 0, -1])
    weight = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    losses, grad = xent.binary_cross_entropy_with_grad(
        z, labels, reduction="none", sample_weight=weight, validate=False, **OPTIONS[option]
    )
    for values in (losses, grad):
        np.testing.assert_array_equal(np.isnan(values), [True, False, False, True, False, True])
        np.testing.assert_array_equal(values[[1, 2, 4]], 0)


@each_option
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_labels_are_the_labels(option: str, dtype: str) -> None:
    z, y = make((7, 9), dtype)
    labels = np.where(np.arange(9) % 4 == 1, -100, y)
    z[:, 1] = np.nan
    for reduction in ("mean", "sum", "none"):
        expected = xent.binary_cross_entropy_with_grad(z, labels, reduction=reduction, **OPTIONS[option])
        for kind in (dtype, "float64"):
            q = labels.astype(DTYPES[kind])
            found = xent.binary_cross_entropy_with_grad(z, q, reduction=reduction, **OPTIONS[option])
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    assert np.isfinite(expected[0]).all()
    assert not expected[1][:, [1, 5]].any()


@each_option
def test_floats_that_are_no_labels(option: str) -> None:
    z, q = np.zeros(4), np.array([0.0, 1.0, 0.25, -100.0])
    if {"focal_gamma", "poly1_epsilon"} & OPTIONS[option].keys():
        with pytest.raises(ValueError, match=r"`targets` must be 0 or 1, .* got 0\.25 at row 2"):
            xent.binary_cross_entropy(z, q, **OPTIONS[option])
        losses, grad = xent.binary_cross_entropy_with_grad(
            z, q, reduction="none", validate=False, **OPTIONS[option]
        )
        for values in (losses, grad):
            np.testing.assert_array_equal(np.isnan(values), [False, False, True, False])
    else:
        assert np.isfinite(xent.binary_cross_entropy(z, q, **OPTIONS[option]))
    with pytest.raises(ValueError, match=r"`targets` must be in \[0, 1\]; got -100.0 at row 3"):
        xent.binary_cross_entropy(z, q, ignore_index=7, **OPTIONS[option])


def test_alpha_and_probabilities() -> None:
    z, q = np.array([0.3, -1.0, 2.0]), np.array([0.0, 0.25, 1.0])
    losses = xent.binary_cross_entropy(z, q, reduction="none")
    found = xent.binary_cross_entropy(z, q, reduction="none", alpha=0.3)
    np.testing.assert_allclose(found, losses * [0.7, 0.6, 0.3], rtol=1e-15)
    np.testing.assert_allclose(xent.binary_cross_entropy(z, q, alpha=0.3), found.mean(), rtol=1e-15)
    z[2] = np.nan
    losses, grad = xent.binary_cross_entropy_with_grad(z, np.array([0, 0, 1]), reduction="none", alpha=0.0)
    assert losses[2] == grad[2] == 0


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}, {"z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e39, 1e-42])
def test_weights_that_float32_does_not_have(size: float, dtype: str, options: dict[str, Any]) -> None:
    z, y = np.array([0.3, -1.0, 2.0]).astype(DTYPES[dtype]), np.array([0, 1, 1])
    expected, derivative = xent.binary_cross_entropy_with_grad(z, y, **options)
    loss, grad = xent.binary_cross_entropy_with_grad(z, y, sample_weight=np.full(3, size), **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    rounding = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 1e-6)
    np.testing.assert_allclose(grad.astype(float), derivative.astype(float), rtol=rounding)


@pytest.mark.parametrize("name", ["focal", "z-loss"])
def test_memory_is_that_of_the_blocks(name: str) -> None:
    z = np.zeros((1 << 11, 1 << 11), np.float32)
    out, labels = np.empty_like(z), np.zeros(z.shape, np.int64)
    tracemalloc.start()
    xent.binary_cross_entropy_with_grad(z, labels, out=out, **OPTIONS[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < z.nbytes / 2
