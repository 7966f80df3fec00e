"""A linear model in one read of its features: logits, statistics and gradient, a block of rows at a time.

The logits of a row are ``features @ weight.T + bias``, after a 0 if ``zero_class``: two classes then need
one row of weights. Like the kernels of `contract` these functions know no options, and ignore the values of
rows that are not read. Cotangents must be known before: if they depend on the statistics, call `linear_stats`
first.

Speed relative to the row kernels between two BLAS products, in blocks that stay in the cache (float32, one
thread, OpenBLAS on AVX-512): with 784 features and 10 classes 2.5, 32 classes 1.3, 64: 1.2, 128: 1.1, 256:
0.95, 512: 0.85; with 30 features and 3 classes 3.8; with 5,000 features and 10 classes 1.9, 128 classes 0.9.
So this kernel is the faster choice up to about 128 classes, two BLAS products beyond 200.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.kernels import _native, cpu

Array = np.ndarray[Any, Any]


def linear_stats(
    features: Array,
    weight: Array,
    bias: Array | None,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    want: tuple[str, ...],
    *,
    zero_class: bool = False,
) -> RowStats:
    """Statistics (N,) float64 (argmax: int64) of the rows of logits, named by ``want``.

    ``features (N, D)`` and ``weight (C, D)`` are float32 or float64, in any strides; the arithmetic is
    in the wider of the two, and ``bias (C,)`` is brought to it. ``labels``, ``dense`` and ``link`` as in
    `contract.Kernels`, for K = C classes, or C + 1 with ``zero_class``.
    """
    stats = _empty(features, want)
    if len(features):
        model = _model(features, weight, bias, labels, dense, link, zero_class)
        _native.linear_stats(**model, **stats._asdict())
    return stats


def linear_stats_and_grad(
    features: Array,
    weight: Array,
    bias: Array | None,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    *,
    zero_class: bool = False,
) -> tuple[RowStats, Array, Array]:
    """`linear_stats`, and the float64 gradients of the weight (C, D) and of a bias (C,).

    The gradient of the logits is summed in the dtype of the arithmetic within a block of rows and in
    float64 over blocks, in the same order for every number of threads.
    """
    stats, dweight, dbias = _empty(features, want), *_gradient(weight)
    if len(features):
        model = _model(features, weight, bias, labels, dense, link, zero_class)
        dl, dx, ds = cpu.native_coefficients(cotangents)
        _native.linear_stats_and_grad(
            **model,
            dl=dl,
            dx=dx,
            ds=ds,
            lse=stats.lse,
            log_prob=stats.log_prob,
            dense_log_prob=stats.dense_log_prob,
            mass=stats.mass,
            dweight=dweight,
            dbias=dbias,
        )
    return stats, dweight, dbias


def linear_hvp(
    features: Array,
    weight: Array,
    bias: Array | None,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    cotangents: Cotangents,
    curvatures: Curvatures,
    vector: Array,
    vector_bias: Array | None,
    *,
    zero_class: bool = False,
) -> tuple[Array, Array]:
    """The Hessian in (weight, bias), times ``vector (C, D)`` and ``vector_bias (C,)``; None for 0."""
    dweight, dbias = _gradient(weight)
    if len(features):
        model = _model(features, weight, bias, labels, dense, link, zero_class)
        dl, dx, ds = cpu.native_coefficients(cotangents)
        ddl, ddx = cpu.native_coefficients(curvatures)
        vector, vector_bias = _parameters(vector, vector_bias, model["weight"].dtype)
        _native.linear_hvp(
            **model,
            dl=dl,
            dx=dx,
            ds=ds,
            ddl=ddl,
            ddx=ddx,
            vector=vector,
            vector_bias=vector_bias,
            dweight=dweight,
            dbias=dbias,
        )
    return dweight, dbias


def _empty(features: Array, want: tuple[str, ...]) -> RowStats:
    return RowStats(**{n: np.zeros(len(features), np.int64 if n == "argmax" else np.float64) for n in want})


def _gradient(weight: Array) -> tuple[Array, Array]:
    return np.zeros(weight.shape), np.zeros(len(weight))


def _model(
    features: Array,
    weight: Array,
    bias: Array | None,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    zero_class: bool,
) -> dict[str, Any]:
    """The arguments that all native calls share, in the dtype of the arithmetic."""
    dtype = np.result_type(features, weight)
    weight, bias = _parameters(weight, bias, dtype)
    return {
        "features": features,
        "weight": weight,
        "bias": bias,
        "zero_class": zero_class,
        "labels": labels,
        "dense": None if dense is None else dense.astype(dtype, copy=False),
        "inv_temperature": 1.0 / link.temperature,
        "softcap": link.softcap or 0.0,
    }


def _parameters(weight: Array, bias: Array | None, dtype: Any) -> tuple[Array, Array | None]:
    return weight.astype(dtype, copy=False), None if bias is None else np.ascontiguousarray(bias, dtype)
