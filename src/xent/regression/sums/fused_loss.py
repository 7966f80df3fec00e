"""The loss of a dense linear model, its gradient and Hessian product, by kernels that read X once.

Shapes: ``features (N, D)``, ``weight (C, D)``, ``bias (C,)``; C is 1 for two classes. Products are computed
in the wider of the dtypes of features and weight. ``scale`` is 1/D of (4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core import head
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.kernels import cpu_linear

Array = np.ndarray[Any, Any]


def loss_and_grad(
    features: Array, target: Target, spec: LossSpec, scale: float, weight: Array, bias: Array
) -> tuple[float, Array, Array]:
    """(loss, gradients in weight and in bias), float64. Reads X once if (1) is linear, else twice."""
    model = (features, weight, bias, target.labels, target.dense, spec.link)
    want = head.required_stats(spec, target)
    stats = None
    if not spec.is_linear:
        stats = cpu_linear.linear_stats(*model, want, zero_class=len(weight) == 1)
    cotangents = head.cotangents(stats, target, spec, scale, np)
    stats, dweight, dbias = cpu_linear.linear_stats_and_grad(
        *model, cotangents, want, zero_class=len(weight) == 1
    )
    losses = head.row_losses(stats, target, spec, np)
    return float(np.add.reduce(losses)) * scale, dweight, dbias


def row_losses(features: Array, target: Target, spec: LossSpec, weight: Array, bias: Array) -> Array:
    """(1) of each row, (N,) float64."""
    model = (features, weight, bias, target.labels, target.dense, spec.link)
    want = head.required_stats(spec, target)
    stats = cpu_linear.linear_stats(*model, want, zero_class=len(weight) == 1)
    return np.asarray(head.row_losses(stats, target, spec, np))


def hvp(
    features: Array,
    target: Target,
    spec: LossSpec,
    scale: float,
    weight: Array,
    bias: Array,
    vector: Array,
    vector_bias: Array,
) -> tuple[Array, Array]:
    """The product of the Hessian in (weight, bias) with (vector, vector_bias)."""
    model = (features, weight, bias, target.labels, target.dense, spec.link)
    stats: Any = None
    if not spec.is_linear:
        want = head.required_stats(spec, target)
        stats = cpu_linear.linear_stats(*model, want, zero_class=len(weight) == 1)
    cotangents = head.cotangents(stats, target, spec, scale, np)
    curvatures = head.curvatures(stats, target, spec, scale, np)
    return cpu_linear.linear_hvp(
        *model, cotangents, curvatures, vector, vector_bias, zero_class=len(weight) == 1
    )
