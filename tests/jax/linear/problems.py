"""Small linear problems for the tests of `xent.jax.linear`, and the same loss of whole logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import xent.jax

ROWS, WIDTH, CLASSES = 7, 4, 5
CHUNK = {"chunk_bytes": 2 * CLASSES * 8}  # of two rows in float64, of four in float32; the last one is padded


def operands(dtype: Any = np.float64, seed: int = 0) -> tuple[Any, Any, Any]:
    """Inputs (7, 4), weight (5, 4) and bias (5,)."""
    rng = np.random.default_rng(seed)
    shapes = (ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,)
    x, w, b = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return x, w, b


def labels(seed: int = 0) -> Any:
    """Labels (7,), the third of them ignored."""
    return np.random.default_rng(seed).integers(0, CLASSES, ROWS) * (np.arange(ROWS) != 2) + np.where(
        np.arange(ROWS) == 2, -100, 0
    )


def whole(x: Any, w: Any, b: Any, targets: Any, **options: Any) -> Any:
    """The loss of the logits."""
    return xent.jax.cross_entropy(x @ w.T + b, targets, **options)


def chunked(x: Any, w: Any, b: Any, targets: Any, **options: Any) -> Any:
    """The loss of the layer, in several chunks."""
    return xent.jax.linear_cross_entropy(x, w, targets, bias=b, **CHUNK, **options)


def assert_near(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Each array of a tree within ``rtol`` of its own largest entry."""
    pairs = zip(jax.tree_util.tree_leaves(actual), jax.tree_util.tree_leaves(expected), strict=True)
    for a, b in pairs:
        e = np.asarray(b, np.float64)
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol, rtol * np.abs(e).max(initial=1e-30))
