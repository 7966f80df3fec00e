"""A row that does not count has loss 0 and gradient 0 whatever it holds: the functions on arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xent

K = 3
HELD = {"NaN": np.nan, "+inf": np.inf, "-inf": -np.inf}
EVERY = {"z_loss": 0.1, "softcap": 5.0, "temperature": 0.7}

ARRAYS = {
    "cross_entropy": lambda z, y, w, **o: xent.cross_entropy_with_grad(z, y, sample_weight=w, **o),
    "hvp": lambda z, y, w, **o: (0.0, xent.cross_entropy_hvp(z, y, np.ones_like(z), sample_weight=w, **o)),
    "linear": lambda z, y, w, **o: of_arrays(xent.linear_cross_entropy_with_grad, z, y, w, **o),
    "binary": lambda z, y, w, **o: xent.binary_cross_entropy_with_grad(
        z[:, 0], np.where(y > 0, 1, y), sample_weight=w, **o
    ),
}


def of_arrays(function: Callable[..., Any], z: Any, y: Any, w: Any, **options: Any) -> Any:
    value, gradients = function(z, np.ones((K, K)) + np.eye(K), y, sample_weight=w, **options)
    return value, (gradients.dinputs, gradients.dweight)


@pytest.mark.parametrize("way", ["ignored", "weight 0", "class of weight 0"])
@pytest.mark.parametrize(
    "options", [{}, {"focal_gamma": 2.0, **EVERY}, {"label_smoothing": 0.1, **EVERY}], ids=str
)
@pytest.mark.parametrize("function", ARRAYS)
def test_a_row_that_does_not_count(function: str, options: dict[str, Any], way: str) -> None:
    z, y, w = 2 * np.random.default_rng(0).normal(size=(4, K)), np.array([0, 1, 1, 0]), None
    kept, options = [0, 2, 3], dict(options)
    if way == "ignored":
        y[1] = -100
    elif way == "weight 0":
        w = np.array([0.5, 0.0, 2.0, 1.0])
    elif function == "binary" or options:
        pytest.skip("the row counts")
    else:
        y[1], options["class_weight"] = 2, np.array([0.5, 2.0, 0.0])  # the last class
    value, expected = ARRAYS[function](z[kept], y[kept], w if w is None else w[kept], **options)
    for held in HELD.values():
        z[1] = held
        found, gradients = ARRAYS[function](z, y, w, **options)
        np.testing.assert_allclose(found, value, rtol=1e-12)
        each = gradients if isinstance(gradients, tuple) else (gradients,)
        assert not each[0][1].any()
        for gradient, of_kept in zip(
            each, expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            gradient = gradient[kept] if gradient.shape != of_kept.shape else gradient
            np.testing.assert_allclose(gradient, of_kept, rtol=1e-9, atol=1e-12)
