"""`partial_fit` and `warm_start` go on from a fit in memory; test_warm_start.py has files and dask."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import xent
from tests.regression.regressions import EXACT, small


def test_a_warm_start_has_little_left_to_do():
    X, y = small()
    model = xent.SoftmaxRegression(warm_start=True, tol=1e-6).fit(X, y)
    cold, before = model.n_iter_, model.coef_.copy()
    assert model.fit(X, y).n_iter_ <= 1 < cold
    np.testing.assert_allclose(model.coef_, before, atol=1e-2)
    assert model.fit(X, y + 10).n_iter_ == cold  # no class in common: from 0
    assert model.fit(X[:, :3], y + 10).loss_curve_[0] == pytest.approx(np.log(3))  # other features: from 0


START = [
    # Classes before, classes after, and which rows of the old (0, s for two classes) each one starts at.
    ([0, 1, 2], [0, 1, 2], [0, 1, 2]),
    ([0, 1, 2], [0, 2], [0, 2]),  # a class is dropped
    ([0, 1, 2], [1, 2, 3], [1, 2, None]),  # one dropped, one new
    ([0, 1, 2], [2, 0, 1, 7], [0, 1, 2, None]),
    ([0, 1], [0, 1, 2], ["-half", "half", None]),
    ([0, 1], [1, 2], ["half", None]),
    ([0, 1], [5, 6, 7], [None, None, None]),
    (["a", "b", "c"], ["c", "b"], [1, 2]),
    (["a", "b", "c"], [0, 1, 2], [None, None, None]),
]


@pytest.mark.parametrize(("before", "after", "rows"), START)
def test_a_warm_start_keeps_the_rows_of_the_classes_that_stay(before, after, rows):
    X, y = small(rows=60, classes=len(before))
    model = xent.SoftmaxRegression(warm_start=True, max_iter=1000).fit(X, np.array(before)[y])
    coef, intercept = model.coef_, model.intercept_
    old = {k: (coef[k], intercept[k]) for k in range(len(coef))}
    old |= {"half": (coef[0] / 2, intercept[0] / 2), "-half": (-coef[0] / 2, -intercept[0] / 2)}
    old[None] = (np.zeros(4), 0.0)
    W, b = (np.array(part) for part in zip(*(old[row] for row in rows), strict=True))
    X2, y2 = small(seed=1, rows=60, classes=len(after))
    labels = np.array(sorted(after))[y2]
    log_p = xent.log_softmax(X2 @ W.T + b)
    penalised = W[1:] - W[:1] if len(after) == 2 else W
    start = -log_p[np.arange(60), y2].mean() + 0.5e-3 * (penalised**2).sum()
    model.fit(X2, labels)
    assert model.classes_.tolist() == sorted(after)
    assert model.loss_curve_[0] == pytest.approx(start, rel=1e-12)
    cold = xent.SoftmaxRegression().fit(X2, labels)
    assert model.loss_curve_[-1] == pytest.approx(cold.loss_curve_[-1], rel=2 * model.tol)


def test_partial_fit_tends_to_the_fit():
    X, y = small(rows=300)
    best = xent.SoftmaxRegression(alpha=0.01, **EXACT).fit(X, y)
    model = xent.SoftmaxRegression(alpha=0.01, random_state=0)
    distances = []
    for epoch in range(100):
        for batch in np.array_split(np.arange(300), 5):
            model.partial_fit(X[batch], y[batch], classes=[0, 1, 2])
        if epoch in (0, 9, 99):
            value, _ = (objective := model.objective(X, y))(objective.pack(model.coef_, model.intercept_))
            distances.append(value / best.loss_curve_[-1] - 1)
    assert distances[0] < 0.5
    assert distances[1] < 0.1
    assert distances[2] < 1e-3
    assert model.solver_ == "sgd"
    assert model.optimality_gap_ is None
    assert model.n_iter_ == len(model.loss_curve_) == 500


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array])
def test_partial_fit_takes_what_fit_takes(form):
    X, y = small(rows=90)
    X = form(X.astype(np.float32))
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 90)
    labels = xent.SoftmaxRegression(class_weight={0: 2.0}, random_state=1)
    labels.partial_fit(X, y, [0, 1, 2], sample_weight=weight)
    rows = xent.SoftmaxRegression(class_weight={0: 2.0}, random_state=1)
    assert labels.coef_.dtype == np.float32
    again = xent.SoftmaxRegression(class_weight={0: 2.0}, random_state=1)
    again.partial_fit(X, y, [0, 1, 2], sample_weight=weight)
    np.testing.assert_array_equal(again.coef_, labels.coef_)
    rows.partial_fit(X, np.eye(3)[y])
    assert rows.classes_.tolist() == [0, 1, 2]
    assert rows.predict_proba(X).shape == (90, 3)


def test_partial_fit_goes_on_from_fit_and_may_lack_classes():
    X, y = small(rows=300)
    model = xent.SoftmaxRegression(random_state=0).fit(X, y)
    before = model.score(X, y)
    model.partial_fit(X[y == 1], y[y == 1])
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.score(X, y) > before - 0.3
    fresh = xent.SoftmaxRegression(random_state=0).partial_fit(
        X[y < 2], y[y < 2], classes=np.array([0, 1, 2])
    )
    assert (fresh.predict_proba(X[y == 0]).mean(0).argmax(), fresh.classes_.size) == (0, 3)


def test_balanced_in_partial_fit_is_by_all_rows_so_far():
    X, y = small()
    model = xent.SoftmaxRegression(class_weight="balanced", alpha=0, random_state=0)
    model.partial_fit(X[y == 0][:5], y[y == 0][:5], classes=[0, 1, 2])
    start = xent.log_softmax(X @ model.coef_.T + model.intercept_)[np.arange(60), y]
    factor = 65 / (3 * np.array([25, 20, 20]))
    model.partial_fit(X, y)
    expected = -(factor[y] * start).sum() / factor[y].sum()
    assert model.loss_curve_[1] == pytest.approx(expected, rel=1e-12)


PARTIAL = [
    ({}, {"classes": None}, "`classes` must be given at the first `partial_fit`"),
    ({}, {"classes": [0, 1]}, r"`y` holds 2, which is none of the classes \[0, 1\]"),
    ({}, {"classes": [0]}, "`classes` must be at least 2"),
]


@pytest.mark.parametrize(("options", "arguments", "message"), PARTIAL)
def test_what_is_out_of_place_in_partial_fit_is_named(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        xent.SoftmaxRegression(**options).partial_fit(*small(), **arguments)


def test_the_classes_of_partial_fit_do_not_change():
    X, y = small()
    model = xent.SoftmaxRegression().partial_fit(X, y, classes=[2, 1, 0])
    assert model.classes_.tolist() == [0, 1, 2]
    model.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(
        ValueError, match=r"`classes` are \[0, 1, 3\], those of the last call were \[0, 1, 2\]"
    ):
        model.partial_fit(X, y, classes=[0, 1, 3])
    with pytest.raises(ValueError, match="X has 3 features"):
        model.partial_fit(X[:, :3], y)
