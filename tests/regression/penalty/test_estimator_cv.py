"""SoftmaxRegressionCV: held-out losses and choices are those of scikit-learn's loops over exact fits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    KFold,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import xent
from xent.regression import objective as objectives
from xent.regression.penalty import optimum
from xent.regression.solvers.lbfgs import Kept, Memory
from xent.regression.solvers.state import Draws, Point

FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)


@parametrize_with_checks(
    [
        xent.SoftmaxRegressionCV(cv=3),
        xent.SoftmaxRegressionCV(cv=3, alphas=[0.1, 0.001], one_se=True, class_weight="balanced"),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def scaled(load):
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def exact(X, y, alpha, cv=FOLDS):
    """scikit-learn's held-out losses (J,) of the same optima; alpha is 1 over C and the training rows."""
    losses = []
    for train, test in cv.split(X, y):
        model = LogisticRegression(C=1 / (alpha * len(train)), tol=1e-6, max_iter=10_000)
        with threadpool_limits(1):
            log_probs = model.fit(X[train], y[train]).predict_log_proba(X[test])
        losses.append(-log_probs[np.arange(len(test)), np.searchsorted(model.classes_, y[test])].mean())
    return np.array(losses)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer, load_digits])
def test_held_out_losses_are_those_of_exact_fits(load):
    X, y = scaled(load)
    model = xent.SoftmaxRegressionCV(cv=FOLDS).fit(X, y)
    for alpha, scores, mean, error in zip(
        model.alphas_, model.scores_, model.mean_scores_, model.standard_errors_, strict=True
    ):
        expected = exact(X, y, alpha)
        assert abs(mean - expected.mean()) < 0.5 * error
        assert np.corrcoef(scores, expected)[0, 1] > 0.95
    assert model.alpha_ == model.alphas_[model.mean_scores_.argmin()]


def test_with_a_small_tolerance_they_are_exact(monkeypatch):
    tighten(monkeypatch)
    X, y = scaled(load_wine)
    alphas = [1.0, 0.1, 0.01, 1e-4]
    model = xent.SoftmaxRegressionCV(alphas=alphas, cv=FOLDS).fit(X, y)
    for alpha, scores in zip(model.alphas_, model.scores_, strict=True):
        np.testing.assert_allclose(scores, exact(X, y, alpha), rtol=0.01)


def test_the_mean_and_its_error_are_over_rows(monkeypatch):
    """Against (49) and (50) of the rows' losses, by other code."""
    tighten(monkeypatch)
    X, y = scaled(load_iris)
    weight = 1.0 + np.arange(150) % 3
    model = xent.SoftmaxRegressionCV(alphas=[0.01], cv=FOLDS).fit(X, y, weight)
    losses = np.zeros(150)
    for train, test in FOLDS.split(X, y):
        single = xent.SoftmaxRegression(alpha=0.01, tol=1e-12).fit(X[train], y[train], weight[train])
        losses[test] = -single.predict_log_proba(X[test])[np.arange(30), y[test]]
    mean = np.average(losses, weights=weight)
    np.testing.assert_allclose(model.mean_scores_, [mean], rtol=1e-5)
    error = np.sqrt(np.sum((weight * (losses - mean)) ** 2)) / weight.sum()
    np.testing.assert_allclose(model.standard_errors_, [error], rtol=1e-4)


def tighten(monkeypatch):
    """Optima as exact as float64 allows."""
    for steps in (optimum.Hessians, optimum.Pairs):
        monkeypatch.setattr(steps, "tol", 1e-12)
        monkeypatch.setattr(steps, "first_tol", 1e-12)


def noise(rows: int = 200):
    random = np.random.default_rng(0)
    return random.normal(size=(rows, 5)), np.arange(rows) % 2


def test_the_search_ends_around_the_least():
    model = xent.SoftmaxRegressionCV().fit(*scaled(load_digits))
    best = model.mean_scores_.argmin()
    assert 0 < best < len(model.alphas_) - 1
    assert model.mean_scores_[0] > model.mean_scores_[best] + model.standard_errors_[best]
    np.testing.assert_allclose(model.alphas_[:-1] / model.alphas_[1:], 10**0.5)


