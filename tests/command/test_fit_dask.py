"""`xent fit --dask`: model and numbers of a fit in memory to the same rows; one line for each mistake."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

import xent
from xent.command.cli import main
from xent.files.preprocess import Preprocessor
from xent.regression.saved import model_file

distributed = pytest.importorskip("distributed")

ROWS, CUTS, SEED = 900, (0, 300, 301, 301, 900), 5
RNG = np.random.default_rng(4)
LABELS = np.array(["no", "perhaps", "yes"])[RNG.integers(0, 3, ROWS)]
LABELS[:300][LABELS[:300] == "no"] = "yes"  # the first file lacks the first class
X = RNG.standard_normal((ROWS, 4)) + 1.5 * (np.array(["no", "perhaps", "yes", "?"]) == LABELS[:, None])
NAMES = [f"x{k + 1}" for k in range(4)]
TOWNS = [None if k % 40 == 0 else f"town {k % 7}" for k in range(ROWS)]
TABLE = pl.DataFrame(X, schema=NAMES).with_columns(
    pl.when(pl.int_range(ROWS) % 9 == 4).then(None).otherwise(pl.col("x2")).alias("x2"),
    town=pl.Series(TOWNS),
    y=pl.Series(LABELS),
)


@pytest.fixture(scope="module")
def address():
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    with cluster:
        yield cluster.scheduler_address


@pytest.fixture
def files(tmp_path):
    """Four files, of which one has a row and one none."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, (start, stop) in enumerate(pairwise(CUTS)):
        TABLE[start:stop].write_parquet(folder / f"{part}.parquet")
    return folder


def held_out_rows():
    """The rule of the documentation: draws of each file, but its first row of each class is trained on."""
    draws = []
    for part, (start, stop) in enumerate(pairwise(CUTS)):
        of_file = np.random.default_rng([SEED, part]).random(stop - start)
        _, first = np.unique(LABELS[start:stop], return_index=True)
        of_file[first] = 1.0
        draws.append(of_file)
    return np.concatenate(draws) < 0.2


