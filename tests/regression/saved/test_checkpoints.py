"""Checkpoints: a fit that goes on has the bits of one that did not stop; other files and fits are refused."""

from __future__ import annotations

import errno
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import xent
from tests.regression.sums.test_partitions import CUTS, bits, data, fitted
from xent.files import storage
from xent.regression import objective as objective_file
from xent.regression.saved import checkpoints


class StopError(Exception):
    """Raised by a callback."""


def stop_at(step):
    def callback(at):
        if at.iteration == step:
            raise StopError

    return callback


def fit(model, problem, cuts=None):
    return model.fit(*problem) if cuts is None else fitted(model, *problem, cuts)


def everything(model):
    return *bits(model), model.n_iter_, model.solver_, model.classes_.tolist()


# parameters, kind of the features, cuts between partitions, elements of an X that is small
FITS = {
    "lbfgs": ({"solver": "lbfgs", "tol": 1e-8}, "dense", None, 1 << 16),
    "lbfgs, float32": ({"solver": "lbfgs", "tol": 1e-8}, "dense float32", None, 0),
    "lbfgs, partitions": ({"solver": "lbfgs", "class_weight": {0: 2.0}}, "dense float32", CUTS["5"], 0),
    "lbfgs, csr": ({"solver": "lbfgs", "tol": 1e-7}, "csr float32", CUTS["2"], 0),
    "lbfgs, no intercept": ({"solver": "lbfgs", "fit_intercept": False}, "dense", None, 0),
    "newton-cg": ({"solver": "newton-cg", "tol": 1e-10}, "dense", None, 1 << 16),
    "newton-cg, csr": ({"solver": "newton-cg", "tol": 1e-9}, "csr", CUTS["20"], 0),
    "newton-cg, focal": ({"solver": "newton-cg", "focal_gamma": 2.0}, "dense float32", None, 0),
    "sgd": ({"solver": "sgd", "tol": 0.2, "random_state": 5}, "dense", None, 1 << 16),
    "sgd, csr": ({"solver": "sgd", "tol": 0.2, "random_state": 5}, "csr float32", None, 0),
}


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(("options", "kind", "cuts", "small"), FITS.values(), ids=FITS)
def test_a_fit_stopped_at_any_step_goes_on_with_the_same_bits(
    options, kind, cuts, small, num_classes, tmp_path, monkeypatch
):
    monkeypatch.setattr(objective_file, "SMALL", small)
    for name in ("LEAST", "ROWS"):  # so that preconditioners are estimated from samples
        monkeypatch.setattr(f"xent.regression.solvers.preconditioners.{name}", 10)
    problem, path = data(kind, weighted=True, num_classes=num_classes), tmp_path / "c"
    whole = fit(xent.SoftmaxRegression(**options), problem, cuts)
    assert whole.n_iter_ > 2
    steps = range(1, whole.n_iter_ + 1)
    for step in steps if len(steps) < 20 else (1, 4, 5, 16, 17, steps[-1]):  # around the stages of "sgd"
        stopped = xent.SoftmaxRegression(**options, checkpoint=path, callback=stop_at(step))
        with pytest.raises(StopError):
            fit(stopped, problem, cuts)
        assert not hasattr(stopped, "coef_")
        unfinished = xent.SoftmaxRegression.load(path)
        assert unfinished.loss_curve_ == whole.loss_curve_[: step + 1]
        again = fit(xent.SoftmaxRegression(**options, resume=path), problem, cuts)
        assert everything(again) == everything(whole)


def test_a_fit_that_is_stopped_and_goes_on_again_and_again_has_the_same_bits(tmp_path):
    problem, path = data("dense float32"), tmp_path / "c"
    whole = xent.SoftmaxRegression(solver="lbfgs", tol=1e-9).fit(*problem)
    model = xent.SoftmaxRegression(solver="lbfgs", tol=1e-9, checkpoint=str(path))
    for step in range(1, whole.n_iter_):
        with pytest.raises(StopError):
            model.set_params(callback=stop_at(step)).fit(*problem)
        model.set_params(resume=str(path))
    model.set_params(callback=None).fit(*problem)
    assert everything(model) == everything(whole)
    assert everything(model.fit(*problem)) == everything(whole)  # from the end


