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
from tests.regression.sums.problems import CUTS, bits, data, fitted
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
    from tests.regression.sums.problems import data

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


X, Y, _ = data()


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
