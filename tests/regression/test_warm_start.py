"""`warm_start` and `partial_fit` go on from a fit to rows in files or on dask, as from one in memory."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import xent
from tests.regression.regressions import assert_same_model
from tests.regression.sums.problems import data

da = pytest.importorskip("dask.array")


def in_memory(X, y, folder):
    return X, y


def in_files(X, y, folder):
    table = pl.DataFrame(X, schema=[f"x{i}" for i in range(X.shape[1])], orient="row").with_columns(y=y)
    for part in range(3):
        table[part * 80 : part * 80 + 80].write_parquet(folder / f"{part}.parquet")
    return (xent.rows_from(folder, target="y", workers=2),)


def on_dask(X, y, folder):
    return tuple(da.from_array(x, chunks=(80, *x.shape[1:])) for x in (X, y))


@pytest.fixture(params=[in_memory, in_files, on_dask])
def rows(request, tmp_path):
    X, y, _ = data("dense float32")
    return request.param(X, y, tmp_path)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
def test_a_warm_start_takes_fewer_steps_to_the_same_optimum(solver, rows):
    options = {"solver": solver, "tol": 1e-9}
    cold = xent.SoftmaxRegression(**options, alpha=1.1e-3).fit(*rows)
    model = xent.SoftmaxRegression(**options, warm_start=True).fit(*rows)
    model.set_params(alpha=1.1e-3).fit(*rows)
    assert model.loss_curve_[0] == pytest.approx(cold.loss_curve_[-1], rel=1e-3)
    assert model.n_iter_ < cold.n_iter_
    assert model.loss_curve_[-1] == pytest.approx(cold.loss_curve_[-1], rel=1e-8)
    assert_same_model(model, cold, atol=1e-3)
    assert model.fit(*rows).n_iter_ <= 2  # at the optimum already, but for float32


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_a_batch_goes_on_from_a_fit_in_partitions(rows):
    X, y, _ = data("dense float32", rows=120)
    model = xent.SoftmaxRegression(tol=1e-9).fit(*rows)
    whole = xent.SoftmaxRegression(tol=1e-9).fit(*data("dense float32")[:2])
    for each in (model, whole):
        each.set_params(random_state=0).partial_fit(X, y)
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-3)
    assert model.loss_curve_[-1] == pytest.approx(whole.loss_curve_[-1], rel=1e-4)


def test_batches_of_one_partition_each_tend_to_the_fit_of_all():
    """What dask's `to_delayed` gives is in memory, one after the other."""
    X, y, _ = data()
    order = np.random.default_rng(0).permutation(len(y))
    parts = da.from_array(X[order], chunks=(80, X.shape[1])).to_delayed().ravel(), order.reshape(3, 80)
    model = xent.SoftmaxRegression(random_state=0, alpha=0.1)
    for _ in range(60):
        for part, numbers in zip(*parts, strict=True):
            model.partial_fit(part.compute(), y[numbers], classes=[0, 1, 2])
    best = xent.SoftmaxRegression(alpha=0.1, tol=1e-9).fit(X, y)
    objective = best.objective(X, y)
    value = objective(objective.pack(model.coef_, model.intercept_))[0]
    assert value <= 1.02 * best.loss_curve_[-1]
