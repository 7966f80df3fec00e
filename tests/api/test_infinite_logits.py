"""Logits of −inf, +inf and NaN: probability and gradient 0, or NaN in that row alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xent
from tests.api.test_semantics import LABELS, LOGITS, Array, each_width, widen
from tests.tables.tolerance import DTYPES
from tests.tables.variants import SOME_OPTIONS, each_of_some_options


@pytest.mark.parametrize(
    "options", [o for o in SOME_OPTIONS.values() if "label_smoothing" not in o], ids="+".join
)
@each_width
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_at_minus_infinity(dtype: str, num_classes: int, options: dict[str, Any]) -> None:
    """Probability and gradient exactly 0, and the class might as well not be there."""
    logits = widen(LOGITS, num_classes).astype(DTYPES[dtype])
    logits[:, 1] = -np.inf
    labels = np.where(LABELS == 1, 2, LABELS)
    options = {k: np.ones(num_classes) if k == "class_weight" else v for k, v in options.items()}
    loss, grad = xent.cross_entropy_with_grad(logits, labels, **options)
    assert np.isfinite(loss)
    assert np.isfinite(grad.astype(float)).all()
    np.testing.assert_array_equal(grad[:, 1].astype(float), 0)
    np.testing.assert_array_equal(xent.softmax(logits)[:, 1].astype(float), 0)
    product = xent.cross_entropy_hvp(logits, labels, np.ones_like(logits), **options)
    np.testing.assert_array_equal(product[:, 1].astype(float), 0)
    if "class_weight" in options:
        options = options | {"class_weight": np.ones(num_classes - 1)}
    without = xent.cross_entropy(np.delete(logits, 1, 1), labels - (labels > 1), **options)
    np.testing.assert_allclose(loss, without, rtol=1e-13 if dtype == "float64" else 1e-6)


@each_width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}, {"softcap": 9.0}])
def test_label_at_minus_infinity(dtype: str, num_classes: int, options: dict[str, Any]) -> None:
    """Loss +inf, finite gradient."""
    logits = widen(LOGITS, num_classes).astype(DTYPES[dtype])
    logits[2, LABELS[2]] = -np.inf
    losses, grad = xent.cross_entropy_with_grad(logits, LABELS, reduction="none", **options)
    assert losses[2] == np.inf
    assert np.isfinite(np.delete(losses, 2)).all()
    assert np.isfinite(grad.astype(float)).all()
    if not options:
        p = xent.softmax(logits[2].astype(np.float64))
        np.testing.assert_allclose(grad[2].astype(float), p - np.eye(num_classes)[LABELS[2]], atol=1e-2)


def test_dense_mass_at_minus_infinity() -> None:
    logits = LOGITS.copy()
    logits[:, 0] = -np.inf
    q = np.full((6, 5), 0.25)
    q[:, 0] = 0  # 0·(−inf) = 0
    loss, grad = xent.cross_entropy_with_grad(logits, q)
    np.testing.assert_allclose(loss, xent.cross_entropy(logits[:, 1:], q[:, 1:]), rtol=1e-14)
    np.testing.assert_array_equal(grad[:, 0], 0)
    q[3, 0] = 0.5
    losses, grad = xent.cross_entropy_with_grad(logits, q, reduction="none")
    np.testing.assert_array_equal(np.isinf(losses), np.arange(6) == 3)
    assert np.isfinite(grad).all()


def test_class_weight_zero_silences_a_label_at_minus_infinity() -> None:
    logits = LOGITS.copy()
    logits[2, LABELS[2]] = -np.inf
    weight = np.ones(5)
    weight[LABELS[2]] = 0
    loss, grad = xent.cross_entropy_with_grad(logits, LABELS, class_weight=weight)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(grad[2], 0)


BAD_ROWS: dict[str, Callable[[int], Array]] = {
    "a NaN": lambda k: np.where(np.arange(k) == 3, np.nan, 0.5),
    "all NaN": lambda k: np.full(k, np.nan),
    "a +inf": lambda k: np.where(np.arange(k) == 3, np.inf, 0.5),
    "all +inf": lambda k: np.full(k, np.inf),
    "+inf and −inf": lambda k: np.where(np.arange(k) == 3, np.inf, -np.inf),
    "all −inf": lambda k: np.full(k, -np.inf),
    "NaN and −inf": lambda k: np.where(np.arange(k) == k - 1, np.nan, -np.inf),
}


@each_of_some_options
@each_width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_bad_row_is_nan_and_leaks_nowhere(
    bad: str, dtype: str, num_classes: int, options: dict[str, Any]
) -> None:
    options = {k: np.ones(num_classes) if k == "class_weight" else v for k, v in options.items()}
    options = options | {"reduction": "none"}
    logits = widen(LOGITS, num_classes).astype(DTYPES[dtype])
    vector = np.ones_like(logits)
    expected = (
        *xent.cross_entropy_with_grad(logits, LABELS, **options),
        xent.cross_entropy_hvp(logits, LABELS, vector, **options),
    )
    for where in (0, 3, 5):
        spoilt = logits.copy()
        spoilt[where] = BAD_ROWS[bad](num_classes).astype(logits.dtype)
        results = (
            *xent.cross_entropy_with_grad(spoilt, LABELS, **options),
            xent.cross_entropy_hvp(spoilt, LABELS, vector, **options),
        )
        function = xent.CrossEntropyLoss(**options)
        function(spoilt, LABELS)
        results = (*results, function.backward())
        for result, value in zip(results, (*expected, expected[1]), strict=True):
            assert np.isnan(result[where].astype(float)).all()
            rest = np.arange(6) != where
            if result is results[3]:
                close = 0 if options.get("z_loss") or options.get("focal_gamma") else 1
                np.testing.assert_allclose(
                    result[rest].astype(float),
                    value[rest].astype(float),
                    rtol=close * 1e-2,
                    atol=close * 1e-3,
                )
            else:
                np.testing.assert_array_equal(result[rest], value[rest])


def test_statistics_of_bad_rows() -> None:
    for make in BAD_ROWS.values():
        logits = np.stack([np.zeros(5), make(5), np.ones(5)])
        for result in (xent.softmax(logits), xent.log_softmax(logits)):
            assert np.isnan(result[1]).all()
            assert np.isfinite(result[[0, 2]]).all()
        assert np.isfinite(xent.logsumexp(logits)[[0, 2]]).all()
        stats = xent.row_statistics(logits, np.array([0, 0, 0]))
        assert np.isnan([stats.lse[1], stats.log_prob[1], stats.entropy[1]]).all()
