"""Solvers: the optimum that scikit-learn finds, the certificate that bounds it, and what is said if not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_digits

from tests.regression.solvers.problems import EXACT, PROBLEMS, Problem, table
from xent.regression import objective as objective_file
from xent.regression import solvers
from xent.regression.solvers import line_search, minimise, preconditioners
from xent.regression.solvers.state import Draws
from xent.regression.sums import partition_sums

lbfgs_file = sys.modules[
    "xent.regression.solvers.lbfgs"
]  # the package's attribute of that name is the function


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


def test_overflow_and_unknown_solvers_are_errors():
    X, y = table()
    problem = Problem(X * 1e200, y, num_classes=3)
    with pytest.raises(ValueError, match="StandardScaler"), np.errstate(all="ignore"):
        minimise(problem.objective, problem.start + 1e150, max_iter=3, tol=1e-4)
    with pytest.raises(ValueError, match=r'"auto", "lbfgs", "newton-cg", "sgd"; got \'adam\''):
        minimise(problem.objective, problem.start, solver="adam", max_iter=3, tol=1e-4)
