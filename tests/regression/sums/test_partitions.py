"""Partitions: the optimum of one array for any number of parts, equal bits for any number of threads."""

from __future__ import annotations

import copy
import pickle
from functools import reduce

import numpy as np
import pytest
import threadpoolctl

import xent
from bench.fits.cases import CASES as CASES_OF_THE_BENCHMARK
from tests.regression.sums.problems import (
    CASES,
    CLASSES,
    CUTS,
    FEATURES,
    FITS,
    KINDS,
    ROWS,
    bits,
    data,
    fitted,
    split,
)
from xent.core.spec import LossSpec
from xent.regression import objective as objective_file
from xent.regression import solvers
from xent.regression.class_targets import as_target, read_targets
from xent.regression.fitting import fit_partitions, objective_of
from xent.regression.solvers import minimise, preconditioners
from xent.regression.sums import partition_sums, threads
from xent.regression.sums.partitions import (
    FAN_IN,
    Local,
    Partition,
    PartitionError,
    Totals,
    add,
    combine,
    tree,
)


@pytest.fixture
def blocks(monkeypatch):
    """Small blocks, samples and copies, so that there are several of each."""
    monkeypatch.setattr(partition_sums, "BLOCK", 60 * FEATURES)
    monkeypatch.setattr(partition_sums, "SPARSE_BLOCK", 60 * CLASSES)
    monkeypatch.setattr(objective_file, "SMALL", 0)
    for name in ("LEAST", "ROWS"):
        monkeypatch.setattr(preconditioners, name, 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "soft", "weighted"), CASES.values(), ids=CASES)
def test_one_partition_is_the_fit_in_memory(options, soft, weighted, kind, blocks):
    problem = data(kind, soft, weighted)
    ours = fitted(xent.SoftmaxRegression(**options), *problem, [])
    theirs = xent.SoftmaxRegression(**options).fit(*problem)
    assert bits(ours) == bits(theirs)
    assert (ours.n_features_in_, ours.solver_) == (theirs.n_features_in_, theirs.solver_)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)


@pytest.mark.parametrize(("options", "soft", "weighted", "kind", "solver"), FITS)
def test_any_partitions_have_one_optimum(options, soft, weighted, kind, solver, blocks):
    X, y, weight = data(kind, soft, weighted)
    model = xent.SoftmaxRegression(**options, solver=solver, tol=1e-10)
    whole = model.fit(X, y, weight)
    objective = whole.objective(X.astype(float), y, weight)
    best = minimise(objective, np.zeros(objective.num_parameters), max_iter=300, tol=1e-13)
    least = objective(best.params)[0]
    for name in ("1", "2", "5") if soft else ("1", "2", "5", "by class"):
        cuts = CUTS[name]
        ours = fitted(xent.SoftmaxRegression(**model.get_params()), X, y, weight, cuts)
        value = ours.loss_curve_[-1]
        assert value == pytest.approx(least, rel=1e-9), name
        if "focal_gamma" not in options:
            assert ours.optimality_gap_ <= 1e-10
            assert (value - least) / value <= ours.optimality_gap_ + 1e-13
        atol = 1e-3 if "focal_gamma" in options else 1e-4
        np.testing.assert_allclose(ours.coef_, whole.coef_, atol=atol, err_msg=name)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_separable_classes_are_found_over_all_partitions(num_classes):
    """Each partition by itself is separable; the rows of all are not until the last is left out."""
    y = np.sort(np.arange(60) % num_classes)
    X = np.eye(num_classes)[y] + 0.01 * np.random.default_rng(0).standard_normal((60, num_classes))
    model = xent.SoftmaxRegression(alpha=0.0, max_iter=200)
    with pytest.warns(xent.regression.fitting.ConvergenceWarning, match="separable"):
        fitted(model, X, y, None, None)
    X[-1], y[-1] = X[0], num_classes - 1 - y[0]
    fitted(xent.SoftmaxRegression(alpha=0.0, max_iter=200), X, y, None, [59])


@pytest.mark.parametrize(("options", "soft", "weighted", "kind", "solver"), FITS)
def test_threads_give_the_bits_of_a_loop(options, soft, weighted, kind, solver, blocks):
    problem = data(kind, soft, weighted)
    one, *others = (
        bits(fitted(xent.SoftmaxRegression(solver=solver, **options), *problem, CUTS["20"], workers))
        for workers in (1, 2, 4)
    )
    assert all(other == one for other in others)


