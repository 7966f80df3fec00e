"""Learning the preprocessing from pieces gives what all rows at once give."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from xent.files.parts import learning
from xent.files.parts.learning import Learner, SparseLearner
from xent.files.preprocess import Preprocessor

ROWS = 90
RNG = np.random.default_rng(1)
TABLE = pl.DataFrame(
    {
        "plain": RNG.standard_normal(ROWS) + 1000,
        "holes": pl.Series([None if i % 7 == 0 else float(i) for i in range(ROWS)]),
        "late": pl.Series([None] * 80 + [2.0, 5.0] * 5),
        "empty": pl.Series([None] * ROWS, dtype=pl.Float64),
        "constant": [0.1] * ROWS,
        "flag": [1.0, 0.0] * (ROWS // 2),
        "colour": ["red", "green", None] * (ROWS // 3),
        "size": ["s"] * 60 + ["l"] * 30,
    }
)
CATEGORIES = ("colour", "size")


def learnt(cuts, table=TABLE):
    learner = Learner(table.columns, CATEGORIES)
    for start, stop in pairwise(cuts):
        learner.add(table[start:stop])
    return learner.preprocessor()


@pytest.mark.parametrize("cuts", [[0, ROWS], [0, 0, 1, 30, 80, ROWS], list(range(ROWS + 1))])
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_pieces_teach_what_all_rows_do(cuts, dtype):
    table = TABLE.cast({pl.Float64: dtype})
    ours, theirs = learnt(cuts, table), Preprocessor.fit(table, table.columns)
    assert ours.to_json() == theirs.to_json()
    for name, expected in theirs.arrays().items():
        np.testing.assert_allclose(ours.arrays()[name], expected, rtol=1e-13, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("cuts", [[0, ROWS], [0, 0, 1, 30, 80, ROWS], list(range(ROWS + 1))])
def test_learners_of_parts_teach_merged_what_all_rows_do(cuts):
    ours, theirs = Learner(TABLE.columns, CATEGORIES), Preprocessor.fit(TABLE, TABLE.columns)
    for start, stop in pairwise(cuts):
        part = Learner(TABLE.columns, CATEGORIES)
        part.add(TABLE[start:stop])
        ours.merge(part)
    assert ours.preprocessor().to_json() == theirs.to_json()
    for name, expected in theirs.arrays().items():
        found = ours.preprocessor().arrays()[name]
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13, err_msg=name)


def test_merged_samples_have_rows_of_each_part_at_one_rate(monkeypatch):
    """So that the medians are those of all parts: here 400 rows near 0, and 100 near 10."""
    monkeypatch.setattr(learning, "SAMPLE", 0)
    monkeypatch.setattr(learning, "LEAST_ROWS", 120)
    learner = Learner(["a"], [])
    for rows, centre in ((400, 0.0), (100, 10.0)):
        part = Learner(["a"], [])
        part.add(pl.DataFrame({"a": centre + RNG.uniform(-1, 1, rows)}))
        learner.merge(part)
    sample = np.concatenate(learner.sample)[:, 0]
    assert len(sample) <= 120
    assert np.mean(sample > 5) == pytest.approx(0.2, abs=0.05)


def test_too_many_levels_in_all_parts_are_named(monkeypatch):
    monkeypatch.setattr(learning, "MOST_LEVELS", 3)
    words, more = (Learner(["a"], ["a"]) for _ in range(2))
    words.add(pl.DataFrame({"a": ["x", "y"]}))
    more.add(pl.DataFrame({"a": ["z", "w"]}))
    with pytest.raises(ValueError, match="'a' has 4 levels in 4 rows, too many"):
        words.merge(more)


def test_medians_of_more_rows_are_those_of_each_2nd_4th_or_8th(monkeypatch):
    monkeypatch.setattr(learning, "SAMPLE", 0)
    monkeypatch.setattr(learning, "LEAST_ROWS", 30)
    x = RNG.standard_normal((200, 2))
    table = pl.DataFrame(x, schema=["a", "b"])
    for cuts in ([0, 200], [0, 3, 50, 51, 200], list(range(201))):
        learner = Learner(["a", "b"], [])
        for start, stop in pairwise(cuts):
            learner.add(table[start:stop])
        np.testing.assert_array_equal(learner.preprocessor().fill, np.median(x[::8], axis=0), str(cuts))


def test_a_column_that_the_sample_misses_is_filled_with_its_mean(monkeypatch):
    monkeypatch.setattr(learning, "SAMPLE", 0)
    monkeypatch.setattr(learning, "LEAST_ROWS", 10)
    learner = Learner(["a"], [])
    learner.add(pl.DataFrame({"a": [4.0 if i % 16 == 3 else None for i in range(160)]}))
    found = learner.preprocessor()
    assert (found.fill[0], found.mean[0], found.scale[0]) == (4.0, 4.0, 1.0)


def test_what_cannot_be_prepared_is_named(monkeypatch):
    learner = Learner(["a"], [])
    learner.add(pl.DataFrame({"a": [-1e200, 1.0]}))
    with pytest.raises(ValueError, match=r"column 'a' are too large to be squared: up to 1e\+200"):
        learner.preprocessor()
    monkeypatch.setattr(learning, "MOST_LEVELS", 3)
    learner = Learner(["c"], ["c"])
    learner.add(pl.DataFrame({"c": ["1", "2", "3"]}))
    with pytest.raises(ValueError, match="column 'c' has 4 levels in 4 rows"):
        learner.add(pl.DataFrame({"c": ["4"]}))


def test_sparse_columns_are_divided_by_their_largest_value():
    x = scipy.sparse.csr_array(np.array([[0.0, -3.0, 0.0, 0.5], [0.0, 2.0, 0.0, 1.5]]))
    learner = SparseLearner()
    learner.add(x[:1, :2])
    learner.add(x)
    names = ["x1", "x2", "x3"]
    ours, theirs = learner.preprocessor(names, 1), Preprocessor.fit(x[:, 1:], names)
    assert ours.to_json() == theirs.to_json()
    np.testing.assert_array_equal(ours.scale, theirs.scale)
