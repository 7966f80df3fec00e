"""Classes without an optimum, and numbers that leave float64: nothing is proved that is not so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning

import xent
from xent.regression import solvers
from xent.regression.sums.partition_sums import norm

X = np.array([[-1.0, 0], [-2, 1], [1, 0], [2, 1]])
Y = np.array([0, 0, 1, 1])
X3 = np.array([[0.0, 0], [0, 1], [5, 0], [5, 1], [0, 9], [1, 9]])
Y3 = np.array([0, 0, 1, 1, 2, 2])
CASES = {
    "two classes": (X, Y, None, {}),
    "three classes": (X3, Y3, None, {}),
    "probabilities": (X3, np.eye(3)[Y3], None, {}),
    "float32": (X.astype(np.float32), Y, None, {}),
    "sparse": (scipy.sparse.csr_array(X), Y, None, {}),
    "without an intercept": (X, Y, None, {"fit_intercept": False}),
    "one feature": (X[:, :1], Y, None, {}),
    "a constant feature": (np.column_stack([X, np.ones(4)]), Y, None, {}),
    "tiny weights": (X, Y, np.full(4, 1e-290), {}),
    "but for a row without weight": (X, [0, 1, 1, 1], [1, 0, 1, 1], {}),
    "focal loss": (X, Y, None, {"focal_gamma": 2.0}),
    "class weights": (X, Y, None, {"class_weight": {0: 3.0}}),
}


def fitted(x, y, weight=None, **options):
    """(model, words of its ConvergenceWarning); any other warning is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", ConvergenceWarning)
        model = xent.SoftmaxRegression(**options).fit(x, y, weight)
    return model, "".join(str(each.message) for each in caught)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize(("x", "y", "weight", "options"), CASES.values(), ids=CASES)
def test_separable_classes_without_a_penalty_are_said_to_be_so(x, y, weight, options, solver):
    model, words = fitted(x, y, weight, alpha=0.0, solver=solver, **options)
    assert "the classes are separable" in words
    assert "set alpha > 0" in words
    assert model.optimality_gap_ == (None if "focal_gamma" in options else 1.0)
    assert np.abs(model.coef_).max() < 100


@pytest.mark.parametrize("max_iter", [0, 3])
def test_what_is_not_yet_proved_gets_advice_that_helps(max_iter):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 20))
    words = fitted(x, x @ rng.normal(size=20) > 0, alpha=0.0, max_iter=max_iter)[1]
    assert "set alpha > 0" in words


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
def test_all_that_leaves_an_optimum_is_still_certified(solver):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    noisy = x @ [1, -1, 2] + rng.normal(size=300) > 0
    binary = (rng.random((200, 1)) < 0.5).astype(float)
    partly = np.where(binary[:, 0] == 1, 1, rng.integers(0, 2, 200))
    for data in ((x, noisy), (binary, partly), (np.ones((20, 2)), np.arange(20) % 3 == 0)):
        model, words = fitted(*data, alpha=0.0, solver=solver)
        assert (words, model.optimality_gap_ <= 1e-4) == ("", True)
    assert fitted(X, Y, alpha=0.0, label_smoothing=0.1, solver=solver)[1] == ""


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
@pytest.mark.parametrize("alpha", [1e-30, 1e-300, 1e-320])
def test_a_tiny_penalty_proves_no_more_than_is_so(alpha, solver):
    model, _ = fitted(X, Y, alpha=alpha, solver=solver)
    objective = model.objective(X, Y)
    at = objective.pack(model.coef_, model.intercept_)
    value = objective(at)[0]
    better = min(objective(factor * at)[0] for factor in (0.7, 0.9, 1.1, 1.5, 2.0))
    assert (value - better) / value <= model.optimality_gap_ + 1e-12


@pytest.mark.parametrize("solver", ["auto", "lbfgs"])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-170, 1e-100, 1e100, 1e139])
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_features_of_any_scale_prove_no_more_than_is_so(scale, alpha, solver):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = x @ [1, -1] + rng.normal(size=60) > 0
    model, words = fitted(x * scale, y, alpha=alpha, solver=solver, max_iter=50)
    assert (words == "") == (model.optimality_gap_ <= 1e-4)
    if not alpha and not words:
        right = fitted(x, y, alpha=0.0, tol=1e-8)[0]
        assert model.loss_curve_[-1] == pytest.approx(right.loss_curve_[-1], rel=1e-3)


def test_float32_features_whose_squares_leave_float32_are_fitted_all_the_same():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = x @ [1, -1] + rng.normal(size=60) > 0
    right = fitted(x, y, alpha=0.0)[0].loss_curve_[-1]
    for scale in (1e-25, 1e20, 1e30):
        model, words = fitted((x * scale).astype(np.float32), y, alpha=0.0)
        assert (words, model.loss_curve_[-1]) == ("", pytest.approx(right, rel=1e-3))


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("scale", [1e150, 1e155, 1e200, 1e300])
def test_features_that_overflow_are_one_error(scale, solver):
    for x in (X * scale, scipy.sparse.csr_array(X * scale)):
        with pytest.raises(ValueError, match="overflowed: bring the features to one scale"):
            fitted(x, Y, solver=solver)


def test_scores_and_weights_that_overflow_are_errors():
    model = fitted(X, Y, alpha=1e-6)[0]
    with pytest.raises(ValueError, match=r"scores of row 1 of `X` overflow float64"):
        model.predict(np.array([[1.0, 1.0], [1.7e308, -1.7e308]]))
    with pytest.raises(ValueError, match="must sum to"):
        fitted(X, Y, np.full(4, 1e-310))
    with pytest.raises(ValueError, match="must sum to"):
        fitted(X, Y, np.full(4, 1e308))


def test_norms():
    for scale in (0.0, 1e-320, 1e-200, 1.0, 1e200, 1e307):
        assert norm(np.array([3.0, -4.0]) * scale) == pytest.approx(
            5 * scale, rel=1e-3 if scale < 1e-300 else 1e-15
        )
    assert norm(np.zeros(0)) == 0