def test_blas_has_one_thread_for_several_partitions(monkeypatch):
    """Its bits may depend on the number, also where X is large."""
    monkeypatch.setattr(threads, "SMALL", 0)
    monkeypatch.setattr(objective_file, "FUSED_SCORES", 0)  # BLAS multiplies X
    for cuts, expected in (([], {1, 2}), (CUTS["2"], {1})):
        seen = set()

        def look(step, seen=seen):
            pools = threadpoolctl.threadpool_info()
            seen.update(pool["num_threads"] for pool in pools if pool["user_api"] == "blas")

        with threadpoolctl.threadpool_limits(2):
            fitted(xent.SoftmaxRegression(callback=look), *data(), cuts)
        assert seen == expected


class Counted(Local):
    """Partitions that count their passes."""

    passes = 0

    def sum_over(self, *arguments, **options):
        self.passes += 1
        return super().sum_over(*arguments, **options)

    def map(self, *arguments):
        self.passes += 1
        return super().map(*arguments)


@pytest.mark.parametrize("name", CASES_OF_THE_BENCHMARK)
def test_several_partitions_are_fitted_in_fewer_passes(name, blocks):
    """By the solver that "auto" chooses, on each kind of data of the benchmark, at its small size."""
    X, y = CASES_OF_THE_BENCHMARK[name].data(small=True)
    cuts = np.linspace(0, len(y), 9).astype(int)[1:-1]
    passes = {}
    for solver in ("auto", "lbfgs", "newton-cg"):
        model = xent.SoftmaxRegression(alpha=1 / len(y), solver=solver)
        parts, classes = split(model, X.astype(np.float32), y, None, cuts)
        rows = Counted(parts.partitions)
        fit_partitions(model, rows, classes)
        assert model.optimality_gap_ <= model.tol
        passes[solver] = rows.passes
    assert passes["auto"] == passes["lbfgs"] < passes["newton-cg"]


def test_many_rows_begin_with_a_sample_of_all_partitions(monkeypatch):
    for kind in KINDS:
        X, y, weight = data(kind, weighted=True, rows=60_000)
        start = xent.SoftmaxRegression(alpha=1e-4)
        ours = fitted(start, X, y, weight, [20_000, 20_000, 45_000])
        with monkeypatch.context() as patch:
            patch.setattr(solvers, "SAMPLED_ROWS", np.inf)
            without = fitted(xent.SoftmaxRegression(alpha=1e-4), X, y, weight, [20_000, 20_000, 45_000])
        assert ours.n_iter_ < without.n_iter_
        assert ours.optimality_gap_ <= 1e-4


def objective(kind="dense", cuts="5", num_classes=CLASSES, **options):
    model = xent.SoftmaxRegression(**options)
    partitions, classes = split(model, *data(kind, weighted=True, num_classes=num_classes), CUTS[cuts])
    spec = LossSpec(label_smoothing=model.label_smoothing)
    return objective_of(model, partitions, len(classes), spec)


