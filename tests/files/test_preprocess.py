"""Columns become features as scikit-learn's transformers make them; what was learnt is plain and checked."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler

from xent.files.preprocess import Preprocessor, describe, describe_surprises

RNG = np.random.default_rng(0)
ROWS = 60


def table(rows: int = ROWS) -> pl.DataFrame:
    """Numbers with and without missing values, categories with and without, a constant column."""
    amount, age = RNG.normal(50, 20, rows), RNG.exponential(3, rows)
    age[::7] = np.nan
    colour = np.array(["red", "green", "blue"], object)[RNG.integers(0, 3, rows)]
    size = np.array(["S", "M", None], object)[RNG.integers(0, 3, rows)]
    columns = {"amount": amount, "colour": colour, "age": age, "size": size, "one": np.full(rows, 0.1)}
    kinds = {"colour": pl.String, "size": pl.String}
    return pl.DataFrame(
        {name: pl.Series(values.tolist(), dtype=kinds.get(name)) for name, values in columns.items()}
    )


def test_features_are_those_of_scikit_learns_transformers():
    data = table()
    learnt = Preprocessor.fit(data, data.columns)
    encoder = OneHotEncoder(sparse_output=False)
    numbers = data.select("amount", "age", "one").to_numpy()
    expected = np.hstack(
        [
            make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit_transform(numbers),
            MissingIndicator(features="all").fit_transform(numbers)[:, [1]],
            ColumnTransformer([("one", encoder, [0, 1])]).fit_transform(
                data.select("colour", "size").to_numpy().astype(object)
            ),
        ]
    )
    np.testing.assert_allclose(learnt.transform(data), expected, rtol=1e-12, atol=1e-12)
    assert learnt.feature_names == [
        *("amount", "age", "one", "age is missing"),
        *("colour=blue", "colour=green", "colour=red", "size=M", "size=S", "size is missing"),
    ]
    assert learnt.constants == ("one",)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_keep_their_dtype_and_match_scikit_learn(dtype):
    x = RNG.normal(100, 5, (500, 600)).astype(dtype)
    learnt = Preprocessor.fit(x, [str(k) for k in range(600)])
    features = learnt.transform(x)
    assert features.dtype == dtype
    expected = StandardScaler().fit_transform(x.astype(np.float64))
    np.testing.assert_allclose(features, expected, atol=1e-13 if dtype == np.float64 else 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_stays_sparse_and_its_zeros_stay_zeros(dtype):
    x = sp.random_array((50, 9), density=0.2, format="csr", rng=1).astype(dtype)
    x.data[x.indices == 4] = 0
    x.eliminate_zeros()
    learnt = Preprocessor.fit(x, [str(k) for k in range(9)])
    features = learnt.transform(x)
    assert features.dtype == dtype
    assert (features.indices == x.indices).all()
    np.testing.assert_allclose(features.toarray(), MaxAbsScaler().fit_transform(x).toarray(), rtol=1e-6)
    np.testing.assert_allclose(learnt.transform(x.toarray()), features.toarray(), rtol=1e-6)
    assert learnt.constants == ("4",)
    dense = Preprocessor.fit(x.toarray(), [str(k) for k in range(9)])
    np.testing.assert_allclose(dense.transform(x), dense.transform(x.toarray()))


def test_dense_columns_of_mean_0_are_described_as_dense():
    x = np.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    for table, words in ((x, "scaled to mean 0"), (sp.csr_array(x), "divided by their largest value")):
        learnt = Preprocessor.fit(table, ["a", "b"])
        again = Preprocessor.from_json(json.loads(json.dumps(learnt.to_json())), learnt.arrays())
        for each in (learnt, again):
            ((_, sentence),) = describe(each)
            assert words in sentence


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_too_far_from_the_training_rows_is_named(dtype):
    learnt = Preprocessor.fit(np.arange(6).reshape(3, 2) * dtype(1e-9), ["a", "b"])
    largest = np.finfo(dtype).max
    with pytest.raises(ValueError, match=f"column 'b' are too far .*{largest:.3g}".replace("+", r"\+")):
        learnt.transform(np.array([[0, 0], [0, largest]], dtype))


def test_what_the_training_rows_did_not_have_counts_as_nothing_and_is_said():
    data = table()
    learnt = Preprocessor.fit(data, data.columns)
    new = pl.DataFrame(
        {
            "one": [7.0, 7.0],
            "size": ["XL", "S"],
            "age": [None, 1.0],
            "colour": [None, "red"],
            "amount": [None] * 2,
        },
        schema=dict(zip(reversed(data.columns), reversed(data.dtypes), strict=True)),
    )
    row = dict(zip(learnt.feature_names, learnt.transform(new)[0], strict=True))
    assert row["age is missing"] == 1
    assert {
        name: value for name, value in row.items() if "=" in name or name in ("one", "size is missing")
    } == (dict.fromkeys([*(n for n in learnt.feature_names if "=" in n), "one", "size is missing"], 0.0))
    assert dict(learnt.surprises(new)) == {
        ("amount", None, False): 2,
        ("colour", None, True): 1,
        ("size", "XL", True): 1,
    }
    assert describe_surprises(learnt.surprises(new)) == [
        "column 'amount': no value in 2 rows: the training rows all had one; their median stands in",
        "column 'colour': no value in 1 row: the training rows all had one, so its features are all 0",
        "column 'size': 'XL' in 1 row: never in the training rows, so its features are all 0",
    ]
    assert not learnt.surprises(data)


def test_missing_values_and_new_levels_of_one_column_are_counted_apart():
    learnt = Preprocessor.fit(pl.DataFrame({"c": ["red", "green"] * 9}), ["c"])
    new = pl.DataFrame({"c": [None, "blue", "blue", "grey", "red", "pink"]})
    assert describe_surprises(learnt.surprises(new), "held-out row") == [
        "column 'c': no value in 1 held-out row: the training rows all had one, so its features are all 0",
        "column 'c': 'blue' and 2 more levels in 4 held-out rows: never in the training rows, so its "
        "features are all 0",
    ]
    two = describe_surprises(learnt.surprises(new[1:4]))
    assert "'blue' and 1 more level in 3 rows" in two[0]


def wide(rows: int, levels: int, missing: bool = True) -> pl.DataFrame:
    """Two columns of numbers, one with missing values, and two of many levels."""
    rng = np.random.default_rng(1)
    amount, age = rng.normal(50, 20, rows), rng.normal(50, 20, rows).round(1)
    age[::7] = np.nan
    codes = rng.integers(0, levels, (2, rows))
    town, shop = ([f"{name} {k}" for k in each] for name, each in zip(("town", "shop"), codes, strict=True))
    town[3::50] = [None] * len(town[3::50]) if missing else town[3::50]
    return pl.DataFrame({"amount": amount, "town": town, "age": age, "one": [3.0] * rows, "shop": shop})


@pytest.mark.parametrize("narrow", [False, True])
def test_many_levels_are_sparse_and_hold_the_numbers_of_the_dense_columns(narrow, monkeypatch):
    data = wide(400, 60)
    if narrow:
        data = data.cast(dict.fromkeys(("amount", "age", "one"), pl.Float32))
    learnt = Preprocessor.fit(data, data.columns)
    new = pl.concat([wide(50, 90, False), data[:50]], how="vertical_relaxed").cast(dict(data.schema))
    sparse = [learnt.transform(each) for each in (data, new, data[:1], data[:0])]
    monkeypatch.setattr("xent.files.preprocess.SPARSE_FROM", np.inf)
    for one, each in zip(sparse, (data, new, data[:1], data[:0]), strict=True):
        dense = learnt.transform(each)
        assert one.dtype == dense.dtype == (np.float32 if narrow else np.float64)
        assert sp.issparse(one)
        assert one.has_canonical_format
        assert one.nnz <= len(data.columns) * len(each)
        np.testing.assert_array_equal(one.toarray(), dense)


def test_few_levels_stay_dense():
    assert not sp.issparse(Preprocessor.fit(table(), table().columns).transform(table()))


def test_a_column_without_any_value_is_a_constant():
    data = pl.DataFrame({"a": [None, None], "b": [1.0, 2.0]}, schema={"a": pl.Float64, "b": pl.Float64})
    learnt = Preprocessor.fit(data, ["a", "b"])
    assert (learnt.constants, dict(learnt.indicators)) == (("a",), {})
    np.testing.assert_array_equal(learnt.transform(data), [[0, -1], [0, 1]])


def test_what_was_learnt_survives_json_to_the_bit():
    data = table()
    learnt = Preprocessor.fit(data, data.columns)
    again = Preprocessor.from_json(json.loads(json.dumps(learnt.to_json())), learnt.arrays())
    np.testing.assert_array_equal(again.transform(data), learnt.transform(data))
    assert again.to_json() == learnt.to_json()
    assert again.feature_names == learnt.feature_names


GOOD = Preprocessor.fit(np.arange(6.0).reshape(3, 2), ["a", "b"])
FOREIGN = {
    "no list": ({"columns": 3}, {}, "not complete"),
    "a string for a list": ({"columns": "ab"}, {}, "list of strings"),
    "levels of an unknown column": ({"levels": {"c": ["x"]}}, {}, "names columns"),
    "a column twice": ({"columns": ["a", "a"]}, {}, "names columns twice"),
    "short": ({}, {"mean": np.zeros(1)}, "`mean` must be 2 finite"),
    "NaN": ({}, {"fill": np.full(2, np.nan)}, "`fill` must be 2 finite"),
    "no scale": ({}, {"scale": np.zeros(2)}, "`scale` must be > 0"),
    "text": ({}, {"mean": np.array(["x", "y"])}, "not complete"),
    "count": ({"indicators": {"a": "many"}}, {}, "not complete"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_form_is_refused(case):
    text, arrays, expected = FOREIGN[case]
    with pytest.raises(ValueError, match=expected):
        Preprocessor.from_json(GOOD.to_json() | text, GOOD.arrays() | arrays)


@pytest.mark.parametrize("missing", ["columns", "levels", "indicators", "constants", "sparse"])
def test_an_incomplete_form_is_refused(missing):
    text = GOOD.to_json()
    del text[missing]
    with pytest.raises(ValueError, match="not complete"):
        Preprocessor.from_json(text, GOOD.arrays())


def test_other_columns_than_in_training_are_refused():
    data = table()
    learnt = Preprocessor.fit(data, data.columns)
    with pytest.raises(ValueError, match="no column 'age'; expected amount, colour, age"):
        learnt.transform(data.drop("age"))
    with pytest.raises(ValueError, match="expected 2 columns, as in training; got 3"):
        GOOD.transform(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="expected 2 columns"):
        GOOD.transform(sp.csr_array((1, 3)))


def test_too_many_levels_and_too_large_values_are_named(monkeypatch):
    monkeypatch.setattr("xent.files.preprocess.MOST_LEVELS", 49)
    names = pl.DataFrame({"n": [f"row {i}" for i in range(50)]})
    with pytest.raises(ValueError, match=r"column 'n' has 50 levels in 50 rows"):
        Preprocessor.fit(names, ["n"])
    with pytest.raises(ValueError, match=r"column 'b' are too large to be squared: up to 1e\+300"):
        Preprocessor.fit(np.array([[0.0, 1e300], [1.0, 0.0]]), ["a", "b"])
