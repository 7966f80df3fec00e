"""Solvers: the optimum that scikit-learn finds, the certificate that bounds it, and what is said if not."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import threadpoolctl
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from xent.core.spec import LossSpec
from xent.engine import checks
from xent.kernels.cpu import set_threads
from xent.regression import objective as objective_file
from xent.regression import solvers
from xent.regression.objective import Objective
from xent.regression.solvers import certificate, line_search, minimise, preconditioners
from xent.regression.solvers.state import Draws
from xent.regression.sums import partition_sums, threads
from xent.regression.sums.partitions import Local, Partition

lbfgs_file = sys.modules[
    "xent.regression.solvers.lbfgs"
]  # the package's attribute of that name is the function

EXACT = ["lbfgs", "newton-cg"]


class Problem:
    """Data with an objective; the optimum is found once, by scikit-learn, from rows of one label each."""

    def __init__(
        self, X, y, *, num_classes, weight=None, class_weight=None, alpha=1e-3, intercept=True, **options
    ):
        spec = LossSpec(**options)
        self.alpha, self.intercept = alpha, intercept
        self.target = checks.as_target(y, np.zeros((len(y), num_classes)), spec, class_weight, weight)
        self.divisor = float(self.target.total)
        self.X = X
        partitions = Local([Partition(X, self.target)])
        self.objective = Objective(partitions, spec, self.divisor, alpha, intercept, num_classes)
        self.num_classes, self._optimum = num_classes, None

    @property
    def start(self):
        return np.zeros(self.objective.num_parameters)

    @property
    def optimum(self):
        """The least value that either scikit-learn or a tight fit of ours has found."""
        if self._optimum is None:
            t = sum(np.asarray(part) for part in self._measure())
            X = np.asarray(self.X.todense() if self.objective.is_sparse else self.X)
            rows, labels = np.nonzero(t)
            theirs = LogisticRegression(
                C=1 / (self.alpha * self.divisor) if self.alpha else np.inf,
                fit_intercept=self.intercept, solver="newton-cholesky", tol=1e-12, max_iter=500,
            )  # fmt: skip
            with warnings.catch_warnings():  # on some processors its line search ends early, at the optimum
                warnings.simplefilter("ignore", ConvergenceWarning)
                theirs.fit(X[rows].astype(float), labels, t[rows, labels])
            found = self.objective.pack(theirs.coef_.astype(float), theirs.intercept_)
            ours = minimise(self.objective, found, solver="newton-cg", max_iter=20, tol=0)
            self._optimum = min(self.objective(found)[0], self.objective(ours.params)[0])
        return self._optimum

    def _measure(self):
        target, rows = self.target, self.objective.num_rows
        weight = np.ones(rows) if target.weight is None else target.weight
        if target.dense is not None:
            yield weight[:, None] * target.beta * np.broadcast_to(target.dense, (rows, self.num_classes))
        if target.labels is not None:
            yield (weight * target.alpha)[:, None] * np.eye(self.num_classes)[target.labels]

    def excess(self, parameters):
        """(F − F*)/F."""
        value = self.objective(parameters)[0]
        return (value - self.optimum) / value


def table(rows=120, features=6, num_classes=3, seed=0, noise=1.0, scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % num_classes
    X = rng.standard_normal((num_classes, features))[y] + noise * rng.standard_normal((rows, features))
    return X * scale + offset, y


def problems():
    rng = np.random.default_rng(7)
    spread = np.geomspace(1e3, 1e-3, 6)
    X, y = table()
    yield "plain", Problem(X, y, num_classes=3)
    yield "two classes", Problem(*table(num_classes=2), num_classes=2)
    yield "no intercept", Problem(X, y, num_classes=3, intercept=False)
    yield "no intercept, two classes", Problem(*table(num_classes=2), num_classes=2, intercept=False)
    yield "hardly penalised", Problem(X, y, num_classes=3, alpha=1e-6)
    yield "heavily penalised", Problem(X, y, num_classes=3, alpha=10.0)
    yield "unscaled", Problem(*table(scale=spread), num_classes=3, alpha=1e-4)
    yield "far from the origin", Problem(*table(offset=100.0), num_classes=3)
    yield "separable", Problem(*table(noise=0.05), num_classes=3, alpha=1e-4)
    yield "separable, two classes", Problem(*table(noise=0.05, num_classes=2), num_classes=2, alpha=1e-4)
    yield "collinear", Problem(np.hstack([X, X[:, :2], np.ones((120, 1))]), y, num_classes=3, alpha=1e-5)
    yield "wide", Problem(*table(rows=30, features=80), num_classes=3, alpha=1e-2)
    yield "weighted", Problem(X, y, num_classes=3, weight=rng.uniform(0, 3, 120) * (rng.random(120) < 0.8))
    yield "class weights", Problem(X, y, num_classes=3, class_weight=np.array([1.0, 5.0, 0.1]))
    yield "rare class", Problem(X, np.where(np.arange(120) < 3, 2, y % 2), num_classes=3, alpha=1e-4)
    yield "smoothed", Problem(X, y, num_classes=3, label_smoothing=0.1)
    yield (
        "smoothed over others",
        Problem(
            X,
            y,
            num_classes=3,
            label_smoothing=0.2,
            smoothing_over="others",
            class_weight=np.array([1, 2, 3.0]),
        ),
    )
    yield "probabilities", Problem(X, rng.dirichlet([0.3] * 3, 120), num_classes=3, alpha=1e-5)
    yield "probabilities, two classes", Problem(X, rng.dirichlet([0.3] * 2, 120), num_classes=2)
    yield "csr", Problem(scipy.sparse.csr_array(X * (rng.random(X.shape) < 0.5)), y, num_classes=3)
    yield "many classes", Problem(*table(rows=400, num_classes=60), num_classes=60)


PROBLEMS = dict(problems())


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS)
def problem(request):
    return request.param


def test_the_certificate_bounds_the_distance_from_the_optimum(problem):
    """At every step of every solver, at random places, and at places a little off the optimum."""
    objective = problem.objective
    for solver in solvers.SOLVERS:
        steps = []
        minimise(
            objective, problem.start, solver=solver, max_iter=30, tol=1e-10, random_state=0,
            on_step=lambda step, steps=steps: steps.append((step.state.point.parameters, step.counts.gap)),
        )  # fmt: skip
        for params, gap in steps:
            assert gap >= problem.excess(params) - 1e-13
    best = steps and minimise(objective, problem.start, solver="newton-cg", max_iter=100, tol=1e-12).params
    rng = np.random.default_rng(3)
    for size in (1e-6, 1e-4, 1e-2, 1.0, 10.0):
        params = best + size * rng.standard_normal(best.size)
        assert certificate.Certificate(objective).gap(params, *objective(params)) >= problem.excess(params)


@pytest.mark.parametrize("seed", range(40))
def test_the_certificate_holds_on_random_problems(seed):
    rng = np.random.default_rng(seed)
    num_classes, rows = int(rng.integers(2, 7)), int(rng.integers(10, 200))
    features = int(rng.integers(1, 12))
    X, y = table(rows, features, num_classes, seed, noise=10 ** rng.uniform(-1, 1), offset=rng.uniform(-5, 5))
    X *= 10 ** rng.uniform(-2, 2, features)
    if rng.random() < 0.3:
        y = rng.dirichlet(np.full(num_classes, 10 ** rng.uniform(-1, 1)), rows)
    problem = Problem(
        X, y, num_classes=num_classes, alpha=10 ** rng.uniform(-7, 1), intercept=bool(rng.random() < 0.8),
        label_smoothing=float(rng.choice([0.0, 0.1])), weight=rng.uniform(0.1, 3.0, rows),
    )  # fmt: skip
    objective = problem.objective
    best = minimise(objective, problem.start, solver="newton-cg", max_iter=300, tol=1e-13)
    problem._optimum = objective(best.params)[0]
    assert best.optimality_gap < 1e-10
    gaps = []
    for solver in EXACT:
        minimise(
            objective, problem.start, solver=solver, max_iter=300, tol=1e-9,
            on_step=lambda step: gaps.append((problem.excess(step.state.point.parameters), step.counts.gap)),
        )  # fmt: skip
    for size in (1e-5, 1e-3, 0.1):
        params = best.params * (1 + size * rng.standard_normal(best.params.size))
        gap = certificate.Certificate(objective).gap(params, *objective(params))
        gaps.append((problem.excess(params), gap))
    for excess, gap in gaps:
        assert gap >= excess - 1e-12


@pytest.mark.parametrize("solver", [*EXACT, "auto"])
def test_the_optimum_is_reached_and_certified(problem, solver):
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=500, tol=1e-8)
    assert result.message == ""
    assert -1e-13 <= problem.excess(result.params) <= result.optimality_gap + 1e-13
    assert result.optimality_gap <= 1e-8


@pytest.mark.parametrize(("solver", "most"), [("lbfgs", 130), ("newton-cg", 18)])
def test_a_tight_gap_takes_few_steps(problem, solver, most):
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=500, tol=1e-8)
    assert 1 <= result.n_iter <= most


@pytest.mark.parametrize(("solver", "most"), [("lbfgs", 25), ("newton-cg", 10)])
def test_digits_take_few_steps(solver, most):
    """A slip in the recursion, the preconditioner or the step of the intercept takes more and ends right."""
    X, y = load_digits(return_X_y=True)
    problem = Problem(X / 16, y, num_classes=10, alpha=1 / len(y))
    assert minimise(problem.objective, problem.start, solver=solver, max_iter=500, tol=1e-8).n_iter <= most


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_float32_features_end_in_float64(solver, num_classes):
    X, y = table(num_classes=num_classes)
    problem = Problem(X.astype(np.float32), y, num_classes=num_classes, alpha=1e-4)
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=500, tol=1e-10)
    assert result.message == ""
    assert problem.excess(result.params) <= result.optimality_gap <= 1e-10


@pytest.fixture
def products(monkeypatch):
    """One entry for each Hessian product."""
    plain, made = partition_sums.hessian_product, []

    def count(*arguments):
        made.append(1)
        return plain(*arguments)

    monkeypatch.setattr(partition_sums, "hessian_product", count)
    return made


def test_a_step_is_no_more_exact_than_the_certificate_asks(products):
    """55 products in 7 steps if each is as exact as quadratic convergence asks, the intercept's by itself."""
    X, y = load_digits(return_X_y=True)
    problem = Problem(X / 16, y, num_classes=10, alpha=1 / len(y))
    result = minimise(problem.objective, problem.start, solver="newton-cg", max_iter=20, tol=1e-4)
    assert (result.message, result.n_iter <= 5, len(products) <= 30) == ("", True, True)