@pytest.mark.parametrize("fused_scores", [0, 48])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_over_partitions_are_those_over_all_rows(kind, num_classes, fused_scores, blocks, monkeypatch):
    monkeypatch.setattr(objective_file, "FUSED_SCORES", fused_scores)
    whole, parts = (
        objective(kind, cuts, num_classes, class_weight={0: 0.5}, label_smoothing=0.1) for cuts in ("1", "5")
    )
    at, along = np.random.default_rng(0).standard_normal((2, whole.num_parameters))
    rows = np.sort(np.random.default_rng(1).choice(ROWS, 50, replace=False))
    for ours, theirs, rtol in ((parts, whole, 1e-11), (parts.rounded, whole.rounded, 1e-5)):
        close = {"rtol": rtol, "atol": rtol}
        for mine, yours in zip(ours(at), theirs(at), strict=True):
            np.testing.assert_allclose(mine, yours, **close)
        np.testing.assert_allclose(ours.hvp(at, along), theirs.hvp(at, along), **close)
        for mine, yours in zip(ours.intercept_model(at), theirs.intercept_model(at), strict=True):
            np.testing.assert_allclose(mine, yours, **close)
        np.testing.assert_allclose(ours.score_curvature(at), theirs.score_curvature(at), **close)
        logits = ours.logits(at)
        assert (logits is None) == ours.is_fused
        np.testing.assert_allclose(ours.score_curvature(at, logits), theirs.score_curvature(at), **close)
        np.testing.assert_allclose(ours.hessian(at, logits)(along), theirs.hvp(at, along), **close)
        for mine, yours in zip(ours.target_moments(), theirs.target_moments(), strict=True):
            np.testing.assert_allclose(mine, yours, **close)
        for mine, yours in zip(ours.feature_moments, theirs.feature_moments, strict=True):
            np.testing.assert_allclose(mine, yours, **close)
        value, gradient = ours.subset(rows, 3.0)(at)
        assert value == pytest.approx(theirs.subset(rows, 3.0)(at)[0], rel=rtol)
        np.testing.assert_allclose(gradient, theirs.subset(rows, 3.0)(at)[1], **close)
        if "csr" not in kind:
            sample = theirs.subset(rows, theirs.divisor * 50 / ROWS)
            for by_class in (False, True):
                np.testing.assert_allclose(ours.gram(at, by_class), theirs.gram(at, by_class), **close)
                np.testing.assert_allclose(ours.gram(at, by_class, rows), sample.gram(at, by_class), **close)
    assert parts.row_norm() == pytest.approx(whole.row_norm(), rel=1e-13)
    assert parts.least_mass_of_one_class() == whole.least_mass_of_one_class() == 0.0  # smoothed
    of_labels = objective(kind, "5", num_classes)
    assert of_labels.least_mass_of_one_class() == data(weighted=True)[2].min()
    assert of_labels.has_errors(at) is True


def test_kept_logits_are_those_computed_again(blocks, monkeypatch):
    for kind in ("csr", "csr float32"):
        function = objective(kind, "5").rounded
        at, along = np.random.default_rng(0).standard_normal((2, function.num_parameters)).astype(np.float32)
        kept = function.hvp(at, along)
        with monkeypatch.context() as patch:
            patch.setattr(objective_file, "LOGITS_BYTES", 0)
            patch.setattr(partition_sums, "logits", None)  # is not called
            np.testing.assert_array_equal(function.hvp(at, along), kept)


def test_a_sample_takes_its_share_of_each_partition():
    function = objective(cuts="5")
    rows = function.draw(24, np.random.RandomState(0))
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.histogram(rows, [0, 80, 170, ROWS])[0], [8, 9, 7])
    parts = function.rows_by_partition(rows)
    assert [len(part) for part in parts] == [0, 8, 0, 9, 7]
    np.testing.assert_array_equal(np.concatenate([parts[1], parts[3] + 80, parts[4] + 170]), rows)
    one = objective(cuts="1").draw(24, np.random.RandomState(0))
    np.testing.assert_array_equal(one, np.sort(np.random.RandomState(0).choice(ROWS, 24, replace=False)))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 65, 71, 200, 520])
def test_the_tree_combines_groups_of_eight(count):
    values = [f"{k}" for k in range(count)]
    level = values
    while len(level) > 1:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        level = [reduce(lambda a, b: f"({a}+{b})", group) for group in groups]
    assert tree(values, lambda a, b: f"({a}+{b})") == level[0]


def test_sums_are_float64_and_entry_by_entry():
    ones = np.full(3, 1 + 2**-20, np.float32)
    total, count = tree([(ones, 1.0), (ones * 2**-10, 2.0)])
    assert (total.dtype, count) == (np.float64, 3.0)
    np.testing.assert_array_equal(total, (1 + 2**-20) * (1 + 2**-10))
    assert combine((1, 2), (3, 1), max) == (3, 2)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 30])
def test_values_come_in_order_and_few_are_held(workers, count):
    started = []

    class Lazy:
        def __len__(self):
            return count

        def __getitem__(self, index):
            started.append(index)
            return index

    totals = Totals((1,) * count, 1, count, np.dtype(float), False)
    values = Local(Lazy(), totals, workers)._values(lambda k: k * k, (), None)
    seen = []
    for value in values:
        seen.append(value)
        assert len(started) <= len(seen) + 2 * workers
    assert seen == [k * k for k in range(count)]


