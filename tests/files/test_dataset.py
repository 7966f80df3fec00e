"""Every kind of data file: read to the same rows, whole or in batches; a bad one is one sentence."""

from __future__ import annotations

import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file, load_iris

from xent.files import dataset
from xent.files.dataset import DataError
from xent.files.preprocess import Preprocessor

X, Y = load_iris(return_X_y=True)
NAMES = ["a", "b", "c", "d"]
FRAME = pl.DataFrame(X, schema=NAMES).with_columns(kind=pl.Series([f"k{k}" for k in Y]))
MIXED = """age,sex,size,fare,kind
 31 ,f,1,7.5,yes
NA,m,2,0,no
40,,3,12,yes

7,f,1,?,no
"""


def write(kind: str) -> tuple[str, str | None]:
    """Iris in a file of that kind; its name and --target."""
    name = f"iris.{kind}"
    if kind == "csv":
        FRAME.write_csv(name)
    elif kind == "parquet":
        FRAME.write_parquet(name)
    elif kind == "npz":
        np.savez(name, X=X, y=FRAME["kind"].to_numpy().astype(str))
    elif kind == "csr.npz":
        m = sp.csr_array(X)
        np.savez(name, data=m.data, indices=m.indices, indptr=m.indptr, shape=m.shape, format="csr", y=Y)
    elif kind == "svm":
        dump_svmlight_file(X, Y, name, zero_based=False)
    return name, "kind" if kind in ("csv", "parquet") else None


KINDS = ["csv", "parquet", "npz", "csr.npz", "svm"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(kind):
    found = dataset.load(*write(kind))
    sparse = kind in ("csr.npz", "svm")
    assert sp.issparse(found.features) is sparse
    np.testing.assert_allclose(found.features.toarray() if sparse else found.features, X)
    assert found.labels.tolist() == (Y.tolist() if sparse else FRAME["kind"].to_list())
    assert len(found.feature_names) == 4
    if kind in ("csv", "parquet"):
        assert (found.feature_names, found.target) == (NAMES, "kind")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_rows_in_pieces(kind, monkeypatch):
    name, target = write(kind)
    whole = dataset.load(name, target)
    learnt = Preprocessor.fit(whole.features, whole.feature_names)
    monkeypatch.setattr(dataset, "PIECE", 300)
    monkeypatch.setattr(dataset, "BATCH", 150)
    pieces = [learnt.transform(batch.features) for batch in dataset.batches(name, learnt)]
    assert (len(pieces) > 1) is (kind != "csr.npz")
    stack = sp.vstack if sp.issparse(whole.features) else np.concatenate
    difference = stack(pieces) - learnt.transform(whole.features)
    assert abs(difference).max() == 0


def test_a_bundled_set_comes_in_one_batch():
    whole = dataset.load("wine")
    learnt = Preprocessor.fit(whole.features, whole.feature_names)
    (batch,) = dataset.batches("wine", learnt)
    np.testing.assert_array_equal(batch.features, whole.features)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_numbers_or_categories_with_gaps(kind, tmp_path):
    (tmp_path / "t.csv").write_text(MIXED)
    if kind == "parquet":
        table = pl.read_csv("t.csv", null_values=["NA", "?"]).drop_nulls("size")
        table = table.with_columns(pl.col("sex").cast(pl.Categorical), size=pl.col("size") > 1)
        table.write_parquet("t.csv")
    found = dataset.load("t.csv", "kind")
    assert found.labels.tolist() == ["yes", "no", "yes", "no"]
    assert found.features.dtypes == [pl.Float64, pl.String, pl.Float64, pl.Float64]
    assert found.features["age"].to_list() == [31, None, 40, 7]
    assert found.features["sex"].to_list() == ["f", "m", None, "f"]
    assert found.features["size"].to_list() == ([1, 2, 3, 1] if kind == "csv" else [0, 1, 1, 0])
    assert found.features["fare"].to_list() == [7.5, 0, 12, None]


def test_options_leave_columns_out_and_make_numbers_categories(tmp_path):
    (tmp_path / "t.csv").write_text(MIXED)
    found = dataset.load("t.csv", "kind", drop=["sex", "age"], categorical=["size"])
    assert found.feature_names == ["size", "fare"]
    assert found.features["size"].to_list() == ["1", "2", "3", "1"]
    found.features.write_parquet("u.parquet")
    pl.DataFrame({"size": [3], "fare": [1]}).write_parquet("new.parquet")
    learnt = Preprocessor.fit(found.features, found.feature_names)
    (batch,) = dataset.batches("new.parquet", learnt)
    assert batch.features["size"].to_list() == ["3"]
    assert not learnt.surprises(batch.features)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["true", "false"], pl.Float64),
        (["True", "False"], pl.Float64),
        (["01", "2"], pl.Float64),
        ([" 1", "2.5e3"], pl.Float64),
        (["-inf?", "x"], pl.String),
        (["None", "nan"], pl.Float64),
        (["2020-01-01", "2020-01-02"], pl.String),
        (["9" * 25, "1"], pl.Float64),
        (["+1", "-0"], pl.Float64),
    ],
)
def test_a_column_is_read_alike_whole_and_in_batches(values, kind, tmp_path):
    rows = "".join(f"{value},{k % 3},{'xy'[k % 2]}\n" for k, value in enumerate(values * 4))
    (tmp_path / "t.csv").write_text(f"a,b,kind\n{rows}")
    whole = dataset.load("t.csv", "kind")
    learnt = Preprocessor.fit(whole.features, whole.feature_names)
    assert ("a" in learnt.levels) is (kind == pl.String)
    (batch,) = dataset.batches("t.csv", learnt)
    np.testing.assert_array_equal(learnt.transform(batch.features), learnt.transform(whole.features))
    assert not learnt.surprises(batch.features)


