"""What the tests of SoftmaxRegression share: small problems, and when two models are one."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

EXACT = {"tol": 0}  # as far as float64 goes


def small(seed: int = 0, rows: int = 60, classes: int = 3) -> tuple[Array, Array]:
    """(N, 4) features and labels, the classes in turn and some of them hard to tell apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    return rng.standard_normal((rows, 4)) + rng.standard_normal((classes, 4))[y], y


def soft_targets(y: Array, classes: int) -> Array:
    """(N, K) probabilities that lean towards ``y``."""
    q = np.random.default_rng(5).dirichlet(np.ones(classes), len(y))
    return 0.5 * np.eye(classes)[y] + 0.5 * q


def assert_same_model(ours: Any, theirs: Any, atol: float = 1e-6) -> None:
    """Equal coefficients; intercepts but for a constant, which no solver can know."""
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=atol)
    np.testing.assert_allclose(_centred(ours.intercept_), _centred(theirs.intercept_), atol=atol)


def _centred(intercept: Array) -> Array:
    return intercept - intercept.mean() if len(intercept) > 1 else intercept
