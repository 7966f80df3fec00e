"""How many threads a fit takes, and that it leaves the pools of BLAS as they were."""

from __future__ import annotations

import scipy.sparse
import threadpoolctl

from tests.regression.solvers.problems import Problem, table
from xent.kernels.cpu import set_threads
from xent.regression import objective
from xent.regression.solvers import minimise
from xent.regression.sums import threads


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
    """A long X of few classes, or sparse, goes through the kernels, on all threads; others through BLAS."""
    for limit in ("SMALL", "SHORT"):
        monkeypatch.setattr(threads, limit, 0)
    X, y = table()
    for x, fused_scores, expected in ((X, 0, 2), (X, 48, 1), (scipy.sparse.csr_array(X), 0, 1)):
        monkeypatch.setattr(objective, "FUSED_SCORES", fused_scores)
        seen = {}

        def on_step(*step, seen=seen):
            for pool in threadpoolctl.threadpool_info():
                seen.setdefault(pool["user_api"], []).append(pool["num_threads"])

        problem = Problem(x, y, num_classes=3)
        with threadpoolctl.threadpool_limits(2):
            minimise(problem.objective, problem.start, max_iter=1, tol=1e-4, on_step=on_step)
        assert (max(seen["blas"]), max(seen["openmp"])) == (expected, 2)
