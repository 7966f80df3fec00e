"""Fits and predictions of dask collections: the bits of a loop over the same partitions, whoever computes."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
import scipy.sparse

import xent
from tests.regression.sums.problems import CUTS, KINDS, bits, data, fitted
from xent.kernels.cpu import set_threads
from xent.regression.sums import partitions as partitions_file
from xent.regression.sums.partitions import tree as local_tree

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")
distributed = pytest.importorskip("distributed")

from dask import delayed  # noqa: E402

from xent.regression.dask_rows import blocks, scheduler, sums  # noqa: E402

# (parameters, whether y is probabilities, whether rows have weights), kind of X. Not "balanced":
# the weights of the classes are sums over partitions too, with other last bits than in the loop of the tests.
FITS = {
    "labels": (({}, False, False), "dense"),
    "probabilities": (({"class_weight": {0: 2.0}}, True, True), "dense float32"),
    "weights": (({"label_smoothing": 0.1}, False, True), "csr float32"),
}


def chunked(array, cuts):
    """A dask array of these chunks of rows, also of a CSR matrix."""
    if array is None:
        return None
    sizes = tuple(np.diff([0, *cuts, array.shape[0]]).tolist())
    if not scipy.sparse.issparse(array):
        return da.from_array(array, chunks=(sizes, *array.shape[1:]))
    parts = [array[start : start + n] for start, n in zip([0, *cuts], sizes, strict=True)]
    rows = [da.from_delayed(delayed(part), part.shape, array.dtype) for part in parts]
    return da.concatenate(rows)


def cuts_of(name, y):
    return np.flatnonzero(np.diff(y)) + 1 if CUTS[name] is None else CUTS[name]


def both(options, problem, cuts):
    """(the fit of dask arrays, that of a loop)."""
    ours = xent.SoftmaxRegression(**options).fit(*(chunked(x, cuts) for x in problem))
    return ours, fitted(xent.SoftmaxRegression(**options), *problem, cuts)


def problem_of(name):
    (options, soft, weighted), kind = FITS[name]
    return options, data(kind, soft, weighted)


@pytest.mark.parametrize("case", FITS)
@pytest.mark.parametrize("name", ["synchronous", "threads"])
def test_schedulers_give_the_bits_of_a_loop(name, case):
    options, problem = problem_of(case)
    for solver in ("lbfgs", "newton-cg"):
        with dask.config.set(scheduler=name):
            ours, theirs = both(options | {"solver": solver}, problem, CUTS["20"])
        assert bits(ours) == bits(theirs)
        assert ours.n_features_in_ == theirs.n_features_in_
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)


def test_one_partition_is_the_fit_in_memory():
    problem = data(weighted=True)
    ours, _ = both({}, problem, [])
    assert bits(ours) == bits(xent.SoftmaxRegression().fit(*problem))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_in_threads_give_the_bits_of_a_loop(workers):
    options, problem = problem_of("weights")
    cluster = distributed.LocalCluster(
        n_workers=workers, threads_per_worker=2, processes=False, dashboard_address=":0"
    )
    with cluster, distributed.Client(cluster):
        ours, theirs = both(options, problem, CUTS["20"])
        assert bits(ours) == bits(theirs)


def test_a_lost_worker_changes_no_bit(processes):
    """Neither of sums, nor of what the tasks keep for Hessian products: the logits of a CSR matrix."""
    options, problem = problem_of("weights")
    killed = []

    def kill(step):
        if step.iteration == 2:
            killed.append(next(iter(processes.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    parts = [chunked(x, CUTS["20"]) for x in problem]
    with dask.config.set(scheduler=processes):
        ours = xent.SoftmaxRegression(**options, solver="newton-cg", callback=kill).fit(*parts)
    theirs = fitted(xent.SoftmaxRegression(**options, solver="newton-cg"), *problem, CUTS["20"])
    assert killed
    assert ours.n_iter_ > 2
    assert bits(ours) == bits(theirs)


def test_large_parameters_are_a_task_of_their_own(processes, monkeypatch):
    """Arrays that came from another worker are neither aligned nor writable."""
    monkeypatch.setattr(scheduler, "INLINE", 0)
    options, problem = problem_of("probabilities")
    names = []
    new_key = scheduler.new_key
    monkeypatch.setattr(scheduler, "new_key", lambda name, *rest: names.append(name) or new_key(name, *rest))
    with dask.config.set(scheduler=processes):
        ours, theirs = both(options, problem, CUTS["5"])
    assert bits(ours) == bits(theirs)
    assert names.count("parameters") >= ours.n_iter_


def test_a_lost_scheduler_is_an_error_of_one_line():
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    X, y, _ = data()
    with cluster, distributed.Client(cluster):
        model = xent.SoftmaxRegression(callback=lambda step: cluster.close())
        with pytest.raises(ConnectionError, match=r"^dask's scheduler or workers were lost: .+$"):
            model.fit(chunked(X, [100]), chunked(y, [100]))


@pytest.mark.parametrize("cuts", ["2", "5", "by class"])
def test_partitions_may_be_empty_or_lack_classes(cuts):
    X, y, weight = data(weighted=True)
    labels = np.array(["no", "perhaps", "yes"])[y]
    where = cuts_of(cuts, y)
    options = {"class_weight": "balanced", "tol": 1e-10}
    ours = xent.SoftmaxRegression(**options).fit(*(chunked(x, where) for x in (X, labels, weight)))
    whole = xent.SoftmaxRegression(**options).fit(X, labels, weight)
    np.testing.assert_array_equal(ours.classes_, whole.classes_)
    np.testing.assert_allclose(ours.coef_, whole.coef_, atol=1e-4)
    assert ours.loss_curve_[-1] == pytest.approx(whole.loss_curve_[-1], rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 17, 64, 65, 73, 600])
def test_the_tree_of_tasks_is_that_of_a_loop(count):
    values = np.random.default_rng(count).standard_normal((count, 3))
    tasks = sums.tree([delayed(value) for value in values], partitions_file.add)
    assert tasks.compute(scheduler="synchronous").tobytes() == local_tree(iter(values)).tobytes()


def frames(rows=120):
    """(frame of X, series of y, X, y)."""
    X, y, _ = data(rows=rows)
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    return frame, pd.Series(y, name="y"), X, y


def test_dataframes():
    frame, labels, X, y = frames()
    table = dd.from_pandas(frame.assign(y=labels), npartitions=3)
    table = table[table["y"] >= 0]  # partitions of unknown size
    features = table.drop(columns="y")
    model = xent.SoftmaxRegression().fit(features, table["y"], sample_weight=table["x0"] ** 2)
    cuts = np.cumsum([len(part) for part in dask.compute(*table.to_delayed())])[:-1]
    theirs = fitted(xent.SoftmaxRegression(), X, y, X[:, 0] ** 2, cuts)
    assert bits(model) == bits(theirs)
    assert model.feature_names_in_.tolist() == frame.columns.tolist()
    proba = model.predict_proba(features)
    assert np.isnan(proba.shape[0])
    np.testing.assert_array_equal(proba.compute(), model.predict_proba(frame))
    np.testing.assert_array_equal(model.predict(features).compute(), model.predict(frame))
    score = model.score(features, table["y"], table["x0"] ** 2)
    assert float(score) == pytest.approx(model.score(frame, y, X[:, 0] ** 2))
    filtered = table[table["y"] == 0]  # some partitions have no rows
    few = model.predict(filtered.drop(columns="y")).compute()
    np.testing.assert_array_equal(few, model.predict(frame[labels == 0]))
    soft = dd.from_pandas(pd.DataFrame(np.eye(3)[y]), npartitions=3)
    same = xent.SoftmaxRegression().fit(features, soft)
    np.testing.assert_allclose(same.coef_, xent.SoftmaxRegression().fit(features, table["y"]).coef_)


def test_lists_of_delayed_blocks():
    X, y, _ = data()
    parts = [[delayed(x[i : i + 60]) for i in range(0, 240, 60)] for x in (X, y)]
    model = xent.SoftmaxRegression().fit(*parts)
    assert bits(model) == bits(fitted(xent.SoftmaxRegression(), X, y, None, [60, 120, 180]))
    predicted = model.predict_log_proba([*parts[0], delayed(X[:0])])
    assert len(predicted) == 5
    np.testing.assert_array_equal(np.concatenate(dask.compute(*predicted)), model.predict_log_proba(X))
    assert float(model.score(*parts)) == pytest.approx(model.score(X, y))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_in_several_chunks_are_joined(kind):
    X, y, _ = data(kind)
    left, right = chunked(X[:, :2], CUTS["2"]), chunked(X[:, 2:], CUTS["2"])
    wide = da.concatenate([left, right], axis=1)
    model = xent.SoftmaxRegression().fit(wide, chunked(y, CUTS["2"]))
    assert wide.numblocks == (2, 2)
    assert bits(model) == bits(fitted(xent.SoftmaxRegression(), X, y, None, CUTS["2"]))
    np.testing.assert_array_equal(model.predict(wide).compute(), model.predict(X))


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_lazy_and_equal_to_those_in_memory(kind, num_classes):
    X, y, weight = data(kind, weighted=True, num_classes=num_classes)
    model = xent.SoftmaxRegression().fit(X, y)
    read = []

    def look(part):
        read.append(part.shape)
        return part

    parts = [delayed(look)(X[i : i + 100]) for i in range(0, 240, 100)]
    rows = [min(100, 240 - i) for i in range(0, 240, 100)]
    given = [da.from_delayed(part, (n, X.shape[1]), X.dtype) for part, n in zip(parts, rows, strict=True)]
    table = da.concatenate(given)
    names = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    expected = [getattr(model, name)(X) for name in names]
    lazy = [getattr(model, name)(table) for name in names]
    score = model.score(table, chunked(y, [100, 200]), chunked(weight, [100, 200]))
    soft = model.score(table, chunked(np.eye(num_classes)[y], [100, 200]))
    assert float(soft) == pytest.approx(model.score(X, np.eye(num_classes)[y]))
    assert float(score) == pytest.approx(model.score(X, y, weight))
    read.clear()
    model.fit(X, y[::-1])  # too late for the predictions
    assert read == []
    for ours, theirs in zip(lazy, expected, strict=True):
        assert ours.chunks[0] == (100, 100, 40)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        compare = np.testing.assert_array_equal if theirs.dtype == int else np.testing.assert_allclose
        compare(ours.compute(), theirs, **({} if theirs.dtype == int else {"rtol": 1e-5}))
    assert len(read) == 12


def threads_now(partition):
    """Threads of the kernels and of each BLAS."""
    from threadpoolctl import threadpool_info

    kernels = set_threads(1)
    set_threads(kernels)
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return np.array([kernels, max(blas)], float)


def test_tasks_have_one_thread_and_leave_the_pools_alone():
    from threadpoolctl import threadpool_limits

    X, y, _ = data()
    local = fitted_partitions(X, y, [60, 120])
    with threadpool_limits(2):
        rows = sums.DaskRows([delayed(part) for part in local.partitions], local.totals, range(3))
        for name in ("synchronous", "threads"):
            with dask.config.set(scheduler=name):
                assert rows.sum_over(threads_now, by=np.maximum).tolist() == [1, 1]
        assert threads_now(None).tolist() == [2, 2]


def frozen(partition):
    """An array as it comes over a network: read-only, and not aligned."""
    array = np.frombuffer(b"x" + np.arange(3.0).tobytes(), np.uint8)[1:].view(float)
    assert not array.flags.aligned
    assert not array.flags.writeable
    return array, 1.0


def test_the_arrays_of_a_sum_are_the_callers_to_write():
    X, y, _ = data()
    local = fitted_partitions(X, y, [])
    rows = sums.DaskRows([delayed(local.partitions[0])], local.totals, [0])
    array, number = rows.sum_over(frozen)
    assert array.flags.aligned
    array += 1
    assert (array.tolist(), number) == ([1, 2, 3], 1.0)


def fitted_partitions(X, y, cuts):
    from tests.regression.sums.problems import split

    return split(xent.SoftmaxRegression(), X, y, None, cuts)[0]


def test_dask_knows_how_large_partitions_are():
    from dask.sizeof import sizeof

    for kind in KINDS:
        X, y, _ = data(kind)
        part = fitted_partitions(X, y, []).partitions[0]
        stored = X.nbytes if kind.startswith("dense") else X.data.nbytes
        assert sizeof(part) >= stored + y.nbytes


def test_arrays_need_no_dask(monkeypatch):
    X, y, _ = data()
    for name in ("dask", "xent.regression.dask_rows"):
        monkeypatch.setitem(sys.modules, name, None)  # whose import then fails
    model = xent.SoftmaxRegression().fit(X, y)
    assert model.predict(X).shape == y.shape
    assert model.score(X, y.tolist()) > 0.5


def test_blocks_of_probabilities_in_column_chunks():
    q = da.from_array(np.full((4, 4), 0.25), chunks=(2, 2))
    assert [len(row) for row in blocks.blocks(q, "y")] == [2, 2]
