"""A value means the same in every spelling and container, in training and in prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from xent.command.cli import main
from xent.files import cells, dataset
from xent.files.dataset import DataError
from xent.files.preprocess import Preprocessor
from xent.regression.saved import model_file

RNG = np.random.default_rng(3)
N = 120
FLAG = RNG.random(N) > 0.5
CODE = RNG.integers(1, 4, N)
A = RNG.normal(size=N).round(3)
KIND = np.where(A + 2 * FLAG + CODE > 3, "p", "n")


def write(name: str, values: pl.Series) -> None:
    """A table whose column v is ``values``."""
    frame = pl.DataFrame({"v": values, "a": A, "kind": KIND})
    frame.write_csv(name) if name.endswith("csv") else frame.write_parquet(name)


def spelt(true: str, false: str) -> pl.Series:
    return pl.Series([true if each else false for each in FLAG])


BOOLEANS = {
    "f.parquet": pl.Series(FLAG),
    "text.parquet": spelt("true", "false"),
    "category.parquet": spelt("True", "False").cast(pl.Categorical),
    "numbers.parquet": pl.Series(FLAG).cast(pl.Int8),
    "floats.parquet": pl.Series(FLAG).cast(pl.Float32),
    "lower.csv": spelt("true", "false"),
    "python.csv": spelt("True", "False"),
    "excel.csv": spelt("TRUE", "FALSE"),
    "blanks.csv": spelt(" True", "False "),
    "numbers.csv": spelt("1", "0"),
    "floats.csv": spelt("1.0", "0.0"),
}
NUMBERS = {
    "f.parquet": pl.Series(CODE),
    "narrow.parquet": pl.Series(CODE).cast(pl.UInt8),
    "floats.parquet": pl.Series(CODE).cast(pl.Float32),
    "decimal.parquet": pl.Series(CODE).cast(pl.Decimal(10, 2)),
    "text.parquet": pl.Series([f"{k}.0" for k in CODE]),
    "f.csv": pl.Series(CODE),
    "floats.csv": pl.Series([f"{k}.00" for k in CODE]),
    "plus.csv": pl.Series([f"+{k}" for k in CODE]),
    "exponent.csv": pl.Series([f"{k}.0e+00" for k in CODE]),
}


@pytest.mark.parametrize("options", [[], ["--categorical", "v"]], ids=["found", "categories"])
@pytest.mark.parametrize("files", [BOOLEANS, NUMBERS], ids=["booleans", "numbers"])
def test_predictions_do_not_depend_on_spelling_or_container(files, options, capsys):
    for name, values in files.items():
        write(name, values)
    found = set()
    for trained in ("f.parquet", "numbers.csv" if files is BOOLEANS else "floats.csv"):
        assert main(["fit", trained, "--target", "kind", "--model", "m.st", *options]) == 0
        for name in files:
            capsys.readouterr()
            assert main(["predict", "m.st", name]) == 0
            out, err = capsys.readouterr()
            assert err == ""
            found.add(out)
    assert len(found) == 1


@pytest.mark.parametrize("files", [BOOLEANS, NUMBERS], ids=["booleans", "numbers"])
def test_classes_do_not_depend_on_spelling_or_container(files):
    for name, values in files.items():
        write(name, values)
        found = dataset.load(name, "v").labels
        expected = FLAG if files is BOOLEANS else CODE
        assert found.tolist() == expected.tolist()
        if found.dtype == bool:
            assert "numbers" not in name
    np.savez("f.npz", X=A[:, None], y=np.array(["True", "FALSE"])[FLAG.astype(int)])
    assert dataset.load("f.npz").labels.tolist() == (~FLAG).tolist()
    np.savez("f.npz", X=A[:, None], y=np.array(["1", "2.0"])[FLAG.astype(int)])
    assert dataset.load("f.npz").labels.tolist() == (FLAG + 1).tolist()


def test_booleans_and_the_numbers_1_and_0_are_one_pair_of_classes():
    write("f.csv", pl.Series([["True", "1", "false", "0.0"][k % 4] for k in range(len(FLAG))]))
    assert dataset.load("f.csv", "v").labels.tolist() == [k % 4 < 2 for k in range(len(FLAG))]
    write("f.csv", pl.Series([["true", "1", "false", "2"][k % 4] for k in range(len(FLAG))]))
    assert set(dataset.load("f.csv", "v").labels) == {"true", "1", "false", "2"}


def test_a_missing_value_makes_floats_of_codes_and_changes_nothing(capsys):
    write("f.csv", pl.Series(CODE))
    write("g.csv", pl.Series(["" if n == 3 else f"{k}.0" for n, k in enumerate(CODE)]))
    assert main(["fit", "f.csv", "--target", "kind", "--categorical", "v", "--model", "m.st"]) == 0
    capsys.readouterr()
    printed = []
    for name in ("f.csv", "g.csv"):
        assert main(["predict", "m.st", name]) == 0
        printed.append(capsys.readouterr().out.splitlines())
    assert [n for n, (a, b) in enumerate(zip(*printed, strict=True)) if a != b] == [4]


SPELLINGS = {
    "01": "01",
    "007.5": "007.5",
    "1e5": "1e5",
    "1E+05": "100000",
    "1e-07": "0.0000001",
    "1e+300": "1e+300",
    "-0.0": "0",
    "+1.50": "1.5",
    ".5": "0.5",
    "5.": "5",
    "12345678901234567890.0": "12345678901234567890",
    "e+05": "e+05",
    ".": ".",
    "": "",
    "1.0.0": "1.0.0",
    "True": "true",
    "True story": "True story",
}


@pytest.mark.parametrize(("text", "expected"), SPELLINGS.items())
def test_the_one_spelling_of_a_value(text, expected):
    assert cells.spelling(text) == expected
    column = cells.texts(pl.Series([text, None]), cells.Reading(None, frozenset()))
    assert column.to_list() == [expected, None]
    assert cells.spelling(expected) == expected


def test_large_and_small_floats_are_spelt_alike_in_both_containers():
    values = [1e16, 1e22, 1e-7, 2.5e-9, 0.1, 123456.0, 1e300]
    reading = cells.Reading(None)
    typed = cells.texts(pl.Series(values), reading).to_list()
    assert typed == cells.texts(pl.Series([repr(v) for v in values]), reading).to_list()
    assert typed[:2] == ["1" + "0" * 16, "1" + "0" * 22]


def test_a_flag_with_gaps_and_other_text():
    frame = pl.DataFrame({"v": ["True", "False", None, "True"] * 5, "kind": [*"xy"] * 10})
    for name in ("f.csv", "f.parquet"):
        frame.write_csv(name) if name == "f.csv" else frame.write_parquet(name)
        np.testing.assert_array_equal(dataset.load(name, "kind").features[:4, 0], [1, 0, np.nan, 1])
    with_text = frame.with_columns(v=pl.Series(["True", "FALSE", "unknown", "true"] * 5))
    with_text.write_csv("f.csv")
    assert dataset.load("f.csv", "kind").features["v"][:4].to_list() == ["true", "false", "unknown", "true"]
    frame.with_columns(v=pl.Series(["True", "2.5", "3", "1"] * 5)).write_csv("f.csv")
    with pytest.raises(DataError, match="expected a number in column 'v', line 2; got 'True'"):
        dataset.load("f.csv", "kind")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_boolean_is_no_value_of_a_quantity(kind, capsys):
    write("f.csv", pl.Series(A * 10))
    assert main(["fit", "f.csv", "--target", "kind", "--model", "m.st"]) == 0
    write(f"g.{kind}", pl.Series(FLAG))
    assert main(["predict", "m.st", f"g.{kind}"]) == 2
    assert "expected a number in column 'v'" in capsys.readouterr().err


@pytest.mark.parametrize("output", [[], ["--output", "p.csv"]])
def test_no_row_of_a_known_level_is_an_error(output, monkeypatch, capsys):
    write("f.csv", pl.Series([*"rgb"] * 40))
    assert main(["fit", "f.csv", "--target", "kind", "--model", "m.st"]) == 0
    monkeypatch.setattr(dataset, "BATCH", 30)
    capsys.readouterr()
    write("g.csv", pl.Series([*"RGB"] * 40))
    assert main(["predict", "m.st", "g.csv", *output]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), Path("p.csv").exists()) == ("", 1, False)
    assert "column 'v'" in err
    assert "never in the training rows; these had b, g, r" in err
    write("g.csv", pl.Series([*"RGB"] * 39 + [*"RGb"]))
    assert main(["predict", "m.st", "g.csv", *output]) == 0
    out, err = capsys.readouterr()
    assert (Path("p.csv").read_text() if output else out).count("\n") == N + 1
    assert "never in the training rows" in err


WORDS = ["NA", "n/a", "#N/A", "<NA>", "NaN", "NULL", "none", "?", "NaT", ""]


def test_words_for_missing_in_csv_but_not_in_parquet():
    frame = pl.DataFrame({"v": WORDS * 3 + ["1"] * 30, "kind": [*"xy"] * 30})
    frame.write_csv("f.csv")
    assert np.isnan(dataset.load("f.csv", "kind").features[:30]).all()
    frame.filter(pl.col("v") != "").write_parquet("f.parquet")
    assert set(dataset.load("f.parquet", "v").labels) == {*WORDS, "1"} - {""}


def test_text_that_says_none_is_text_in_parquet():
    pl.DataFrame({"v": ["None", "NA", "", None] * 5, "kind": ["None", "x"] * 10}).write_parquet("f.parquet")
    found = dataset.load("f.parquet", "kind")
    assert found.features["v"][:4].to_list() == ["None", "NA", None, None]
    assert found.labels[:2].tolist() == ["None", "x"]


def test_a_label_that_reads_as_missing_is_shown_and_can_be_a_class(capsys):
    Path("f.csv").write_text(
        "v,kind\n" + "".join(f"{k % 7},{['None', 'Insomnia'][k % 2]}\n" for k in range(40))
    )
    assert main(["fit", "f.csv", "--target", "kind"]) == 2
    err = capsys.readouterr().err
    for part in ("column 'kind', line 2: got 'None', which is read as missing", "--no-missing"):
        assert part in err
    assert main(["fit", "f.csv", "--target", "kind", "--no-missing", "--model", "m.st"]) == 0
    assert model_file.load("m.st").estimator.classes_.tolist() == ["Insomnia", "None"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_words_for_missing_are_given_and_remembered(kind, capsys):
    values = pl.Series([-999.0 if n % 5 == 0 else a for n, a in enumerate(A)])
    values = values.cast(pl.String).str.replace("-999.0", "-999") if kind == "csv" else values
    write(f"f.{kind}", values)
    words = ["fit", f"f.{kind}", "--target", "kind", "--missing", "-999.00", "--model", "m.st"]
    assert main(words) == 0
    assert model_file.load("m.st").preprocessor.indicators == pytest.approx({"v": 19}, abs=4)
    learnt = model_file.load("m.st")
    assert main(["predict", "m.st", f"f.{kind}", "--output", "p.csv"]) == 0
    missing = pl.DataFrame(
        {"v": [None if n % 5 == 0 else a for n, a in enumerate(A)], "a": A},
        schema={"v": pl.Float64, "a": pl.Float64},
    )
    expected = np.exp(learnt.predict_log_proba(missing))[:, 1]
    np.testing.assert_allclose(pl.read_csv("p.csv")["p_p"].to_numpy(), expected, rtol=1e-12)


def test_rows_without_a_label_are_left_out_and_counted(capsys):
    kinds = ["x", "y", "z", ""]
    Path("f.csv").write_text("v,kind\n" + "".join(f"{k % 7},{kinds[k % 4]}\n" for k in range(40)))
    pl.DataFrame({"v": np.arange(40) % 7, "kind": [*"xyz", None] * 10}).write_parquet("f.parquet")
    y = np.where(np.arange(40) % 4 == 3, np.nan, np.arange(40) % 4)
    np.savez("f.npz", X=(np.arange(40.0) % 7)[:, None], y=y)
    for name in ("f.csv", "f.parquet", "f.npz"):
        target = [] if name == "f.npz" else ["--target", "kind"]
        capsys.readouterr()
        assert main(["fit", name, *target]) == 2
        err = capsys.readouterr().err
        assert "missing label in " in err
        assert "--drop-unlabelled" in err
        assert main(["fit", name, *target, "--drop-unlabelled", "--json", "--report", "r.html"]) == 0
        found = json.loads(capsys.readouterr().out)
        parts = found["rows"]
        assert (parts["held_out"] + parts["training"] + parts["unlabelled"], parts["unlabelled"]) == (40, 10)
        assert "10 rows without a label left out" in found["surprises"]
        assert "10 rows without a label left out" in Path("r.html").read_text()
        assert main(["fit", name, *target, "--drop-unlabelled"]) == 0
        assert "10 rows without a label left out" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "svm", "parquet", "npz"])
def test_rows_have_one_number_in_errors_and_json(kind, capsys):
    """The line of a text file, else counted from 1; the costliest row is the one whose label is wrong."""
    x = np.array([-3.0, 3.0] * 20)
    y = (x > 0).astype(int)
    y[29] = 0
    expected = 30
    if kind == "csv":  # a header, a name over two lines, blank lines
        rows = [f'"{k}\n",{a},{b}\n' for k, (a, b) in enumerate(zip(x, y, strict=True))]
        Path("f.csv").write_text("\nid,a,y\n\n" + "".join(rows))
        expected = 4 + 2 * 29
    elif kind == "svm":
        rows = [f"{b} 1:{a}\n" for a, b in zip(x, y, strict=True)]
        Path("f.svm").write_text("# comment\n" + "".join(rows[:5]) + "\n  # another\n" + "".join(rows[5:]))
        expected = 33
    elif kind == "parquet":
        pl.DataFrame({"a": x, "y": y}).write_parquet("f.parquet")
    else:
        np.savez("f.npz", X=x[:, None], y=y)
    options = [] if kind in ("npz", "svm") else ["--target", "y"]
    options += ["--drop", "id"] if kind == "csv" else []
    costliest = set()
    for seed in range(6):
        capsys.readouterr()
        assert main(["fit", f"f.{kind}", *options, "--json", "--seed", str(seed), "--report", "r.html"]) == 0
        first = json.loads(capsys.readouterr().out)["costliest"][0]
        if first["loss"] > 1:
            costliest.add(first["row"])
            word = "line" if kind in ("csv", "svm") else "row"
            assert f"<small>{word} {first['row']}</small>" in Path("r.html").read_text()
    assert costliest == {expected}


def test_a_preprocessor_knows_its_booleans_again():
    learnt = Preprocessor.fit(np.array([[1.0, 0.5], [0.0, 1.0], [np.nan, 0.0]]), ["flag", "share"])
    assert learnt.booleans == ("flag",)
    assert Preprocessor.from_json(learnt.to_json(), learnt.arrays()).booleans == ("flag",)
