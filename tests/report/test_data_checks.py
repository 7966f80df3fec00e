"""Each check of the data fires on data made for it, alone, and is silent on clean data."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars
import pytest
from scipy.sparse import csr_matrix
from scipy.special import softmax

from xent.files import data_files
from xent.files import dataset as data
from xent.report import data_checks
from xent.report.data_checks import findings

ROWS, TRAIN = 200, 150
RNG = np.random.default_rng(0)
LABELS = np.array(["low", "middle", "high"])[np.arange(ROWS) % 3]
FEATURES = RNG.standard_normal((ROWS, 4)) + np.eye(3, 4)[np.arange(ROWS) % 3]


def with_column(values: Any) -> np.ndarray:
    return np.column_stack([FEATURES, np.asarray(values, np.float64)])


def texts(features: Any = FEATURES, labels: Any = LABELS, train: int = TRAIN) -> list[str]:
    width = features.shape[1]
    names = features.columns if hasattr(features, "columns") else [f"x{i}" for i in range(width)]
    found = findings(data.Dataset("made", features, labels, names), np.arange(train), np.arange(train, ROWS))
    return [f.text for f in found if f.text]


def changed(places: Any, label: str) -> np.ndarray:
    labels = LABELS.astype("<U20")
    labels[places] = label
    return labels


REPEATED = FEATURES.copy()
REPEATED[100:105] = FEATURES[:5]  # row i is of class i mod 3
SHARED = FEATURES.copy()
SHARED[150:165] = FEATURES[0:15]

ODD = [
    ({"labels": changed(slice(0, ROWS, 6), "Low ")}, "'Low ' and 'low' differ only by case or spaces"),
    ({"labels": np.array([0, 1, 3])[np.arange(ROWS) % 3]}, "from 0 to 3, but 2 never occurs"),
    ({"labels": changed([5, 155], "rare")}, "'rare': fewer than 5 rows each"),
    ({"labels": changed([5, 6, 7, 8, 9, 10], "unseen")}, "no row of 'unseen' is held out"),
    ({"labels": np.where(np.arange(ROWS) % 25, "most", "low")}, "96.0% of the rows are 'most'"),
    ({"labels": np.arange(ROWS) % 25}, "25 distinct numbers in 200 rows: a quantity"),
    ({"train": 4}, "4 features for 4 training rows"),
    ({"features": softmax(FEATURES, axis=1)}, "as a softmax gives"),
    (
        {"features": with_column((LABELS == "low") + 2.0 * (LABELS == "high") + 0.1 * RNG.random(ROWS))},
        "'x4' predicts the class alone",
    ),
    ({"features": with_column(np.arange(ROWS) + 7)}, "'x4' counts the rows"),
    ({"features": SHARED}, "15 of 50 held-out rows (30%) have the features of a training row"),
    ({"features": REPEATED}, "10 of 200 rows are like another row of another class"),
    ({"features": with_column(np.full(ROWS, 3.0))}, "'x4': the same in every row"),
    ({"features": with_column(np.full(ROWS, np.nan))}, "'x4': the same in every row"),
]


@pytest.mark.parametrize(("changes", "words"), ODD, ids=[words for _, words in ODD])
def test_each_check_fires_alone(changes, words):
    (text,) = texts(**changes)
    assert words in text


def test_clean_data_are_clean():
    assert texts() == []


@pytest.mark.parametrize("name", data_files.BUNDLED)
def test_the_bundled_sets_are_clean_but_for_constant_pixels(name):
    dataset = data.load(name)
    rows = np.random.default_rng(0).permutation(len(dataset.labels))
    found = findings(dataset, rows[: 4 * len(rows) // 5], rows[4 * len(rows) // 5 :])
    odd = [f for f in found if f.text]
    assert not any(f.grave for f in odd)
    assert [f.check for f in odd] == (["No column is constant"] if name == "digits" else [])


def test_columns_of_text_are_looked_at_too():
    table = polars.DataFrame(
        {"number": FEATURES[:, 0], "word": [f"is {label}" for label in LABELS], "same": ["a"] * ROWS}
    )
    found = texts(table)
    assert any("'word' predicts the class alone" in text for text in found)
    assert any("'same': the same in every row" in text for text in found)


def test_a_leak_is_found_beyond_the_range_of_float32():
    (text,) = texts(
        with_column(((LABELS == "low") + 2.0 * (LABELS == "high") + 0.1 * RNG.random(ROWS)) * 1e39)
    )
    assert "'x4' predicts the class alone" in text
    assert texts(with_column(RNG.standard_normal(ROWS) * 1e100)) == []


def test_sums_of_large_numbers_do_not_warn():
    signs = np.repeat([-1.0, 1.0], 500)
    rows = np.arange(1000)
    assert data_checks._accuracy_alone(1e300 * signs, (signs > 0).astype(int), rows[::2], rows) == 1


@pytest.mark.parametrize("rows", [20, TRAIN])
def test_the_search_for_a_leak_fits_few_trees(rows, monkeypatch):
    """Of a few rows nearly every column looks like one by chance."""
    features, tried = RNG.standard_normal((ROWS, 1500)), []
    features[:, 777] = (LABELS == "low") + 2.0 * (LABELS == "high") + 0.1 * RNG.random(ROWS)
    alone = data_checks._accuracy_alone
    monkeypatch.setattr(data_checks, "_accuracy_alone", lambda *a: tried.append(a) or alone(*a))
    assert any("'x777' predicts the class alone" in text for text in texts(features, train=rows))
    assert len(tried) <= data_checks.TREES


def test_a_name_of_each_row_is_no_leak_but_a_name():
    table = polars.DataFrame({"number": FEATURES[:, 0], "name": [f"row {i}" for i in range(ROWS)]})
    assert texts(table) == [
        "'name' has another value in nearly each row (200 in 200): leave it out by --drop name"
    ]


@pytest.mark.parametrize("order", ["shuffled", "filtered"])
def test_rows_may_be_counted_in_any_order_and_with_some_left_out(order):
    numbers = np.sort(RNG.choice(2 * ROWS, ROWS, replace=False))
    if order == "shuffled":
        numbers = RNG.permutation(ROWS) + 1000
    assert texts(with_column(numbers)) == ["'x4' counts the rows: leave it out"]
    assert texts(with_column(numbers + RNG.random(ROWS))) == []


def of_categories(columns: int, rows: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Columns of 0 and 1 that depend on each other, as votes do, and a class that depends on them."""
    party = RNG.integers(0, 2, rows)
    votes = (RNG.random((rows, columns)) < np.where(party, 0.97, 0.03)[:, None]).astype(float)
    return votes, np.array(["no", "yes"])[np.where(RNG.random(rows) < 0.8, party, 1 - party)]


