"""`xent predict`: what `fit` learnt, on new rows of every kind of file; and JSON of every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from xent.command.cli import main
from xent.files import dataset
from xent.regression.saved import model_file

X, Y = load_iris(return_X_y=True)
CLASSES = ["setosa", "versicolor", "virginica"]
ROWS = 200


def people() -> pl.DataFrame:
    """Numbers and categories with gaps, and a class that depends on them."""
    rng = np.random.default_rng(0)
    age, port = rng.normal(40, 12, ROWS), rng.choice(["C", "Q", "S", ""], ROWS)
    survived = np.where((age < 38) ^ (port == "C") ^ (rng.random(ROWS) < 0.1), "yes", "no")
    age[rng.random(ROWS) < 0.2] = np.nan
    frame = pl.DataFrame({"age": age, "port": port, "fare": rng.lognormal(size=ROWS), "survived": survived})
    return frame.with_columns(pl.col("age").fill_nan(None), pl.col("port").replace("", None))


@pytest.fixture
def model(in_an_empty_directory, capsys) -> str:
    people().write_csv("people.csv")
    assert main(["fit", "people.csv", "--target", "survived", "--model", "m.st", "--tol", "1e-9"]) == 0
    capsys.readouterr()
    return "m.st"


def test_probabilities_are_those_of_scikit_learns_pipeline(model):
    frame = people()
    train, _ = train_test_split(np.arange(ROWS), test_size=40, stratify=frame["survived"], random_state=0)
    numbers = make_pipeline(SimpleImputer(add_indicator=True, strategy="median"), StandardScaler())
    columns = make_column_transformer((numbers, [0, 2]), (OneHotEncoder(), [1]))
    rows, y = frame.drop("survived").to_numpy(), frame["survived"].to_numpy()
    # The penalty of a column depends on its scale; ours leaves the indicator as it is.
    columns.fit(rows[train])
    indicator = columns.named_transformers_["pipeline"]["standardscaler"]
    indicator.mean_[2], indicator.scale_[2] = 0, 1
    features = columns.transform(rows).astype(float)
    reference = LogisticRegression(C=1 / (1e-3 * len(train)), tol=1e-10, solver="newton-cholesky")
    reference.fit(features[train], y[train])
    assert main(["predict", model, "people.csv", "--output", "p.parquet"]) == 0
    ours = pl.read_parquet("p.parquet")
    np.testing.assert_allclose(ours["p_yes"], reference.predict_proba(features)[:, 1], atol=1e-4)
    assert ours["label"].to_list() == reference.predict(features).tolist()


@pytest.mark.parametrize("batch", [1 << 20, 50])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_files_and_standard_output_say_the_same(model, kind, batch, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "BATCH", batch)
    frame = people().select("fare", "survived", "port", "age")  # another order, one column more
    frame.write_csv("new.csv") if kind == "csv" else frame.write_parquet("new.parquet")
    for output in ("p.csv", "p.parquet"):
        assert main(["predict", model, f"new.{kind}", "--output", output]) == 0
        assert capsys.readouterr() == (f"{ROWS} rows predicted, in {output}\n", "")
    assert main(["predict", model, f"new.{kind}"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (Path("p.csv").read_text(), "")
    table = pl.read_parquet("p.parquet")
    assert table.columns == ["label", "p_no", "p_yes"]
    assert table.equals(pl.read_csv("p.csv"))
    expected = np.exp(model_file.load(model).predict_log_proba(frame))
    np.testing.assert_array_equal(table.select("p_no", "p_yes").to_numpy(), expected)
    left = {path.name for path in Path().iterdir()}
    assert left == {"m.st", "p.csv", "p.parquet", "people.csv", f"new.{kind}"}


@pytest.mark.parametrize(
    "labels",
    [Y, Y + 5, np.array(CLASSES)[Y], Y == 1, np.where(Y == 2, np.uint64(2**64 - 1), np.uint64(0))],
    ids=["ints", "five", "text", "bool", "uint64"],
)
def test_labels_come_back_as_they_were(labels, capsys):
    np.savez("iris.npz", X=X, y=labels)
    assert main(["fit", "iris.npz", "--model", "m.st"]) == 0
    assert main(["predict", "m.st", "iris.npz", "--output", "p.parquet"]) == 0
    table = pl.read_parquet("p.parquet")
    assert np.mean(table["label"].to_numpy() == labels) > (0.6 if labels.dtype == bool else 0.9)
    names = pl.Series(np.unique(labels)).cast(pl.String)  # booleans as in the column of labels
    assert table.columns[1:] == [f"p_{name}" for name in names]


def test_what_is_new_in_the_rows_is_said_on_stderr(model, capsys):
    pl.DataFrame({"age": [30, 40], "port": ["X", "C"], "fare": [None, 1.0]}).write_csv("new.csv")
    with open("new.csv", "a") as file:
        file.write("\n30,S,2\n")
    assert main(["predict", model, "new.csv"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 4
    assert err.splitlines() == [
        "xent: note: column 'fare': no value in 1 row: the training rows all had one; their median stands in",
        "xent: note: column 'port': 'X' in 1 row: never in the training rows, so its features are all 0",
        "xent: note: 1 blank line was passed over",
    ]


def test_a_value_out_of_all_bounds_is_one_line(capsys):
    pl.DataFrame({"a": np.arange(40) * 1e-9, "kind": list("xy") * 20}).write_csv("small.csv")
    assert main(["fit", "small.csv", "--target", "kind", "--model", "m.st"]) == 0
    pl.DataFrame({"a": [0.0, 1e308]}).write_csv("new.csv")
    capsys.readouterr()
    assert main(["predict", "m.st", "new.csv"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "column 'a' are too far from those of the training rows: 1e+308" in err


def test_eval_scores_what_predict_wrote(model, capsys):
    assert main(["predict", model, "people.csv", "--output", "p.parquet"]) == 0
    np.save("y.npy", (people()["survived"] == "yes").to_numpy().astype(int))
    capsys.readouterr()
    assert main(["eval", "p.parquet", "y.npy", "--probabilities", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = (pl.read_parquet("p.parquet")["label"] == people()["survived"]).mean()
    assert (found["num_classes"], found["rows"]) == (2, ROWS)
    assert found["accuracy"] == pytest.approx(expected)


def test_no_rows_give_a_header(model, capsys):
    people().head(0).write_csv("new.csv")
    assert main(["predict", model, "new.csv"]) == 0
    assert capsys.readouterr().out == "label,p_no,p_yes\n"


# name → (how new.csv differs, arguments after the model, what the one line must say)
BAD = {
    "no column": (lambda f: f.drop("fare"), "new.csv", ["no column 'fare'", "age, port"]),
    "text": (
        lambda f: f.with_columns(age=pl.lit("old")),
        "new.csv",
        ["expected a number in column 'age', line 2; got 'old'"],
    ),
    "late text": (
        lambda f: f.with_columns(age=pl.Series([*["1"] * 150, "old", *["1"] * 49])),
        "new.csv --output p.parquet",
        ["column 'age', line 152; got 'old'"],
    ),
    "late text, CSV": (
        lambda f: f.with_columns(age=pl.Series([*["1"] * 150, "old", *["1"] * 49])),
        "new.csv --output p.csv",
        ["column 'age', line 152; got 'old'"],
    ),
    "no file": (lambda f: f, "no.csv", ["no.csv: no such file"]),
    "another kind": (lambda f: f, "iris", ["no named columns; the model needs age, port, fare"]),
    "output of another kind": (lambda f: f, "new.csv --output p.xls", ["must end in .csv or .parquet"]),
    "output nowhere": (lambda f: f, "new.csv --output no/p.csv", ["no/p.csv", "cannot be written"]),
    "output over the data": (lambda f: f, "new.csv --output new.csv", ["is read from", "overwritten"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_writes_nothing(model, case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "BATCH", 200)
    change, arguments, expected = BAD[case]
    change(people()).write_csv("new.csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["predict", model, *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for part in expected:
        assert part in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_that_is_none_is_said(capsys):
    people().write_csv("people.csv")
    assert main(["predict", "people.csv", "people.csv"]) == 2
    assert "people.csv: is not a model file" in capsys.readouterr().err


def test_json_is_one_object(model, capsys):
    def printed(*words: str) -> dict:
        assert main([*words, "--json"]) == 0
        out, err = capsys.readouterr()
        assert (err, out.count("\n")) == ("", 1)
        return json.loads(out)

    found = printed("predict", model, "people.csv")
    assert (found["rows"], found["classes"], found["output"], found["notes"]) == (
        ROWS,
        ["no", "yes"],
        None,
        [],
    )
    assert len(found["labels"]) == len(found["probabilities"]) == ROWS
    found = printed("predict", model, "people.csv", "--output", "p.csv")
    assert (found["output"], "labels" in found) == ("p.csv", False)
    found = printed("fit", "people.csv", "--target", "survived", "--model", "m.st")
    assert (found["model"], found["report"], found["classes"]) == ("m.st", None, ["no", "yes"])
    assert found["held_out"]["rows"] == 40
    found = printed("explain", "2 3 4", "--label", "1")
    assert found["loss_nats"] == pytest.approx(1.407606, abs=1e-6)
    assert found["gradient"] == pytest.approx([0.090031, -0.755272, 0.665241], abs=1e-6)


def test_fit_says_what_it_did_with_the_columns(model, capsys):
    arguments = ["people.csv", "--target", "survived", "--categorical", "fare", "--drop", "age"]
    people().with_columns(fare=pl.col("fare").cast(int), one=1).write_csv("people.csv")
    assert main(["fit", *arguments]) == 0
    out = capsys.readouterr().out
    for part in (
        "3 features, 2 classes",
        "category  fare:",
        "port: 4 levels, one for missing: C, Q, S",
        "constant  one: no effect",
    ):
        assert part in out
    people().with_columns(port=pl.col("port").replace("Q", "Cobh, Queenstown")).write_csv("people.csv")
    assert main(["fit", "people.csv", "--target", "survived"]) == 0
    out = capsys.readouterr().out
    assert "missing   age (" in out
    assert "one for missing: C, 'Cobh, Queenstown', S" in out
