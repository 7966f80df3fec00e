"""The certificate (section 13 of docs/maths.md): never violated, on random fits of every kind, and how tight.

A gap that is violated by any point's value is violated by the optimum: the references need not be exact.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_digits

import xent
from xent.core.spec import LossSpec
from xent.regression.class_targets import as_target, class_factors, read_targets
from xent.regression.fitting import objective_of
from xent.regression.solvers import minimise
from xent.regression.solvers.certificate import Certificate
from xent.regression.sums.partitions import Local, Partition

ROUNDED = [423, 460, 574]  # ended at a gradient in the intercept of 1e-16, where the objective is 1e-5
ROUNDING = 1e-12  # relative, of two values of the objective


def random_problem(seed):
    """(objective, the same data in one partition of float64), of random sizes, options and storage."""
    rng = np.random.default_rng(seed)
    num_classes, rows, features = (
        int(rng.integers(2, 7)),
        int(rng.integers(10, 200)),
        int(rng.integers(1, 12)),
    )
    y = np.arange(rows) % num_classes
    X = rng.standard_normal((num_classes, features))[y]
    X += 10 ** rng.uniform(-1, 1) * rng.standard_normal(X.shape) + rng.uniform(-5, 5)
    X *= 10 ** rng.uniform(-2, 2, features)
    is_sparse = rng.random() < 0.4
    if is_sparse:
        X *= rng.random(X.shape) < 0.5
    X = X.astype(rng.choice([np.float32, np.float64]))
    if rng.random() < 0.3:
        y = rng.dirichlet(np.full(num_classes, 10 ** rng.uniform(-1, 1)), rows)
    model = xent.SoftmaxRegression(
        alpha=10 ** rng.uniform(-7, 1),
        fit_intercept=bool(rng.random() < 0.8),
        label_smoothing=float(rng.choice([0.0, 0.1])),
        class_weight=None if rng.random() < 0.5 else dict(enumerate(10 ** rng.uniform(-1, 1, num_classes))),
    )
    weight = rng.uniform(0.1, 3.0, rows) if rng.random() < 0.5 else None
    cuts = np.sort(rng.integers(0, rows, int(rng.integers(0, 3))))
    store = scipy.sparse.csr_array if is_sparse else np.ascontiguousarray
    return tuple(
        _objective(model, x, y, weight, at) for x, at in ((store(X), cuts), (store(X.astype(float)), []))
    )


def _objective(model, X, y, weight, cuts):
    whole = read_targets(X, y, weight)
    factors = class_factors(model.class_weight, whole.classes, whole.mass)
    spec = LossSpec(label_smoothing=model.label_smoothing)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, X.shape[0]], strict=True):
        rows = slice(start, stop)
        some = whole._replace(
            **{
                name: None if getattr(whole, name) is None else getattr(whole, name)[rows]
                for name in ("labels", "probabilities", "weight")
            }
        )
        parts.append(Partition(X[rows], as_target(some, factors, spec)))
    return objective_of(model, Local(parts), len(whole.classes), spec)


def check(seed):
    """Each gap of each step, and the gaps of points near the optimum, against the least value ever found."""
    function, exact = random_problem(seed)
    start = np.zeros(function.num_parameters)
    best = minimise(exact, start, solver="newton-cg", max_iter=300, tol=0)
    least = exact(best.params)[0]
    assert best.optimality_gap < 1e-8
    for solver in ("lbfgs", "newton-cg"):
        seen = []

        def keep(step, seen=seen):
            seen.append((exact(step.state.point.parameters)[0], step.counts.gap))

        minimise(function, start, solver=solver, max_iter=300, tol=1e-9, on_step=keep)
        for value, gap in seen:
            assert gap >= (value - least) / value - ROUNDING
    rng = np.random.default_rng(seed)
    for size in (1e-5, 1e-3, 0.1):
        params = best.params * (1 + size * rng.standard_normal(best.params.size))
        value, gradient = function(params)
        assert Certificate(function).gap(params, value, gradient) >= (value - least) / value - ROUNDING


@pytest.mark.parametrize("seed", [*range(60), *ROUNDED])
def test_no_gap_is_violated(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 1060))
def test_no_gap_is_violated_in_a_thousand_fits(seed):
    check(seed)


def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def counts():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 800)
    X = rng.poisson(0.8 * np.exp(rng.standard_normal((5, 300)))[y]) / 20
    return scipy.sparse.csr_array(X), y


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
@pytest.mark.parametrize("data", [digits, counts])
def test_the_gap_is_tight_near_the_optimum(data, solver):
    """At most 10 times the truth where a fit ends, where it was 1000 times, before the intercept's step.

    At the steps of Newton-CG before the last, by the last bound, at most 1.1 times.
    """
    X, y = data()
    model = xent.SoftmaxRegression(alpha=1 / len(y), solver=solver).fit(X, y)
    exact = xent.SoftmaxRegression(alpha=1 / len(y), solver=solver, tol=1e-13).fit(X, y)
    *before, last = np.array(model.loss_curve_)
    least = exact.loss_curve_[-1]
    lower = last * (1 - model.optimality_gap_)
    assert 0 < last - least <= last - lower <= 10 * (last - least)
    if solver == "newton-cg":
        assert before[-1] - least <= before[-1] - lower <= 1.1 * (before[-1] - least)
