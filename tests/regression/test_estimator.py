"""SoftmaxRegression computes what it says: scikit-learn's optimum, PyTorch's gradient, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import xent
from tests.regression.regressions import EXACT, assert_same_model, small, soft_targets
from xent.check import gradient_check

OR_THE_END_OF_FLOAT64 = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DATA = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}


def standardised(name: str) -> tuple[np.ndarray, np.ndarray]:
    X, y = DATA[name](return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iris", {}),
        ("iris", {"fit_intercept": False}),
        ("iris", {"class_weight": {0: 1.0, 2: 3.0}}),
        ("wine", {"class_weight": "balanced"}),
        ("wine", {"class_weight": "balanced", "fit_intercept": False}),
        ("breast_cancer", {}),
        ("breast_cancer", {"fit_intercept": False}),
        ("breast_cancer", {"class_weight": {0: 2.0, 1: 0.5}}),
        ("breast_cancer", {"class_weight": "balanced"}),
        ("digits", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimum_is_scikit_learns_with_c_of_one_over_alpha_d(name, options, weighted):
    X, y = standardised(name)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y)) if weighted else None
    ours = xent.SoftmaxRegression(alpha=0.01, **EXACT, **options).fit(X, y, weight)
    divisor = ours.objective(X, y, weight).divisor  # Σ ω c_y: scikit-learn's loss is the sum, ours the mean
    if not options and weight is None:
        assert divisor == len(y)
    theirs = LogisticRegression(C=1 / (0.01 * divisor), solver="newton-cholesky", tol=1e-10, **options)
    theirs.fit(X, y, weight)
    assert_same_model(ours, theirs)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
    np.testing.assert_allclose(
        ours.decision_function(X) - ours.decision_function(X).mean(),
        theirs.decision_function(X) - theirs.decision_function(X).mean(),
        atol=1e-5,
    )
    assert (ours.predict(X) == theirs.predict(X)).all()


SOLVERS = ["lbfgs", "newton-cg", "auto"]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_solver_ends_at_the_same_optimum(solver, classes):
    X, y = small(classes=classes)
    one = xent.SoftmaxRegression(solver=solver, tol=1e-13).fit(X, y)
    other = xent.SoftmaxRegression(solver="lbfgs", **EXACT).fit(X, y)
    assert_same_model(one, other, atol=1e-4)
    assert one.solver_ in ("lbfgs", "newton-cg")
    assert one.optimality_gap_ <= 1e-13


GRADIENTS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "smoothing_over": "others"},
    {"focal_gamma": 2.0},
    {"focal_gamma": 1.0, "class_weight": "balanced"},
    {"class_weight": "balanced", "label_smoothing": 0.2},
    {"class_weight": {0: 2.0, 1: 0.25}},
    {"fit_intercept": False},
    {"alpha": 0.0},
]


def autograd(X, target, weight, parameters, *, classes, alpha=0.3, class_weight=None, **options):
    """(value, gradient) of the definition, written for PyTorch; ``target`` labels or probabilities."""
    torch = pytest.importorskip("torch")
    point = torch.tensor(parameters, requires_grad=True)
    num_scores = classes if classes > 2 else 1
    coef = point[: num_scores * X.shape[1]].reshape(num_scores, -1)
    scores = torch.tensor(X) @ coef.T
    if options.get("fit_intercept", True):
        scores = scores + point[num_scores * X.shape[1] :]
    if classes == 2:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    hard = target.ndim == 1
    q = np.eye(classes)[target] if hard else target
    c = np.ones(classes)
    if class_weight == "balanced":
        c = (weight @ q).sum() / (classes * (weight @ q))
    for label, factor in (class_weight if isinstance(class_weight, dict) else {}).items():
        c[label] = factor
    total = (weight * (c[target] if hard else 1.0)).sum()
    t = torch.tensor(q)
    smoothing = options.get("label_smoothing", 0.0)
    # ε/K over all, or what moves ε to the others: q ↦ (1−ε)q + ε(1−q)/(K−1).
    spread = (
        (1 - t) / (classes - 1)
        if options.get("smoothing_over") == "others"
        else torch.full_like(t, 1 / classes)
    )
    t = (1 - smoothing) * t + smoothing * spread
    log_p = torch.log_softmax(scores, 1)
    focus = (1 - log_p.exp()) ** options.get("focal_gamma", 0.0)
    losses = -(torch.tensor(c) * t * focus * log_p).sum(1)
    loss = (torch.tensor(weight) * losses).sum() / total + 0.5 * alpha * (coef**2).sum()
    loss.backward()
    return float(loss.detach()), point.grad.numpy()


@OR_THE_END_OF_FLOAT64
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("options", GRADIENTS, ids=str)
def test_the_gradient_is_autograds_anywhere_and_zero_at_the_fit(classes, kind, options):
    if kind == "probabilities" and "focal_gamma" in options:
        pytest.skip("the focal loss is defined for labels")
    X, y = small(classes=classes)
    target = y if kind == "labels" else soft_targets(y, classes)
    weight = np.random.default_rng(1).uniform(0.0, 2.0, len(y))
    options = {"alpha": 0.3} | options
    estimator = xent.SoftmaxRegression(**options, **EXACT)
    objective = estimator.objective(X, target, weight)
    point = np.random.default_rng(2).standard_normal(objective.num_parameters)
    value, gradient = objective(point)
    expected_value, expected_gradient = autograd(X, target, weight, point, classes=classes, **options)
    np.testing.assert_allclose(value, expected_value, rtol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-14)
    assert gradient_check(objective, point, 256, 0).error < 1e-7

    estimator.fit(X, target, weight)
    optimum = objective.pack(estimator.coef_, estimator.intercept_)
    value, gradient = autograd(X, target, weight, optimum, classes=classes, **options)
    assert value == pytest.approx(estimator.loss_curve_[-1], rel=1e-12)
    assert np.abs(gradient).max() < 1e-6


@OR_THE_END_OF_FLOAT64
@pytest.mark.parametrize("options", GRADIENTS[:-1], ids=str)
def test_the_gap_is_no_smaller_than_the_distance_from_the_optimum(options):
    X, y = small(rows=200)
    if "focal_gamma" in options:
        assert xent.SoftmaxRegression(**options).fit(X, y).optimality_gap_ is None
        return
    best = xent.SoftmaxRegression(**options, **EXACT).fit(X, y).loss_curve_[-1]
    gaps = []
    for max_iter in (0, 1, 2, 3, 4, 100):
        model = xent.SoftmaxRegression(**options, solver="lbfgs", max_iter=max_iter, tol=1e-9)
        gaps.append(model.fit(X, y).optimality_gap_)
        end = model.loss_curve_[-1]
        assert (end - best) / end <= model.optimality_gap_ + 1e-13
    assert gaps[-1] <= 1e-9 < gaps[0]


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}, {"label_smoothing": 0.1}], ids=str)
def test_a_weight_is_a_number_of_repetitions(kind, options):
    X, y = small()
    target = y if kind == "labels" else soft_targets(y, 3)
    times = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = xent.SoftmaxRegression(**EXACT, **options).fit(X, target, times)
    repeated = xent.SoftmaxRegression(**EXACT, **options)
    repeated.fit(np.repeat(X, times, 0), np.repeat(target, times, 0))
    assert_same_model(weighted, repeated)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_what_all_classes_could_share_is_0(solver, alpha):
    X, y = small()
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    model = xent.SoftmaxRegression(solver=solver, alpha=alpha, class_weight={0: 9.0})
    model.fit(X, soft_targets(y, 3), weight)
    np.testing.assert_allclose(model.coef_.mean(0), 0, atol=1e-14)
    assert model.intercept_.mean() == pytest.approx(0, abs=1e-14)


def test_weights_and_class_weights_are_relative():
    X, y = small()
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    plain = xent.SoftmaxRegression(class_weight={0: 2.0}, **EXACT).fit(X, y, weight)
    factor = {0: 6.0, 1: 3.0, 2: 3.0}
    assert_same_model(xent.SoftmaxRegression(class_weight=factor, **EXACT).fit(X, y, 7 * weight), plain)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "smoothing_over": "others"}], ids=str)
def test_labels_are_one_hot_rows(classes, options):
    X, y = small(classes=classes)
    labels = xent.SoftmaxRegression(**EXACT, **options).fit(X, y)
    rows = xent.SoftmaxRegression(**EXACT, **options).fit(X, np.eye(classes)[y])
    assert_same_model(rows, labels)
    assert rows.classes_.tolist() == list(range(classes))
    narrow = xent.SoftmaxRegression(**EXACT, **options).fit(X, np.eye(classes, dtype=np.float32)[y])
    assert_same_model(narrow, labels)


def test_smoothing_is_the_smoothed_rows():
    X, y = small()
    labels = xent.SoftmaxRegression(label_smoothing=0.3, **EXACT).fit(X, y)
    rows = xent.SoftmaxRegression(**EXACT).fit(X, 0.7 * np.eye(3)[y] + 0.1)
    assert_same_model(labels, rows)


def test_the_probabilities_of_a_model_are_the_fit_of_that_model():
    """Targets that a softmax of the features can give exactly are given exactly without a penalty."""
    X, _ = small()
    W, b = np.random.default_rng(3).standard_normal((3, 4)), np.array([0.3, -0.1, 0.0])
    q = xent.softmax(X @ W.T + b)
    model = xent.SoftmaxRegression(alpha=0, tol=1e-12).fit(X, q)
    np.testing.assert_allclose(model.predict_proba(X), q, atol=1e-5)


@pytest.mark.parametrize("labels", [[7, -2, 3], ["cat", "ant", "bee"], [2.0, 5.0, -1.0], [70000, -70000, 0]])
def test_labels_are_names_and_their_order_is_no_matter(labels):
    X, y = small()
    names = np.array(labels, dtype=object if isinstance(labels[0], str) else None)
    named = xent.SoftmaxRegression(**EXACT).fit(X, names[y])
    plain = xent.SoftmaxRegression(**EXACT).fit(X, y)
    assert list(named.classes_) == sorted(names)
    order = np.argsort(names)
    np.testing.assert_allclose(named.coef_, plain.coef_[order], atol=1e-6)
    assert (named.predict(X) == names[plain.predict(X)]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, bool, ">i4"])
def test_integer_labels_of_any_width(dtype):
    X, y = small(classes=2)
    model = xent.SoftmaxRegression().fit(X, y.astype(dtype))
    assert model.classes_.tolist() == [0, 1]
    assert model.predict(X).dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(model.coef_, xent.SoftmaxRegression().fit(X, y).coef_)


def test_labels_at_the_ends_of_their_dtype():
    X, y = small()
    for dtype in (np.int8, np.int64, np.uint64):
        ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).min + 1, np.iinfo(dtype).max], dtype)
        model = xent.SoftmaxRegression().fit(X, ends[y])
        np.testing.assert_array_equal(model.classes_, ends)
        np.testing.assert_array_equal(model.predict(X), ends[xent.SoftmaxRegression().fit(X, y).predict(X)])


def test_float32_features_stay_float32_and_reach_the_float64_optimum():
    rng = np.random.default_rng(0)
    X, y = small(rows=300)
    X = (X @ rng.standard_normal((4, 4))) * [1.0, 30.0, 0.03, 1.0] + [0.0, 100.0, 0.0, 5.0]
    wide = xent.SoftmaxRegression(max_iter=5000).fit(X, y)
    narrow = xent.SoftmaxRegression(max_iter=5000).fit(X.astype(np.float32), y)
    for array in (narrow.coef_, narrow.intercept_, narrow.predict_proba(X.astype(np.float32))):
        assert array.dtype == np.float32
    assert wide.coef_.dtype == np.float64
    assert narrow.loss_curve_[-1] == pytest.approx(wide.loss_curve_[-1], rel=2 * wide.tol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csr_array])
def test_sparse_features_give_the_dense_model_and_stay_sparse(dtype, classes, kind, monkeypatch):
    X, y = small(rows=200, classes=classes)
    X = np.where(np.random.default_rng(4).random(X.shape) < 0.5, X, 0).astype(dtype)
    dense = xent.SoftmaxRegression(tol=1e-10).fit(X, y)
    for name in ("toarray", "todense", "__array__"):
        monkeypatch.setattr(kind, name, lambda *_: pytest.fail("densified"), raising=False)
    sparse = kind(X)
    for array in (sparse.data, sparse.indices, sparse.indptr):
        array.setflags(write=False)
    model = xent.SoftmaxRegression(tol=1e-10).fit(sparse, y)
    assert model.coef_.dtype == dtype
    assert_same_model(model, dense, atol=1e-3 if dtype == np.float32 else 1e-5)
    np.testing.assert_allclose(model.predict_proba(sparse), model.predict_proba(X), rtol=1e-4)
    np.testing.assert_allclose(model.decision_function(sparse), model.decision_function(X), atol=1e-4)
    assert (model.predict(sparse) == model.predict(X)).all()


def test_log_probabilities_are_finite_where_probabilities_underflow():
    X, y = np.array([[-1.0], [1.0]]), [0, 1]
    model = xent.SoftmaxRegression().fit(X, y)
    far = np.array([[1000.0]])
    assert model.predict_proba(far)[0, 0] == 0
    score = model.decision_function(far)[0]
    np.testing.assert_allclose(model.predict_log_proba(far), [[-score, 0.0]], atol=1e-12)


def test_the_curve_starts_at_ln_k_falls_and_ends_at_the_gap():
    X, y = small()
    steps = []
    model = xent.SoftmaxRegression(callback=steps.append).fit(X, y)
    assert model.loss_curve_[0] == pytest.approx(np.log(3))
    assert len(model.loss_curve_) == model.n_iter_ + 1
    assert (np.diff(model.loss_curve_) <= 0).all()
    assert [s.iteration for s in steps] == list(range(1, model.n_iter_ + 1))
    assert [s.objective for s in steps] == model.loss_curve_[1:]
    np.testing.assert_allclose(steps[-1].coef, model.coef_, atol=1e-12)
    assert model.optimality_gap_ <= model.tol
    assert model.optimality_gap_ <= steps[-1].optimality_gap
