"""The row statistics of arrays, of logits and of a linear layer, beside their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from scipy.special import log_softmax, logsumexp

import xent
from xent.kernels import cpu

ROWS, D, K = (4, 5), 3, 9
ALL = xent.RowStatistics._fields
DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": bfloat16}
LINKS = {"no link": {}, "softcap": {"softcap": 3.0, "temperature": 0.8}}


def operands(dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in ((*ROWS, D), (K, D), (K,))]


def of_layer(x: Any, w: Any, b: Any, y: Any = None, **options: Any) -> xent.RowStatistics:
    return xent.linear_row_statistics(x, w, y, bias=b, chunk_bytes=200, **options)


def of_logits(x: Any, w: Any, b: Any, y: Any = None, **options: Any) -> xent.RowStatistics:
    return xent.row_statistics((x.astype(float) @ w.T.astype(float) + b).astype(x.dtype), y, **options)


@pytest.mark.parametrize("way", [of_layer, of_logits])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("ignore_index", [0, -100])
def test_they_are_their_definitions(way: Any, dtype: str, options: Any, ignore_index: int) -> None:
    x, w, b = operands(DTYPES[dtype])
    y = np.arange(20).reshape(ROWS) % K
    y[1, 2] = ignore_index
    x[1, 2] = np.nan
    read = y != ignore_index
    z = x.astype(np.float64) @ w.T.astype(np.float64) + b.astype(np.float64)
    u = z / options.get("temperature", 1.0)
    u = options["softcap"] * np.tanh(u / options["softcap"]) if "softcap" in options else u
    log_p = log_softmax(u, -1)
    stats = way(x, w, b, y, want=ALL, ignore_index=ignore_index, **options)
    expected = {
        "lse": logsumexp(u, -1),
        "log_prob": np.take_along_axis(log_p, y.clip(0)[..., None], -1)[..., 0],
        "entropy": -(np.exp(log_p) * log_p).sum(-1),
        "log_sum_sq_probs": logsumexp(2 * log_p, -1),
        "mean_logits": u.mean(-1),
    }
    # Of 8 or 11 bits: those of the logits.
    tolerance = {"float64": 1e-13, "float32": 3e-6, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
    for name, values in expected.items():
        found = getattr(stats, name)
        assert found.dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_allclose(found, np.where(read, values, 0), rtol=tolerance, atol=tolerance)
    if dtype.startswith("float"):
        np.testing.assert_array_equal(stats.argmax, np.where(read, u.argmax(-1), 0))
        np.testing.assert_array_equal(stats.is_top1, read & (u.argmax(-1) == y))
    assert stats.is_top1.dtype == bool


@pytest.mark.parametrize("way", [of_layer, of_logits])
def test_what_is_not_wanted_is_not_computed(way: Any, monkeypatch: Any) -> None:
    asked, kernel = [], cpu.row_stats

    def row_stats(logits: Any, labels: Any, dense: Any, link: Any, want: Any) -> Any:
        asked.append(tuple(want))
        return kernel(logits, labels, dense, link, want)

    monkeypatch.setattr(cpu, "row_stats", row_stats)
    for want, names in {
        ("log_prob",): ("log_prob",),
        ("is_top1", "lse"): ("lse", "argmax"),
        ("mean_logits",): None,
    }.items():
        asked.clear()
        stats = way(*operands(), np.zeros(ROWS, int), want=want)
        assert set(asked) == ({names} if names else set())
        assert {name for name in ALL if getattr(stats, name) is not None} == set(want)


@pytest.mark.parametrize("way", [of_layer, of_logits])
def test_without_labels(way: Any) -> None:
    assert way(*operands()).log_prob is None
    for name in ("log_prob", "is_top1"):
        with pytest.raises(ValueError, match=f"`labels` must be given where `want` has '{name}'"):
            way(*operands(), want=("lse", name))


def test_rows_that_are_not_finite() -> None:
    z = np.zeros((5, 3))
    z[0, 1], z[1, 0], z[2], z[3, :2] = -np.inf, np.nan, -np.inf, (np.inf, -np.inf)
    stats = xent.row_statistics(z, np.arange(5) % 3, want=ALL)
    np.testing.assert_array_equal(stats.mean_logits, [-np.inf, np.nan, -np.inf, np.nan, 0.0])
    np.testing.assert_array_equal(np.isnan(stats.log_sum_sq_probs), [False, True, True, True, False])
    np.testing.assert_array_equal(stats.is_top1, [True, True, False, True, False])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: str) -> None:
    z = np.random.default_rng(0).normal(size=(6, 40)).astype(DTYPES[dtype])
    expected = xent.row_statistics(z, want=[name for name in ALL if name not in ("log_prob", "is_top1")])
    for view in (np.asfortranarray(z), np.stack([z, z], -1)[..., 0], z[::-1][::-1]):
        found = xent.row_statistics(view, want=("mean_logits", "log_sum_sq_probs"))
        np.testing.assert_allclose(found.mean_logits, expected.mean_logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.log_sum_sq_probs, expected.log_sum_sq_probs, rtol=1e-5)
    single = xent.row_statistics(z[0], 3, want=ALL)
    assert single.mean_logits.shape == single.is_top1.shape == ()
