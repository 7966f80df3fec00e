"""One run: the gradient's check costs little, and one-hot columns take the memory of their entries."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from scipy.sparse import issparse

from xent.files import dataset as data
from xent.regression.objective import Objective
from xent.report import training

RNG = np.random.default_rng(0)


def classes_of_clusters(rows: int, columns: int, classes: int) -> data.Dataset:
    centres, labels = RNG.normal(size=(classes, columns)), np.arange(rows) % classes
    features = centres[labels] + 0.8 * RNG.normal(size=(rows, columns))
    return data.Dataset("clusters", features, labels, [f"x{k}" for k in range(columns)])


def towns(rows: int, levels: int) -> data.Dataset:
    town = RNG.integers(levels, size=rows)
    amount = RNG.normal(size=rows)
    labels = np.where(amount + (town % 3) + RNG.normal(size=rows) > 1, "yes", "no")
    table = pl.DataFrame({"amount": amount, "town": [f"Z{k:04}" for k in town]})
    return data.Dataset("towns", table, labels, table.columns)


@pytest.mark.parametrize(("rows", "columns", "classes"), [(3000, 20, 100), (400, 500, 20), (60, 3, 2)])
def test_the_check_of_the_gradient_costs_no_more_than_a_training(rows, columns, classes, monkeypatch):
    evaluations = []
    evaluate = Objective.__call__

    def counted(objective, parameters):
        evaluations.append(objective.num_rows)
        return evaluate(objective, parameters)

    monkeypatch.setattr(Objective, "__call__", counted)
    run = training.run(classes_of_clusters(rows, columns, classes), training.Settings(max_iter=3))
    check = run.gradient
    assert check.passed
    assert check.checked >= min(check.total, 16)
    assert min(run.train.rows, 64) <= check.rows <= run.train.rows
    work = check.rows * 2 * check.checked * (columns + 16) * (classes if classes > 2 else 1)
    assert work <= training.CHECK_WORK
    assert evaluations[-2 * check.checked :] == [check.rows] * 2 * check.checked


def test_a_wrong_gradient_is_found_on_some_of_the_rows(monkeypatch):
    dataset = classes_of_clusters(3000, 20, 100)
    evaluate = Objective.__call__

    def wrong(objective, parameters):
        value, gradient = evaluate(objective, parameters)
        return value, gradient * 1.001

    monkeypatch.setattr(training, "CHECK_WORK", 1 << 22)
    assert training.run(dataset, training.Settings(max_iter=1)).gradient.passed
    monkeypatch.setattr(Objective, "__call__", wrong)
    assert not training.run(dataset, training.Settings(max_iter=1)).gradient.passed


def test_sparse_one_hot_columns_give_the_predictions_of_dense_ones(monkeypatch):
    dataset, settings = towns(1500, 60), training.Settings(tol=1e-13)
    sparse = training.run(dataset, settings)
    assert issparse(sparse.model.preprocessor.transform(dataset.features))
    monkeypatch.setattr("xent.files.preprocess.SPARSE_FROM", np.inf)
    dense = training.run(dataset, settings)
    log_p = dense.model.predict_log_proba(dataset.features)
    np.testing.assert_allclose(sparse.model.predict_log_proba(dataset.features), log_p, atol=1e-6)
    assert sparse.gradient.passed
    assert sparse.optimality_gap <= 1e-12
    assert [f.text for f in sparse.findings] == [f.text for f in dense.findings]
    assert [[r.feature for r in row] for row in sparse.reasons] == [
        [r.feature for r in row] for row in dense.reasons
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_levels_take_little_memory(tmp_path):
    """20,000 rows of 4,000 levels: 610 MiB for each dense copy."""
    rng = np.random.default_rng(0)
    rows = "".join(f"{rng.normal():.3f},Z{rng.integers(4000):04},{'ab'[k % 2]}\n" for k in range(20_000))
    (tmp_path / "towns.csv").write_text(f"amount,town,y\n{rows}")
    # Not ru_maxrss: a process begins with that of the one which started it.
    code = (
        "import re, sys; from xent.command.cli import main; code = main(sys.argv[1:]); "
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]; "
        "print(int(peak) >> 10, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", str(tmp_path / "towns.csv"), "--target", "y"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0
    assert int(done.stderr) < 450
