"""Many files as one data set: which they are, that their columns agree, and errors that name file and row."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import dump_svmlight_file

from xent.files import dataset
from xent.files.errors import DataError
from xent.files.parts import sources

TABLE = pl.DataFrame({"a": [0.5, 1.5, 2.5, 3.5], "b": [1, 2, 3, 4], "y": ["no", "no", "yes", "yes"]})


def write(table, path):
    (table.write_csv if path.suffix == ".csv" else table.write_parquet)(path)
    return path


def pieces(files, cells=6, **options):
    return list(sources.open_files(files, **{"target": "y"} | options, cells=cells).pieces(cells))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_are_one_data_set_in_the_order_of_their_names(tmp_path, suffix):
    for name in ("_SUCCESS", ".hidden"):
        (tmp_path / name).write_text("no data")
    (tmp_path / "folder").mkdir()
    for name, rows in (("b", slice(3, 4)), ("a", slice(0, 3)), ("c", slice(0, 0))):
        write(TABLE[rows], tmp_path / f"{name}{suffix}")
    for files in (
        tmp_path,
        f"{tmp_path}/*{suffix}",
        [tmp_path / f"{n}{suffix}" for n in "abc"],
    ):
        found = pieces(files)
        features = pl.concat(piece.features for piece in found)
        np.testing.assert_array_equal(features.to_numpy(), TABLE.select("a", "b").to_numpy())
        assert np.concatenate([piece.labels for piece in found]).tolist() == TABLE["y"].to_list()
        assert {piece.path.name for piece in found} >= {f"a{suffix}", f"b{suffix}"}
        places = [piece.place(row) for piece in found for row in range(len(piece.labels))]
        numbers = (
            ["line 2", "line 3", "line 4", "line 2"]
            if suffix == ".csv"
            else ["row 1", "row 2", "row 3", "row 1"]
        )
        assert places == numbers


def test_svmlight_files_agree_on_the_first_column_and_the_last(tmp_path):
    x = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    for name, rows in (("a", slice(0, 2)), ("b", slice(2, 3))):
        dump_svmlight_file(x[rows], [0, 1, 2][rows], str(tmp_path / name), zero_based=False)
    source = sources.open_files(tmp_path)
    assert [piece.features.shape[1] for piece in source.pieces(1)] == [3, 4]
    assert source.feature_names == ["x1", "x2", "x3"]
    found = np.concatenate([piece.features.toarray() for piece in source.pieces(1)])
    np.testing.assert_array_equal(found, x)


def test_unlabelled_rows_keep_the_numbers_of_the_others(tmp_path):
    write(TABLE.with_columns(y=pl.Series([None, "no", "yes", None])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: missing label in column 'y', row 1"):
        pieces(tmp_path)
    found = pieces(tmp_path, drop_unlabelled=True)
    assert [piece.place(row) for piece in found for row in range(len(piece.labels))] == ["row 2", "row 3"]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (TABLE.drop("b"), "it has no column 'b'"),
        (TABLE.rename({"b": "c"}), "it has no column 'b' and has column 'c' more"),
        (TABLE.with_columns(d=1, e=2), r"it has 2 columns d, e more"),
        (TABLE.cast({"b": pl.Float64}), "it has Float64 in column 'b' where it has Int64"),
    ],
)
def test_a_file_of_other_columns_is_named_with_the_difference(tmp_path, other, difference):
    for number in range(3):
        write(TABLE, tmp_path / f"{number}.parquet")
    write(other, tmp_path / "3.parquet")
    with pytest.raises(DataError, match=rf"3\.parquet: its columns .*0\.parquet: {difference}"):
        sources.open_files(tmp_path, "y")


def test_columns_may_have_another_order_and_dropped_ones_differ(tmp_path):
    write(TABLE, tmp_path / "0.parquet")
    write(TABLE.select("y", "b", "a").with_columns(b=pl.lit("text")), tmp_path / "1.parquet")
    assert [piece.features.columns for piece in pieces(tmp_path, drop=["b"])] == [["a"]] * 4


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="a directory without files"):
        sources.open_files(tmp_path, "y")
    with pytest.raises(DataError, match=r"\*\.parquet: no file has such a name"):
        sources.open_files(f"{tmp_path}/*.parquet", "y")
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        sources.open_files(tmp_path / "none.parquet", "y")
    with pytest.raises(DataError, match="at least one file"):
        sources.open_files([], "y")
    for number in range(3):
        write(TABLE, tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match="no column 'z' for `target`; the columns are a, b, y"):
        sources.open_files(tmp_path, "z")
    with pytest.raises(DataError, match="`target` and `drop` both name the column 'y'"):
        sources.open_files(tmp_path, "y", drop=["y"])
    with pytest.raises(DataError, match="`target` must name the label column"):
        sources.open_files(tmp_path)
    write(TABLE, tmp_path / "4.csv")
    with pytest.raises(DataError, match=r"4\.csv: is csv, the first file, .*0\.parquet, parquet"):
        sources.open_files(tmp_path, "y")
    (tmp_path / "4.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"4\.csv: is empty"):
        sources.open_files(tmp_path, "y")
    (tmp_path / "4.csv").unlink()
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"1\.parquet: is damaged"):
        sources.open_files(tmp_path, "y")
    write(TABLE[:0], tmp_path / "1.parquet")
    with pytest.raises(DataError, match="no rows"):
        sources.open_files(tmp_path / "1.parquet", "y")


def test_kinds_of_columns_are_those_of_the_first_rows(tmp_path):
    table = pl.DataFrame({"a": ["1", "2", "3", "x"], "c": ["r", "g", "b", "1"], "y": [0, 1, 0, 1]})
    write(table, tmp_path / "a.parquet")
    source = sources.open_files(tmp_path, "y", cells=6)
    assert source.categories == ("c",)
    with pytest.raises(DataError, match=r"a\.parquet: expected a number in column 'a', row 4; got 'x'"):
        list(source.pieces(6))
    assert sources.open_files(tmp_path, "y", categorical=["a"], cells=6).categories == ("a", "c")


def test_an_infinite_number_in_a_later_slice_has_the_number_of_its_row(tmp_path):
    write(TABLE.with_columns(a=pl.Series([0.5, 1.0, np.inf, 2.0])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="expected a finite number in column 'a', row 3"):
        pieces(tmp_path, cells=3)


def test_labels_that_are_whole_numbers_are_int64(tmp_path):
    numbers = [5, -3, 5, 7]
    kinds = (pl.Int64, pl.Int8, pl.String, pl.Float64)
    for kind in kinds:
        table = TABLE.with_columns(y=pl.Series(numbers).cast(kind))
        loaded = dataset.load(str(write(table, tmp_path / "a.parquet")), "y")
        assert loaded.labels.dtype == np.int64
        assert loaded.labels.tolist() == numbers


def svmlight(table, path):
    dump_svmlight_file(table.select("a", "b").to_numpy(), np.arange(table.height) % 2, str(path))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".svm"])
@pytest.mark.parametrize(
    "change", [lambda content: content * 2, lambda content: content[:-9], lambda content: b"", None]
)
def test_a_file_that_changes_between_passes_is_an_error(tmp_path, suffix, change):
    paths = [tmp_path / f"{number}{suffix}" for number in range(3)]
    for path in paths:
        (svmlight if suffix == ".svm" else write)(TABLE, path)
    source = sources.open_files(tmp_path, None if suffix == ".svm" else "y")
    rows = [len(list(source.pieces(1))) for _ in range(2)]
    assert rows[0] == rows[1] > 3
    if change is None:  # other values in as many bytes
        os.utime(paths[1], ns=(0, 0))
    else:
        paths[1].write_bytes(change(paths[1].read_bytes()))
    with pytest.raises(DataError, match=rf"1\{suffix}: was changed while it was read"):
        list(source.pieces(1))


# name → (column b of two files, its type, or what the error must say)
COLUMNS = {
    "numbers after no values": (["", "", "1", "2"], pl.Float64),
    "text after no values": (["", "", "u", "w"], pl.String),
    "no values": ([""] * 4, pl.Float64),
    "text after numbers": (["1", "2", "u", "3"], "1.csv: expected a number in .*'u'; .* --categorical b"),
    "numbers after text": (["u", "v", "3", "4"], "0.csv: column 'b' is text .* but 2 of all 4 .* --categ"),
    "some numbers after text": (["u", "v", "3", "w"], pl.String),
}


@pytest.mark.parametrize("case", COLUMNS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_column_is_numbers_or_text_as_in_one_file(tmp_path, case, in_memory):
    values, expected = COLUMNS[case]
    table = TABLE.with_columns(b=pl.Series(values))
    write(table[:2], tmp_path / "0.csv")
    write(table[2:], tmp_path / "1.csv")
    write(table, tmp_path / "whole.csv")

    def kind():
        if in_memory:
            features = dataset.load(str(tmp_path / "whole.csv"), "y").features
            return features["b"].dtype if isinstance(features, pl.DataFrame) else pl.Float64
        return pieces([tmp_path / "0.csv", tmp_path / "1.csv"], cells=60)[0].features["b"].dtype

    if isinstance(expected, str):
        with pytest.raises(DataError, match="--categorical b" if in_memory else expected):
            kind()
    else:
        assert kind() == expected


def test_many_cells_decide_a_column_without_values(tmp_path):
    """The search for a value in later files ends after as many cells as a piece has."""
    for number in range(3):
        write(TABLE.with_columns(b=pl.lit("u" if number == 2 else "")), tmp_path / f"{number}.csv")
    assert sources.open_files(tmp_path, "y", cells=40).categories == ("b",)
    assert sources.open_files(tmp_path, "y", cells=24).categories == ()


def test_no_name_is_not_the_current_folder(tmp_path, monkeypatch):
    write(TABLE, tmp_path / "0.csv")
    monkeypatch.chdir(tmp_path)
    assert not sources.is_several("")
    assert sources.is_several(".")
    with pytest.raises(DataError):
        sources.open_files("", "y")
