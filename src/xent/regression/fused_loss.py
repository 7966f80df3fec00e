"""The loss of a dense linear model, its gradient and Hessian product, by kernels that read X once."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.core import head
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.kernels import cpu_linear

Array = np.ndarray[Any, Any]


class FusedLoss:
    """The mean loss (4) of ``features @ weight.T + bias``.

    Shapes: ``features (N, D)``, ``weight (C, D)``, ``bias (C,)``; C is 1 for two classes. Products are
    computed in the wider of the dtypes of features and weight.
    """

    def __init__(self, features: Array, target: Target, spec: LossSpec, divisor: float) -> None:
        self.features = features
        self.target = target
        self.spec = spec
        self.scale = 1.0 / divisor
        self.target_arguments = (target.labels, target.dense, spec.link)
        self.want = head.required_stats(spec, target)

    def loss_and_grad(self, weight: Array, bias: Array) -> tuple[float, Array, Array]:
        """(loss, gradients in weight and in bias), float64. Reads X once if (1) is linear, else twice."""
        model = (self.features, weight, bias, *self.target_arguments)
        stats = None
        if not self.spec.is_linear:
            stats = cpu_linear.linear_stats(*model, self.want, zero_class=len(weight) == 1)
        cotangents = head.cotangents(stats, self.target, self.spec, self.scale, np)
        stats, dweight, dbias = cpu_linear.linear_stats_and_grad(
            *model, cotangents, self.want, zero_class=len(weight) == 1
        )
        losses = head.row_losses(stats, self.target, self.spec, np)
        return float(np.add.reduce(losses)) * self.scale, dweight, dbias

    def hvp(self, weight: Array, bias: Array, vector: Array, vector_bias: Array) -> tuple[Array, Array]:
        """The product of the Hessian in (weight, bias) with (vector, vector_bias)."""
        model = (self.features, weight, bias, *self.target_arguments)
        stats: Any = None
        if not self.spec.is_linear:
            stats = cpu_linear.linear_stats(*model, self.want, zero_class=len(weight) == 1)
        cotangents = head.cotangents(stats, self.target, self.spec, self.scale, np)
        curvatures = head.curvatures(stats, self.target, self.spec, self.scale, np)
        return cpu_linear.linear_hvp(
            *model, cotangents, curvatures, vector, vector_bias, zero_class=len(weight) == 1
        )
