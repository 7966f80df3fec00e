"""One variant of the loss on one batch: target, head and kernels of a backend against the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.conftest import Backend
from tests.tables.layouts import make_logits
from tests.tables.tolerance import DTYPES, TOLERANCES, Plain, assert_close, magnitudes
from tests.tables.variants import Kind, Variant
from xent.core import head
from xent.core.contract import Cotangents, Kernels
from xent.engine.batch_loss import Problem
from xent.kernels import reference

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """A loss, and the direction of its Hessian product."""

    problem: Problem
    dtype: str
    vector: Array


def make_case(
    variant: Variant,
    kind: Kind,
    rows: tuple[int, ...],
    num_classes: int,
    dtype: str,
    scale: str,
    reduction: str,
) -> Case:
    rng = np.random.default_rng([num_classes, *rows, len(scale)])
    logits = make_logits(scale, (*rows, num_classes), dtype, rng)
    targets, options = variant.make(kind, rows, num_classes, rng)
    vector = rng.normal(size=logits.shape).astype(DTYPES[dtype])
    denominator = variant.denominator if reduction == "mean" else None
    problem = Problem.from_arguments(logits, targets, reduction, denominator, True, options, reference)
    return Case(problem, dtype, vector)


def check_loss(backend: Backend, case: Case) -> None:
    """Loss, gradient in one pass and in two, and Hessian product."""
    exact = case.problem
    spec, target = exact.spec, exact.target

    def solve(kernels: Kernels) -> tuple[Array, Array, Array, Array]:
        p = Problem(exact.logits, target, spec, exact.reduction, exact.divisor, kernels)
        rounded = kernels is not reference and not isinstance(kernels, Plain)
        out = np.empty((3, *exact.logits.shape), exact.logits.dtype if rounded else np.float64)
        stats = p.stats_for_grad()
        loss, grad = p.loss_and_grad(out[0])
        assert p.loss(p.stats()) == pytest.approx(loss, rel=1e-6, nan_ok=True)
        return loss, grad, p.grad(stats, 1.0, out[1]), p.hvp(case.vector, out[2])

    expected = solve(reference)
    with np.errstate(all="ignore"):
        plain = solve(Plain(TOLERANCES[case.dtype].compute))
        # |f'| ≤ 1 + γ and |f''| as it is: what the head multiplies the kernels' errors by.
        stats = reference.row_stats(exact.logits, target.labels, target.dense, exact.link, ("lse",))
        slopes = Cotangents(2 * spec.z_loss * np.abs(stats.lse), 1 + spec.focal_gamma, target.beta)
        outer = exact.scale * (1.0 if target.weight is None else target.weight)
        bend = head.curvatures(exact.stats(), target, spec, exact.scale, np)
        bound = Cotangents(*(outer * c for c in (slopes[0], slopes[1] * target.alpha, slopes[2])))
        unit = magnitudes(exact.logits, target.labels, target.dense, exact.link, bound, bend, case.vector)
    losses = np.abs(bound.log_prob) * unit.stats["log_prob"]
    losses = losses + np.abs(bound.dense_log_prob) * unit.stats["dense_log_prob"]
    losses = losses + spec.z_loss * outer * unit.stats["lse"] ** 2
    losses = losses if exact.reduction == "none" else losses.sum()
    names = ("loss", "gradient", "gradient of two passes", "Hessian product")
    units = (losses, unit.grad, unit.grad, unit.hvp)
    for name, kernels in backend.each():
        actual = solve(kernels)
        for what, magnitude, *results in zip(names, units, actual, expected, plain, strict=True):
            assert_close(*results, magnitude, f"{name}: {what}", case.dtype, unit.largest)
        assert np.asarray(actual[0]).dtype == (np.float64 if case.dtype == "float64" else np.float32)
