"""The certificate bounds the distance from scikit-learn's optimum, at every step of every solver."""

from __future__ import annotations

import numpy as np
import pytest

from tests.regression.solvers.problems import EXACT, Problem, table
from xent.regression import solvers
from xent.regression.solvers import certificate, minimise


def test_the_certificate_bounds_the_distance_from_the_optimum(problem):
    """At every step of every solver, at random places, and at places a little off the optimum."""
    objective = problem.objective
    for solver in solvers.SOLVERS:
        steps = []
        minimise(
            objective, problem.start, solver=solver, max_iter=30, tol=1e-10, random_state=0,
            on_step=lambda step, steps=steps: steps.append((step.state.point.parameters, step.counts.gap)),
        )  # fmt: skip
        for params, gap in steps:
            assert gap >= problem.excess(params) - 1e-13
    best = steps and minimise(objective, problem.start, solver="newton-cg", max_iter=100, tol=1e-12).params
    rng = np.random.default_rng(3)
    for size in (1e-6, 1e-4, 1e-2, 1.0, 10.0):
        params = best + size * rng.standard_normal(best.size)
        assert certificate.Certificate(objective).gap(params, *objective(params)) >= problem.excess(params)


@pytest.mark.parametrize("seed", range(40))
def test_the_certificate_holds_on_random_problems(seed):
    rng = np.random.default_rng(seed)
    num_classes, rows = int(rng.integers(2, 7)), int(rng.integers(10, 200))
    features = int(rng.integers(1, 12))
    X, y = table(rows, features, num_classes, seed, noise=10 ** rng.uniform(-1, 1), offset=rng.uniform(-5, 5))
    X *= 10 ** rng.uniform(-2, 2, features)
    if rng.random() < 0.3:
        y = rng.dirichlet(np.full(num_classes, 10 ** rng.uniform(-1, 1)), rows)
    problem = Problem(
        X, y, num_classes=num_classes, alpha=10 ** rng.uniform(-7, 1), intercept=bool(rng.random() < 0.8),
        label_smoothing=float(rng.choice([0.0, 0.1])), weight=rng.uniform(0.1, 3.0, rows),
    )  # fmt: skip
    objective = problem.objective
    best = minimise(objective, problem.start, solver="newton-cg", max_iter=300, tol=1e-13)
    problem._optimum = objective(best.params)[0]
    assert best.optimality_gap < 1e-10
    gaps = []
    for solver in EXACT:
        minimise(
            objective, problem.start, solver=solver, max_iter=300, tol=1e-9,
            on_step=lambda step: gaps.append((problem.excess(step.state.point.parameters), step.counts.gap)),
        )  # fmt: skip
    for size in (1e-5, 1e-3, 0.1):
        params = best.params * (1 + size * rng.standard_normal(best.params.size))
        gap = certificate.Certificate(objective).gap(params, *objective(params))
        gaps.append((problem.excess(params), gap))
    for excess, gap in gaps:
        assert gap >= excess - 1e-12


@pytest.mark.parametrize("solver", EXACT)
def test_without_penalty_the_bound_is_over_a_ball(solver):
    problem = Problem(*table(noise=2.0), num_classes=3, alpha=0.0)
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=200, tol=1e-8)
    assert result.message == ""
    assert -1e-13 <= problem.excess(result.params) <= result.optimality_gap + 1e-13
    assert result.optimality_gap <= 1e-8
