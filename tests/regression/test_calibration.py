"""The fitted temperature: known factors recovered, SciPy's minimum, and words where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import xent
from tests.regression.regressions import small
from xent.regression import calibration
from xent.regression.calibration import fit_temperature


def scores(rows: int = 4000, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((rows, classes))
    p = xent.softmax(logits)
    return logits, (p.cumsum(1) < rng.random(rows)[:, None]).sum(1)


@pytest.mark.parametrize("factor", [1e-6, 0.2, 1.0, 3.7, 1e8])
def test_a_known_factor_is_recovered(factor):
    """Exactly, where the targets are the probabilities themselves; to sampling error for labels."""
    logits, labels = scores()
    assert fit_temperature(factor * logits, xent.softmax(logits)) == pytest.approx(factor, rel=1e-7)
    drawn = fit_temperature(factor * logits, labels)
    assert drawn == pytest.approx(factor, rel=0.1)
    assert drawn == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_scipys_minimum(classes, soft, weighted):
    logits, labels = scores(300, classes, seed=classes)
    logits *= 3.0
    rng = np.random.default_rng(1)
    targets = rng.dirichlet(np.ones(classes), 300) + np.eye(classes)[labels] if soft else labels
    weight = rng.uniform(0, 2, 300) if weighted else None
    T = fit_temperature(logits, targets, weight)

    def loss(t: float) -> float:
        return float(xent.cross_entropy(logits / t, targets, sample_weight=weight))

    best = minimize_scalar(lambda s: loss(np.exp(s)), bounds=(-5, 8), options={"xatol": 1e-10})
    assert np.log(T) == pytest.approx(best.x, abs=1e-6)
    assert loss(T) <= best.fun * (1 + 1e-15)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_constant_in_a_row_changes_nothing(shift):
    logits, labels = scores(300)
    moved = logits + shift * np.arange(300)[:, None]
    assert fit_temperature(moved, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


@pytest.mark.parametrize(
    ("targets", "message"),
    [([0, 1, 2], "no temperature > 0 .* highest score"), ([1, 2, 0], "no finite temperature .* no better")],
)
def test_where_there_is_no_minimum_it_says_why(targets, message):
    logits = 2.0 * np.eye(3)
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, np.array(targets))
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, np.eye(3)[targets])


@pytest.mark.parametrize(
    ("factor", "skill", "holes", "most"),
    [
        (1.0, True, False, 6),
        (3.0, True, False, 10),
        (0.4, True, False, 10),
        (3.0, True, True, 12),
        (1.0, False, False, 9),
        (1.0, False, True, 9),
    ],
)
def test_a_sample_is_read_a_few_times(monkeypatch, factor, skill, holes, most):
    """Most of all where the labels have nothing to do with the logits: 1/T is then 0 but for chance."""
    z, labels = scores(600, 50)
    if not skill:
        labels = np.random.default_rng(3).permutation(labels)
    if holes:
        outside = np.random.default_rng(4).random(z.shape) < 0.2
        outside[np.arange(600), labels] = False
        z = np.where(outside, -np.inf, z)
    reads, losses = [], calibration._losses
    monkeypatch.setattr(calibration, "_losses", lambda z, *rest: reads.append(len(z)) or losses(z, *rest))
    found = calibration.cross_fitted(factor * z, labels)
    assert sum(reads) <= most * 600
    monkeypatch.undo()
    T = fit_temperature(factor * z, labels)
    assert abs(1 / found.temperature - 1 / T) < 0.02 * found.temperature_se / T**2


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_estimator_that_boasts_is_calibrated(classes, dtype):
    X, y = small(rows=400, classes=classes)
    noise = np.random.default_rng(0).random(400) < 0.25
    names = np.array(["a", "b", "c"])[:classes]
    y = names[np.where(noise, (y + 1) % classes, y)]
    model = xent.SoftmaxRegression(alpha=0.01).fit(X[:200].astype(dtype), y[:200])
    honest = model.predict_proba(X[200:].astype(dtype))
    assert model.temperature_ == 1.0
    model.coef_ *= 5
    model.intercept_ *= 5
    boasting, decisions = model.predict_log_proba(X), model.decision_function(X)
    assert model.calibrate_temperature(X[200:], y[200:]) is model
    T = model.temperature_
    assert 3 < T < 10
    np.testing.assert_array_equal(model.decision_function(X), decisions)
    true = np.searchsorted(model.classes_, y)
    after = model.predict_log_proba(X)
    assert -after[np.arange(200, 400), true[200:]].mean() < -boasting[np.arange(200, 400), true[200:]].mean()
    wide = np.pad(decisions[:, None], ((0, 0), (1, 0))) if classes == 2 else decisions
    np.testing.assert_allclose(model.predict_proba(X), xent.softmax(wide / T), atol=1e-6)
    assert (model.predict(X) == model.classes_[after.argmax(1)]).all()
    q = np.eye(classes)[true[200:]]
    assert model.calibrate_temperature(X[200:], q).temperature_ == pytest.approx(T, rel=1e-9)
    assert model.calibrate_temperature(X[200:], y[200:], np.full(200, 0.5)).temperature_ == pytest.approx(T)
    assert honest.shape == (200, classes)
    assert model.fit(X, y).temperature_ == 1.0


def test_a_label_that_the_estimator_does_not_know_is_named():
    X, y = small()
    model = xent.SoftmaxRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"`y` holds 7, which is none of the classes \[0, 1, 2\]"):
        model.calibrate_temperature(X, np.where(y == 2, 7, y))
    with pytest.raises(ValueError, match="a column for each of 3 classes; got 2"):
        model.calibrate_temperature(X, np.full((60, 2), 0.5))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.calibrate_temperature(X, y[:-1])