def test_counts_take_few_products(products):
    """Features that are never negative share their means: plain Jacobi takes 29 here, less the means 13."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 800)
    X = rng.poisson(0.8 * np.exp(rng.standard_normal((5, 300)))[y]) / 20
    problem = Problem(scipy.sparse.csr_array(X), y, num_classes=5, alpha=1 / 800)
    result = minimise(problem.objective, problem.start, solver="newton-cg", max_iter=20, tol=1e-6)
    assert (result.message, len(products) <= 16) == ("", True)


def test_sgd_comes_near():
    problem = Problem(*table(noise=2.0), num_classes=3, alpha=1e-2)
    result = minimise(problem.objective, problem.start, solver="sgd", max_iter=300, tol=1e-3, random_state=0)
    assert (result.solver, result.message) == ("sgd", "")
    assert problem.excess(result.params) <= result.optimality_gap <= 1e-3


@pytest.mark.parametrize("solver", EXACT)
def test_without_penalty_the_bound_is_over_a_ball(solver):
    problem = Problem(*table(noise=2.0), num_classes=3, alpha=0.0)
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=200, tol=1e-8)
    assert result.message == ""
    assert -1e-13 <= problem.excess(result.params) <= result.optimality_gap + 1e-13
    assert result.optimality_gap <= 1e-8


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_separable_classes_without_penalty_have_no_optimum(solver, num_classes):
    problem = Problem(*table(noise=0.05, num_classes=num_classes), num_classes=num_classes, alpha=0.0)
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=15, tol=1e-4)
    assert result.optimality_gap > 0.5
    assert "alpha" in result.message


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_max_iter_is_kept_and_what_to_do_is_said(solver):
    problem = Problem(*table(), num_classes=3, alpha=1e-5)
    steps = []
    result = minimise(
        problem.objective, problem.start, solver=solver, max_iter=2, tol=1e-12,
        on_step=steps.append,
    )  # fmt: skip
    assert result.n_iter == len(steps) == 2
    for words in ("max_iter=2", "tol=1e-12", "raise max_iter", "StandardScaler"):
        assert words in result.message
    assert ('solver="auto"' in result.message) == (solver == "sgd")
    assert result.optimality_gap == steps[-1].counts.gap


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_no_steps_leave_the_start(solver):
    problem = Problem(*table(), num_classes=3)
    start = np.random.default_rng(0).standard_normal(problem.start.size)
    result = minimise(problem.objective, start, solver=solver, max_iter=0, tol=1e-4)
    np.testing.assert_array_equal(result.params, start)
    assert result.n_iter == 0
    assert result.optimality_gap >= problem.excess(start)


@pytest.mark.parametrize("solver", EXACT)
def test_a_start_at_the_optimum_is_known_to_be_there(solver):
    problem = Problem(*table(), num_classes=3)
    best = minimise(problem.objective, problem.start, solver=solver, max_iter=100, tol=1e-10).params
    assert minimise(problem.objective, best, solver=solver, max_iter=100, tol=1e-6).n_iter <= 1


def test_runs_repeat_themselves_and_only_sgd_is_random(monkeypatch):
    for name in ("LEAST", "ROWS"):  # whitening by a sample of the rows
        monkeypatch.setattr(preconditioners, name, 1)
    problem = Problem(*table(), num_classes=3)

    def run(solver, seed):
        return minimise(
            problem.objective, problem.start, solver=solver, max_iter=5, tol=0, random_state=seed
        ).params

    for solver in solvers.SOLVERS:
        np.testing.assert_array_equal(run(solver, 3), run(solver, 3))
    for solver in EXACT:
        np.testing.assert_array_equal(run(solver, None), run(solver, None))
    assert (run("sgd", 3) != run("sgd", 4)).any()


@pytest.mark.parametrize("solver", EXACT)
def test_focal_loss_has_a_stationary_point_and_no_certificate(solver):
    problem = Problem(*table(noise=2.0), num_classes=3, alpha=1e-2, focal_gamma=2.0)
    gaps = []
    result = minimise(
        problem.objective, problem.start, solver=solver, max_iter=200, tol=1e-12,
        on_step=lambda step: gaps.append(step.counts.gap),
    )  # fmt: skip
    assert result.optimality_gap is None
    assert gaps[-1] <= 1e-12  # the decrease that is expected of the next step
    assert result.message == ""
    assert np.abs(problem.objective(result.params)[1]).max() < 1e-5
    short = minimise(problem.objective, problem.start, solver=solver, max_iter=1, tol=1e-12)
    assert "expected decrease" in short.message


@pytest.mark.parametrize(
    ("shape", "kind", "solver"),
    [
        ((40, 3), np.asarray, "newton-cg"),  # small
        ((400, 200), np.asarray, "lbfgs"),
        ((40, preconditioners.WIDEST + 1), np.asarray, "newton-cg"),
        ((400, 200), scipy.sparse.csr_array, "newton-cg"),
    ],
)
def test_auto_looks_at_shape_and_density(shape, kind, solver):
    X, y = table(*shape)
    problem = Problem(kind(X), y, num_classes=3)
    result = minimise(problem.objective, problem.start, max_iter=100, tol=1e-4)
    assert (result.solver, result.message) == (solver, "")


@pytest.mark.parametrize(
    ("solver", "kind"),
    [("lbfgs", np.asarray), ("newton-cg", np.asarray), ("newton-cg", scipy.sparse.csr_array)],
)
def test_many_rows_begin_with_a_sample(solver, kind, monkeypatch):
    X, y = table(rows=60_000, features=12)
    problem = Problem(kind(X), y, num_classes=3, alpha=1e-4)
    result = minimise(problem.objective, problem.start, solver=solver, max_iter=100, tol=1e-8)
    assert problem.excess(result.params) <= result.optimality_gap <= 1e-8
    monkeypatch.setattr(solvers, "SAMPLED_ROWS", np.inf)
    without = minimise(problem.objective, problem.start, solver=solver, max_iter=100, tol=1e-8)
    assert result.n_iter < without.n_iter


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("start", [0.0, -25.0])
def test_a_class_of_one_row_among_many(solver, start):
    """A sample is without it; and an intercept that starts far below is brought back."""
    X, y = table(rows=60_000, features=4, num_classes=2)
    problem = Problem(X, np.r_[2, y[1:]], num_classes=3, alpha=1e-4)
    at = problem.start
    at[-1] = start
    result = minimise(problem.objective, at, solver=solver, max_iter=200, tol=1e-6)
    assert result.message == ""


def test_whitening_is_the_inverse_hessian_at_zero():
    for num_classes in (2, 4):
        problem = Problem(*table(num_classes=num_classes), num_classes=num_classes)
        objective, start = problem.objective, problem.start
        coef, intercept = objective.unpack(np.random.default_rng(0).standard_normal(start.size))
        if num_classes > 2:  # the only directions that matter
            coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        vector = objective.pack(coef, intercept)
        estimate = preconditioners.whitening(objective, start, np.random.RandomState(0))
        np.testing.assert_allclose(estimate(objective.hvp(start, vector)), vector, rtol=1e-6, atol=1e-6)


def test_whitening_by_class_is_the_inverse_of_the_hessians_blocks():
    problem = PROBLEMS["plain"]
    objective, num_classes, alpha = problem.objective, problem.num_classes, problem.alpha
    at, vector = np.random.default_rng(0).standard_normal((2, problem.start.size))
    hessian = np.array([objective.hvp(at, e) for e in np.eye(at.size)])
    coef, intercept = objective.unpack(vector)
    columns = np.concatenate([coef, intercept[:, None]], 1)
    columns -= columns.mean(0)
    shift = np.r_[np.arange(1.0, coef.shape[1] + 1), 0.0]  # of all classes: only the penalty minds
    expected = np.empty_like(columns)
    penalty = np.diag(np.where(np.arange(shift.size) < coef.shape[1], alpha, 0.0))
    for k in range(num_classes):
        place = np.r_[k * coef.shape[1] : (k + 1) * coef.shape[1], coef.size + k]
        block = (hessian[np.ix_(place, place)] - penalty) * (num_classes / (num_classes - 1)) + penalty
        expected[k] = np.linalg.solve(block, columns[k])
    expected += shift / alpha - expected.mean(0)
    estimate = preconditioners.whitening(objective, at, np.random.RandomState(0), by_class=True)
    found = estimate(objective.pack((columns + shift)[:, :-1], columns[:, -1]))
    np.testing.assert_allclose(found, objective.pack(expected[:, :-1], expected[:, -1]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_the_diagonal_is_the_inverse_hessian_of_uncorrelated_features(kind, intercept):
    """Columns of a Hadamard matrix, each with a scale and a mean; rows alike in p; each class on its own."""
    signs = scipy.linalg.hadamard(16)[:, 1:6] * np.geomspace(0.1, 10, 5) + np.linspace(-2, 3, 5)
    for num_classes in (2, 3):
        y = np.arange(16) % num_classes
        problem = Problem(kind(signs), y, num_classes=num_classes, alpha=1e-2, intercept=intercept)
        objective, start = problem.objective, problem.start
        if intercept and num_classes == 3:
            start[-num_classes:] = [1.0, 0.0, -2.0]
        hessian = np.array([objective.hvp(start, e) for e in np.eye(start.size)])
        estimate = preconditioners.diagonal(objective, start)
        for k in range(objective.num_scores):
            coef, bias = np.zeros((objective.num_scores, 5)), np.zeros(objective.num_scores)
            coef[k], bias[k] = 1.0, 1.0
            place = np.flatnonzero(objective.pack(coef, bias))
            vector = np.zeros(start.size)
            vector[place] = np.random.default_rng(k).standard_normal(place.size)
            ridge = np.diag(np.where(place < coef.size, 1e-2, 0.0))
            factor = 1.5 if num_classes == 3 else 1.0  # see Objective.curvature
            block = (hessian[np.ix_(place, place)] - ridge) * factor + ridge
            expected = np.linalg.solve(block, vector[place])
            np.testing.assert_allclose(estimate(vector)[place], expected, rtol=1e-9)


def test_the_memory_of_lbfgs_knows_its_last_pair():
    """H (change of gradient) = step: the secant equation, exactly; and H is positive before any pair."""
    objective = PROBLEMS["plain"].objective
    start, *points = np.random.default_rng(0).standard_normal((5, objective.num_parameters))
    random = np.random.RandomState(0)
    memory = lbfgs_file.Memory(objective, lbfgs_file.Kept(start, 0, Draws.of(random)), random)
    before = line_search.Point(start, *objective(start))
    assert memory.direction(before.gradient) @ before.gradient < 0
    for parameters in points:
        after = line_search.Point(parameters, *objective(parameters))
        memory.learn(before, after)
        step, change = after.parameters - before.parameters, after.gradient - before.gradient
        np.testing.assert_allclose(memory.direction(-change), step, rtol=1e-9, atol=1e-12)
        before = after


def test_bounds_of_rounded_passes_do_not_count(monkeypatch):
    X, y = table()
    problem = Problem(X.astype(np.float32), y, num_classes=3)
    widths, known = [], []

    def evaluate(function, parameters, progress):
        widths.append(function.dtype.itemsize)
        if widths[-2:] == [4, 8]:
            known.append(progress.certificate.lower)
        return plain(function, parameters, progress)

    plain = line_search.evaluate
    for file in (line_search, lbfgs_file):
        monkeypatch.setattr(file, "evaluate", evaluate)
    monkeypatch.setattr(objective_file, "SMALL", 0)
    minimise(problem.objective, problem.start, solver="lbfgs", max_iter=100, tol=1e-8)
    assert known == [0.0]


def test_one_pass_in_float64_ends_a_fit_in_float32(monkeypatch):
    """Beside that of the start: the intercept, which the certificate is sensitive to, steps in the same."""
    X, y = table()
    problem = Problem(X.astype(np.float32), y, num_classes=3)
    widths = []

    def evaluate(function, parameters, progress):
        widths.append(function.dtype.itemsize)
        return plain(function, parameters, progress)

    plain = line_search.evaluate
    for file in (line_search, lbfgs_file, solvers):
        monkeypatch.setattr(file, "evaluate", evaluate)
    monkeypatch.setattr(objective_file, "SMALL", 0)
    result = minimise(problem.objective, problem.start, solver="lbfgs", max_iter=100, tol=1e-4)
    assert (result.message, widths.count(8)) == ("", 2)
    assert problem.excess(result.params) <= result.optimality_gap


def test_thread_pools_are_left_as_they_were():
    problem = Problem(*table(), num_classes=3)
    with threadpoolctl.threadpool_limits(2):
        before = threadpoolctl.threadpool_info()
        minimise(problem.objective, problem.start, max_iter=2, tol=1e-4)
        assert threadpoolctl.threadpool_info() == before


def test_short_passes_take_one_thread():
    seen = []

    def on_step(*step):
        pools = threadpoolctl.threadpool_info()
        seen.extend(pool["num_threads"] for pool in pools if pool["user_api"] == "blas")
        seen.append(set_threads(1))  # those of the kernels before

    problem = Problem(*table(), num_classes=3)
    with threadpoolctl.threadpool_limits(2):
        minimise(problem.objective, problem.start, max_iter=1, tol=1e-4, on_step=on_step)
    assert set(seen) == {1}


def test_blas_takes_one_thread_for_vectors_alone(monkeypatch):
    """A long sparse X goes through the kernels, on all threads; a long dense one through NumPy's BLAS too."""
    for limit in ("SMALL", "SHORT"):
        monkeypatch.setattr(threads, limit, 0)
    X, y = table()
    for x, expected in ((X, 2), (scipy.sparse.csr_array(X), 1)):
        seen = {}

        def on_step(*step, seen=seen):
            for pool in threadpoolctl.threadpool_info():
                seen.setdefault(pool["user_api"], []).append(pool["num_threads"])

        problem = Problem(x, y, num_classes=3)
        with threadpoolctl.threadpool_limits(2):
            minimise(problem.objective, problem.start, max_iter=1, tol=1e-4, on_step=on_step)
        assert (max(seen["blas"]), max(seen["openmp"])) == (expected, 2)


def test_overflow_and_unknown_solvers_are_errors():
    X, y = table()
    problem = Problem(X * 1e200, y, num_classes=3)
    with pytest.raises(ValueError, match="StandardScaler"), np.errstate(all="ignore"):
        minimise(problem.objective, problem.start + 1e150, max_iter=3, tol=1e-4)
    with pytest.raises(ValueError, match=r'"auto", "lbfgs", "newton-cg", "sgd"; got \'adam\''):
        minimise(problem.objective, problem.start, solver="adam", max_iter=3, tol=1e-4)
