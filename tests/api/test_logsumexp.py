"""`logsumexp` where logits are infinite, beside SciPy; what `softmax` and `log_softmax` say of such rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.special

import xent
from tests.tables.tolerance import DTYPES

Array = np.ndarray[Any, Any]

# Every row of these numbers.
ROWS = np.array(list(itertools.product([-np.inf, 0.0, 1.5, np.inf, np.nan], repeat=3)))
# Narrow and wide rows, and those of strides, go through different kernels.
WIDTHS = [3, 40, 700]


def widened(num_classes: int) -> Array:
    """The rows between excluded classes."""
    wide = np.full((len(ROWS), num_classes), -np.inf)
    wide[:, num_classes // 2 - 1 : num_classes // 2 + 2] = ROWS
    return wide


def of_scipy(logits: Array, axis: int) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(scipy.special.logsumexp(logits.astype(np.float64), axis))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", WIDTHS)
def test_scipy(num_classes: int, dtype: str) -> None:
    logits = widened(num_classes).astype(DTYPES[dtype])
    expected = of_scipy(logits, -1)
    rtol = 1e-15 if dtype == "float64" else 1e-6
    for z, axis in (
        (logits, -1),
        (logits, 1),
        (np.asfortranarray(logits), 1),
        (logits.T, 0),
        (logits.T, -2),
        (np.ascontiguousarray(logits.T), 0),
        (np.repeat(logits, 2, 1)[:, ::2], 1),
    ):
        lse = xent.logsumexp(z, axis)
        np.testing.assert_allclose(lse, expected, rtol=rtol)
        assert lse.dtype == (np.float64 if dtype == "float64" else np.float32)
    block = logits[:120].reshape(4, 5, 6, num_classes)
    for axis in range(4):
        np.testing.assert_allclose(
            xent.logsumexp(np.moveaxis(block, -1, axis), axis), expected[:120].reshape(4, 5, 6), rtol=rtol
        )


@pytest.mark.parametrize(
    "row", [[-np.inf, -np.inf], [np.inf, 0.0], [np.inf, -np.inf], [np.nan, np.inf], [3.0]]
)
def test_a_single_row_is_a_number(row: list[float]) -> None:
    lse = xent.logsumexp(row)
    assert isinstance(lse, np.float64)
    np.testing.assert_equal(lse, of_scipy(np.array(row), -1)[()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_nothing(dtype: str) -> None:
    np.testing.assert_array_equal(xent.logsumexp(np.zeros((3, 0), DTYPES[dtype])), np.full(3, -np.inf))
    assert xent.logsumexp(np.zeros((0, 3), DTYPES[dtype])).shape == (0,)
    np.testing.assert_array_equal(xent.logsumexp(np.zeros((0, 3), DTYPES[dtype]), 0), np.full(3, -np.inf))


def test_a_recursion_in_log_space() -> None:
    """The forward algorithm of a chain that cannot stay where it is: log-probabilities of −inf on the way."""
    with np.errstate(divide="ignore"):
        step = np.log([[0.0, 1.0], [1.0, 0.0]])
        state = np.log([1.0, 0.0])
    for n in range(1, 6):
        state = xent.logsumexp(state[:, None] + step, 0)
        np.testing.assert_array_equal(np.exp(state), [1 - n % 2, n % 2])


def test_the_input_is_not_written() -> None:
    z = np.array([[-np.inf, -np.inf], [np.nan, 0.0]])
    z.flags.writeable = False
    xent.logsumexp(z)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_without_a_softmax_is_nan(dtype: str) -> None:
    logits = ROWS.astype(DTYPES[dtype])
    with np.errstate(invalid="ignore"):
        has_none = ~np.isfinite(of_scipy(logits, -1))
    for function in (xent.softmax, xent.log_softmax):
        found = function(logits).astype(float)
        np.testing.assert_array_equal(np.isnan(found).all(-1), has_none)
        np.testing.assert_array_equal(np.isnan(found).any(-1), has_none)


@pytest.mark.parametrize("dtype", ["float64", "float16", "float32"])
def test_log_softmax_beyond_the_largest_number_is_minus_infinity(dtype: str) -> None:
    large = np.finfo(dtype).max
    row = np.array([large, -large, 0], dtype)
    expected = [0, -np.inf, -large]
    for z, axis in ((row, 0), (row[None], 1), (row[:, None], 0)):
        np.testing.assert_array_equal(xent.log_softmax(z, axis).ravel(), expected)