def test_a_first_fit_to_a_sample_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr("xent.regression.solvers.SAMPLED_ROWS", 0)
    problem, options = data(rows=3000), {"tol": 1e-9}
    whole = xent.SoftmaxRegression(**options).fit(*problem)
    with pytest.raises(StopError):
        fit(xent.SoftmaxRegression(**options, checkpoint=tmp_path / "c", callback=stop_at(1)), problem)
    monkeypatch.setattr("xent.regression.solvers._optimum_of_a_sample", None)
    again = fit(xent.SoftmaxRegression(**options, resume=tmp_path / "c"), problem)
    assert everything(again) == everything(whole)


def test_max_iter_may_be_raised(tmp_path):
    problem = data("dense float32")
    whole = xent.SoftmaxRegression(solver="lbfgs", tol=1e-9).fit(*problem)
    with pytest.warns(match="max_iter=3"):
        xent.SoftmaxRegression(solver="lbfgs", tol=1e-9, max_iter=3, checkpoint=tmp_path / "c").fit(*problem)
    again = xent.SoftmaxRegression(solver="lbfgs", tol=1e-9, resume=tmp_path / "c").fit(*problem)
    assert everything(again) == everything(whole)


@pytest.mark.parametrize(
    "state",
    [None, 7, np.random.RandomState(7), np.random.RandomState(np.random.PCG64(7))],
    ids=("None", "7", "MT19937", "PCG64"),
)
def test_what_was_drawn_is_not_drawn_again(state, tmp_path):
    """Each run goes on from its own checkpoint, of whatever generator, also of that of the process."""
    problem, curves = data(), []

    def look(step):
        curves.append((step.iteration, step.objective))

    options = {"solver": "sgd", "tol": 0.05, "random_state": state, "checkpoint": tmp_path / "c"}
    for step in (2, 9):
        with pytest.raises(StopError):
            fit(xent.SoftmaxRegression(**options, callback=stop_at(step)), problem)
        half = checkpoints.load(tmp_path / "c", xent.SoftmaxRegression)
        one, other = (
            xent.SoftmaxRegression(**options | {"checkpoint": None}, resume=tmp_path / "c").fit(*problem)
            for _ in range(2)
        )
        assert everything(one) == everything(other)
        assert one.loss_curve_[: step + 1] == half.model.loss_curve_


KILLED = """
    import os, signal, sys
    import xent
    from tests.regression.sums.test_partitions import data

    def kill(step):
        if step.iteration == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    model = xent.SoftmaxRegression(
        solver="lbfgs", tol=1e-9, checkpoint=sys.argv[1], checkpoint_interval=0, callback=kill
    )
    model.fit(*data("dense float32"))
"""


def test_a_killed_process_leaves_its_last_checkpoint(tmp_path):
    path = tmp_path / "c"
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [each.name for each in tmp_path.iterdir()] == ["c"]
    problem, options = data("dense float32"), {"solver": "lbfgs", "tol": 1e-9}
    again = xent.SoftmaxRegression(**options, resume=path).fit(*problem)
    assert xent.SoftmaxRegression.load(path).n_iter_ == 4
    assert everything(again) == everything(xent.SoftmaxRegression(**options).fit(*problem))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, None])
@pytest.mark.parametrize(("interval", "steps"), [(0, {1, 2, 3, 4, 5, 6}), (25, {1, 4, 6}), (1e9, {1, 6})])
def test_it_is_written_at_the_first_step_and_the_last_and_every_so_often(
    error, interval, steps, tmp_path, monkeypatch
):
    """A step takes ten seconds by this clock."""
    clock, written, save = [0.0], set(), checkpoints.save
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])

    def look(model, snapshot, *rest):
        written.add(snapshot.counts.steps)
        save(model, snapshot, *rest)

    def tick(step):
        clock[0] += 10
        if error is not None and step.iteration == 6:
            raise error

    monkeypatch.setattr(checkpoints, "save", look)
    model = xent.SoftmaxRegression(
        solver="lbfgs",
        tol=0,
        max_iter=6,
        checkpoint=tmp_path / "c",
        checkpoint_interval=interval,
        callback=tick,
    )
    with pytest.raises(error) if error else pytest.warns(match="max_iter"):
        model.fit(*data())
    assert written == steps


