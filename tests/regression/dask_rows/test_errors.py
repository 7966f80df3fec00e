"""What is wrong with arrays of dask is one error that names the partition."""

from __future__ import annotations

import re

import numpy as np
import pytest

import xent
from tests.regression.sums.problems import data
from xent.regression.sums.partitions import PartitionError

dask = pytest.importorskip("dask")

from dask import delayed  # noqa: E402

from tests.regression.dask_rows.test_dask import chunked  # noqa: E402


def two(x):
    """In partitions of 100 and 140 rows."""
    return chunked(x, [100])


def changed(x, row, value):
    x = x.astype(float)
    x[row] = value
    return two(x)


def letters(y):
    return np.array(["a", "b", "c"])[y]


ERRORS = {
    "NaN": (lambda X, y: (changed(X, 150, np.nan), two(y)), "^partition 1: .*NaN"),
    "infinite": (lambda X, y: (changed(X, 50, np.inf), two(y)), "^partition 0: .*infinity"),
    "no label": (lambda X, y: (two(X), changed(y, 239, np.nan)), "^partition 1: `y` must hold a label"),
    "chunks": (lambda X, y: (two(X), chunked(y, [90])), "`y` must .*partition 0 has 90 rows, and 100 in `X`"),
    "count": (lambda X, y: (two(X), chunked(y, [])), "`y` must have the 2 partitions of `X`; got 1"),
    "rows": (
        lambda X, y: ([delayed(X)], [delayed(y[1:])]),
        "^partition 0: `y` must have the 240 rows of `X`",
    ),
    "memory": (lambda X, y: (two(X), y), "`y` must be a dask array, .*got numpy.ndarray of 1 axes"),
    "memory of X": (lambda X, y: (X, two(y)), "`X` must be a dask array, .*got numpy.ndarray of 2 axes"),
    "axes": (lambda X, y: (two(X)[:, :, None], two(y)), "`X` must be .* of 3 axes"),
    "one class": (lambda X, y: (two(X), two(0 * y)), "at least 2 classes"),
    "no rows": (lambda X, y: (chunked(X[:0], [0]), chunked(y[:0], [0])), "got none in 2 partitions"),
    "kinds": (
        lambda X, y: ([delayed(X)] * 2, [delayed(y), delayed(letters(y))]),
        "got labels of str_ in partition 1 and numbers as labels in partition 0",
    ),
    "probabilities": (
        lambda X, y: ([delayed(X)] * 2, [delayed(y), delayed(np.eye(3)[y])]),
        "got probabilities of 3 classes in partition 1",
    ),
    "no y": (lambda X, y: (two(X), None), "`y` must be labels or probabilities"),
    "widths": (
        lambda X, y: ([delayed(X), delayed(X[:, 1:])], [delayed(y)] * 2),
        "got 5 dense features of float64 in partition 1 and 6",
    ),
}


@pytest.mark.parametrize(("given", "words"), ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_named(given, words):
    X, y, _ = data()
    model = xent.SoftmaxRegression()
    with pytest.raises((TypeError, ValueError)) as raised:
        model.fit(*given(X, y))
    assert re.search(words, str(raised.value)), str(raised.value)
    assert "coef_" not in vars(model)


def test_a_partition_that_fails_is_named(processes):
    def fail(x):
        raise OSError("no such file:\n part-2")

    X, y, _ = data()
    parts = [delayed(X[:100]), delayed(X[100:200]), delayed(fail)(X[200:])]
    for where in ("synchronous", "threads", processes):
        with dask.config.set(scheduler=where), pytest.raises(PartitionError) as raised:
            xent.SoftmaxRegression().fit(parts, [delayed(y[i : i + 100]) for i in (0, 100, 200)])
        assert str(raised.value) == "partition 2: OSError: no such file: part-2"


def test_predictions_name_the_partition():
    X, y, _ = data()
    model = xent.SoftmaxRegression().fit(X, y)
    with pytest.raises(ValueError, match="X has 5 features, but SoftmaxRegression is expecting 6"):
        model.predict(chunked(X[:, 1:], [100]))
    X[200] = np.nan
    with pytest.raises(PartitionError, match=r"^partition 1: ValueError: .*NaN"):
        model.predict(two(X)).compute()
    for call in (model.partial_fit, model.calibrate_temperature, model.objective):
        with pytest.raises(TypeError, match="`X` must be in memory here; got a dask collection"):
            call(two(X), y)
