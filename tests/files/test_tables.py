"""What a file says of itself: separators, headers, decimals, indexes; and all of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from xent.command.cli import main
from xent.files import dataset
from xent.files.dataset import DataError
from xent.files.formats import csv_table, parquet, row_numbers
from xent.files.formats.csv_table import Dialect

ROWS = [(k % 7, k % 5, "uv"[k % 2]) for k in range(40)]


def body(mark: str) -> str:
    return "".join(f"{a}{mark}{b}{mark}{c}\n" for a, b, c in ROWS)


# name → (content, names of the columns)
LAYOUTS = {
    "commas within quotes": ('"Length, cm";"Width, cm";y\n' + body(";"), ["Length, cm", "Width, cm", "y"]),
    "commas, tabs": ("height, m\tweight, kg\ty\n" + body("\t"), ["height, m", "weight, kg", "y"]),
    "blank lines first": ("\n \n\na;b;y\n" + body(";"), ["a", "b", "y"]),
    "empty cells first": (",,\n,,\na,b,y\n" + body(","), ["a", "b", "y"]),
    "a line feed in the header": ('"a\nx";b;y\n' + body(";"), ["a\nx", "b", "y"]),
    "a bar": ("a|b|y\n" + body("|"), ["a", "b", "y"]),
    "sep=": ("sep=#\na#b#y\n" + body("#"), ["a", "b", "y"]),
    "a mark of order": ('\ufeff"sep=;"\n\n"a";b;y\n' + body(";"), ["a", "b", "y"]),
    "a ragged row": ("a;b;y\n1;2\n" + body(";"), ["a", "b", "y"]),
    "text with the other mark": (
        "a,b,y\n" + body(",").replace("0,u", '0,"u;;;"'),
        ["a", "b", "y"],
    ),
    "carriage returns": (("a;b, c;y\n" + body(";")).replace("\n", "\r\n"), ["a", "b, c", "y"]),
    "one column": ("y\nu\nv\n", ["y"]),
    "another letter between lines": ("a,b\x85\x0c,y\n" + body(","), ["a", "b", "y"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_layout_is_found_out(case):
    content, names = LAYOUTS[case]
    Path("f.csv").write_bytes(content.encode())
    layout = csv_table.detect_layout(Path("f.csv"), Dialect())
    assert layout.names == names
    table, numbers = csv_table.read(Path("f.csv"), layout)
    assert table.columns == names
    assert numbers.num_rows == table.height
    lines = content.encode().split(b"\n")
    for row in (0, table.height - 1):
        found = lines[numbers.lookup(row) - 1].decode().strip().replace('"', "").split(layout.separator)
        assert found == [cell or "" for cell in table.row(row) if cell is not None]
    pieces = list(csv_table.batches(Path("f.csv"), layout, 10))
    assert pl.concat([piece for piece, _ in pieces]).equals(table)


def test_a_separator_is_said_and_remembered(capsys):
    Path("f.csv").write_text("a#b#y\n" + body("#"))
    assert main(["fit", "f.csv", "--target", "y", "--separator", "#", "--model", "m.st"]) == 0
    assert main(["predict", "m.st", "f.csv", "--output", "p.csv"]) == 0
    Path("g.csv").write_text("a,b,y\n" + body(","))
    capsys.readouterr()
    assert main(["predict", "m.st", "g.csv", "--output", "q.csv"]) == 2
    assert "no column 'a'; the columns are a,b,y" in capsys.readouterr().err
    assert main(["predict", "m.st", "g.csv", "--output", "q.csv", "--separator", ","]) == 0
    assert Path("p.csv").read_text() == Path("q.csv").read_text()
    Path("t.csv").write_text("a\tb\ty\n" + body("\t"))
    assert main(["predict", "m.st", "t.csv", "--output", "q.csv", "--separator", r"\t"]) == 0
    assert Path("p.csv").read_text() == Path("q.csv").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--separator", "::"], "`--separator` must be one ASCII character"),
        (["--separator", '"'], "`--separator` must be one ASCII character"),
        (["--separator", "§"], "`--separator` must be one ASCII character"),
        (["--decimal", ";"], "`--decimal` must be a point or a comma; got ';'"),
        (["--decimal", ",", "--separator", ","], "must differ"),
    ],
)
def test_marks_that_cannot_be_are_refused(options, expected, capsys):
    Path("f.csv").write_text("a,b,y\n" + body(","))
    assert main(["fit", "f.csv", "--target", "y", "--model", "m.st"]) == 0
    for words in (["fit", "f.csv", "--target", "y"], ["predict", "m.st", "f.csv"]):
        capsys.readouterr()
        assert main([*words, *options]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--separator", "--decimal", "--missing", "--no-missing"])
def test_options_of_csv_are_refused_elsewhere(option, capsys):
    assert main(["fit", "iris", "--model", "m.st"]) == 0
    words = [option] if option == "--no-missing" else [option, ","]
    for call in (["fit", "iris"], ["predict", "m.st", "iris"]):
        capsys.readouterr()
        assert main([*call, *words]) == 2
        assert f"`{option}` is for CSV" in capsys.readouterr().err


# name → (values of a column between semicolons, option, the numbers or what the error says)
DECIMALS = {
    "commas": (["0,5", "1,25", "3"], None, [0.5, 1.25, 3]),
    "points between thousands": (["1.002,5", "0,5", "-3"], None, [1002.5, 0.5, -3]),
    "an exponent": (["1,5e-3", "2,5", "1"], None, [0.0015, 2.5, 1]),
    "points": (["0.5", "1.25", "3"], None, [0.5, 1.25, 3]),
    "three digits": (["1,234", "5", "3"], None, "got '1,234'; this file is read with a decimal point"),
    "three digits, said": (["1,234", "5", "3"], ",", [1.234, 5, 3]),
    "three digits, said to be thousands": (["1,234", "5", "3"], ".", [1234, 5, 3]),
    "thousands alone": (["1.234", "0,5", "3"], None, "got '1.234'; this file is read with a decimal comma"),
    "thousands alone, said": (["1.234", "0,5", "3"], ",", [1234, 0.5, 3]),
    "several thousands": (["1.234.567", "0,5", "3"], None, [1234567, 0.5, 3]),
    "a point in a file of commas": (["1.5", "0,5", "3"], ",", "got '1.5'"),
    "both": (["1.5", "0,5", "3"], None, "got '0,5'"),
    "wrong groups": (["1.23.4", "0,5", "3"], ",", "got '1.23.4'"),
}


@pytest.mark.parametrize("case", DECIMALS)
def test_decimal_commas_are_read_where_they_cannot_be_anything_else(case, capsys):
    values, option, expected = DECIMALS[case]
    Path("f.csv").write_text("a;y\n" + "".join(f"{values[k % 3]};{'uv'[k % 2]}\n" for k in range(30)))
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected) as caught:
            dataset.load("f.csv", "y", dialect=Dialect(decimal=option))
        assert "--decimal" in str(caught.value) or case == "wrong groups"
        return
    found = dataset.load("f.csv", "y", dialect=Dialect(decimal=option))
    np.testing.assert_array_equal(found.features[:3, 0], expected)
    words = [] if option is None else ["--decimal", option]
    assert main(["fit", "f.csv", "--target", "y", "--model", "m.st", *words]) == 0
    pl.DataFrame({"a": [float(v) for v in expected]}).write_parquet("g.parquet")
    outputs = []
    for name in ("f.csv", "g.parquet"):
        assert main(["predict", "m.st", name, "--output", "p.csv"]) == 0
        outputs.append(Path("p.csv").read_text().splitlines()[:4])
    assert outputs[0] == outputs[1]


INDEX = {
    "counts": [str(k) for k in range(40)],
    "filtered": [str(3 * k + k % 2) for k in range(40)],
    "shuffled": [str((7 * k) % 40) for k in range(40)],
    "one below the other": [str(k % 20) for k in range(40)],
    "names": [f"car {k}" for k in range(40)],
}


@pytest.mark.parametrize("case", INDEX)
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_nameless_first_column_that_is_an_index_is_left_out(case, name, capsys):
    rows = "".join(f"{i},{b}" for i, b in zip(INDEX[case], body(",").splitlines(keepends=True), strict=True))
    Path("f.csv").write_text(f"{name},a,b,y\n{rows}")
    found = dataset.load("f.csv", "y")
    assert found.feature_names == ["a", "b"]
    assert "left out" in found.notes[0]
    assert main(["fit", "f.csv", "--target", "y", "--model", "m.st"]) == 0
    assert "an index that pandas wrote: left out" in capsys.readouterr().out
    assert main(["predict", "m.st", "f.csv", "--output", "p.csv"]) == 0
    kept = dataset.load("f.csv", "y", categorical=[name or "column 1"])
    assert kept.feature_names == [name or "column 1", "a", "b"]
    dropped = dataset.load("f.csv", "y", drop=[name])
    assert (dropped.feature_names, dropped.notes) == (["a", "b"], ())


@pytest.mark.parametrize("values", [["True", "False"], ["r", "g", "b"], ["0.5", "1.5", "2.25"], ["1", "2"]])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_other_nameless_columns_are_named_by_their_place(values, place, capsys):
    lines = [["a", "b", "y"], *([str(a), str(b), c] for a, b, c in ROWS)]
    for k, line in enumerate(lines):
        line.insert(place, "" if k == 0 else values[k % len(values)])
    Path("f.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    assert main(["fit", "f.csv", "--target", "y", "--model", "m.st"]) == 0
    assert main(["predict", "m.st", "f.csv", "--output", "p.csv"]) == 0
    assert f"column {place + 1}" in dataset.load("f.csv", "y").feature_names
    pl.read_csv("f.csv").rename({"": " "}).write_parquet("f.parquet")
    assert main(["predict", "m.st", "f.parquet", "--output", "q.csv"]) == 0
    assert Path("p.csv").read_text() == Path("q.csv").read_text()


def test_nameless_columns_without_values_are_left_out(capsys):
    Path("f.csv").write_text("".join(f"{line},, \n" for line in ("a,b,y\n" + body(",")).splitlines()))
    found = dataset.load("f.csv", "y")
    assert found.feature_names == ["a", "b"]
    assert found.notes == tuple(f"column {k} has neither a name nor values: left out" for k in (4, 5))
    Path("g.csv").write_text(",y\n" + "".join(f"{k},{'uv'[k % 2]}\n" for k in range(20)))
    with pytest.raises(DataError, match="no feature column beside the target 'y'"):
        dataset.load("g.csv", "y")


def as_pandas_writes(frame: pl.DataFrame, index: list[object]) -> None:
    frame.write_parquet("f.parquet", metadata={"pandas": json.dumps({"index_columns": index})})


@pytest.mark.filterwarnings("ignore:.*metadata")
def test_an_index_in_parquet_is_left_out_unless_it_is_asked_for(capsys):
    frame = pl.DataFrame(ROWS, schema=["a", "b", "y"], orient="row").with_columns(
        pl.Series("__index_level_0__", [3 * k for k in range(40)]),
        pl.Series("id", [f"r{k}" for k in range(40)]),
    )
    as_pandas_writes(frame, ["__index_level_0__"])
    assert dataset.load("f.parquet", "y", drop=["id"]).feature_names == ["a", "b"]
    as_pandas_writes(frame, ["__index_level_0__", "id"])
    found = dataset.load("f.parquet", "y")
    assert found.feature_names == ["a", "b"]
    assert len(found.notes) == 2
    assert main(["fit", "f.parquet", "--target", "y", "--model", "m.st"]) == 0
    out = capsys.readouterr().out
    assert "column 'id' is an index that pandas wrote: left out" in out
    assert main(["predict", "m.st", "f.parquet", "--output", "p.csv"]) == 0
    assert dataset.load("f.parquet", "y", categorical=["id"]).feature_names == ["a", "b", "id"]
    as_pandas_writes(frame.drop("__index_level_0__"), ["y", "id"])
    assert dataset.load("f.parquet", "y").feature_names == ["a", "b"]
    for index in ([{"kind": "range"}], "nonsense", None, [["a"]]):
        as_pandas_writes(frame.drop("__index_level_0__", "id"), index)
        assert dataset.load("f.parquet", "y").feature_names == ["a", "b"]
    frame.write_parquet("f.parquet")
    assert dataset.load("f.parquet", "y").feature_names == ["a", "b", "id"]


def test_eval_passes_over_an_index(capsys):
    frame = pl.DataFrame(np.eye(3)).with_columns(pl.Series("__index_level_0__", [5, 6, 7]))
    frame.write_parquet("z.parquet")
    np.save("y.npy", np.arange(3))
    assert main(["eval", "z.parquet", "y.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 3


class Ended:
    """A frame whose reading ends early, as that of polars does where a thread of it panics."""

    def __init__(self, frame: pl.LazyFrame) -> None:
        self.frame = frame

    def collect_batches(self, **options: object):
        yield self.frame.head(20).collect()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_that_polars_leaves_out_are_missed(kind, monkeypatch, capsys):
    frame = pl.DataFrame(ROWS, schema=["a", "b", "y"], orient="row")
    name = f"f.{kind}"
    frame.write_csv(name) if kind == "csv" else frame.write_parquet(name)
    assert main(["fit", name, "--target", "y", "--model", "m.st"]) == 0
    capsys.readouterr()
    if kind == "csv":
        scan = pl.scan_csv
        monkeypatch.setattr(
            pl, "scan_csv", lambda *a, **o: Ended(scan(*a, **o | {"with_column_names": None}))
        )
        monkeypatch.setattr(pl, "read_csv", lambda *_, **__: frame.cast(pl.String).head(20))
    else:
        pieces = parquet.pieces
        monkeypatch.setattr(parquet, "pieces", lambda path, f, size: pieces(path, Ended(f), size))
        monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: frame.head(20))
    for words in (["predict", "m.st", name, "--output", "p.csv"], ["fit", name, "--target", "y"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "20 rows could be read of 40" in err or "20 of its 40 rows can be read" in err
    assert not Path("p.csv").exists()


def test_a_panic_of_polars_is_one_line(monkeypatch, capsys):
    def panic(*_: object, **__: object):
        raise pl.exceptions.PanicException("index out of bounds\nmore")

    frame = pl.DataFrame(ROWS, schema=["a", "b", "y"], orient="row")
    frame.write_parquet("f.parquet")
    frame.write_csv("f.csv")
    frame.select("a", "b").write_parquet("z.parquet")
    np.save("y.npy", np.arange(40) % 2)
    assert main(["fit", "f.csv", "--target", "y", "--model", "m.st"]) == 0
    capsys.readouterr()
    calls = {
        "read_parquet": ["fit", "f.parquet", "--target", "y"],
        "scan_parquet": ["predict", "m.st", "f.parquet"],
        "read_csv": ["fit", "f.csv", "--target", "y"],
        "scan_csv": ["predict", "m.st", "f.csv"],
        "read_parquet_schema": ["eval", "z.parquet", "y.npy"],
        "read_parquet_metadata": ["eval", "z.parquet", "y.npy"],
    }
    for function, words in calls.items():
        with monkeypatch.context() as patch:
            patch.setattr(pl, function, panic)
            assert main(words) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "index out of bounds" in err


def test_a_shorter_header_of_an_array_is_no_shorter_array(capsys):
    """NumPy reads the rows of the header and no further, whatever comes behind them."""
    x, y = np.zeros((40, 2)) + np.arange(40)[:, None] % 3, np.arange(40) % 2
    np.savez("f.npz", X=x, y=y)
    content = Path("f.npz").read_bytes()
    Path("f.npz").write_bytes(content.replace(b"(40, 2)", b"(30, 2)").replace(b"(40,)", b"(30,)"))
    np.save("z.npy", x)
    np.save("y.npy", y)
    for name in ("z.npy", "y.npy"):
        content = Path(name).read_bytes()
        Path(name).write_bytes(content.replace(b"(40, 2)", b"(30, 2)").replace(b"(40,)", b"(30,)"))
    assert main(["fit", "iris", "--model", "m.st"]) == 0
    for words in (
        ["fit", "f.npz"],
        ["predict", "m.st", "f.npz"],
        ["eval", "f.npz:X", "f.npz:y"],
        ["eval", "z.npy", "y.npy"],
    ):
        capsys.readouterr()
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_cannot_be_names_the_file(capsys):
    np.savez("f.npz", X=np.eye(3), y=np.arange(3))
    content = bytearray(Path("f.npz").read_bytes())
    end = content.rindex(b"PK\5\6")
    content[end + 16 : end + 20] = b"\xff\xff\xff\xff"  # where the archive's directory begins
    Path("f.npz").write_bytes(content)
    for words in (["fit", "f.npz"], ["eval", "f.npz:X", "f.npz:y"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("xent: error: f.npz: is damaged")
        assert err.count("\n") == 1


def test_line_numbers_over_pieces(monkeypatch):
    content = 'a,b\n"1\n\n2",x\n\n3,"y"\n"""\n""",z'
    Path("f.csv").write_text(content)
    for piece in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr(row_numbers, "PIECE", piece)
        numbers = row_numbers.csv_lines(Path("f.csv"), 1)
        assert (numbers.num_rows, numbers.lookup(np.arange(4)).tolist()) == (4, [2, 5, 6, 7])