def facts(capsys, files, address, *arguments):
    line = f"fit {files}/*.parquet --target y --seed {SEED} --tol 1e-10 --json --dask {address}"
    assert main([*line.split(), *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "options", [[], ["--balanced", "--label-smoothing", "0.1"]], ids=["plain", "weights"]
)
def test_the_numbers_are_those_of_a_fit_in_memory_to_the_same_rows(options, capsys, files, address, tmp_path):
    found = facts(capsys, files, address, "--model", tmp_path / "m", *options)
    test = held_out_rows()
    features = TABLE.drop("y").with_columns(pl.col(pl.Float64))
    learnt = Preprocessor.fit(features.filter(~test), features.columns)
    x, x_test = (learnt.transform(features.filter(rows)).astype("f4") for rows in (~test, test))
    weights = {"class_weight": "balanced", "label_smoothing": 0.1} if options else {}
    theirs = xent.SoftmaxRegression(tol=1e-10, **weights).fit(x, LABELS[~test])
    ours = model_file.load(tmp_path / "m")
    np.testing.assert_allclose(ours.estimator.coef_, theirs.coef_, atol=1e-4)
    assert ours.preprocessor.feature_names == learnt.feature_names
    np.testing.assert_allclose(ours.preprocessor.fill, learnt.fill)
    np.testing.assert_allclose(ours.preprocessor.scale, learnt.scale)
    rows = {"training": (~test).sum(), "held_out": test.sum(), "unlabelled": 0, "sample": None}
    assert found["rows"] == rows
    for part, which, of_rows in (("training", ~test, x), ("held_out", test, x_test)):
        logits, codes = theirs.decision_function(of_rows), np.searchsorted(theirs.classes_, LABELS[which])
        assert found[part]["loss"] == pytest.approx(xent.cross_entropy(logits, codes), rel=1e-4)
        assert found[part]["accuracy"] == pytest.approx(theirs.score(of_rows, LABELS[which]))
    assert found["curve"]["training"][-1] == pytest.approx(found["training"]["loss"], rel=1e-4)


def test_without_held_out_rows_all_are_trained_on(capsys, files, address):
    found = facts(capsys, files, address, "--test-size", "0")
    assert found["rows"]["training"] == ROWS
    assert found["rows"]["held_out"] == 0
    assert found["held_out"] is None


def test_a_training_goes_on_from_its_checkpoint_with_the_same_bits(capsys, files, address, tmp_path):
    path = tmp_path / "c"
    facts(capsys, files, address, "--model", tmp_path / "one")
    facts(capsys, files, address, "--checkpoint", path, "--max-iter", "3")
    assert facts(capsys, files, address, "--resume", path, "--model", tmp_path / "two")["steps"] > 3
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_client_gets_as_many_rows_as_fit_in_its_memory(capsys, files, address, monkeypatch):
    monkeypatch.setattr("xent.report.on_dask.HELD_OUT", 1 << 10)  # of the least memory that --memory takes
    found = facts(capsys, files, address, "--memory", "16MiB")
    rows = found["rows"]
    assert 2 <= rows["held_out"] < 0.1 * ROWS
    assert rows["held_out"] + rows["training"] == ROWS
    assert 2 <= rows["sample"] < 0.1 * ROWS
    assert "of the rows are held out, not 0.2" in " ".join(found["surprises"])


def test_a_lost_scheduler_is_one_line_and_the_checkpoint_is_kept(capsys, files, tmp_path, monkeypatch):
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    from xent.report import training

    results = training.results

    def closing(rows, estimator, settings, on_step):
        return results(rows, estimator, settings, lambda step: cluster.close() if step.iteration == 2 else 0)

    monkeypatch.setattr(training, "results", closing)
    with cluster:
        line = f"fit {files} --target y --checkpoint {tmp_path / 'c'} --dask {cluster.scheduler_address}"
        assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("xent: error: dask's scheduler or workers were lost: ")
    assert model_file.load(tmp_path / "c").estimator.n_iter_ == 2


# what is written beside the four files, arguments, what the one line must say
BAD = {
    "no files": (None, "nothing/*.parquet", "no file has such a name"),
    "no such file": (None, "nothing.parquet", "nothing.parquet: no such file"),
    "CSV": (
        lambda path: path.write_text("a,y\n1,x\n"),
        "more.parquet",
        "no Parquet file, which is what dask",
    ),
    "other columns": (
        lambda path: TABLE.drop("x3").write_parquet(path),
        "parts parts/more.parquet",
        "more.parquet: its columns are not those of the first file",
    ),
    "cut short": (lambda path: path.write_bytes(b"PAR1 and no more"), "more.parquet", "more.parquet: "),
    "an infinite number": (
        lambda path: TABLE.with_columns(x1=pl.lit(float("inf"))).write_parquet(path),
        "more.parquet",
        "more.parquet: ",
    ),
    "no label": (
        lambda path: TABLE.with_columns(y=pl.lit(None, pl.String)).write_parquet(path),
        "more.parquet",
        "missing label",
    ),
    "one class": (
        lambda path: TABLE.with_columns(y=pl.lit("no")).write_parquet(path),
        "more.parquet",
        "one class only: 'no'",
    ),
    "alpha auto": (None, "parts --alpha auto", "must be a number for rows that are read in parts"),
    "sgd": (None, "parts --solver sgd", "`--solver` must be"),
    "a wrong column": (None, "parts --drop z", "no column 'z' for `--drop`"),
}


@pytest.mark.parametrize(("write", "arguments", "words"), BAD.values(), ids=BAD)
def test_each_mistake_is_one_line(write, arguments, words, capsys, files, address, monkeypatch):
    monkeypatch.chdir(files.parent)
    data, *options = arguments.split()
    if options[:1] == ["parts/more.parquet"]:
        write(files / "more.parquet")
        options = []
    elif write is not None:
        write(files.parent / "more.parquet")
    assert main(["fit", data, *options, "--target", "y", "--dask", address]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words.lower() in error.lower()


def test_a_task_that_fails_is_one_line(capsys, files, address, monkeypatch):
    def fail(self, table):
        raise RuntimeError("there is\nno room")

    monkeypatch.setattr("xent.files.parts.learning.Learner.add", fail)
    assert main(["fit", str(files), "--target", "y", "--dask", address]) == 2
    expected = f"xent: error: {address}: partition 0: RuntimeError: there is no room\n"
    assert capsys.readouterr().err == expected


def test_an_unreachable_scheduler_and_missing_dask_are_one_line(capsys, files, monkeypatch):
    from xent.report import on_dask

    monkeypatch.setattr(on_dask, "SECONDS", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        assert main(["fit", str(files), "--target", "y", "--dask", address]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"xent: error: {address}: dask's scheduler cannot be reached: ")
    monkeypatch.delitem(sys.modules, "xent.report.on_dask")
    monkeypatch.delattr("xent.report.on_dask")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["fit", str(files), "--target", "y", "--dask", "tcp://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err == (
        "xent: error: this command needs distributed: pip install 'xent[dask]'\n"
    )
