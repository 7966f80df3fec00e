"""Thread pools: limited in any thread, and given back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import xent
from xent.kernels.cpu import set_threads
from xent.regression.sums import threads


def pools():
    """Threads of the kernels, as this thread sees them, and of every BLAS."""
    kernels = set_threads(1)
    set_threads(kernels)
    blas = {("blas", pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"}
    assert blas
    return {("kernels", kernels), *blas}


@pytest.fixture(autouse=True)
def two_threads():
    xent.SoftmaxRegression().fit([[0.0], [1.0]], [0, 1])  # loads the libraries
    before = set_threads(2)
    with threadpool_limits(2, "blas"):
        yield
    set_threads(before)


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize("limit", [threads.single_thread, lambda: threads.few_threads(100, 3)])
@pytest.mark.parametrize("run", [lambda function: function(), in_another_thread])
def test_pools_are_limited_in_any_thread_and_given_back(run, limit):
    def inside():
        with limit():
            return pools()

    assert run(inside) == {("kernels", 1), ("blas", 1)}
    assert pools() == {("kernels", 2), ("blas", 2)}


def test_blocks_of_two_threads_overlap():
    """BLAS has its threads back only after the second."""
    first_left, seen = Barrier(2), []

    def second():
        with threads.single_thread():
            first_left.wait(10)
            first_left.wait(10)
            seen.append(pools())

    other = Thread(target=second)
    with threads.single_thread():
        other.start()
        first_left.wait(10)
    first_left.wait(10)
    other.join()
    assert seen == [{("kernels", 1), ("blas", 1)}]
    assert pools() == {("kernels", 2), ("blas", 2)}