def test_the_search_goes_up_where_there_is_nothing_to_learn():
    model = xent.SoftmaxRegressionCV().fit(*noise())
    assert len(model.alphas_) == 10
    assert model.alpha_ > 1
    assert abs(model.mean_scores_.min() - np.log(2)) < 0.01


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_alphas_are_tried_than_asked_for(most):
    assert len(xent.SoftmaxRegressionCV(alphas=most).fit(*scaled(load_iris)).alphas_) == most


def test_one_standard_error_takes_a_larger_penalty():
    X, y = scaled(load_wine)
    best, sparest = (xent.SoftmaxRegressionCV(one_se=each).fit(X, y) for each in (False, True))
    np.testing.assert_array_equal(best.mean_scores_, sparest.mean_scores_)
    k = best.mean_scores_.argmin()
    within = best.mean_scores_ <= best.mean_scores_[k] + best.standard_errors_[k]
    assert sparest.alpha_ == best.alphas_[within].max() > best.alpha_


def test_the_model_is_that_of_its_alpha():
    X, y = scaled(load_wine)
    model = xent.SoftmaxRegressionCV(tol=1e-8).fit(X, y)
    single = xent.SoftmaxRegression(alpha=model.alpha_, tol=1e-8).fit(X, y)
    np.testing.assert_allclose(model.coef_, single.coef_, atol=1e-4)
    assert model.optimality_gap_ <= 1e-8
    assert model.n_iter_ < single.n_iter_
    assert model.alpha == model.alpha_


def test_the_scale_of_the_features_does_not_matter():
    X, y = scaled(load_wine)
    small, large = (xent.SoftmaxRegressionCV().fit(X * scale, y) for scale in (1.0, 1024.0))
    np.testing.assert_allclose(large.alphas_, 1024.0**2 * small.alphas_, rtol=1e-6)
    np.testing.assert_allclose(large.mean_scores_, small.mean_scores_, rtol=1e-6)


def test_sparse_rows_and_float32_give_the_same_losses():
    X, y = scaled(load_wine)
    X = np.where(abs(X) > 0.7, X, 0.0)
    model = xent.SoftmaxRegressionCV(alphas=[0.1, 0.01, 0.001], cv=FOLDS)
    expected = clone(model).fit(X, y)
    for rows in (scipy.sparse.csr_array(X), X.astype(np.float32)):
        found = clone(model).fit(rows, y)
        np.testing.assert_allclose(found.mean_scores_, expected.mean_scores_, rtol=0.05)
        assert found.alpha_ == expected.alpha_


def test_rows_of_probabilities_are_cross_validated_too():
    X, y = scaled(load_wine)
    model = xent.SoftmaxRegressionCV(cv=KFold(5, shuffle=True, random_state=0), alphas=[0.01]).fit(X, y)
    soft = clone(model).fit(X, np.eye(3)[y])
    np.testing.assert_allclose(soft.mean_scores_, model.mean_scores_, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1}, {"focal_gamma": 1.0}, {"class_weight": "balanced"}, {"fit_intercept": False}],
)
def test_options_change_the_training_and_not_the_loss_compared(options, monkeypatch):
    tighten(monkeypatch)
    X, y = scaled(load_iris)
    model = xent.SoftmaxRegressionCV(alphas=[0.01], cv=FOLDS, **options).fit(X, y)
    single = xent.SoftmaxRegression(alpha=0.01, tol=1e-9, **options)
    expected = -cross_val_score(single, X, y, cv=FOLDS, scoring="neg_log_loss")
    np.testing.assert_allclose(model.scores_[0], expected, rtol=1e-3)


def test_any_splitter_will_do():
    X, y = scaled(load_iris)
    splitter = ShuffleSplit(3, test_size=0.3, random_state=1)
    model = xent.SoftmaxRegressionCV(alphas=[0.01], cv=splitter).fit(X, y)
    np.testing.assert_allclose(model.scores_[0], exact(X, y, 0.01, splitter), rtol=0.02)
    same = xent.SoftmaxRegressionCV(alphas=[0.01], cv=list(splitter.split(X))).fit(X, y)
    np.testing.assert_array_equal(same.scores_, model.scores_)


