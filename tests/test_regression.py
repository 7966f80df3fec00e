"""SoftmaxRegression: scikit-learn's own checks, scikit-learn's optimum, PyTorch's gradient, properties."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import xent
from xent import regression
from xent.check import gradient_check

DATA = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}


def standardised(name: str) -> tuple[np.ndarray, np.ndarray]:
    X, y = DATA[name](return_X_y=True)
    return StandardScaler().fit_transform(X), y


def small(seed: int = 0, rows: int = 60, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    return rng.standard_normal((rows, 4)) + rng.standard_normal((classes, 4))[y], y


@parametrize_with_checks([xent.SoftmaxRegression()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iris", {}),
        ("iris", {"fit_intercept": False}),
        ("wine", {"class_weight": "balanced"}),
        ("breast_cancer", {}),
        ("breast_cancer", {"class_weight": {0: 2.0, 1: 0.5}}),
        ("digits", {}),
    ],
)
def test_the_optimum_is_scikit_learns_with_c_of_one_over_alpha_n(name, options):
    X, y = standardised(name)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    ours = xent.SoftmaxRegression(alpha=0.01, tol=0, **options).fit(X, y, weight)
    # Our mean divides by Σ ω c_y, scikit-learn's sum does not.
    divisor = ours.objective(X, y, weight).options["denominator"]
    theirs = LogisticRegression(C=1 / (0.01 * divisor), solver="newton-cholesky", tol=1e-10, **options)
    theirs.fit(X, y, weight)
    centred = theirs.intercept_ - (theirs.intercept_.mean() if len(theirs.intercept_) > 1 else 0.0)
    shift = ours.intercept_ - (ours.intercept_.mean() if len(ours.intercept_) > 1 else 0.0)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(shift, centred, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-7)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.1, "smoothing_over": "others"},
        {"focal_gamma": 2.0},
        {"class_weight": "balanced", "label_smoothing": 0.2},
        {"fit_intercept": False},
    ],
    ids=str,
)
def test_the_gradient_is_autograds(classes, options):
    torch = pytest.importorskip("torch")
    X, y = small(classes=classes)
    weight = np.random.default_rng(1).uniform(0.0, 2.0, len(y))
    objective = xent.SoftmaxRegression(alpha=0.3, **options).objective(X, y, weight)
    point = np.random.default_rng(2).standard_normal(objective.num_parameters)
    value, gradient = objective(point)

    parameters = torch.tensor(point, requires_grad=True)
    split = objective.num_scores * X.shape[1]
    coef = parameters[:split].reshape(objective.num_scores, -1)
    scores = torch.tensor(X) @ coef.T
    if options.get("fit_intercept", True):
        scores = scores + parameters[split:]
    if classes == 2:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    t = torch.nn.functional.one_hot(torch.tensor(y), classes).double()
    smoothing = options.get("label_smoothing", 0.0)
    others = options.get("smoothing_over") == "others"
    t = (1 - smoothing) * t + smoothing * (
        (1 - t) / (classes - 1) if others else torch.full_like(t, 1 / classes)
    )
    c = np.ones(classes)
    if options.get("class_weight") == "balanced":
        c = weight.sum() / (classes * np.array([weight[y == k].sum() for k in range(classes)]))
    log_p = torch.log_softmax(scores, 1)
    focus = (1 - log_p.exp()) ** options.get("focal_gamma", 0.0)
    losses = -(torch.tensor(c) * t * focus * log_p).sum(1)
    loss = (torch.tensor(weight) * losses).sum() / (weight * c[y]).sum() + 0.15 * (coef**2).sum()
    loss.backward()
    np.testing.assert_allclose(value, loss.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(gradient, parameters.grad.numpy(), atol=1e-14)
    assert gradient_check(objective, point, 256, 0).error < 1e-7


def test_a_weight_is_a_number_of_repetitions():
    X, y = small()
    times = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = xent.SoftmaxRegression(tol=0).fit(X, y, times)
    repeated = xent.SoftmaxRegression(tol=0).fit(np.repeat(X, times, 0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-6)


@pytest.mark.parametrize("labels", [[7, -2, 3], ["cat", "ant", "bee"], [2.0, 5.0, -1.0]])
def test_labels_are_names_and_their_order_is_no_matter(labels):
    X, y = small()
    names = np.array(labels, dtype=object if isinstance(labels[0], str) else None)
    named = xent.SoftmaxRegression(tol=0).fit(X, names[y])
    plain = xent.SoftmaxRegression(tol=0).fit(X, y)
    assert list(named.classes_) == sorted(names)
    order = np.argsort(names)
    np.testing.assert_allclose(named.coef_, plain.coef_[order], atol=1e-6)
    assert (named.predict(X) == names[plain.predict(X)]).all()


def test_float32_features_stay_float32_and_reach_the_float64_optimum():
    rng = np.random.default_rng(0)
    X, y = small(rows=300)
    X = (X @ rng.standard_normal((4, 4))) * [1.0, 30.0, 0.03, 1.0] + [0.0, 100.0, 0.0, 5.0]
    wide = xent.SoftmaxRegression(max_iter=5000).fit(X, y)
    narrow = xent.SoftmaxRegression(max_iter=5000).fit(X.astype(np.float32), y)
    assert narrow.coef_.dtype == narrow.predict_proba(X.astype(np.float32)).dtype == np.float32
    assert wide.coef_.dtype == np.float64
    assert narrow.loss_curve_[-1] == pytest.approx(wide.loss_curve_[-1], rel=1e-6)


def test_blocks_of_rows_add_up(monkeypatch):
    X, y = small()
    objective = xent.SoftmaxRegression().objective(X, y)
    point = np.random.default_rng(2).standard_normal(objective.num_parameters)
    whole = objective(point)
    monkeypatch.setattr(regression, "BLOCK", 28)  # seven rows at a time
    blocks = objective(point)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-14)
    np.testing.assert_allclose(blocks[1], whole[1], atol=1e-15)


def test_log_probabilities_are_finite_where_probabilities_underflow():
    X, y = np.array([[-1.0], [1.0]]), [0, 1]
    model = xent.SoftmaxRegression().fit(X, y)
    far = np.array([[1000.0]])
    assert model.predict_proba(far)[0, 0] == 0
    score = model.decision_function(far)[0]
    np.testing.assert_allclose(model.predict_log_proba(far), [[-score, 0.0]], atol=1e-12)


def test_the_curve_starts_at_ln_k_falls_and_ends_where_the_gradient_is_small():
    X, y = small()
    steps = []
    model = xent.SoftmaxRegression(tol=1e-6, callback=steps.append).fit(X, y)
    assert model.loss_curve_[0] == pytest.approx(np.log(3))
    assert len(model.loss_curve_) == model.n_iter_ + 1
    assert (np.diff(model.loss_curve_) <= 0).all()
    assert [s.iteration for s in steps] == list(range(1, model.n_iter_ + 1))
    np.testing.assert_array_equal(steps[-1].coef, model.coef_)
    objective = model.objective(X, y)
    assert np.abs(objective(objective.pack(model.coef_, model.intercept_))[1]).max() <= 1e-6


def test_a_warm_start_has_little_left_to_do():
    X, y = small()
    model = xent.SoftmaxRegression(warm_start=True, tol=1e-6).fit(X, y)
    cold = model.n_iter_
    assert model.fit(X, y).n_iter_ <= 1 < cold
    model.fit(X, y + 1)  # other classes: from the beginning
    assert model.n_iter_ == cold


def test_verbose_prints_each_step(capsys):
    X, y = small()
    model = xent.SoftmaxRegression(verbose=True).fit(X, y)
    assert capsys.readouterr().out.count("objective") == model.n_iter_


@pytest.mark.parametrize("max_iter", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_too_few_steps_are_a_warning_that_says_what_to_do(max_iter, dtype):
    X, y = small()
    with pytest.warns(ConvergenceWarning, match=rf"max_iter={max_iter}.*tol=1e-05.*raise max_iter"):
        model = xent.SoftmaxRegression(max_iter=max_iter).fit(X.astype(dtype), y)
    assert model.n_iter_ == max_iter


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"alpha": -1}, None, r"`alpha` must be a number, finite and >= 0; got -1"),
        ({"alpha": "1"}, None, r"`alpha` must be a number, .*got '1'"),
        ({"tol": np.nan}, None, r"`tol` .*got nan"),
        ({"max_iter": 1.5}, None, r"`max_iter` must be an integer >= 0; got 1.5"),
        ({"label_smoothing": 2}, None, r"`label_smoothing` must be in \[0, 1\]; got 2"),
        ({"focal_gamma": 1, "label_smoothing": 0.1}, None, "`focal_gamma` and `label_smoothing`"),
        ({"class_weight": "even"}, None, r"`class_weight` must be a dict, .*got 'even'"),
        ({"class_weight": {9: 1.0}}, None, r"`class_weight` names 9, .*\[0, 1, 2\]"),
        ({"class_weight": {1: -1.0}}, None, r"`class_weight` must be finite and >= 0; got -1.0 for 1"),
        ({}, np.zeros(60), r"`y` must hold at least 2 classes; got one class, .*0.0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_out_of_place_is_named(options, y, message):
    X, labels = small()
    with pytest.raises(ValueError, match=message):
        xent.SoftmaxRegression(**options).fit(X, labels if y is None else y)


def test_weights_that_leave_nothing_are_refused():
    X, y = small()
    with pytest.raises(ValueError, match="must not be 0 in every row"):
        xent.SoftmaxRegression(class_weight={0: 0, 1: 0}).fit(X, y, y < 2)
    with pytest.raises(ValueError, match="Negative"):
        xent.SoftmaxRegression().fit(X, y, -np.ones(len(y)))


def test_inputs_are_not_written():
    X, y = small()
    weight = np.ones(len(y))
    for array in (X, y, weight):
        array.setflags(write=False)
    xent.SoftmaxRegression().fit(X, y, weight).predict(X)


def test_scipys_threads_are_one_while_training_and_restored_after():
    libraries = regression._scipy_blas()
    for library in libraries:
        library.set_num_threads(2)
    during = []
    X, y = small()
    xent.SoftmaxRegression(callback=lambda _: during.extend(b.get_num_threads() for b in libraries)).fit(X, y)
    assert set(during) <= {1}
    assert all(library.get_num_threads() == 2 for library in libraries)


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import xent; xent.SoftmaxRegression"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'xent[fit]'" in done.stderr.splitlines()[-1]
