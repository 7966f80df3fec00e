"""A checkpoint of another fit, or none at all, is refused in one line that names the difference."""

from __future__ import annotations

import numpy as np
import pytest

import xent
from tests.regression.saved.test_checkpoints import StopError, X, Y, fit, stop_at
from tests.regression.sums.problems import data
from xent.files import storage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of `data`, after two steps."""
    path = tmp_path_factory.mktemp("checkpoints") / "c"
    with pytest.raises(StopError):
        xent.SoftmaxRegression(solver="lbfgs", checkpoint=path, callback=stop_at(2)).fit(*data())
    return path


def changed(row, column):
    X, y, _ = data()
    X[row, column] *= 1 + 1e-9
    return X, y


def relabelled():
    X, y, _ = data()
    y[[0, -1]] = y[[-1, 0]]
    return X, y


def reordered():
    X, y, _ = data()
    return X[::-1].copy(), y[::-1].copy()


OTHERS = {
    "alpha": ({"alpha": 0.5}, (X, Y), "its `alpha` is 0.001, that of this fit 0.5"),
    "tol": ({"tol": 1e-3}, (X, Y), "its `tol` is 0.0001, that of this fit 0.001"),
    "weights": (
        {"class_weight": {0: 2.0}},
        (X, Y),
        r"its `class_weight` is None, that of this fit \[\[0, 2.0",
    ),
    "intercept": ({"fit_intercept": False}, (X, Y), "its `fit_intercept` is True, that of this fit False"),
    "solver": ({"solver": "newton-cg"}, (X, Y), "its solver is 'lbfgs', that of this fit 'newton-cg'"),
    "rows": ({}, (X[1:], Y[1:]), r"its rows of each partition is \[240\], that of this fit \[239\]"),
    "columns": ({}, (X[:, 1:], Y), "its features is 6, that of this fit 5"),
    "dtype": ({}, (X.astype("f4"), Y), "its dtype is 'float64', that of this fit 'float32'"),
    "classes": ({}, (X, Y + 1), "its classes is .*0, 1, 2.* of this fit .*1, 2, 3"),
    "mass": ({}, (X, Y, np.full(len(Y), 2.0)), "its weight of all rows is 240.0, that of this fit 480.0"),
    "a number": ({}, changed(17, 0), "at its parameters the (objective|gradient)"),
    "two labels": ({}, relabelled(), r"at its parameters the objective was [\d.]+ and is [\d.]+$"),
    "another order": ({}, reordered(), "at its parameters the (objective|gradient)"),
}


@pytest.mark.parametrize(("options", "problem", "words"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_fit_is_refused_and_the_difference_named(options, problem, words, saved):
    model = xent.SoftmaxRegression(**{"solver": "lbfgs"} | options, resume=saved)
    with pytest.raises(ValueError, match=f"^{saved}: is a checkpoint of another fit: {words}"):
        model.fit(*problem)
    assert not hasattr(model, "coef_")


def test_a_gradient_alone_tells_other_data(tmp_path):
    """A column that was 0 has no weights, so its values do not change the objective."""
    X, y, _ = data()
    X[:, 2] = 0
    with pytest.raises(StopError):
        fit(xent.SoftmaxRegression(checkpoint=tmp_path / "c", callback=stop_at(2)), (X, y))
    X[:, 2] = 1
    with pytest.raises(ValueError, match="the gradient of the objective was another"):
        xent.SoftmaxRegression(resume=tmp_path / "c").fit(X, y)


def test_other_parameters_are_refused_before_the_data_are_read(saved):
    model = xent.SoftmaxRegression(resume=saved, alpha=0.5)
    with pytest.raises(ValueError, match="its `alpha`"):
        model.fit(xent.rows_from("nowhere/*.parquet", target="y"))


def with_tensor(name, change):
    def damaged(path):
        contents = storage.load(path)
        return contents._replace(tensors=contents.tensors | {name: change(contents.tensors[name])})

    return damaged


def with_counts(**counts):
    def damaged(path):
        contents = storage.load(path)
        contents.metadata["checkpoint"]["counts"] |= counts
        return contents

    return damaged


def without_checkpoint(path):
    contents = storage.load(path)
    del contents.metadata["checkpoint"]
    return contents


DAMAGED = {
    "a model": (without_checkpoint, "is no checkpoint: it holds a model alone"),
    "a short vector": (
        with_tensor("checkpoint.point.gradient", lambda x: x[1:]),
        "'checkpoint.point.gradient'",
    ),
    "a long pair": (with_tensor("checkpoint.kept.steps", lambda x: x[:, :2]), "'checkpoint.kept.steps'"),
    "one pair less": (with_tensor("checkpoint.kept.rhos", lambda x: x[1:]), "kept.' have different lengths"),
    "integers": (with_tensor("checkpoint.kept.scale", lambda x: x.astype(int)), "'checkpoint.kept.scale'"),
    "two numbers": (with_tensor("checkpoint.polished", lambda x: np.zeros(2)), "'checkpoint.polished'"),
    "few keys": (
        with_tensor("checkpoint.kept.draws.keys", lambda x: x[1:]),
        "the state of a generator must be",
    ),
    "large keys": (with_tensor("checkpoint.kept.draws.keys", lambda x: x * 1e9), "the state of a generator"),
    "no steps": (with_counts(steps=0), "its steps must be at least 1; got 0"),
    "other steps": (with_counts(steps=3), "it has 3 objectives of 3 steps"),
    "no gap": (with_counts(gap=None), "its entry 'gap' must be float"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_checkpoint_is_refused(damage, words, saved, tmp_path):
    path = tmp_path / "c"
    storage.save(damage(saved), path)
    with pytest.raises(ValueError, match=f"^{path}: .*{words}"):
        xent.SoftmaxRegression(solver="lbfgs", resume=path).fit(X, Y)


def test_bad_paths_are_one_error(saved, tmp_path):
    (tmp_path / "text").write_text("no checkpoint")
    cases = [
        ({"resume": tmp_path / "text"}, ValueError, "text: is not a model file"),
        ({"resume": tmp_path / "nothing"}, FileNotFoundError, "nothing"),
        ({"resume": 3}, ValueError, "`resume` must be a path or None; got 3"),
        ({"checkpoint": b"c"}, ValueError, "`checkpoint` must be a path or None; got b'c'"),
        ({"checkpoint": tmp_path}, IsADirectoryError, "cannot be written: is a directory"),
        ({"checkpoint": tmp_path / "no" / "c"}, FileNotFoundError, "cannot be written: no directory"),
        ({"checkpoint_interval": -1}, ValueError, "`checkpoint_interval` must be a number, finite and >= 0"),
    ]
    for options, kind, words in cases:
        model = xent.SoftmaxRegression(**options)
        with pytest.raises(kind, match=words):
            model.fit(X, Y)
