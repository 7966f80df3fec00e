"""Fits of dask arrays by xent, dask-ml and scikit-learn: time, objective, accuracy; and 1 worker beside 2."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np

import xent
from bench import machine

ALPHA = 1e-4
CLASSES = 3
Fit = Callable[[Any, Any], tuple[np.ndarray, np.ndarray, np.ndarray]]  # → (W, b, predicted labels)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fits.dask_arrays", description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    X, y = problem(options.rows, options.features)
    print(f"{X.shape} {X.dtype}, {CLASSES} classes, {options.partitions} partitions, alpha = {ALPHA}")
    chunks = -(-options.rows // options.partitions)
    for workers in (1, 2):
        cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        )
        with cluster, distributed.Client(cluster) as client:
            table, labels = dask.persist(
                da.from_array(X, chunks=(chunks, -1)), da.from_array(y, chunks=chunks)
            )
            distributed.wait([table, labels])
            for name, fit in {"xent": of_xent, "dask-ml": of_dask_ml}.items():
                report(f"{name}, workers: {workers}", fit, table, labels, X, y, options.rounds, client)
    report("scikit-learn, in memory", of_scikit_learn, X, y, X, y, options.rounds)
    report("xent, in memory", of_xent, X, y, X, y, options.rounds)


def problem(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes whose means are on a line: one against the rest cannot find the middle one."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, rows)
    X = rng.standard_normal((rows, features), np.float32)
    X[:, 0] += 2.0 * y - 2.0
    X[:, 1] += 0.5 * (y == 1)
    return X, y


def of_xent(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    model = xent.SoftmaxRegression(alpha=ALPHA).fit(X, y)
    return model.coef_, model.intercept_, np.asarray(model.predict(X))


def of_dask_ml(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from dask_ml.linear_model import LogisticRegression

    strength = 1 / (ALPHA * X.shape[0])
    model = LogisticRegression(solver="lbfgs", C=strength, max_iter=300, tol=1e-6).fit(X, y)
    return np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_), np.asarray(model.predict(X)) * 1


def of_scikit_learn(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (ALPHA * len(X)), max_iter=300).fit(X, y)
    return model.coef_, model.intercept_, model.predict(X)


def report(
    name: str, fit: Fit, table: Any, labels: Any, X: Any, y: Any, rounds: int, client: Any = None
) -> None:
    """One line; the time is the best of the rounds, the CPU seconds those of it.

    CPU seconds and memory are those of client and workers, the memory the sum of their largest resident
    sets.
    """
    best = (np.inf, np.inf)
    try:
        of_all(machine.forget_peak, client)
        for _ in range(rounds):
            before, start = sum(of_all(time.process_time, client)), time.perf_counter()
            coef, intercept, predicted = fit(table, labels)
            seconds = time.perf_counter() - start
            best = min(best, (seconds, sum(of_all(time.process_time, client)) - before))
        memory = sum(of_all(machine.peak, client))
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    value = objective(X, y, coef, intercept) if len(coef) == CLASSES else float("nan")
    accuracy = np.mean(predicted == y)
    times = f"{best[0]:.2f} s, CPU {best[1]:.2f} s, {memory:,} MB"
    print(f"{name}: {times}, objective {value:.7f}, accuracy {accuracy:.4f}")


def of_all(function: Callable[[], Any], client: Any) -> list[Any]:
    """The values of a function in this process and in the workers."""
    return [function(), *(client.run(function).values() if client else ())]


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> float:
    """Mean cross-entropy + alpha/2·‖W‖², in float64."""
    logits = X.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    return float(xent.cross_entropy(logits, y) + 0.5 * ALPHA * np.square(coef.astype(np.float64)).sum())


if __name__ == "__main__":
    main()