def test_numbers_without_gaps_are_an_array_of_their_own_dtype():
    for dtype in (pl.Float32, pl.Float64, pl.Int16):
        FRAME.cast(dict.fromkeys(NAMES, dtype)).write_parquet("t.parquet")
        features = dataset.load("t.parquet", "kind").features
        assert isinstance(features, np.ndarray)
        assert features.dtype == (np.float32 if dtype == pl.Float32 else np.float64)
    np.savez("t.npz", X=X.astype(np.float32), y=Y)
    assert dataset.load("t.npz").features.dtype == np.float32


def test_blank_lines_are_no_rows_but_count_in_messages(tmp_path):
    (tmp_path / "t.csv").write_text(MIXED)
    found = dataset.load("t.csv", "kind")
    learnt = Preprocessor.fit(found.features, found.feature_names)
    (batch,) = dataset.batches("t.csv", learnt)
    assert (batch.blank, batch.features.height) == (1, 4)
    assert batch.features.equals(found.features)
    (tmp_path / "t.csv").write_text(MIXED + "much,f,1,1,yes\n")
    with pytest.raises(DataError, match="expected a number in column 'age', line 7; got 'much'"):
        list(dataset.batches("t.csv", learnt))


@pytest.mark.parametrize("first", [0, 1])
def test_svmlight_indices_begin_where_they_did_in_training(first, monkeypatch):
    m = sp.csr_array(np.array([[1.0, 0, 2], [0, 3, 0], [4, 0, 0], [0, 0, 5]]))
    dump_svmlight_file(m, [0, 1, 0, 1], "t.svm", zero_based=not first)
    whole = dataset.load("t.svm")
    assert whole.feature_names == [f"x{k + first}" for k in range(3)]
    learnt = Preprocessor.fit(whole.features, whole.feature_names)
    dump_svmlight_file(m[[1]], [0], "new.svm", zero_based=not first)
    (batch,) = dataset.batches("new.svm", learnt)
    np.testing.assert_array_equal(batch.features.toarray(), [[0, 3, 0]])


