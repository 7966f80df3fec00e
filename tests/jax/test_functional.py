"""`xent.jax.cross_entropy` and `row_statistics` against NumPy's, which has tests of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent
from tests.tables.variants import Variant, every_case

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402


@every_case
def test_loss_and_gradient_are_numpys(variant: Variant, kind: Any) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 5)).astype(np.float32) * 3
    targets, options = variant.make(kind, (6,), 5, rng)
    options["denominator"] = variant.denominator

    def loss(logits: Any) -> Any:
        return xent.jax.cross_entropy(logits, targets, **options)

    expected, gradient = xent.cross_entropy_with_grad(z, targets, **options)
    value, dlogits = jax.value_and_grad(loss)(jnp.asarray(z))
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    np.testing.assert_allclose(dlogits, gradient, rtol=3e-5, atol=1e-7)
    handed = xent.cross_entropy(jnp.asarray(z), targets, **options)
    np.testing.assert_array_equal(handed, value)


def test_row_statistics_are_numpys() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(3, 4, 7)).astype(np.float32), rng.integers(0, 7, (3, 4))
    y[1, 2] = -100
    names = xent.RowStatistics._fields
    expected = xent.row_statistics(z, y, want=names, softcap=5.0)
    found = xent.row_statistics(jnp.asarray(z), y, want=names, softcap=5.0)
    for name, a, b in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