def test_a_class_that_the_other_folds_lack_has_no_part_in_the_mean():
    X, y = scaled(load_iris)
    y = y.copy()
    y[7] = 9
    model = xent.SoftmaxRegressionCV(alphas=[0.01], cv=FOLDS).fit(X, y)
    assert model.classes_.tolist() == [0, 1, 2, 9]
    without = xent.SoftmaxRegressionCV(alphas=[0.01], cv=FOLDS).fit(X, scaled(load_iris)[1])
    assert abs(model.mean_scores_[0] - without.mean_scores_[0]) < without.standard_errors_[0]


def test_rows_seen_are_few(monkeypatch):
    """Passes over the rows, without a clock: those of the folds are in float32 where X is large."""
    X, y = scaled(load_digits)
    rows = []
    call = objectives.Objective.__call__
    monkeypatch.setattr(
        objectives.Objective,
        "__call__",
        lambda self, parameters: rows.append(self.num_rows) or call(self, parameters),
    )
    xent.SoftmaxRegression().fit(X, y)
    single = sum(rows)
    rows.clear()
    xent.SoftmaxRegressionCV().fit(X, y)
    assert sum(rows) < 6 * single


def test_it_is_cloned_pickled_and_saved(tmp_path):
    X, y = scaled(load_iris)
    model = xent.SoftmaxRegressionCV(cv=3, alphas=3).fit(X, y)
    assert clone(model).get_params() == model.get_params()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    model.calibrate_temperature(X, y).save(tmp_path / "m.st")
    for loaded in (xent.SoftmaxRegression.load(tmp_path / "m.st"), model.load(tmp_path / "m.st")):
        assert type(loaded) is xent.SoftmaxRegression
        assert loaded.alpha == model.alpha_
        np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert not hasattr(model, "partial_fit")
    assert cross_val_predict(model, X, y).shape == (150,)


def test_verbose_says_each_alpha(capsys):
    model = xent.SoftmaxRegressionCV(alphas=2, verbose=True).fit(*scaled(load_iris))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("alpha")]
    assert lines[0] == f"alpha {model.alphas_[0]:.3g}: held-out loss {model.mean_scores_[0]:.6f}"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alphas": 0}, "`alphas` must be an integer >= 1, or numbers"),
        ({"alphas": True}, "`alphas` must be"),
        ({"alphas": []}, "`alphas` must be"),
        ({"alphas": [-1.0]}, "`alphas` must be"),
        ({"alphas": ["a"]}, "`alphas` must be"),
        ({"alphas": [np.inf]}, "`alphas` must be"),
        ({"alphas": 0.5}, "`alphas` must be"),
        ({"one_se": 1}, "`one_se` must be True or False"),
        ({"tol": -1}, "`tol` must be"),
        ({"cv": 1000}, "n_splits=1000"),
        ({"label_smoothing": 2}, "label_smoothing"),
    ],
)
def test_an_option_out_of_place_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        xent.SoftmaxRegressionCV(**options).fit(*scaled(load_iris))


def test_rows_that_are_not_in_memory_are_refused():
    with pytest.raises(TypeError, match="`X` must be in memory"):
        xent.SoftmaxRegressionCV().fit(xent.rows_from("x.csv", target="y"))


def test_alpha_may_be_0():
    X, y = scaled(load_iris)
    random = np.random.default_rng(0)
    y = np.where(random.random(150) < 0.3, random.integers(0, 3, 150), y)  # not separable
    model = xent.SoftmaxRegressionCV(alphas=[0.0, 1e-3, 1e-2, 0.1]).fit(X, y)
    assert model.alphas_.tolist() == [0.1, 1e-2, 1e-3, 0.0]
    assert abs(model.mean_scores_[3] - model.mean_scores_[2]) < model.standard_errors_[3]


def test_pairs_are_taken_to_another_penalty():
    """The change of the gradient along a step, as the objective with the other alpha has it."""
    X, y = scaled(load_iris)
    one = xent.SoftmaxRegression(alpha=0.1).objective(X, y)
    random = np.random.RandomState(0)
    places = random.normal(size=(2, one.num_parameters))
    points = [Point(place, *one(place)) for place in places]
    memory = Memory(one, Kept(places[0], 0, Draws.of(random)), random)
    memory.learn(*points)
    other = one.with_alpha(3.0)
    expected = other(places[1])[1] - other(places[0])[1]
    found = memory.with_penalty(other, places[0])
    np.testing.assert_allclose(found.kept.changes, [expected], rtol=1e-10)
    assert not np.allclose(memory.kept.changes, [expected])