def _fails(partition, *arguments):
    if partition.num_rows == 90:
        raise MemoryError("no room")
    return 0.0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_the_partition(workers):
    partitions, _ = split(xent.SoftmaxRegression(), *data(), CUTS["5"], workers)
    with pytest.raises(PartitionError, match=r"^partition 3: MemoryError: no room$") as caught:
        partitions.sum_over(_fails)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_sgd_and_features_that_differ_are_errors():
    with pytest.raises(ValueError, match=r'`solver` must be "auto", .*; got "sgd" and 5 partitions'):
        fitted(xent.SoftmaxRegression(solver="sgd"), *data(), CUTS["5"])
    partitions = split(xent.SoftmaxRegression(), *data(), CUTS["2"])[0].partitions
    narrow = Partition(partitions[0].features.astype(np.float32), partitions[0].target)
    words = r"6 dense features of float32 in partition 2 and 6 dense features of float64 in partition 0"
    with pytest.raises(ValueError, match=words):
        Local([*partitions, narrow])
    with pytest.raises(ValueError, match="at least one; got none"):
        Local([])
    partitions, classes = split(xent.SoftmaxRegression(), *data(weighted=True), CUTS["2"])
    for part in partitions.partitions:
        part.target = part.target._replace(weight=0 * part.target.weight, total=0.0)
    with pytest.raises(ValueError, match="must not be 0 in every row"):
        fit_partitions(xent.SoftmaxRegression(), partitions, classes)


def test_a_partition_travels_without_its_copies():
    X, y, weight = data("csr", weighted=True)
    partition = split(xent.SoftmaxRegression(), X, y, weight, [])[0].partitions[0]
    size = len(pickle.dumps(partition))
    partition.transposed_for(np.dtype(np.float32))
    assert len(pickle.dumps(partition)) == size
    other = pickle.loads(pickle.dumps(partition))
    np.testing.assert_array_equal(other.features.todense(), X.todense())


@pytest.mark.parametrize("fused_scores", [0, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_tasks_travel_and_take_read_only_arrays(kind, fused_scores, blocks, monkeypatch):
    """What a cluster does: functions, parameters and values are pickled, and arrays arrive read-only."""
    monkeypatch.setattr(objective_file, "FUSED_SCORES", fused_scores)

    class Remote(Local):
        def sum_over(self, function, *parameters, each=None, by=add):
            return copy.deepcopy(tree(self._values(function, parameters, each), by))

        def _values(self, function, parameters, each):
            for index, partition in enumerate(self.partitions):
                arguments = parameters if each is None else (*parameters, each[index])
                task = pickle.loads(pickle.dumps((function, partition, arguments)))
                value = frozen(task[0](frozen_partition(task[1]), *map(frozen, task[2])))
                yield value

    def frozen_partition(partition):
        x = partition.features
        for array in (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr):
            array.flags.writeable = False
        return partition

    def frozen(value):
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(frozen, value))
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        return value

    problem = data(kind, weighted=True)
    for cuts in ([], CUTS["5"]):
        for solver in ("lbfgs", "newton-cg"):
            model, near = (xent.SoftmaxRegression(solver=solver) for _ in range(2))
            partitions, classes = split(model, *problem, cuts)
            fit_partitions(model, Remote(partitions.partitions), classes)
            fit_partitions(near, partitions, classes)
            assert bits(model) == bits(near)


def shifted(array):
    """The same values in memory that is not aligned, as a view of bytes may be."""
    copy = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    assert not copy.flags.aligned
    return copy


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_is_not_aligned_is_copied(kind, soft):
    X, y, weight = data(kind, soft, weighted=True)
    expected = bits(xent.SoftmaxRegression().fit(X, y, weight))
    if kind.startswith("csr"):
        other = type(X)((shifted(X.data), shifted(X.indices), shifted(X.indptr)), shape=X.shape)
    else:
        other = shifted(X)
    assert bits(xent.SoftmaxRegression().fit(other, shifted(y), shifted(weight))) == expected
    sparse = kind.startswith("csr")
    part = Partition(other, as_target(read_targets(X, y, shifted(weight)), None, LossSpec()))
    arrays = (part.features.data, part.features.indices) if sparse else (part.features,)
    assert all(array.flags.aligned for array in (*arrays, part.target.weight))


def test_the_size_of_a_partition_is_that_of_its_arrays():
    for kind in KINDS:
        X, y, _ = data(kind)
        part = Partition(X, as_target(read_targets(X, y), None, LossSpec()))
        stored = sum(a.nbytes for a in (X.data, X.indices, X.indptr)) if part.is_sparse else X.nbytes
        assert part.__sizeof__() == stored + y.nbytes
