"""Folds of many rows: one pass for all of them, rows that are views; the losses are those of exact fits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import KFold, ShuffleSplit

import xent
from xent.regression.class_targets import read_targets
from xent.regression.penalty import alpha_choice, folds, sampled_path
from xent.regression.penalty.penalty_path import PenaltyPath
from xent.regression.penalty.sampled_path import SampledPath

SPLITTERS = [KFold(5, shuffle=True, random_state=0), ShuffleSplit(3, test_size=0.3, random_state=1)]
SPLITTERS_IDS = ["folds", "overlapping"]


def table(classes: int, rows: int = 2000):
    random = np.random.default_rng(0)
    X = random.normal(size=(rows, 4)) * [1, 2, 1, 0.5] + 1
    logits = X @ random.normal(size=(4, classes)) + random.gumbel(size=(rows, classes))
    return X, logits.argmax(1), random.integers(1, 4, rows).astype(float)


@pytest.fixture
def few(monkeypatch):
    """Samples of so few rows that small tables have them."""
    monkeypatch.setattr(sampled_path, "LEAST", 100)
    monkeypatch.setattr(sampled_path, "ROWS", 100)


def exact(X, y, weight, alpha, splitter, **options):
    losses, total = 0.0, 0.0
    for train, test in splitter.split(X):
        model = xent.SoftmaxRegression(alpha=alpha, tol=1e-9, **options).fit(
            X[train], y[train], weight[train]
        )
        log_probs = model.predict_log_proba(X[test])[np.arange(len(test)), y[test]]
        losses, total = losses - weight[test] @ log_probs, total + weight[test].sum()
    return losses / total


@pytest.mark.parametrize("splitter", SPLITTERS, ids=SPLITTERS_IDS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"fit_intercept": False}, {"label_smoothing": 0.1}], ids=["plain", "origin", "smoothed"]
)
def test_one_pass_for_all_folds_gives_the_losses_of_exact_fits(few, splitter, classes, options):
    X, y, weight = table(classes)
    alphas = [1.0, 0.1, 1e-3]
    model = xent.SoftmaxRegressionCV(alphas=alphas, cv=splitter, **options).fit(X, y, weight)
    expected = [exact(X, y, weight, alpha, splitter, **options) for alpha in alphas]
    np.testing.assert_array_less(abs(model.mean_scores_ - expected), 0.1 * model.standard_errors_)
    if not isinstance(splitter, KFold):
        return
    # What the folds cost is seen: the loss of the rows is less where the model has seen them.
    seen = xent.SoftmaxRegression(alpha=1e-3, tol=1e-9, **options).fit(X, y, weight)
    loss = xent.cross_entropy(np.log(seen.predict_proba(X)), y, sample_weight=weight)
    assert abs(model.mean_scores_[2] - expected[2]) < 0.3 * (expected[2] - loss)


def test_the_way_depends_on_the_rows(few):
    X, y, _ = table(3)
    targets = read_targets(X, y)
    for options, kind in (
        ({}, SampledPath),
        ({"class_weight": "balanced"}, PenaltyPath),  # each fold has weights of its own
        ({"focal_gamma": 1.0}, PenaltyPath),
    ):
        model = xent.SoftmaxRegression(**options)
        spec = xent.regression.parameters.check_parameters(model)
        validation = alpha_choice.CrossValidation(model, X, targets, spec, 5)
        assert type(validation.path) is kind


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_views_give_the_losses_of_copies(kind, monkeypatch):
    X, y, weight = table(3)
    X = kind(np.where(abs(X) > 0.7, X, 0.0))
    found = []
    for copied in (folds.COPIED, 0):
        monkeypatch.setattr(folds, "COPIED", copied)
        found.append(xent.SoftmaxRegressionCV(alphas=[0.1, 0.01], cv=SPLITTERS[0]).fit(X, y, weight))
    np.testing.assert_allclose(found[1].scores_, found[0].scores_, rtol=1e-3)


@pytest.mark.parametrize("rows", [slice(2, 7), slice(None), slice(0, 0), np.array([5, 1])])
def test_rows_of_a_csr_matrix(rows):
    X = scipy.sparse.random_array((9, 4), density=0.5, format="csr", rng=0)
    part = folds.rows_of(X, rows)
    np.testing.assert_array_equal(part.toarray(), X.toarray()[rows])


def test_the_rows_are_sorted_by_the_fold_that_holds_them_out():
    X, y, weight = table(3, rows=50)
    targets = read_targets(X, y, weight)
    splits = folds.splits_of(SPLITTERS[0], X, targets)
    sorted_X, sorted_targets, result = folds.sorted_by_fold(X, targets, splits)
    for (training, held_out), split in zip(splits, result, strict=True):
        np.testing.assert_array_equal(sorted_X[split.held_out], X[held_out])
        np.testing.assert_array_equal(sorted_targets.labels[split.held_out], targets.labels[held_out])
        np.testing.assert_array_equal(sorted_targets.weight[split.held_out], weight[held_out])
        rows = np.concatenate([sorted_X[part] for part in split.training])
        assert sorted(rows[:, 0]) == sorted(X[training, 0])


def test_the_search_ends_where_a_smaller_penalty_changes_nothing():
    X, y, _ = table(2, rows=20_000)
    model = xent.SoftmaxRegressionCV().fit(X, y)
    assert len(model.alphas_) < 10
    drops = -np.diff(model.mean_scores_) / model.standard_errors_[1:]
    assert (drops[:-1] > alpha_choice.FLAT).all()
    assert drops[-1] <= alpha_choice.FLAT


def test_the_choice_is_that_of_scikit_learn():
    X, y, _ = table(3, rows=150)
    alphas = np.geomspace(1, 1e-4, 9)
    ours = xent.SoftmaxRegressionCV(alphas=alphas, cv=SPLITTERS[0]).fit(X, y)
    theirs = LogisticRegressionCV(
        Cs=1 / (alphas * 120),
        cv=SPLITTERS[0],
        scoring="neg_log_loss",
        tol=1e-8,
        use_legacy_attributes=False,
        l1_ratios=(0.0,),
    ).fit(X, y)
    losses = -np.reshape(theirs.scores_, (5, -1))
    np.testing.assert_allclose(ours.scores_, losses.T, rtol=1e-3)
    assert ours.alpha_ == alphas[losses.mean(0).argmin()]
