"""A dense linear model under a loss: the one-read kernels in the order that the head asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core import head
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.kernels import cpu_linear

Array = np.ndarray[Any, Any]


class FusedModel:
    """The mean loss (4) of ``features @ weight.T + bias``; one row of weights stands for two classes.

    ``features (N, D)``, ``weight (C, D)``, ``bias (C,)``: products in the wider of the first two's dtypes.
    """

    def __init__(self, features: Array, target: Target, spec: LossSpec, divisor: float) -> None:
        self.features = features
        self.target = target
        self.spec = spec
        self.scale = 1.0 / divisor
        self.measure = (target.labels, target.dense, spec.link)
        self.want = head.wanted(spec, target)

    def loss_and_grad(self, weight: Array, bias: Array) -> tuple[float, Array, Array]:
        """Loss, and its gradients in weight and bias, in float64: one read where (1) is linear."""
        model = (self.features, weight, bias, *self.measure)
        stats = None
        if not self.spec.is_linear:
            stats = cpu_linear.linear_stats(*model, self.want, zero_class=len(weight) == 1)
        cotangents = head.cotangents(stats, self.target, self.spec, self.scale, np)
        found, dweight, dbias = cpu_linear.linear_stats_and_grad(
            *model, cotangents, self.want, zero_class=len(weight) == 1
        )
        losses = head.row_losses(found, self.target, self.spec, np)
        return float(np.add.reduce(losses)) * self.scale, dweight, dbias

    def hvp(self, weight: Array, bias: Array, vector: Array, vector_bias: Array) -> tuple[Array, Array]:
        """The Hessian in (weight, bias), times a vector."""
        model = (self.features, weight, bias, *self.measure)
        stats: Any = None
        if not self.spec.is_linear:
            stats = cpu_linear.linear_stats(*model, self.want, zero_class=len(weight) == 1)
        cotangents = head.cotangents(stats, self.target, self.spec, self.scale, np)
        curvatures = head.curvatures(stats, self.target, self.spec, self.scale, np)
        return cpu_linear.linear_hvp(
            *model, cotangents, curvatures, vector, vector_bias, zero_class=len(weight) == 1
        )
