"""`xent.jax.softmax`, `log_softmax` and `logsumexp` against NumPy's, with their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import xent.jax  # noqa: E402

Array = Any
INF = np.inf
FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
ODD = np.array(
    [[0, -INF, 1], [np.nan, 0, 1], [INF, 0, 1], [-INF] * 3, [1, 1, -30], [-1e30, 1e30, 0], [3e38, -3e38, 1]],
    np.float32,
)
each = pytest.mark.parametrize("name", FUNCTIONS)


@each
def test_values_are_numpys(name: str) -> None:
    function, expected = jax.jit(getattr(xent.jax, name), static_argnames="axis"), getattr(xent, name)
    z = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32) * 10
    for axis in (-1, 0, 1):
        np.testing.assert_allclose(function(z, axis=axis), expected(z, axis=axis), rtol=2e-6, atol=1e-37)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(function(ODD), expected(ODD), rtol=2e-6)
    for dtype in ("float16", "bfloat16"):
        half = jnp.asarray(z).astype(dtype)
        found, wide = function(half), expected(np.asarray(half, np.float32))
        assert found.dtype == ("float32" if name == "logsumexp" else dtype)
        rtol = 2e-6 if name == "logsumexp" else float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(found, np.float32), wide, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1,), (2, 1)], ids=str)
@each
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    z = np.zeros(shape, np.float32)
    np.testing.assert_array_equal(getattr(xent.jax, name)(z), getattr(xent, name)(z))
    dlogits = jax.grad(lambda x: getattr(xent.jax, name)(x).sum())(z)
    np.testing.assert_array_equal(dlogits, np.ones(shape) if name == "logsumexp" else np.zeros(shape))


@each
def test_derivatives(name: str, x64: None) -> None:
    z = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)) * 2)
    f = jax.jit(getattr(xent.jax, name))
    check_grads(f, (z,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


@each
def test_odd_rows_keep_to_themselves(name: str) -> None:
    """NaN in the rows without a softmax alone, in both modes; and −inf has derivative 0."""
    f = getattr(xent.jax, name)
    factors = np.arange(1.0, 4.0, dtype=np.float32)
    reverse = jax.grad(lambda z: (factors[: 1 if name == "logsumexp" else 3] * f(z)[0]).sum())(ODD[:1])
    forward = jax.jacfwd(f)(ODD[:1])[0, ..., 0, :]
    np.testing.assert_allclose(reverse[0], factors @ forward if forward.ndim > 1 else forward, rtol=1e-6)
    assert np.isfinite(reverse).all()
    assert reverse[0, 1] == (-6.0 * 0 if name != "log_softmax" else 2.0)
    dlogits = jax.grad(lambda z: f(z).sum())(ODD)
    np.testing.assert_array_equal(np.isnan(dlogits).all(-1), [False, True, True, True, False, False, False])


@each
def test_what_is_not_logits_is_refused(name: str) -> None:
    f = getattr(xent.jax, name)
    for wrong, error in (
        (np.zeros(3, bool), TypeError),
        (np.zeros(3, complex), TypeError),
        (1.0, ValueError),
    ):
        with pytest.raises(error, match="`logits` must"):
            f(wrong)
    with pytest.raises(ValueError, match=r"`axis` must be in \[-2, 2\)"):
        f(np.zeros((2, 3)), axis=2)


def test_the_tail() -> None:
    z = np.array([25.0, 5.0], np.float32)
    found = jax.jit(xent.jax.log_softmax)(z)
    np.testing.assert_allclose(found, [-np.log1p(np.exp(-20.0)), -20.0], rtol=1e-6)
    np.testing.assert_allclose(
        jax.jacfwd(xent.jax.log_softmax)(z)[0], [np.exp(-20.0), -np.exp(-20.0)], rtol=2e-6
    )
