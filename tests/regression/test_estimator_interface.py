"""SoftmaxRegression behaves as scikit-learn's users expect: their checks, their tools, words for mistakes."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_class_weight_classifiers, parametrize_with_checks

import xent
from tests.regression.regressions import EXACT, assert_same_model, small, soft_targets
from xent.regression import estimator as regression


def fails_for_scikit_learn_too(estimator):
    """Weights of 1000 to 0.0001 on classes around 0, without an intercept: see the next test."""
    return {} if estimator.fit_intercept else {"check_class_weight_classifiers": "not without an intercept"}


@parametrize_with_checks(
    [
        xent.SoftmaxRegression(),
        xent.SoftmaxRegression(fit_intercept=False),
        xent.SoftmaxRegression(class_weight="balanced"),
        xent.SoftmaxRegression(solver="newton-cg", warm_start=True),
        xent.SoftmaxRegression(focal_gamma=1.0),
        xent.SoftmaxRegression(label_smoothing=0.1, smoothing_over="others", alpha=0.1),
    ],
    expected_failed_checks=fails_for_scikit_learn_too,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_the_one_exception_is_logistic_regressions():
    """No threshold through 0 gives the heavy class nearly all rows."""
    with pytest.raises(AssertionError):
        check_class_weight_classifiers("LogisticRegression", LogisticRegression(fit_intercept=False))


def fitted(**options) -> xent.SoftmaxRegression:
    return xent.SoftmaxRegression(**options).fit(*small())


# The tools of scikit-learn


def test_grid_search_pipeline_and_cross_validation():
    X, y = small(rows=120)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), xent.SoftmaxRegression()),
        {"softmaxregression__alpha": [1e-3, 10.0], "softmaxregression__label_smoothing": [0.0, 0.1]},
        scoring="neg_log_loss",
    ).fit(X, y)
    assert search.best_params_["softmaxregression__alpha"] == 1e-3
    log_p = search.best_estimator_.predict_log_proba(X)[np.arange(120), y]
    assert search.score(X, y) == pytest.approx(log_p.mean(), rel=1e-12)
    assert cross_val_score(xent.SoftmaxRegression(), X, y).mean() > 0.6
    assert cross_val_predict(xent.SoftmaxRegression(), X, y, method="predict_log_proba").shape == (120, 3)
    assert OneVsRestClassifier(xent.SoftmaxRegression()).fit(X, y).predict_proba(X).shape == (120, 3)


def test_rows_of_probabilities_are_cross_validated_too():
    X, y = small(rows=120)
    q = soft_targets(y, 3)
    search = GridSearchCV(xent.SoftmaxRegression(), {"alpha": [1e-3, 100.0]}).fit(X, q)
    assert search.best_params_ == {"alpha": 1e-3}
    model = search.best_estimator_
    assert model.score(X, q) == q[np.arange(120), model.predict(X)].mean()
    assert model.score(X, np.eye(3)[y]) == pytest.approx(model.score(X, y))
    weight = np.random.default_rng(0).uniform(size=120)
    assert model.score(X, np.eye(3)[y], weight) == pytest.approx(model.score(X, y, weight))


def test_rows_of_another_sum_are_warned_of_and_taken_as_they_are():
    X, y = small(classes=3)
    q = np.eye(3)[y]
    q[[4, 9]] *= [[2.0], [3.0]]
    with pytest.warns(UserWarning, match="2 rows of `y` .* the first is row 4 with 2:") as caught:
        model = xent.SoftmaxRegression(**EXACT).fit(X, q)
    assert caught[0].filename == __file__
    weight = q.sum(1)
    alpha = EXACT.get("alpha", 1e-3) * len(y) / weight.sum()  # the mean is over the rows, not over their sums
    assert_same_model(model, xent.SoftmaxRegression(**EXACT | {"alpha": alpha}).fit(X, y, weight))


def test_weights_are_routed():
    X, y = small()
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        final = xent.SoftmaxRegression().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        routed = make_pipeline(scaler, final).fit(X, y, sample_weight=weight)
        requests = xent.SoftmaxRegression().set_partial_fit_request(classes=True).get_metadata_routing()
    assert requests.partial_fit.requests["classes"] is True
    direct = xent.SoftmaxRegression().fit(StandardScaler().fit_transform(X), y, weight)
    np.testing.assert_array_equal(routed[-1].coef_, direct.coef_)


def test_clones_and_pickles():
    model = fitted(alpha=0.1, class_weight={0: 2.0}, random_state=np.random.RandomState(0))
    assert clone(model).get_params().keys() == model.get_params().keys()
    assert not hasattr(clone(model), "coef_")
    again = pickle.loads(pickle.dumps(model))
    X, _ = small()
    np.testing.assert_array_equal(again.predict_log_proba(X), model.predict_log_proba(X))
    assert again.optimality_gap_ == model.optimality_gap_


def test_its_page_and_its_line():
    model = fitted(alpha=0.25)
    assert "SoftmaxRegression" in model._repr_html_()
    assert "0.25" in model._repr_html_()
    assert repr(model) == "SoftmaxRegression(alpha=0.25)"


def test_names_of_features_are_kept_and_held_to():
    polars = pytest.importorskip("polars")
    X, y = small()
    table = polars.DataFrame(X, schema=["a", "b", "c", "d"], orient="row")
    model = xent.SoftmaxRegression().fit(table, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model.predict(table).tolist() == xent.SoftmaxRegression().fit(X, y).predict(X).tolist()
    with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
        model.predict(table.rename({"a": "z"}))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(X)
    scaled = make_pipeline(StandardScaler().set_output(transform="polars"), xent.SoftmaxRegression())
    assert scaled.fit(table, y)[-1].feature_names_in_.tolist() == ["a", "b", "c", "d"]


def test_nothing_works_before_fit():
    X, y = small()
    for use in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(xent.SoftmaxRegression(), use)(X)
    with pytest.raises(NotFittedError):
        xent.SoftmaxRegression().calibrate_temperature(X, y)


# Words


@pytest.mark.parametrize("verbose", [True, 1, 3, np.int64(1)])
def test_verbose_prints_each_step(verbose, capsys):
    model = fitted(verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_
    assert lines[0].startswith("step 1: objective 0.")


@pytest.mark.parametrize("max_iter", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_too_few_steps_are_a_warning_that_says_what_to_do(max_iter, dtype):
    X, y = small()
    with pytest.warns(ConvergenceWarning, match=rf"max_iter={max_iter}.*tol=0.0001.*raise max_iter"):
        model = xent.SoftmaxRegression(max_iter=max_iter, solver="lbfgs").fit(X.astype(dtype), y)
    assert model.n_iter_ == max_iter
    assert model.optimality_gap_ > model.tol


WRONG = [
    ({"alpha": -1}, r"`alpha` must be a number, finite and >= 0; got -1"),
    ({"alpha": "1"}, r"`alpha` must be a number, .*got '1'"),
    ({"alpha": None}, r"`alpha` must be a number, .*got None"),
    ({"tol": np.nan}, r"`tol` .*got nan"),
    ({"max_iter": 1.5}, r"`max_iter` must be an integer >= 0; got 1.5"),
    ({"solver": "adam"}, r'`solver` must be one of "auto", "lbfgs", "newton-cg", "sgd"; got \'adam\''),
    ({"fit_intercept": 1}, r"`fit_intercept` must be True or False; got 1"),
    ({"warm_start": "yes"}, r"`warm_start` must be True or False; got 'yes'"),
    ({"label_smoothing": 2}, r"`label_smoothing` must be in \[0, 1\]; got 2"),
    ({"focal_gamma": 1, "label_smoothing": 0.1}, "`focal_gamma` and `label_smoothing`"),
    ({"class_weight": "even"}, r"`class_weight` must be a dict, .*got 'even'"),
    ({"class_weight": {9: 1.0}}, r"`class_weight` names 9, .*\[0, 1, 2\]"),
    ({"class_weight": {1: -1.0}}, r"`class_weight` must be finite and >= 0; got -1.0 for 1"),
    ({"class_weight": {1: "a"}}, r"`class_weight` must be finite and >= 0; got 'a' for 1"),
    ({"random_state": "x"}, "'x' cannot be used to seed"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_an_option_out_of_place_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        xent.SoftmaxRegression(**{"solver": "sgd"} | options).fit(*small())


Q = np.full((60, 3), 1 / 3)
WRONG_TARGETS = [
    ({}, np.zeros(60), r"`y` must hold at least 2 classes of a weight > 0; got one class, 0\.0$"),
    ({}, np.tile([0.0, 1.0, 0.0], (60, 1)), r"at least 2 classes of a weight > 0; got one class, 1$"),
    ({}, np.linspace(0, 1, 60), "Unknown label type: continuous"),
    ({}, np.eye(3, dtype=int)[np.arange(60) % 3], r"rows of probabilities \(one-hot rows too\).*of int64"),
    ({}, np.where(np.arange(180).reshape(60, 3) == 7, -0.5, Q), r"`y` .*got -0.5 at row 2, column 1"),
    ({}, np.where(np.arange(180).reshape(60, 3) == 7, np.nan, Q), "Input y contains NaN"),
    ({}, Q[:50], "inconsistent numbers of samples"),
    ({}, np.arange(50) % 3, "inconsistent numbers of samples"),
    ({"focal_gamma": 1.0}, Q, "`focal_gamma` and probability `targets` cannot be combined"),
    ({"class_weight": {5: 1.0}}, Q, r"`class_weight` names 5, .*\[0, 1, 2\]"),
]


@pytest.mark.parametrize(("options", "y", "message"), WRONG_TARGETS, ids=lambda v: str(v)[:40])
def test_a_target_out_of_place_is_named(options, y, message):
    X, _ = small()
    with pytest.raises(ValueError, match=message):
        xent.SoftmaxRegression(**options).fit(X, y)


def test_weights_that_leave_nothing_are_refused():
    X, y = small()
    with pytest.raises(ValueError, match="must not be 0 in every row"):
        xent.SoftmaxRegression(class_weight={0: 0, 1: 0}).fit(X, y, y < 2)
    with pytest.raises(ValueError, match=r"at least 2 classes of a weight > 0; got one class, .*2"):
        xent.SoftmaxRegression().fit(X, y, y == 2)
    with pytest.raises(ValueError, match=r"non-zero number|at least 2 classes of a weight > 0"):
        xent.SoftmaxRegression().fit(X, Q, np.zeros(60))
    with pytest.raises(ValueError, match="Negative"):
        xent.SoftmaxRegression().fit(X, y, -np.ones(len(y)))


def test_inputs_are_not_written():
    X, y = small()
    weight = np.ones(len(y))
    q = soft_targets(y, 3)
    for array in (X, y, weight, q):
        array.setflags(write=False)
    for solver in ("lbfgs", "newton-cg"):
        xent.SoftmaxRegression(solver=solver).fit(X, y, weight).predict(X)
        xent.SoftmaxRegression(solver=solver, class_weight={0: 2.0}, label_smoothing=0.1).fit(X, q, weight)
    xent.SoftmaxRegression().partial_fit(X, y, [0, 1, 2], weight).calibrate_temperature(X, y, weight)


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import xent; xent.SoftmaxRegression"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'xent[fit]'" in done.stderr.splitlines()[-1]


def test_the_versions_are_those_that_run():
    assert regression.versions()["numpy"] == np.__version__
    assert regression.versions()["xent"] == xent.__version__


def test_equal_models_of_equal_data():
    X, y = small()
    assert_same_model(xent.SoftmaxRegression().fit(X, y), xent.SoftmaxRegression().fit(X, y), atol=0)


class NA:
    """Like pandas' NA: what it is compared with is neither like nor unlike it."""

    def __ne__(self, other):
        return self

    __eq__ = __ne__
    __hash__ = None

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"


