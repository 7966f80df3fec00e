"""The command as a person runs it: what it prints, what it writes, and one line for each mistake."""

from __future__ import annotations

import io
import json
import os
from datetime import date

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_wine

import xent
from tests.command.mistakes import require_one_line
from xent import check
from xent.command.cli import main
from xent.regression.saved import model_file

GOOD = "a,b,kind\n" + "".join(f"{i % 7},{i % 3}.5,{'yes' if i % 2 else 'no'}\n" for i in range(40))


def lines(rows: int, text: str) -> str:
    """A CSV file with columns a, kind of good rows and then ``text``."""
    return "a,kind\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(rows)) + text


def parquet(**columns: list[object]) -> bytes:
    """The content of a Parquet file."""
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


DATES = parquet(day=[date(2020, 1, k + 1) for k in range(20)], kind=list("xy" * 10))

# name → (content of data.csv or None, arguments, what the one line must say)
BAD = {
    "missing file": (None, "fit nowhere.csv", ["nowhere.csv", "no such file", "digits, iris"]),
    "empty directory": (None, "fit .", [".: a directory without files"]),
    "empty file": (b"", "fit data.csv --target kind", ["data.csv", "is empty"]),
    "blank file": (b" \n\n", "fit data.csv --target kind", ["is empty"]),
    "binary": (bytes(range(256)), "fit data.csv --target kind", ["is not a CSV file", "binary"]),
    "not UTF-8": (b"a,kind\n1,\xff\xfe\n", "fit data.csv --target kind", ["line 2", "not UTF-8"]),
    "ragged": (lines(3, "1,2,3\n"), "fit data.csv --target kind", ["line 5 has 3 fields, the header 2"]),
    "open quote": ('a,kind\n"1,x\n2,y\n', "fit data.csv --target kind", ["is not a CSV file"]),
    "header only": ("a,kind\n", "fit data.csv --target kind", ["a header and no rows"]),
    "no --target": (GOOD, "fit data.csv", ["--target", "a, b, kind"]),
    "wrong --target": (GOOD, "fit data.csv --target sort", ["no column 'sort'", "a, b, kind"]),
    "--target for a bundled set": (None, "fit iris --target kind", ["`--target`", "iris"]),
    "target alone": ("kind\nx\ny\n", "fit data.csv --target kind", ["no feature column"]),
    "text among numbers": (lines(4, "1o,x\n"), "fit data.csv --target kind", ["'a', line 6", "'1o'"]),
    "a hint at categories": (lines(4, "1o,x\n"), "fit data.csv --target kind", ["say --categorical a"]),
    "a date": (DATES, "fit data.csv --target kind", ["column 'day' holds Date", "--drop day"]),
    "cut Parquet": (DATES[:-9], "fit data.csv --target kind", ["damaged or no Parquet"]),
    "a column twice": ("a,a,kind\n1,2,x\n", "fit data.csv --target kind", ["column 'a' is there twice"]),
    "wrong --drop": (GOOD, "fit data.csv --target kind --drop c", ["no column 'c' for `--drop`"]),
    "wrong --categorical": (GOOD, "fit data.csv --target kind --categorical c", ["'c' for `--categorical`"]),
    "--drop for a bundled set": (None, "fit iris --drop a", ["`--drop` is for CSV and Parquet", "iris"]),
    "nothing left": (GOOD, "fit data.csv --target kind --drop a --drop b", ["no feature column"]),
    "solver": (None, "fit iris --solver adam", ["--solver", "adam"]),
    "infinite": (lines(4, "inf,x\n"), "fit data.csv --target kind", ["finite", "'a', line 6", "'inf'"]),
    "missing label": (lines(4, "1,\n"), "fit data.csv --target kind", ["missing label", "'kind', line 6"]),
    "one class": ("a,kind\n1,x\n2,x\n", "fit data.csv --target kind", ["one class only", "'x'", "2 rows"]),
    "a class of one row": (lines(40, "1,z\n"), "fit data.csv --target kind", ["class 'z' has one row"]),
    "a quantity": (
        "a,y\n" + "".join(f"{i},{i / 7}\n" for i in range(50)),
        "fit data.csv --target y",
        ["'y' has 50 distinct values in 50 rows", "classes"],
    ),
    "too few rows": (lines(4, ""), "fit data.csv --target kind", ["4 rows of 2 classes are too few", "0.2"]),
    "too large": (lines(40, "1e300,x\n"), "fit data.csv --target kind", ["'a'", "too large", "1e+300"]),
    "unknown set": (None, "fit mnist", ["mnist", "none of the bundled sets"]),
    "report nowhere": (
        None,
        "fit iris --report no/r.html",
        ["no/r.html", "cannot be written", "no directory"],
    ),
    "report on a directory": (None, "fit iris --report .", ["cannot be written", "is a directory"]),
    "report over the data": (
        GOOD,
        "fit data.csv --target kind --report data.csv",
        ["data.csv", "overwritten"],
    ),
    "report and model in one": (None, "fit iris --report r --model r", ["`--report` and `--model`"]),
    "model nowhere": (None, "fit iris --model no/m.st", ["no/m.st", "cannot be written"]),
    "test size": (None, "fit iris --test-size 1.5", ["`--test-size` must be in [0, 1)", "1.5"]),
    "test size too small": (None, "fit iris --test-size 0.001", ["too few to hold out 0.001"]),
    "seed": (None, "fit iris --seed -1", ["`--seed`", "-1"]),
    "alpha": (None, "fit iris --alpha -1", ["`--alpha`", ">= 0", "-1"]),
    "alpha NaN": (None, "fit iris --alpha nan", ["`--alpha`", "nan"]),
    "alpha text": (None, "fit iris --alpha much", ["--alpha"]),
    "max-iter": (None, "fit iris --max-iter -3", ["`--max-iter`", "-3"]),
    "smoothing": (None, "fit iris --label-smoothing 2", ["`--label-smoothing` must be in [0, 1]", "2.0"]),
    "focal and smoothing": (
        None,
        "fit iris --focal-gamma 2 --label-smoothing 0.1",
        ["`--focal-gamma` and `--label-smoothing` cannot be combined"],
    ),
    "unknown option": (None, "fit --alhpa 1", ["No such option: --alhpa"]),
    "unknown command": (None, "fitt", ["No such command 'fitt'"]),
    "too many arguments": (None, "fit iris wine", ["unexpected extra argument", "wine"]),
    "logits text": (None, "explain 2,a,4 --label 1", ["`logits` must be numbers", "'a'", "number 2"]),
    "logits without quotes": (
        None,
        "explain 2 x 4 --label 1",
        ["`logits` must be numbers", "'x'", "number 2"],
    ),
    "first logit text": (None, "explain x 2 4 --label 1", ["`logits` must be numbers", "'x'", "number 1"]),
    "infinite logit": (None, "explain inf 1 --label 1", ["`logits` must be numbers", "'inf'", "number 1"]),
    "infinite class weight": (
        None,
        "explain 2,3 --label 1 --class-weight 1,inf",
        ["`--class-weight` must be numbers", "'inf'", "number 2"],
    ),
    "no logits": (None, "explain --label 1", ["logits"]),
    "label missing": (None, "explain 2,3,4", ["--label"]),
    "label out of range": (None, "explain 2,3,4 --label 3", ["`--label` must be in [0, 3)", "got 3"]),
    "label negative": (None, "explain 2,3,4 --label -1", ["`--label` must be in [0, 3)", "got -1"]),
    "label text": (None, "explain 2,3,4 --label one", ["--label"]),
    "label misspelt": (None, "explain 2,3,4 --lable 1", ["No such option: --lable"]),
    "temperature": (None, "explain 2,3 --label 1 --temperature 0", ["`--temperature`", "> 0", "0.0"]),
    "smoothing over": (None, "explain 2,3 --label 1 --smoothing-over most", ["--smoothing-over", "most"]),
    "class weights": (
        None,
        "explain 2,3 --label 1 --class-weight 1,2,3",
        ["`--class-weight`", "(2,)", "(3,)"],
    ),
    "class weight text": (None, "explain 2,3 --label 1 --class-weight a", ["--class-weight", "'a'"]),
    "check seed": (None, "check --seed -1", ["`--seed`", "-1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_that_says_what_and_where(case, tmp_path, capsys):
    content, arguments, expected = BAD[case]
    if content is not None:
        (tmp_path / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    words = arguments.split()
    if words[0] == "fit" and not {"--report", "--model"} & set(words):
        words += ["--report", "report.html", "--model", "model.safetensors"]
    assert main(words) == 2
    require_one_line(capsys, expected)
    assert sorted(tmp_path.rglob("*")) == before


def test_fit_trains_the_default_set_and_prints_what_it_should(capsys):
    assert main(["fit"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for expected in ("digits: 1,797 rows", "2.3026", "accuracy", "finite differences", "held-out"):
        assert expected in out
    loss = next(line for line in out.splitlines() if "loss, nats" in line)
    assert float(loss.split()[-2]) < 0.2


def test_fit_writes_a_report_and_a_model_that_predicts(tmp_path, capsys):
    X, y = load_wine(return_X_y=True)
    table = "\n".join(",".join([*(f"{v:.6f}" for v in x), f"grape {k}"]) for x, k in zip(X, y, strict=True))
    header = ",".join([*(f"f{i}" for i in range(X.shape[1])), "grape"])
    (tmp_path / "wine.csv").write_text(f"{header}\n{table}\n\n")
    arguments = ["fit", "wine.csv", "--target", "grape", "--report", "r.html", "--model", "m.safetensors"]
    assert main(arguments) == 0
    assert "report    r.html" in capsys.readouterr().out
    assert "xent fit wine.csv --target grape --report r.html" in (tmp_path / "r.html").read_text()
    model = model_file.load(tmp_path / "m.safetensors")
    assert model.estimator.classes_.tolist() == ["grape 0", "grape 1", "grape 2"]
    assert model.preprocessor.feature_names == header.split(",")[:-1]
    assert (model.predict_log_proba(X).argmax(1) == y).mean() > 0.97
    first = (tmp_path / "m.safetensors").read_bytes(), (tmp_path / "r.html").read_bytes()
    assert main(arguments) == 0
    assert first == ((tmp_path / "m.safetensors").read_bytes(), (tmp_path / "r.html").read_bytes())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_common_forms_of_csv_are_read(separator, start, tmp_path, capsys):
    text = start + GOOD.replace(",", separator).replace("\n", "\r\n")
    (tmp_path / "data.csv").write_text(text, newline="")
    assert main(["fit", "data.csv", "--target", "kind"]) == 0
    assert "40 rows, 2 features, 2 classes" in capsys.readouterr().out


def test_integer_labels_are_in_the_order_of_numbers(tmp_path):
    (tmp_path / "data.csv").write_text("a,k\n" + "".join(f"{i % 5},{[1, 10, 2][i % 3]}\n" for i in range(30)))
    assert main(["fit", "data.csv", "--target", "k", "--model", "m.st"]) == 0
    assert model_file.load("m.st").estimator.classes_.tolist() == [1, 2, 10]


def test_a_constant_column_does_no_harm(tmp_path):
    (tmp_path / "data.csv").write_text(GOOD.replace("\n", ",0.1\n").replace("kind,0.1", "kind,c"))
    assert main(["fit", "data.csv", "--target", "kind", "--model", "m.st"]) == 0
    assert np.isfinite(model_file.load("m.st").estimator.coef_).all()


def test_one_feature_is_no_features(tmp_path, capsys):
    (tmp_path / "data.csv").write_text(lines(40, ""))
    assert main(["fit", "data.csv", "--target", "kind"]) == 0
    assert "40 rows, 1 feature, 2 classes" in capsys.readouterr().out


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def run(*_):
        return np.empty(1 << 50)

    monkeypatch.setattr(check, "run", run)
    assert main(["check"]) == 2
    assert "not enough memory for this. Unable to allocate" in capsys.readouterr().err


def test_a_training_that_is_cut_short_says_so(capsys):
    assert main(["fit", "iris", "--max-iter", "2"]) == 0
    assert "raise --max-iter" in capsys.readouterr().out


def test_explain_shows_the_formulas_beside_the_numbers(capsys):
    assert main(["explain", "2 3 4", "--label", "1"]) == 0
    out = capsys.readouterr().out
    for expected in ("0.665241", "−0.755272", "1.407606", "exp(z − l)", "(1)", "(2)", "predicted minus true"):
        assert expected in out


@pytest.mark.parametrize(
    "words", [["-1 2 3", "--label", "0"], ["--label", "0", "-1,2,3"], ["--label", "0", "--", "-1 2 3"]]
)
def test_explain_takes_a_negative_first_logit(words, capsys):
    assert main(["explain", *words]) == 0
    assert "−1.000000" in capsys.readouterr().out


def test_explain_takes_numbers_without_quotes(capsys):
    printed = []
    for words in (["-1 2 .3"], ["-1", "2", ".3"]):
        assert main(["explain", *words, "--label", "0"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_check_prints_every_variant_within_80_columns_and_ends_with_0(capsys):
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert all(f" {variant} " in out for variant in check.VARIANTS)
    assert "variants agree" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_check_ends_with_1_and_names_the_failure(monkeypatch, capsys):
    right = check.cross_entropy_hvp
    monkeypatch.setattr(check, "cross_entropy_hvp", lambda *a, **o: right(*a, **o) * 1.001)
    monkeypatch.setattr(check, "VARIANTS", {"plain": {}})
    assert main(["check"]) == 1
    assert "FAILED: plain: hvp against differences" in capsys.readouterr().out


def test_fit_ends_with_1_where_the_gradient_is_wrong(monkeypatch, capsys):
    from xent.report import training

    monkeypatch.setattr(training, "gradient_check", lambda *_: check.GradientCheck(1e-3, 5, 5))
    assert main(["fit", "iris"]) == 1
    assert "do not trust" in capsys.readouterr().out


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xent {xent.__version__}\n"
    assert main([]) == 0
    commands = capsys.readouterr().out.partition("Commands:")[2]
    assert "fit" in commands
    assert "..." not in commands
    for command in ("fit", "predict", "eval", "explain", "check"):
        assert main([command, "--help"]) == 0
        assert f"Usage: xent {command}" in capsys.readouterr().out


def test_a_fault_of_ours_is_a_traceback_not_a_line(monkeypatch):
    monkeypatch.setattr(check, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["check"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe in the file system")
@pytest.mark.parametrize(
    "words",
    ["fit iris --report pipe", "fit iris --model pipe", "explain 2,3 --label 1 --html pipe"],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_refused_and_stays_one(words, linked, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    if linked:
        os.symlink("pipe", tmp_path / "link")
        words = words.replace("pipe", "link")
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    name = "link" if linked else "pipe"  # as it was typed
    assert err == f"xent: error: {name}: cannot be written: is not a regular file\n"
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink() == linked


def test_a_link_stays_one_and_its_target_gets_the_content(tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    for name in ("report", "model"):
        os.symlink(f"elsewhere/{name}", tmp_path / name)
    (tmp_path / "elsewhere" / "report").write_text("old")
    for _ in range(2):
        assert main(["fit", "iris", "--report", "report", "--model", "model"]) == 0
        assert os.readlink("report") == "elsewhere/report"
        assert os.readlink("model") == "elsewhere/model"
        assert "<html" in (tmp_path / "elsewhere" / "report").read_text()
        assert model_file.load(tmp_path / "elsewhere" / "model").estimator.coef_.shape == (3, 4)
        assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_the_settings_travel_with_the_model():
    assert main(["fit", "iris", "--model", "m.st", "--alpha", "0.01", "--seed", "3", "--balanced"]) == 0
    settings = model_file.load("m.st").notes["settings"]
    assert (settings["alpha"], settings["seed"], settings["balanced"]) == (0.01, 3, True)
    json.dumps(settings)
