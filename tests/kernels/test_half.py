"""Every number of 16 bits through the kernels, bit for bit: read as NumPy reads it, written as it rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xent
from tests.conftest import Backend
from tests.tables.tolerance import DTYPES
from xent.core.contract import Cotangents
from xent.core.link import Link

Array = np.ndarray[Any, Any]

ALL = np.arange(2**16, dtype=np.uint16)
halves = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
# Few classes and many, on rows and on columns; 300 is many vectors and a rest, 515 of odd rows no whole line.
SHAPES = {"one class": 1, "few": 7, "a rest": 19, "many": 300, "odd": 515}
ORDERS: dict[str, Callable[[tuple[int, int], Any], Array]] = {
    "rows": np.empty,
    "columns": lambda shape, dtype: np.empty(shape[::-1], dtype).T,
    "apart": lambda shape, dtype: np.empty((shape[0], 2 * shape[1]), dtype)[:, ::2],
    "offset": lambda shape, dtype: np.empty((shape[0], shape[1] + 1), dtype)[:, 1:],
}


def parts(num_classes: int) -> Iterator[slice]:
    """Of all numbers, as many rows at a time as keep the arrays small."""
    step = 2**16 if num_classes < 100 else 2**13
    for start in range(0, 2**16, step):
        yield slice(start, start + step)


def alone(values: Array, num_classes: int, make: Callable[[tuple[int, int], Any], Array]) -> Array:
    """Rows of −inf but for one of ``values`` each, at one place after the other: log Σ exp is that number."""
    logits = make((len(values), num_classes), values.dtype)
    logits[...] = -np.inf
    rows = np.arange(len(values))
    logits[rows, rows % num_classes] = values
    return logits


@halves
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_is_read_as_it_is(backend: Backend, shape: str, order: str, dtype: str) -> None:
    for part in parts(SHAPES[shape]):
        values = ALL[part].view(DTYPES[dtype])
        with np.errstate(invalid="ignore"):  # signalling NaNs, of which ARM tells
            expected = values.astype(np.float32)
        expected[~np.isfinite(expected)] = np.nan  # ∞ and a row of −∞ have no log Σ exp
        logits = alone(values, SHAPES[shape], ORDERS[order])
        for name, kernels in backend.each():
            lse = kernels.row_stats(logits, None, None, Link(), ("lse",)).lse
            np.testing.assert_array_equal(lse.astype(np.float32), expected, name)


def between(dtype: str) -> Array:
    """Every finite number, halfway to the next, and the float32 on both sides: where rounding turns.

    But those that are 0, or that the kernels, which compute in float32, take for it (below 1e-38).
    """
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaN
        values = np.unique(ALL.view(DTYPES[dtype]).astype(np.float64))
    values = values[np.isfinite(values)]
    halfway = (values[:-1] + values[1:]) / 2
    last = values[-1] + (values[-1] - values[-2]) / 2  # from here on infinity
    halfway = np.concatenate([halfway, [last, -last]]).astype(np.float32)
    below, above = (np.nextafter(halfway, np.float32(to)) for to in (-np.inf, np.inf))
    found = np.concatenate([values.astype(np.float32), halfway, below, above])
    return found[np.abs(found) >= np.finfo(np.float32).tiny]


@halves
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_rounding_is_to_the_nearest(backend: Backend, shape: str, order: str, dtype: str) -> None:
    """The gradient of log Σ exp where one class has p = 1, times an upstream gradient: any float32."""
    num_classes, wanted = SHAPES[shape], between(dtype)
    rng = np.random.default_rng(0)
    if num_classes >= 100:  # a tenth of them, and what is beside the largest and the smallest
        ends = np.argsort(np.abs(wanted))[np.r_[0:200, -200:0]]
        wanted = np.concatenate([wanted[ends], rng.choice(wanted, wanted.size // 10)])
    with np.errstate(over="ignore"):
        expected = wanted.astype(DTYPES[dtype])
    for start in range(0, wanted.size, 2**14):
        upstream = wanted[start : start + 2**14]
        logits = alone(np.zeros(upstream.size, DTYPES[dtype]), num_classes, ORDERS[order])
        place = np.arange(upstream.size), np.arange(upstream.size) % num_classes
        for name, kernels in backend.each():
            out = ORDERS[order](logits.shape, logits.dtype)
            out[...] = 7
            cotangents = Cotangents(lse=upstream.astype(np.float64))
            kernels.row_stats_and_grad(logits, None, None, Link(), cotangents, (), out)
            found = out[place]
            np.testing.assert_array_equal(
                found.view(np.uint16), expected[start : start + 2**14].view(np.uint16), name
            )
            rest = out.copy()
            rest[place] = 0
            assert not rest.astype(np.float32).any()


@halves
@given(
    seed=st.integers(0, 2**32),
    num_classes=st.integers(1, 600),
    width=st.floats(0, 60),
    order=st.sampled_from(list(ORDERS)),
)
def test_softmax_is_that_of_float32_rounded(
    seed: int, num_classes: int, width: float, order: str, dtype: str
) -> None:
    """Probabilities from 1 down to those below the smallest number."""
    rng = np.random.default_rng(seed)
    logits = ORDERS[order]((5, num_classes), DTYPES[dtype])
    logits[...] = rng.uniform(-width, 0, logits.shape)
    out = ORDERS[order](logits.shape, logits.dtype)
    wide_logits = ORDERS[order](logits.shape, np.float32)
    wide_logits[...] = logits
    wide = xent.softmax(wide_logits)
    assert xent.softmax(logits, out=out) is out
    np.testing.assert_array_equal(out, wide.astype(logits.dtype))
    np.testing.assert_array_equal(xent.softmax(logits), out)