LABELS = [
    (["a", None, "b", "a"], "a label in each row; got None in row 1"),
    (["a", "b", float("nan"), "a"], "a label in each row; got nan in row 2"),
    (np.array(["a", "b", NA(), "a"], object), "a label in each row; got <NA> in row 2"),
    ([0.0, np.nan, 1.0, 0.0], r"a label in each row; got (np\.float64\()?nan\)? in row 1"),
    (np.ma.array([0, 1, 0, 1], mask=[0, 0, 0, 1]), "a label in each row; got None in row 3"),
    (np.array(["a", 1, "b", "a"], object), "labels of one kind; got 'a' in row 0 and 1 in row 1"),
    (np.array([1, 2, b"b", 1], object), "labels of one kind; got 1 in row 0 and b'b' in row 2"),
]


@pytest.mark.parametrize(("labels", "words"), LABELS)
def test_labels_that_are_none_are_named_with_their_row(labels, words):
    X4 = np.arange(8.0).reshape(4, 2)
    labels = labels if isinstance(labels, np.ndarray) else np.array(labels, object if "a" in labels else None)
    model = xent.SoftmaxRegression().fit(X4, [0, 1, 0, 1])
    for call in (model.fit, model.calibrate_temperature, model.partial_fit, model.score):
        with pytest.raises(ValueError, match=f"`y` must hold {words}"):
            call(X4, labels)
    with pytest.raises(ValueError, match=f"`classes` must hold {words}"):
        xent.SoftmaxRegression().partial_fit(X4, [0, 1, 0, 1], classes=labels)


