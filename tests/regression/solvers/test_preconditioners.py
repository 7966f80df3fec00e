"""Preconditioners beside the inverse Hessians that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

from tests.regression.solvers.problems import PROBLEMS, Problem, table
from xent.regression.solvers import preconditioners


def test_whitening_is_the_inverse_hessian_at_zero():
    for num_classes in (2, 4):
        problem = Problem(*table(num_classes=num_classes), num_classes=num_classes)
        objective, start = problem.objective, problem.start
        coef, intercept = objective.unpack(np.random.default_rng(0).standard_normal(start.size))
        if num_classes > 2:  # the only directions that matter
            coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        vector = objective.pack(coef, intercept)
        estimate = preconditioners.preconditioner(objective, start, np.random.RandomState(0))
        np.testing.assert_allclose(estimate(objective.hvp(start, vector)), vector, rtol=1e-6, atol=1e-6)


def test_whitening_by_class_is_the_inverse_of_the_hessians_blocks():
    problem = PROBLEMS["plain"]
    objective, num_classes, alpha = problem.objective, problem.num_classes, problem.alpha
    at, vector = np.random.default_rng(0).standard_normal((2, problem.start.size))
    hessian = np.array([objective.hvp(at, e) for e in np.eye(at.size)])
    coef, intercept = objective.unpack(vector)
    columns = np.concatenate([coef, intercept[:, None]], 1)
    columns -= columns.mean(0)
    shift = np.r_[np.arange(1.0, coef.shape[1] + 1), 0.0]  # of all classes: only the penalty minds
    expected = np.empty_like(columns)
    penalty = np.diag(np.where(np.arange(shift.size) < coef.shape[1], alpha, 0.0))
    for k in range(num_classes):
        place = np.r_[k * coef.shape[1] : (k + 1) * coef.shape[1], coef.size + k]
        block = (hessian[np.ix_(place, place)] - penalty) * (num_classes / (num_classes - 1)) + penalty
        expected[k] = np.linalg.solve(block, columns[k])
    expected += shift / alpha - expected.mean(0)
    estimate = preconditioners.preconditioner(objective, at, np.random.RandomState(0), by_class=True)
    found = estimate(objective.pack((columns + shift)[:, :-1], columns[:, -1]))
    np.testing.assert_allclose(found, objective.pack(expected[:, :-1], expected[:, -1]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_the_diagonal_is_the_inverse_hessian_of_uncorrelated_features(kind, intercept):
    """Columns of a Hadamard matrix, each with a scale and a mean; rows alike in p; each class on its own."""
    signs = scipy.linalg.hadamard(16)[:, 1:6] * np.geomspace(0.1, 10, 5) + np.linspace(-2, 3, 5)
    for num_classes in (2, 3):
        y = np.arange(16) % num_classes
        problem = Problem(kind(signs), y, num_classes=num_classes, alpha=1e-2, intercept=intercept)
        objective, start = problem.objective, problem.start
        if intercept and num_classes == 3:
            start[-num_classes:] = [1.0, 0.0, -2.0]
        hessian = np.array([objective.hvp(start, e) for e in np.eye(start.size)])
        estimate = preconditioners.diagonal(objective, start)
        for k in range(objective.num_scores):
            coef, bias = np.zeros((objective.num_scores, 5)), np.zeros(objective.num_scores)
            coef[k], bias[k] = 1.0, 1.0
            place = np.flatnonzero(objective.pack(coef, bias))
            vector = np.zeros(start.size)
            vector[place] = np.random.default_rng(k).standard_normal(place.size)
            ridge = np.diag(np.where(place < coef.size, 1e-2, 0.0))
            factor = 1.5 if num_classes == 3 else 1.0  # see Objective.curvature
            block = (hessian[np.ix_(place, place)] - ridge) * factor + ridge
            expected = np.linalg.solve(block, vector[place])
            np.testing.assert_allclose(estimate(vector)[place], expected, rtol=1e-9)