def test_a_checkpoint_is_a_model(tmp_path):
    X, y, weight = data("csr float32", weighted=True)
    labels = np.array(["no", "perhaps", "yes"])[y]
    model = xent.SoftmaxRegression(solver="newton-cg", tol=0, max_iter=2, checkpoint=tmp_path / "c")
    with pytest.warns(match="max_iter"):
        model.fit(X, labels, weight)
    unfinished = xent.SoftmaxRegression.load(tmp_path / "c")
    for name, value in vars(model).items():
        if name.endswith("_"):
            np.testing.assert_array_equal(getattr(unfinished, name), value, err_msg=name)
    np.testing.assert_array_equal(unfinished.predict(X), model.predict(X))
    assert unfinished.checkpoint is None
    assert unfinished.get_params() == model.get_params() | {"checkpoint": None}
    model.save(tmp_path / "m")
    assert b"checkpoint" not in (tmp_path / "m").read_bytes()


def test_a_full_disk_is_one_error_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path, seen = tmp_path / "c", []
    write_bytes = pathlib.Path.write_bytes

    def full(self, content):
        write_bytes(self, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(step):
        if step.iteration == 2:
            seen.append(path.read_bytes())
            monkeypatch.setattr(pathlib.Path, "write_bytes", full)

    model = xent.SoftmaxRegression(tol=1e-9, checkpoint=path, checkpoint_interval=0, callback=fill)
    with pytest.raises(OSError, match="cannot be written: no space left on device") as raised:
        model.fit(*data())
    assert raised.value.filename == str(path)
    assert raised.value.__context__ is None or not isinstance(raised.value.__context__, FileNotFoundError)
    assert [each.name for each in tmp_path.iterdir()] == ["c"]
    assert path.read_bytes() == seen[0]
    assert not hasattr(model, "coef_")


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


X, Y, _ = data()
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


def test_steps_that_overflowed_are_not_written(tmp_path):
    written = []
    saver = checkpoints.Saver(written.append, 0.0)
    with pytest.raises(StopError):
        fit(xent.SoftmaxRegression(checkpoint=tmp_path / "c", callback=stop_at(1)), (X, Y))
    good = checkpoints.load(tmp_path / "c", xent.SoftmaxRegression).snapshot
    saver.stepped(good)
    saver.stepped(good._replace(counts=good.counts._replace(gap=np.inf)))
    saver.stepped(good._replace(state=good.state._replace(point=good.state.point._replace(value=np.nan))))
    assert written == [good]


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
def test_rows_of_files_and_of_dask_go_on_too(solver, tmp_path):
    pytest.importorskip("dask")
    import dask.array
    import polars

    X, y, _ = data("dense float32")
    table = polars.DataFrame(X, schema=[f"x{i}" for i in range(X.shape[1])], orient="row")
    for part in range(3):
        rows = table.with_columns(y=y)[part * 80 : part * 80 + 80]
        rows.write_parquet(tmp_path / f"{part}.parquet")
    chunked = [dask.array.from_array(x, chunks=(80, *x.shape[1:])) for x in (X, y)]
    path = tmp_path / "c"
    for make in (lambda: (xent.rows_from(tmp_path / "*.parquet", target="y"),), lambda: chunked):
        options = {"solver": solver, "tol": 1e-9}
        whole = xent.SoftmaxRegression(**options).fit(*make())
        with pytest.raises(StopError):
            xent.SoftmaxRegression(**options, checkpoint=path, callback=stop_at(2)).fit(*make())
        again = xent.SoftmaxRegression(**options, resume=path).fit(*make())
        assert everything(again) == everything(whole)
        assert (again.feature_names_in_.tolist() if make() != chunked else table.columns) == table.columns