def test_a_fit_that_fails_leaves_the_model_as_it_was():
    X, y = small()
    model = xent.SoftmaxRegression().fit(X, y)
    before, found = dict(vars(model)), model.predict_proba(X)
    wide = np.ones((4, X.shape[1] + 3))

    def stop(step):
        raise KeyboardInterrupt

    for call, error in (
        (lambda: model.fit(wide, ["a", None, "b", "a"]), ValueError),
        (lambda: model.fit(wide, [0, 0, 0, 0]), ValueError),
        (lambda: model.fit(wide, [0, 1]), ValueError),
        (lambda: model.fit(wide, [0, 1, 0, 1], [-1, 1, 1, 1]), ValueError),
        (lambda: model.fit(wide * 1e200, [0, 1, 0, 1]), ValueError),
        (lambda: model.partial_fit(X, np.full(len(y), 9)), ValueError),
        (lambda: model.set_params(callback=stop).fit(X[:, :2], y), KeyboardInterrupt),
    ):
        with pytest.raises(error):
            call()
        model.callback = None
    model.objective(wide, [0, 1, 0, 1])
    assert vars(model).keys() == before.keys()
    np.testing.assert_array_equal(model.predict_proba(X), found)
    assert model.fit(wide + np.arange(4.0)[:, None], [0, 1, 0, 1]).n_features_in_ == wide.shape[1]