def shared(features: Any, labels: np.ndarray) -> bool:
    rows = len(labels)
    names = getattr(features, "columns", None) or [f"x{i}" for i in range(features.shape[1])]
    dataset = data.Dataset("made", features, labels, names)
    found = findings(dataset, np.arange(4 * rows // 5), np.arange(4 * rows // 5, rows))
    return any("have the features of a training row" in f.text for f in found)


@pytest.mark.parametrize("columns", [1, 3, 16])
def test_rows_of_categories_are_bound_to_be_alike(columns):
    features, labels = of_categories(columns)
    assert not shared(features, labels)
    levels = np.where(features > 0, "yes", "no").astype(object)
    assert not shared(polars.DataFrame({f"v{k}": levels[:, k].tolist() for k in range(columns)}), labels)
    quantity = RNG.normal(size=len(labels))
    quantity[-60:] = quantity[:60]
    features[-60:] = features[:60]
    assert not shared(features, labels)
    assert shared(np.column_stack([features, quantity]), labels)


def test_rounded_quantities_agree_by_chance_if_they_are_few():
    features, labels = of_categories(2)
    ages = RNG.integers(18, 80, (len(labels), 6)).astype(float)
    assert not shared(np.column_stack([features, ages[:, :1]]), labels)
    ages[-60:], features[-60:] = ages[:60], features[:60]
    assert shared(np.column_stack([features, ages]), labels)


def test_missing_values_are_no_leak_and_no_error():
    features = FEATURES.copy()
    features[::7, 1] = np.nan
    table = polars.DataFrame(features, schema=["a", "b", "c", "d"], orient="row").with_columns(
        polars.Series("e", ["x" if i % 4 else None for i in range(ROWS)])
    )
    assert texts(features) == texts(table) == []


def test_a_sparse_matrix_is_checked_by_its_labels():
    assert texts(csr_matrix(FEATURES)) == []
    assert len(texts(csr_matrix(FEATURES), changed([5, 6, 7, 8, 9, 10], "unseen"))) == 1


def test_shares_that_do_not_sum_to_one_are_no_softmax():
    assert texts(RNG.random((ROWS, 4))) == []
    assert texts(softmax(FEATURES, axis=1)[:, :3]) == []


def test_long_lists_are_cut():
    (text,) = texts(np.column_stack([FEATURES, np.ones((ROWS, 9))]))
    assert text == "'x4', 'x5', 'x6', 'x7' and 5 more: the same in every row, of no use"


AFTER_HEAD = [
    with_column(np.where(np.arange(ROWS) < 150, 3.0, FEATURES[:, 0])),
    with_column(np.where(np.arange(ROWS) < 150, np.nan, FEATURES[:, 0])),
    with_column(np.where(np.arange(ROWS) < 150, np.arange(ROWS), 0)),
    np.where(np.arange(ROWS)[:, None] < 150, softmax(FEATURES, axis=1), FEATURES),
]


@pytest.mark.parametrize("features", AFTER_HEAD)
def test_what_holds_for_the_first_rows_only_is_not_odd(features):
    assert texts(features) == []


@pytest.mark.parametrize("same", [0, 7, 8, 20, 39])
def test_twins_are_found_among_rows_that_begin_alike(same):
    """Rows 0 to 19 agree in the first columns; 0 and 100, of other classes, and no others in all 40."""
    features = np.column_stack([FEATURES, RNG.standard_normal((ROWS, 36))])
    features[:20, :same] = features[0, :same]
    assert texts(features) == []
    features[100] = features[0]
    assert texts(features) == [
        "2 of 200 rows are like another row of another class: no model gets both right"
    ]