@pytest.mark.parametrize("start", ["0\n1 1:2\n", "# by hand\n-1.5e0 # none\n\n1 2:1\n"])
def test_svmlight_may_begin_with_a_row_of_zeros(start):
    Path("t.svm").write_text(start.replace("-1.5e0", "0") + "1 1:3\n0 2:1\n")
    assert dataset.load("t.svm").features.toarray().tolist()[0] == [0, 0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_file_in_either_order_is_read_whole_and_in_pieces(order):
    np.savez("f.npz", X=np.array(X, order=order), y=Y)
    whole = dataset.load("f.npz").features
    np.testing.assert_array_equal(whole, X)
    pieces = [batch.features for batch in dataset.batches("f.npz", Preprocessor.fit(whole, NAMES))]
    np.testing.assert_array_equal(np.concatenate(pieces), X)


@pytest.mark.parametrize("values", [[[1], [2]], [b"\xff", b"\xfe"]], ids=["lists", "bytes"])
def test_what_has_no_spelling_is_no_category(values):
    pl.DataFrame({"a": values * 9, "kind": list("xy") * 9}).write_parquet("f.parquet")
    learnt = Preprocessor.fit(pl.DataFrame({"a": ["u", "v"]}), ["a"])
    for read in (
        lambda: dataset.load("f.parquet", "kind", categorical=["a"]),
        lambda: list(dataset.batches("f.parquet", learnt)),
    ):
        with pytest.raises(DataError, match=r"column 'a' holds .*; expected numbers, booleans or text"):
            read()


@pytest.mark.parametrize(
    "values", [["0,667", "1.5"], ["1,002", "12"], ["1.002,5", "-3.25"], ["1,234,567.8", "1"]]
)
def test_numbers_with_commas_are_no_categories_unless_asked_for(values):
    rows = "".join(f"{value};{'xy'[k % 2]}\n" for k, value in enumerate(values * 4))
    Path("f").write_text(f"a;kind\n{rows}")
    with pytest.raises(DataError, match=r"a number in column 'a', line 2; got .* --decimal , if .*; if"):
        dataset.load("f", "kind")
    assert dataset.load("f", "kind", categorical=["a"]).features.dtypes == [pl.String]


@pytest.mark.parametrize("values", [["a,1", "b,2"], ["1,2,3", "4,5,6"], ["12", "n,o"], ["a", "0,5", "b"]])
def test_other_values_with_commas_are_categories(values):
    rows = "".join(f"{value};{'xy'[k % 2]}\n" for k, value in enumerate([*values, values[-1]] * 4))
    Path("f").write_text(f"a;kind\n{rows}")
    assert dataset.load("f", "kind").features.dtypes == [pl.String]


def compressed(damage: str) -> None:
    """A compressed npz file with one byte changed."""
    np.savez_compressed("f.npz", X=X, y=Y)
    content = bytearray(Path("f.npz").read_bytes())
    local, central = 0, content.index(b"PK\1\2")
    if damage == "data":
        content[local + 60] ^= 255
    elif damage == "encrypted":
        content[local + 6] |= 1
        content[central + 8] |= 1
    else:
        content[local + 8] = content[central + 10] = 99
    Path("f.npz").write_bytes(content)


def with_header(shape: str) -> None:
    """An npz file whose X says that it has that shape."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile("f.npz", "w") as archive:
        archive.writestr("X.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        np.save("y.npy", Y)
        archive.write("y.npy")


def csr(**other: object) -> None:
    """An npz file with a CSR matrix of ones in its first column, and what is other."""
    arrays = {
        "data": np.ones(150),
        "indices": np.zeros(150, int),
        "indptr": np.arange(151),
        "shape": [150, 3],
    }
    np.savez("f.npz", y=Y, **arrays | other)


# name → (how the file f is made, target, what the sentence must say)
BAD = {
    "a column twice": (lambda: Path("f").write_text("a, a ,kind\n1,2,x\n"), "kind", "'a' is there twice"),
    "a target twice": (lambda: Path("f").write_text("a,kind, kind\n1,2,x\n"), "kind", "'kind' is there"),
    "returns": (lambda: Path("f").write_bytes(b"a,kind\r1,x\r2,y\r"), "kind", "carriage return alone"),
    "labels of too many digits": (
        lambda: FRAME.with_columns(kind=pl.col("a") * 0 + 1e19).write_parquet("f"),
        "kind",
        r"'kind' holds 1e\+19; expected integers of 64 bits",
    ),
    "infinite labels": (
        lambda: FRAME.with_columns(kind=pl.col("a") / 0).write_parquet("f"),
        "kind",
        "'kind' holds inf; expected integers",
    ),
    "y of too many digits": (
        lambda: np.savez("f", X=X, y=np.where(Y, 1e19, 0)),
        None,
        r"whole numbers of 64 bits as labels; got 1e\+19 in row 51",
    ),
    "damaged data": (lambda: compressed("data"), None, "damaged or no npz file: "),
    "encrypted": (lambda: compressed("encrypted"), None, "damaged or no npz file: .*encrypted"),
    "unknown compression": (lambda: compressed("method"), None, "damaged or no npz file: .*compression"),
    "open brackets": (lambda: with_header("(150, (3"), None, "cannot be read: "),
    "more than memory": (lambda: with_header("(150, 1000000000000)"), None, "cannot be read: Unable to"),
    "no row, many columns": (lambda: with_header("(0, 1000000000000)"), None, "has 1,000,000,000,000 col"),
    "many columns": (lambda: csr(shape=[150, 10**13]), None, "has 10,000,000,000,000 columns; at most"),
    "CSR of one axis": (lambda: csr(shape=[150]), None, "no CSR matrix"),
    "CSR without end": (lambda: csr(shape=np.array([150, 2**64 - 1], np.uint64)), None, "no CSR matrix"),
    "a long index": (lambda: Path("f").write_text("0 99999999999:1\n1 1:2\n"), None, "no svmlight file"),
    "a large index": (lambda: Path("f").write_text("0 2000000000:1\n1 1:2\n"), None, "has 2,000,000,000 col"),
    "missing labels": (
        lambda: FRAME.with_columns(kind=pl.when(pl.col("a") > 5).then("kind")).write_parquet("f"),
        "kind",
        "missing label in column 'kind', row 2",
    ),
    "labels with a fraction": (lambda: FRAME.write_parquet("f"), "a", "numbers with a fraction"),
    "labels that are dates": (
        lambda: FRAME.with_columns(kind=pl.lit(date(2020, 1, 1))).write_parquet("f"),
        "kind",
        "holds Date; expected integers or text",
    ),
    "lists": (lambda: FRAME.with_columns(b=pl.concat_list("a", "b")).write_parquet("f"), "kind", "'b' holds"),
    "infinite": (
        lambda: FRAME.with_columns(b=pl.col("b") / 0).write_parquet("f"),
        "kind",
        "column 'b', row 1; got 'inf'",
    ),
    "no X": (lambda: np.savez("f", Z=X, y=Y), None, "no array 'X' but Z, y; expected arrays X and y"),
    "no y": (lambda: np.savez("f", X=X), None, "no array 'y' but X"),
    "lengths": (lambda: np.savez("f", X=X, y=Y[1:]), None, "X has 150 rows, y 149"),
    "objects": (lambda: np.savez("f", X=np.array([{}]), y=Y), None, "cannot be read"),
    "one axis": (lambda: np.savez("f", X=Y, y=Y), None, r"expected X of shape \(rows, columns\)"),
    "text": (lambda: np.savez("f", X=X.astype(str), y=Y), None, "expected numbers in X"),
    "infinite X": (lambda: np.savez("f", X=X * [1, np.inf, 1, 1], y=Y), None, "column x1, row 1;"),
    "y of three axes": (lambda: np.savez("f", X=X, y=np.zeros((150, 2, 2))), None, "one label a row"),
    "no one-hot y": (lambda: np.savez("f", X=X, y=np.eye(3)[Y] + 1), None, "one-hot, .* row 1 is not"),
    "two in a row of y": (
        lambda: np.savez("f", X=X, y=np.where(np.arange(150)[:, None] == 7, 1, np.eye(3)[Y])),
        None,
        "row 8 is not",
    ),
    "infinite x_test": (
        lambda: np.savez("f", x_train=X, y_train=Y, x_test=X * [1, 1, np.inf, 1], y_test=Y),
        None,
        "column x2, row 151;",
    ),
    "shapes of rows": (
        lambda: np.savez("f", x_train=X, y_train=Y, x_test=X[:, :2], y_test=Y),
        None,
        r"of a row of x_test is \(2,\), in the training rows \(4,\)",
    ),
    "y with a fraction": (lambda: np.savez("f", X=X, y=Y / 2), None, "labels; got 0.5 in row 51"),
    "y missing": (lambda: np.savez("f", X=X, y=np.where(Y == 1, np.nan, Y)), None, "missing label in row 51"),
    "no CSR": (lambda: np.savez("f", data=X, indices=Y, indptr=Y, shape=[3, 4], y=Y), None, "no CSR matrix"),
    "NaN in CSR": (
        lambda: np.savez("f", data=[1.0, np.nan], indices=[0, 2], indptr=[0, 1, 2], shape=[2, 3], y=[0, 1]),
        None,
        "column x2, row 2;",
    ),
    "one class": (lambda: np.savez("f", X=X, y=Y * 0), None, "y: one class only: 0 in all 150 rows"),
    "no rows": (lambda: np.savez("f", X=X[:0], y=Y[:0]), None, "no rows"),
    "damaged npz": (lambda: Path("f.npz").write_bytes(b"PK\3\4" + bytes(90)), None, "damaged or no npz"),
    "bad svmlight": (lambda: Path("f").write_text("1 1:2 2:3\n0 2:1 1:4 x\n"), None, "no svmlight file"),
    "--target": (lambda: np.savez("f", X=X, y=Y), "y", "`--target` is for CSV and Parquet files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_a_sentence(case, tmp_path):
    make, target, expected = BAD[case]
    make()
    with pytest.raises(DataError, match=expected) as caught:
        dataset.load("f.npz" if (tmp_path / "f.npz").exists() else "f", target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("drop", "categorical", "options"),
    [
        (["b", "kind"], [], "`--target` and `--drop` both name the column 'kind'"),
        ([], ["kind"], "`--target` and `--categorical` both name the column 'kind'"),
        (["b", "a"], ["a"], "`--drop` and `--categorical` both name the column 'a'"),
        (["e"], [], "no column 'e' for `--drop`; the columns are a, b, c, d, kind"),
        ([], ["e"], "no column 'e' for `--categorical`"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_has_one_option(kind, drop, categorical, options):
    path, target = write(kind)
    with pytest.raises(DataError, match=options):
        dataset.load(path, target, drop, categorical)
    assert len(dataset.load(path, target, ["b", "b"], ["a", "a"]).feature_names) == 3


def test_batches_of_other_columns_are_refused():
    learnt = Preprocessor.fit(X[:, :3], NAMES[:3])
    for kind in ("npz", "svm"):
        with pytest.raises(DataError, match=r"has 4 columns; .* on 3|no svmlight file"):
            list(dataset.batches(write(kind)[0], learnt))
    FRAME.drop("b").write_csv("f.csv")
    with pytest.raises(DataError, match="no column 'b'; the columns are a, c, d, kind"):
        list(dataset.batches("f.csv", learnt))
    coded = Preprocessor.fit(FRAME.select("a", "kind"), ["a", "kind"])
    with pytest.raises(DataError, match="no named columns; the model needs a, kind"):
        list(dataset.batches("iris", coded))
