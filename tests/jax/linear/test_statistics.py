"""`xent.jax.linear_row_statistics` against NumPy's and against that of whole logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402
from tests.jax.linear.problems import CHUNK, assert_near, labels, operands  # noqa: E402

NAMES = xent.RowStatistics._fields


def test_columns_are_numpys() -> None:
    x, w, b = (np.asarray(a) for a in operands(np.float32))
    x, y = np.stack([x, -x]), np.stack([labels(), labels(1)])
    given = {"bias": b, "softcap": 3.0, "temperature": 0.7, "shift": 1, "want": NAMES, **CHUNK}
    expected = xent.linear_row_statistics(x, w, y, **given)
    for found in (
        xent.linear_row_statistics(jnp.asarray(x), w, y, **given),
        xent.jax.linear_row_statistics(x, w.T, y, class_axis=1, **given),
    ):
        for name, a, e in zip(NAMES, found, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6, err_msg=name)


def test_derivatives_are_those_of_whole_logits() -> None:
    x, w, b = operands(np.float32)
    want = ("lse", "log_prob", "entropy", "log_sum_sq_probs", "mean_logits")

    def mixed(columns: Any) -> Any:
        return sum((jnp.sin(c) * (i + 1)).sum() for i, c in enumerate(columns) if c is not None)

    def chunked(x: Any, w: Any) -> Any:
        return mixed(xent.jax.linear_row_statistics(x, w, labels(), bias=b, want=want, **CHUNK))

    def whole(x: Any, w: Any) -> Any:
        return mixed(xent.jax.row_statistics(x @ w.T + b, labels(), want=want))

    found, expected = (jax.grad(f, (0, 1))(x, w) for f in (chunked, whole))
    assert_near(found, expected, 1e-5)


def test_without_labels() -> None:
    x, w, _ = operands(np.float32)
    stats = xent.jax.linear_row_statistics(x, w, **CHUNK)
    assert stats.log_prob is None
    np.testing.assert_allclose(stats.lse, jax.nn.logsumexp(x @ w.T, -1), rtol=1e-6)
    with pytest.raises(ValueError, match="`labels` must be given"):
        xent.jax.linear_row_statistics(x, w, want=("log_prob",))


def test_ignored_rows_are_zero_whatever_they_hold() -> None:
    x, w, _ = operands(np.float32)
    x = x.at[2].set(jnp.nan)

    def total(x: Any, w: Any) -> Any:
        stats = xent.jax.linear_row_statistics(x, w, labels(), **CHUNK)
        return stats.lse.sum() + stats.entropy.sum(), stats

    (dx, dw), stats = jax.grad(total, (0, 1), has_aux=True)(x, w)
    assert [float(column[2]) for column in stats if column is not None] == [0, 0, 0, 0]
    assert (np.asarray(dx)[2] == 0).all()
    assert np.isfinite(dw).all()


def test_labels_are_integers() -> None:
    x, w, _ = operands(np.float32)
    with pytest.raises(TypeError, match="`labels` must have an integer dtype"):
        xent.jax.linear_row_statistics(x, w, np.ones(7))
